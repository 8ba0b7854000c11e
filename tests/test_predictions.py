"""Outputs of other programs that are damaged, or of another form."""

from __future__ import annotations

import errno
import gc
from pathlib import Path

import numpy as np
import pytest
import tifffile

from etsam.dataset import open_volume
from etsam.predictions import open_prediction
from test_cli import Run, assert_one_line, write_mrc

SCORES = np.random.default_rng(0).random((3, 8, 9), dtype=np.float32)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # tifffile's own
def test_a_damaged_tiff_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a_CNN.tif"
    tifffile.imwrite(path, SCORES, photometric="minisblack")
    whole = path.read_bytes()
    random = np.random.default_rng(1)
    damaged = [b"II*\0junk", whole[:200], whole[:500]]
    for _ in range(300):
        spoiled = bytearray(whole)
        for place in random.integers(0, 400, 2):
            spoiled[place] = random.integers(256)
        damaged.append(bytes(spoiled))
    refused = 0
    for data in damaged:
        path.write_bytes(data)
        try:
            open_prediction(path)
        except ValueError as error:
            assert str(error).startswith(f"{path} cannot be read slice by slice (")
            refused += 1
    gc.collect()
    assert refused > 50
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 300, 600, -1000])
def test_a_tiff_that_is_cut_short_says_so(tmp_path: Path, run: Run, kept: int) -> None:
    path = tmp_path / "a_CNN.tif"
    tifffile.imwrite(path, SCORES, photometric="minisblack")
    path.write_bytes(path.read_bytes()[:kept])
    write_mrc(tmp_path / "a_membrane.mrc", (SCORES > 0.5).astype(np.int8), 10.0)
    code, out, err = run("evaluate", path, "-t", tmp_path / "a_membrane.mrc")
    assert (code, out) == (1, "")
    assert_one_line(err, f"{path} cannot be read", "(it is damaged, cut short or no TIFF)")


def test_windows_has_no_memory_for_a_file_that_is_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*_given: object, **_options: object) -> None:
        raise OSError(errno.ENOMEM, "Not enough memory resources are available")

    tifffile.imwrite(tmp_path / "a_CNN.tif", SCORES, photometric="minisblack")
    np.save(tmp_path / "a_stage1.npy", np.zeros((2, 2, 2), np.int8))
    monkeypatch.setattr(tifffile, "memmap", short)
    monkeypatch.setattr(np.lib.format, "open_memmap", short)
    with pytest.raises(ValueError, match=r"a_CNN\.tif cannot be read.*cut short"):
        open_prediction(tmp_path / "a_CNN.tif")
    with pytest.raises(ValueError, match=r"a_stage1\.npy is damaged"):
        open_volume(tmp_path / "a_stage1.npy")


def test_a_plane_names_its_file(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "two_CNN.tif", SCORES[0])
    with pytest.raises(ValueError, match=r"two_CNN\.tif cannot be read.*shape \(8, 9\)"):
        open_prediction(tmp_path / "two_CNN.tif")

"""Commands that are stopped, or write to a full disk, leave nothing half-written and say which file it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from etsam.cli.command import check_output, check_output_name, sigterm_stops
from file_limit import file_limit
from test_cli import Run, assert_one_line, write_mrc
from tiny_model import write_tiny_model

WAIT = 60  # seconds


def noise(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.skipif(os.name == "nt", reason="there SIGTERM ends a process at once")
def test_sigterm_leaves_nothing_of_a_baseline(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a.mrc", noise((96, 256, 256)))
    with subprocess.Popen(
        [sys.executable, "-m", "etsam", "baseline", path], stderr=subprocess.PIPE, text=True
    ) as process:
        end = time.monotonic() + WAIT
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < end:
            time.sleep(0.02)
        assert [each.name for each in tmp_path.glob(".a_ridge*")], "it did not begin to write"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=WAIT)
    assert process.returncode == 128 + signal.SIGTERM
    assert err.splitlines()[-1] == "etsam: error: interrupted"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="there SIGTERM ends a process at once")
def test_a_program_keeps_its_own_way_with_sigterm() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: heard.append(number))
    try:
        with sigterm_stops():
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    with pytest.raises(KeyboardInterrupt), sigterm_stops():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(WAIT)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_figures_on_a_full_disk_leave_nothing(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    data = noise((4, 60, 64))
    tomogram = write_mrc(tmp_path / "a.mrc", data)
    mask = write_mrc(tmp_path / "a_membrane.mrc", (data > 0.9).astype(np.int8))
    (tmp_path / "out").mkdir()
    draw = ("figures", "slices", tomogram, "-m", mask, "-z", 1, "-o", tmp_path / "out")
    assert run(*draw, "--format", "svg", "--format", "png")[0] == 0
    sizes = {path.suffix: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    small, large = sorted(sizes, key=lambda kind: sizes[kind])
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    with file_limit((sizes[small] + sizes[large]) // 2):
        answer = run(*draw, "--format", small[1:], "--format", large[1:])
    assert answer[:2] == (1, "")
    assert_one_line(answer[2], f"slices{large}")
    assert not list((tmp_path / "out").iterdir())


def test_a_mask_too_large_for_the_system_is_named(run: Run, tmp_path: Path) -> None:
    """And not the tomogram, which is only read."""
    path = write_mrc(tmp_path / "a_membrane.mrc", (noise((20, 64, 64)) > 1).astype(np.int8))
    with file_limit(10_000):
        code, out, err = run("postprocess", path)
    assert (code, out) == (1, "")
    assert_one_line(err, "a_membrane_postprocessed.mrc: File too large")
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_others_make_meanwhile_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs of an array are given the same new folder, and each may be the first to make it."""
    folder = tmp_path / "masks"
    asked = Path.is_dir

    def made_after_the_first_look(path: Path) -> bool:
        found = asked(path)
        if path == folder:
            os.makedirs(folder, exist_ok=True)
        return found

    monkeypatch.setattr(Path, "is_dir", made_after_the_first_look)
    check_output_name(folder)
    folder.rmdir()
    check_output([tmp_path / "a.mrc", tmp_path / "b.mrc"], folder)
    assert asked(folder)


def test_a_segmentation_too_large_for_the_system_names_its_file(run: Run, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny")
    path = write_mrc(tmp_path / "a.mrc", noise((4, 64, 64)))
    before = sorted(tmp_path.iterdir())
    with file_limit(10_000):
        code, out, err = run("segment", path, "--model", model, "--device", "cpu", "--no-preview")
    assert (code, out) == (1, "")
    mask = tmp_path / "a_membrane.mrc"
    assert err.splitlines()[-1] == f"etsam: error: {path}: {mask}: File too large"
    assert sorted(tmp_path.iterdir()) == before

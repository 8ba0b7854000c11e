"""Disks that are full: said before the work, what is done is kept, what was there before stays."""

from __future__ import annotations

import errno
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from etsam import manifest
from etsam.options import SegmentOptions
from etsam.results import how_far
from etsam.segmentation import segment_file
from file_limit import file_limit
from test_cli import Run, assert_one_line, write_mrc
from tiny_model import write_tiny_model


def noise(shape: tuple[int, int, int]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def fill_up(path: Path) -> None:
    """Write a file until the disk is full."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1024)):
                pass
        except OSError:
            return


@pytest.fixture
def options(tmp_path: Path) -> SegmentOptions:
    folder = write_tiny_model(tmp_path / "tiny")
    return SegmentOptions(model=folder, device="cpu", preview=False, polarity="dark")


def test_all_files_of_a_segmentation_must_fit_together(
    run: Run, options: SegmentOptions, tmp_path: Path, small_disk: Path
) -> None:
    path = write_mrc(tmp_path / "a.mrc", noise((8, 128, 128)))  # each file by itself would fit
    code, out, err = run(
        *("segment", path, "--model", options.model, "--device", "cpu", "--no-preview"),
        *("-o", small_disk, "--instances", "--post-process"),
    )
    assert (code, out) == (1, "") and "stage 1" not in err
    tracked = 5  # of the first stage's slices, every second one and the last
    need = 128 * 128 * (4 * tracked + 8 * (4 + 1 + 1 + 2))
    assert_one_line(err, f"{small_disk}: making a_membrane.mrc needs {need:,} bytes")
    assert {each.suffix for each in small_disk.iterdir()} <= {".jsonl", ".lock"}


@pytest.mark.filterwarnings("ignore:no membrane found")
def test_slices_that_are_not_tracked_need_no_room(
    options: SegmentOptions, tmp_path: Path, small_disk: Path
) -> None:
    """The first stage's file has holes: 7 bytes a voxel and the JSON do, where whole files take 9."""
    path = write_mrc(tmp_path / "a.mrc", noise((32, 64, 64)))
    voxels = 32 * 64 * 64
    (small_disk / "others").write_bytes(bytes((1 << 20) - round(7.6 * voxels)))
    segment_file(path, replace(options, output=small_disk))
    assert (small_disk / "a_membrane.mrc").is_file()


@pytest.mark.filterwarnings("ignore:no membrane found")
def test_stages_outlive_a_disk_that_fills_up(
    run: Run, options: SegmentOptions, tmp_path: Path, small_disk: Path
) -> None:
    path = write_mrc(tmp_path / "a.mrc", noise((8, 64, 64)))
    filler, mask = small_disk / "filler", small_disk / "a_membrane.mrc"

    def fill(fraction: float, message: str) -> None:
        if fraction > 0.6 and not filler.exists():
            fill_up(filler)

    asked = ("segment", path, "--model", options.model, "--device", "cpu", "--polarity", "dark")
    asked = (*asked, "--no-preview", "-o", small_disk)
    with pytest.raises(OSError, match="No space") as caught:
        segment_file(path, replace(options, output=small_disk), fill)
    assert caught.value.errno == errno.ENOSPC
    left = how_far(mask)
    assert left is not None and left[0] == 2
    code, _, err = run(*asked, "--resume")
    assert code == 1 and "a_membrane.mrc" in err and how_far(mask) == left
    filler.unlink()
    seen: list[str] = []
    later = replace(options, output=small_disk)
    segment_file(path, later, lambda _, message: seen.append(message), resume=True)
    assert mask.is_file() and not [text for text in seen if text.startswith("stage 1")]
    assert not list(small_disk.glob(".a_membrane*"))


@pytest.mark.filterwarnings("ignore:.*no membrane found")
@pytest.mark.parametrize("verb", ["postprocess", "baseline"])
def test_older_results_outlive_a_full_disk(run: Run, tmp_path: Path, verb: str) -> None:
    """Mask and JSON are those of one run: the JSON does not fit any more, the mask before it does."""
    path = (
        tmp_path / f"{'a' * 200}.mrc"
    )  # which is told in the JSON, so that this is the larger one
    mask = (noise((4, 4, 4)) > 0).astype(np.int8)
    write_mrc(path, mask)
    asked = (verb, path, "-o", tmp_path / "out")
    assert run(*asked)[0] == 0
    before = {each.name: each.read_bytes() for each in (tmp_path / "out").iterdir()}
    sizes = {Path(name).suffix: len(content) for name, content in before.items()}
    assert sizes[".mrc"] < sizes[".json"] - 100
    path.unlink()
    write_mrc(path, mask[::-1])
    with file_limit(sizes[".json"] - 100):
        code, out, err = run(*asked, "--overwrite")
    assert (code, out) == (1, "") and ".json: File too large" in err
    assert {each.name: each.read_bytes() for each in (tmp_path / "out").iterdir()} == before


def test_an_output_folder_goes_with_what_failed_in_it(run: Run, tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a.mrc", (noise((4, 8, 8)) > 0).astype(np.int8))
    (tmp_path / "old").mkdir()
    for name in ("new", "old"):
        for verb in ("postprocess", "baseline"):
            with file_limit(1000):
                assert run(verb, path, "-o", tmp_path / name)[0] == 1
    assert {each.name for each in tmp_path.rglob("*")} == {"a.mrc", "old"}


@pytest.mark.filterwarnings("ignore:no membrane found", "always:.*trying again")
@pytest.mark.parametrize(("full", "code"), [(range(3, 5), 0), (range(3, 99), 1)])
def test_a_disk_that_is_full_for_a_moment_does_not_end_a_batch(
    run: Run,
    options: SegmentOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    full: range,
    code: int,
) -> None:
    paths = [write_mrc(tmp_path / f"{name}.mrc", noise((5, 24, 32))) for name in "ab"]
    usual, turns = manifest.write_text, itertools.count(1)

    def write_text(path: Path, text: str) -> None:
        if next(turns) in full:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        usual(path, text)

    monkeypatch.setattr(manifest, "write_text", write_text)
    asked = ("segment", *paths, "--model", options.model, "--device", "cpu", "--polarity", "dark")
    answer = run(*asked, "--no-preview", "-o", tmp_path / "out")
    assert answer[0] == code and len(answer[1].splitlines()) == 2
    assert answer[2].count("etsam_manifest.jsonl: No space left on device: trying again") == 1
    assert ("etsam: error" in answer[2]) == bool(code)
    found = manifest.read_manifest(tmp_path / "out" / "etsam_manifest.jsonl")
    assert [entry.state for entry in found] == (["running", "queued"] if code else ["done"] * 2)


def test_a_record_says_files_by_the_names_that_they_will_have(
    run: Run, options: SegmentOptions, tmp_path: Path
) -> None:
    """The mask fits, the logits that are kept meanwhile do not."""
    path = write_mrc(tmp_path / "a.mrc", noise((4, 64, 64)))
    record = tmp_path / "m.jsonl"
    asked = ("segment", path, "--model", options.model, "--device", "cpu", "--polarity", "dark")
    with file_limit(20_000):
        code, out, err = run(*asked, "--no-preview", "--manifest", record)
    assert (code, out) == (1, "")
    (entry,) = manifest.read_manifest(record)
    assert entry.error == f"{tmp_path / 'a_membrane.mrc'}: File too large"
    assert err.splitlines()[-1] == f"etsam: error: {path}: {entry.error}"

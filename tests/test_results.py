"""The files of a segmentation that is made anew: nothing of the earlier one stays, nothing of others goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest

from etsam.batch import BatchPlan, Outcome, default_manifest, run_batch
from etsam.options import SegmentOptions
from etsam.postprocess import postprocess
from etsam.results import NETWORK, Task, is_finished, refuse_others
from etsam.segmentation import segment_file
from etsam.volume import create_volume, open_tomogram, tomogram_from_array
from test_cli import write_mrc
from tiny_model import write_tiny_model

SHAPE = (6, 24, 32)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> SegmentOptions:
    model = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    return SegmentOptions(model=model, device="cpu", preview=False, polarity="dark")


@pytest.fixture
def tomogram(tmp_path: Path) -> Path:
    data = np.random.default_rng(2).normal(size=SHAPE).astype(np.float32)
    return write_mrc(tmp_path / "a.mrc", data)


def resumed(tomogram: Path, options: SegmentOptions) -> Outcome:
    (outcome,) = run_batch(BatchPlan([tomogram], options, resume=True))
    return outcome


def names(tomogram: Path) -> set[str]:
    return {path.name for path in tomogram.parent.iterdir()} - {tomogram.name}


def edit(path: Path) -> bytes:
    """Change a voxel, as a user with another program does; returns what is in the file then."""
    with mrcfile.open(path, "r+") as mrc:
        mrc.data[2, 3, 4] = 1 - mrc.data[2, 3, 4]
    return path.read_bytes()


def test_files_of_an_earlier_run_go_with_it(tomogram: Path, options: SegmentOptions) -> None:
    every = replace(options, preview=True, store_logits=True, post_process=True)
    first = segment_file(tomogram, every)
    assert names(tomogram) == {path.name for path in first.paths()}
    stricter = replace(options, logit_threshold=0.5, overwrite=True)
    second = segment_file(tomogram, stricter)
    assert names(tomogram) == {"a_membrane.mrc", "a_membrane.json"}
    assert set(second.details["outputs"]) == {"a_membrane.mrc"}


def test_no_json_of_an_earlier_cleaned_mask_stays(tomogram: Path, options: SegmentOptions) -> None:
    mask = segment_file(tomogram, options).mask
    cleaned = postprocess(mask)
    assert cleaned.provenance.is_file()
    segment_file(tomogram, replace(options, post_process=True, overwrite=True))
    assert cleaned.path.is_file() and not cleaned.provenance.exists()


def test_results_of_a_level_lie_beside_its_zarr(
    run: Run, options: SegmentOptions, tmp_path: Path
) -> None:
    pytest.importorskip("fast_simplification")
    data = np.random.default_rng(2).normal(size=SHAPE).astype(np.float32)
    levels = [tmp_path / f"{name}.zarr" / "0" for name in "ab"]
    for level in levels:
        with (
            tomogram_from_array(data, voxel_spacing=10.0) as like,
            create_volume(level.parent, like, dtype="float32", label="test") as writer,
        ):
            for z, plane in enumerate(data):
                writer.write_slice(z, plane)
    asked = replace(options, logit_threshold=-1e3)
    for level in levels:
        assert segment_file(level, asked).mask == tmp_path / f"{level.parent.stem}_membrane.zarr"
    inside = {path for path in tmp_path.rglob("*") if path.parent != tmp_path}
    masks = [tmp_path / f"{name}_membrane.zarr" / "0" for name in "ab"]
    code, _, err = run("report", *levels)
    assert code == 0, err
    code, _, err = run("export", *masks, "--as", "labels", "--as", "chimerax", "--components")
    assert code == 0, err
    assert default_manifest(levels, None).parent == tmp_path
    assert {path for path in tmp_path.rglob("*") if path.parent != tmp_path} == inside
    assert {path.name for path in tmp_path.glob("*")} == {
        "index.html",
        *(f"{name}{end}" for name in "ab" for end in (".zarr", "_report.html")),
        *(f"{name}_membrane{end}" for name in "ab" for end in (".zarr", ".json", ".cxc")),
        *(f"{name}_membrane_labels.{kind}" for name in "ab" for kind in ("mrc", "csv")),
    }
    assert resumed(levels[0], asked).entry.reused


def test_results_inside_of_the_tomogram_are_refused_before_the_work(
    tomogram: Path, options: SegmentOptions
) -> None:
    """Its time and sum would be others then: hours later it would have changed while it was read."""
    zarr = tomogram.with_suffix(".zarr")
    with open_tomogram(tomogram) as like, create_volume(zarr, like, dtype="int16", label="") as out:
        for z in range(SHAPE[0]):
            out.write_slice(z, np.full(SHAPE[1:], z))
    before = sorted(tomogram.parent.rglob("*"))
    for inside in (zarr / "labels", zarr / "0", zarr / "labels" / "a.mrc"):
        asked = replace(options, output=inside, overwrite=True)
        with pytest.raises(ValueError, match=r"lies inside of the tomogram .*a\.zarr"):
            segment_file(zarr, asked)
    assert sorted(tomogram.parent.rglob("*")) == before


def test_a_link_that_leads_nowhere_stays(tomogram: Path, options: SegmentOptions) -> None:
    """As one to an archive that is not mounted."""
    link = tomogram.with_name("a_membrane.mrc")
    link.symlink_to(tomogram.parent / "archive" / "a_membrane.mrc")
    with pytest.raises(FileExistsError, match=r"a_membrane\.mrc is there already"):
        segment_file(tomogram, options)
    assert link.is_symlink()


@pytest.mark.parametrize("name", ["a_membrane.mrc", "a_membrane.png", "a_membrane.json"])
def test_a_folder_with_a_results_name_stays(
    tomogram: Path, options: SegmentOptions, name: str
) -> None:
    notes = tomogram.with_name(name) / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    asked = replace(options, preview=True, overwrite=True)
    with pytest.raises(FileExistsError, match=f"{name} is a folder and not Zarr"):
        segment_file(tomogram, asked)
    with pytest.raises(FileExistsError, match=r"data\.zarr is a folder and not Zarr"):
        folder = notes.parent.rename(tomogram.with_name("data.zarr"))
        segment_file(tomogram, replace(asked, output=folder))
    assert (folder / notes.name).read_text() == "mine"
    assert names(tomogram) == {"data.zarr"}


def test_files_of_others_stay(tomogram: Path, options: SegmentOptions) -> None:
    segment_file(tomogram, replace(options, post_process=True))
    logits = write_mrc(tomogram.with_name("a_membrane_logits.mrc"), np.ones(SHAPE, np.float32))
    cleaned = tomogram.with_name("a_membrane_postprocessed.mrc")
    kept = [edit(cleaned), logits.read_bytes()]
    segment_file(tomogram, replace(options, overwrite=True))
    assert [cleaned.read_bytes(), logits.read_bytes()] == kept
    asked = resumed(tomogram, replace(options, post_process=True))
    assert isinstance(asked.error, FileExistsError)
    assert cleaned.read_bytes() == kept[0]


def test_a_mask_edited_since_is_not_replaced_by_resume(
    tomogram: Path, options: SegmentOptions
) -> None:
    mask = segment_file(tomogram, options).mask
    mine = edit(mask)
    assert resumed(tomogram, options).entry.reused
    stricter = replace(options, logit_threshold=0.5)
    outcome = resumed(tomogram, stricter)
    assert isinstance(outcome.error, FileExistsError)
    assert "not as etsam wrote it" in str(outcome.error) and "--overwrite" in str(outcome.error)
    assert mask.read_bytes() == mine
    assert resumed(tomogram, replace(stricter, overwrite=True)).error is None
    assert mask.read_bytes() != mine
    assert resumed(tomogram, options).error is None  # ours again


def test_the_json_of_a_mask_of_another_format_is_not_its_own(
    tomogram: Path, options: SegmentOptions
) -> None:
    record = segment_file(tomogram, options).provenance
    before = record.read_bytes()
    other = replace(options, output=tomogram.with_name("a_membrane.zarr"))
    outcome = resumed(tomogram, other)
    assert isinstance(outcome.error, FileExistsError)
    assert "a_membrane.json is of another mask, not of a_membrane.zarr" in str(outcome.error)
    assert record.read_bytes() == before and names(tomogram) == {"a_membrane.mrc", record.name}
    tomogram.with_name("a_membrane.zarr").mkdir()
    assert isinstance(resumed(tomogram, other).error, FileExistsError)
    assert resumed(tomogram, replace(other, overwrite=True)).error is None
    assert resumed(tomogram, other).entry.reused


DAMAGES: list[tuple[str, Any]] = [
    *(("inputs", value) for value in (None, [], ["x"], [5], [{}], {"sha256": 1}, "x")),
    *(("weights", value) for value in (None, 5, [1], [{"name": "a"}], {"sha256": 1})),
    *(("results", value) for value in (None, [], {}, {"membrane_fraction": None}, "x")),
    *(("results", {"membrane_fraction": value}) for value in (float("nan"), "x", [])),
    *(("request", value) for value in (None, [], 5)),
]


def test_a_damaged_json_is_of_no_finished_result(tomogram: Path, options: SegmentOptions) -> None:
    result = segment_file(tomogram, options)
    details = json.loads(result.provenance.read_bytes())
    weights = [{key: entry[key] for key in NETWORK} for entry in details["weights"]]
    task = Task(details["inputs"][0], weights, details["request"])
    assert is_finished(result, details, task)
    for key, value in DAMAGES:
        assert not is_finished(result, details | {key: value}, task), (key, value)
    for outputs in (None, [], 5, {}, {"a_membrane.mrc": [1]}):
        with pytest.raises(FileExistsError, match="not as etsam wrote it"):
            refuse_others(result, details | {"outputs": outputs}, overwrite=False)
    result.provenance.write_text(json.dumps(details | {"inputs": ["x"]}))
    entry = resumed(tomogram, options).entry
    assert entry.state == "done" and not entry.reused


def test_a_kill_while_files_get_their_names_can_be_resumed(
    tomogram: Path, options: SegmentOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = replace(options, store_logits=True)
    segment_file(tomogram, every)
    stricter = replace(every, logit_threshold=0.5)
    rename = Path.replace
    moves: list[Path] = []

    def killed(path: Path, target: Path) -> Path:
        if "a_membrane" in path.name and path.suffix != ".partial":
            if not moves:
                raise KeyboardInterrupt
            moves.pop()
        return rename(path, target)

    for count in range(1, 6):
        moves = [tomogram] * count
        monkeypatch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            resumed(tomogram, stricter)
        monkeypatch.setattr(Path, "replace", rename)
        outcome = resumed(tomogram, stricter)
        assert outcome.error is None and not outcome.entry.reused
        assert outcome.result is not None
        assert names(tomogram) == {path.name for path in outcome.result.paths()}
        resumed(tomogram, every)

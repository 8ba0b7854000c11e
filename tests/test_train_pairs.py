"""What is odd about training pairs is told when they are opened: whose masks, where, how large, which twice."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import mrcfile
import pytest

from etsam.dataset import SliceStore
from etsam.train import TrainOptions
from etsam.training.tasks import held_out, open_groups
from test_cli import Run
from tiny_model import write_tiny_model
from tiny_training import write_pairs

Told = Callable[[Path], list[str]]


@pytest.fixture
def told(store: SliceStore) -> Told:
    """The warnings when a folder is opened."""

    def told(folder: Path) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            open_groups(TrainOptions(folder, folder / "run", sizes=(64,)), store)
        return [str(one.message) for one in caught]

    return told


@pytest.mark.filterwarnings("always")
def test_predictions_are_not_taken_for_truth_unsaid(run: Run, tmp_path: Path, told: Told) -> None:
    folder = write_pairs(tmp_path / "mine")
    for mask in folder.glob("*_membrane.mrc"):
        mask.unlink()
    model = write_tiny_model(tmp_path / "model")
    common = ("--model", model, "--device", "cpu", "--polarity", "dark")
    code, _, err = run("segment", folder / "t0.mrc", folder / "t1.mrc", *common)
    assert code == 0, err
    (line,) = told(folder)
    said = "are as `etsam segment` wrote them: predictions, no annotations"
    assert line.startswith(f"{folder}: 2 tomograms (t0, ...) have masks as `etsam segment` wrote")
    _, _, err = run("prepare", folder, "-o", tmp_path / "pairs")
    assert f"warning: 2 masks ({folder / 't0_membrane.mrc'}, ...) {said}" in err
    for mask in folder.glob("*_membrane.mrc"):  # as who corrects them does
        with mrcfile.mmap(mask, "r+") as mrc:
            mrc.data[3, :4, :4] = 1
    assert told(folder) == []
    _, _, err = run("prepare", folder, "-o", tmp_path / "more")
    assert said not in err


def test_places_and_sizes_that_headers_tell_otherwise(tmp_path: Path, told: Told) -> None:
    for name, said in (
        ("spacing", "headers differ (voxels of 10x10x10 and 20x20x20 Å): laid voxel on voxel"),
        ("origin", "headers differ (other origins): laid voxel on voxel"),
    ):
        folder = write_pairs(tmp_path / name, 1)
        with mrcfile.mmap(folder / "t0_membrane.mrc", "r+") as mrc:
            if name == "origin":
                mrc.header.origin.x = 1000.0
            else:
                mrc.voxel_size = 20.0
        (line,) = told(folder)
        assert line == f"{folder}: 1 tomograms (t0, ...) have masks whose {said}"


def test_unknown_voxel_sizes_are_told(tmp_path: Path, told: Told) -> None:
    folder = write_pairs(tmp_path / "mine", 1)
    with mrcfile.mmap(folder / "t0.mrc", "r+") as mrc:
        mrc.voxel_size = 0.0
    (line,) = told(folder)
    assert "1 tomograms (t0, ...) do not tell their voxel size: taken for 8 Å" in line


def test_validation_on_links_to_what_is_trained_on_is_told(
    tmp_path: Path, store: SliceStore
) -> None:
    folder, held = write_pairs(tmp_path / "mine"), write_pairs(tmp_path / "held")
    given = TrainOptions(folder, tmp_path / "run", sizes=(64,), validation=held)
    groups = open_groups(given, store)
    held_out(given, store, groups)
    (held / "t1.mrc").unlink()
    (held / "t1.mrc").symlink_to(shutil.copy(folder / "t1.mrc", tmp_path / "elsewhere.mrc"))
    held_out(given, store, groups)
    (held / "t1.mrc").unlink()
    (held / "t1.mrc").symlink_to(folder / "t1.mrc")
    with pytest.warns(UserWarning, match="1 of 2 tomograms are trained on too: the Dice says noth"):
        held_out(given, store, groups)

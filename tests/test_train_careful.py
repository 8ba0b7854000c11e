"""Training loses no step, takes nothing that is of something else, and says what plays no role."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from etsam import train as module
from etsam.dataset import SliceStore
from etsam.feedback import LOCK, write_stage1_logits
from etsam.layout import find_pairs
from etsam.sam2 import SAM2
from etsam.simulate import simulate_one
from etsam.simulation.recipe import SimulationOptions
from etsam.storage import held_lock
from etsam.train import TrainOptions
from etsam.training.fresh import RECIPE, Fresh
from etsam.training.tasks import open_groups
from etsam.training.validation import validate
from test_cli import Run, assert_one_line
from tiny_model import write_tiny_model
from tiny_training import write_pairs

COMMON = ("--batch", 1, "--frames", 2, "--size", 64, "--device", "cpu", "--float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def write_labels(path: Path, value: int, z: int) -> None:
    import mrcfile

    with mrcfile.mmap(path, "r+") as mrc:
        mrc.data[z] = value


def test_validation_that_fails_costs_no_step(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = write_pairs(tmp_path / "small", 1, (16, 40, 40))
    code, out, err = run(
        "train", folder, "-o", tmp_path / "r", "--validation", small, "--steps", 2, *COMMON
    )
    assert (code, out) == (1, "")
    assert_one_line(err, f"--validation {small}: every volume is smaller than a clip of 6 slices")
    assert not (tmp_path / "r").exists()
    damaged = write_pairs(tmp_path / "damaged", 1)
    write_labels(damaged / "t0_membrane.mrc", 2, 15)
    args = ("train", folder, "-o", tmp_path / "r", "--validation", damaged, *COMMON)
    code, out, err = run(*args, "--steps", 2)
    assert (code, out) == (1, "")
    assert_one_line(
        err, f"{damaged / 't0_membrane.mrc'} has values other than 1 (membrane), 0 and -1"
    )
    assert "in slice 15" in err and not (tmp_path / "r").exists()

    def gone(*given: Any) -> Any:
        if (tmp_path / "r" / "log.jsonl").exists():  # after the figures before the first step
            raise OSError("the disk is gone")
        return validate(*given)

    write_labels(damaged / "t0_membrane.mrc", 1, 15)
    monkeypatch.setattr(module, "validate", gone)
    code, out, err = run(*args, "--steps", 2)
    assert (code, out) == (1, "") and "the disk is gone" in err
    assert torch.load(tmp_path / "r" / "state.pt", weights_only=True)["step"] == 2


@pytest.mark.filterwarnings("always")
def test_clips_that_no_volume_has_are_refused_before_the_first_step(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    args = ("train", folder, "-o", tmp_path / "r", "--steps", 2, *COMMON)
    code, out, err = run(*args, "--size", 96)
    assert (code, out) == (1, "")
    assert_one_line(err, f"{folder}: every volume is smaller than a clip of 2 slices of 96^2")
    assert "--size" in err and not (tmp_path / "r").exists()
    other = write_pairs(tmp_path / "other", 1, (16, 40, 40))
    code, _, err = run("train", folder, other, *args[2:])
    assert code == 0 and f"warning: {other}: 1 of 1 volumes are smaller than a clip of 2" in err


def test_memory_that_runs_out_is_told_in_one_line(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was a traceback of a hundred lines."""
    monkeypatch.setattr(SAM2, "encode", lambda _self, frames: frames.new_empty(1 << 60))
    code, out, err = run("train", folder, "-o", tmp_path / "r", "--steps", 2, *COMMON)
    assert (code, out) == (1, "")
    assert_one_line(
        err, "not enough memory", "smaller --size, --frames or --batch, or --checkpointing"
    )


def test_what_plays_no_role_is_refused(run: Run, folder: Path, tmp_path: Path) -> None:
    for given, said in (
        ((folder, "--stage1-checkpoint", "none.pt"), "--stage1-checkpoint is for --stage 2"),
        ((folder, "--simulate-preset", "virus"), "--simulate-preset is for --simulate"),
        ((folder, "--simulate-shape", "1,2"), "--simulate-shape is for --simulate"),
        ((folder, "--simulate", 1), "leaves no clip for the folders"),
        ((folder, folder), "a folder is given twice"),
    ):
        code, out, err = run("train", *given, "-o", tmp_path / "r", *COMMON)
        assert (code, out) == (2, "")
        assert_one_line(err, said)
        assert not (tmp_path / "r").exists()


@pytest.mark.filterwarnings("always")
def test_a_run_goes_on_from_its_own_start_and_says_what_changed(
    run: Run, folder: Path, model: Path, tmp_path: Path
) -> None:
    start, other = model / "stage1.safetensors", tmp_path / "other.safetensors"
    shutil.copy(start, other)
    args = ("train", folder, "-o", tmp_path / "r", *COMMON, "--steps")
    assert run(*args, 1, "--start", start)[0] == 0
    assert run(*args, 1, "--start", other)[0] == 0  # the same weights under another name
    changed = bytearray(start.read_bytes())
    changed[-1] ^= 1
    other.write_bytes(changed)
    code, out, err = run(*args, 2, "--start", other)
    assert (code, out) == (1, "")
    assert_one_line(err, f"{tmp_path / 'r'} holds a run that began from other weights than {other}")
    more = write_pairs(tmp_path / "more", 1)
    code, _, err = run("train", more, *args[2:], 3, "--start", start)
    assert code == 0 and f"now [['{more}', None]]" in err
    code, _, err = run("train", more, *args[2:], 2, "--start", start)
    assert code == 0 and "warning: the run is at step 3 already: nothing to do" in err


@pytest.mark.skipif(os.name == "nt", reason="permissions are other ones there")
def test_weights_may_be_read_by_those_who_may_read_new_files(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    before = os.umask(0o022)
    try:
        assert run("train", folder, "-o", tmp_path / "r", "--steps", 1, *COMMON)[0] == 0
    finally:
        os.umask(before)
    for name in ("stage1.safetensors", "state.pt"):
        assert stat.S_IMODE((tmp_path / "r" / name).stat().st_mode) == 0o644


def test_logits_older_than_their_tomogram_are_made_anew(tmp_path: Path, model: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs", 2)
    stage1 = model / "stage1.safetensors"
    assert write_stage1_logits(pairs, stage1, device="cpu") == 2
    assert write_stage1_logits(pairs, stage1, device="cpu") == 0
    tomogram = pairs / "t0.mrc"
    later = (pairs / "t0_stage1.npy").stat().st_mtime_ns + 10**9
    os.utime(tomogram, ns=(later, later))
    with pytest.warns(UserWarning, match=r"1 tomograms \(t0, ...\) are newer than their stage-1"):
        open_groups(TrainOptions(pairs, tmp_path / "r", stage=2, sizes=(64,)), SliceStore(1.0))
    with (
        held_lock(pairs / LOCK, ""),
        pytest.raises(OSError, match="another process is making stage-1 logits"),
    ):
        write_stage1_logits(pairs, stage1, device="cpu")
    os.utime(tomogram, ns=(later - 10**10, later - 10**10))
    (pairs / "t1_stage1.npy").unlink()
    assert write_stage1_logits(pairs, stage1, device="cpu") == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_stops_the_making_of_logits_is_told_and_leaves_none(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def stopped(_run: object) -> None:
        raise error("stopped")

    pairs = write_pairs(tmp_path / "pairs", 1)
    monkeypatch.setattr("etsam.feedback.run_stage", stopped)
    with pytest.raises(error, match="stopped"):
        write_stage1_logits(pairs, model / "stage1.safetensors", device="cpu")
    assert not [path for path in pairs.iterdir() if "t0_stage1" in path.name]


@pytest.mark.filterwarnings("always")
def test_simulated_pairs_of_another_recipe_are_made_anew(run: Run, tmp_path: Path) -> None:
    given = ("train", "-o", tmp_path / "r", "--simulate", 1, *COMMON, "--simulate-shape")
    place = tmp_path / "r" / "simulated"
    assert run(*given, "16,64,64", "--steps", 1)[0] == 0
    (first, _) = find_pairs(min(path for path in place.iterdir() if path.is_dir()))[0]
    before, note = first.read_bytes(), (place / RECIPE).read_text()
    code, _, err = run(*given, "16,72,64", "--steps", 2)
    assert code == 0 and f"warning: {place}: pairs of another recipe" in err
    assert first.read_bytes() != before and (place / RECIPE).read_text() != note


def test_recipes_tell_pairs_apart(tmp_path: Path, model: Path) -> None:
    make = partial(simulate_one, shape=(16, 64, 64), options=SimulationOptions(preset="virus"))
    fresh = Fresh(make)
    assert fresh.recipe() == Fresh(make, share=0.2).recipe()
    others = [
        Fresh(partial(make, shape=(16, 64, 72))),
        Fresh(partial(make, options=SimulationOptions())),
        replace(fresh, stage1=model / "stage1.safetensors"),
        replace(fresh, stage1=model / "stage1.safetensors", step=3),
        replace(fresh, stage1=model / "stage2.safetensors"),
    ]
    assert len({one.recipe() for one in (fresh, *others)}) == 6


def test_what_segmenting_left_beside_a_portal_tomogram_is_no_tomogram(tmp_path: Path) -> None:
    place = tmp_path / "10000/245/Reconstructions/VoxelSpacing10.000"
    pairs = write_pairs(tmp_path / "made", 1)
    for source, target in (
        ("t0.mrc", "Tomograms/100/245.mrc"),
        ("t0_membrane.mrc", "Tomograms/100/245_membrane.mrc"),
        ("t0_membrane.mrc", "Annotations/5/membrane-1.0_segmentationmask.mrc"),
    ):
        (place / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pairs / source, place / target)
    ((tomogram, mask),) = find_pairs(tmp_path / "10000")
    assert (tomogram.name, mask.parent.name) == ("245.mrc", "5")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data", "d1"),
        ("data", ["d1"]),
        ("output", "r"),
        ("stage", 3),
        ("every", 0),
        ("dtype", "foo"),
    ],
)
def test_options_of_programs_are_checked(name: str, value: object) -> None:
    given = {"data": Path("d"), "output": Path("r"), name: value}
    with pytest.raises(ValueError, match=f"{name} is .*: expected"):
        TrainOptions(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "value"), [("vesicles", -2), ("lean", 200.0), ("whole", -1)])
def test_recipes_that_cannot_be_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        SimulationOptions(**{name: value})  # type: ignore[arg-type]


def test_a_folder_that_is_named_twice_is_prepared_once(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    code, out, err = run("prepare", folder, folder, "-o", tmp_path / "p")
    assert code == 0, err
    assert len(set(out.splitlines())) == len(out.splitlines()) == 2 * len(find_pairs(folder))


def test_a_folder_that_cannot_take_logits_is_told_why_and_what_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As shared data of a group."""
    data = write_pairs(tmp_path / "rod", 1)

    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(data / LOCK))

    monkeypatch.setattr("etsam.feedback.held_lock", refuse)
    stage1 = write_tiny_model(tmp_path / "tiny") / "stage1.safetensors"
    said = (
        f"{data} cannot be written (Permission denied), and stage-1 logits go beside the tomograms"
    )
    with pytest.raises(
        OSError, match=f"{re.escape(said)}: `etsam prepare {data} -o mine/ --link` makes"
    ):
        write_stage1_logits(data, stage1, device="cpu")

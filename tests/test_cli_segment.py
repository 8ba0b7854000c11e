"""``etsam segment`` as a user runs it: results, several tomograms, and wrong input of many kinds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import mrcfile
import numpy as np
import pytest

from etsam import cli
from etsam.cli import sample
from etsam.intensity import Normalisation
from etsam.options import PromptKind, SegmentOptions
from etsam.simulation import recipe
from etsam.weights import DEFAULT_MODEL
from test_cli import Run, assert_one_line, write_mrc
from tiny_model import write_tiny_model

SHAPE = (5, 40, 48)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with both checkpoints of a tiny network with random weights."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def volume(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


@pytest.fixture
def tomogram(tmp_path: Path) -> Path:
    return write_mrc(tmp_path / "TS_1_10.00Apx.mrc", volume())


def choices(command: str, option: str) -> list[str]:
    found = next(p for p in cli.etsam.commands[command].params if p.name == option)
    return list(getattr(found.type, "choices", []))


def test_every_option_is_on_the_command_line() -> None:
    with cli.etsam.commands["segment"].make_context("segment", ["a.mrc"]) as context:
        given = context.params
    for field in dataclasses.fields(SegmentOptions):
        assert given[field.name] == field.default, field.name
    assert given["model"] == DEFAULT_MODEL


def test_choices_are_those_of_the_library() -> None:
    kinds = set(get_args(PromptKind)) - {"none"}
    assert set(choices("segment", "stage2_prompt")) == kinds
    assert set(choices("segment", "stage1_prompt")) == kinds - {"etsam_stage1_partial"}
    assert set(choices("segment", "normalize_method")) == set(get_args(Normalisation))
    assert tuple(choices("simulate", "preset")) == recipe.PRESETS


@pytest.mark.parametrize(
    "flags",
    [
        "--output-dir --logit-threshold --store-logits --split-processing --normalize-method",
        "--post-process --post-process-min-slices --stage1-prompt --stage2-prompt",
    ],
)
def test_etsams_own_flags_are_kept(flags: str) -> None:
    known = {name for p in cli.etsam.commands["segment"].params for name in p.opts}
    assert set(flags.split()) <= known


def test_a_tomogram_gives_mask_preview_and_json(run: Run, tomogram: Path, model: Path) -> None:
    code, out, err = run("segment", tomogram, "--model", model, "--device", "cpu")
    assert code == 0, err
    mask = tomogram.with_name("TS_1_10.00Apx_membrane.mrc")
    assert out == f"{mask}\n"
    with mrcfile.open(mask) as mrc:
        assert mrc.data.shape == SHAPE
        assert mrc.data.dtype == np.int8
        assert float(mrc.voxel_size.x) == 10.0
    names = {path.name for path in tomogram.parent.iterdir()} - {tomogram.name, mask.name}
    assert {Path(name).suffix for name in names} == {".png", ".json"}
    assert all(name.startswith("TS_1_10.00Apx_membrane") for name in names)
    stages = [line.split(":")[0] for line in err.splitlines()]
    assert "stage 1 of 2" in stages
    assert "stage 2 of 2" in stages


def test_resuming_beside_a_true_mask_does_not_ask_to_resume(
    run: Run, tomogram: Path, model: Path
) -> None:
    truth = write_mrc(tomogram.with_name(f"{tomogram.stem}_membrane.mrc"), np.zeros(SHAPE, np.int8))
    before = truth.read_bytes()
    args = ("segment", tomogram, "--model", model)
    for more in ((), ("--resume",)):
        code, out, err = run(*args, *more)
        assert (code, out) == (1, "")
        assert_one_line(err, f"{truth} is there already: give --overwrite or another --output")
    assert truth.read_bytes() == before
    truth.unlink()
    assert run(*args)[0] == 0
    assert_one_line(run(*args)[2], "give --resume, --overwrite or another --output")


def test_json_is_printed_per_tomogram_and_failures_are_counted(
    run: Run, tomogram: Path, model: Path, tmp_path: Path
) -> None:
    second = write_mrc(tmp_path / "TS_2.mrc", volume(1))
    folder = tmp_path / "masks"
    args = ["segment", tomogram, tmp_path / "absent.mrc", second]
    code, out, err = run(*args, "-o", folder, "--model", model, "--json", "--no-preview")
    assert code == 1
    results = [json.loads(line) for line in out.splitlines()]
    assert len(results) == 2
    errors = [line for line in err.splitlines() if line.startswith("etsam: error")]
    assert len(errors) == 1
    assert "absent.mrc" in errors[0]
    assert {path.name for path in folder.glob("*.mrc")} == {
        "TS_1_10.00Apx_membrane.mrc",
        "TS_2_membrane.mrc",
    }
    assert not list(folder.glob("*.png"))


def test_the_sample_is_segmented(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "SHAPE", (16, 32, 32))
    code, out, err = run("segment", "--sample", "-o", tmp_path / "new", "--model", model)
    assert code == 0, err
    assert out == f"{tmp_path / 'new' / 'sample_membrane.mrc'}\n"
    assert (tmp_path / "new" / "sample_truth.mrc").is_file()


Prepare = Callable[[Path, Path, Path], list[object]]


def text_file(folder: Path, tomogram: Path, model: Path) -> list[object]:
    (folder / "text.mrc").write_text("this is no tomogram\n" * 200)
    return [folder / "text.mrc"]


def truncated(folder: Path, tomogram: Path, model: Path) -> list[object]:
    tomogram.write_bytes(tomogram.read_bytes()[:-100])
    return [tomogram]


def corrupt_gzip(folder: Path, tomogram: Path, model: Path) -> list[object]:
    (folder / "bad.mrc.gz").write_bytes(b"\x1f\x8b\x08\x00" + bytes(500))
    return [folder / "bad.mrc.gz"]


def all_nan(folder: Path, tomogram: Path, model: Path) -> list[object]:
    path = write_mrc(folder / "nan.mrc", np.zeros(SHAPE, np.float32))
    with path.open("r+b") as file:
        file.seek(1024)
        file.write(np.full(SHAPE, np.nan, np.float32).tobytes())
    return [path]


def constant(folder: Path, tomogram: Path, model: Path) -> list[object]:
    return [write_mrc(folder / "flat.mrc", np.ones(SHAPE, np.float32))]


def picture(folder: Path, tomogram: Path, model: Path) -> list[object]:
    return [write_mrc(folder / "flat.mrc", volume()[0])]


def fourier(folder: Path, tomogram: Path, model: Path) -> list[object]:
    return [write_mrc(folder / "fourier.mrc", volume().astype(np.complex64))]


def empty_file(folder: Path, tomogram: Path, model: Path) -> list[object]:
    (folder / "empty.mrc").touch()
    return [folder / "empty.mrc"]


def zarr_without_metadata(folder: Path, tomogram: Path, model: Path) -> list[object]:
    (folder / "empty.zarr").mkdir()
    return [folder / "empty.zarr"]


def no_checkpoint(folder: Path, tomogram: Path, model: Path) -> list[object]:
    (folder / "bad.pt").write_text("no checkpoint")
    return [tomogram, "--stage1-checkpoint", folder / "bad.pt"]


def swapped_stages(folder: Path, tomogram: Path, model: Path) -> list[object]:
    one, two = model / "stage1.safetensors", model / "stage2.safetensors"
    return [tomogram, "--stage1-checkpoint", two, "--stage2-checkpoint", one]


def half_a_model(folder: Path, tomogram: Path, model: Path) -> list[object]:
    (folder / "half").mkdir()
    (folder / "half" / "stage1.pt").touch()
    return [tomogram, "--model", folder / "half"]


def output_is_there(folder: Path, tomogram: Path, model: Path) -> list[object]:
    write_mrc(folder / "TS_1_10.00Apx_membrane.mrc", np.zeros(SHAPE, np.int8))
    return [tomogram]


def output_is_the_input(folder: Path, tomogram: Path, model: Path) -> list[object]:
    return [tomogram, "-o", tomogram, "--overwrite"]


def output_below_a_file(folder: Path, tomogram: Path, model: Path) -> list[object]:
    return [tomogram, "-o", tomogram / "masks"]


def two_into_one(folder: Path, tomogram: Path, model: Path) -> list[object]:
    second = write_mrc(folder / "second.mrc", volume(1))
    return [tomogram, second, "-o", folder / "one.mrc"]


def output_of_another_kind(folder: Path, tomogram: Path, model: Path) -> list[object]:
    second = write_mrc(folder / "second.mrc", volume(1))
    return [tomogram, second, "-o", folder / "out.tif"]


def tmp_folder(folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


WRONG: dict[str, Prepare] = {
    "absent": lambda folder, tomogram, model: [folder / "absent.mrc"],
    "empty file": empty_file,
    "text": text_file,
    "truncated": truncated,
    "corrupt gzip": corrupt_gzip,
    "not a number": all_nan,
    "constant": constant,
    "one picture": picture,
    "complex": fourier,
    "folder without tomograms": lambda folder, tomogram, model: [tmp_folder(folder)],
    "zarr without metadata": zarr_without_metadata,
    "unknown model": lambda folder, tomogram, model: [tomogram, "--model", "nonesuch"],
    "half a model": half_a_model,
    "no checkpoint": no_checkpoint,
    "swapped stages": swapped_stages,
    "absent device": lambda folder, tomogram, model: [tomogram, "--device", "cuda:99"],
    "unknown device": lambda folder, tomogram, model: [tomogram, "--device", "abacus"],
    "negative spacing": lambda folder, tomogram, model: [tomogram, "--voxel-spacing", "-3"],
    "threshold no number": lambda folder, tomogram, model: [tomogram, "--logit-threshold", "nan"],
    "output is there": output_is_there,
    "output is the input": output_is_the_input,
    "output below a file": output_below_a_file,
    "two into one": two_into_one,
    "output of another kind": output_of_another_kind,
    "sample into a mask": lambda folder, tomogram, model: ["--sample", "-o", folder / "x.mrc"],
    "wrong flag": lambda folder, tomogram, model: [tomogram, "--thresold", "0"],
    "word for a number": lambda folder, tomogram, model: [tomogram, "--logit-threshold", "high"],
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_input_is_one_line_and_leaves_nothing(
    run: Run, tmp_path: Path, tomogram: Path, model: Path, kind: str
) -> None:
    args = WRONG[kind](tmp_path, tomogram, model)
    before = {path: path.stat().st_size for path in tmp_path.rglob("*")}
    default = [] if "--model" in args else ["--model", model]
    code, out, err = run("segment", *args, *default)
    assert code in (1, 2)
    assert out == ""
    assert_one_line(err)
    assert {path: path.stat().st_size for path in tmp_path.rglob("*")} == before


@pytest.mark.filterwarnings("always:TS_1_10.00Apx_membrane_postprocessed.mrc is")
def test_a_clean_mask_of_the_mask_before_is_told(run: Run, tomogram: Path, model: Path) -> None:
    """`etsam postprocess` made it, so that it stays, and is neither of the new mask nor replaced unasked."""
    args = ("segment", tomogram, "--model", model, "--no-preview")
    mask = tomogram.with_name(f"{tomogram.stem}_membrane.mrc")
    cleaned = mask.with_name(f"{mask.stem}_postprocessed.mrc")
    assert run(*args, "--logit-threshold", -9)[0] == 0
    assert run("postprocess", mask, "--min-slices", 2)[0] == 0
    before = cleaned.read_bytes()
    code, out, err = run(*args, "--resume", "--post-process")
    assert (code, out) == (1, "")
    assert_one_line(err, f"{cleaned} was made by `etsam postprocess`: give --overwrite")
    told = f"{cleaned.name} is of the mask before: run `etsam postprocess --overwrite` again"
    code, _, err = run(*args, "--overwrite")
    assert code == 0 and f"etsam: warning: {tomogram}: {told}" in err
    assert told in json.loads(mask.with_suffix(".json").read_text())["warnings"]
    assert cleaned.read_bytes() == before
    code, _, err = run(*args, "--overwrite", "--post-process")
    assert code == 0 and "warning" not in err
    assert not cleaned.with_suffix(".json").exists()


def test_options_that_play_no_role_are_told(run: Run, tomogram: Path, model: Path) -> None:
    idle = ("--split-processing", "--tile", 256, "--min-slices", 3, "--show", "--no-preview")
    code, _, err = run("segment", tomogram, "--model", model, *idle)
    assert code == 0
    for words in ("--tile", "--min-slices", "--show"):
        assert f"etsam: warning: {words} plays no role with" in err
    published = ("segment", tomogram, "--model", "etsam-v1")  # refused: there is a mask
    code, _, err = run(*published, "--tile", 256)
    assert code == 1 and "etsam: warning: --tile plays no role with etsam-v1" in err
    code, _, err = run(
        *published, "--tile", 256, "--stage2-checkpoint", model / "stage2.safetensors"
    )
    assert code == 1 and "no role" not in err
    code, _, err = run("segment", tomogram, "--model", model, "--no-preview", "--overwrite")
    assert code == 0 and "no role" not in err

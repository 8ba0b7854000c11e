"""Hostile input through whole commands: a right result, or one line and a code that says failure."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
from safetensors import SafetensorError

from etsam import unfinished
from etsam.options import SegmentOptions
from etsam.segmentation import segment_file
from etsam.volume import create_volume, open_tomogram, tomogram_from_array
from test_cli import Run, assert_one_line, write_mrc
from test_full_disks import fill_up
from test_hostile import mrc_bytes
from tiny_model import write_tiny_model

SHAPE = (5, 24, 32)
UNKNOWN = "voxel spacing unknown: the bundled model needs it (segment --voxel-spacing)"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def segment(run: Run, model: Path) -> Callable[..., tuple[int, str, str]]:
    def segment(*args: object) -> tuple[int, str, str]:
        return run("segment", *args, "--model", model, "--device", "cpu", "--polarity", "dark")

    return segment


def noise(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def fails(answer: tuple[int, str, str], *parts: str) -> None:
    code, out, err = answer
    assert (code, out) == (1, "")
    lines = err.splitlines(keepends=True)
    assert_one_line(lines[-1] if lines else "", *parts)
    assert "Traceback" not in err


def write_garbage(folder: Path) -> dict[str, Path]:
    """Things that are no tomogram, by what they are."""
    made = {name: folder / f"{name}.mrc" for name in ("empty", "text", "nothing", "endless")}
    made["empty"].touch()
    made["text"].write_text("voxels\n" * 500)
    made["nothing"].write_bytes(mrc_bytes(np.full(SHAPE, np.nan, np.float32), {}))
    made["endless"].symlink_to("/dev/zero")
    made["infinite"] = write_raw(folder / "infinite.mrc", np.full(SHAPE, np.inf, np.float32))
    made["overflow"] = folder / "overflow.mrc"
    sides = {"nx": 65535, "ny": 65535, "nz": 65535}
    made["overflow"].write_bytes(mrc_bytes(noise(), sides))
    made["sparse"] = folder / "sparse.mrc"
    made["sparse"].write_bytes(mrc_bytes(noise()[:1, :1], {"nx": 65535, "ny": 65535, "nz": 2}))
    os.truncate(made["sparse"], 1024 + 2 * 65535**2 * 4)
    made["packed twice"] = folder / "twice.mrc.gz"
    made["packed twice"].write_bytes(gzip.compress(gzip.compress(mrc_bytes(noise(), {}))))
    made["wide zarr"] = folder / "wide.zarr"
    write_zarr(made["wide zarr"], noise())
    meta = made["wide zarr"] / "0" / ".zarray"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"shape": [65535] * 3}))
    made["text zarr"] = folder / "text.zarr"
    write_zarr(made["text zarr"], noise())
    meta = made["text zarr"] / "0" / ".zarray"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"dtype": "|S4"}))
    return made


def whole(path: Path) -> np.ndarray:
    """All voxels of a volume."""
    with open_tomogram(path) as tomogram:
        return tomogram.read_slices(0, tomogram.shape[0])


def write_raw(path: Path, data: np.ndarray) -> Path:
    path.write_bytes(mrc_bytes(data, {}))
    return path


def write_zarr(path: Path, data: np.ndarray) -> Path:
    with (
        tomogram_from_array(data, voxel_spacing=10.0) as like,
        create_volume(path, like, dtype="float32", label="x") as writer,
    ):
        for z, plane in enumerate(data):
            writer.write_slice(z, plane)
    return path


VERBS = [
    ("inspect", "--no-timing"),
    ("segment", "--no-preview"),
    ("postprocess",),
    ("report",),
    ("export",),
    ("baseline",),
]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_every_verb_refuses_what_is_no_tomogram(
    run: Run, model: Path, tmp_path: Path, verb: tuple[str, ...]
) -> None:
    made = write_garbage(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    extra = ("--model", model, "--device", "cpu") if verb[0] == "segment" else ()
    tracemalloc.start()
    try:
        for path in made.values():
            fails(run(verb[0], path, *verb[1:], *extra), str(path))
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_verify_and_evaluate_refuse_them_too(run: Run, tmp_path: Path) -> None:
    made = write_garbage(tmp_path)
    good = write_mrc(tmp_path / "good.mrc", noise())
    for name in ("empty", "text", "overflow", "wide zarr", "endless"):
        fails(run("verify", good, made[name]), str(made[name]))
        fails(run("evaluate", made[name], "-t", good))


@pytest.mark.filterwarnings("ignore:no membrane found")
@pytest.mark.parametrize(
    "shape", [(1, 24, 32), (2, 1, 40), (1, 1, 300), (3, 2, 2), (60, 3, 3), (2, 33, 1)]
)
def test_flat_and_narrow_volumes_come_out_whole(
    segment: Callable[..., tuple[int, str, str]], tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    path = write_mrc(tmp_path / "a.mrc", noise(shape))
    with mrcfile.open(path, "r+") as mrc:
        mrc.header.ispg = 1
    for extra in ((), ("--post-process", "--overwrite")):
        code, _, err = segment(path, "--no-preview", *extra)
        assert code == 0, err
    with open_tomogram(tmp_path / "a_membrane.mrc") as mask:
        assert mask.shape == shape


@pytest.mark.filterwarnings("ignore:no membrane found", "ignore:bytes read")
@pytest.mark.parametrize("factor", [1e38, 1e-42, 1e-30])
def test_enormous_and_tiny_values_are_scaled(
    segment: Callable[..., tuple[int, str, str]], run: Run, tmp_path: Path, factor: float
) -> None:
    plain = write_mrc(tmp_path / "plain.mrc", np.round(noise() * 50).clip(-127, 127) / 100)
    data = (whole(plain) * np.float64(factor)).astype(np.float32)
    path = write_raw(tmp_path / "a.mrc", data)
    assert run("inspect", "--no-timing", path)[0] == 0
    code, _, err = segment(path, plain, "--no-preview", "--store-logits")
    if code == 0:
        found, wanted = (whole(tmp_path / f"{name}_membrane_logits.mrc") for name in ("a", "plain"))
        assert np.isfinite(found).all()
        assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.99
    else:
        assert "etsam: error: " in err and "Traceback" not in err


@pytest.mark.filterwarnings("default:the file says voxels")
@pytest.mark.parametrize("spacing", [(10, 10, 300), (1e-3,) * 3, (1e6,) * 3, (0.0, 10, 10)])
def test_strange_spacings_neither_hang_nor_grow(
    segment: Callable[..., tuple[int, str, str]], tmp_path: Path, spacing: tuple[float, ...]
) -> None:
    path = write_mrc(tmp_path / "a.mrc", noise())
    with mrcfile.open(path, "r+") as mrc:
        cell = np.array(spacing) * SHAPE[::-1]
        mrc.header.cella = tuple(cell.tolist())
    code, _, err = segment(path, "--no-preview")
    assert code == 0, err
    (told,) = json.loads((tmp_path / "a_membrane.json").read_text("utf-8"))["warnings"]
    assert told.endswith(UNKNOWN) and f"etsam: warning: {path}: {told}\n" in err
    with mrcfile.open(tmp_path / "a_membrane.mrc") as mask:
        np.testing.assert_allclose(mask.header.cella.tolist(), cell, rtol=1e-6)
    code, _, err = segment(path, "--no-preview", "--voxel-spacing", "5000")
    assert code == 2
    assert_one_line(err, "ångström")


@pytest.mark.filterwarnings("default:the file says", "default:2 NaN", "default:this model knows")
@pytest.mark.filterwarnings("ignore:Data array contains NaN")  # mrcfile's own
def test_warnings_name_every_tomogram_and_go_into_its_json(
    segment: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    data = noise()
    data[2, 3:5, 7] = np.nan
    paths = [write_mrc(tmp_path / f"{name}.mrc", data, 1.0) for name in "ab"]
    code, _, err = segment(*paths, "--no-preview", "--normalize-method", "min_max")
    assert code == 0, err
    for path in paths:
        record = path.with_name(f"{path.stem}_membrane.json")
        told = json.loads(record.read_text("utf-8"))["warnings"]
        assert len(told) == 3 and told[0].startswith("this model knows only grey values")
        assert told[1].endswith(UNKNOWN)
        assert told[2].startswith("2 NaN or infinite voxels")
        shown = [line for line in err.splitlines() if f"etsam: warning: {path}: " in line]
        assert [line.partition(f"{path}: ")[2] for line in shown] == told
    assert segment(paths[0], "--no-preview", "--overwrite", "--voxel-spacing", "10")[0] == 0
    assert "spacing" not in json.loads(record.with_stem("a_membrane").read_text())["warnings"][0]


@pytest.mark.parametrize(
    "output", ["file.txt/sub", "file.txt", "/proc/nowhere", "a.mrc", "folder.mrc", "\0"]
)
def test_outputs_that_cannot_be_written(
    segment: Callable[..., tuple[int, str, str]], tmp_path: Path, output: str
) -> None:
    path = write_mrc(tmp_path / "a.mrc", noise())
    (tmp_path / "file.txt").write_text("mine")
    (tmp_path / "folder.mrc").mkdir()
    before = path.read_bytes()
    code, out, err = segment(path, "--no-preview", "-o", tmp_path / output)
    if output == "folder.mrc":  # is a folder, whatever it is called
        assert code == 0 and out.split() == [str(tmp_path / output / "a_membrane.mrc")]
    else:
        assert code in (1, 2) and out == ""
        assert_one_line(err.splitlines(keepends=True)[-1])
    assert path.read_bytes() == before
    assert (tmp_path / "file.txt").read_text() == "mine"


def test_manifests_that_cannot_be_written(
    segment: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    path = write_mrc(tmp_path / "a.mrc", noise())
    (tmp_path / "file.txt").write_text("mine")
    for place in (tmp_path / "file.txt", tmp_path / "file.txt" / "m.jsonl", "/proc/m.jsonl"):
        answer = segment(path, "--no-preview", "--manifest", place)
        fails(answer)
        assert "another batch" not in answer[2]
    assert (tmp_path / "file.txt").read_text() == "mine"
    assert not (tmp_path / "a_membrane.mrc").exists()


def test_a_disk_that_fills_up_leaves_no_result(
    segment: Callable[..., tuple[int, str, str]], model: Path, tmp_path: Path, small_disk: Path
) -> None:
    path = write_mrc(tmp_path / "a.mrc", noise((8, 64, 64)))
    filler = small_disk / "filler"

    def fill(fraction: float, message: str) -> None:
        if fraction > 0.3 and not filler.exists():
            fill_up(filler)

    options = SegmentOptions(
        model=model, device="cpu", polarity="dark", preview=False, output=small_disk
    )
    with pytest.raises(OSError, match="No space|bytes"):
        segment_file(path, replace(options, store_logits=True), fill)
    assert [one.name for one in small_disk.iterdir()] == ["filler"]
    fails(segment(path, "--no-preview", "-o", small_disk), "disk")
    filler.unlink()
    assert segment(path, "--no-preview", "-o", small_disk)[0] == 0


@pytest.mark.filterwarnings("ignore:no membrane found")
def test_a_state_that_cannot_be_saved_costs_one_tomogram(
    segment: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full while the first one's state is saved."""
    paths = [write_mrc(tmp_path / f"{name}.mrc", noise()) for name in "ab"]
    real = unfinished.save_file

    def save_file(tensors: Any, path: Path, metadata: Any) -> None:
        if ".a_membrane" in str(path):
            path.write_bytes(b"half")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        real(tensors, path, metadata)

    monkeypatch.setattr(unfinished, "save_file", save_file)
    code, out, err = segment(*paths, "--no-preview")
    assert code == 1
    assert out.split() == [str(tmp_path / "b_membrane.mrc")]
    errors = [line for line in err.splitlines() if line.startswith("etsam: error: ")]
    assert len(errors) == 1 and "a.mrc" in errors[0] and "No space left" in errors[0]
    assert not list(tmp_path.glob(".a_membrane*"))


@pytest.mark.filterwarnings("ignore:no membrane found")
def test_hours_of_work_outlive_a_disk_that_is_gone_for_a_while(
    segment: Callable[..., tuple[int, str, str]],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_mrc(tmp_path / "a.mrc", noise())
    left = tmp_path / ".a_membrane.mrc.partial"

    def stop(fraction: float, _message: str) -> None:
        if fraction > 0.5:
            raise KeyboardInterrupt

    options = SegmentOptions(model=model, device="cpu", polarity="dark", preview=False)
    with pytest.raises(KeyboardInterrupt):
        segment_file(path, options, stop)
    files = {one.name for one in left.iterdir()}

    def gone(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("No such file or directory")

    with monkeypatch.context() as patched:
        patched.setattr(unfinished, "safe_open", gone)
        fails(segment(path, "--no-preview", "--resume"), "left unfinished cannot be read")
        assert {one.name for one in left.iterdir()} == files
    assert segment(path, "--no-preview", "--resume")[0] == 0


@pytest.mark.filterwarnings("ignore:no membrane found", "default:1 of 2 chunks")
def test_chunks_that_are_missing_are_said_and_damaged_ones_refused(
    segment: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    path = write_zarr(tmp_path / "a.zarr", noise((20, 24, 32)))
    chunks = sorted(p for p in (path / "0").rglob("*") if p.is_file() and p.name[0] != ".")
    whole = chunks[0].read_bytes()
    chunks[0].write_bytes(whole[: len(whole) // 2])
    fails(segment(path, "--no-preview"), "damaged")
    chunks[0].unlink()
    code, _, err = segment(path, "--no-preview")
    assert code == 0 and f"etsam: warning: {path}: 1 of 2 chunks are not stored" in err
    for chunk in chunks[1:]:
        chunk.unlink()
    fails(segment(path, "--no-preview", "--overwrite"), "no chunk")


LISTS = {
    "itself": "list.txt\n",
    "a folder of nothing": "empty\n",
    "a NUL": "a\0b.mrc\n",
    "what is not there": "nowhere.mrc\n",
    "a long name": "x" * 5000 + ".mrc\n",
}


@pytest.mark.parametrize("content", LISTS.values(), ids=LISTS.keys())
def test_lists_of_nonsense(
    segment: Callable[..., tuple[int, str, str]], tmp_path: Path, content: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text(content)
    fails(segment(tmp_path / "list.txt", "--no-preview"))


def test_a_closed_stderr_is_done_without(tmp_path: Path) -> None:
    mask = write_mrc(tmp_path / "a_membrane.mrc", np.ones((12, 8, 8), np.int8))
    code = "import sys; from etsam.cli import main; main(sys.argv[1:])"
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", code, "postprocess", mask]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()).is_file()


def test_names_that_are_no_unicode(tmp_path: Path, model: Path) -> None:
    folder = os.fsencode(tmp_path)
    for name in (b"\xff\xfe.mrc", "膜 \n.mrc".encode()):
        path = os.path.join(folder, name)
        with open(path, "wb") as file:
            file.write(mrc_bytes(noise(), {}))
        command = [sys.executable, "-c", "from etsam.cli import main; main()", "segment", path]
        command += ["--model", str(model), "--device", "cpu", "--manifest", str(tmp_path / "m")]
        done = subprocess.run(command, capture_output=True)
        assert b"Traceback" not in done.stderr
        assert done.returncode == 0, done.stderr
        assert os.path.exists(path[:-4] + b"_membrane.mrc")
        lines = (tmp_path / "m").read_text("utf-8").splitlines()
    assert [json.loads(line)["state"] for line in lines] == ["done", "done"]

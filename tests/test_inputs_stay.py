"""What a verb reads stays: no result replaces it, lies inside of it or is a folder around it."""

from __future__ import annotations

import os
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import Run
from etsam.volume import create_volume, refuse_input, tomogram_from_array
from test_cli import assert_one_line, write_mrc
from tiny_model import write_tiny_model

MASK = np.zeros((12, 24, 32), np.int8)
MASK[:, 8:11] = 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def zarr(tmp_path: Path) -> Path:
    """An OME-Zarr mask with two levels."""
    return write_zarr(tmp_path / "a.zarr")


def write_zarr(path: Path) -> Path:
    like = tomogram_from_array(MASK, voxel_spacing=10.0)
    with create_volume(path, like, dtype="int8", label="test") as writer:
        for z, plane in enumerate(MASK):
            writer.write_slice(z, plane)
    shutil.copytree(path / "0", path / "1")
    return path


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def asked_of(verb: str, source: Path, output: Path, model: Path) -> list[object]:
    """A command that would write into `output`, replacing what is there."""
    more = {
        "segment": ["--model", model, "--device", "cpu", "--polarity", "dark"],
        "prepare": ["--annotation", source],
        "report": ["--mask", source],
    }
    return [verb, source, "-o", output, "--overwrite", *more.get(verb, [])]


@pytest.mark.parametrize("verb", ["segment", "postprocess"])
@pytest.mark.parametrize("level", ["0", "1"])
@pytest.mark.parametrize("linked", [None, "source", "output"])
def test_the_zarr_around_a_level_is_kept(
    run: Run, zarr: Path, model: Path, verb: str, level: str, linked: str | None
) -> None:
    before = contents(zarr)
    link = zarr.with_name("link.zarr" if linked == "output" else "link")
    if linked:
        link.symlink_to(zarr)
    source, output = link if linked == "source" else zarr, link if linked == "output" else zarr
    code, out, err = run(*asked_of(verb, source / level, output, model))
    assert (code, out) == (1, "")
    assert_one_line(err, f"{output} holds the ", f"{source / level}: give another --output")
    assert contents(zarr) == before


@pytest.mark.parametrize("verb", ["segment", "postprocess", "prepare", "baseline", "export"])
@pytest.mark.parametrize("level", ["", "0"])
@pytest.mark.parametrize("inside", ["", "labels", "labels/b.zarr", "labels/b.mrc", "1"])
def test_nothing_is_written_into_an_input(
    run: Run, zarr: Path, model: Path, verb: str, level: str, inside: str
) -> None:
    before = contents(zarr.parent)
    code, out, err = run(*asked_of(verb, zarr / level, zarr / inside, model))
    assert (code > 0, out) == (True, "")
    assert_one_line(err, "-o" if verb == "export" else "--output")
    assert contents(zarr.parent) == before


def test_no_page_is_written_into_a_tomogram(run: Run, zarr: Path, model: Path) -> None:
    before = contents(zarr)
    code, _, err = run(*asked_of("report", zarr, zarr, model))
    assert code == 1
    assert_one_line(err, "lies inside of the tomogram")
    assert contents(zarr) == before


def test_no_pair_is_written_into_another_zarr(run: Run, zarr: Path, model: Path) -> None:
    other = write_zarr(zarr.with_name("other.zarr"))
    before = contents(other)
    for folder in (other, other / "labels"):
        code, _, err = run(*asked_of("prepare", zarr, folder, model))
        assert code == 1
        assert_one_line(err, f"{other} is a Zarr: give another --output")
    assert contents(other) == before


def test_folders_around_an_input_are_kept(zarr: Path, tmp_path: Path) -> None:
    around = tmp_path / "around.zarr"
    around.mkdir()
    moved = zarr.rename(around / "a.zarr")
    for source in (moved, moved / "0", around / "b.mrc"):
        with pytest.raises(ValueError, match=r"around\.zarr holds the mask"):
            refuse_input([tmp_path / "x.mrc", around], source, "mask")
    refuse_input([around / "b.mrc", tmp_path / "a.zarr"], moved / "0", "mask")


@pytest.fixture
def careless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as on disks that find a name whatever its case and form."""
    look, folder = os.stat, tmp_path / "careless"
    folder.mkdir()

    def find(path: Path, **how: Any) -> os.stat_result:
        at = Path(os.fsdecode(path)) if isinstance(path, str | bytes | Path) else None
        if at is not None and at.is_relative_to(folder):
            found = folder
            for part in at.relative_to(folder).parts:
                alike = [name for name in os.listdir(found) if form(name) == form(part)]
                found /= alike[0] if alike else part
            return look(found, **how)
        return look(path, **how)

    def form(name: str) -> str:
        return unicodedata.normalize("NFC", name).casefold()

    monkeypatch.setattr(os, "stat", find)
    return folder


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("a.zarr/TS_\u00e9.mrc", "is the mask itself"),
        ("A.zarr/ts_e\u0301.MRC", "is the mask itself"),
        ("A.ZARR", "holds the mask"),
        ("A.zarr/ts_e\u0301.MRC/b.mrc", "lies inside of the mask"),
    ],
)
def test_other_spellings_of_an_input_are_known(careless: Path, target: str, said: str) -> None:
    source = careless / "a.zarr" / "ts_\u00e9.mrc"
    source.parent.mkdir()
    source.touch()
    with pytest.raises(ValueError, match=said):
        refuse_input([careless / target], source, "mask")
    refuse_input([careless / "a.zarr" / "ts_e.mrc"], source, "mask")


def test_other_links_to_an_input_are_other_files(tmp_path: Path) -> None:
    """They stay as they are when one of them gets another file."""
    source = write_mrc(tmp_path / "a.mrc", MASK)
    (tmp_path / "sub").mkdir()
    others = [tmp_path / "b.mrc", tmp_path / "sub" / "a.mrc"]
    for other in others:
        other.hardlink_to(source)
    refuse_input(others, source, "mask")


@pytest.mark.parametrize("name", ["m.mrc", "m.json", "m.png", "a.zarr/m", "a.zarr/0/m.jsonl"])
def test_a_manifest_is_no_result_and_in_no_tomogram(
    run: Run, zarr: Path, model: Path, name: str
) -> None:
    """Its text would replace the mask that is made meanwhile."""
    before = contents(zarr.parent)
    manifest = zarr.parent / "sub" / ".." / name
    (zarr.parent / "sub").mkdir()
    asked = asked_of("segment", zarr, zarr.with_name("m.mrc"), model)
    for more in ([], ["--shard", "2/2"]):
        code, out, err = run(*asked, "--manifest", manifest, *more)
        assert (code, out) == (1, "")
        assert_one_line(err, str(manifest), "give another --manifest")
    assert contents(zarr.parent) == before
    assert not list(zarr.parent.rglob(".*.lock"))

"""`etsam prepare --resume`: what etsam wrote and nobody changed is made anew, all else stays."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import mrcfile
import pytest

from conftest import Run
from etsam.annotations import CleaningOptions
from etsam.layout import Annotated
from etsam.prepare import PrepareOptions, prepare
from test_prepare import GREY, LABELS, write_mrc


@pytest.fixture
def pair(tmp_path: Path) -> Annotated:
    tomogram = write_mrc(tmp_path / "in" / "TS_1.mrc", GREY)
    return Annotated("TS_1", tomogram, (write_mrc(tmp_path / "in" / "TS_1_membrane.mrc", LABELS),))


def edited(path: Path) -> bytes:
    """Change a voxel, as a user with another program does; returns what is in the file then."""
    with mrcfile.open(path, "r+") as mrc:
        mrc.data[3, 9, 9] = 1
    return path.read_bytes()


def test_resume_never_replaces_what_etsam_did_not_write(
    pair: Annotated, tmp_path: Path, run: Run
) -> None:
    mine = write_mrc(tmp_path / "out" / "TS_1_membrane.mrc", LABELS[::-1].copy())
    before = mine.read_bytes()
    args = ("prepare", pair.tomogram.parent, "-o", mine.parent)
    code, out, err = run(*args, "--resume")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert f"{mine} is not as etsam wrote it: give --overwrite" in err
    assert mine.read_bytes() == before and list(mine.parent.iterdir()) == [mine]
    assert run(*args, "--overwrite")[0] == 0
    assert run(*args, "--resume", "--min-voxels", "5")[0] == 0  # ours now
    (mine.parent / "TS_1_prepared.json").write_text("{}")
    assert "is not as etsam wrote it" in run(*args, "--resume")[2]


def test_a_folder_with_a_results_name_stays(pair: Annotated, tmp_path: Path) -> None:
    notes = tmp_path / "out" / "TS_1_membrane.mrc" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    with pytest.raises(FileExistsError, match=r"TS_1_membrane\.mrc is a folder and not Zarr"):
        prepare(pair, tmp_path / "out", PrepareOptions(overwrite=True))
    assert notes.read_text() == "mine"


def test_a_corrected_pair_is_kept_whatever_changed(pair: Annotated, tmp_path: Path) -> None:
    out, again = tmp_path / "out", PrepareOptions(components=True, resume=True)
    done = prepare(pair, out, replace(again, resume=False))
    assert done.mask is not None and done.components is not None
    before = edited(done.mask)
    assert prepare(pair, out, again).reused
    for options in (
        PrepareOptions(CleaningOptions(fill=9), resume=True),
        PrepareOptions(resume=True),
    ):
        with pytest.raises(FileExistsError, match="_membrane.mrc is not as etsam wrote it"):
            prepare(pair, out, options)
    os.utime(pair.masks[0], ns=(1, 1))
    with pytest.raises(FileExistsError, match="_membrane.mrc is not as etsam wrote it"):
        prepare(pair, out, again)
    assert done.mask.read_bytes() == before
    prepare(pair, out, replace(again, resume=False, overwrite=True))
    edited(done.components)
    with pytest.raises(FileExistsError, match="_components.mrc is not as etsam wrote it"):
        prepare(pair, out, PrepareOptions(resume=True))


def test_resume_leaves_no_file_of_the_run_before(pair: Annotated, tmp_path: Path) -> None:
    out, source = tmp_path / "out", pair.tomogram.rename(pair.tomogram.with_suffix(".rec"))
    pair = replace(pair, tomogram=source)
    prepare(pair, out, PrepareOptions(components=True, link=True))
    os.utime(source, ns=(1, 1))  # the link is as it was
    assert not prepare(pair, out, PrepareOptions(resume=True)).reused
    assert not (out / source.name).is_symlink()
    prepare(pair, out, PrepareOptions(normalise="min_max", resume=True))
    ends = (".mrc", "_membrane.mrc", "_prepared.json")
    assert {path.name for path in out.iterdir()} == {f"{pair.name}{end}" for end in ends}


def test_a_kill_while_files_get_their_names_can_be_resumed(
    pair: Annotated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, resume = tmp_path / "out", PrepareOptions(resume=True)
    other = PrepareOptions(CleaningOptions(min_voxels=5), resume=True)
    prepare(pair, out)
    rename, moves = Path.replace, [0]

    def killed(path: Path, target: Path) -> Path:
        if path.name.startswith(pair.name):
            if not moves:
                raise KeyboardInterrupt
            moves.pop()
        return rename(path, target)

    for count in range(6):
        moves = [0] * count
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(Path, "replace", killed)
            prepare(pair, out, other)
        done = prepare(pair, out, other)
        assert not done.reused
        assert {*out.iterdir()} == {*done.paths()}
        assert not prepare(pair, out, resume).reused


def test_headers_without_a_voxel_size_get_one(pair: Annotated, tmp_path: Path, run: Run) -> None:
    """Voxels and inputs stay; the same again is kept, another size is another pair."""
    for path in (pair.tomogram, *pair.masks):
        with mrcfile.open(path, "r+") as mrc:
            mrc.voxel_size = 0
    before = pair.tomogram.read_bytes()
    args = ("prepare", pair.tomogram.parent, "-o", tmp_path / "out", "--resume", "--json")
    for size, reused in ((13.6, False), (13.6, True), (9.5, False)):
        code, out, err = run(*args, "--voxel-spacing", size)
        assert code == 0 and "warning" not in err
        said = json.loads(out)
        assert said["reused"] is reused and said["parameters"]["voxel_spacing"] == size
        for name in ("tomogram", "mask"):
            with mrcfile.open(said[name]) as mrc:
                assert mrc.voxel_size.tolist() == pytest.approx((size,) * 3)
                assert (mrc.data == (GREY if name == "tomogram" else LABELS.clip(max=1))).all()
    assert pair.tomogram.read_bytes() == before


def test_a_link_that_cannot_be_made_is_told_before_the_work(
    monkeypatch: pytest.MonkeyPatch, pair: Annotated, tmp_path: Path, run: Run
) -> None:
    """As on Windows without the right to make links."""

    def refused(_link: Path, _target: Path) -> None:
        raise OSError(22, "A required privilege is not held by the client")

    def at_work(*_given: object, **_options: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Path, "symlink_to", refused)
    monkeypatch.setattr("etsam.prepare.clean_annotation", at_work)
    args = (
        "prepare",
        pair.tomogram,
        "--annotation",
        pair.masks[0],
        "-o",
        tmp_path / "out",
        "--link",
    )
    code, out, err = run(*args)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "TS_1.mrc cannot be a link here (A required privilege is not held by the client)" in err
    assert "leave --link out to copy it" in err and not list((tmp_path / "out").glob("*"))

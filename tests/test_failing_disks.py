"""Disks that fail under Zarr: errors with the system's numbers, by which runs keep what they have."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from etsam.results import worth_keeping
from etsam.volume import create_volume, open_tomogram, tomogram_from_array
from etsam.zarr_arrays import failed
from test_ngff import voxels, write


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_disk_that_fails_is_no_damage_and_has_a_number(tmp_path: Path) -> None:
    """So that a run keeps what it has, as with MRC (`worth_keeping`)."""
    write(tmp_path / "a.zarr", voxels(), list(range(37)), "0.5", "float32")
    chunk = tmp_path / "a.zarr/0/c/1/0/0"
    chunk.unlink()
    chunk.symlink_to(chunk)  # the system opens no such link
    with (
        open_tomogram(tmp_path / "a.zarr") as tomogram,
        pytest.raises(OSError, match="cannot be read") as caught,
    ):
        tomogram.read_slice(20)
    assert caught.value.errno == errno.EIO and worth_keeping(caught.value)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_write_that_fails_has_a_number(tmp_path: Path, version: str) -> None:
    array = tomogram_from_array(voxels())
    array.info = replace(array.info, ngff_version=version)
    with (
        pytest.raises(OSError, match="cannot be written") as caught,
        create_volume(tmp_path / "a.zarr", array, dtype="float32", label="test") as writer,
    ):
        (level,) = tmp_path.glob("*/0")
        shutil.rmtree(level)
        level.write_text("a file where chunks should be")
        for z in range(37):
            writer.write_slice(z, voxels()[z])
    assert caught.value.errno == errno.EIO and worth_keeping(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_zarr_that_cannot_get_its_name_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.zarr"
    write(path, voxels(), list(range(37)), "0.4", "float32")
    names: list[str] = []
    usual = os.replace

    def replace_all_but_one(source: Path, target: Path) -> None:
        names.append(target.name)
        if names.count("a.zarr") == 1 and target.name == "a.zarr":
            raise OSError(errno.EIO, "Input/output error")
        usual(source, target)

    monkeypatch.setattr("os.replace", replace_all_but_one)
    with pytest.raises(OSError, match="Input/output error"):
        write(path, voxels() + 1, list(range(37)), "0.4", "float32")
    monkeypatch.undo()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zarr"]
    with open_tomogram(path) as kept:
        assert np.array_equal(kept.read_slice(3), voxels()[3])


def test_full_disks_have_their_own_numbers() -> None:
    for said, number in (
        ("UNKNOWN: Failed to write: No space left on device", errno.ENOSPC),
        ("UNKNOWN: Disk quota exceeded", errno.EDQUOT),
    ):
        failure = failed("a.zarr cannot be written", ValueError(said))
        assert failure.errno == number and not worth_keeping(failure)

"""What Windows would refuse is seen on Linux, and some of what else is other there and on Macs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

import windows
from etsam import renaming
from etsam.provenance import sha256, size_and_time
from etsam.sam2 import load_checkpoint, save_checkpoint
from etsam.storage import appearing, partial_name, remove
from tiny_model import tiny_network

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def test_files_that_are_open_are_not_replaced_or_removed(tmp_path: Path) -> None:
    """By the name they have, and in a folder that goes as a whole; closed ones may be."""
    path = tmp_path / "sub" / "a.txt"
    path.parent.mkdir()
    path.write_bytes(b"before")
    with path.open("rb"):
        with appearing(path) as partial:
            partial.write_bytes(b"after")
        assert [f"os.rename of {path}, which is open"] == windows.refused
        windows.refused.clear()
    mapped = torch.from_file(str(path), size=5, dtype=torch.uint8)
    remove(path.parent)
    assert [f"os.remove of {path}, which is mapped into memory"] == windows.refused
    windows.refused.clear()
    del mapped
    path.parent.mkdir()
    path.write_bytes(b"closed")
    remove(path.parent)


def test_what_may_only_be_read_is_not_flushed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a")
    caller = {"__name__": "etsam.somewhere", "os": os, "path": path}
    exec("with path.open('rb') as file: os.fsync(file.fileno())", caller)
    assert windows.refused == ["flushed what was opened to read only"]
    windows.refused.clear()
    exec("with path.open('r+b') as file: os.fsync(file.fileno())", caller)


def test_files_that_others_look_into_for_a_moment_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Windows' virus scanners do; who never lets go is told of as before."""
    source, target = tmp_path / "new", tmp_path / "old"
    source.write_text("new")
    target.write_text("old")
    refusals = [PermissionError(13, "in use"), PermissionError(13, "in use")]
    move = os.replace

    def replace(source: Path, target: Path) -> None:
        if refusals:
            raise refusals.pop()
        move(source, target)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(renaming, "PATIENCE", 30.0)
    renaming.rename(source, target)
    assert target.read_text() == "new" and not source.exists()
    monkeypatch.setattr(renaming, "PATIENCE", 0.0)
    refusals.append(PermissionError(13, "in use"))
    with pytest.raises(PermissionError):
        renaming.rename(target, source)


def test_weights_leave_their_file_alone_once_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained on meanwhile, it is replaced."""
    monkeypatch.setattr("etsam.sam2.checkpoint.COPIED", True)
    path = tmp_path / "stage1.safetensors"
    save_checkpoint(path, tiny_network(1), {}, half=False)
    model, _ = load_checkpoint(path)
    save_checkpoint(path, model, {}, half=False)
    assert not windows.refused


def test_what_macs_add_to_a_folder_is_no_part_of_it(tmp_path: Path) -> None:
    """Looking at a Zarr in the Finder does not change it."""
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "c").write_bytes(b"chunk")
    before = sha256(tmp_path), size_and_time(tmp_path)
    (tmp_path / ".DS_Store").write_bytes(b"windows and colours")
    (tmp_path / "0" / "._c").write_bytes(b"attributes")
    assert (sha256(tmp_path), size_and_time(tmp_path)) == before


def test_names_of_what_is_at_work_are_hardly_longer(tmp_path: Path) -> None:
    """Windows takes paths of 260 letters, unless it is told otherwise."""
    hidden = partial_name(tmp_path / "a.mrc")
    assert len(hidden.name) == len(".a.mrc.01234567.partial")
    assert partial_name(hidden / "b" / "c.zarr") == hidden / "b" / ".c.zarr.partial"

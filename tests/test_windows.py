"""What Windows would refuse is seen on Linux: otherwise no other test could fail for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

import windows
from etsam.storage import appearing, partial_name, remove

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


def test_names_of_what_is_at_work_are_hardly_longer(tmp_path: Path) -> None:
    """Windows takes paths of 260 letters, unless it is told otherwise."""
    hidden = partial_name(tmp_path / "a.mrc")
    assert len(hidden.name) == len(".a.mrc.01234567.partial")
    assert partial_name(hidden / "b" / "c.zarr") == hidden / "b" / ".c.zarr.partial"

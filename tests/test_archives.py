"""Packed MRC files: the same bytes of the same voxels, and what is said of bytes after the end."""

from __future__ import annotations

import gzip
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from etsam.volume import create_volume, open_tomogram, tomogram_from_array
from test_cli import write_mrc

DATA = np.random.default_rng(0).normal(size=(5, 24, 32)).astype(np.float32)


@pytest.fixture(params=["isal", "gzip"])
def codec(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which module packs and unpacks gzip."""
    name = str(request.param)
    if name == "gzip":
        monkeypatch.setitem(sys.modules, "isal.igzip", None)
    else:
        pytest.importorskip("isal")
    return name


def write(path: Path) -> bytes:
    with (
        tomogram_from_array(DATA, voxel_spacing=10.0) as like,
        create_volume(path, like, dtype="float32", label="test") as writer,
    ):
        for z, plane in enumerate(DATA):
            writer.write_slice(z, plane)
    return path.read_bytes()


@pytest.mark.parametrize("ending", ["gz", "bz2"])
def test_the_same_voxels_are_the_same_bytes_at_any_time_under_any_name(
    tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    first = write(tmp_path / f"a.mrc.{ending}")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1000)
    assert write(tmp_path / f"b.mrc.{ending}") == first
    assert ending != "gz" or (first[3] == 0 and first[4:8] == bytes(4))  # no name, no time
    with open_tomogram(tmp_path / f"a.mrc.{ending}") as found:
        assert np.array_equal(found.read_slices(0, 5), DATA)


def test_bytes_after_an_archive_are_said_to_be_there(tmp_path: Path, codec: str) -> None:
    packed = gzip.compress(write_mrc(tmp_path / "a.mrc", DATA).read_bytes())
    path = tmp_path / "a.mrc.gz"
    path.write_bytes(packed + b"and so on, and so on")
    with pytest.raises(ValueError, match="bytes after the end of the archive"):
        open_tomogram(path)
    path.write_bytes(packed[:-20])
    with pytest.raises(ValueError, match="incomplete archive"):
        open_tomogram(path)

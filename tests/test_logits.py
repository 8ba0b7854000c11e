"""Logits on disk: scratch that vanishes, .npy that is whole or not there."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest

import windows
from etsam.logits import LogitRange, NpyWriter, ScratchLogits, check_npy, tracked_slices

SHAPE = (5, 7, 9)


def volume() -> np.ndarray:
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32) * 4


def test_scratch_gives_back_what_it_got_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    data = volume()
    with ScratchLogits(SHAPE) as scratch:
        for z in (3, 0, 1, 4, 2):
            scratch.write_slice(z, data[z])
        assert all(np.array_equal(scratch.read_slice(z), data[z]) for z in (4, 0, 2, 2, 1, 3))
        low, high = max(-5, data.min()), min(5, data.max())
        assert scratch.clipped_range == LogitRange(float(low), float(high))
        assert not list(tmp_path.iterdir())
    with ScratchLogits(SHAPE) as scratch, pytest.raises(ValueError, match="ended"):
        scratch.read_slice(0)


@pytest.mark.parametrize(("depth", "step"), [(1, 3), (2, 3), (7, 3), (8, 3), (9, 2), (6, 1)])
def test_scratch_fills_slices_between_tracked_ones(depth: int, step: int) -> None:
    """What is linear in z comes back whole; the last slice is always tracked."""
    slope = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    with ScratchLogits((depth, 4, 5), step=step) as scratch:
        for z in tracked_slices(depth, step):
            scratch.write_slice(z, z * slope)
        for z in range(depth):
            np.testing.assert_allclose(scratch.read_slice(z), z * slope, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["<f4", "|i1"])
def test_npy_is_what_numpy_writes(tmp_path: Path, dtype: str) -> None:
    data = volume().astype(dtype)
    np.save(tmp_path / "numpy.npy", data)
    with NpyWriter(tmp_path / "ours.npy", SHAPE, dtype) as writer:
        writer.write_slice(0, data[1])
        writer.restart()
        for z in range(5):
            writer.write_slice(z, data[z])
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()


def test_npy_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.npy"
    with pytest.raises(ValueError, match="expected slice 0"), NpyWriter(path, SHAPE) as writer:
        writer.write_slice(1, volume()[1])
    with pytest.raises(ValueError, match="1 of 5 slices"), NpyWriter(path, SHAPE) as writer:
        writer.write_slice(0, volume()[0])
    assert not list(tmp_path.iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(OSError, match="No space left"):
        NpyWriter(path, SHAPE)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_file_that_windows_would_not_replace_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier result, which is a map of its file; what was written all the same is not left."""
    path, rename = tmp_path / "x.npy", os.rename
    np.save(path, volume())

    def as_there(source: Path, target: Path) -> Path:
        if windows.held(str(source)) or windows.held(str(target)):
            raise PermissionError(errno.EACCES, "Access is denied", str(source))
        rename(source, target)
        return target

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(Path, "replace", as_there)
    check_npy(path, None)
    check_npy(tmp_path / "new.npy", None)
    earlier = np.load(path, mmap_mode="r")
    with pytest.raises(OSError, match=r"x\.npy, which a program has open.* del.* another name$"):
        check_npy(path, None)
    with pytest.raises(OSError, match="Access is denied") as caught, NpyWriter(path, SHAPE) as new:
        for z in range(5):
            new.write_slice(z, earlier[z] + 1)
    assert caught.value.filename == str(path)
    assert [each.name for each in tmp_path.iterdir()] == ["x.npy"]
    assert np.array_equal(np.load(path), earlier)

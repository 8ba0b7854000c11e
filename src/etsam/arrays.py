"""Arrays in memory and memory maps as a source of slices."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from etsam.storage import RawFile, VolumeInfo


class ArraySource:
    """A (Z, Y, X) array: indexed slice by slice, or read from its file where it is a memory map."""

    def __init__(self, array: np.ndarray) -> None:
        """Check the array and find its file.

        Raises
        ------
        ValueError
            If it is not three-dimensional, has an empty axis, or does not hold real numbers.
        """
        if not hasattr(array, "shape") or not hasattr(array, "dtype"):
            array = np.asarray(array)
        if len(array.shape) != 3 or 0 in array.shape:
            raise ValueError(f"the array has shape {tuple(array.shape)}: a tomogram is (Z, Y, X)")
        dtype = np.dtype(array.dtype)
        if dtype.kind not in "biuf":
            raise ValueError(f"the array holds {dtype}: a tomogram holds real numbers")
        depth, height, width = (int(side) for side in array.shape)
        self.info = VolumeInfo((depth, height, width), dtype.newbyteorder("="), None)
        self._array = array
        self._file, self._offset = _backing_file(array)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return a copy of slices `start` to `stop`, in native byte order: (n, Y, X)."""
        if self._file is None:
            return np.array(self._array[start:stop], dtype=self.info.dtype)
        _, height, width = self.info.shape
        stored = np.empty((stop - start, height, width), self._array.dtype)
        self._file.read_into(self._offset + start * height * width * stored.itemsize, stored)
        return stored.astype(self.info.dtype, copy=False)

    def close(self) -> None:
        """Close the file; the array stays as it was."""
        if self._file is not None:
            self._file.close()


def _backing_file(array: np.ndarray) -> tuple[RawFile | None, int]:
    """Return the file a memory-mapped array shows and the byte offset of its first voxel.

    Views of a map count too: what lies between them and the map itself is the difference of their addresses.
    None for arrays in memory, scattered views, private copies (mode "c") and files that changed their name.
    """
    root: object = array
    while isinstance(root, np.ndarray) and isinstance(root.base, np.ndarray):
        root = root.base
    if not isinstance(root, np.memmap) or root.mode == "c" or not array.flags.c_contiguous:
        return None, 0
    name = root.filename
    if name is None or not Path(name).is_file():
        return None, 0
    start = root.offset + _address(array) - _address(root)
    file = RawFile(io.FileIO(name), str(name))
    first = np.empty(array.shape[1:], array.dtype)
    try:
        file.read_into(start, first)
    except ValueError:
        file.close()
        return None, 0
    if first.tobytes() != array[0].tobytes():
        file.close()
        return None, 0
    return file, start


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])

"""Arrays in memory and memory maps as a source of slices."""

from __future__ import annotations

import io
import math
import threading
from bisect import bisect_right
from contextlib import suppress
from itertools import accumulate, pairwise
from numbers import Integral
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import ArrayLike

from etsam.storage import LAYER_IN_MEMORY, RawFile, VolumeInfo


class ArraySource:
    """A (Z, Y, X) array: indexed slice by slice, or read from its file where it is a memory map.

    Of a lazy array in chunks (dask, Zarr) the layers of chunks that the latest slices are in are kept,
    as many as fit in `LAYER_IN_MEMORY`.
    """

    def __init__(self, array: ArrayLike) -> None:
        """Check the array and find its file.

        Raises
        ------
        ValueError
            If it is not three-dimensional, has an empty axis, or does not hold real numbers.
        """
        array = _of_numpy(array)
        if len(array.shape) != 3 or not all(side >= 1 for side in array.shape):
            raise ValueError(f"the array has shape {tuple(array.shape)}: a tomogram is (Z, Y, X)")
        dtype = np.dtype(array.dtype)
        if dtype.kind not in "biuf":
            raise ValueError(f"the array holds {dtype}: a tomogram holds real numbers")
        depth, height, width = (int(side) for side in array.shape)
        self.info = VolumeInfo((depth, height, width), dtype.newbyteorder("="), None)
        self._array = array
        self._file, self._offset = _backing_file(array)
        self._edges, self._most = _layers(array)
        self._kept: dict[int, np.ndarray] = {}  # layers by their first slice, the latest last
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return a copy of slices `start` to `stop`, in native byte order: (n, Y, X)."""
        _, height, width = self.info.shape
        if self._edges:
            slices = np.empty((stop - start, height, width), self.info.dtype)
            with self._lock:
                for z in range(start, stop):
                    first, layer = self._layer_of(z)
                    slices[z - start] = layer[z - first]
            return slices
        if self._file is None:
            return np.array(self._array[start:stop], dtype=self.info.dtype)
        stored = np.empty((stop - start, height, width), self._array.dtype)
        self._file.read_into(self._offset + start * height * width * stored.itemsize, stored)
        return stored.astype(self.info.dtype, copy=False)

    def _layer_of(self, z: int) -> tuple[int, np.ndarray]:
        """Return the layer of chunks that holds slice z, and its first slice."""
        place = bisect_right(self._edges, z)
        first, last = self._edges[place - 1 : place + 1]
        layer = self._kept.pop(first, None)
        if layer is None:
            if len(self._kept) == self._most:
                del self._kept[next(iter(self._kept))]
            layer = np.array(self._array[first:last], dtype=self.info.dtype)
        self._kept[first] = layer
        return first, layer

    def close(self) -> None:
        """Close the file and drop what is kept; the array stays as it was."""
        self._kept.clear()
        if self._file is not None:
            self._file.close()


def _of_numpy(array: ArrayLike) -> np.ndarray:
    """Return what other libraries hold as NumPy does; lazy arrays of NumPy's types stay as they are."""
    if np.ma.is_masked(array):
        raise ValueError("the array is masked in places: fill them first (array.filled(value))")
    if hasattr(array, "shape") and hasattr(array, "dtype"):
        with suppress(TypeError):  # a type that NumPy does not know
            np.dtype(array.dtype)
            return cast(np.ndarray, array)
    try:
        made = np.asarray(array)
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"{type(array).__name__} is no array for NumPy ({error}): of a tensor give .detach().cpu().float()"
        ) from error
    if made.ndim == 0:  # a text, bytes, None, a dict ...
        raise ValueError(f"the volume is {array!r:.60}: expected a file or an array (Z, Y, X)")
    return made


def _layers(array: np.ndarray) -> tuple[list[int], int]:
    """Return where the layers of a lazy array's chunks begin along Z, with the end, and how many to keep.

    None of an array without chunks, or with a layer that is too large to be kept.
    """
    chunks = getattr(array, "chunks", None)  # numbers (Zarr, HDF5), or each one's (dask)
    if not isinstance(chunks, tuple) or len(chunks) != 3:
        return [], 0
    depth, *sides = array.shape
    if isinstance(chunks[0], Integral):
        edges = [*range(0, depth, int(chunks[0])), depth]
    else:
        edges = [0, *accumulate(int(size) for size in chunks[0])]
    most = max(stop - start for start, stop in pairwise(edges))
    nbytes = most * math.prod(sides) * np.dtype(array.dtype).itemsize
    return (edges, LAYER_IN_MEMORY // nbytes) if nbytes <= LAYER_IN_MEMORY else ([], 0)


def file_of(array: np.ndarray) -> Path | None:
    """Return the file that a memory map, or a view of one, shows; None where there is none."""
    root = _root_of(array)
    name = root.filename if isinstance(root, np.memmap) else None
    return Path(name) if name is not None and Path(name).is_file() else None


def _root_of(array: np.ndarray) -> object:
    """Return what owns the memory of an array, as far as it is an array."""
    root: object = array
    while isinstance(root, np.ndarray) and isinstance(root.base, np.ndarray):
        root = root.base
    return root


def _backing_file(array: np.ndarray) -> tuple[RawFile | None, int]:
    """Return the file a memory-mapped array shows and the byte offset of its first voxel.

    Views of a map count too: what lies between them and the map itself is the difference of their addresses.
    None for arrays in memory, scattered views, private copies (mode "c") and files that changed their name.
    """
    root, name = _root_of(array), file_of(array)
    if not isinstance(root, np.memmap) or root.mode == "c" or not array.flags.c_contiguous:
        return None, 0
    if name is None:
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

"""OME-Zarr images read and written slice by slice through tensorstore."""

from __future__ import annotations

import io
import itertools
import json
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from etsam.ngff_metadata import NgffImage, find_image, group_attributes, is_zarr
from etsam.renaming import rename
from etsam.storage import (
    LAYER_IN_MEMORY,
    MAX_SIDE,
    RawFile,
    VolumeInfo,
    VoxelStatistics,
    check_slice,
    naming,
    partial_name,
    remove,
    scratch_file,
)
from etsam.zarr_arrays import (
    CHUNK,
    create_array,
    failed,
    grid_of,
    missing_chunks,
    open_array,
    read,
)

if TYPE_CHECKING:
    import tensorstore

OPEN_SLABS = 4  # unfinished layers of chunks kept in memory when slices come out of order
CHUNK_LIMIT = 4 << 30  # bytes; one decoded chunk must fit in memory


class NgffSource:
    """An open OME-Zarr image (or plain Zarr array): each chunk is decoded once when read in order.

    The chunks that hold a slice are decoded one at a time into a cache, in memory or, where they are
    large, in a temporary file; slices come from there.
    """

    def __init__(self, path: Path) -> None:
        """Find the image and check its array.

        Raises
        ------
        ValueError
            If the folder does not hold a volume, or it is damaged.
        """
        image = find_image(path)
        self._path = path
        array = open_array(image)
        self._store = _volume_view(array, image, path)
        depth, height, width = (int(side) for side in self._store.shape)
        self._chunk = grid_of(self._store.chunk_layout.read_chunk, self._store)
        self._dtype = _checked_dtype(self._store, path)
        _check_chunk(array, path)
        self.info = VolumeInfo(
            shape=(depth, height, width),
            dtype=self._dtype,
            voxel_spacing=image.spacing,
            origin=image.origin,
            ngff_version="0.5" if image.zarr_format == 3 else "0.4",
            notes=image.notes + missing_chunks(image, array, path),
        )
        self._lock = threading.Lock()
        self._layer: int | None = None
        self._cache: RawFile | None = None

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return slices `start` to `stop` as stored: (n, Y, X)."""
        slices = np.empty((stop - start, *self.info.shape[1:]), self._dtype)
        with self._lock:
            for z in range(start, stop):
                self._load_layer(z // self._chunk[0])
                self._read_plane(z % self._chunk[0], slices[z - start])
        return slices

    def close(self) -> None:
        """Drop the cache."""
        if self._cache is not None:
            self._cache.close()

    def _load_layer(self, layer: int) -> None:
        """Decode the chunks of one layer into the cache, one after the other."""
        if layer == self._layer:
            return
        self.close()
        self._layer = None
        start, stop = self._layer_bounds(layer)
        _, height, width = self.info.shape
        nbytes = (stop - start) * height * width * self._dtype.itemsize
        file = (
            io.BytesIO()
            if nbytes <= LAYER_IN_MEMORY  # more goes to a temporary file
            else scratch_file(nbytes, f"reading {self._path}")
        )
        self._cache = RawFile(file, str(self._path))
        for rows, columns in _columns(self.info.shape, self._chunk):
            block = read(self._store[start:stop, rows, columns], self._path)
            self._cache.append(np.ascontiguousarray(block, self._dtype))
        self._layer = layer

    def _layer_bounds(self, layer: int) -> tuple[int, int]:
        start = layer * self._chunk[0]
        return start, min(start + self._chunk[0], self.info.shape[0])

    def _read_plane(self, plane: int, target: np.ndarray) -> None:
        assert self._cache is not None and self._layer is not None
        start, stop = self._layer_bounds(self._layer)
        offset = 0
        for rows, columns in _columns(self.info.shape, self._chunk):
            block = np.empty((rows.stop - rows.start, columns.stop - columns.start), self._dtype)
            self._cache.read_into(offset + plane * block.nbytes, block)
            target[rows, columns] = block
            offset += (stop - start) * block.nbytes


class NgffSink:
    """An OME-Zarr image under construction: slices wait until a layer of chunks is complete."""

    def __init__(
        self, path: Path, partial: Path, info: VolumeInfo, dtype: np.dtype, label: str
    ) -> None:
        """Begin the folder `partial` beside `path`, version `info.ngff_version`.

        Raises
        ------
        FileExistsError
            If something that is not Zarr has the name.
        OSError
            If the folder cannot be made.
        """
        if path.exists() and not (path.is_dir() and is_zarr(path)):
            raise FileExistsError(
                f"{path} exists and is not Zarr: remove it or choose another name"
            )
        self._path = path
        self._partial = partial
        self._info = info
        self._label = label
        self._depth = min(CHUNK[0], info.shape[0])
        self._slabs: dict[int, tuple[np.ndarray, set[int]]] = {}  # slices of a layer, those present
        remove(partial)
        partial.mkdir()
        try:
            self._store = create_array(partial / "0", info, dtype)
        except BaseException:
            self.discard()
            raise

    def write(self, z: int, data: np.ndarray) -> None:
        """Take one slice (Y, X); whole layers go to the disk."""
        layer = z // self._depth
        first = layer * self._depth
        depth = min(self._depth, self._info.shape[0] - first)
        if layer not in self._slabs:
            self._slabs[layer] = (np.empty((depth, *data.shape), data.dtype), set())
        slab, present = self._slabs[layer]
        slab[z - first] = data
        present.add(z - first)
        if len(present) == depth:
            self._flush(layer)
        elif len(self._slabs) > OPEN_SLABS:
            self._flush(next(iter(self._slabs)))

    def finish(self, statistics: VoxelStatistics) -> None:
        """Write what waits and the metadata, and move the folder to its final name."""
        for layer in list(self._slabs):
            self._flush(layer)
        attributes = group_attributes(self._info, self._path.stem, self._label, statistics)
        with naming(self._path):
            _write_group(self._partial, attributes, self._info.ngff_version)
        if self._path.exists():
            old = partial_name(self._path.with_name(f"{self._path.name}.replaced"))
            remove(old)
            rename(self._path, old)
            try:
                rename(self._partial, self._path)
            except BaseException:
                rename(old, self._path)
                raise
            remove(old)
        else:
            rename(self._partial, self._path)

    def discard(self) -> None:
        """Remove the partial folder."""
        self._slabs.clear()
        remove(self._partial)

    def _flush(self, layer: int) -> None:
        """Write the waiting slices of a layer, runs of neighbours at once."""
        slab, present = self._slabs.pop(layer)
        first = layer * self._depth
        for _, run in itertools.groupby(enumerate(sorted(present)), lambda pair: pair[1] - pair[0]):
            places = [place for _, place in run]
            self._write_chunks(first, slab, slice(places[0], places[-1] + 1))

    def _write_chunks(self, first: int, slab: np.ndarray, places: slice) -> None:
        """Write slices of a layer that begins at `first`, and wait for every chunk, also after a failure.

        What still went on would make the partial folder anew while it is removed.
        """
        zs = slice(first + places.start, first + places.stop)
        pending = [
            self._store[zs, rows, columns].write(slab[places, rows, columns])
            for rows, columns in _columns(self._info.shape, CHUNK)
        ]
        failures = []
        for future in pending:
            try:
                future.result()
            except ValueError as error:
                failures.append(error)
        if failures:
            raise failed(f"{self._path} cannot be written", failures[0]) from failures[0]


def _columns(shape: tuple[int, int, int], chunk: Sequence[int]) -> list[tuple[slice, slice]]:
    """Rows and columns of each chunk of a layer of a volume, from the first row on."""
    _, height, width = shape
    _, rows, columns = chunk
    return [
        (slice(y, min(y + rows, height)), slice(x, min(x + columns, width)))
        for y, x in itertools.product(range(0, height, rows), range(0, width, columns))
    ]


def _volume_view(
    store: tensorstore.TensorStore, image: NgffImage, path: Path
) -> tensorstore.TensorStore:
    """Return the array as (z, y, x), axes of length one taken off."""
    axes = image.axes or tuple("tczyx")[max(5 - store.rank, 0) :]
    if store.rank != len(axes) or store.rank < 3:
        raise ValueError(f"{path} has {store.rank} axes, {len(axes)} are named: expected z, y, x")
    extra = [place for place, axis in enumerate(axes) if axis not in "zyx"]
    for place in extra:
        if store.shape[place] != 1:
            raise ValueError(
                f"{path} has {store.shape[place]} entries along {axes[place]!r}: give one volume"
            )
    order = [axes.index(axis) for axis in "zyx"]
    return store.transpose([*extra, *order])[(0,) * len(extra)]


def _checked_dtype(store: tensorstore.TensorStore, path: Path) -> np.dtype:
    dtype = np.dtype(store.dtype.numpy_dtype)
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise ValueError(f"{path} holds {store.dtype.name}: a tomogram holds real numbers")
    if not all(1 <= side <= MAX_SIDE for side in store.shape):
        raise ValueError(f"{path} has shape {tuple(store.shape)}: expected 1 to {MAX_SIDE} a side")
    check_slice(store.shape[1:], path)
    return dtype


def _check_chunk(array: tensorstore.TensorStore, path: Path) -> None:
    """Refuse chunks that do not fit in memory; they are decoded whole, beyond the array's end too."""
    chunk = grid_of(array.chunk_layout.read_chunk, array)
    if math.prod(chunk) * np.dtype(array.dtype.numpy_dtype).itemsize > CHUNK_LIMIT:
        raise ValueError(f"{path} has chunks of {chunk}: too large to decode, store smaller ones")


def _write_group(folder: Path, attributes: dict[str, Any], version: str | None) -> None:
    if version == "0.5":
        content = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        (folder / "zarr.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
        return
    (folder / ".zgroup").write_text(json.dumps({"zarr_format": 2}), encoding="utf-8")
    (folder / ".zattrs").write_text(json.dumps(attributes, indent=2), encoding="utf-8")

"""Connected blobs of a mask that is never in memory whole.

The mask is kept bit-packed and deflated, slice by slice, and labelled in slabs that share one slice
with the next: what meets in the shared slice is one blob. Memory is one slab of labels, whatever Z.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

SLAB_VOXELS = 30_000_000
"""Voxels labelled at once: 120 MB of labels, and slabs of 32 slices at 928 x 960."""


Connectivity = Literal[6, 26]
Value = TypeVar("Value", bound=np.generic)


def pack_slice(data: NDArray[np.bool_]) -> bytes:
    """Deflated bits of a slice."""
    return zlib.compress(np.packbits(data).tobytes(), 1)


class PackedMask:
    """A boolean volume (Z, Y, X) that grows slice by slice and is kept packed.

    A membrane mask takes about 1/100 byte a voxel.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.slice_shape = shape
        self._slices: list[bytes] = []

    def __len__(self) -> int:
        return len(self._slices)

    @property
    def nbytes(self) -> int:
        """Memory the packed slices take."""
        return sum(map(len, self._slices))

    def append(self, data: NDArray[np.bool_]) -> None:
        """Add the next slice (Y, X).

        Raises
        ------
        ValueError
            It has another shape than the others.
        """
        if data.shape != self.slice_shape:
            raise ValueError(f"slice has shape {data.shape}, expected {self.slice_shape}")
        self.append_packed(pack_slice(data))

    def append_packed(self, packed: bytes) -> None:
        """Add the next slice as `pack_slice` gives it."""
        self._slices.append(packed)

    def read(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Unpack slices `start` to `stop` as (n, Y, X)."""
        area = self.slice_shape[0] * self.slice_shape[1]
        slab = np.empty((stop - start, area), np.uint8)
        for row, packed in zip(slab, self._slices[start:stop], strict=True):
            row[:] = np.unpackbits(np.frombuffer(zlib.decompress(packed), np.uint8), count=area)
        return slab.view(bool).reshape(-1, *self.slice_shape)


@dataclass(frozen=True)
class Blobs:
    """The connected blobs of a mask.

    `first` and `last` are the first and last slice of each blob; `of_label[i]` maps the labels of
    slab i to blobs (label 0, the background, to -1). Voxels of a blob meet at faces
    (`connectivity` 6), or at edges and corners too (26). `thin[i]` lists voxels of slab i, as
    their place in it and their label, that may belong to a blob of fewer than `least` slices.
    """

    first: NDArray[np.int64]
    last: NDArray[np.int64]
    of_label: tuple[NDArray[np.int64], ...]
    slab: int
    connectivity: Connectivity
    least: int = 0
    thin: tuple[tuple[NDArray[np.uint32], NDArray[np.uint32]], ...] = ()

    @property
    def span(self) -> NDArray[np.int64]:
        """Number of consecutive slices each blob reaches over."""
        return self.last - self.first + 1


def find_blobs(
    mask: PackedMask,
    *,
    slab: int | None = None,
    connectivity: Connectivity = 26,
    least: int = 0,
) -> Blobs:
    """Find the connected blobs of a mask and the slices they reach over.

    `slab` is the number of slices labelled at once (default: about `SLAB_VOXELS` voxels). With
    `least` the blobs over fewer slices can be dropped by `drop_thin`.
    """
    slab = slab or max(2, SLAB_VOXELS // max(1, mask.slice_shape[0] * mask.slice_shape[1]))
    firsts, lasts, pairs = [], [], []
    counts: list[int] = []
    thin = []
    total = 0
    shared: NDArray[np.uint32] | None = None
    for start, stop in _slabs(len(mask), slab):
        labels = label_voxels(mask.read(start, stop), connectivity)
        if shared is not None:
            offsets = np.array([[total - counts[-1]], [total]])
            pairs.append(_meeting(shared, labels[0]) + offsets)
        inside = _inside(labels)
        first, last = _z_range(inside)
        if least > 1:
            thin.append(_thin(inside, labels[0].size, last - first + 1 < least))
        firsts.append(first + start)
        lasts.append(last + start)
        counts.append(len(first))
        total += len(first)
        shared = labels[-1].copy()
    edges = np.concatenate([np.zeros((2, 0), np.int64), *pairs], axis=1)
    links = coo_matrix((np.ones(edges.shape[1], np.int8), (edges[0], edges[1])), (total, total))
    n, blob = connected_components(links, directed=False) if total else (0, np.zeros(0, int))
    first, last = np.full(n, len(mask)), np.full(n, -1)
    np.minimum.at(first, blob, np.concatenate([np.zeros(0, np.int64), *firsts]))
    np.maximum.at(last, blob, np.concatenate([np.zeros(0, np.int64), *lasts]))
    parts = np.split(blob, np.cumsum(counts)[:-1]) if counts else []
    of_label = tuple(np.concatenate([[-1], part]) for part in parts)
    return Blobs(first, last, of_label, slab, connectivity, least, tuple(thin))


def drop_thin(mask: PackedMask, blobs: Blobs) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Yield (z, slice) of the mask without the blobs over fewer slices than `blobs.least`.

    Nothing is labelled again: `find_blobs` took note of the voxels in question.
    """
    keep = np.append(blobs.span >= blobs.least, False)
    for number, (start, stop) in enumerate(_slabs(len(mask), blobs.slab)):
        data = mask.read(start, stop)
        if blobs.thin:
            places, labels = blobs.thin[number]
            data.reshape(-1)[places[~keep[blobs.of_label[number][labels]]]] = False
        yield from enumerate(data[: _own(mask, start, stop)], start)


def select_blobs(
    mask: PackedMask, blobs: Blobs, values: NDArray[Value]
) -> Iterator[tuple[int, NDArray[Value]]]:
    """Yield (z, slice) for every slice with the value of each blob, and 0 outside.

    With booleans that is the mask of the blobs to keep.
    """
    for number, (start, stop) in enumerate(_slabs(len(mask), blobs.slab)):
        data = mask.read(start, stop)
        table = np.append(values, values.dtype.type(0))[blobs.of_label[number]]  # blob -1: outside
        if table.dtype != bool or not table[1:].all():
            inside = np.flatnonzero(data)
            labels = label_voxels(data, blobs.connectivity).reshape(-1)[inside]
            chosen = np.zeros(data.shape, table.dtype)
            chosen.reshape(-1)[inside] = table[labels]
        else:
            chosen = data.view(table.dtype)
        yield from enumerate(chosen[: _own(mask, start, stop)], start)


def blob_hits(
    mask: PackedMask, blobs: Blobs, hits: PackedMask
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the voxels of each blob, and how many of them are true in `hits` too."""
    count = len(blobs.first)
    sizes, found = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for number, (start, stop) in enumerate(_slabs(len(mask), blobs.slab)):
        own = _own(mask, start, stop)
        labels = label_voxels(mask.read(start, stop), blobs.connectivity)[:own]
        inside = labels > 0
        blob = blobs.of_label[number][labels[inside]]
        sizes += np.bincount(blob, minlength=count)
        found += np.bincount(blob[hits.read(start, start + own)[inside]], minlength=count)
    return sizes, found


def _slabs(depth: int, slab: int) -> Iterator[tuple[int, int]]:
    """Divide `depth` slices into slabs that share one slice with the next."""
    start = 0
    while start < depth:
        stop = min(start + slab, depth)
        yield start, stop
        if stop == depth:
            return
        start = stop - 1


def label_voxels(data: NDArray[np.bool_], connectivity: Connectivity = 26) -> NDArray[np.uint32]:
    """Label the connected components of a slab (Z, Y, X); the same slab always gets the same labels.

    cc3d's way with booleans expects too few where voxels stand apart in a slab a few voxels thin.
    """
    flags = data if min(data.shape) > 3 else data.view(np.uint8)
    return np.asarray(
        cc3d.connected_components(flags, connectivity=connectivity, out_dtype=np.uint32)
    )


def _own(mask: PackedMask, start: int, stop: int) -> int:
    """Number of slices of a slab that are not shared with the next one."""
    return stop - start - (stop < len(mask))


Inside = list[tuple[NDArray[np.int64], NDArray[np.uint32]]]


def _inside(labels: NDArray[np.uint32]) -> Inside:
    """Places in the slice, and labels, of each slice's voxels that have one."""
    flat = labels.reshape(len(labels), -1)
    places = [np.flatnonzero(plane) for plane in flat]
    return [(where, plane[where]) for where, plane in zip(places, flat, strict=True)]


def _z_range(inside: Inside) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first and the last slice of each label from 1 on."""
    count = max(int(labels.max(initial=0)) for _, labels in inside)
    first = np.zeros(count + 1, np.int64)
    last = np.zeros_like(first)
    for z, (_, labels) in enumerate(inside):
        last[labels] = z
    for z, (_, labels) in reversed(list(enumerate(inside))):
        first[labels] = z
    return first[1:], last[1:]


def _thin(
    inside: Inside, area: int, few: NDArray[np.bool_]
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Places in a slab with slices of `area` voxels, and labels, of those that are `few` (from 1 on)."""
    few = np.append(False, few)
    places, numbers = [], []
    for z, (where, labels) in enumerate(inside):
        chosen = few[labels]
        places.append((where[chosen] + z * area).astype(np.uint32))
        numbers.append(labels[chosen])
    return np.concatenate(places), np.concatenate(numbers)


def _meeting(above: NDArray[np.uint32], below: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return the pairs (2, n) of labels, counted from 0, that two labellings give one slice."""
    inside = above > 0
    pairs = (above[inside].astype(np.uint64) << np.uint64(32)) | below[inside]
    pairs = np.unique(pairs)
    return np.stack([pairs >> np.uint64(32), pairs & np.uint64(0xFFFFFFFF)]).astype(np.int64) - 1

"""Regions of a slice tracked on their own: quadrants, overlapping tiles blended smoothly, mirror images."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from itertools import product
from threading import Lock

import numpy as np

from etsam.intensity import SliceSource
from etsam.options import MAX_TILE

OVERLAP = 128  # pixels of the network shared by neighbouring tiles
MIRRORS: dict[int, tuple[tuple[int, ...], ...]] = {
    1: ((),),
    2: ((), (0, 1)),
    4: ((), (0,), (1,), (0, 1)),
}
"""How often a region is tracked -> the axes of (Y, X) that are mirrored each time."""


@dataclass(frozen=True)
class Region:
    """A rectangle of every slice, half-open, in voxels; mirrored along some axes of (Y, X)."""

    top: int
    bottom: int
    left: int
    right: int
    mirrored: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left

    @property
    def box(self) -> tuple[slice, slice]:
        """Index into a slice (Y, X)."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def mirror(self, part: np.ndarray) -> np.ndarray:
        """Turn what lies in the region (h, w) into what is tracked, or that back."""
        return np.flip(part, self.mirrored).copy() if self.mirrored else part  # torch wants order


def whole(shape: tuple[int, int]) -> list[Region]:
    """Return the slice as one region."""
    return [Region(0, shape[0], 0, shape[1])]


def quadrants(shape: tuple[int, int]) -> list[Region]:
    """Split a slice in four, without overlap, as the reference's split mode does.

    Raises
    ------
    ValueError
        The slice has a side of one voxel.
    """
    if min(shape) < 2:
        raise ValueError(f"a slice of {shape[0]} x {shape[1]} voxels cannot be split in four")
    rows, columns = ([(0, n // 2), (n // 2, n)] for n in shape)
    return [Region(*row, *column) for row, column in product(rows, columns)]


def tiles(
    shape: tuple[int, int],
    max_tile: tuple[int, int] = (MAX_TILE, MAX_TILE),
    overlap: int = OVERLAP,
) -> list[Region]:
    """Cover a slice with the fewest tiles of one size, at least `overlap` voxels shared.

    Raises
    ------
    ValueError
        The tiles are not larger than their overlap.
    """
    if min(max_tile) <= overlap:
        raise ValueError(f"tiles of {max_tile} voxels cannot overlap by {overlap}")
    rows, columns = (_spans(n, limit, overlap) for n, limit in zip(shape, max_tile, strict=True))
    return [Region(*row, *column) for row, column in product(rows, columns)]


def _spans(length: int, limit: int, overlap: int) -> list[tuple[int, int]]:
    """Cut one axis into equal, evenly spread, overlapping spans."""
    count = max(1, -(-(length - overlap) // (limit - overlap)))
    size = -(-(length + (count - 1) * overlap) // count)
    starts = [round(i * (length - size) / max(count - 1, 1)) for i in range(count)]
    return [(start, start + size) for start in starts]


def mirror_images(regions: list[Region], count: int) -> list[Region]:
    """Each region `count` times, 1, 2 or 4: as it is, turned by 180 degrees, and mirrored.

    Mirrors stand along x and y, so that slices with their sides keep their shape.

    Raises
    ------
    ValueError
        The count is another one.
    """
    if count not in MIRRORS:
        raise ValueError(f"{count} mirror images: expected one of {', '.join(map(str, MIRRORS))}")
    return [replace(region, mirrored=axes) for region, axes in product(regions, MIRRORS[count])]


def blend_weights(
    regions: list[Region], shape: tuple[int, int], overlap: int = OVERLAP
) -> list[np.ndarray]:
    """Weights (h, w) of each region, float32: 1 alone, fading linearly where regions overlap.

    They sum to 1 at every voxel of the slice.
    """
    raw = [_fade(region, shape, overlap) for region in regions]
    total = np.zeros(shape, np.float32)
    for region, weight in zip(regions, raw, strict=True):
        total[region.box] += weight
    return [weight / total[region.box] for region, weight in zip(regions, raw, strict=True)]


def _fade(region: Region, shape: tuple[int, int], overlap: int) -> np.ndarray:
    """Rise from the borders that meet another region to 1 at the overlap's width."""
    rows = _ramp(region.shape[0], overlap, (region.top > 0, region.bottom < shape[0]))
    columns = _ramp(region.shape[1], overlap, (region.left > 0, region.right < shape[1]))
    return np.outer(rows, columns).astype(np.float32)


def _ramp(length: int, overlap: int, inner: tuple[bool, bool]) -> np.ndarray:
    """Rise and fall of one axis, at its inner ends only."""
    distance = np.arange(1, length + 1) / (overlap + 1)
    ramp = np.ones(length)
    for ends_inside, rise in zip(inner, (distance, distance[::-1]), strict=True):
        if ends_inside:
            ramp = np.minimum(ramp, rise)
    return ramp


@dataclass(frozen=True)
class Cropped:
    """One region of a volume."""

    source: SliceSource
    region: Region

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.source.shape[0], *self.region.shape)

    def read_slice(self, z: int) -> np.ndarray:
        return self.region.mirror(self.source.read_slice(z)[self.region.box])


@dataclass(frozen=True)
class Slab:
    """A range of slices of a volume."""

    source: SliceSource
    start: int
    depth: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.depth, *self.source.shape[1:])

    def read_slice(self, z: int) -> np.ndarray:
        return self.source.read_slice(self.start + z)


class RecentSlices:
    """A volume whose last slices stay in memory: regions and stacked neighbours read them again."""

    def __init__(self, source: SliceSource, keep: int) -> None:
        self.shape = source.shape
        self._source = source
        self._keep = keep
        self._recent: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = Lock()

    def read_slice(self, z: int) -> np.ndarray:
        """Read slice z (Y, X), from memory if it was read lately; safe from several threads."""
        with self._lock:
            if z in self._recent:
                self._recent.move_to_end(z)
            else:
                self._recent[z] = self._source.read_slice(z)
                while len(self._recent) > self._keep:
                    self._recent.popitem(last=False)
            return self._recent[z]

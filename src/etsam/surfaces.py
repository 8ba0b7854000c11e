"""Distances between the surfaces of two masks, exact, in memory of the surfaces' size only.

The surface of a mask are its voxels with one of six neighbours outside it (the border of medpy,
MONAI and seg-metrics). Volumes are read slice by slice; only border voxels are kept, and nearest
ones are found with a k-d tree, so that 4e8 voxels need no distance map.

Where the truth is not annotated nobody knows whether the membrane goes on: a face towards such a
voxel is no surface. Distances are measured from annotated border voxels that face an annotated
voxel outside the mask (or the end of the volume). They lead to such voxels of the truth, and to any
border voxel of the prediction, so that a mask that is right wherever there is an annotation is at 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree

QUERY = 1_000_000  # points looked up at once

Plane = NDArray[np.bool_]


@dataclass(frozen=True)
class Surface:
    """Border voxels of a mask, zyx indices int32 (n, 3), and which of them face known ground (n,)."""

    voxels: NDArray[np.int32]
    known: NDArray[np.bool_]


@dataclass(frozen=True)
class _Slice:
    """A slice (Y, X) of a mask, where it is annotated (None: everywhere), and where it may go on."""

    mask: Plane
    annotated: Plane | None
    perhaps: Plane


@dataclass
class SurfaceCollector:
    """Collects the border voxels of a mask that comes slice by slice, in order.

    Voxels outside the volume count as outside the mask.
    """

    _voxels: list[NDArray[np.int32]] = field(default_factory=list, repr=False)
    _known: list[Plane] = field(default_factory=list, repr=False)
    _before: _Slice | None = field(default=None, repr=False)
    _current: _Slice | None = field(default=None, repr=False)
    _z: int = 0

    def add(self, mask: Plane, annotated: Plane | None = None) -> None:
        """Add the next slice (Y, X), and where there is an annotation (None: everywhere)."""
        own = mask.copy()
        given = _Slice(own, annotated, own if annotated is None else own | ~annotated)
        self._finish_current(given)
        self._before, self._current = self._current, given

    def surface(self) -> Surface:
        """Return the border voxels; call it after the last slice."""
        self._finish_current(None)
        self._current = None
        return Surface(
            np.concatenate(self._voxels or [np.zeros((0, 3), np.int32)]),
            np.concatenate(self._known or [np.zeros(0, bool)]),
        )

    def _finish_current(self, after: _Slice | None) -> None:
        current = self._current
        if current is None:
            return
        around = [one for one in (self._before, current, after) if one is not None]
        border = known = current.mask & ~_inner([one.mask for one in around])
        if any(one.annotated is not None for one in around):
            known = border & ~_inner([one.perhaps for one in around])
        if current.annotated is not None:
            known &= current.annotated
        places = np.argwhere(border).astype(np.int32)
        self._voxels.append(np.insert(places, 0, self._z, axis=1))
        self._known.append(known[tuple(places.T)])
        self._z += 1


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances [nm] from the known border voxels of one mask to the nearest of the other."""

    from_prediction: NDArray[np.float32]
    from_truth: NDArray[np.float32]

    @property
    def mean(self) -> float:
        """Average symmetric surface distance [nm]; NaN where a surface is empty."""
        if not self.from_prediction.size or not self.from_truth.size:
            return float("nan")
        total = self.from_prediction.sum(dtype=float) + self.from_truth.sum(dtype=float)
        return float(total / (self.from_prediction.size + self.from_truth.size))

    def percentile(self, percent: float = 95.0) -> float:
        """Larger of the two directed percentiles [nm] (95: the robust Hausdorff distance)."""
        if not self.from_prediction.size or not self.from_truth.size:
            return float("nan")
        both = (self.from_prediction, self.from_truth)
        return max(float(np.percentile(values, percent)) for values in both)

    def dice(self, tolerance: float) -> float:
        """Share of both surfaces within `tolerance` [nm] of the other (normalised surface Dice).

        NaN where neither has a known border voxel.
        """
        size = self.from_prediction.size + self.from_truth.size
        if not size:
            return float("nan")
        near = np.count_nonzero(self.from_prediction <= tolerance)
        near += np.count_nonzero(self.from_truth <= tolerance)
        return float(near / size)


def surface_distances(
    prediction: Surface, truth: Surface, voxel_spacing: tuple[float, float, float]
) -> SurfaceDistances:
    """Measure the distances from the known part of each surface to the other one.

    `voxel_spacing` is zyx in Å; the distances are in nm. To an empty surface they are infinite.
    """
    step = np.asarray(voxel_spacing, np.float64) / 10
    asked, true = prediction.voxels[prediction.known], truth.voxels[truth.known]
    return SurfaceDistances(_nearest(asked, true, step), _nearest(true, prediction.voxels, step))


def _inner(around: list[Plane]) -> Plane:
    """Return where all six neighbours are inside as well; nowhere in a slice that lacks one beside it."""
    if len(around) < 3:
        return np.zeros_like(around[0])
    before, current, after = around
    inner: Plane = binary_erosion(current) & before & after
    return inner


def _nearest(
    points: NDArray[np.int32], others: NDArray[np.int32], step: NDArray[np.float64]
) -> NDArray[np.float32]:
    result = np.full(len(points), np.inf, np.float32)
    if not len(others):
        return result
    tree = cKDTree(others * step, balanced_tree=False, compact_nodes=False)
    for start in range(0, len(points), QUERY):
        part = points[start : start + QUERY] * step
        result[start : start + QUERY] = tree.query(part, workers=-1)[0]
    return result

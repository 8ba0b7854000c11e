"""Distances between the surfaces of two masks, exact, in memory of the surfaces' size only.

The surface of a mask are its voxels with one of six neighbours outside it (the border of medpy,
MONAI and seg-metrics). Volumes are read slice by slice; only border voxels are kept, and nearest
ones are found with a k-d tree, so that 4e8 voxels need no distance map.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import cKDTree

QUERY = 1_000_000  # points looked up at once


@dataclass
class SurfaceCollector:
    """Collects the border voxels of a mask that comes slice by slice, in order.

    Voxels outside the volume count as outside the mask.
    """

    _points: list[NDArray[np.int32]] = field(default_factory=list, repr=False)
    _before: NDArray[np.bool_] | None = field(default=None, repr=False)
    _current: NDArray[np.bool_] | None = field(default=None, repr=False)
    _counted: NDArray[np.bool_] | None = field(default=None, repr=False)
    _z: int = 0

    def add(self, mask: NDArray[np.bool_], counted: NDArray[np.bool_] | None = None) -> None:
        """Add the next slice (Y, X); border voxels count only where `counted` (None: everywhere)."""
        self._finish_current(mask)
        self._before, self._current, self._counted = self._current, mask.copy(), counted

    def points(self) -> NDArray[np.int32]:
        """Return the zyx indices (n, 3) of the border voxels; call it after the last slice."""
        self._finish_current(None)
        self._current = None
        return np.concatenate(self._points or [np.zeros((0, 3), np.int32)])

    def _finish_current(self, after: NDArray[np.bool_] | None) -> None:
        current = self._current
        if current is None:
            return
        inner = np.zeros_like(current)
        if self._before is not None and after is not None:
            inner = binary_erosion(current) & self._before & after
        border = current & ~inner
        if self._counted is not None:
            border &= self._counted
        places = np.argwhere(border).astype(np.int32)
        self._points.append(np.insert(places, 0, self._z, axis=1))
        self._z += 1


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances [nm] from each border voxel of one mask to the nearest of the other."""

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

        NaN where both surfaces are empty, 0 where one is.
        """
        size = self.from_prediction.size + self.from_truth.size
        if not size:
            return float("nan")
        near = np.count_nonzero(self.from_prediction <= tolerance)
        near += np.count_nonzero(self.from_truth <= tolerance)
        return float(near / size)


def surface_distances(
    prediction: NDArray[np.int32],
    truth: NDArray[np.int32],
    voxel_spacing: tuple[float, float, float],
) -> SurfaceDistances:
    """Measure the distances between two surfaces given as zyx indices (n, 3).

    `voxel_spacing` is zyx in Å; the distances are in nm. To an empty surface they are infinite.
    """
    step = np.asarray(voxel_spacing, np.float64) / 10
    return SurfaceDistances(_nearest(prediction, truth, step), _nearest(truth, prediction, step))


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

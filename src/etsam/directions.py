"""Scores by direction: Dice of XY, XZ and YZ planes, and recall by how a membrane leans to the beam.

The missing wedge blurs membranes that lie flat (normal along Z, the beam) and spares upright ones.
Memory is a few slices, whatever Z.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import convolve1d, gaussian_filter

from etsam.components import PackedMask
from etsam.storage import Zyx

LEANS = (0, 30, 60, 90)
"""Edges of the bins of lean [degrees]: the angle of the membrane's normal to the Z axis."""

BLOCK = 4  # voxels along each side of a block that has one normal
BLUR = 1.0  # of the coarsest voxels; makes the gradient of a mask turn smoothly along each axis
CUT = 2.0  # standard deviations kept of the blur
SMOOTH = (0.25, 0.5, 0.25)  # weights of neighbouring blocks
NONE = len(LEANS) - 1  # bin of blocks without a surface


@dataclass
class PlaneDice:
    """Counts of each XY, XZ and YZ plane; the mean Dice of those that have membrane in either mask."""

    _xy: list[tuple[int, int]] = field(default_factory=list, repr=False)
    _xz: NDArray[np.int64] | None = field(default=None, repr=False)
    _yz: NDArray[np.int64] | None = field(default=None, repr=False)

    def add(self, predicted: NDArray[np.bool_], true: NDArray[np.bool_]) -> None:
        """Add the next slice (Y, X) of both masks; neither is to hold voxels that do not count."""
        hits = predicted & true
        of_y, of_x = (
            np.stack(
                [
                    np.count_nonzero(hits, axis),
                    *(np.count_nonzero(m, axis) for m in (predicted, true)),
                ]
            )
            for axis in (1, 0)
        )
        self._xy.append((int(of_y[0].sum()), int(of_y[1:].sum())))
        self._xz = of_y if self._xz is None else self._xz + of_y
        self._yz = of_x if self._yz is None else self._yz + of_x

    def means(self) -> dict[str, float]:
        """Return the mean Dice of the planes by name, xy, xz and yz; NaN where all are empty."""
        found = {"xy": _mean_dice(*np.array(self._xy, np.int64).reshape(-1, 2).T)}
        for name, counts in (("xz", self._xz), ("yz", self._yz)):
            empty = np.zeros((3, 0), np.int64)
            hits, predicted, true = empty if counts is None else counts
            found[name] = _mean_dice(hits, predicted + true)
        return found


def recall_by_lean(truth: PackedMask, hits: PackedMask, spacing: Zyx) -> list[float]:
    """Return the recall of true voxels in each bin of `LEANS`.

    Normals are those of the smoothed structure tensor of the truth in blocks of 4 voxels a side.
    Voxels further than about 8 voxels from any surface have none and are in no bin.

    Parameters
    ----------
    truth
        True voxels.
    hits
        Those of them that were predicted.
    spacing
        Voxel size zyx; only its ratios matter.

    Returns
    -------
    list of float
        One a bin; NaN where it has no voxel.
    """
    true, found = np.zeros(NONE + 1, np.int64), np.zeros(NONE + 1, np.int64)
    for start, bins in _layers(truth, spacing):
        stop = min(start + BLOCK, len(truth))
        inside, hit = truth.read(start, stop), hits.read(start, stop)
        _, y, x = np.nonzero(inside)
        place = bins[y // BLOCK, x // BLOCK]
        true += np.bincount(place, minlength=NONE + 1)
        found += np.bincount(place[hit[inside]], minlength=NONE + 1)
    with np.errstate(invalid="ignore"):
        return [float(share) for share in (found / true)[:NONE]]


def _mean_dice(hits: NDArray[np.int64], sizes: NDArray[np.int64]) -> float:
    used = sizes > 0
    return float(np.mean(2 * hits[used] / sizes[used])) if used.any() else float("nan")


def _layers(truth: PackedMask, spacing: Zyx) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield the first slice of each layer of blocks, and the bin of each of its blocks (Y, X)."""
    starts = range(0, len(truth), BLOCK)
    before = now = _tensors(truth, 0, spacing)
    for start in starts:
        last = start + BLOCK >= len(truth)
        after = now if last else _tensors(truth, start + BLOCK, spacing)
        mixed = SMOOTH[0] * before + SMOOTH[1] * now + SMOOTH[2] * after
        for axis in (0, 1):
            mixed = convolve1d(mixed, SMOOTH, axis=axis, mode="nearest")
        yield start, _bins(mixed)
        before, now = now, after


def _tensors(truth: PackedMask, start: int, spacing: Zyx) -> NDArray[np.float32]:
    """Return the mean structure tensor (Y, X, 6) of the blocks that begin at slice `start`."""
    height, width = truth.slice_shape
    blocks = -(-height // BLOCK), -(-width // BLOCK)
    sigma = [BLUR * max(spacing) / step for step in spacing]
    radius = [round(CUT * each) for each in sigma]
    reach = radius[0] + 1  # slices that blur and gradient look beyond a block
    first, last = start - reach, start + BLOCK + reach
    mask = truth.read(max(first, 0), min(last, len(truth)))
    if not mask.any():
        return np.zeros((*blocks, 6), np.float32)
    beyond = (max(-first, 0), max(last - len(truth), 0))
    sides = [(0, n * BLOCK - size) for n, size in zip(blocks, (height, width), strict=True)]
    padded = np.pad(mask.astype(np.float32), [beyond, *sides], mode="edge")
    smooth = gaussian_filter(padded, sigma, mode="nearest", radius=radius)
    inner = smooth[radius[0] : reach + BLOCK + 1]
    slopes = [part[1:-1] for part in np.gradient(inner, *(s / min(spacing) for s in spacing))]
    result = np.empty((*blocks, 6), np.float32)
    for place, (i, j) in enumerate(zip(*np.triu_indices(3), strict=True)):
        product = slopes[i] * slopes[j]
        cells = product.sum(axis=0).reshape(blocks[0], BLOCK, blocks[1], BLOCK)
        result[..., place] = cells.sum(axis=(1, 3))
    return result


def _bins(tensors: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the bin of lean of each block (Y, X); `NONE` where there is no surface."""
    result = np.full(tensors.shape[:2], NONE)
    somewhere = tensors[..., (0, 3, 5)].sum(axis=-1) > 1e-9
    rows, columns = np.triu_indices(3)
    matrices = np.empty((np.count_nonzero(somewhere), 3, 3))
    matrices[:, rows, columns] = matrices[:, columns, rows] = tensors[somewhere]
    normals = np.linalg.eigh(matrices).eigenvectors[:, :, 2]
    lean = np.degrees(np.arccos(np.clip(np.abs(normals[:, 0]), 0, 1)))
    result[somewhere] = np.searchsorted(LEANS[1:-1], lean, side="right")
    return result

"""A volume of scores seen on another grid that covers the same extent, slice by slice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.special import expit, logit

from etsam.predictions import ScoreKind, check_scores
from etsam.storage import VolumeInfo, Zyx
from etsam.volume import Tomogram

CUT_OFF = 0.99
"""Voxels of the coarser grid by which extents may differ: what binning cuts off."""

ROUNDED = 0.01
"""Share of an extent by which they may differ: what rounded voxel sizes explain."""

BINNED = 0.01  # how far from a whole number a ratio of voxel sizes still is binning
FARTHEST = 15.0  # logits beyond say no more, and -1024 ("no object") would move every edge
HALF = 0.5  # share of a voxel that makes it membrane
ROUNDING = 1e-9


class ResampledSource:
    """Scores of a prediction on the grid of its truth.

    Linear between voxel centres, and averaged over the new voxel where that is larger. Masks become
    1 where at least half of the new voxel is membrane; logits are averaged as probabilities.
    Keeps the few slices that it is working on.
    """

    def __init__(self, volume: Tomogram, like: Tomogram, kind: ScoreKind) -> None:
        self.info: VolumeInfo = replace(
            like.info, dtype=np.dtype("int8" if kind == "mask" else "float32")
        )
        self._volume = volume
        self._kind = kind
        self._z, self._y, self._x = (
            _weights(size, wanted, ratio)
            for size, wanted, ratio in zip(
                volume.shape, like.shape, _steps(volume, like), strict=True
            )
        )
        self._kept: dict[int, NDArray[np.float64]] = {}

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return slices (stop - start, Y, X)."""
        return np.stack([self._slice(z) for z in range(start, stop)])

    def close(self) -> None:
        """Close the volume."""
        self._volume.close()

    def _slice(self, z: int) -> NDArray[np.float32]:
        row = self._z[[z]]
        total = np.zeros(self.info.shape[1:])
        self._kept = {number: self._kept[number] for number in row.indices if number in self._kept}
        for number, weight in zip(row.indices, row.data, strict=True):
            if number not in self._kept:
                self._kept[number] = self._y @ self._values(int(number)) @ self._x.T
            total += weight * self._kept[number]
        if self._kind == "mask":
            return np.asarray(total >= HALF - ROUNDING, np.float32)
        if self._kind == "logits":
            total = logit(total.clip(0, 1)).clip(-FARTHEST, FARTHEST)
        return total.astype(np.float32)

    def _values(self, z: int) -> NDArray[np.float64]:
        """Return a slice of the prediction as shares of membrane, 0 to 1."""
        plane = self._volume.read_slice(z)
        self._volume.require_finite()
        check_scores(plane, self._kind, z)
        if self._kind == "mask":
            return (plane > 0).astype(np.float64)
        values = plane.astype(np.float64)
        return expit(values.clip(-FARTHEST, FARTHEST)) if self._kind == "logits" else values


def resampled(volume: Tomogram, like: Tomogram, kind: ScoreKind) -> Tomogram:
    """Return scores on the grid of `like`; closing it closes `volume`.

    The outer faces of both volumes coincide, whatever their origins.

    Raises
    ------
    ValueError
        If a voxel size is unknown, or the volumes do not cover the same extent.
    """
    source = ResampledSource(volume, like, kind)
    return Tomogram(source, volume.path, source.info)


def _steps(volume: Tomogram, like: Tomogram) -> Zyx:
    """Return how many voxels of `volume` a voxel of `like` covers on each axis."""
    ours, theirs = volume.voxel_spacing, like.voxel_spacing
    for one, spacing in ((volume, ours), (like, theirs)):
        if spacing is None:
            raise ValueError(f"{one.path} does not say its voxel size: resampling needs both")
    assert ours is not None
    assert theirs is not None
    lengths = [
        [size * step for size, step in zip(one.shape, spacing, strict=True)]
        for one, spacing in ((volume, ours), (like, theirs))
    ]
    for first, second, *both in zip(*lengths, ours, theirs, strict=True):
        if abs(first - second) > max(CUT_OFF * max(both), ROUNDED * second):
            listed = " and ".join("x".join(f"{part:.0f}" for part in extent) for extent in lengths)
            raise ValueError(
                f"{volume.path} and {like.path} extend over {listed} Å (zyx): they must show the "
                "same volume to be resampled"
            )
    z, y, x = (their / our for our, their in zip(ours, theirs, strict=True))
    return z, y, x


def _weights(size: int, wanted: int, ratio: float) -> csr_matrix:
    """Return the sparse matrix (wanted, size) that resamples one axis; its rows add up to 1.

    Linear between the centres of voxels; the mean of that over the new voxel where that is larger.
    Binning by a whole number takes the plain mean of the voxels that fall together.
    """
    centres = (np.arange(wanted) + 0.5) * ratio - 0.5
    reach = int(np.ceil(max(ratio, 1.0) / 2)) + 1
    near = np.floor(centres).astype(int)[:, None] + np.arange(-reach, reach + 2)
    away = centres[:, None] - near
    if ratio <= 1:
        weights = np.maximum(1 - np.abs(away), 0)
    elif abs(ratio - round(ratio)) < BINNED:
        weights = ((ratio + 1) / 2 - np.abs(away)).clip(0, 1)
    else:
        weights = _under_hat(away + ratio / 2) - _under_hat(away - ratio / 2)
    rows = np.repeat(np.arange(wanted), near.shape[1])
    matrix = csr_matrix((weights.ravel(), (rows, near.clip(0, size - 1).ravel())), (wanted, size))
    matrix.eliminate_zeros()
    return csr_matrix(matrix.multiply(1 / matrix.sum(axis=1)))


def _under_hat(place: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the area to the left of each place under the hat of width 2 and height 1 round 0."""
    place = place.clip(-1, 1)
    return np.asarray((place + 1) ** 2 / 2 - np.maximum(place, 0) ** 2)

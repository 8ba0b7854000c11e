"""A classical membrane detector: a ridge filter at several scales, and votes of its orientations.

After TomoSegMemTV (Martinez-Sanchez et al., 2014), with its parts replaced by cheaper ones of the
same intent: sheets are where the Hessian has one large eigenvalue; each voxel then votes for the
orientation it saw, votes are spread by a Gaussian instead of along the surface, and where they
agree the largest two eigenvalues of their sum differ (stick saliency). No training but three
numbers, fitted on simulated tomograms by `experiments/tune_ridge.py`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from etsam.storage import Zyx
from etsam.volume import Tomogram

Planes = NDArray[np.float32]
Six = tuple[Planes, Planes, Planes, Planes, Planes, Planes]  # zz, yy, xx, zy, zx, yx
Progress = Callable[[str, int, int], None]

UNKNOWN_SPACING = 10.0  # Å, assumed where the file does not say
FINEST = 0.7  # voxels; a Gaussian narrower than that leaves noise
REACH = 3.0  # standard deviations kept of a Gaussian
SLAB = 32  # slices found at once
TILE = 256  # voxels along Y and X computed at once
SAMPLED = 9  # blocks looked at to measure the noise
BLOCK = (0, 24, 24)  # voxels of them on either side of their middle
QUARTILE = 0.75  # of the features; half of noise is no ridge at all
FLOOR = np.float32(2.5e-3)  # of the features; less is nothing


@dataclass(frozen=True)
class RidgeOptions:
    """Choices of the ridge filter.

    Attributes
    ----------
    scales
        Standard deviations [Å] of the Gaussians before the Hessian: about half a bilayer.
    votes
        Standard deviation [Å] of the Gaussian that spreads votes; 0: none.
    invert
        Membranes are bright.
    voxel_spacing
        Å, in place of what the file says.
    """

    scales: tuple[float, ...] = (12.0, 20.0)
    votes: float = 40.0
    invert: bool = False
    voxel_spacing: float | None = None


RIDGE_GAIN, VOTE_GAIN, OFFSET = 0.111, 2.072, -0.550
"""Logit = RIDGE_GAIN ln(ridge) + VOTE_GAIN ln(votes) + OFFSET, fitted on simulated tomograms."""


@dataclass(frozen=True)
class Features:
    """Ridge strength and agreement of votes of each voxel, in units of the volume's upper quartiles."""

    ridge: Planes
    votes: Planes

    def logits(self) -> Planes:
        """Combine both into one score, above 0 where membrane is likely."""
        ridge, votes = self.logarithms()
        logits: Planes = (RIDGE_GAIN * ridge + VOTE_GAIN * votes + OFFSET).astype(np.float32)
        return logits

    def logarithms(self) -> tuple[Planes, Planes]:
        """Return the logarithms of both, no feature below `FLOOR`."""
        return np.log(np.maximum(self.ridge, FLOOR)), np.log(np.maximum(self.votes, FLOOR))


def ridge_slices(
    tomogram: Tomogram, options: RidgeOptions | None = None, progress: Progress | None = None
) -> Generator[Planes, None, None]:
    """Yield logits (Y, X) of every slice in order; memory does not grow with their number.

    Raises
    ------
    ValueError
        If the volume is constant or a scale is not positive.
    """
    ridge = _RidgeFilter(tomogram, options or RidgeOptions())
    units = ridge.measure()
    depth, height, width = tomogram.shape
    for start in range(0, depth, SLAB):
        stop = min(start + SLAB, depth)
        logits = np.empty((stop - start, height, width), np.float32)
        for y, x in ridge.tiles():
            found = ridge.features((slice(start, stop), y, x), units)
            logits[:, y, x] = found.logits()
        for z, plane in enumerate(logits, start + 1):
            yield plane
            if progress is not None:
                progress("ridge filter", z, depth)


def ridge_features(tomogram: Tomogram, options: RidgeOptions | None = None) -> Features:
    """Return the features of a whole volume that fits in memory; see `ridge_slices`."""
    ridge = _RidgeFilter(tomogram, options or RidgeOptions())
    depth, height, width = tomogram.shape
    found = ridge.features((slice(0, depth), slice(0, height), slice(0, width)), (1.0, 1.0))
    units = _units([found])
    return Features(found.ridge / np.float32(units[0]), found.votes / np.float32(units[1]))


@dataclass(frozen=True)
class _RidgeFilter:
    """The filter with its sizes in voxels of one tomogram."""

    tomogram: Tomogram
    options: RidgeOptions

    def __post_init__(self) -> None:
        if not self.options.scales or min(self.options.scales) <= 0 or self.options.votes < 0:
            raise ValueError(f"scales {self.options.scales}: expected positive numbers of ångström")
        if self.tomogram.voxel_spacing is None and self.options.voxel_spacing is None:
            warnings.warn(
                f"voxel size unknown, taken as {UNKNOWN_SPACING:g} Å: give --voxel-spacing",
                stacklevel=2,
            )

    @property
    def spacing(self) -> Zyx:
        """Å per voxel, zyx."""
        given = self.options.voxel_spacing
        known = self.tomogram.voxel_spacing if given is None else (given, given, given)
        return known or (UNKNOWN_SPACING,) * 3

    @property
    def halo(self) -> Zyx:
        """Voxels needed round a block, zyx, as floats."""
        reach = REACH * (max(self.options.scales) + self.options.votes)
        z, y, x = (reach / step + REACH for step in self.spacing)
        return z, y, x

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """Divide slices into tiles."""
        _, height, width = self.tomogram.shape
        for y in range(0, height, TILE):
            for x in range(0, width, TILE):
                yield slice(y, min(y + TILE, height)), slice(x, min(x + TILE, width))

    def measure(self) -> tuple[float, float]:
        """Return the upper quartiles of both features over a few small blocks: noise and clutter."""
        places = (np.arange(SAMPLED) + 0.5) / SAMPLED
        orders = places, np.roll(places, SAMPLED // 3), np.roll(places[::-1], SAMPLED // 4)
        found = []
        for z, y, x in zip(*orders, strict=True):
            block = [
                slice(max(round(place * side) - half, 0), round(place * side) + half + 1)
                for place, side, half in zip((z, y, x), self.tomogram.shape, BLOCK, strict=True)
            ]
            clipped = [
                slice(b.start, min(b.stop, n))
                for b, n in zip(block, self.tomogram.shape, strict=True)
            ]
            found.append(self.features((clipped[0], clipped[1], clipped[2]), (1.0, 1.0)))
        return _units(found)

    def features(self, block: tuple[slice, slice, slice], units: tuple[float, float]) -> Features:
        """Compute the features of a block from itself and what is round it."""
        data, core = self._read(block)
        ridge = np.zeros(data.shape, np.float32)
        tensor: list[Planes] | None = None
        for scale in self.options.scales:
            smooth = gaussian_filter(data, self._voxels(scale), truncate=REACH)
            hessian = _hessian(smooth, self.spacing)
            strength = _sheet(hessian)
            np.maximum(ridge, strength, out=ridge)
            cast = _votes(hessian, strength)
            tensor = cast if tensor is None else [a + b for a, b in zip(tensor, cast, strict=True)]
        assert tensor is not None
        agreed = ridge
        if self.options.votes:
            sigma = self._voxels(self.options.votes)
            spread = [gaussian_filter(part, sigma, truncate=REACH) for part in tensor]
            largest, second, _ = _eigenvalues(spread)
            agreed = np.maximum(largest - second, 0)
        return Features(ridge[core] / np.float32(units[0]), agreed[core] / np.float32(units[1]))

    def _voxels(self, length: float) -> Zyx:
        z, y, x = (max(length / step, FINEST) for step in self.spacing)
        return z, y, x

    def _read(self, block: tuple[slice, slice, slice]) -> tuple[Planes, tuple[slice, slice, slice]]:
        """Read a block with its surroundings; return it and where the block lies in it."""
        wide, core = [], []
        for part, side, halo in zip(block, self.tomogram.shape, self.halo, strict=True):
            start, stop = (
                max(part.start - math.ceil(halo), 0),
                min(part.stop + math.ceil(halo), side),
            )
            wide.append(slice(start, stop))
            core.append(slice(part.start - start, part.stop - start))
        planes = [
            self.tomogram.read_slice(z)[wide[1], wide[2]]
            for z in range(wide[0].start, wide[0].stop)
        ]
        data = np.stack(planes).astype(np.float32, copy=False)
        return (-data if self.options.invert else data), (core[0], core[1], core[2])


def _units(found: list[Features]) -> tuple[float, float]:
    """Return the upper quartiles of both features: noise's, since membranes are rarer than that.

    Raises
    ------
    ValueError
        If one is 0, or none is a number: there is nothing to be told from nothing.
    """
    ridge = _quartile([each.ridge for each in found])
    votes = _quartile([each.votes for each in found])
    if not ridge or not votes:
        raise ValueError("the ridge filter finds no structure: the volume is nearly constant")
    return ridge, votes


def _quartile(feature: list[Planes]) -> float:
    """Return the upper quartile of what is a number; beside a voxel of 1e30 nothing is."""
    values = np.concatenate([part.ravel() for part in feature])
    values = values[~np.isnan(values)]
    return float(np.quantile(values, QUARTILE)) if values.size else 0.0


def _hessian(smooth: Planes, spacing: Zyx) -> Six:
    """Second differences, the edge repeated, per square of the finest spacing."""
    steps = [np.float32(step / min(spacing)) for step in spacing]
    padded = np.pad(smooth, 1, mode="edge")
    middle, before, after = slice(1, -1), slice(None, -2), slice(2, None)

    def second(axis: int) -> Planes:
        low, high = [middle] * 3, [middle] * 3
        low[axis], high[axis] = before, after
        result: Planes = padded[tuple(low)] + padded[tuple(high)] - 2 * smooth
        return result / steps[axis] ** 2

    def mixed(first: int, other: int) -> Planes:
        total = np.zeros_like(smooth)
        for a, sign_a in ((before, -1), (after, 1)):
            for b, sign_b in ((before, -1), (after, 1)):
                place = [middle] * 3
                place[first], place[other] = a, b
                total += np.float32(0.25 * sign_a * sign_b) * padded[tuple(place)]
        return total / (steps[first] * steps[other])

    return second(0), second(1), second(2), mixed(0, 1), mixed(0, 2), mixed(1, 2)


def _eigenvalues(tensor: Six | list[Planes]) -> tuple[Planes, Planes, Planes]:
    """Eigenvalues of symmetric 3 x 3 tensors, descending (Smith, 1961)."""
    zz, yy, xx, zy, zx, yx = tensor
    mean = (zz + yy + xx) / 3
    a, b, c = zz - mean, yy - mean, xx - mean
    spread = np.sqrt((a * a + b * b + c * c + 2 * (zy * zy + zx * zx + yx * yx)) / 6)
    spread = np.maximum(spread, np.float32(1e-30))
    determinant = a * (b * c - yx * yx) - zy * (zy * c - yx * zx) + zx * (zy * yx - b * zx)
    with np.errstate(over="ignore", invalid="ignore"):
        cosine = np.nan_to_num(determinant / (2 * spread * spread * spread))
    angle = np.arccos(np.clip(cosine, -1, 1)) / 3
    largest = mean + 2 * spread * np.cos(angle)
    smallest = mean + 2 * spread * np.cos(angle + np.float32(2 * math.pi / 3))
    return largest, 3 * mean - largest - smallest, smallest


def _sheet(hessian: Six) -> Planes:
    """How much stronger a dark sheet bends across than along: largest minus other curvatures."""
    largest, second, smallest = _eigenvalues(hessian)
    result: Planes = np.maximum(largest - np.maximum(np.abs(second), np.abs(smallest)), 0)
    return result


def _votes(hessian: Six, strength: Planes) -> list[Planes]:
    """Squared Hessians scaled to the ridge strength: close to n nᵀ of a sheet's normal n."""
    zz, yy, xx, zy, zx, yx = hessian
    squared = [
        zz * zz + zy * zy + zx * zx,
        zy * zy + yy * yy + yx * yx,
        zx * zx + yx * yx + xx * xx,
        zz * zy + zy * yy + zx * yx,
        zz * zx + zy * yx + zx * xx,
        zy * zx + yy * yx + yx * xx,
    ]
    weight = strength / np.maximum(squared[0] + squared[1] + squared[2], np.float32(1e-30))
    return [part * weight for part in squared]

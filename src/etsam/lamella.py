"""How thick the sample is: where slices of a tomogram begin and end to show texture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

TEXTURE_SIZE = 40.0  # Å; finer detail is noise, which is outside of the sample too
BINNED = 4  # pixels, where the spacing is unknown
BACKGROUND = 8.0  # binned pixels; slower changes are ice and gradients
OUTLYING = 4.0  # deviations; what is beyond, gold or dirt, is cut off
LEAST_SIDE = 8  # binned pixels along a slice
LEAST_SLICES = 12
LEAST_PART = 3  # slices looked at, inside and outside
EXPLAINED = 0.62
"""Share of the variance along Z that a slab has to explain before it is believed."""
TEXTURED = 1.1  # times as much texture inside as outside
BETTER_THAN_A_LINE = 0.5
"""At most so much of what a straight line leaves may be left: a gradient has no faces."""
ALSO_LIKELY = 1.5
"""Slabs that leave so many times the smallest rest are in the range of thicknesses."""
FAINTEST = 1e-6  # of the strongest texture; less is none


@dataclass(frozen=True)
class Lamella:
    """Slices between which a sample lies, `stop` not included, and the range its thickness may have.

    All in slices; 0 and the number of slices are borders of the volume, beyond which the sample may
    go on.
    """

    start: int
    stop: int
    least: int
    most: int

    @property
    def thickness(self) -> int:
        """The likeliest thickness."""
        return self.stop - self.start


def texture(plane: np.ndarray, spacing: float | None) -> float:
    """How much structure of some 40 Å a slice (Y, X) shows, in grey values; robust against gold and dirt.

    Returns
    -------
    deviation
        1.48 times the median absolute deviation of the binned slice without its slow changes; NaN for
        slices too small to tell.
    """
    factor = BINNED if spacing is None else max(1, round(TEXTURE_SIZE / spacing))
    height, width = (side // factor for side in plane.shape)
    if min(height, width) < LEAST_SIDE:
        return math.nan
    blocks = plane[: height * factor, : width * factor]
    binned = blocks.reshape(height, factor, width, factor).mean(axis=(1, 3), dtype=np.float64)
    middle, spread = float(np.median(binned)), _spread(binned)
    binned = np.clip(binned, middle - OUTLYING * spread, middle + OUTLYING * spread)
    return _spread(binned - ndimage.gaussian_filter(binned, BACKGROUND))


def _spread(values: np.ndarray) -> float:
    """Median absolute deviation, as the standard deviation of normal noise."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))


def find_lamella(textures: Sequence[float], places: Sequence[int], depth: int) -> Lamella | None:
    """Fit a slab with more texture inside than outside to a profile along Z.

    The logarithm of the texture has one level inside and one outside; all slabs are tried.

    Parameters
    ----------
    textures
        Of slices at `places`, in order and evenly spaced.
    depth
        Slices of the volume.

    Returns
    -------
    Lamella or None
        None where no slab stands out: the sample fills the volume, or noise hides its faces.
    """
    values = np.asarray(textures, np.float64)
    count = len(values)
    if count < LEAST_SLICES or not np.isfinite(values).all() or values.max() <= 0:
        return None
    profile = np.log(np.maximum(values, FAINTEST * values.max()))
    total = float(np.square(profile - profile.mean()).sum())
    start, stop = np.meshgrid(np.arange(count), np.arange(1, count + 1), indexing="ij")
    inside, outside = stop - start, count - (stop - start)
    possible = (inside >= LEAST_PART) & (outside >= LEAST_PART)
    start, stop, inside, outside = (array[possible] for array in (start, stop, inside, outside))
    sums = np.concatenate([[0.0], np.cumsum(profile - profile.mean())])
    within = sums[stop] - sums[start]
    rest = total - within**2 / inside - within**2 / outside
    rest[within <= 0] = np.inf
    best = int(np.argmin(rest))
    step = within[best] / inside[best] + within[best] / outside[best]
    limit = min((1 - EXPLAINED) * total, BETTER_THAN_A_LINE * _rest_of_a_line(profile))
    if not rest[best] <= limit or step < math.log(TEXTURED):
        return None
    edges = [0, *((np.asarray(places[:-1]) + np.asarray(places[1:]) + 1) // 2).tolist(), depth]
    likely = rest <= ALSO_LIKELY * rest[best]
    spans = np.asarray(edges)[stop[likely]] - np.asarray(edges)[start[likely]]
    apart = int(
        np.diff(places).max()
    )  # between two slices that were looked at a face lies anywhere
    least, most = max(1, int(spans.min()) - apart), min(depth, int(spans.max()) + apart)
    return Lamella(int(edges[start[best]]), int(edges[stop[best]]), least, most)


def _rest_of_a_line(profile: np.ndarray) -> float:
    """Squared deviations from the straight line through a profile."""
    places = np.arange(len(profile))
    line = np.polyval(np.polyfit(places, profile, 1), places)
    return float(np.square(profile - line).sum())

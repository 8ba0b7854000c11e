"""Grey values: statistics of a whole volume, streamed, and their scaling for the network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar, get_args

import numpy as np

from etsam.options import Normalisation

if TYPE_CHECKING:
    from torch import Tensor


ROBUST_PERCENTILES = (0.1, 99.9)
SAMPLE_SLICES = 64
SAMPLE_VALUES = 1 << 22
LOSSY = 1 << 20  # numbers beyond are some tenths apart in float32
WIDE = 1e37  # from here on differences of grey values may overflow float32

Grey = TypeVar("Grey", "Tensor", np.ndarray)


class SliceSource(Protocol):
    """Anything that hands out (Y, X) slices one at a time: a tomogram, a crop, stored logits."""

    @property
    def shape(self) -> tuple[int, int, int]: ...

    def read_slice(self, z: int) -> np.ndarray: ...


@dataclass(frozen=True)
class IntensityScaling:
    """Scaling of grey values: mirrored, softplus, clipped to [low, high], minus offset, divided.

    ``mirror`` is set for inverted contrast: x becomes mirror - x before anything else.
    """

    low: float
    high: float
    offset: float
    divisor: float
    softplus: bool = False
    mirror: float | None = None

    def apply(self, values: Tensor) -> Tensor:
        """Scale a slice of any shape to the network's grey values, float32."""
        values = values.double() if self._is_wide() else values.float()
        return self._scaled(values, lambda x: x.logaddexp(x.new_zeros(()))).float()

    def apply_to_array(self, values: np.ndarray) -> np.ndarray:
        """Scale a slice as `apply` does, without torch."""
        return self._scaled(
            values.astype(np.float64 if self._is_wide() else np.float32),
            lambda x: np.logaddexp(x, np.float32(0)),
        ).astype(np.float32, copy=False)

    def _is_wide(self) -> bool:
        """Whether the scaling needs float64."""
        numbers = (self.low, self.high, self.offset, self.divisor, self.mirror or 0.0)
        return any(WIDE < abs(number) < math.inf for number in numbers)

    def _scaled(self, values: Grey, softplus: Callable[[Grey], Grey]) -> Grey:
        if self.mirror is not None:
            values = self.mirror - values
        if self.softplus:
            values = softplus(values)
        return (values.clip(self.low, self.high) - self.offset) / self.divisor


UNSCALED = IntensityScaling(-math.inf, math.inf, 0.0, 1.0)


def measure_intensity(
    source: SliceSource,
    method: Normalisation,
    *,
    invert: bool = False,
    tick: Callable[[int], None] | None = None,
) -> IntensityScaling:
    """Find the scaling of a volume, reading it slice by slice.

    ``min_max_positive_values``, ``softplus_minmax`` and ``min_max`` are the reference's and need
    every slice; ``robust`` clips to the 0.1 and 99.9 percentiles, subtracts the mean and divides by
    the standard deviation of the clipped values, all from at most 64 evenly spaced slices.
    ``tick`` is called with each z that was read; ``invert`` is for volumes with bright membranes.

    Raises
    ------
    ValueError
        The method is unknown, or the volume is constant or has no positive value to scale by.
    """
    if method not in get_args(Normalisation):
        known = ", ".join(get_args(Normalisation))
        raise ValueError(f"unknown normalisation {method!r}: expected one of {known}")
    if method == "robust":
        return _robust(_sample(source, tick), invert=invert)
    low, high = _extremes(source, tick)
    if low == high:
        raise ValueError(f"the volume is constant ({low:g} everywhere): {_nothing(low)}")
    mirror = low + high if invert else None
    if method == "min_max":
        return IntensityScaling(low, high, low, high - low, mirror=mirror)
    if method == "softplus_minmax":
        low, high = (float(np.logaddexp(value, 0.0)) for value in (low, high))
        if high - low < np.finfo(np.float32).tiny:
            raise ValueError(f"softplus leaves nothing of grey values <= {high:g}: use min_max")
        return IntensityScaling(low, high, low, high - low, softplus=True, mirror=mirror)
    if high <= 0:
        raise ValueError(
            f"min_max_positive_values needs positive grey values, the largest is {high:g}: "
            "use the normalisation min_max"
        )
    return IntensityScaling(0.0, high, 0.0, high, mirror=mirror)


def _nothing(value: float) -> str:
    """What there is in a constant volume, and what to do where its values may have differed."""
    lost = ", or float32 lost the differences of large numbers: subtract their mean first"
    return f"nothing to segment{lost if abs(value) > LOSSY else ''}"


def _extremes(source: SliceSource, tick: Callable[[int], None] | None) -> tuple[float, float]:
    """Smallest and largest grey value of the volume."""
    low, high = np.inf, -np.inf
    for z in range(source.shape[0]):
        plane = source.read_slice(z)
        low, high = min(low, float(plane.min())), max(high, float(plane.max()))
        if tick is not None:
            tick(z)
    return low, high


def _sample(source: SliceSource, tick: Callable[[int], None] | None) -> np.ndarray:
    """At most 4 million grey values of at most 64 evenly spaced slices, the same on every run."""
    depth, height, width = source.shape
    count = min(depth, SAMPLE_SLICES)
    share = SAMPLE_VALUES // count
    sample = []
    for i in range(count):
        z = (2 * i + 1) * depth // (2 * count)
        plane = source.read_slice(z).reshape(-1)
        if plane.size > share:
            chosen = np.random.default_rng(z).integers(0, height * width, share)
            plane = plane[chosen]
        sample.append(plane.astype(np.float32, copy=True))
        if tick is not None:
            tick(z)
    return np.concatenate(sample)


def _robust(sample: np.ndarray, *, invert: bool) -> IntensityScaling:
    """Percentile clipping and standardisation from sampled grey values."""
    if max(abs(float(sample.min())), abs(float(sample.max()))) > WIDE:
        sample = sample.astype(np.float64)
    low, high = (float(v) for v in np.percentile(sample, ROBUST_PERCENTILES))
    clipped = np.clip(sample, low, high)
    mean, deviation = float(clipped.mean(dtype=np.float64)), float(clipped.std(dtype=np.float64))
    if not deviation > 0:
        raise ValueError(
            f"the volume is constant ({mean:g} in 99.8 % of its voxels): {_nothing(mean)}"
        )
    if not invert:
        return IntensityScaling(low, high, mean, deviation)
    mirror = 2 * mean
    return IntensityScaling(mirror - high, mirror - low, mean, deviation, mirror=mirror)

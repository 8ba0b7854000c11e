"""VERB inspect: what to know of a tomogram before hours are spent on it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from etsam.options import SegmentOptions
from etsam.provenance import peak_rss_mb
from etsam.volume import Tomogram, open_tomogram

if TYPE_CHECKING:
    from etsam.stages import Stage

LOOKED_AT = 32  # slices, evenly spaced
TRIED = 6  # slices that the network is timed on
WARM_UP = 2  # of them are not counted
TOLERATED_ANISOTROPY = 1.05
ROUGHER = 1.5
"""How much rougher bytes must be as they are read before another sign is believed."""
SATURATED = 0.01  # share of voxels with the smallest or the largest value
OUTLYING = 10.0  # distance of the extremes, in widths of the middle 99.8 %
SCRATCH_BYTES = 8  # a voxel, while both stages' logits are kept on disk


@dataclass(frozen=True)
class Inspection:
    """What was found; ``flags`` are options of `etsam segment` that may help, ``remarks`` why.

    ``grey_values`` are smallest, 0.1 %, median, 99.9 % and largest of the slices that were looked
    at; ``seconds`` and ``memory_mb`` what segmenting will take here, null where not measured.
    """

    path: Path
    shape_zyx: tuple[int, int, int]
    dtype: str
    voxel_spacing_zyx_angstrom: tuple[float, float, float] | None
    origin_zyx_angstrom: tuple[float, float, float]
    grey_values: tuple[float, float, float, float, float]
    not_finite: float
    constant_slices: int
    slices_looked_at: int
    scratch_mb: float
    polarity: str | None = None
    seconds: float | None = None
    memory_mb: float | None = None
    remarks: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Forecast:
    """What segmenting takes on this machine, and how membranes look to the network."""

    polarity: str
    seconds: float
    memory_mb: float | None


def inspect(path: str | Path, forecast: Callable[[Tomogram], Forecast] | None = None) -> Inspection:
    """Look at a tomogram's header and at 32 of its slices.

    `forecast` measures what segmenting takes, see `forecaster`.

    Raises
    ------
    FileNotFoundError, ValueError
        It is not there, cannot be read, or has no finite voxel.
    """
    with closing(open_tomogram(path)) as tomogram:
        sample = _sample(tomogram)
        values = np.concatenate([plane.reshape(-1) for plane in sample])
        low, middle, high = (float(v) for v in np.percentile(values, (0.1, 50, 99.9)))
        found = (float(values.min()), low, middle, high, float(values.max()))
        constant = sum(float(plane.min()) == float(plane.max()) for plane in sample)
        remarks, flags = list(tomogram.notes), list[str]()
        _look_at_spacing(tomogram, remarks, flags)
        _look_at_values(tomogram, sample, found, remarks)
        if 0 < constant < len(sample):
            remarks.append(f"{constant} of {len(sample)} slices looked at are constant")
        expected = None if forecast is None or found[0] == found[-1] else forecast(tomogram)
        if expected is not None and expected.polarity == "bright":
            remarks.append(
                "membranes look bright: the network finds more of them in the inverted volume"
            )
            flags.append("--polarity bright")
        return Inspection(
            Path(path),
            tomogram.shape,
            str(tomogram.dtype),
            tomogram.voxel_spacing,
            tomogram.origin,
            found,
            tomogram.replaced_voxels / values.size,
            constant,
            len(sample),
            round(SCRATCH_BYTES * math.prod(tomogram.shape) / 1e6, 1),
            polarity=None if expected is None else expected.polarity,
            seconds=None if expected is None else round(expected.seconds, 1),
            memory_mb=None if expected is None else expected.memory_mb,
            remarks=remarks,
            flags=flags,
        )


def forecaster(
    options: SegmentOptions, load: Callable[[], list[Stage]]
) -> Callable[[Tomogram], Forecast]:
    """Return what times the network on a few slices from the middle of a tomogram."""

    def forecast(tomogram: Tomogram) -> Forecast:
        from etsam.pipeline import Volume, segment_slices
        from etsam.polarity import settle_polarity
        from etsam.tiling import Slab

        stages = load()
        settled = settle_polarity(Volume(tomogram, tomogram.voxel_spacing), stages[0], options)
        depth = tomogram.shape[0]
        thick = min(depth, TRIED)
        slab = Slab(tomogram, (depth - thick) // 2, thick)
        ends: dict[str, list[float]] = {}

        def note(_fraction: float, message: str) -> None:
            stage, colon, _ = message.partition(": slice")
            if colon:
                ends.setdefault(stage, []).append(time.perf_counter())

        for _ in segment_slices(Volume(slab, tomogram.voxel_spacing), stages, settled, note):
            pass
        seconds = sum(depth * _pace(times) for name, times in ends.items() if "stage" in name)
        return Forecast(settled.polarity, seconds, peak_rss_mb())

    return forecast


def _pace(ends: list[float]) -> float:
    """Seconds a slice, the first ones left out where there are enough."""
    counted = ends[min(WARM_UP, len(ends) - 2) :] if len(ends) > 1 else ends
    return (counted[-1] - counted[0]) / max(1, len(counted) - 1)


def _sample(tomogram: Tomogram) -> list[np.ndarray]:
    depth = tomogram.shape[0]
    count = min(depth, LOOKED_AT)
    return [tomogram.read_slice((2 * i + 1) * depth // (2 * count)) for i in range(count)]


def _look_at_spacing(tomogram: Tomogram, remarks: list[str], flags: list[str]) -> None:
    spacing = tomogram.voxel_spacing
    if spacing is None:
        remarks.append("the voxel spacing is not known: the header says 0, 1 Å or nonsense")
        flags.append("--voxel-spacing Å")
    elif max(spacing) > TOLERATED_ANISOTROPY * min(spacing):
        z, y, x = spacing
        remarks.append(f"voxels are not cubes: {z:g} x {y:g} x {x:g} Å (z, y, x)")


def _look_at_values(
    tomogram: Tomogram, sample: list[np.ndarray], found: tuple[float, ...], remarks: list[str]
) -> None:
    smallest, low, _, high, largest = found
    if smallest == largest:
        remarks.append(f"the volume is constant ({smallest:g}): there is nothing to segment")
        return
    if tomogram.replaced_voxels:
        remarks.append(f"{tomogram.replaced_voxels:,} voxels looked at are NaN or infinite")
    if tomogram.dtype.itemsize == 1 and _roughness(sample) > ROUGHER * _roughness(
        [_other_sign(plane) for plane in sample]
    ):
        other = "unsigned" if tomogram.dtype.kind == "i" else "signed"
        remarks.append(f"bytes are smoother when read as {other}: the header's sign may be wrong")
    counts = [int(np.count_nonzero(plane == v)) for v in (smallest, largest) for plane in sample]
    share = sum(counts) / sum(plane.size for plane in sample)
    if share > SATURATED:
        remarks.append(f"{share:.1%} of the voxels have the smallest or the largest value")
    width = high - low
    if max(largest - high, low - smallest) > OUTLYING * width:
        remarks.append("a few voxels are far from all others: gold, or hot pixels")


def _roughness(sample: list[np.ndarray]) -> float:
    """Mean difference of neighbours along x."""
    return float(
        np.mean(
            [np.abs(np.diff(plane, axis=1)).mean() for plane in sample if plane.shape[1] > 1]
            or [0.0]
        )
    )


def _other_sign(plane: np.ndarray) -> np.ndarray:
    """Bytes as they are with the other sign."""
    swapped: np.ndarray = np.where(
        plane < 0, plane + 256, np.where(plane > 127, plane - 256, plane)
    )
    return swapped


def summary(found: Inspection) -> dict[str, Any]:
    """Plain values for JSON."""
    return {**vars(found), "path": str(found.path)}

"""VERB inspect: what to know of a tomogram before hours are spent on it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from etsam.lamella import Lamella, find_lamella, texture
from etsam.options import SegmentOptions
from etsam.provenance import peak_rss_mb, reset_peaks
from etsam.volume import Tomogram, open_tomogram

if TYPE_CHECKING:
    from etsam.stages import Stage

LOOKED_AT = 64  # slices, evenly spaced
SAMPLED = 1 << 22  # voxels of them for percentiles
TRIED = 7  # slices that the network is timed on
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
    at; ``lamella`` is where the sample lies along Z, null where its faces are not seen; ``seconds``
    and ``memory_mb`` what segmenting will take here, null where not measured.
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
    lamella: Lamella | None = None
    polarity: str | None = None
    seconds: float | None = None
    memory_mb: float | None = None
    remarks: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)

    def in_nm(self, slices: int) -> float | None:
        """A thickness in slices as nm; None where the voxel spacing is unknown."""
        spacing = self.voxel_spacing_zyx_angstrom
        return None if spacing is None else round(slices * spacing[0] / 10, 1)


@dataclass
class _Sample:
    """What was seen of the slices looked at, which are not kept."""

    places: list[int] = field(default_factory=list)
    extremes: list[tuple[float, float]] = field(default_factory=list)
    extreme_voxels: list[tuple[int, int]] = field(default_factory=list)
    some: list[np.ndarray] = field(default_factory=list)
    roughness: list[tuple[float, float]] = field(default_factory=list)
    textures: list[float] = field(default_factory=list)
    voxels: int = 0

    def constant(self) -> int:
        """Number of slices with one value only."""
        return sum(low == high for low, high in self.extremes)

    def grey_values(self) -> tuple[float, float, float, float, float]:
        """Smallest, 0.1 %, median, 99.9 % and largest value."""
        middle = np.percentile(np.concatenate(self.some), (0.1, 50, 99.9))
        smallest = min(low for low, _ in self.extremes)
        largest = max(high for _, high in self.extremes)
        low, median, high = (float(value) for value in middle)
        return smallest, low, median, high, largest

    def at_the_ends(self) -> float:
        """Share of voxels with the smallest or the largest value of all."""
        ends = (min(low for low, _ in self.extremes), max(high for _, high in self.extremes))
        pairs = zip(self.extremes, self.extreme_voxels, strict=True)
        counts = [
            count
            for values, numbers in pairs
            for end, value, count in zip(ends, values, numbers, strict=True)
            if value == end
        ]
        return sum(counts) / self.voxels


@dataclass(frozen=True)
class Forecast:
    """What segmenting takes on this machine, and how membranes look to the network."""

    polarity: str
    seconds: float
    memory_mb: float | None


def inspect(path: str | Path, forecast: Callable[[Tomogram], Forecast] | None = None) -> Inspection:
    """Look at a tomogram's header and at 64 of its slices.

    `forecast` measures what segmenting takes, see `forecaster`.

    Raises
    ------
    FileNotFoundError, ValueError
        It is not there, cannot be read, or has no finite voxel.
    """
    with closing(open_tomogram(path)) as tomogram:
        sample = _sample(tomogram)
        found, constant = sample.grey_values(), sample.constant()
        remarks, flags = list(tomogram.notes), list[str]()
        _look_at_spacing(tomogram, remarks, flags)
        _look_at_values(tomogram, sample, found, remarks)
        if 0 < constant < len(sample.places):
            remarks.append(f"{constant} of {len(sample.places)} slices looked at are constant")
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
            tomogram.replaced_voxels / sample.voxels,
            constant,
            len(sample.places),
            round(SCRATCH_BYTES * math.prod(tomogram.shape) / 1e6, 1),
            lamella=find_lamella(sample.textures, sample.places, tomogram.shape[0]),
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

        reset_peaks()
        stages = load()
        settled = settle_polarity(Volume(tomogram, tomogram.voxel_spacing), stages[0], options)
        depth = tomogram.shape[0]
        thick = min(depth, TRIED)
        slab = Slab(tomogram, (depth - thick) // 2, thick)
        ends: dict[str, list[tuple[int, float]]] = {}

        def note(_fraction: float, message: str) -> None:
            stage, colon, place = message.partition(": slice")
            if colon:
                ends.setdefault(stage, []).append((int(place.split()[0]), time.perf_counter()))

        for _ in segment_slices(Volume(slab, tomogram.voxel_spacing), stages, settled, note):
            pass
        seconds = sum(depth * _pace(times) for name, times in ends.items() if "stage" in name)
        return Forecast(settled.polarity, seconds, peak_rss_mb())

    return forecast


def _pace(ends: list[tuple[int, float]]) -> float:
    """Seconds a slice of the volume, the first ones left out where there are enough.

    `ends` are the slices that were tracked, which need not be all, and when.
    """
    slices, times = zip(*ends[max(0, min(WARM_UP, len(ends) - 2)) :], strict=True)
    return float((times[-1] - times[0]) / max(1, slices[-1] - slices[0]))


def _sample(tomogram: Tomogram) -> _Sample:
    """Look at slices one by one."""
    depth, *sides = tomogram.shape
    count = min(depth, LOOKED_AT)
    step = max(1, count * math.prod(sides) // SAMPLED)
    spacing = None if tomogram.voxel_spacing is None else tomogram.voxel_spacing[1]
    sample = _Sample()
    for number in range(count):
        z = (2 * number + 1) * depth // (2 * count)
        plane = tomogram.read_slice(z)
        low, high = float(plane.min()), float(plane.max())
        sample.places.append(z)
        sample.extremes.append((low, high))
        sample.extreme_voxels.append(
            (int(np.count_nonzero(plane == low)), int(np.count_nonzero(plane == high)))
        )
        sample.some.append(plane.reshape(-1)[::step].copy())
        if tomogram.dtype.itemsize == 1 and plane.shape[1] > 1:
            sample.roughness.append((_roughness(plane), _roughness(_other_sign(plane))))
        sample.textures.append(texture(plane, spacing))
        sample.voxels += plane.size
    return sample


def _look_at_spacing(tomogram: Tomogram, remarks: list[str], flags: list[str]) -> None:
    spacing = tomogram.voxel_spacing
    if spacing is None:
        flags.append("--voxel-spacing Å")
    elif max(spacing) > TOLERATED_ANISOTROPY * min(spacing):
        z, y, x = spacing
        remarks.append(f"voxels are not cubes: {z:g} x {y:g} x {x:g} Å (z, y, x)")


def _look_at_values(
    tomogram: Tomogram, sample: _Sample, found: tuple[float, ...], remarks: list[str]
) -> None:
    smallest, low, _, high, largest = found
    if smallest == largest:
        remarks.append(f"the volume is constant ({smallest:g}): there is nothing to segment")
        return
    if tomogram.replaced_voxels:
        remarks.append(f"{tomogram.replaced_voxels:,} voxels looked at are NaN or infinite")
    read, other_sign = np.mean(sample.roughness, axis=0) if sample.roughness else (0.0, 0.0)
    if read > ROUGHER * other_sign:
        other = "unsigned" if tomogram.dtype.kind == "i" else "signed"
        remarks.append(f"bytes are smoother when read as {other}: the header's sign may be wrong")
    share = sample.at_the_ends()
    if share > SATURATED:
        remarks.append(f"{share:.1%} of the voxels have the smallest or the largest value")
    width = high - low
    if max(largest - high, low - smallest) > OUTLYING * width:
        remarks.append("a few voxels are far from all others: gold, or hot pixels")


def _roughness(plane: np.ndarray) -> float:
    """Mean difference of neighbours along x."""
    return float(np.abs(np.diff(plane, axis=1)).mean(dtype=np.float64))


def _other_sign(plane: np.ndarray) -> np.ndarray:
    """Bytes as they are with the other sign."""
    swapped: np.ndarray = np.where(
        plane < 0, plane + 256, np.where(plane > 127, plane - 256, plane)
    )
    return swapped


def summary(found: Inspection) -> dict[str, Any]:
    """Plain values for JSON; thicknesses also in nm."""
    slab = found.lamella
    values = {
        "thickness_nm": slab and found.in_nm(slab.thickness),
        "thickness_range_nm": slab and [found.in_nm(slab.least), found.in_nm(slab.most)],
    }
    return {**asdict(found), "path": str(found.path), **values}

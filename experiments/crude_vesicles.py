"""Vesicles of another, simple simulator: what the model knows that is not a habit of its own simulator.

    python experiments/crude_vesicles.py crude/

Ellipsoid shells with blobs in and around them, gold beads and the edge of a carbon film; contrast transfer,
a missing wedge and noise are put on in Fourier space, no tilt series is projected. Three tomograms of 9.5 Å,
``crude0.mrc`` to ``crude2.mrc``, with ``_membrane.mrc`` beside them; caps in the wedge are -1.
`etsam segment`, then `etsam evaluate`, score them.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import mrcfile
import numpy as np
from script import run_script

SHAPE, SPACING = (96, 384, 384), 9.5  # Å
HALF = 2.2
"""Half the thickness of a wall [voxels]."""
LEAN = 50.0  # degrees
WEDGE = 60.0  # degrees
Volume = np.ndarray


def vesicles(rng: np.random.Generator, count: int) -> tuple[Volume, Volume, Volume]:
    """Density, labels and, for what comes inside, the number of the vesicle that a voxel lies in."""
    density = np.zeros(SHAPE, np.float32)
    labels = np.zeros(SHAPE, np.int8)
    inside = np.zeros(SHAPE, np.int16)
    for number in range(1, count + 1):
        axes = rng.uniform(9, 45) * rng.uniform(0.8, 1.25, 3)
        middle = rng.uniform(0, SHAPE)
        block, grid = _around(middle, axes + 10)
        scaled = [x / a for x, a in zip(grid, axes, strict=True)]
        length = np.sqrt(sum(s * s for s in scaled))
        slopes = [s / a for s, a in zip(scaled, axes, strict=True)]
        steep = np.sqrt(sum(s * s for s in slopes)) / np.maximum(length, 1e-6)
        distance = (length - 1) / np.maximum(steep, 1e-6)
        near = distance < 8
        if (near & (inside[block] > 0)).sum() > 0.02 * near.sum():
            continue
        density[block] += rng.uniform(0.7, 1.3) * np.exp(-0.5 * (distance / 1.6) ** 2)
        leaning = np.abs(slopes[0]) > math.sin(math.radians(LEAN)) * steep * length
        wall = np.abs(distance) < HALF
        labels[block][wall] = np.where(leaning[wall], -1, 1)
        inside[block][distance < -HALF] = number
    return density, labels, inside


def clutter(rng: np.random.Generator, density: Volume, inside: Volume) -> None:
    """Blobs, crowded in some vesicles; gold beads; a carbon film beyond a circle."""
    crowded = rng.random(int(inside.max()) + 1) * (rng.random(int(inside.max()) + 1) < 0.6)
    crowded[0] = 0.05
    for _ in range(6000):
        place = rng.integers(4, np.array(SHAPE) - 4)
        if rng.random() < crowded[inside[tuple(place)]]:
            _blob(density, place, rng.uniform(1.2, 2.5), rng.uniform(0.6, 1.8))
    for _ in range(int(rng.integers(2, 12))):
        _blob(density, rng.integers(6, np.array(SHAPE) - 6), 3.0, 14.0)
    _, y, x = np.ogrid[tuple(slice(n) for n in SHAPE)]
    film = np.hypot(y - SHAPE[1] / 2, x + SHAPE[2] * 0.75) > SHAPE[2] * 1.65
    grain = rng.normal(0.8, 1.0, SHAPE).astype(np.float32)
    density[30:60] += (film * grain)[30:60]


def _blob(density: Volume, place: np.ndarray, width: float, height: float) -> None:
    block, grid = _around(place, np.full(3, 3 * width))
    square = sum(x * x for x in grid)
    density[block] += height * np.exp(-0.5 * square / width**2)


def _around(middle: np.ndarray, reach: np.ndarray) -> tuple[tuple[slice, ...], list[np.ndarray]]:
    """The part of the volume round a point, and how far its voxels lie from it along each axis."""
    low = np.maximum(np.floor(middle - reach), 0).astype(int)
    high = np.minimum(np.ceil(middle + reach) + 1, SHAPE).astype(int)
    block = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    return block, [x - m for x, m in zip(np.ogrid[block], middle, strict=True)]


def imaged(rng: np.random.Generator, density: Volume, noise: float) -> Volume:
    """Contrast transfer and a missing wedge along the tilts about y, noise of the same wedge."""
    z, y, x = np.meshgrid(
        np.fft.fftfreq(SHAPE[0]), np.fft.fftfreq(SHAPE[1]), np.fft.rfftfreq(SHAPE[2]), indexing="ij"
    )
    square = (z * z + y * y + x * x) / SPACING**2
    defocus, wavelength = rng.uniform(3e4, 5e4), 0.0197  # Å, at 300 kV
    transfer = np.sin(math.pi * wavelength * defocus * square + 0.1) * np.exp(-square * 25.0**2)
    seen = np.abs(z) <= math.tan(math.radians(WEDGE)) * np.abs(x) + 1e-9
    signal = np.fft.irfftn(np.fft.rfftn(density) * transfer * seen, SHAPE, axes=(0, 1, 2))
    grain = np.fft.irfftn(np.fft.rfftn(rng.normal(size=SHAPE)) * seen, SHAPE, axes=(0, 1, 2))
    total = -signal / signal.std() - noise * grain / grain.std()
    scaled: Volume = (total / total.std()).astype(np.float32)
    return scaled


def write(path: Path, data: Volume) -> None:
    """Write a volume as MRC."""
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(data)
        file.voxel_size = SPACING


def main() -> None:
    """Make three of them, each noisier than the one before."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for number, (count, noise) in enumerate(((90, 1.5), (160, 2.2), (60, 3.0))):
        rng = np.random.default_rng(7_000 + number)
        density, labels, inside = vesicles(rng, count)
        clutter(rng, density, inside)
        write(given.folder / f"crude{number}.mrc", imaged(rng, density, noise))
        write(given.folder / f"crude{number}_membrane.mrc", labels)


if __name__ == "__main__":
    run_script(main)

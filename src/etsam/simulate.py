"""Simulate tomograms with exact membrane masks: a random sample, its tilt series, its reconstruction."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import torch

from etsam.simulation.recipe import SimulationOptions, draw
from etsam.simulation.render import render
from etsam.simulation.suite import SUITE_SHAPE, held_out_suite
from etsam.storage import write_text

ALL_DRAWN = SimulationOptions()


@dataclass(frozen=True)
class Simulation:
    """A simulated tomogram (Z, Y, X) with its labels: 1 membrane, 0 background, -1 ignore."""

    tomogram: np.ndarray
    mask: np.ndarray
    voxel_spacing: float
    parameters: dict[str, Any]


def simulate(
    seed: int,
    shape: tuple[int, int, int] = (64, 256, 256),
    options: SimulationOptions = ALL_DRAWN,
    device: str = "cpu",
) -> Simulation:
    """Simulate one tomogram; the same seed, shape and options give the same tomogram.

    Returns
    -------
    Simulation
        `tomogram` float32 (Z, Y, X) of mean 0 and standard deviation 1; `mask` int8: 1 within half
        the labelled thickness of a bilayer's mid-surface, -1 where the missing wedge hides it.

    Raises
    ------
    ValueError
        `shape` is too small or the preset unknown.
    """
    if min(shape) < 16:
        raise ValueError(f"shape {shape} is too small to simulate; use at least 16 voxels an axis")
    rng = np.random.default_rng(seed)
    recipe = draw(rng, options)
    with torch.device(device):
        tomogram, labels = render(recipe, shape, options, rng)
    parameters = {"seed": seed, "shape": list(shape), **asdict(recipe), "given": asdict(options)}
    return Simulation(
        tomogram.cpu().numpy(), labels.cpu().numpy(), recipe.voxel_spacing, parameters
    )


def quantised(tomogram: np.ndarray, percentiles: tuple[float, float]) -> np.ndarray:
    """Scale a tomogram between two percentiles to int8, -127..127."""
    low, high = np.percentile(tomogram[::2, ::2, ::2], percentiles)
    scaled = (tomogram - low) * (254.0 / max(high - low, 1e-12)) - 127.0
    return np.asarray(np.rint(scaled).clip(-127, 127), np.int8)


def _write_mrc(path: Path, data: np.ndarray, spacing: float) -> None:
    partial = path.with_name(path.name + ".partial")
    with mrcfile.new(partial, overwrite=True) as mrc:
        mrc.set_data(data)
        mrc.voxel_size = spacing
    os.replace(partial, path)


def simulate_one(
    folder: Path,
    seed: int,
    shape: tuple[int, int, int],
    options: SimulationOptions = ALL_DRAWN,
    name: str | None = None,
) -> Path:
    """Write one pair unless it is there: `{name}.mrc`, `{name}_membrane.mrc`, `{name}.json`."""
    stem = name or f"sim_{seed:06d}"
    target = folder / f"{stem}.mrc"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    result = simulate(seed, shape, options)
    clip = result.parameters["clip_percent"]
    _write_mrc(folder / f"{stem}_membrane.mrc", result.mask, result.voxel_spacing)
    write_text(folder / f"{stem}.json", json.dumps(result.parameters, indent=1))
    _write_mrc(target, quantised(result.tomogram, (clip, 100.0 - clip)), result.voxel_spacing)
    return target


def _limit_threads() -> None:
    torch.set_num_threads(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread, which is as fast here, and leave the caller's setting as it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def simulate_many(
    folder: Path | str,
    seeds: Iterable[int],
    shape: tuple[int, int, int] = (64, 256, 256),
    workers: int = 1,
    options: SimulationOptions = ALL_DRAWN,
) -> list[Path]:
    """Write a pair per seed into `folder`, skipping those that exist; one torch thread a worker."""
    jobs = [(Path(folder), seed, shape, options) for seed in seeds]
    if workers == 1:
        with _one_thread():
            return [simulate_one(*job) for job in jobs]
    with ProcessPoolExecutor(workers, initializer=_limit_threads) as pool:
        return list(pool.map(simulate_one, *zip(*jobs, strict=True)))


def simulate_suite(folder: Path | str, shapes: Path | None = None) -> list[Path]:
    """Write the held-out suite into `folder`; with a folder of segmentations, real shapes too."""
    with _one_thread():
        return [
            simulate_one(Path(folder), entry.seed, SUITE_SHAPE, entry.options, entry.name)
            for entry in held_out_suite(shapes)
        ]

"""Simulate tomograms with exact membrane masks: a random sample, its tilt series, its reconstruction."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import torch
from scipy.fft import next_fast_len

from etsam.simulation import recipe
from etsam.simulation.imaging import (
    back_project,
    image_views,
    noise_views,
    project,
    weight_views,
)
from etsam.simulation.labels import membrane_labels
from etsam.simulation.recipe import Recipe, SimulationOptions
from etsam.simulation.sample import build_sample
from etsam.simulation.scene import Scene


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
    options: SimulationOptions = SimulationOptions(),
) -> Simulation:
    """Simulate one tomogram; the same seed, shape and options give the same tomogram.

    Returns
    -------
    Simulation
        `tomogram` float32 (Z, Y, X) of mean 0 and standard deviation 1; `mask` int8: 1 within half
        the labelled thickness of a bilayer's mid-surface, -1 where the missing wedge hides it.
    """
    if min(shape) < 16:
        raise ValueError(f"shape {shape} is too small to simulate; use at least 16 voxels an axis")
    rng = np.random.default_rng(seed)
    plan = recipe.draw(rng, options)
    pad = [next_fast_len(n + 2 * plan.margin, real=True) for n in shape[1:]]
    depth = shape[0] + 2 * plan.depth_margin
    swap = plan.tilt.axis == "x"
    scene = build_sample((depth, *(pad[::-1] if swap else pad)), plan, rng)
    inner = tuple((p - n) // 2 for p, n in zip(pad, shape[1:], strict=True))
    low = (plan.depth_margin, *(inner[::-1] if swap else inner))
    size = (shape[0], *(shape[:0:-1] if swap else shape[1:]))
    crop = tuple(slice(o, o + n) for o, n in zip(low, size, strict=True))
    labels = membrane_labels(scene, plan.tilt)[crop]
    image, ratio = _image(scene, labels, plan, rng, crop)
    volume, mask = image.numpy(), labels.numpy()
    if swap:
        volume, mask = volume.transpose(0, 2, 1), mask.transpose(0, 2, 1)
    parameters = {"seed": seed, "shape": list(shape), "contrast_to_noise": ratio, **asdict(plan)}
    return Simulation(
        np.ascontiguousarray(volume), np.ascontiguousarray(mask), plan.voxel_spacing, parameters
    )


def _image(
    scene: Scene,
    labels: torch.Tensor,
    plan: Recipe,
    rng: np.random.Generator,
    crop: tuple[slice, ...],
) -> tuple[torch.Tensor, float]:
    """Tilt series and reconstruction of a scene, cropped; also its contrast-to-noise ratio."""
    depth, *plane = scene.shape
    frame = (plane[0], plane[1])
    center = depth / 2
    spacing = plan.voxel_spacing
    clean = image_views(project(scene.density, plan.tilt, center), plan.tilt, frame, spacing, rng)
    noise = noise_views(plan.tilt, frame, rng)
    inner_depth = crop[0].stop - crop[0].start
    offset = center - crop[0].start
    volumes = []
    for views in (clean, noise):
        weighted = weight_views(views, plan.tilt, plan.reconstruction, frame, spacing)
        whole = back_project(weighted, inner_depth, frame[1], plan.tilt, offset)
        volumes.append(whole[:, crop[1], crop[2]])
    signal, grain = volumes
    distance = scene.distance[crop].abs()
    visible = (distance < 25.0) & (labels > 0)
    contrast = membrane_contrast(signal, visible, distance > 300.0)
    grain *= contrast / (plan.contrast_to_noise * grain.std())
    total = signal + grain
    total = (total - total.mean()) / total.std().clamp(min=1e-12)
    if not plan.bright_membranes:
        total = -total
    return total.float(), plan.contrast_to_noise


def membrane_contrast(signal: torch.Tensor, visible: torch.Tensor, far: torch.Tensor) -> float:
    """Mean of a noise-free reconstruction on visible membranes over its median far from them.

    Twice the reconstruction's spread where there is no membrane.
    """
    if int(visible.sum()) < 200 or int(far.sum()) < 200:
        return 2.0 * float(signal.std())
    contrast = float(signal[visible].mean() - signal[far].median())
    return max(contrast, 0.3 * float(signal[visible].std()))


def quantised(tomogram: np.ndarray, percentiles: tuple[float, float]) -> np.ndarray:
    """Scale a tomogram between two percentiles to int8, -127..127."""
    low, high = np.percentile(tomogram[::2, ::2, ::2], percentiles)
    scaled = (tomogram - low) * (254.0 / max(high - low, 1e-12)) - 127.0
    return np.rint(scaled).clip(-127, 127).astype(np.int8)


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
    options: SimulationOptions = SimulationOptions(),
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
    (folder / f"{stem}.json").write_text(json.dumps(result.parameters, indent=1))
    _write_mrc(target, quantised(result.tomogram, (clip, 100.0 - clip)), result.voxel_spacing)
    return target


def _limit_threads() -> None:
    torch.set_num_threads(1)


def simulate_many(
    folder: Path | str,
    seeds: Iterable[int],
    shape: tuple[int, int, int] = (64, 256, 256),
    workers: int = 1,
    options: SimulationOptions = SimulationOptions(),
) -> list[Path]:
    """Write a pair per seed into `folder`, skipping those that exist; one torch thread a worker."""
    jobs = [(Path(folder), seed, shape, options) for seed in seeds]
    if workers == 1:
        _limit_threads()
        return [simulate_one(*job) for job in jobs]
    with ProcessPoolExecutor(workers, initializer=_limit_threads) as pool:
        return list(pool.map(simulate_one, *zip(*jobs, strict=True)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of `python -m etsam.simulate`."""
    parser = argparse.ArgumentParser(prog="python -m etsam.simulate", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", default="0:1", help="first:last (exclusive), or one number")
    parser.add_argument("--shape", default="64,256,256", help="Z,Y,X in voxels")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--preset", default="any", choices=recipe.PRESETS)
    given = parser.parse_args(arguments)
    first, _, last = given.seeds.partition(":")
    seeds = range(int(first), int(last or int(first) + 1))
    z, y, x = (int(n) for n in given.shape.split(","))
    options = SimulationOptions(preset=given.preset)
    simulate_many(given.folder, seeds, (z, y, x), given.workers, options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

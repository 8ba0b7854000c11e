"""The tomograms that the recipes train on: what to simulate, and what the networks see of it.

    python experiments/tomograms.py simulated/ --shapes SEGMENTATIONS/ [--stage 1] [--count 300]

`train_resident.py` and `finetune.py` take them; slices are blurred before they are kept as
bytes, since their finest detail is noise in real tomograms and more than that in simulated ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import mrcfile
import numpy as np
from script import run_script
from train_compact import DARK, FLAT, cluttered, drawn

from etsam.frames import blurred
from etsam.intensity import IntensityScaling, measure_intensity
from etsam.simulate import limit_threads, simulate_one
from etsam.simulation.recipe import SimulationOptions
from etsam.simulation.segmentations import RealShape
from etsam.train import COMPACT_SPEC
from etsam.volume import open_tomogram

DEEP, DEEPEST = (128, 256, 256), (208, 256, 256)
SHAPES = {
    "midsurfer_Fig13A.npz": ((1,), 12.0),
    "midsurfer_Fig13B.npz": ((1,), 12.0),
    "membrain_v1_T1S2M15.npz": ((1,), 13.68),
    "membrain_v1_T1S4M8.npz": ((1,), 13.68),
}
"""Segmentations that the held-out suite does not use: their labels and spacing [Å]."""
KINDS = {
    "any": (0.25, 1.0, 1.0),
    "soft": (0.2, 1.2, 1.2),
    "organelle": (0.16, 1.0, 1.0),
    "sparse": (0.14, 1.2, 2.2),
    "deep": (0.13, 1.6, 1.6),
    "vesicles": (0.14, 1.1, 1.1),
    "whole": (0.24, 1.8, 2.2),
    "small": (0.12, 1.3, 1.4),
    "spiked": (0.0, 1.5, 1.5),
}
"""Part of the tomograms that are of a kind, and how often clips come from one of them in each stage.

"spiked" ones came last, in rounds that ask for their part (`--share spiked=0.9`).
"""
CLEAR = 0.4
"""Part of the tomograms left as their kind is, without more filaments, gold and carbon."""
FIRST_SEEDS = {1: 3_000_000, 2: 3_100_000}
GHOSTS = 200.0  # Å
LEANS = (37.0, 60.0)  # degrees
FADING = {"organelle": 0.6, "deep": 0.6, "soft": 0.5}
"""Part of the tomograms of a kind whose contrast fades in places, if it is not 0.25."""
THICKNESSES = (1, 1, 1, 2, 4)
LEAST = 4
"""Slices that a clip needs: thinner slabs repeat their last one, as windows over them do."""
FAR = 27, 40
"""Slices so far away tell how a wall that cannot be seen any more was closing."""
SPEC = replace(
    COMPACT_SPEC,
    offsets=(*(-z for z in reversed(FAR)), *COMPACT_SPEC.offsets, *FAR),
    blur=1.0,
)
"""Frames of both stages, blurred alike, so that one store holds the slices of both."""
Job = tuple[Path, int, SimulationOptions, tuple[int, int, int], float]
Soft = tuple[np.ndarray, np.ndarray, IntensityScaling]
"""Slices (Z, Y, X) int8, labels and how the slices are scaled."""


def jobs(
    folder: Path,
    stage: int,
    shapes: Path | None,
    count: int,
    parts: Mapping[str, float] = MappingProxyType({}),
) -> list[Job]:
    """What to simulate for a stage; `parts` of kinds take the place of those in `KINDS`, beside the others'."""
    shares = np.array([parts.get(kind, share) for kind, (share, *_) in KINDS.items()])
    listed = []
    for number in range(count):
        seed = FIRST_SEEDS[stage] + number
        random = np.random.default_rng(seed)
        kind = str(random.choice(list(KINDS), p=shares / shares.sum()))
        options = (
            drawn_whole(random)
            if kind == "whole"
            else _varied(kind, _draw(kind, shapes, random), random)
        )
        if random.random() > CLEAR:
            seed, options = cluttered((seed, options))
        shape = {"deep": DEEP, "whole": DEEPEST}.get(kind, FLAT)
        listed.append((folder, seed, options, shape, KINDS[kind][stage]))
    return listed


def _draw(kind: str, shapes: Path | None, random: np.random.Generator) -> SimulationOptions:
    """Options of a kind; spacings are those at which frames are slices."""
    if kind == "any" or (kind == "soft" and random.random() < 0.4):
        spacing = round(float(np.exp(random.normal(np.log(11.5), 0.2)).clip(8, 16)), 1)
        options = replace(DARK, voxel_spacing=spacing)
        return options if kind == "any" else replace(options, blur=drawn_blur(random, 5, 19))
    if kind == "soft":
        preset = str(random.choice(["organelle", "organelle", "vesicles"]))
        options = drawn(random, preset, (9, 15), (0.4, 1.6), (25, 50))
        return replace(options, blur=drawn_blur(random, 5, 19))
    if kind == "organelle":
        return drawn(random, "organelle", (10, 15), (0.4, 1.0), (25, 42))
    if kind == "deep":
        preset = str(random.choice(["organelle", "organelle", "organelle", "vesicles"]))
        options = drawn(random, preset, (10, 15), (0.4, 1.4), (25, 46))
        return replace(options, blur=drawn_blur(random, 4, 19))
    if kind == "vesicles":
        options = drawn(random, "vesicles", (8, 11), (0.5, 2.2), (35, 62))
        return replace(
            options,
            blur=drawn_blur(random, 0, 14),
            carbon=bool(random.random() < 0.45) or None,
            gold=int(random.integers(1, 20)) if random.random() < 0.6 else None,
        )
    if kind == "small":
        return _small(random)
    if kind == "spiked":
        return _spiked(shapes, random)
    return _sparse(shapes, random)


def _small(random: np.random.Generator) -> SimulationOptions:
    """Many small vesicles, soft and noisy or sharp and clear, at the spacings of whole cells too."""
    smallest = float(random.uniform(130, 210))
    return replace(
        drawn(random, "vesicles", (9.5, 16), (0.5, 3.0), (28, 62)),
        vesicles=int(random.integers(10, 60)),
        radii=(smallest, smallest * float(random.uniform(1.3, 2.6))),
        blur=drawn_blur(random, 0, 14),
        carbon=bool(random.random() < 0.35),
        gold=int(random.integers(1, 20)) if random.random() < 0.6 else None,
    )


def _sparse(shapes: Path | None, random: np.random.Generator) -> SimulationOptions:
    """Few or no membranes in view; real shapes in seven tenths, where there are some."""
    options = drawn(random, "empty", (9, 14), (0.6, 2.0), (30, 62))
    empty = replace(options, blur=drawn_blur(random, 0, 14))
    if shapes is None or random.random() < 0.3:
        return empty
    return replace(empty, shapes=_real_shape(shapes, random))


def _real_shape(shapes: Path, random: np.random.Generator) -> tuple[RealShape]:
    name = str(random.choice(list(SHAPES)))
    labels, spacing = SHAPES[name]
    return (RealShape(str(shapes / name), spacing, labels),)


def _spiked(shapes: Path | None, random: np.random.Generator) -> SimulationOptions:
    """Membranes under many ectodomains, which look dotted; real shapes in half, on both sides there."""
    if shapes is not None and random.random() < 0.5:
        options = drawn(random, "empty", (9, 14), (0.6, 2.5), (30, 62))
        options = replace(options, shapes=_real_shape(shapes, random))
    else:
        preset = str(random.choice(["organelle", "organelle", "vesicles", "virus", "cell"]))
        options = drawn(random, preset, (8, 14), (0.5, 2.0), (28, 62))
    coverage = round(float(random.uniform(0.15, 1.0)), 2)
    return replace(options, spikes=coverage, blur=drawn_blur(random, 0, 14))


def add_share(parser: argparse.ArgumentParser) -> None:
    """Let the parts of kinds be chosen: ``dict(given.share)`` is what `jobs` takes."""
    told = "another weight of a kind of tomograms than in KINDS, such as sparse=0.24; repeat"
    parser.add_argument("--share", type=_share, action="append", default=[], help=told)


def _share(text: str) -> tuple[str, float]:
    """A kind of tomograms and its weight beside the parts in `KINDS`, from KIND=WEIGHT."""
    kind, _, weight = text.partition("=")
    if kind not in KINDS:
        raise argparse.ArgumentTypeError(f"{kind!r} is none of {', '.join(KINDS)}")
    if not 0 <= float(weight) < np.inf:
        raise argparse.ArgumentTypeError(f"{weight} is no weight: expected a number from 0 on")
    return kind, float(weight)


def _varied(
    kind: str, options: SimulationOptions, random: np.random.Generator
) -> SimulationOptions:
    """Contrast that fades in places, and leaning membranes labelled up to some lean."""
    fading = drawn_fading(random, FADING.get(kind, 0.25), 0.3, 0.9)
    lean = round(float(random.uniform(*LEANS)), 1)
    return replace(options, lean=lean, ghosts=GHOSTS, fading=fading)


def drawn_fading(random: np.random.Generator, part: float, low: float, high: float) -> float:
    """How much contrast falls, in a part of the tomograms; 0 in the others."""
    return round(float(random.uniform(low, high)), 2) if random.random() < part else 0.0


def drawn_blur(random: np.random.Generator, low: float, high: float) -> float:
    """A standard deviation in Å."""
    return round(float(random.uniform(low, high)), 1)


def drawn_whole(random: np.random.Generator) -> SimulationOptions:
    """Organelles from pole to pole, faint, their walls labelled up to where they lie nearly flat."""
    options = drawn(random, "organelle", (10, 15), (0.3, 0.8), (25, 46))
    return replace(
        options,
        blur=drawn_blur(random, 4, 19),
        whole=int(random.integers(1, 4)),
        lean=round(float(random.uniform(55, 80)), 1),
        ghosts=GHOSTS,
        fading=drawn_fading(random, 0.4, 0.3, 0.9),
        depth_fading=drawn_fading(random, 0.85, 0.6, 0.97),
    )


def make(job: Job) -> tuple[Path, float]:
    """Simulate one pair into a folder; its weight is handed on."""
    folder, seed, options, shape, weight = job
    return simulate_one(folder, seed, shape, options), weight


def mask_of(path: Path) -> Path:
    """The labels that belong to a simulated tomogram."""
    return path.with_name(f"{path.stem}_membrane.mrc")


def cut(path: Path, folder: Path, slabs: int) -> list[Path]:
    """Write slabs of a pair as pairs."""
    if not slabs:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(int(path.stem.split("_")[1]))
    grey, labels = mrcfile.read(path), mrcfile.read(mask_of(path))
    with mrcfile.open(path) as volume:
        spacing = float(volume.voxel_size.x)
    written = []
    for number in range(slabs):
        thick = int(random.choice(THICKNESSES))
        start = int(random.integers(0, len(grey) - thick + 1))
        written.append(folder / f"{path.stem}_{number}.mrc")
        for data, place in ((labels, mask_of(written[-1])), (grey, written[-1])):
            with mrcfile.new(place, overwrite=True) as file:
                slab = data[start : start + thick]
                file.set_data(np.pad(slab, ((0, max(0, LEAST - thick)), (0, 0), (0, 0)), "edge"))
                file.voxel_size = spacing
    return written


def softened(path: Path) -> Soft:
    """Slices of a pair, blurred and as int8 once more, their labels and how they are scaled."""
    with open_tomogram(path) as tomogram:
        soft = blurred(tomogram, SPEC, tomogram.voxel_spacing)
        scaling = measure_intensity(soft, SPEC.normalisation)
        step = max(scaling.high - scaling.offset, scaling.offset - scaling.low) / 127
        grey = np.stack([soft.read_slice(z) for z in range(tomogram.shape[0])])
    levels = np.rint((grey - scaling.offset) / step).clip(-127, 127).astype(np.int8)
    kept = IntensityScaling(-127.0, 127.0, 0.0, scaling.divisor / step)
    return levels, mrcfile.read(mask_of(path)), kept


def main() -> None:
    """Simulate the first tomograms that a stage was trained on, as pairs in a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stage", type=int, choices=(1, 2), default=1)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--shapes", type=Path, help="folder of the real segmentations")
    parser.add_argument("--workers", type=int, default=2)
    add_share(parser)
    given = parser.parse_args()
    work = jobs(given.folder, given.stage, given.shapes, given.count, dict(given.share))
    with ProcessPoolExecutor(given.workers, initializer=limit_threads) as pool:
        for path, _ in pool.map(make, work):
            print(path, flush=True)


if __name__ == "__main__":
    run_script(main)

"""Train stage 2 further on what it still took for membranes: clutter, sparse scenes, leaning walls.

    python experiments/train_stage2.py runs/stage2 --shapes SEGMENTATIONS/    # about two hours
    torchrun --standalone --nproc-per-node 2 experiments/train_stage2.py ...  # after --simulate-only

Goes on from the bundled weights. It did not make them better (LOG.md, 2026-11-25), so they are not
its result. Every part resumes where it stopped. The packed checkpoint is
``runs/stage2/compact_stage2.safetensors``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from train_compact import DARK, DEEP, FLAT, Job, cluttered, limit_threads, pack, print_entry

from etsam.feedback import write_stage1_logits
from etsam.simulate import simulate_one
from etsam.simulation.recipe import SimulationOptions
from etsam.simulation.segmentations import RealShape
from etsam.train import COMPACT_SPEC, Schedule, Source, TrainOptions, train
from etsam.weights import resolve_model

LEAN = 53.13
"""Walls in the missing wedge are labelled up to this lean [degrees], further than usual: stage 2 is to
follow them from where they are seen."""
SHAPES = {
    "midsurfer_Fig13A.npz": ((1,), 12.0),
    "midsurfer_Fig13B.npz": ((1,), 12.0),
    "membrain_v1_T1S2M15.npz": ((1,), 13.68),
    "membrain_v1_T1S4M8.npz": ((1,), 13.68),
}
"""Segmentations that the held-out suite does not use: their labels and spacing [Å]."""


@dataclass(frozen=True)
class Kind:
    """Tomograms of one kind for stage 2: how often clips come from them, shape and jobs."""

    name: str
    weight: float
    shape: tuple[int, int, int]
    jobs: list[Job]


def training_kinds(shapes: Path | None) -> list[Kind]:
    """Any kind, blurred walls, faint organelles, sparse scenes, deep samples, small vesicles."""
    return [
        Kind("any", 1.0, FLAT, _jobs(_any, range(520_000, 520_052))),
        Kind("soft", 1.3, FLAT, _jobs(_soft, range(521_000, 521_044))),
        Kind("organelle", 0.8, FLAT, _jobs(_organelle, range(522_000, 522_026))),
        Kind("sparse", 1.0, FLAT, _jobs(_sparse(shapes), range(523_000, 523_046))),
        Kind("deep", 1.3, DEEP, _jobs(_deep, range(524_000, 524_020))),
        Kind("vesicles", 1.2, FLAT, _jobs(_vesicles, range(525_000, 525_034))),
    ]


Draw = Callable[[np.random.Generator], SimulationOptions]


def _jobs(draw: Draw, seeds: range) -> list[Job]:
    """Cluttered tomograms with options drawn at random, from a generator of its own per seed."""
    drawn = [(seed, draw(np.random.default_rng(seed))) for seed in seeds]
    return [cluttered((seed, replace(options, lean=LEAN))) for seed, options in drawn]


def _any(_: np.random.Generator) -> SimulationOptions:
    return DARK


def _noise(random: np.random.Generator, low: float, high: float) -> float:
    """A ratio of contrast to noise, even in its logarithm."""
    return round(float(np.exp(random.uniform(np.log(low), np.log(high)))), 3)


def _soft(random: np.random.Generator) -> SimulationOptions:
    """Walls that are one blurred line: any kind, faint organelles or vesicles."""
    blurred = replace(DARK, blur=round(float(random.uniform(5, 19)), 1))
    if random.random() < 0.4:
        return blurred
    return replace(
        blurred,
        preset=str(random.choice(["organelle", "organelle", "vesicles"])),
        voxel_spacing=round(float(random.uniform(9, 15)), 1),
        contrast_to_noise=_noise(random, 0.4, 1.6),
        views=int(random.integers(25, 50)),
    )


def _organelle(random: np.random.Generator) -> SimulationOptions:
    return replace(
        DARK,
        preset="organelle",
        voxel_spacing=round(float(random.uniform(10, 15)), 1),
        contrast_to_noise=_noise(random, 0.4, 1.0),
        views=int(random.integers(25, 42)),
    )


def _deep(random: np.random.Generator) -> SimulationOptions:
    return replace(
        DARK,
        preset=str(random.choice(["organelle", "organelle", "organelle", "vesicles"])),
        voxel_spacing=round(float(random.uniform(10, 15)), 1),
        contrast_to_noise=_noise(random, 0.4, 1.4),
        views=int(random.integers(25, 46)),
        blur=round(float(random.uniform(4, 19)), 1),
        core=None,
    )


def _sparse(shapes: Path | None) -> Draw:
    """Few or no membranes in view; real shapes in half of the tomograms, where there are some."""

    def draw(random: np.random.Generator) -> SimulationOptions:
        empty = replace(
            DARK,
            preset="empty",
            voxel_spacing=round(float(random.uniform(9, 14)), 1),
            contrast_to_noise=_noise(random, 0.6, 2.0),
            views=int(random.integers(30, 62)),
            blur=round(float(random.uniform(0, 14)), 1),
        )
        if shapes is None or random.random() < 0.3:
            return empty
        name = str(random.choice(list(SHAPES)))
        labels, spacing = SHAPES[name]
        return replace(empty, shapes=(RealShape(str(shapes / name), spacing, labels),))

    return draw


def _vesicles(random: np.random.Generator) -> SimulationOptions:
    """Extracellular vesicles: fine voxels, carbon in nearly half, much gold (`cluttered`)."""
    return replace(
        DARK,
        preset="vesicles",
        voxel_spacing=round(float(random.uniform(8, 11)), 1),
        contrast_to_noise=_noise(random, 0.5, 2.2),
        views=int(random.integers(35, 62)),
        blur=round(float(random.uniform(0, 14)), 1),
        carbon=bool(random.random() < 0.45) or None,
        gold=int(random.integers(1, 20)) if random.random() < 0.6 else None,
    )


def prepare(folder: Path, kinds: list[Kind], workers: int) -> None:
    """Simulate what is missing, the held-out ten too, and let the bundled stage 1 answer it."""
    held = Kind("held", 0.0, FLAT, [(seed, DARK) for seed in range(900_000, 900_010)])
    work = [(folder / kind.name, *job, kind.shape) for kind in [*kinds, held] for job in kind.jobs]
    work.sort(key=lambda entry: entry[3], reverse=True)
    with ProcessPoolExecutor(workers, initializer=limit_threads) as pool:
        list(pool.map(_simulate, work))
        list(pool.map(_answer, [folder / kind.name for kind in [*kinds, held]]))


def _simulate(work: tuple[Path, int, SimulationOptions, tuple[int, int, int]]) -> None:
    folder, seed, options, shape = work
    simulate_one(folder, seed, shape, options)


def _answer(folder: Path) -> None:
    stage1 = resolve_model("compact").stage1
    write_stage1_logits(folder, stage1, step=COMPACT_SPEC.feedback_step, device="cpu")


def main() -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shapes", type=Path, help="folder of the real segmentations")
    parser.add_argument("--steps", type=int, default=840)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--simulate-only", action="store_true")
    given = parser.parse_args()
    kinds = training_kinds(given.shapes)
    if "LOCAL_RANK" not in os.environ:
        prepare(given.folder, kinds, given.workers)
    if given.simulate_only:
        return
    options = TrainOptions(
        [Source(given.folder / kind.name, kind.weight) for kind in kinds],
        given.folder / "stage2",
        stage=2,
        start=resolve_model("compact").stage2,
        validation=given.folder / "held",
        spec=COMPACT_SPEC,
        schedule=Schedule(steps=given.steps, batch=7, learning_rate=6e-4, warmup=40, ema=0.997),
        sizes=(128, 192, 256),
        frames=3,
        every=250,
        seed=4,
    )
    pack(train(options, print_entry), given.folder / "compact_stage2.safetensors")


if __name__ == "__main__":
    main()

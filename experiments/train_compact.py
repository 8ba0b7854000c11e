"""Make the bundled model from nothing: simulate, train stage 1, run it, train stage 2, pack.

    python experiments/train_compact.py runs/compact            # about four hours on two cores
    python experiments/train_compact.py runs/compact --quick    # minutes, to see that it works

Every part resumes where it stopped when the command is given again. The packed half-precision
checkpoints are ``runs/compact/compact_stage1.safetensors`` and ``compact_stage2.safetensors``;
``etsam segment --model runs/compact`` uses them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from etsam.feedback import write_stage1_logits
from etsam.frames import FrameSpec
from etsam.sam2 import load_checkpoint, save_checkpoint
from etsam.simulate import simulate_one
from etsam.simulation.recipe import SimulationOptions
from etsam.train import COMPACT, Schedule, TrainOptions, train

SHAPE = (64, 256, 256)
DARK = SimulationOptions(bright_membranes=False)
NARROW = FrameSpec(offsets=(-2, -1, 0, 1, 2))
Job = tuple[int, SimulationOptions]


def training_jobs() -> Iterator[Job]:
    """Seeds and options of 330 tomograms: of any kind, faint ones of few views, vesicles in ice."""
    for seed in range(200):
        yield seed, DARK
    for seed in range(5000, 5060):
        random = np.random.default_rng(seed)
        yield (
            seed,
            SimulationOptions(
                preset="organelle",
                voxel_spacing=round(random.uniform(12, 15), 1),
                contrast_to_noise=round(float(np.exp(random.uniform(np.log(0.4), 0))), 3),
                views=int(random.integers(25, 36)),
                bright_membranes=False,
            ),
        )
    for seed in range(6000, 6070):
        random = np.random.default_rng(seed)
        yield (
            seed,
            SimulationOptions(
                preset="vesicles",
                voxel_spacing=round(random.uniform(8, 11), 1),
                contrast_to_noise=round(float(np.exp(random.uniform(*np.log((0.5, 2.5))))), 3),
                views=int(random.integers(35, 62)),
                bright_membranes=False,
            ),
        )


def simulate_jobs(folder: Path, jobs: list[Job], shape: tuple[int, int, int], workers: int) -> None:
    """Simulate what is not there yet."""
    count = len(jobs)
    seeds, options = zip(*jobs, strict=True)
    with ProcessPoolExecutor(workers, initializer=_one_thread) as pool:
        list(pool.map(simulate_one, [folder] * count, seeds, [shape] * count, options))


def _one_thread() -> None:
    torch.set_num_threads(1)


def stages(given: argparse.Namespace, data: Path, held: Path, data2: Path) -> tuple[Path, Path]:
    """Train stage 1 on near neighbours, then on far ones too, and stage 2 on its answers."""
    common = TrainOptions(
        data,
        given.folder / "near",
        validation=held,
        sizes=(64, 96) if given.quick else (128, 192, 256),
        every=200,
        device=given.device,
    )
    near = replace(
        common,
        spec=NARROW,
        config=replace(COMPACT, context_width=0),
        schedule=_schedule(given, 1800, 1.5e-3),
    )
    far = replace(
        common,
        output=given.folder / "stage1",
        start=train(near, _print),
        schedule=_schedule(given, 2600, 1e-3),
    )
    stage1 = train(far, _print)
    for folder in (data2, held):
        write_stage1_logits(folder, stage1, device=given.device)
    last = replace(
        common,
        data=data2,
        output=given.folder / "stage2",
        stage=2,
        start=stage1,
        schedule=_schedule(given, 900, 7e-4),
    )
    return stage1, train(last, _print)


def _schedule(given: argparse.Namespace, steps: int, rate: float) -> Schedule:
    steps = 4 if given.quick else steps
    return Schedule(steps=steps, learning_rate=rate, warmup=60, ema=0.998)


def pack(weights: Path, target: Path) -> None:
    """Store averaged weights in half precision under the name the package ships."""
    model, metadata = load_checkpoint(weights)
    save_checkpoint(target, model, metadata, half=True)


def main() -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true", help="a few steps on four small volumes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    jobs = list(training_jobs())[: 4 if given.quick else None]
    second = [job for job in jobs if job[0] < 35 or job[0] % 1000 < 25]
    held_out = [(seed, DARK) for seed in range(900_000, 900_001 if given.quick else 900_010)]
    shape = (16, 128, 128) if given.quick else SHAPE
    data, data2, held = (given.folder / name for name in ("data", "data2", "held"))
    for folder, wanted in ((data, jobs), (data2, second), (held, held_out)):
        simulate_jobs(folder, wanted, shape, given.workers)
    stage1, stage2 = stages(given, data, held, data2)
    pack(stage1, given.folder / "compact_stage1.safetensors")
    pack(stage2, given.folder / "compact_stage2.safetensors")


def _print(entry: dict[str, float]) -> None:
    print(json.dumps({key: round(float(value), 4) for key, value in entry.items()}), flush=True)


if __name__ == "__main__":
    main()

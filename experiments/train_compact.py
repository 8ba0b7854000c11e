"""Make a compact model from nothing: simulate, train stage 1, run it, train stage 2, pack.

    python experiments/train_compact.py runs/compact            # about four hours on two cores
    python experiments/train_compact.py runs/compact --quick    # minutes, to see that it works

Every part resumes where it stopped when the command is given again. The packed half-precision
checkpoints are ``runs/compact/compact_stage1.safetensors`` and ``compact_stage2.safetensors``;
``etsam segment --model runs/compact`` uses them.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from etsam.feedback import write_stage1_logits
from etsam.frames import FrameSpec
from etsam.sam2 import load_checkpoint, save_checkpoint
from etsam.simulate import limit_threads, simulate_one
from etsam.simulation.recipe import SimulationOptions
from etsam.train import COMPACT, COMPACT_SPEC, Schedule, Source, TrainOptions, train

FLAT, DEEP = (64, 256, 256), (160, 256, 256)
DARK = SimulationOptions(bright_membranes=False)
SPARSER, UNSEEN = 3, 500_000
"""Stage 2 is trained on fewer tomograms, whose seeds lie this far away."""
PLAIN = 0.35
"""Weight of those as stage 1 knows them, beside those with more of what is taken for membranes."""
NARROW = FrameSpec(offsets=(-2, -1, 0, 1, 2))
SHALLOW = replace(COMPACT, stages=(2, 2, 2, 2))
"""`train_resident.py` goes on with two more blocks at strides 8 and 16, silent at first."""
Job = tuple[int, SimulationOptions]
Range = tuple[float, float]


@dataclass(frozen=True)
class Kind:
    """Tomograms of one kind: how often clips come from them, their shape, seeds and options."""

    name: str
    weight: float
    shape: tuple[int, int, int]
    jobs: list[Job]
    every: int = 1  # one of so many is simulated again for stage 2, cluttered


def training_kinds() -> list[Kind]:
    """Walls with two leaflets and walls that are one line, in thin samples and in deep ones."""
    sharp = replace(DARK, blur=0.0, core=0.0)
    few, some = (25, 36), (35, 62)
    any_kind = [(seed, sharp) for seed in range(80)]
    faint = [_drawn(seed, "organelle", (12, 15), (0.4, 1.0), few) for seed in range(5000, 5040)]
    ice = [_drawn(seed, "vesicles", (8, 11), (0.5, 2.5), some) for seed in range(6000, 6040)]
    deep = [
        _drawn(seed, _mostly_organelles(seed), (10, 15), (0.4, 1.3), (25, 46))
        for seed in range(7000, 7060)
    ]
    soft = [_soft(seed) for seed in range(10_000, 10_070)]
    soft_deep = [
        _drawn(seed, _mostly_organelles(seed), (10, 15), (0.45, 1.4), (25, 46), blurred=True)
        for seed in range(11_000, 11_040)
    ]
    return [
        Kind("sharp", 1.0, FLAT, any_kind + faint + ice, 4),
        Kind("sharp_deep", 0.5, DEEP, deep, 6),
        Kind("blurred", 1.6, FLAT, soft, 2),
        Kind("blurred_deep", 1.2, DEEP, soft_deep, 4),
    ]


def _mostly_organelles(seed: int) -> str:
    return "organelle" if seed % 5 else "vesicles"


def _soft(seed: int) -> Job:
    """Blurred: half of any kind, the others faint organelles or vesicles."""
    if seed % 10 < 5:
        blur = round(float(np.random.default_rng(seed).uniform(5, 19)), 1)
        return seed, replace(DARK, blur=blur)
    if seed % 10 < 8:
        return _drawn(seed, "organelle", (10, 15), (0.45, 1.4), (25, 46), blurred=True)
    return _drawn(seed, "vesicles", (8, 12), (0.5, 2.0), (30, 62), blurred=True)


def _drawn(
    seed: int,
    preset: str,
    spacing: Range,
    contrast: Range,
    views: tuple[int, int],
    *,
    blurred: bool = False,
) -> Job:
    """A tomogram drawn from ranges, its wall one line or two leaflets."""
    random = np.random.default_rng(seed)
    options = drawn(random, preset, spacing, contrast, views)
    blur = round(float(random.uniform(5, 19)), 1) if blurred else 0.0
    return seed, replace(options, blur=blur, core=None if blurred else 0.0)


def drawn(
    random: np.random.Generator,
    preset: str,
    spacing: Range,
    contrast: Range,
    views: tuple[int, int],
) -> SimulationOptions:
    """Options drawn from ranges: Å, contrast to noise (even in its logarithm), number of views."""
    return replace(
        DARK,
        preset=preset,
        voxel_spacing=round(float(random.uniform(*spacing)), 1),
        contrast_to_noise=round(float(np.exp(random.uniform(*np.log(contrast)))), 3),
        views=int(random.integers(*views)),
    )


def simulate_kinds(given: argparse.Namespace) -> tuple[list[Source], list[Source]]:
    """Simulate what is not there yet; returns the folders of stage 1 and, smaller, of stage 2."""
    every: list[Source] = []
    some: list[Source] = []
    for kind in training_kinds():
        jobs = kind.jobs[:2] if given.quick else kind.jobs
        shape = (16, 128, 128) if given.quick else kind.shape
        stray = [cluttered(job) for job in _unseen(jobs[1 :: kind.every])]
        for found, name, wanted, weight in (
            (every, kind.name, jobs, kind.weight),
            (some, f"{kind.name}_2", _unseen(jobs[::SPARSER]), PLAIN * kind.weight),
            (some, f"{kind.name}_3", stray, kind.weight),
        ):
            _simulate(given.folder / name, wanted, shape, given.workers)
            found.append(Source(given.folder / name, weight))
    held = [(seed, DARK) for seed in range(900_000, 900_001 if given.quick else 900_010)]
    _simulate(given.folder / "held", held, (16, 128, 128) if given.quick else FLAT, given.workers)
    return every, some


def _unseen(jobs: list[Job]) -> list[Job]:
    """The same kinds from other seeds: stage 1 answers tomograms it was trained on too well."""
    return [(seed + UNSEEN, options) for seed, options in jobs]


def cluttered(job: Job) -> Job:
    """The same tomogram with more of what is taken for membranes: filaments, gold, carbon."""
    seed, options = job
    random = np.random.default_rng(seed)
    actin = int(np.exp(random.uniform(0, np.log(80)))) if random.random() < 0.55 else None
    microtubules = int(random.integers(1, 14)) if random.random() < 0.5 else None
    gold = int(random.integers(1, 16)) if random.random() < 0.5 else None
    carbon = True if random.random() < 0.25 else None
    return seed, replace(
        options,
        actin=actin,
        microtubules=microtubules,
        gold=gold if options.gold is None else options.gold,
        carbon=carbon if options.carbon is None else options.carbon,
    )


def _simulate(folder: Path, jobs: list[Job], shape: tuple[int, int, int], workers: int) -> None:
    count = len(jobs)
    seeds, options = zip(*jobs, strict=True)
    with ProcessPoolExecutor(workers, initializer=limit_threads) as pool:
        list(pool.map(simulate_one, [folder] * count, seeds, [shape] * count, options))


def stages(given: argparse.Namespace, every: list[Source], some: list[Source]) -> tuple[Path, Path]:
    """Train stage 1, on near neighbours first unless it goes on, and stage 2 on its answers."""
    held = given.folder / "held"
    common = TrainOptions(
        every,
        given.folder / "near",
        validation=held,
        config=SHALLOW,
        sizes=(64, 96) if given.quick else (128, 192, 256),
        frames=3,
        every=260,
        device=given.device,
    )
    near = replace(
        common,
        spec=NARROW,
        config=replace(SHALLOW, context_width=0, top_down_blocks=0),
        schedule=_schedule(given, 1800, 1.5e-3),
    )
    far = replace(
        common,
        output=given.folder / "stage1",
        start=given.start or train(near, print_entry),
        schedule=_schedule(given, 1300 if given.start else 3700, 8e-4),
    )
    stage1 = train(far, print_entry)
    for folder in (*(source.folder for source in some), held):
        write_stage1_logits(folder, stage1, step=COMPACT_SPEC.feedback_step, device=given.device)
    last = replace(
        common,
        data=some,
        output=given.folder / "stage2",
        stage=2,
        start=stage1,
        schedule=_schedule(given, 900, 7e-4),
    )
    return stage1, train(last, print_entry)


def _schedule(given: argparse.Namespace, steps: int, rate: float) -> Schedule:
    steps = 4 if given.quick else steps
    return Schedule(steps=steps, batch=5, learning_rate=rate, warmup=60, ema=0.998)


def pack(weights: Path, target: Path) -> None:
    """Store averaged weights in half precision under the name the package ships."""
    model, metadata = load_checkpoint(weights)
    save_checkpoint(target, model, metadata, half=True)


def main() -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true", help="a few steps on four small volumes")
    parser.add_argument("--start", type=Path, help="go on from a stage-1 checkpoint")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    stage1, stage2 = stages(given, *simulate_kinds(given))
    pack(stage1, given.folder / "compact_stage1.safetensors")
    pack(stage2, given.folder / "compact_stage2.safetensors")


def print_entry(entry: dict[str, float]) -> None:
    """Print a line of the log."""
    print(json.dumps({key: round(float(value), 4) for key, value in entry.items()}), flush=True)


if __name__ == "__main__":
    main()

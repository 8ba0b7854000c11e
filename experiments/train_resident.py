"""Train the bundled network on a GPU that is fed without pause: all pairs stay on it.

    python experiments/train_resident.py runs/resident --stage 1 --shapes SEGMENTATIONS/
    python experiments/train_resident.py runs/resident --stage 2 --rate 1e-3 --shapes SEGMENTATIONS/

Stage 1 goes on from `--start` (what `train_compact.py` made; without it, what is bundled), stage 2 from
stage 1. Processes simulate while the network learns, stage 2 other tomograms than stage 1. The packed
checkpoints are ``runs/resident/compact_stage1.safetensors`` and ``compact_stage2.safetensors``.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from threading import Thread

import mrcfile
import numpy as np
import torch
from train_compact import DARK, FLAT, cluttered, drawn, print_entry

from etsam.feedback import write_stage1_logits
from etsam.intensity import IntensityScaling, measure_intensity
from etsam.sam2 import load_checkpoint, save_checkpoint
from etsam.simulate import limit_threads, simulate_many, simulate_one
from etsam.simulation.recipe import SimulationOptions
from etsam.simulation.segmentations import RealShape
from etsam.stages import load_stage
from etsam.train import COMPACT_LOSSES, COMPACT_SPEC, Schedule, TrainOptions, train
from etsam.training.journal import Log
from etsam.training.resident import Resident, ResidentPairs, ResidentSampler
from etsam.training.tasks import Sampler
from etsam.volume import open_tomogram
from etsam.weights import resolve_model

DEEP = (128, 256, 256)
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
    "sparse": (0.12, 0.8, 2.0),
    "deep": (0.13, 1.6, 1.6),
    "vesicles": (0.14, 1.1, 1.1),
}
"""Part of the tomograms that are of a kind, and how often clips come from one of them in each stage."""
CLEAR = 0.4
"""Part of the tomograms left as their kind is, without more filaments, gold and carbon."""
FIRST_SEEDS = {1: 3_000_000, 2: 3_100_000}
GHOSTS = 200.0  # Å
LEANS = (37.0, 60.0)  # degrees
SLICES = 150_000
"""Room on the GPU for slices."""
TOGETHER = 32
"""Tomograms that stage 1 tracks at a time."""
KEPT = 480
"""Pairs that stay on disk, for other networks to be trained on."""
FADING = {"organelle": 0.6, "deep": 0.6, "soft": 0.5}
"""Part of the tomograms of a kind whose contrast fades in places, if it is not 0.25."""
OPEN = 30.0
"""Added to the object score: no slice is emptied, since faint ones are emptied first."""
TRIED = 24
"""Steps to find out how long one takes; the second half of them counts."""
Job = tuple[Path, int, SimulationOptions, tuple[int, int, int], float]


def jobs(folder: Path, stage: int, shapes: Path | None, count: int) -> list[Job]:
    """What to simulate for a stage."""
    shares = np.array([share for share, *_ in KINDS.values()])
    listed = []
    for number in range(count):
        seed = FIRST_SEEDS[stage] + number
        random = np.random.default_rng(seed)
        kind = str(random.choice(list(KINDS), p=shares / shares.sum()))
        options = _varied(kind, _draw(kind, shapes, random), random)
        if random.random() > CLEAR:
            seed, options = cluttered((seed, options))
        shape = DEEP if kind == "deep" else FLAT
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
    return _sparse(shapes, random)


def _sparse(shapes: Path | None, random: np.random.Generator) -> SimulationOptions:
    """Few or no membranes in view; real shapes in seven tenths, where there are some."""
    options = drawn(random, "empty", (9, 14), (0.6, 2.0), (30, 62))
    empty = replace(options, blur=drawn_blur(random, 0, 14))
    if shapes is None or random.random() < 0.3:
        return empty
    name = str(random.choice(list(SHAPES)))
    labels, spacing = SHAPES[name]
    return replace(empty, shapes=(RealShape(str(shapes / name), spacing, labels),))


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


def make(job: Job) -> tuple[Path, IntensityScaling, float]:
    """Simulate one pair into a folder."""
    folder, seed, options, shape, weight = job
    path = simulate_one(folder, seed, shape, options)
    with open_tomogram(path) as tomogram:
        return path, measure_intensity(tomogram, COMPACT_SPEC.normalisation), weight


class Supply:
    """Simulated pairs, put on the device as they come."""

    def __init__(self, work: list[Job], workers: int, device: torch.device) -> None:
        self.store = ResidentPairs(SLICES, (FLAT[1], FLAT[2]), device)
        self._stopped = False
        context = get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, context, initializer=limit_threads)
        self._results = self._pool.map(make, work)
        self._thread = Thread(target=self._feed, daemon=True)
        self._thread.start()

    def _feed(self) -> None:
        for number, (path, scaling, weight) in enumerate(self._results):
            mask = path.with_name(f"{path.stem}_membrane.mrc")
            if self._stopped or not self.store.add(
                mrcfile.read(path), mrcfile.read(mask), scaling, weight
            ):
                return
            if number >= KEPT:
                for done in (path, mask, path.with_suffix(".json")):
                    done.unlink()

    def wait(self, count: int) -> None:
        """Wait until there are so many pairs."""
        while len(self.store) < count:
            if not self._thread.is_alive():
                raise SystemExit("simulation has stopped")
            time.sleep(0.2)

    def stop(self) -> None:
        """End the processes."""
        self._stopped = True
        self._pool.shutdown(wait=False, cancel_futures=True)


class Tracked:
    """Stage-2 pairs that stage 1 has tracked, those that came last every so many steps."""

    def __init__(self, store: ResidentPairs, checkpoint: Path, every: int) -> None:
        self._store, self._every = store, every
        self._stage = load_stage(checkpoint, 0, store.device)
        self._spec = replace(COMPACT_SPEC, blur=self._stage.spec.blur)
        self._ready: list[Resident] = []
        self._seen = 0

    def pairs(self, step: int) -> list[Resident]:
        """The pairs of a step."""
        if step % self._every == 0:
            new = self._store.pairs(self._seen)
            self._seen += len(new)
            for depth in sorted({pair.depth for pair in new}):
                alike = [pair for pair in new if pair.depth == depth]
                for start in range(0, len(alike), TOGETHER):
                    self._track(alike[start : start + TOGETHER])
            self._ready = [*self._ready, *new]
        return self._ready

    def _track(self, pairs: list[Resident]) -> None:
        with torch.autocast(self._store.device.type, torch.bfloat16):
            self._store.track(self._stage.model.float(), self._spec, pairs)


def fitting(given: argparse.Namespace, options: TrainOptions, sampler: Sampler) -> TrainOptions:
    """As many steps as fit in `--seconds`, from some that are measured and forgotten."""
    steps = given.steps
    if steps is None:
        plan = Schedule(steps=TRIED, batch=given.batch)
        trial = replace(
            options, output=given.folder / f"trial_{given.stage}", schedule=plan, validation=None
        )
        train(replace(trial, schedule=replace(plan, steps=TRIED // 2)), None, sampler)
        began = time.perf_counter()
        train(trial, None, sampler)
        took = (time.perf_counter() - began) / (TRIED - TRIED // 2)
        steps = int(given.seconds / took)
        print(f"{steps} steps of {took:.3f} s", flush=True)
    schedule = Schedule(
        steps=steps,
        batch=given.batch,
        learning_rate=given.rate,
        warmup=min(100, steps // 5),
        ema=0.996,
    )
    return replace(options, schedule=schedule, every=math.ceil(steps / 4))


def learn(given: argparse.Namespace, store: ResidentPairs, held: Path, log: Log) -> Path:
    """Train the stage on what the store holds; returns the averaged weights."""
    stage1 = given.stage1 or given.folder / "compact_stage1.safetensors"
    start, losses = given.start or resolve_model("compact").stage1, COMPACT_LOSSES
    draw: Callable[[int], list[Resident]] = lambda _: store.pairs()  # noqa: E731
    if given.stage == 2:
        start, losses = given.start or stage1, replace(COMPACT_LOSSES, object_score=0.0)
        write_stage1_logits(held, stage1, step=COMPACT_SPEC.feedback_step, device=given.device)
        draw = Tracked(store, stage1, every=50).pairs
    options = TrainOptions(
        given.folder,
        given.folder / f"stage{given.stage}",
        stage=given.stage,
        start=start,
        validation=held,
        losses=losses,
        frames=4,
        device=given.device,
        seed=10 + given.stage,
    )
    sampler = ResidentSampler(store, draw, COMPACT_SPEC, options.seed)
    return train(fitting(given, options, sampler), log, sampler)


def main() -> None:
    """Run the recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stage", type=int, choices=(1, 2), required=True)
    parser.add_argument("--shapes", type=Path, help="folder of the real segmentations")
    parser.add_argument("--start", type=Path, help="checkpoint to go on from")
    parser.add_argument("--stage1", type=Path, help="stage 1 that stage 2 listens to")
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seconds", type=float, default=500, help="instead of steps")
    parser.add_argument("--first", type=int, default=60, help="pairs to wait for")
    parser.add_argument("--count", type=int, default=6000, help="tomograms to simulate at most")
    given = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    began = time.perf_counter()
    held, pairs = given.folder / "held", given.folder / f"pairs_{given.stage}"
    work = jobs(pairs, given.stage, given.shapes, given.count)
    supply = Supply(work, given.workers, torch.device(given.device))
    try:
        simulate_many(held, range(900_000, 900_006), FLAT, 2, DARK)
        supply.wait(given.first)

        def say(entry: dict[str, float]) -> None:
            print_entry(entry | {"pairs": len(supply.store), "t": time.perf_counter() - began})

        weights = learn(given, supply.store, held, say)
    finally:
        supply.stop()  # or its processes keep this one alive
    model, metadata = load_checkpoint(weights)
    if given.stage == 1:
        bias = model.state_dict()["sam_mask_decoder.pred_obj_score_head.layers.2.bias"]
        bias.add_(OPEN)
    save_checkpoint(given.folder / f"compact_{weights.name}", model, metadata, half=True)


if __name__ == "__main__":
    main()

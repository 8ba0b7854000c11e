"""Train the bundled network on a GPU that is fed without pause: all pairs stay on it.

    python experiments/train_resident.py runs/resident --stage 1 --shapes SEGMENTATIONS/
    python experiments/train_resident.py runs/resident --stage 2 --shapes SEGMENTATIONS/

Both go on from `--start` (what `train_compact.py` made; without it, what is bundled). Processes simulate
while the network learns, stage 2 other tomograms than stage 1; `--only-simulate` does so ahead. The packed
checkpoints are ``runs/resident/compact_stage1.safetensors`` and ``compact_stage2.safetensors``.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from threading import Thread

import torch
from tomograms import SPEC, Job, Soft, add_share, cut, jobs, make, mask_of, softened
from train_compact import DARK, FLAT, print_entry

from etsam.feedback import write_stage1_logits
from etsam.sam2 import SAM2, load_checkpoint, save_checkpoint
from etsam.simulate import limit_threads, simulate_many
from etsam.stages import load_stage
from etsam.train import Schedule, TrainOptions, start_from, train
from etsam.training.journal import Log
from etsam.training.options import FURTHER_LOSSES
from etsam.training.resident import Resident, ResidentPairs, ResidentSampler
from etsam.training.tasks import Sampler
from etsam.weights import resolve_model

SLICES = 140_000
"""Room on the GPU for slices."""
TOGETHER = 32
"""Tomograms that stage 1 tracks at a time."""
KEPT = 480
"""Pairs that stay on disk, for other networks to be trained on."""
OPEN = 30.0
"""Least bias of stage 1's object score: no slice is emptied, since faint ones are emptied first."""
TRIED = 24
"""Steps to find out how long one takes; the second half of them counts."""
THIN = {1: 0.15, 2: 0.0}
"""Part of the clips that are cut from a few slices, by stage."""
SLABS, SLAB_WEIGHT = 2, 0.08
"""Slabs cut from each flat tomogram for stage 2, and how often clips come from one of them."""
BIAS, DOUBT = -0.6, 2.5
"""Of stage 2 (`FrameSpec`): its threshold, and what it may doubt of stage 1 in the logits that result."""
PART = {1: 1.0, 2: 0.5}
"""How far what is packed lies from the weights before to those after, by stage."""


def supplied(job: Job, slabs: int) -> tuple[Path, list[tuple[Soft, float]]]:
    """Simulate a pair and cut slabs of flat ones; what the networks see of them, and their weights."""
    path, weight = make(job)
    found = [(softened(path), weight)]
    for slab in cut(path, path.parent / "slabs", slabs if job[3] == FLAT else 0):
        found.append((softened(slab), SLAB_WEIGHT))
        slab.unlink()
        mask_of(slab).unlink()
    return path, found


class Supply:
    """Simulated pairs, put on the device as they come."""

    def __init__(self, work: list[Job], slabs: int, workers: int, device: torch.device) -> None:
        self.store = ResidentPairs(SLICES, (FLAT[1], FLAT[2]), device, SPEC.blur)
        self._stopped = False
        context = get_context("spawn")
        self._pool = ProcessPoolExecutor(workers, context, initializer=limit_threads)
        self._results = self._pool.map(partial(supplied, slabs=slabs), work)
        self._thread = Thread(target=self._feed, daemon=True)
        self._thread.start()

    def _feed(self) -> None:
        for number, (path, pairs) in enumerate(self._results):
            for (grey, labels, scaling), weight in pairs:
                if self._stopped or not self.store.add(grey, labels, scaling, weight):
                    return
            if number >= KEPT:
                for done in (path, mask_of(path), path.with_suffix(".json")):
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
        self._stage = load_stage(checkpoint, 0, store.device, dtype="float32")
        self._spec = replace(self._stage.spec, feedback_step=SPEC.feedback_step)
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
            self._store.track(self._stage.model, self._spec, pairs)


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


def learn(given: argparse.Namespace, store: ResidentPairs, held: Path, log: Log) -> None:
    """Train the stage on what the store holds, and pack it."""
    stage1 = given.stage1 or given.folder / "compact_stage1.safetensors"
    bundled = resolve_model("compact")
    draw: Callable[[int], list[Resident]] = lambda _: store.pairs()  # noqa: E731
    if given.stage == 2:
        write_stage1_logits(held, stage1, step=SPEC.feedback_step, device=given.device)
        draw = Tracked(store, stage1, every=50).pairs
    options = TrainOptions(
        given.folder,
        given.folder / f"stage{given.stage}",
        stage=given.stage,
        start=given.start or (bundled.stage1, bundled.stage2)[given.stage - 1],
        validation=held,
        losses=FURTHER_LOSSES[given.stage],
        spec=SPEC,
        frames=4,
        sizes=(192, 256),
        device=given.device,
        seed=10 + given.stage,
    )
    sampler = ResidentSampler(store, draw, SPEC, options.seed, THIN[given.stage])
    options = fitting(given, options, sampler)
    pack(options, train(options, log, sampler), PART[given.stage])


def pack(options: TrainOptions, after: Path, part: float) -> None:
    """Store weights on the way from those before to those after, in half precision.

    The network before may have seen fewer slices.
    """
    assert options.start is not None
    second, metadata = load_checkpoint(after)
    first = SAM2(second.config)
    start_from(first, options.start, options.spec)
    other = first.state_dict()
    with torch.no_grad():
        for name, tensor in second.state_dict().items():
            tensor.copy_(torch.lerp(other[name].float(), tensor.float(), part))
    if options.stage == 1:
        second.state_dict()["sam_mask_decoder.pred_obj_score_head.layers.2.bias"].clamp_(min=OPEN)
    else:
        metadata["frame_spec"] = replace(options.spec, bias=BIAS, doubt=DOUBT).to_dict()
    target = options.output.with_name(f"compact_stage{options.stage}.safetensors")
    save_checkpoint(target, second, metadata, half=True)


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
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seconds", type=float, default=500, help="instead of steps")
    parser.add_argument("--first", type=int, default=60, help="pairs to wait for")
    parser.add_argument("--count", type=int, default=6000, help="tomograms to simulate at most")
    add_share(parser)
    parser.add_argument("--only-simulate", action="store_true", help="ahead of the training")
    given = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    began = time.perf_counter()
    held, pairs = given.folder / "held", given.folder / f"pairs_{given.stage}"
    work = jobs(pairs, given.stage, given.shapes, given.count, dict(given.share))
    if given.only_simulate:
        with ProcessPoolExecutor(given.workers, initializer=limit_threads) as pool:
            list(pool.map(make, work))
        return
    slabs = SLABS if given.stage == 2 else 0
    supply = Supply(work, slabs, given.workers, torch.device(given.device))
    try:
        simulate_many(held, range(900_000, 900_006), FLAT, 2, DARK)
        supply.wait(given.first)

        def say(entry: dict[str, float]) -> None:
            print_entry(entry | {"pairs": len(supply.store), "t": time.perf_counter() - began})

        learn(given, supply.store, held, say)
    finally:
        supply.stop()  # or its processes keep this one alive


if __name__ == "__main__":
    main()

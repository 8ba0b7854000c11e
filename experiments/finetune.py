"""Last steps of both stages on the CPU.

    python experiments/finetune.py runs/finetune --shapes SEGMENTATIONS/ --prepare
    torchrun --standalone --nproc-per-node 2 experiments/finetune.py runs/finetune --stage1 S1 --stage 1
    python experiments/finetune.py runs/finetune --stage1 S1 --track
    torchrun --standalone --nproc-per-node 2 experiments/finetune.py runs/finetune --stage2 S2

Tomograms are those of `train_resident.py` for stage 2, of other seeds; preparing twice adds to what is there.
**Stage 2** is the default, and learns from what the stage 1 given to `--track` says. Slabs of one to four
slices are volumes of their own, and stage 1 tracks them as such. What is packed
(``compact_stage1.safetensors``, ``compact_stage2.safetensors``) lies ``--part`` of the way from
``--before`` to the averaged weights of the run. ``experiments/LOG.md`` tells which rounds made the bundled
weights.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tomograms import SPEC, Job, add_share, cut, jobs, make, softened
from train_compact import FLAT, print_entry
from train_resident import SLAB_WEIGHT, SLABS, THIN, pack

from etsam.dataset import find_pairs, logits_path
from etsam.feedback import write_stage1_logits
from etsam.simulate import limit_threads
from etsam.storage import write_text
from etsam.train import Schedule, TrainOptions, train
from etsam.training.options import FURTHER_LOSSES
from etsam.training.resident import ResidentPairs, ResidentSampler
from etsam.volume import open_tomogram

UNSEEN = 25_000
"""Seeds lie so far beyond the first of stage 2."""
PARTS = 8
"""Folders of volumes and of slabs, so that several processes can track them."""
WEIGHTS = "weights.json"
"""How often clips come from each tomogram, by its seed."""


def prepare(given: argparse.Namespace) -> None:
    """Simulate and cut slabs."""
    folder, work = given.folder, listed(given)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / WEIGHTS, json.dumps({**read_weights(folder), **{w[1]: w[4] for w in work}}))
    with ProcessPoolExecutor(given.workers, initializer=limit_threads) as pool:
        for number, (path, _) in enumerate(pool.map(make, work)):
            cut(path, folder / f"slabs{number % PARTS}", SLABS if work[number][3] == FLAT else 0)


def track(given: argparse.Namespace) -> None:
    """Run stage 1 over what was prepared."""
    places = [given.folder / f"{name}{i}" for name in ("pairs", "slabs") for i in range(PARTS)]
    folders = [place for place in places if place.is_dir()]
    if not folders:
        raise SystemExit(f"{given.folder} holds nothing that was prepared: --prepare comes first")
    options = {"checkpoint": given.stage1, "device": "cpu", "step": SPEC.feedback_step}
    with ProcessPoolExecutor(given.workers, initializer=limit_threads) as pool:
        list(pool.map(partial(write_stage1_logits, **options), folders))


def listed(given: argparse.Namespace) -> list[Job]:
    """What to simulate: tomograms as the resident recipe has them for stage 2, of other seeds."""
    work = jobs(given.folder, 2, given.shapes, given.unseen + given.count, dict(given.share))
    return [
        (given.folder / f"pairs{i % PARTS}", *job[1:]) for i, job in enumerate(work[given.unseen :])
    ]


def read_weights(folder: Path) -> dict[int, float]:
    """What was prepared so far, by seed."""
    place = folder / WEIGHTS
    saved = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    return {int(seed): float(weight) for seed, weight in saved.items()}


def load(given: argparse.Namespace) -> ResidentPairs:
    """What was prepared, in memory; each of several processes takes its part."""
    rank, ranks = (int(os.environ.get(name, old)) for name, old in (("RANK", 0), ("WORLD_SIZE", 1)))
    weights = read_weights(given.folder)
    found = []
    for place in sorted(given.folder.glob("pairs?")):
        pairs = [path for path, _ in find_pairs(place)]
        found += [(path, weights[int(path.stem.split("_")[1])]) for path in pairs]
    for place in sorted(given.folder.glob("slabs?")):
        found += [(path, SLAB_WEIGHT) for path, _ in find_pairs(place)]
    found, depths = found[rank::ranks], []
    for path, _ in found:
        with open_tomogram(path) as tomogram:
            depths.append(tomogram.shape[0])
    store = ResidentPairs(sum(depths), FLAT[1:], torch.device("cpu"), SPEC.blur)
    for path, weight in found:
        logits = np.load(logits_path(path)) if given.stage == 2 else None
        store.add(*softened(path), weight, logits)
    return store


def settings(given: argparse.Namespace) -> TrainOptions:
    """How the stage is trained."""
    return TrainOptions(
        given.folder,
        given.folder / f"stage{given.stage}",
        stage=given.stage,
        start=given.stage1 if given.stage == 1 else given.stage2,
        losses=FURTHER_LOSSES[given.stage],
        spec=SPEC,
        sizes=(192, 256),
        schedule=Schedule(given.steps, batch=8, learning_rate=4e-4, warmup=40, ema=0.995),
        frames=3,
        every=200,
        seed=given.seed,
    )


def main() -> None:
    """Prepare, or train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stage", type=int, choices=(1, 2), default=2)
    parser.add_argument("--stage1", type=Path, help="checkpoint to go on from, or to track with")
    parser.add_argument("--stage2", type=Path, help="checkpoint to go on from")
    parser.add_argument("--shapes", type=Path, help="folder of the real segmentations")
    parser.add_argument("--prepare", action="store_true", help="simulate")
    parser.add_argument("--track", action="store_true", help="run stage 1 over it, for stage 2")
    parser.add_argument("--count", type=int, default=300, help="tomograms")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--unseen", type=int, default=UNSEEN, help="first tomogram, of stage 2's")
    add_share(parser)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=31)
    parser.add_argument("--before", type=Path, help="where the way begins [default: the start]")
    parser.add_argument("--part", type=float, default=0.5, help="of the way that is packed")
    given = parser.parse_args()
    needed = "stage1" if given.track or given.stage == 1 else "stage2"
    if (given.track or not given.prepare) and getattr(given, needed) is None:
        parser.error(f"--{needed} is missing: the checkpoint to go on from, or to track with")
    if given.prepare:
        prepare(given)
    if given.track:
        track(given)
    if given.prepare or given.track:
        return
    options = settings(given)
    store = load(given)
    sampler = ResidentSampler(
        store, lambda _: store.pairs(), options.spec, given.seed, THIN[given.stage]
    )
    after = train(options, print_entry, sampler)
    if os.environ.get("RANK", "0") == "0":
        pack(replace(options, start=given.before or options.start), after, given.part)


if __name__ == "__main__":
    main()

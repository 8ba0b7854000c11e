"""Last steps of both stages on the CPU.

    python experiments/finetune.py runs/finetune --stage1 S1 --stage2 S2 --shapes SEGMENTATIONS/ --prepare
    torchrun --standalone --nproc-per-node 2 experiments/finetune.py runs/finetune --stage1 S1 --stage2 S2
    torchrun --standalone --nproc-per-node 2 experiments/finetune.py runs/finetune --stage1 S1 --stage 1

**Stage 2** (the default). The clips of `train_resident.py` that are cut from a few slices carry the
stage-1 logits of the whole volume. Here slabs of one to four slices are volumes of their own, and stage 1
tracks them as such. Deep volumes hold whole organelles, whose walls are labelled up to where they lie
nearly flat, and fade towards the bottom and top. What is packed is ``compact_stage2.safetensors``; in the
rounds before the last it lay between the weights before and after (LOG.md). `--also` takes in folders that
were prepared for earlier rounds. Five rounds made the bundled weights: the first as this script was at
commit 678d104 (clips from files, rate 3e-4, `absent` 0.5, no `smooth`), the second as it was at 21b3eb2
(slices as they are), on three folders: that of the first, `--unseen 20400 --count 136`, and `--unseen
20600 --count 200 --slabs 0`; then `--steps 1400 --seed 53 --also` the other two. The third on the same
three, tracked anew by the stage 1 of today: `--steps 1050 --seed 97`, as it was at 970c587. The fourth on
the same three and `--count 0`: `--steps 1000 --seed 101`, as it was at c21afec. The fifth on `--whole 112
--slabs 3 --count 160` alone, 73 of the 112: `--steps 360 --seed 107`.

**Stage 1** learns to do without the finest detail, which is noise in real tomograms and more than that in
simulated ones: slices are blurred, by 0.8 pixels then. On the same three folders, `--steps 700 --seed 71`,
as the package was at 2d4782b, before clips' finest detail became noise.

`train_resident.py` went on from there on a GPU. This script now starts from what that made, with the same
frames; the kinds of tomograms of all rounds above are those of commit debf188.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tomograms import DEEPEST, SPEC, Job, cut, drawn_whole, jobs, make, softened
from train_compact import FLAT, cluttered, print_entry
from train_resident import LOSSES, THIN, pack

from etsam.dataset import find_pairs, logits_path
from etsam.feedback import write_stage1_logits
from etsam.simulate import limit_threads
from etsam.train import Schedule, TrainOptions, train
from etsam.training.resident import ResidentPairs, ResidentSampler
from etsam.volume import open_tomogram

UNSEEN = 20_000
"""Seeds lie so far beyond the first of stage 2."""
SLABBED, WHOLE = 0.15, 0.45
"""Parts of the clips that come from slabs and from deep volumes with whole organelles."""
KINDS = ("part", "thin", "whole")
"""Folders of volumes, of slabs and of deep volumes, numbered."""
PARTS = 8
"""Folders of each kind, so that several processes can track them."""
FIRST_WHOLE = 3_300_000
"""First seed of tomograms that hold organelles from pole to pole."""
PART = {1: 0.5, 2: 1.0}
"""How far what is packed lies from the weights before to those after, by stage."""


def prepare(given: argparse.Namespace) -> None:
    """Simulate, cut slabs, run stage 1 over all of it."""
    folder, first = given.folder, given.unseen
    work = jobs(folder, 2, given.shapes, first + given.count)[first:]
    parts = [folder / f"part{number}" for number in range(PARTS)]
    work = [(parts[i % PARTS], *job[1:]) for i, job in enumerate(work)]
    with ProcessPoolExecutor(given.workers, initializer=limit_threads) as pool:
        list(pool.map(make, whole(folder, given.whole)))
        for number, (path, *_) in enumerate(pool.map(make, work)):
            cut(path, folder / f"thin{number % PARTS}", given.slabs)
        track = partial(write_stage1_logits, checkpoint=given.stage1, device="cpu")
        folders = [place for name in KINDS for place in sorted(folder.glob(f"{name}?"))]
        list(pool.map(partial(track, step=SPEC.feedback_step), folders))


def whole(folder: Path, count: int) -> list[Job]:
    """What to simulate with whole organelles."""
    listed = []
    for seed in range(FIRST_WHOLE, FIRST_WHOLE + count):
        random = np.random.default_rng(seed)
        options = drawn_whole(random)
        if random.random() > 0.5:
            _, options = cluttered((seed, options))
        listed.append((folder / f"whole{seed % PARTS}", seed, options, DEEPEST, 1.0))
    return listed


def load(folders: list[Path], stage: int) -> ResidentPairs:
    """What was prepared, in memory; each of several processes takes its part."""
    rank, ranks = (int(os.environ.get(name, old)) for name, old in (("RANK", 0), ("WORLD_SIZE", 1)))
    shares = {"part": 1.0}
    if stage == 2:
        shares = dict(zip(KINDS, (1 - SLABBED - WHOLE, SLABBED, WHOLE), strict=True))
    found = []
    for name, share in shares.items():
        places = [place for folder in folders for place in sorted(folder.glob(f"{name}?"))]
        pairs = [pair for place in places for pair in find_pairs(place)]
        found += [(path, share / len(pairs)) for path, _ in pairs[rank::ranks]]
    depths = []
    for path, *_ in found:
        with open_tomogram(path) as tomogram:
            depths.append(tomogram.shape[0])
    store = ResidentPairs(sum(depths), FLAT[1:], torch.device("cpu"), SPEC.blur)
    for path, weight in found:
        logits = np.load(logits_path(path)) if stage == 2 else None
        store.add(*softened(path), weight, logits)
    return store


def settings(given: argparse.Namespace) -> TrainOptions:
    """How the stage is trained."""
    return TrainOptions(
        given.folder,
        given.folder / f"stage{given.stage}",
        stage=given.stage,
        start=given.stage1 if given.stage == 1 else given.stage2,
        losses=LOSSES[given.stage],
        spec=SPEC,
        sizes=(192,),
        schedule=Schedule(given.steps, batch=8, learning_rate=4e-4, warmup=40, ema=0.996),
        frames=3,
        every=200,
        seed=given.seed,
    )


def main() -> None:
    """Prepare, or train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stage", type=int, choices=(1, 2), default=2)
    parser.add_argument("--stage1", type=Path, required=True)
    parser.add_argument("--stage2", type=Path, help="checkpoint to go on from")
    parser.add_argument("--shapes", type=Path, help="folder of the real segmentations")
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--count", type=int, default=168)
    parser.add_argument("--whole", type=int, default=160, help="deep volumes of whole organelles")
    parser.add_argument("--slabs", type=int, default=4, help="cut from each simulated volume")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--unseen", type=int, default=UNSEEN, help="first tomogram, of stage 2's")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="folders of other rounds")
    parser.add_argument("--steps", type=int, default=750)
    parser.add_argument("--seed", type=int, default=31)
    given = parser.parse_args()
    if given.prepare:
        prepare(given)
        return
    if given.stage == 2 and given.stage2 is None:
        parser.error("stage 2 goes on from --stage2")
    options = settings(given)
    store = load([given.folder, *given.also], given.stage)
    sampler = ResidentSampler(
        store, lambda _: store.pairs(), options.spec, given.seed, THIN[given.stage]
    )
    after = train(options, print_entry, sampler)
    if os.environ.get("RANK", "0") == "0":
        pack(options, after, PART[given.stage])


if __name__ == "__main__":
    main()

"""Make the bundled model from nothing: simulate, train stage 1, run it, train stage 2, pack.

    python experiments/train_compact.py runs/compact            # about three hours on two cores
    python experiments/train_compact.py runs/compact --quick    # minutes, to see that it works

Every part resumes where it stopped when the command is given again. The packed half-precision
checkpoints are ``runs/compact/compact_stage1.safetensors`` and ``compact_stage2.safetensors``;
``etsam segment --model runs/compact`` uses them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from etsam.feedback import write_stage1_logits
from etsam.sam2 import load_checkpoint, save_checkpoint
from etsam.simulate import simulate_many
from etsam.train import Schedule, TrainOptions, train

TRAINING_SEEDS = range(200)
STAGE2_SEEDS = range(100)
"""Stage 2 learns on fewer tomograms: stage 1 has to be run over each of them first."""
VALIDATION_SEEDS = range(900_000, 900_010)
SHAPE = (64, 256, 256)


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
    train_seeds = list(TRAINING_SEEDS)[: 4 if given.quick else None]
    held_seeds = list(VALIDATION_SEEDS)[: 1 if given.quick else None]
    shape = (16, 128, 128) if given.quick else SHAPE
    data, held = given.folder / "data", given.folder / "held"
    data2 = given.folder / "data2"
    simulate_many(data, train_seeds, shape, given.workers)
    simulate_many(data2, train_seeds[: len(STAGE2_SEEDS)], shape, given.workers)
    simulate_many(held, held_seeds, shape, given.workers)
    sizes = (64, 96) if given.quick else (128, 192, 256)
    steps1, steps2 = (4, 4) if given.quick else (1800, 750)
    stage1 = train(
        TrainOptions(
            data,
            given.folder / "stage1",
            validation=held,
            sizes=sizes,
            every=250,
            device=given.device,
            schedule=Schedule(steps=steps1, learning_rate=1.5e-3),
        ),
        _print,
    )
    for folder in (data2, held):
        write_stage1_logits(folder, stage1, device=given.device)
    stage2 = train(
        TrainOptions(
            data2,
            given.folder / "stage2",
            stage=2,
            validation=held,
            sizes=sizes,
            every=250,
            device=given.device,
            start=stage1,
            schedule=Schedule(steps=steps2, learning_rate=8e-4),
        ),
        _print,
    )
    pack(stage1, given.folder / "compact_stage1.safetensors")
    pack(stage2, given.folder / "compact_stage2.safetensors")


def _print(entry: dict[str, float]) -> None:
    print(json.dumps({key: np.round(value, 4) for key, value in entry.items()}), flush=True)


if __name__ == "__main__":
    main()

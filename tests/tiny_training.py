"""A network, data and options small enough to train in every test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import torch

from etsam.sam2 import SAM2, SAM2Config
from etsam.train import COMPACT, Schedule, Source, TrainOptions, initialise

TINY = replace(
    COMPACT,
    widths=(8, 8, 16, 16),
    stages=(1, 1, 1, 1),
    context_width=0,
    d_model=32,
    memory_dim=16,
    memory_feed_forward=32,
    decoder_feed_forward=32,
    decoder_heads=2,
)
TINY_SAM2 = SAM2Config(
    image_size=64,
    embed_dim=8,
    num_heads=1,
    stages=(1, 2, 3, 1),
    global_blocks=(4,),
    window_spec=(8, 4, 8, 4),
    pos_embed_size=(7, 7),
    d_model=32,
    memory_dim=16,
    memory_layers=1,
    memory_feed_forward=32,
    decoder_feed_forward=32,
    decoder_heads=2,
)
"""As published, but small."""


def network(config: SAM2Config, channels: int = 5) -> SAM2:
    """A random network that sees an object everywhere."""
    torch.manual_seed(0)
    model = SAM2(replace(config, in_channels=channels))
    initialise(model)
    with torch.no_grad():
        model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(5)
    return model


def write_pairs(folder: Path, count: int = 2, shape: tuple[int, int, int] = (16, 80, 80)) -> Path:
    """Tomograms of a dark sheet in noise, with masks."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for number in range(count):
        mask = np.zeros(shape, np.int8)
        start = 10 + 20 * number
        mask[:, start : start + 6] = 1
        grey = random.normal(0, 20, shape) - 40.0 * mask
        for name, data in (("", grey.clip(-127, 127)), ("_membrane", mask)):
            with mrcfile.new(folder / f"t{number}{name}.mrc") as file:
                file.set_data(data.astype(np.int8))
                file.voxel_size = 10.0
    return folder


def options(
    data: Path | Sequence[Source], output: Path, steps: int = 4, **changes: Any
) -> TrainOptions:
    """Options of a run of seconds."""
    given = TrainOptions(
        data,
        output,
        config=TINY,
        frames=2,
        sizes=(64,),
        every=2,
        dtype="float32",
        schedule=Schedule(steps=steps, batch=2, warmup=2),
    )
    return replace(given, **changes)


def write_seed(folder: Path, seed: int) -> None:
    """A pair as if simulated from a seed; odd ones from 7 on fail, and those from 9 on in an expected way."""
    if seed % 100 >= 9 and seed % 2:
        raise ValueError(f"seed {seed} is nonsense")
    if seed % 100 >= 7 and seed % 2:
        raise ArithmeticError(f"seed {seed} fails")
    made = write_pairs(folder / "made", 1, (4, 32, 32))
    for name in ("t0_membrane.mrc", "t0.mrc"):
        (made / name).replace(folder / name)


def read_log(run: Path) -> list[dict[str, Any]]:
    """The log without times."""
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in entries]

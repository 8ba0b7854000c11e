"""Learning rates over time and over layers, and the optimiser that uses them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from etsam.sam2 import SAM2

TRUNK, ENCODER = "image_encoder.trunk.", "image_encoder."


@dataclass(frozen=True)
class Schedule:
    """Optimisation: AdamW, linear warm-up, cosine to ``last`` of the peak, weight averaging.

    Warm-up takes ``warmup`` steps, but at most a tenth of all, so that short runs reach their peak too.
    ``encoder_learning_rate`` is the peak for the image encoder where it has one of its own. A layer
    of the trunk has ``layer_decay`` times the rate of the next one, the last one ``layer_decay`` times
    the encoder's; position encodings keep the encoder's (SAM 2).
    """

    steps: int = 10_000
    batch: int = 4
    learning_rate: float = 1e-3
    last: float = 0.02
    warmup: int = 200
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    ema: float = 0.999
    encoder_learning_rate: float | None = None
    layer_decay: float = 1.0
    beta2: float = 0.98

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        warmup = min(self.warmup, self.steps // 10)
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        low = self.last * self.learning_rate
        return low + (self.learning_rate - low) * (1 + math.cos(math.pi * min(done, 1))) / 2

    def average_decay(self, step: int) -> float:
        """How much of the averaged weights is kept at a step."""
        return min(self.ema, (1 + step) / (10 + step))


def make_optimiser(model: SAM2, schedule: Schedule) -> torch.optim.Optimizer:
    """AdamW with a group for each learning rate; vectors (biases, norms) have no weight decay."""
    groups: dict[tuple[float, float], list[Tensor]] = {}
    scales = rate_scales(model, schedule)
    for name, parameter in model.named_parameters():
        decay = schedule.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((scales[name], decay), []).append(parameter)
    listed: list[dict[str, Any]] = [
        {"params": parameters, "scale": scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]
    return torch.optim.AdamW(listed, betas=(0.9, schedule.beta2), fused=True)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of a learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["scale"]


def rate_scales(model: SAM2, schedule: Schedule) -> dict[str, float]:
    """Each parameter's learning rate as a multiple of ``schedule.learning_rate``."""
    rate = schedule.encoder_learning_rate
    encoder = 1.0 if rate is None else rate / schedule.learning_rate
    depth = _trunk_depth(model)
    scales = {}
    for name, _ in model.named_parameters():
        scales[name] = encoder if name.startswith(ENCODER) else 1.0
        if name.startswith(TRUNK) and "pos_embed" not in name:
            scales[name] *= schedule.layer_decay ** (depth + 1 - _layer(name, model))
    return scales


def _trunk_depth(model: SAM2) -> int:
    stages = model.config.stages
    return sum(stages)


def _layer(name: str, model: SAM2) -> int:
    """Layer of a trunk parameter: 0 the patch embedding or stem, then block after block."""
    if block := re.search(r"trunk\.blocks\.(\d+)\.", name):
        return int(block[1]) + 1
    if block := re.search(r"trunk\.levels\.(\d+)\.(\d+)\.", name):
        return sum(model.config.stages[: int(block[1])]) + int(block[2]) + 1
    if block := re.search(r"trunk\.downsamples\.(\d+)\.", name):
        return sum(model.config.stages[: int(block[1]) + 1])
    if re.search(r"trunk\.(merges|refinements)\.", name):
        return _trunk_depth(model)
    return 0

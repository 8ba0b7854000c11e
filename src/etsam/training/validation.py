"""How good a network is on clips it was not trained on, in figures and in a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from etsam.clip_loss import run_clips
from etsam.metrics import Confusion, confusion
from etsam.sam2 import SAM2
from etsam.training.clips import Clips, ClipSampler, ClipShape, own_random
from etsam.training.prompting import PromptMix

CLIPS, FRAMES = 24, 6
CLIPS_SQUARE = 4
"""Held-out clips; fewer where a frame is a whole slice."""
ROWS = 6
"""Clips in a picture."""
COLOURS = {1: (255, 180, 40), -1: (90, 90, 140)}
"""Of membrane and of what is not annotated, red, green, blue."""


@torch.no_grad()
def validate(
    model: SAM2,
    sampler: ClipSampler,
    size: int,
    automatic: Literal["grid", "zero"],
    device: torch.device,
) -> tuple[dict[str, Any], np.ndarray]:
    """Dice, precision and recall at logits > 0 with the automatic prompt, and a picture.

    The clips are the same each time.
    """
    square = sampler.spec.size == "square"
    shape = ClipShape(_frames(sampler), size)
    counts, rows = Confusion(), []
    mix = PromptMix(automatic, share=1.0)
    for index in range(CLIPS_SQUARE if square else CLIPS):
        clips = sampler.batch(0, [index], shape).to(device)
        plan = mix.plan(shape.frames + 1, own_random(sampler.seed, 0, -1))
        logits = torch.zeros(0)
        for frame, output in run_clips(model, clips, plan, checkpointing=square):
            logits = _full(output.logits, clips.labels)
            counts += confusion((logits[0] > 0).numpy(), clips.labels[0, frame].cpu().numpy())
        rows.append(row(clips, len(sampler.spec.offsets), logits[0]))
    figures = {
        name: value
        for name in ("dice", "precision", "recall")
        if not math.isnan(value := getattr(counts, name))
    }
    return figures, np.concatenate(rows[:ROWS])


def _frames(sampler: ClipSampler) -> int:
    """Slices of a held-out clip: fewer where volumes are thin."""
    depths = [pair.shape[0] for group in sampler.groups(0) for pair in group.pairs]
    return min(FRAMES, *depths)


def _full(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits at the resolution of the labels, (b, h, w) on the CPU."""
    return interpolate(logits.float(), labels.shape[-2:], mode="bilinear")[:, 0].cpu()


def clips_picture(clips: Clips, greys: int) -> np.ndarray:
    """The last slice of each clip as the network sees it, and its labels; uint8 (h, w, 3)."""
    rows = [
        row(Clips(clips.frames[i : i + 1], clips.labels[i : i + 1]), greys)
        for i in range(min(ROWS, len(clips.labels)))
    ]
    return np.concatenate(rows)


def row(clips: Clips, greys: int, logits: Tensor | None = None) -> np.ndarray:
    """Grey values, labels over them and probabilities of a clip's last slice, side by side."""
    grey = clips.frames[0, -1, greys // 2].cpu().float()
    low, high = torch.quantile(grey.flatten()[:: 1 + grey.numel() // 100_000], _tails()).tolist()
    shown = ((grey - low) / max(high - low, 1e-6)).clamp(0, 1)
    plain = (255 * shown).byte().numpy()[..., None].repeat(3, -1)
    marked = plain.copy()
    labels = clips.labels[0, -1].cpu().numpy()
    for value, colour in COLOURS.items():
        marked[labels == value] = marked[labels == value] // 2 + np.array(colour, np.uint8) // 2
    panels: Sequence[np.ndarray] = [plain, marked]
    if logits is not None:
        panels = [*panels, (255 * logits.sigmoid()).byte().numpy()[..., None].repeat(3, -1)]
    return np.pad(np.concatenate(panels, axis=1), ((0, 2), (0, 0), (0, 0)))


def _tails() -> Tensor:
    return torch.tensor([0.005, 0.995])

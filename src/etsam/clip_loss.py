"""Run the tracker over a training clip with gradients and add up the losses of its frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from etsam.dataset import Clips
from etsam.losses import LossWeights, frame_loss
from etsam.sam2 import SAM2, Features, MemoryBank, Output

GRID_STEP = 50
"""Pixels between the dots of the automatic prompt (paper, section 4.4)."""
LONG = 1000
"""Length of the volume a clip is thought to come from, in slices."""
PromptKind = Literal["grid", "zero", "mask", "points", "box"]


@dataclass(frozen=True)
class PromptMix:
    """How often each prompt conditions a clip.

    ``automatic`` is ``grid`` in stage 1 and ``zero`` in stage 2, the prompts of use. SAM 2, and
    with it the paper, draws the rest only: points .5, box .25, mask .25.
    """

    automatic: Literal["grid", "zero"] = "grid"
    share: float = 0.7
    points: float = 0.5
    box: float = 0.25

    def draw(self, random: np.random.Generator) -> PromptKind:
        """Choose the prompt of one batch."""
        if random.random() < self.share:
            return self.automatic
        kind = random.random()
        if kind < self.points:
            return "points"
        return "box" if kind < self.points + self.box else "mask"


def grid_mask(shape: tuple[int, ...], random: np.random.Generator) -> Tensor:
    """One-pixel dots every 50 pixels with a random phase, (b, 1, h, w) float32."""
    mask = torch.zeros(shape[0], 1, *shape[-2:])
    y, x = random.integers(0, GRID_STEP, 2)
    mask[..., y::GRID_STEP, x::GRID_STEP] = 1
    return mask


def sample_point(labels: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """One click per clip on a random membrane pixel; a negative one where there is none.

    Returns x, y in pixels (b, 1, 2) and labels (b, 1).
    """
    points, signs = [], []
    for plane in labels:
        where = (plane == 1).nonzero()
        signs.append(int(len(where) > 0))
        if len(where):
            y, x = where[int(random.integers(len(where)))].tolist()
        else:
            y, x = (int(random.integers(n)) for n in plane.shape)
        points.append([float(x), float(y)])
    return torch.tensor(points)[:, None], torch.tensor(signs)[:, None]


def sample_box(labels: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """The bounding box of each mask, moved by up to a tenth of its size, as its two corners."""
    corners = []
    for plane in labels:
        where = (plane == 1).nonzero().float()
        if not len(where):
            where = torch.tensor([[0.0, 0.0], [plane.shape[0] - 1.0, plane.shape[1] - 1.0]])
        low, high = where.amin(0), where.amax(0)
        noise = torch.from_numpy(random.uniform(-0.1, 0.1, (2, 2)).astype(np.float32))
        box = torch.stack((low, high)) + noise * (high - low)
        corners.append(box.flip(-1))
    return torch.stack(corners), torch.tensor([[2, 3]]).expand(len(labels), -1)


def split_features(features: Features, clips: int) -> Iterator[Features]:
    """Cut features of (b * t) frames into one `Features` of b frames for each of t times."""
    image = torch.unflatten(features.image, 0, (clips, -1))
    high_res = [torch.unflatten(maps, 0, (clips, -1)) for maps in features.high_res]
    for time in range(image.shape[1]):
        yield Features(image[:, time], [maps[:, time] for maps in high_res])


def run_clips(
    model: SAM2, clips: Clips, kind: PromptKind, random: np.random.Generator
) -> Iterator[tuple[int, Output]]:
    """Condition on frame 0, then track the others; yields frame number and answer.

    Frame 0 is yielded only where the network answers it itself (points and box).
    """
    count = len(clips.frames)
    features = model.encode(clips.frames.flatten(0, 1))
    first, *others = split_features(features, count)
    truth = clips.labels[:, 0]
    if kind in ("points", "box"):
        sampler = sample_point if kind == "points" else sample_box
        points, signs = (part.to(truth.device) for part in sampler(truth.cpu(), random))
        bank = MemoryBank.for_config(model.config)
        image = model.condition(first.image, bank, 0, LONG)
        output = model.decode(image, first, points=(points, signs), multimask=kind == "points")
        yield 0, output
    else:
        mask = (truth == 1).float()[:, None]
        if kind == "grid":
            mask = grid_mask(tuple(mask.shape), random).to(mask.device)
        elif kind == "zero":
            mask = torch.zeros_like(mask)
        output = model.answer_with_mask(first, mask)
    bank = MemoryBank.for_config(model.config)
    # in use the conditioning slice is anything from one to hundreds of slices away
    away = 1 if random.random() < 0.5 else int(random.integers(1, LONG // 2))
    bank.conditioning[-away] = model.remember(first, output, binary=True)
    for z, frame in enumerate(others):
        output = model.decode(model.condition(frame.image, bank, z, LONG), frame)
        bank.remember(z, model.remember(frame, output))
        yield z + 1, output


def clip_loss(
    model: SAM2, clips: Clips, kind: PromptKind, weights: LossWeights, random: np.random.Generator
) -> Tensor:
    """Mean loss of the answered frames, a scalar."""
    losses = [
        frame_loss(output.decoded, clips.labels[:, index], weights)
        for index, output in run_clips(model, clips, kind, random)
        if output.decoded is not None
    ]
    return torch.stack(losses).mean()

"""Prompts while training: which frames of a clip get what, and where clicks and boxes fall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from etsam.metrics import IGNORE
from etsam.prompts import INTERVAL
from etsam.sam2.prompt_encoder import BOX_FIRST, BOX_SECOND, NEGATIVE, POSITIVE

LONG = 1000
"""Length of the volume a clip is thought to come from, in slices."""
BOX_NOISE, BOX_NOISE_LIMIT = 0.1, 20.0
"""A box's corners move by up to a tenth of its size, and at most 20 pixels (SAM 2)."""
PromptKind = Literal["grid", "zero", "mask", "points", "box"]
CLICKED = ("points", "box")
Randoms = Sequence[np.random.Generator]


@dataclass(frozen=True)
class Plan:
    """The prompts of one batch of clips.

    Attributes
    ----------
    kind
        What conditions the frames in ``conditioning``, which are answered before the others.
    corrected
        Frames whose answer is corrected by ``len(from_truth)`` clicks, one after the other; a click
        falls on an error, or anywhere on the truth where ``from_truth`` says so.
    away
        How many slices the conditioning frame of anchored clips lies before the others.
    phase
        Where the dots of a grid begin, y and x.
    """

    kind: PromptKind
    conditioning: tuple[int, ...] = (0,)
    corrected: frozenset[int] = frozenset()
    from_truth: tuple[bool, ...] = ()
    away: int = 1
    phase: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class PromptMix:
    """How often each prompt conditions a clip, and how much is corrected.

    Attributes
    ----------
    automatic, share
        The prompt of use (``grid`` in stage 1, ``zero`` in stage 2), and how often it is drawn. SAM 2,
        and with it the paper, never does.
    points, box
        Shares of the rest; what then remains is the true mask.
    conditioning, corrected
        Most frames that are conditioned, and most that get correction clicks after points or a box.
    clicks, from_truth
        Clicks on a corrected frame, and how often one falls on the truth instead of an error.
    """

    automatic: Literal["grid", "zero"] = "grid"
    share: float = 0.7
    points: float = 0.5
    box: float = 0.25
    conditioning: int = 1
    corrected: int = 0
    clicks: int = 7
    from_truth: float = 0.1

    def draw(self, random: np.random.Generator) -> PromptKind:
        """Choose the prompt of one batch."""
        if random.random() < self.share:
            return self.automatic
        kind = random.random()
        if kind < self.points:
            return "points"
        return "box" if kind < self.points + self.box else "mask"

    def plan(self, frames: int, random: np.random.Generator) -> Plan:
        """Choose the prompts of a batch of clips of ``frames`` frames.

        The first frame is always conditioned, and corrected where any is; as in SAM 2 the numbers
        of frames are drawn evenly up to the most.
        """
        kind = self.draw(random)
        most = max(1, min(self.conditioning, frames - 1))
        conditioned = int(random.integers(1, most + 1))
        others = random.permutation(np.arange(1, frames)).tolist()
        first = (0, *others[: conditioned - 1])
        corrected: frozenset[int] = frozenset()
        if kind in CLICKED and self.corrected:
            most = max(conditioned, min(self.corrected, frames))
            extra = int(random.integers(conditioned, most + 1)) - conditioned
            corrected = frozenset((*first, *others[conditioned - 1 :][:extra]))
        y, x = random.integers(0, INTERVAL, 2).tolist()
        # in use the conditioning slice is anything from one to hundreds of slices away
        away = 1 if random.random() < 0.5 else int(random.integers(1, LONG // 2))
        truth = tuple((random.random(self.clicks) < self.from_truth).tolist())
        return Plan(kind, first, corrected, truth, away, (y, x))


def prompt_mask(kind: PromptKind, labels: Tensor, phase: tuple[int, int]) -> Tensor:
    """The mask prompt of a frame with labels (b, h, w), (b, 1, h, w) float32.

    ``grid`` is one-pixel dots every 50 pixels, ``zero`` is empty, ``mask`` is the truth.
    """
    if kind == "mask":
        return (labels == 1).float()[:, None]
    mask = torch.zeros(len(labels), 1, *labels.shape[1:], device=labels.device)
    if kind == "grid":
        mask[..., phase[0] :: INTERVAL, phase[1] :: INTERVAL] = 1
    return mask


def sample_clicks(labels: Tensor, found: Tensor | None, randoms: Randoms) -> tuple[Tensor, Tensor]:
    """One click per clip on a random pixel where the answer is wrong.

    Positive where membrane was missed, negative where there is none; without an answer (None) on a
    random membrane pixel; negative on the background where nothing is wrong.

    Parameters
    ----------
    labels, found
        (b, h, w); the answer is a boolean mask.

    Returns
    -------
    points, signs
        x, y in pixels (b, 1, 2) float32; 1 or 0 (b, 1).
    """
    points, signs = [], []
    masks = torch.zeros_like(labels, dtype=torch.bool) if found is None else found
    for plane, mask, random in zip(labels.cpu(), masks.cpu(), randoms, strict=True):
        truth = plane == 1
        for place in ((mask != truth) & (plane != IGNORE), plane == 0, plane == plane):
            where = place.flatten().nonzero()[:, 0]
            if len(where):
                break
        pixel = int(where[int(random.integers(len(where)))])
        y, x = divmod(pixel, plane.shape[1])
        points.append([float(x), float(y)])
        signs.append(POSITIVE if truth[y, x] else NEGATIVE)
    device = labels.device
    return torch.tensor(points, device=device)[:, None], torch.tensor(signs, device=device)[:, None]


def sample_boxes(labels: Tensor, randoms: Randoms) -> tuple[Tensor, Tensor]:
    """The moved bounding box of each mask, as its two corners: (b, 2, 2) and labels (b, 2)."""
    corners = []
    for plane, random in zip(labels.cpu(), randoms, strict=True):
        where = (plane == 1).nonzero().float()
        end = torch.tensor(plane.shape).float() - 1
        if not len(where):
            where = torch.stack((torch.zeros(2), end))
        low, high = where.amin(0), where.amax(0)
        reach = (BOX_NOISE * (high - low)).clamp(max=BOX_NOISE_LIMIT)
        noise = torch.from_numpy(random.uniform(-1, 1, (2, 2)).astype(np.float32))
        box = (torch.stack((low, high)) + noise * reach).clamp(min=torch.zeros(2), max=end)
        corners.append(box.flip(-1))
    kinds = torch.tensor([[BOX_FIRST, BOX_SECOND]], device=labels.device)
    return torch.stack(corners).to(labels.device), kinds.expand(len(labels), -1)

"""Prompts: masks that tell the tracker where to start, and the order in which it sees slices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from etsam.frames import FrameGeometry, FrameSequence
from etsam.options import PromptKind

INTERVAL = 50  # pixels between dots, and slices between repeated prompts (paper, ablations)
SPLIT_INTERVAL = 10  # the same for quadrants (released code)
PARTIAL_THRESHOLD = -0.25  # logits; the paper says 0.0, the released code -0.25: we follow the code
LEAD_IN = 1  # virtual slices before slice 0, see `schedule`


def prompted_slices(kind: PromptKind, depth: int, interval: int = INTERVAL) -> list[int]:
    """Indices of the slices that get a prompt.

    Raises
    ------
    ValueError
        The kind is unknown or the interval is not positive.
    """
    if kind not in get_args(PromptKind):
        raise ValueError(f"unknown prompt {kind!r}: expected {', '.join(get_args(PromptKind))}")
    if interval < 1:
        raise ValueError(f"prompt interval is {interval}: expected at least 1")
    if kind == "none":
        return []
    if kind in ("zero", "grid_zero"):
        return [0]
    return list(range(0, depth, interval))


def grid_mask(shape: tuple[int, int], interval: int = INTERVAL) -> Tensor:
    """Mask (h, w) of one-pixel dots every `interval` pixels, the first at (0, 0)."""
    mask = torch.zeros(shape, dtype=torch.bool, device="cpu")
    step = min(interval, max(shape))  # torch wants numbers of 64 bits to be smaller than that
    mask[::step, ::step] = True
    return mask


def make_prompts(
    kind: PromptKind,
    depth: int,
    geometry: FrameGeometry,
    *,
    interval: int = INTERVAL,
    previous: Callable[[int], Tensor] | None = None,
) -> dict[int, Tensor]:
    """Binary masks (h, w) in frame pixels by slice index.

    Where slices are squeezed to the network's square the dots are drawn on the slice and squeezed
    with it, as the reference does; where slices keep their pixels they are drawn on the frame, with
    nothing in its padding. ``previous`` reads a slice of the previous stage's logits (Y, X);
    ``etsam_stage1_partial`` needs it.

    Raises
    ------
    ValueError
        The kind is unknown, or the stage before is needed and there is none.
    """
    slices = prompted_slices(kind, depth, interval)
    if kind == "etsam_stage1_partial":
        if previous is None:
            raise ValueError("the prompt etsam_stage1_partial is for stage 2: it needs stage 1")
        return {z: fit_mask(previous(z) > PARTIAL_THRESHOLD, geometry) for z in slices}
    canvas = geometry.slice_shape if geometry.is_square else geometry.scaled_shape
    mask = grid_mask(canvas, interval)
    if kind == "zero":
        mask = torch.zeros_like(mask)
    return dict.fromkeys(slices, fit_mask(mask, geometry))


def fit_mask(mask: Tensor, geometry: FrameGeometry) -> Tensor:
    """Bring a mask of a slice, or of its scaled form, to the frame; the padding stays empty.

    Resized bilinearly with antialiasing and binarised at 0.5, as SAM 2 does with mask prompts.
    """
    if mask.shape != geometry.scaled_shape:
        values = mask[None, None].float()
        scaled = interpolate(values, geometry.scaled_shape, mode="bilinear", antialias=True)
        mask = scaled[0, 0] >= 0.5
    height, width = geometry.frame_shape
    return pad(mask, (0, width - mask.shape[1], 0, height - mask.shape[0]))


@dataclass(frozen=True)
class Schedule:
    """Order in which the tracker sees the slices.

    Attributes
    ----------
    slices
        Slice index of every step.
    real
        Whether a step's logits are the slice's result; virtual steps only carry prompts or memory.
    prompts
        Masks by step.
    """

    slices: tuple[int, ...]
    real: tuple[bool, ...]
    prompts: Mapping[int, Tensor]

    def step_after(self, z: int) -> int:
        """Return the step that follows the one whose logits are slice z's; 0 for z = -1."""
        steps = zip(self.slices, self.real, strict=True)
        return next((i + 1 for i, (at, real) in enumerate(steps) if real and at == z), 0)


def schedule(depth: int, prompts: Mapping[int, Tensor], lead_in: int = LEAD_IN) -> Schedule:
    """Lay out the tracker's steps for slices 0 to depth - 1.

    SAM 2 returns a mask prompt as that slice's result, so that a prompted slice is never predicted.
    With ``lead_in=0`` this stays so (reference). Otherwise every prompt moves to a virtual copy of
    its slice right before it, and the slice itself is predicted like all others; before slice 0
    ``lead_in`` virtual slices stand, the volume mirrored, the first of them with the prompt.
    """
    slices: list[int] = []
    real: list[bool] = []
    moved: dict[int, Tensor] = {}
    for z in range(depth):
        if z in prompts:
            moved[len(slices)] = prompts[z]
        if z in prompts and lead_in:
            virtual = range(min(lead_in, depth) - 1, -1, -1) if z == 0 else (z,)
            slices += virtual
            real += [False] * len(virtual)
        slices.append(z)
        real.append(True)
    return Schedule(tuple(slices), tuple(real), moved)


@dataclass(frozen=True)
class ScheduledFrames:
    """Frames in the order of a schedule."""

    frames: FrameSequence
    slices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> Tensor:
        return self.frames[self.slices[index]]

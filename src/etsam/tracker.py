"""Track membranes through the slices of volumes: a generator over one SAM 2.1 network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from etsam.sam2 import MEMORY_BIAS, NO_OBJECT_LOGIT, SAM2, Features, Memory, MemoryBank


class Frames(Protocol):
    """Network-ready slices, made when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, z: int) -> Tensor:
        """Frame ``z``, (c, h, w) float32; or (b, c, h, w) of so many volumes side by side."""
        ...


def track(
    model: SAM2,
    frames: Frames,
    prompts: Mapping[int, Tensor],
    bank: MemoryBank | None = None,
    start: int = 0,
) -> Iterator[tuple[int, Tensor]]:
    """Yield the logits of every slice from `start` on, as the reference's forward propagation does.

    Parameters
    ----------
    model
        The network, on its device and in its precision.
    frames
        The slices; the prompted ones are read first, then each one once.
    prompts
        Slice -> binary mask (h, w) in frame pixels. A prompted slice answers with its prompt;
        all prompted slices are in memory before tracking starts. May be empty.
    bank
        Memory to go on with; a new one by default.
    start
        First slice to track; the bank holds what was tracked before it. Prompts are remembered
        anew, which gives the same memories.

    Yields
    ------
    z, logits
        Logits (h / s, w / s) float32 at the network's patch stride ``s``, on its device; or
        (b, h / s, w / s).
    """
    bank = MemoryBank.for_config(model.config) if bank is None else bank
    answers = {z: _condition_on_prompt(model, frames, bank, z, prompts[z]) for z in sorted(prompts)}
    for z in range(start, len(frames)):
        if z in answers:
            yield z, answers.pop(z)
        else:
            frame = frames[z]
            logits = track_slice(model, encode(model, frame), bank, z, len(frames))
            yield z, logits if frame.ndim > 3 else logits[0]


def for_a_mean(logits: Tensor) -> Tensor:
    """Logits that are averaged with those of others, of any shape.

    "No object" counts as much as the answer to an empty mask, -10, so that one such answer is a vote and no veto.
    """
    return logits.masked_fill(logits == NO_OBJECT_LOGIT, MEMORY_BIAS)


@torch.inference_mode()
def encode(model: SAM2, frame: Tensor) -> Features:
    """Features of one frame, brought to the network's device and precision."""
    weight = model.no_mem_embed
    # added before the rows, so that channels that come last in memory still count as such
    frames = frame if frame.ndim > 3 else frame.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return model.encode(frames.to(weight.device, weight.dtype))


@torch.inference_mode()
def track_slice(model: SAM2, features: Features, bank: MemoryBank, z: int, length: int) -> Tensor:
    """Find the membranes of slice ``z`` from its features and the bank, and remember them.

    Returns
    -------
    logits
        (b, h / s, w / s) float32.
    """
    conditioned = model.condition(features.image, bank, z, length)
    output = model.decode(conditioned, features, before=bank.choice)
    bank.choice = output.choice
    bank.remember(z, _rounded(model.remember(features, output)))
    return output.logits[:, 0]


@torch.inference_mode()
def _condition_on_prompt(
    model: SAM2, frames: Frames, bank: MemoryBank, z: int, mask: Tensor
) -> Tensor:
    frame = frames[z]
    features = encode(model, frame)
    prompt = mask.to(features.image.device).expand(len(features.image), 1, *mask.shape)
    output = model.answer_with_mask(features, prompt)
    bank.conditioning[z] = _rounded(model.remember(features, output, binary=True))
    logits = output.logits[:, 0]
    return logits if frame.ndim > 3 else logits[0]


def _rounded(memory: Memory) -> Memory:
    """Spatial memory rounded to bfloat16, as SAM 2's video predictor keeps it in any precision."""
    spatial = memory.spatial
    return replace(memory, spatial=spatial.to(torch.bfloat16).to(spatial.dtype))

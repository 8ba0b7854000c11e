"""Run the tracker over a training clip with gradients and add up the losses of its frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.checkpoint import checkpoint

from etsam.losses import LossWeights, frame_loss
from etsam.sam2 import SAM2, Features, MemoryBank, Output
from etsam.training.clips import Clips
from etsam.training.prompting import (
    CLICKED,
    LONG,
    Plan,
    prompt_mask,
    sample_boxes,
    sample_clicks,
)

MASK_LIMIT = 32.0
"""Logits of the answer so far are clamped to this when they go back with a click (SAM 2)."""
Call = Callable[..., Any]


def _keep(part: Call, *arguments: Any) -> Any:
    """Run a part of the network, keeping what its gradient needs."""
    return part(*arguments)


def _forget(part: Call, *arguments: Any) -> Any:
    """Run a part of the network, and once more for its gradient: less memory, more time."""
    return checkpoint(part, *arguments, use_reentrant=False, preserve_rng_state=False)


def run_clips(
    model: SAM2, clips: Clips, plan: Plan, *, anchored: bool = True, checkpointing: bool = False
) -> Iterator[tuple[int, Output]]:
    """Answer the conditioned frames, then track the others; yields frame number and answer.

    Frames that are conditioned by a mask return it and are not yielded; corrected ones are yielded
    once more after each click. ``checkpointing`` keeps no intermediate values for the gradients, and
    encodes slice by slice.
    """
    call = _forget if checkpointing else _keep
    features = _encode(model, clips.frames, call, each=checkpointing)
    count = len(features)
    # frame 0 of anchored clips lies ``away`` slices before the others
    place = [-plan.away, *range(count - 1)] if anchored else list(range(count))
    bank = MemoryBank.for_config(model.config)
    others = [index for index in range(count) if index not in plan.conditioning]
    for index in (*plan.conditioning, *others):
        frame, labels, z = features[index], clips.labels[:, index], place[index]
        first = index in plan.conditioning
        masked = first and plan.kind not in CLICKED
        if masked:
            mask = prompt_mask(plan.kind, labels, plan.phase)
            output = call(model.answer_with_mask, frame, mask)
        else:
            known = MemoryBank.for_config(model.config) if first else _snapshot(bank)
            image = call(model.condition, frame.image, known, z, LONG)
            points = _first_prompt(plan, labels, clips) if first else None
            for output in _answers(model, (image, frame), (clips, index, points), plan, call):
                yield index, output
        memory = call(_remember, model, frame, output, masked)
        if first or index in plan.corrected:
            bank.conditioning[z] = memory
        else:
            bank.remember(z, memory)


def _encode(model: SAM2, frames: Tensor, call: Call, *, each: bool) -> list[Features]:
    """Features of frames (b, t, c, h, w), for each of t times; one after the other, or all at once."""
    if each:
        return [call(model.encode, frames[:, time]) for time in range(frames.shape[1])]
    features = model.encode(frames.flatten(0, 1))
    image, *high_res = (
        torch.unflatten(maps, 0, frames.shape[:2]).unbind(1)
        for maps in (features.image, *features.high_res)
    )
    return [Features(one, [maps[time] for maps in high_res]) for time, one in enumerate(image)]


def _snapshot(bank: MemoryBank) -> MemoryBank:
    """The bank as it is now, for a part that may run again when the bank has gone on."""
    return MemoryBank(
        dict(bank.conditioning),
        deque(bank.spatial, bank.spatial.maxlen),
        deque(bank.pointers, bank.pointers.maxlen),
    )


def _first_prompt(plan: Plan, labels: Tensor, clips: Clips) -> tuple[Tensor, Tensor]:
    if plan.kind == "points":
        return sample_clicks(labels, None, clips.randoms)
    return sample_boxes(labels, clips.randoms)


def _answers(
    model: SAM2,
    conditioned: tuple[Tensor, Features],
    target: tuple[Clips, int, tuple[Tensor, Tensor] | None],
    plan: Plan,
    call: Call,
) -> Iterator[Output]:
    """The answer to a frame, and to each click that corrects it.

    As in SAM 2 several candidates come from at most one point, and each click goes to the decoder
    together with all before it and the logits of the answer so far.
    """
    clips, index, points = target
    output = call(_decode, model, conditioned, points, None)
    yield output
    labels = clips.labels[:, index]
    for from_truth in plan.from_truth if index in plan.corrected else ():
        found = None if from_truth else _mask(output, labels)
        clicks, signs = sample_clicks(labels, found, clips.randoms)
        if points is not None:
            clicks, signs = (
                torch.cat(both, 1) for both in zip(points, (clicks, signs), strict=True)
            )
        points = clicks, signs
        output = call(_decode, model, conditioned, points, output.logits)
        yield output


def _mask(output: Output, labels: Tensor) -> Tensor:
    """What was found, at the resolution of the labels (b, h, w)."""
    full = interpolate(output.logits.detach().float(), labels.shape[1:], mode="bilinear")
    return full[:, 0] > 0


def _decode(
    model: SAM2,
    conditioned: tuple[Tensor, Features],
    points: tuple[Tensor, Tensor] | None,
    logits: Tensor | None,
) -> Output:
    image, features = conditioned
    mask = None if logits is None else logits.clamp(-MASK_LIMIT, MASK_LIMIT)
    multimask = points is None or points[0].shape[1] <= 1
    return model.decode(image, features, points=points, mask=mask, multimask=multimask)


def _remember(model: SAM2, features: Features, output: Output, masked: bool) -> Any:
    """Memory of a frame; soft where the network answered, so that gradients pass."""
    return model.remember(features, output, binary=masked)


class ClipLoss(nn.Module):
    """Mean loss over the answers of a batch of clips, a scalar; a module so that it can be shared out."""

    def __init__(
        self,
        model: SAM2,
        weights: LossWeights,
        *,
        anchored: bool = True,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.weights = model, weights
        self.anchored, self.checkpointing = anchored, checkpointing

    def forward(self, clips: Clips, plan: Plan) -> Tensor:
        call = _forget if self.checkpointing else _keep
        answers = run_clips(
            self.model, clips, plan, anchored=self.anchored, checkpointing=self.checkpointing
        )
        losses = [
            call(frame_loss, output.decoded, clips.labels[:, index], self.weights)
            for index, output in answers
        ]
        return torch.stack(losses).mean()

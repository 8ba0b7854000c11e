"""Pairs kept on the device and clips made there: what a GPU needs to be kept busy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from etsam.dataset import LOGIT_STEP
from etsam.frames import FrameSpec, window
from etsam.intensity import IntensityScaling
from etsam.logits import LOGIT_LIMIT, tracked_slices
from etsam.prompts import LEAD_IN, grid_mask, schedule
from etsam.sam2 import SAM2
from etsam.tracker import for_a_mean, track
from etsam.training.augment import augment_batch
from etsam.training.clips import Clips, ClipShape, own_random, walk

THIN, THICKEST = 0.2, 16
"""Part of the clips from a few slices taken for the whole volume, and how many slices at most."""
FOCUSED, SITES = 0.4, 256
"""Part of the clips that are laid over a membrane voxel, one of so many drawn from a pair."""


@dataclass(frozen=True)
class Resident:
    """One pair on the device: where its slices begin, how many they are, how it is scaled and drawn.

    ``sites`` (n, 3) are some of its membrane voxels, zyx.
    """

    first: int
    depth: int
    scaling: IntensityScaling
    weight: float
    sites: np.ndarray


class ResidentPairs:
    """Slices (n, Y, X) int8 of many pairs on a device; pairs may be added while others are drawn.

    All have slices of one shape, with a spacing within `FrameSpec`'s, so that frames are slices.
    They come blurred by ``blur`` pixels (`FrameSpec.blur`).
    """

    def __init__(
        self, slices: int, plane: tuple[int, int], device: torch.device, blur: float = 0.0
    ) -> None:
        shape = (slices, *plane)
        self.device, self.blur = device, blur
        self.grey = torch.empty(shape, dtype=torch.int8, device=device)
        self.labels = torch.empty(shape, dtype=torch.int8, device=device)
        self.logits: Tensor | None = None
        self._pairs: list[Resident] = []
        self._used = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._pairs)

    def add(
        self,
        grey: np.ndarray,
        labels: np.ndarray,
        scaling: IntensityScaling,
        weight: float,
        logits: np.ndarray | None = None,
    ) -> bool:
        """Take in a pair (Z, Y, X) int8; False where there is no room left.

        ``logits`` int8 are those that `write_stage1_logits` left; without, `track` makes them.

        Raises
        ------
        ValueError
            They differ in shape, or their slices are not the store's.
        """
        depth = len(grey)
        expected = (depth, *self.grey.shape[1:])
        shapes = [part.shape for part in (grey, labels, logits) if part is not None]
        if set(shapes) != {expected}:
            raise ValueError(f"a pair of {' and '.join(map(str, shapes))}: expected {expected}")
        with self._lock:
            first, self._used = self._used, self._used + depth
            if self._used > len(self.grey):
                self._used = first
                return False
        self.grey[first : first + depth].copy_(torch.from_numpy(grey))
        self.labels[first : first + depth].copy_(torch.from_numpy(labels))
        if logits is not None:
            self._answers()[first : first + depth].copy_(torch.from_numpy(logits))
        found = np.flatnonzero(labels == 1)
        chosen = np.random.default_rng(first).permutation(found)[:SITES]
        sites = np.stack(np.unravel_index(chosen, labels.shape), axis=1)
        self._pairs.append(Resident(first, depth, scaling, weight, sites))
        return True

    def pairs(self, first: int = 0) -> list[Resident]:
        """The pairs there are by now, from number ``first`` on."""
        return self._pairs[first:]

    @torch.no_grad()
    def track(self, model: SAM2, spec: FrameSpec, pairs: Sequence[Resident]) -> None:
        """Fill in stage-1 logits of pairs of equal depth, as `write_stage1_logits` does one by one.

        Raises
        ------
        ValueError
            Stage 1 wants slices blurred otherwise than those here are.
        """
        if spec.blur != self.blur:
            raise ValueError(
                f"stage 1 wants slices blurred by {spec.blur:g} pixels, those here are by "
                f"{self.blur:g}: give pairs their logits when adding them"
            )
        answers = self._answers()
        depth, plane = pairs[0].depth, self.grey.shape[1:]
        slices = tracked_slices(depth, spec.feedback_step)
        plan = schedule(len(slices), {0: grid_mask((plane[0], plane[1]))}, LEAD_IN)
        frames = _SideBySide(self, pairs, spec, [slices[index] for index in plan.slices])
        kept = [
            interpolate(for_a_mean(low)[:, None].float(), plane, mode="bilinear")[:, 0]
            for step, low in track(model, frames, plan.prompts)
            if plan.real[step]
        ]
        for z in range(depth):
            below = min(z // spec.feedback_step, len(slices) - 1)
            above = min(below + 1, len(slices) - 1)
            part = (z - slices[below]) / max(1, slices[above] - slices[below])
            logits = torch.lerp(kept[below], kept[above], part).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
            where = torch.tensor([pair.first + z for pair in pairs], device=self.device)
            answers[where] = (logits / LOGIT_STEP).round().to(torch.int8)

    def _answers(self) -> Tensor:
        """Stage-1 logits, all zero at first."""
        if self.logits is None:
            self.logits = torch.zeros_like(self.grey)
        return self.logits


@dataclass(frozen=True)
class _SideBySide:
    """Frames (b, c, Y, X) of pairs that are tracked together, of one slice of each."""

    store: ResidentPairs
    pairs: Sequence[Resident]
    spec: FrameSpec
    slices: Sequence[int]

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, step: int) -> Tensor:
        z, offsets = self.slices[step], self.spec.offsets
        index = [[p.first + i for i in window(z, p.depth, offsets, 1)] for p in self.pairs]
        where = torch.tensor(index, device=self.store.device)
        return _scaled(self.store.grey[where], [pair.scaling for pair in self.pairs])


def _scaled(grey: Tensor, scalings: Sequence[IntensityScaling]) -> Tensor:
    """Scale int8 (b, ...) each by its own scaling, float32."""
    numbers = torch.tensor(
        [(s.low, s.high, s.offset, s.divisor) for s in scalings], device=grey.device
    ).float()
    low, high, offset, divisor = (row.view(-1, *[1] * (grey.ndim - 1)) for row in numbers.T)
    scaled: Tensor = (grey.float().clamp(low, high) - offset) / divisor
    return scaled


@dataclass(frozen=True)
class ResidentSampler:
    """Draws augmented clips from resident pairs, all of a batch at once, on their device.

    ``pairs`` gives the pairs of a step; ``thin`` is the part of the clips that come from a few slices
    taken for the whole volume, with the whole volume's logits.
    """

    store: ResidentPairs
    pairs: Callable[[int], Sequence[Resident]]
    spec: FrameSpec
    seed: int
    thin: float = THIN

    def batch(self, step: int, indices: Sequence[int], shape: ClipShape) -> Clips:
        """Draw the clips with these indices in the batch of a step.

        Raises
        ------
        ValueError
            There are no pairs, or slices are smaller than a clip.
        """
        pairs, plane = self.pairs(step), tuple(self.store.grey.shape[1:])
        if not pairs or shape.size > min(plane):
            raise ValueError(
                f"{len(pairs)} pairs with slices of {plane}: no clip of {shape.size}^2 pixels"
            )
        weights = np.array([pair.weight for pair in pairs])
        chance = np.cumsum(weights / weights.sum())
        randoms = [own_random(self.seed, step, index) for index in indices]
        drawn = [
            pairs[min(int(np.searchsorted(chance, random.random())), len(pairs) - 1)]
            for random in randoms
        ]
        places = [self._place(p, shape, r) for p, r in zip(drawn, randoms, strict=True)]
        device = self.store.device
        windows = torch.tensor([place[0] for place in places], device=device)  # (b, t, n)
        slices = torch.tensor([place[1] for place in places], device=device)  # (b, t)
        corners = torch.tensor([place[2] for place in places], device=device)  # (b, 2)
        reach = torch.arange(shape.size, device=device)
        rows = (corners[:, :1] + reach)[:, None, :, None]
        columns = (corners[:, 1:] + reach)[:, None, None, :]
        labels = self.store.labels[slices[..., None, None], rows, columns]
        at = (windows[..., None, None], rows[:, None], columns[:, None])
        frames = _scaled(self.store.grey[at], [pair.scaling for pair in drawn])
        if self.store.logits is not None:
            logits = self.store.logits[at].float() * (LOGIT_STEP / LOGIT_LIMIT)
            frames = torch.cat((frames, logits), dim=2)
        frames, labels = augment_batch(frames, labels, len(self.spec.offsets), randoms)
        return Clips(frames, labels, randoms)

    def _place(
        self, pair: Resident, shape: ClipShape, random: np.random.Generator
    ) -> tuple[list[list[int]], list[int], list[int]]:
        """Slices of each frame's channels, slice of each frame, and the corner of a clip."""
        site = None
        if len(pair.sites) and random.random() < FOCUSED:
            site = pair.sites[int(random.integers(len(pair.sites)))].tolist()
        span = range(pair.depth)
        if random.random() < self.thin:
            thick = min(pair.depth, int(np.exp(random.uniform(0, np.log(THICKEST + 1)))))
            low = _start(pair.depth, thick, None if site is None else site[0], random)
            span = range(low, low + thick)
        inside = None if site is None else site[0] - span.start
        start = _start(len(span), min(shape.frames, len(span)), inside, random)
        zs, backwards = walk(span, start, shape, random)
        windows = []
        for z in zs:
            around = window(z - span.start, len(span), self.spec.offsets, 1)
            indices = [pair.first + span[i] for i in around]
            windows.append(indices[::-1] if backwards else indices)
        sides = self.store.grey.shape[1:]
        spots = (None, None) if site is None else site[1:]
        corner = [
            _start(side, shape.size, at, random) for side, at in zip(sides, spots, strict=True)
        ]
        return windows, [pair.first + z for z in zs], corner


def _start(length: int, size: int, at: int | None, random: np.random.Generator) -> int:
    """Where a part of a size begins, at random; it holds ``at`` if that is given."""
    low, high = 0, length - size
    if at is not None:
        low, high = max(low, at - size + 1), min(high, at)
    return int(random.integers(low, high + 1))

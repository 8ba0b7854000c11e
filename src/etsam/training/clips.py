"""Clips of consecutive slices drawn from pairs, each from a seed of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from etsam.dataset import Pair
from etsam.frame_spec import IMAGENET_MEAN, IMAGENET_STD
from etsam.frames import (
    FrameGeometry,
    FrameSpec,
    fuse,
    resize_planes,
    window,
)
from etsam.metrics import IGNORE
from etsam.training.augment import Augmentation, augment

PLACES = 10
"""Tries to find a place where something is annotated."""
THIN = 0.12
"""Part of the ``strong`` clips that come from a few slices taken for the whole volume."""
THINNEST, THICKEST = 1, 16
"""Slices of such a volume."""
SMALLER = "give a smaller --size, fewer --frames, or larger volumes"


@dataclass(frozen=True)
class ClipShape:
    """Sizes of a training clip.

    ``frames`` consecutive slices, ``size`` pixels square (square frames have their own size). With
    ``anchored`` one conditioning slice goes before them, from anywhere in the tomogram.
    """

    frames: int = 4
    size: int = 192
    anchored: bool = True

    def __str__(self) -> str:
        """As messages name it."""
        return f"a clip of {self.frames} slices of {self.size}^2 pixels"


@dataclass(frozen=True)
class Clips:
    """A batch of clips; where they are anchored, frame 0 is the conditioning slice.

    frames (b, t, c, h, w) float32; labels (b, t, h, w) int8 of 1, 0 and -1; ``randoms`` draw what
    else is random about each clip, so that a clip is the same in any batch.
    """

    frames: Tensor
    labels: Tensor
    randoms: list[np.random.Generator] = field(default_factory=list)

    def to(self, device: torch.device) -> Clips:
        """The same clips on a device."""
        return Clips(self.frames.to(device), self.labels.to(device), self.randoms)


@dataclass(frozen=True)
class Group:
    """Pairs that are drawn with equal chance; the group itself is drawn by its weight."""

    pairs: Sequence[Pair]
    weight: float


def own_random(seed: int, step: int, index: int) -> np.random.Generator:
    """The random numbers of clip ``index`` of a step; -1 for what all clips of the step share."""
    return np.random.default_rng((seed, step, index + 2))


def fits(pair: Pair, shape: ClipShape) -> bool:
    """Whether a clip can be cut from a pair; square frames are whole slices."""
    wide = pair.geometry.is_square or min(pair.geometry.scaled_shape) >= shape.size
    return wide and pair.shape[0] >= shape.frames


@dataclass(frozen=True)
class ClipSampler:
    """Draw augmented clips: which one depends on the seed, the step and its place in the batch.

    ``groups`` gives the pairs of a step; ``offsets`` of ``spec`` are the neighbours of a slice.
    """

    groups: Callable[[int], Sequence[Group]]
    spec: FrameSpec
    seed: int
    augmentation: Augmentation = "strong"

    def batch(self, step: int, indices: Sequence[int], shape: ClipShape) -> Clips:
        """Draw the clips with these indices in the batch of a step.

        Raises
        ------
        ValueError
            No volume is large enough for a clip.
        """
        groups = self.groups(step)
        randoms = [own_random(self.seed, step, index) for index in indices]
        clips = [self._clip(groups, shape, random) for random in randoms]
        return Clips(
            torch.stack([frames for frames, _ in clips]),
            torch.stack([labels for _, labels in clips]),
            randoms,
        )

    def _clip(
        self, groups: Sequence[Group], shape: ClipShape, random: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        pair = self._pick(groups, shape, random)
        geometry = pair.geometry
        for _ in range(PLACES):
            span = self._span(pair, random)
            zs, box = _place(span, geometry, shape, random)
            labels = torch.stack([pair.read_labels(z, box) for z in zs])
            if (labels[-shape.frames :] != IGNORE).any():
                break
        flipped = shape.frames > 1 and zs[-1] < zs[-shape.frames]
        planes = torch.stack(
            [self._planes(pair, z, span, box, flipped) for z in zs]  # (t, n, h, w)
        )
        size = geometry.scaled_shape if geometry.is_square else (shape.size, shape.size)
        planes = torch.unflatten(resize_planes(planes.flatten(0, 1), size), 0, planes.shape[:2])
        labels = interpolate(labels[None].float(), size, mode="nearest-exact")[0].to(torch.int8)
        greys = len(self.spec.offsets)
        frames, labels = augment(planes, labels, greys, self.augmentation, random)
        return self._coloured(frames), labels

    def _pick(self, groups: Sequence[Group], shape: ClipShape, random: np.random.Generator) -> Pair:
        """Draw a pair that is large enough."""
        fitting = [
            (group.weight, [pair for pair in group.pairs if fits(pair, shape)]) for group in groups
        ]
        fitting = [(weight, pairs) for weight, pairs in fitting if pairs and weight > 0]
        if not fitting:
            raise ValueError(f"every volume is smaller than {shape}: {SMALLER}")
        weights = np.array([weight for weight, _ in fitting])
        _, pairs = fitting[int(random.choice(len(fitting), p=weights / weights.sum()))]
        return pairs[int(random.integers(len(pairs)))]

    def _span(self, pair: Pair, random: np.random.Generator) -> range:
        """The slices that pass for the volume: all, or a few, as volumes in use may have."""
        depth = pair.shape[0]
        if self.augmentation != "strong" or random.random() >= THIN:
            return range(depth)
        ends = np.log((THINNEST, THICKEST + 1))
        thick = min(depth, int(np.exp(random.uniform(*ends))))
        start = int(random.integers(0, depth - thick + 1))
        return range(start, start + thick)

    def _planes(
        self, pair: Pair, z: int, span: range, box: tuple[slice, slice], flipped: bool
    ) -> Tensor:
        """Stacked neighbours of slice z, scaled, with stage-1 logits where there are any."""
        step = pair.geometry.z_step
        indices = [span[i] for i in window(z - span.start, len(span), self.spec.offsets, step)]
        if flipped:
            indices.reverse()
        planes = torch.stack([pair.read_grey(i, box) for i in indices])
        if pair.logits is None:
            return planes
        logits = torch.stack([pair.read_logits(i, box) for i in indices])
        limits = pair.logit_range if self.spec.fusion == "add" else None
        return fuse(planes, logits, self.spec, limits)

    def _coloured(self, frames: Tensor) -> Tensor:
        """Three equal channels with ImageNet's mean and deviation, for networks that want them."""
        if not self.spec.imagenet:
            return frames
        mean = frames.new_tensor(IMAGENET_MEAN)[:, None, None]
        return (frames - mean) / frames.new_tensor(IMAGENET_STD)[:, None, None]


def _place(
    span: range, geometry: FrameGeometry, shape: ClipShape, random: np.random.Generator
) -> tuple[list[int], tuple[slice, slice]]:
    """Slices, forwards or backwards, and the part of them that becomes a frame."""
    start = int(random.integers(0, max(0, len(span) - shape.frames) + 1))
    zs, _ = walk(span, start, shape, random)
    if geometry.is_square:
        return zs, (slice(None), slice(None))
    sides = [
        round(shape.size * length / scaled)
        for length, scaled in zip(geometry.slice_shape, geometry.scaled_shape, strict=True)
    ]
    corner = [
        int(random.integers(0, length - side + 1))
        for length, side in zip(geometry.slice_shape, sides, strict=True)
    ]
    rows, columns = (slice(c, c + side) for c, side in zip(corner, sides, strict=True))
    return zs, (rows, columns)


def walk(
    span: range, start: int, shape: ClipShape, random: np.random.Generator
) -> tuple[list[int], bool]:
    """Slices of a clip from ``start`` of a span on, forwards or backwards, and whether backwards.

    Where there are fewer slices than frames, the last one stands several times.
    """
    zs = [span[min(z, len(span) - 1)] for z in range(start, start + shape.frames)]
    backwards = bool(random.random() < 0.5)
    if backwards:
        zs.reverse()
    if shape.anchored:
        # where tracking begins in use, or anywhere, since it stays in memory to the end
        near = random.random() < 0.5
        zs.insert(0, zs[0] if near else span[int(random.integers(0, len(span)))])
    return zs, backwards

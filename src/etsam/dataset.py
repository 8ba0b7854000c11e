"""Training data: tomogram and mask pairs in a folder, cut into clips of consecutive slices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from etsam.frames import FrameSpec, fuse, window
from etsam.intensity import IntensityScaling, measure_intensity
from etsam.metrics import IGNORE
from etsam.volume import open_tomogram

MASK_SUFFIX = "_membrane.mrc"
LOGITS_SUFFIX = "_stage1.npy"
LOGIT_STEP = 5.0 / 127
"""Stage-1 logits, clipped to [-5, 5], are kept as int8 in memory and on disk."""


@dataclass(frozen=True)
class Pair:
    """A tomogram, its labels and, for stage 2, the stage-1 logits, all (Z, Y, X) in memory."""

    name: str
    grey: np.ndarray
    labels: np.ndarray
    scaling: IntensityScaling
    logits: np.ndarray | None


@dataclass(frozen=True)
class ClipShape:
    """Sizes of a training clip.

    ``frames`` consecutive slices after one conditioning slice, ``size`` pixels square.
    """

    frames: int = 4
    size: int = 192


@dataclass(frozen=True)
class Clips:
    """A batch: frame 0 is the conditioning slice, the others are consecutive.

    frames (b, t + 1, c, h, w) float32; labels (b, t + 1, h, w) int8 of 1, 0 and -1.
    """

    frames: Tensor
    labels: Tensor


def find_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """List tomograms that have a ``{stem}_membrane.mrc`` beside them, sorted by name."""
    pairs = []
    for mask in sorted(folder.glob(f"*{MASK_SUFFIX}")):
        tomogram = mask.with_name(mask.name.removesuffix(MASK_SUFFIX) + ".mrc")
        if tomogram.is_file():
            pairs.append((tomogram, mask))
    return pairs


def load_pair(tomogram: Path, mask: Path, spec: FrameSpec, *, with_logits: bool) -> Pair:
    """Read one pair into memory.

    Raises
    ------
    ValueError
        When tomogram and mask differ in shape, or the mask has other values than -1, 0, 1.
    FileNotFoundError
        When stage-1 logits are wanted and there are none.
    """
    with open_tomogram(tomogram) as volume, open_tomogram(mask) as truth:
        if volume.shape != truth.shape:
            raise ValueError(f"{mask} is {truth.shape}, but {tomogram} is {volume.shape}")
        scaling = measure_intensity(volume, spec.normalisation)
        grey = volume.read_slices(0, volume.shape[0])
        labels = truth.read_slices(0, truth.shape[0])
        if volume.dtype.itemsize == 1:
            grey = grey.astype(volume.dtype)
    if not np.isin(labels, (IGNORE, 0, 1)).all():
        raise ValueError(f"{mask} has values other than 1 (membrane), 0 and -1 (not annotated)")
    logits = None
    if with_logits:
        path = tomogram.with_name(tomogram.stem + LOGITS_SUFFIX)
        if not path.is_file():
            raise FileNotFoundError(f"no stage-1 logits at {path}; run stage 1 over the data first")
        logits = np.load(path, allow_pickle=False)
    return Pair(tomogram.stem, grey, labels.astype(np.int8), scaling, logits)


class ClipSampler:
    """Draw augmented clips from pairs that fit in memory, reproducibly from a seed."""

    def __init__(self, pairs: list[Pair], spec: FrameSpec, seed: int) -> None:
        if not pairs:
            raise ValueError("no training pairs: expected NAME.mrc beside NAME_membrane.mrc")
        self.pairs, self.spec = pairs, spec
        self.random = np.random.default_rng(seed)

    def batch(self, size: int, shape: ClipShape) -> Clips:
        """Draw ``size`` clips."""
        clips = [self._clip(shape) for _ in range(size)]
        return Clips(
            torch.stack([frames for frames, _ in clips]),
            torch.stack([labels for _, labels in clips]),
        )

    def batches(self, size: int, shape: ClipShape) -> Iterator[Clips]:
        """Draw batches for ever."""
        while True:
            yield self.batch(size, shape)

    def _clip(self, shape: ClipShape) -> tuple[Tensor, Tensor]:
        pair = self._pick(shape)
        depth, height, width = pair.labels.shape
        start = int(self.random.integers(0, depth - shape.frames + 1))
        y = int(self.random.integers(0, height - shape.size + 1))
        x = int(self.random.integers(0, width - shape.size + 1))
        zs = list(range(start, start + shape.frames))
        if self.random.random() < 0.5:
            zs.reverse()
        # the conditioning slice: where tracking begins in use, or anywhere, since it stays in
        # memory to the end of the volume
        anchor = zs[0] if self.random.random() < 0.5 else int(self.random.integers(0, depth))
        zs.insert(0, anchor)
        crop = np.s_[y : y + shape.size, x : x + shape.size]
        flipped = zs[1] > zs[-1]
        frames = torch.stack([self._planes(pair, z, crop, flipped) for z in zs])
        labels = torch.from_numpy(np.stack([pair.labels[z][crop] for z in zs]))
        frames = self._jitter(frames)
        return self._turn(frames, labels)

    def _pick(self, shape: ClipShape) -> Pair:
        for _ in range(1000):
            pair = self.pairs[int(self.random.integers(len(self.pairs)))]
            if min(pair.labels.shape[1:]) >= shape.size and len(pair.labels) >= shape.frames:
                return pair
        raise ValueError(f"the volumes are smaller than a clip ({shape.frames} x {shape.size}^2)")

    def _planes(self, pair: Pair, z: int, crop: tuple[slice, slice], flipped: bool) -> Tensor:
        """Stacked neighbours of slice z, scaled, with stage-1 logits where there are any."""
        indices = window(z, len(pair.labels), self.spec.offsets, 1)
        if flipped:
            indices.reverse()
        grey = torch.from_numpy(np.stack([pair.grey[i][crop] for i in indices]))
        planes = pair.scaling.apply(grey)
        if pair.logits is None:
            return planes
        logits = torch.from_numpy(np.stack([pair.logits[i][crop] for i in indices]))
        return fuse(planes, logits.float() * LOGIT_STEP, self.spec)

    def _jitter(self, frames: Tensor) -> Tensor:
        """Change contrast, brightness, noise and sharpness of the grey channels."""
        slices = len(self.spec.offsets)
        grey = frames[:, :slices]
        draw = self.random.random
        gain, shift = np.exp(0.25 * (2 * draw() - 1)), 0.2 * (2 * draw() - 1)
        grey = grey * gain + shift
        if draw() < 0.25:
            grey = grey + self._edge(grey.shape[-1])
        if draw() < 0.25:
            seed = int(self.random.integers(2**31))
            noise = torch.randn(grey.shape, generator=torch.Generator().manual_seed(seed))
            grey = grey + 0.5 * draw() * noise
        if draw() < 0.3:
            soft = torch.nn.functional.avg_pool2d(grey, 3, 1, 1)
            grey = torch.lerp(grey, soft, 1.6 * draw() - 0.6)
        return torch.cat((grey, frames[:, slices:]), dim=1)

    def _edge(self, size: int) -> Tensor:
        """A soft step in brightness along a random line, as at the rim of a carbon film."""
        angle, offset, height = self.random.uniform((0, -0.5, -1.5), (2 * np.pi, 0.5, 1.5))
        width = np.exp(self.random.uniform(np.log(3), np.log(60)))
        ramp = torch.arange(size, dtype=torch.float32) - size / 2
        across = ramp[:, None] * np.sin(angle) + ramp * np.cos(angle) - offset * size
        return float(height) * torch.sigmoid(across / width)

    def _turn(self, frames: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate by quarter turns and mirror, the same for the whole clip."""
        turns = int(self.random.integers(4))
        frames, labels = frames.rot90(turns, (-2, -1)), labels.rot90(turns, (-2, -1))
        if self.random.random() < 0.5:
            frames, labels = frames.flip(-1), labels.flip(-1)
        return frames.contiguous(), labels.contiguous()

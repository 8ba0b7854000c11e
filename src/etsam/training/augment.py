"""Augmentation of a training clip: frames (t, c, h, w) and labels (t, h, w) change together."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Augmentation = Literal["none", "strong", "sam2"]
"""``strong`` for networks that start from nothing, ``sam2`` as SAM 2 is fine-tuned."""

FADING = 0.15
"""Part of the ``strong`` clips whose later frames are covered with noise."""
WARPED, ZOOM = 0.5, 1.2
"""Part of the ``strong`` clips turned by any angle, and by how much those are zoomed at most."""
DEGREES, SHEAR = 25.0, 20.0
"""Largest rotation and shear of a clip in degrees (SAM 2's fine-tuning configuration)."""
BRIGHTNESS, CONTRAST, SLICE_CONTRAST = 0.1, 0.03, 0.05
"""Jitter of a whole clip; of each slice again the same brightness and more contrast (SAM 2's)."""


def augment(
    frames: Tensor, labels: Tensor, greys: int, kind: Augmentation, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Change a clip at random; the first ``greys`` channels are grey values."""
    if kind == "none":
        return frames, labels
    if kind == "sam2":
        if random.random() < 0.5:
            frames, labels = frames.flip(-1), labels.flip(-1)
        frames, labels = _warp(frames, labels, _turn_and_shear(random))
        return _colour_jitter(frames, random), labels
    frames = _blemish(frames, greys, random)
    if random.random() < FADING:
        frames = fade(frames, greys, random)
    if random.random() < WARPED:
        frames, labels = _warp(frames, labels, _turn_and_zoom(random))
    return _turn(frames, labels, random)


def fade(frames: Tensor, greys: int, random: np.random.Generator) -> Tensor:
    """Cover one side of a clip's later frames with noise, partly or wholly; logits fall to a no.

    What is clear in one slice is often lost in noise a few slices on. A network that always sees
    enough in the frame itself learns to ignore its memory. Frame 1 stays clear.
    """
    count, channels, height, width = frames.shape
    if count < 3:
        return frames
    first = int(random.integers(2, count))
    angle, offset = random.uniform((0, -0.4), (2 * np.pi, 0.4))
    y = (torch.arange(height) / height - 0.5)[:, None]
    x = torch.arange(width) / width - 0.5
    across = y * np.sin(angle) + x * np.cos(angle) - offset
    steepness, strength = random.uniform((0.01, 0.6), (0.08, 1.0))
    cover = (torch.sigmoid(across / steepness) * strength).float()
    generator = torch.Generator().manual_seed(int(random.integers(2**31)))
    noise = torch.randn((count - first, greys, height, width), generator=generator)
    if random.random() < 0.6:
        noise = 2.0 * F.avg_pool2d(noise, 3, 1, 1)
    weak = torch.full((count - first, channels - greys, height, width), -random.uniform(0.1, 0.8))
    late = torch.lerp(frames[first:], torch.cat((noise, weak), dim=1), cover)
    return torch.cat((frames[:first], late))


def _turn(frames: Tensor, labels: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Rotate by quarter turns and mirror, the same for the whole clip."""
    turns = int(random.integers(4))
    frames, labels = frames.rot90(turns, (-2, -1)), labels.rot90(turns, (-2, -1))
    if random.random() < 0.5:
        frames, labels = frames.flip(-1), labels.flip(-1)
    return frames.contiguous(), labels.contiguous()


def _blemish(frames: Tensor, greys: int, random: np.random.Generator) -> Tensor:
    """Change contrast, brightness, noise and sharpness of the grey channels."""
    grey, draw = frames[:, :greys], random.random
    gain, shift = np.exp(0.25 * (2 * draw() - 1)), 0.2 * (2 * draw() - 1)
    grey = grey * gain + shift
    if draw() < 0.25:
        grey = grey + _edge(grey.shape[-1], random)
    if draw() < 0.25:
        generator = torch.Generator().manual_seed(int(random.integers(2**31)))
        grey = grey + 0.5 * draw() * torch.randn(grey.shape, generator=generator)
    if draw() < 0.3:
        soft = F.avg_pool2d(grey, 3, 1, 1)
        grey = torch.lerp(grey, soft, 1.6 * draw() - 0.6)
    return torch.cat((grey, frames[:, greys:]), dim=1)


def _edge(size: int, random: np.random.Generator) -> Tensor:
    """A soft step in brightness along a random line, as at the rim of a carbon film."""
    angle, offset, height = random.uniform((0, -0.5, -1.5), (2 * np.pi, 0.5, 1.5))
    width = np.exp(random.uniform(np.log(3), np.log(60)))
    ramp = torch.arange(size, dtype=torch.float32) - size / 2
    across = ramp[:, None] * np.sin(angle) + ramp * np.cos(angle) - offset * size
    return float(height) * torch.sigmoid(across / width)


def _turn_and_shear(random: np.random.Generator) -> Tensor:
    """SAM 2's random rotation and shear."""
    angle = math.radians(random.uniform(-DEGREES, DEGREES))
    shear = math.tan(math.radians(random.uniform(-SHEAR, SHEAR)))
    return _rotation(angle) @ torch.tensor([[1.0, shear], [0.0, 1.0]])


def _turn_and_zoom(random: np.random.Generator) -> Tensor:
    """A random rotation by up to an eighth of a turn, for `_turn` to complete, and a zoom."""
    angle, zoom = random.uniform((-math.pi / 4, -math.log(ZOOM)), (math.pi / 4, math.log(ZOOM)))
    return _rotation(angle) * math.exp(zoom)


def _rotation(angle: float) -> Tensor:
    cosine, sine = math.cos(angle), math.sin(angle)
    return torch.tensor([[cosine, -sine], [sine, cosine]])


def _warp(frames: Tensor, labels: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Map about the middle; what comes in from outside is the mirrored inside."""
    theta = F.pad(matrix, (0, 1))[None]
    grid = F.affine_grid(theta, [1, 1, *frames.shape[-2:]], align_corners=False)
    grid = grid.expand(len(frames), -1, -1, -1)
    moved = F.grid_sample(frames, grid, padding_mode="reflection", align_corners=False)
    marks = F.grid_sample(
        labels[:, None].float(), grid, "nearest", padding_mode="reflection", align_corners=False
    )
    return moved, marks[:, 0].to(labels.dtype)


def _colour_jitter(frames: Tensor, random: np.random.Generator) -> Tensor:
    """Change brightness and contrast, for all slices alike and then for each."""
    spread = np.array([BRIGHTNESS, CONTRAST])
    bright, contrast = 1 + random.uniform(-spread, spread)
    spread = np.array([BRIGHTNESS, SLICE_CONTRAST])
    factors = 1 + random.uniform(-spread, spread, (len(frames), 2))
    own = torch.from_numpy(factors).float()[:, :, None, None, None]
    for brighten, stretch in ((float(bright), float(contrast)), (own[:, 0], own[:, 1])):
        frames = frames * brighten
        middle = frames.mean((-3, -2, -1), keepdim=True)
        frames = torch.lerp(middle, frames, torch.as_tensor(stretch))
    return frames

"""Augmentation of training clips: frames (b, t, c, h, w) and labels (b, t, h, w) change together.

Networks that start from nothing get more of it than SAM 2's: what a reconstruction or a filter may do
to a spectrum, what an 8-bit file does to grey values, contrast that is lost in places; else they would
learn the simulator by heart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Augmentation = Literal["none", "strong", "sam2"]
"""``strong`` for networks that start from nothing, ``sam2`` as SAM 2 is fine-tuned."""
Randoms = Sequence[np.random.Generator]

SPECTRAL, SCRAMBLED, TONED, NOISY, EDGED, COVERED, FADED = 0.5, 0.4, 0.25, 0.25, 0.2, 0.15, 0.15
"""Parts of the clips that are changed in each way."""
FINEST = 0.1, 0.35
"""Cycles per pixel where a Gaussian falls that says what detail is kept."""
WARPED, ZOOM = 0.5, 1.2
"""Part of the clips turned by any angle, and by how much those are zoomed at most."""
DEGREES, SHEAR = 25.0, 20.0
"""Largest rotation and shear of a clip in degrees (SAM 2's fine-tuning configuration)."""
BRIGHTNESS, CONTRAST, SLICE_CONTRAST = 0.1, 0.03, 0.05
"""Jitter of a whole clip; of each slice again the same brightness and more contrast (SAM 2's)."""


def augment(
    frames: Tensor, labels: Tensor, greys: int, kind: Augmentation, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Change a clip (t, c, h, w) with labels (t, h, w) at random, whatever others are in its batch."""
    if kind == "none":
        return frames, labels
    clips, marks = frames[None], labels[None]
    if kind == "strong":
        clips, marks = augment_batch(clips, marks, greys, [random])
        return clips[0], marks[0]
    if random.random() < 0.5:
        clips, marks = clips.flip(-1), marks.flip(-1)
    clips, marks = _warp(clips, marks, _turn_and_shear(random)[None])
    return _colour_jitter(clips[0], random), marks[0]


def augment_batch(
    frames: Tensor, labels: Tensor, greys: int, randoms: Randoms
) -> tuple[Tensor, Tensor]:
    """Change clips at random; the first ``greys`` channels are grey values."""
    grey = frames[:, :, :greys]
    generator = torch.Generator(frames.device)
    generator.manual_seed(int(randoms[0].integers(2**62)))
    grey = change_grey(grey, randoms, generator)
    frames = torch.cat((grey, frames[:, :, greys:]), dim=2)
    for share, cover in ((COVERED, patches), (FADED, _side)):
        chosen = [i for i, random in enumerate(randoms) if random.random() < share]
        if chosen:
            hidden = cover(frames[chosen], [randoms[i] for i in chosen])
            frames[chosen] = hide(frames[chosen], hidden, greys, generator)
    return _move(frames, labels, randoms)


def change_grey(grey: Tensor, randoms: Randoms, generator: torch.Generator) -> Tensor:
    """Change the grey values of clips (b, t, c, h, w) at random: contrast, detail, spectrum, noise."""
    gain, shift = _draw(randoms, lambda r: (math.exp(r.uniform(-0.25, 0.25)), r.uniform(-0.2, 0.2)))
    grey = grey * _wide(gain, grey) + _wide(shift, grey)
    for share, change in (
        (EDGED, _edge),
        (NOISY, _noise),
        (SPECTRAL, _filter),
        (SCRAMBLED, _scramble),
        (TONED, _tone),
    ):
        chosen = [i for i, random in enumerate(randoms) if random.random() < share]
        if chosen:
            grey[chosen] = change(grey[chosen], [randoms[i] for i in chosen], generator)
    return grey


def _draw(
    randoms: Randoms, draw: Callable[[np.random.Generator], Sequence[float]]
) -> list[np.ndarray]:
    """Numbers drawn for each clip, as arrays of a number a clip."""
    return list(np.array([draw(random) for random in randoms], np.float32).T)


def _wide(numbers: np.ndarray, like: Tensor) -> Tensor:
    """A number for each clip, to be multiplied with clips."""
    on_device = torch.from_numpy(numbers.copy()).to(like.device)
    return on_device.view(-1, *[1] * (like.ndim - 1))


def _noise(grey: Tensor, randoms: Randoms, generator: torch.Generator) -> Tensor:
    """White noise, or soft."""
    amount, soft = _draw(randoms, lambda r: (r.uniform(0, 0.5), r.random() < 0.5))
    return grey + _wide(amount, grey) * grain(grey.shape, _wide(soft, grey) > 0, generator)


def grain(shape: torch.Size, soft: Tensor, generator: torch.Generator) -> Tensor:
    """Noise of deviation 1, of neighbouring pixels alike where it is soft."""
    white = torch.randn(shape, generator=generator, device=generator.device)
    blurred = 3.0 * F.avg_pool2d(white.flatten(0, 1), 3, 1, 1).view(shape)
    return torch.where(soft, blurred, white)


def _edge(grey: Tensor, randoms: Randoms, _: torch.Generator) -> Tensor:
    """A soft step in brightness along a random line, as at the rim of a carbon film."""
    size = grey.shape[-1]
    angle, offset, height, width = _draw(
        randoms,
        lambda r: (
            *r.uniform((0, -0.5, -1.5), (2 * np.pi, 0.5, 1.5)),
            np.exp(r.uniform(np.log(3), np.log(60))),
        ),
    )
    across = _across(angle, size, grey) - _wide(offset, grey) * size
    return grey + _wide(height, grey) * torch.sigmoid(across / _wide(width, grey))


def _across(angle: np.ndarray, size: int, like: Tensor) -> Tensor:
    """Distance of each pixel from a line through the middle, (b, 1, 1, h, w)."""
    ramp = torch.arange(size, dtype=torch.float32, device=like.device) - size / 2
    sine, cosine = _wide(np.sin(angle), like), _wide(np.cos(angle), like)
    return ramp[:, None] * sine + ramp * cosine


def _filter(grey: Tensor, randoms: Randoms, _: torch.Generator) -> Tensor:
    """Other power at each spatial frequency; the deviation stays nearly what it was."""
    changed = torch.fft.irfft2(torch.fft.rfft2(grey) * _gains(grey, randoms), s=grey.shape[-2:])
    (keep,) = _draw(randoms, lambda r: (r.uniform(0.9, 1.1),))
    before, after = (x.std((1, 2, 3, 4), keepdim=True) for x in (grey, changed))
    mean = grey.mean((1, 2, 3, 4), keepdim=True)
    filtered: Tensor = mean + (changed - mean) * (_wide(keep, grey) * before / after.clamp(1e-3))
    return filtered


def _scramble(grey: Tensor, randoms: Randoms, generator: torch.Generator) -> Tensor:
    """The finest detail becomes noise of the same spectrum, moved alike in all slices.

    Walls of real tomograms show less detail than noise has: motion, damage and misalignment blur them.
    """
    height, width = grey.shape[-2:]
    (cutoff,) = _draw(randoms, lambda r: (math.exp(r.uniform(*np.log(FINEST))),))
    keep = torch.exp(-(_radius(grey) / _wide(cutoff, grey)).square() / 2)
    white = torch.randn(len(grey), 1, 1, height, width, generator=generator, device=grey.device)
    turn = torch.fft.rfft2(white)
    turn = turn / turn.abs().clamp(min=1e-6)
    factor = keep + turn * (1 - keep.square()).sqrt()
    scrambled: Tensor = torch.fft.irfft2(torch.fft.rfft2(grey) * factor, s=(height, width))
    return scrambled


def _frequencies(grey: Tensor) -> tuple[Tensor, Tensor]:
    """Spatial frequencies along y (ky, 1) and x (kx) of a spectrum, cycles per pixel."""
    height, width = grey.shape[-2:]
    ky = torch.fft.fftfreq(height, device=grey.device)[:, None]
    return ky, torch.fft.rfftfreq(width, device=grey.device)


def _radius(grey: Tensor) -> Tensor:
    """Spatial frequency of each place of a spectrum, (ky, kx) cycles per pixel."""
    return torch.hypot(*_frequencies(grey))


def _gains(grey: Tensor, randoms: Randoms) -> Tensor:
    """Random factors of spectra, (b, 1, 1, ky, kx): waves, low-pass, high-pass, blur along a line."""
    ky, kx = _frequencies(grey)
    radius = torch.hypot(ky, kx)
    level = torch.zeros(len(grey), 1, 1, len(ky), len(kx), device=grey.device)
    waves = _draw(randoms, lambda r: tuple(r.normal(0, 0.35, 4) / np.sqrt((1, 2, 3, 4))))
    for number, wave in enumerate(waves, 1):
        level = level + _wide(wave, grey) * torch.cos(number * math.pi * radius / 0.71)
    low, high, angle, across = _draw(
        randoms,
        lambda r: (
            np.exp(r.uniform(np.log(0.08), np.log(0.35))) if r.random() < 0.3 else 1e3,
            r.uniform(0.004, 0.02) if r.random() < 0.2 else 1e-6,
            r.uniform(0, np.pi),
            r.uniform(0.12, 0.4) if r.random() < 0.2 else 1e3,
        ),
    )
    along = ky * _wide(np.sin(angle), grey) + kx * _wide(np.cos(angle), grey)
    level = level - (radius / _wide(low, grey)).square() / 2
    level = level - (along / _wide(across, grey)).square() / 2
    gains: Tensor = level.exp() * (1 - 0.9 * torch.exp(-(radius / _wide(high, grey)).square() / 2))
    gains[..., 0, 0] = 1
    return gains


def _tone(grey: Tensor, randoms: Randoms, _: torch.Generator) -> Tensor:
    """A bent grey scale, cut off at both ends."""
    bend, limit = _draw(randoms, lambda r: (r.uniform(-0.12, 0.12), r.uniform(2.0, 4.0)))
    bent = grey + _wide(bend, grey) * (grey.square().clamp(max=16) - 1)
    return bent.clamp(-_wide(limit, grey), _wide(limit, grey))


def hide(frames: Tensor, hidden: Tensor, greys: int, generator: torch.Generator) -> Tensor:
    """Put noise over frames, and weak answers over logits, where ``hidden`` says so (0 to 1)."""
    grey = frames[:, :, :greys]
    soft = torch.rand(len(frames), 1, 1, 1, 1, generator=generator, device=frames.device) < 0.6
    noise = grain(grey.shape, soft, generator)
    weak = -0.1 - 0.7 * torch.rand(
        len(frames), 1, 1, 1, 1, generator=generator, device=frames.device
    )
    over = torch.cat((noise, weak.expand_as(frames[:, :, greys:])), dim=2)
    return torch.lerp(frames, over, hidden.expand_as(frames))


def patches(frames: Tensor, randoms: Randoms) -> Tensor:
    """Places where contrast is partly lost, in all frames alike."""
    size = frames.shape[-1]
    coarse = np.stack([random.normal(size=(1, 5, 5)) for random in randoms]).astype(np.float32)
    smooth = F.interpolate(
        torch.from_numpy(coarse).to(frames.device), (size, size), mode="bicubic", align_corners=True
    )
    strength, bias = _draw(randoms, lambda r: (r.uniform(0.3, 0.85), r.uniform(-1.5, 0.5)))
    field = smooth[:, None] + _wide(bias, frames)
    return _wide(strength, frames) * torch.sigmoid(4 * field)


def _side(frames: Tensor, randoms: Randoms) -> Tensor:
    """One side of the later frames, partly or wholly; frame 1 stays clear.

    What is clear in one slice is often lost in noise a few slices on. A network that always sees
    enough in the frame itself learns to ignore its memory.
    """
    count, size = frames.shape[1], frames.shape[-1]
    first, angle, offset, steepness, strength = _draw(
        randoms,
        lambda r: (
            r.integers(2, max(3, count)),
            *r.uniform((0, -0.4, 0.01, 0.6), (2 * np.pi, 0.4, 0.08, 1.0)),
        ),
    )
    across = _across(angle, size, frames) / size - _wide(offset, frames)
    late = torch.arange(count, device=frames.device).view(1, -1, 1, 1, 1) >= _wide(first, frames)
    side = torch.sigmoid(across / _wide(steepness, frames))
    return late * _wide(strength, frames) * side


def _move(frames: Tensor, labels: Tensor, randoms: Randoms) -> tuple[Tensor, Tensor]:
    """Turn by quarters and mirror each clip, some by any angle and with a zoom."""
    matrices = torch.from_numpy(np.stack([_matrix(random) for random in randoms]))
    return _warp(frames, labels, matrices)


def _matrix(random: np.random.Generator) -> np.ndarray:
    """Rotation, mirror and zoom, (2, 2) float32."""
    angle, zoom = math.pi / 2 * int(random.integers(4)), 1.0
    if random.random() < WARPED:
        angle += random.uniform(-math.pi / 4, math.pi / 4)
        zoom = math.exp(random.uniform(-math.log(ZOOM), math.log(ZOOM)))
    mirror = -1.0 if random.random() < 0.5 else 1.0
    matrix = _rotation(angle) @ np.diag([mirror, 1.0])
    return (zoom * matrix).astype(np.float32)


def _turn_and_shear(random: np.random.Generator) -> Tensor:
    """SAM 2's random rotation and shear."""
    angle = math.radians(random.uniform(-DEGREES, DEGREES))
    shear = math.tan(math.radians(random.uniform(-SHEAR, SHEAR)))
    return torch.from_numpy((_rotation(angle) @ [[1.0, shear], [0.0, 1.0]]).astype(np.float32))


def _rotation(angle: float) -> np.ndarray:
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, -sine], [sine, cosine]])


def _warp(frames: Tensor, labels: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Map each clip about its middle; what comes in from outside is the mirrored inside."""
    theta = F.pad(matrices, (0, 1)).to(frames.device)
    size = [len(frames), 1, *frames.shape[-2:]]
    grid = F.affine_grid(theta, size, align_corners=False)
    moved = F.grid_sample(
        frames.flatten(1, 2), grid, padding_mode="reflection", align_corners=False
    )
    marks = F.grid_sample(
        labels.float(), grid, "nearest", padding_mode="reflection", align_corners=False
    )
    return moved.view(frames.shape), marks.to(labels.dtype)


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

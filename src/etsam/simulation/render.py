"""From a recipe to a tomogram and its labels: sample, tilt series, reconstruction, crop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor
from torch.nn import functional as F

from etsam.simulation.imaging import (
    back_project,
    image_views,
    noise_views,
    project,
    weight_views,
)
from etsam.simulation.labels import membrane_labels
from etsam.simulation.recipe import LEAN, Recipe, SimulationOptions
from etsam.simulation.sample import build_sample
from etsam.simulation.scene import Scene

Crop = tuple[slice, slice, slice]


def render(
    recipe: Recipe,
    shape: tuple[int, int, int],
    options: SimulationOptions,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, float | None]:
    """Simulate a recipe.

    Returns
    -------
    tuple
        Tomogram float32 (mean 0, deviation 1) and labels int8, (Z, Y, X), and the contrast to noise
        that was reached; None where too little membrane is seen to tell.
    """
    turn, axis = quarter_turn(recipe.tilt.axis_angle)
    recipe = replace(recipe, tilt=replace(recipe.tilt, axis_angle=axis))
    size = (shape[0], shape[2], shape[1]) if turn else shape
    padded = [next_fast_len(n + 2 * recipe.margin, real=True) for n in size[1:]]
    whole = (size[0] + 2 * recipe.depth_margin, padded[0], padded[1])
    scene = build_sample(whole, recipe, options, rng)
    z, y, x = (slice((w - n) // 2, (w - n) // 2 + n) for w, n in zip(whole, size, strict=True))
    labels = membrane_labels(scene, options.lean)[z, y, x]
    if options.fading:
        scene.density *= fading_field(whole, options.fading, rng.spawn(1)[0])
    if options.depth_fading:
        scene.density *= depth_fading_profile(whole[0], options.depth_fading, rng.spawn(1)[0])
    tomogram, reached = _image(scene, recipe, rng, (z, y, x))
    if turn:
        tomogram, labels = tomogram.transpose(1, 2), labels.transpose(1, 2)
    return tomogram.contiguous(), labels.contiguous(), reached


def fading_field(shape: tuple[int, int, int], amount: float, rng: np.random.Generator) -> Tensor:
    """Smooth factors (Z, Y, X) from 1 down to 1 - ``amount``: contrast is not the same everywhere."""
    coarse = torch.from_numpy(rng.normal(size=(1, 1, 4, 4, 4)).astype(np.float32))
    coarse = coarse.to(torch.get_default_device())
    smooth = F.interpolate(coarse, shape, mode="trilinear", align_corners=True)[0, 0]
    return 1 - amount * torch.sigmoid(2.5 * smooth)


def depth_fading_profile(depth: int, amount: float, rng: np.random.Generator) -> Tensor:
    """Factors (Z, 1, 1) from 1 near the middle down to 1 - ``amount`` near the bottom and the top.

    Real tomograms lose contrast there: defocus and alignment fit the middle of the sample best.
    """
    middle, clear, faint = depth * rng.uniform((0.4, 0.08, 0.35), (0.6, 0.25, 0.5))
    away = (torch.arange(depth, dtype=torch.get_default_dtype()) - middle).abs()
    lost = ((away - clear) / (faint - clear)).clamp(0, 1)
    kept: Tensor = 1 - amount * lost.square() * (3 - 2 * lost)
    return kept[:, None, None]


def quarter_turn(axis_angle: float) -> tuple[bool, float]:
    """Whether to exchange x and y to bring a tilt axis within 45 degrees of y, and its angle then.

    Angles are those of a line from y towards x, so 170 is the same as -10.
    """
    angle = (axis_angle + 90.0) % 180.0 - 90.0
    if abs(angle) <= 45.0:
        return False, angle
    return True, 90.0 - angle if angle > 0 else -90.0 - angle


def _image(
    scene: Scene, recipe: Recipe, rng: np.random.Generator, crop: Crop
) -> tuple[Tensor, float | None]:
    """Tilt series and reconstruction of a scene, cropped and scaled; the contrast to noise reached."""
    depth, *plane = scene.shape
    frame = (plane[0], plane[1])
    tilt = recipe.tilt
    views = project(scene.density, tilt, depth / 2)
    clean = image_views(views, tilt, frame, recipe.voxel_spacing, rng)
    noise = noise_views(tilt, frame, rng)
    volumes = []
    for spectra in (clean, noise):
        weighted = weight_views(spectra, tilt, recipe.reconstruction, frame, recipe.voxel_spacing)
        height = crop[0].stop - crop[0].start
        volume = back_project(weighted, height, frame, tilt, depth / 2 - crop[0].start)
        volumes.append(volume[:, crop[1], crop[2]])
    signal, grain = volumes
    distance = scene.distance[crop].abs()
    visible = membrane_labels(scene, LEAN)[crop] > 0
    contrast, share = membrane_contrast(signal, (distance < 25.0) & visible, distance > 60.0)
    reached = None if share is None else recipe.contrast_to_noise * share
    total = signal + grain * (contrast / (recipe.contrast_to_noise * float(grain.std())))
    total = (total - total.mean()) / total.std().clamp(min=1e-12)
    return (total if recipe.bright_membranes else -total), reached


def membrane_contrast(signal: Tensor, visible: Tensor, far: Tensor) -> tuple[float, float | None]:
    """Mean of a noise-free reconstruction on visible membranes over its median far from them.

    Returns
    -------
    tuple
        The contrast noise is scaled to: at least 0.3 of the spread on membranes, and twice the whole
        spread where there is no membrane. What membranes really have, in units of it: 1, less where
        it was raised, also negative; None where there is no membrane.
    """
    if int(visible.sum()) < 200 or int(far.sum()) < 200:
        return 2.0 * float(signal.std()), None
    contrast = float(signal[visible].mean() - signal[far].median())
    scaled_to = max(contrast, 0.3 * float(signal[visible].std()))
    return scaled_to, contrast / scaled_to

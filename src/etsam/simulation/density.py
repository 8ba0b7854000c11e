"""Densities: the bilayer's profile and pseudo-proteins; relative to water, lengths in Å."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Two Gaussians fitted to the electron-density profile of a hydrated POPE:POPG bilayer (relative to
# water), computed from the molecular-dynamics frame YiiP_lipids of MDAnalysisTests.
HEAD_POSITION = 20.3
HEAD_WIDTH = 3.9
HEAD_DENSITY = 0.27
TAIL_WIDTH = 6.0
TAIL_DENSITY = -0.085

PROTEIN_DENSITY = 0.28
GOLD_DENSITY = 12.0


@dataclass(frozen=True)
class Bilayer:
    """A bilayer's head-group distance from the mid-plane [Å] and its densities."""

    head_position: float = HEAD_POSITION
    head_density: float = HEAD_DENSITY
    tail_density: float = TAIL_DENSITY
    asymmetry: float = 0.0


def profile_reach(spacing: float) -> float:
    """How far [Å] off its mid-plane a wall in voxels of a spacing [Å] has density."""
    return 45.0 + spacing


def voxel_blur(spacing: float) -> float:
    """Standard deviation [Å] of the blur that voxels of a spacing [Å] put on a profile."""
    return 0.4 * spacing


def bilayer_profile(distance: Tensor, bilayer: Bilayer, blur: float = 0.0) -> Tensor:
    """Density across a bilayer at distances [Å] from its mid-plane, blurred by `blur` [Å]."""
    head = float(np.hypot(HEAD_WIDTH, blur))
    tail = float(np.hypot(TAIL_WIDTH, blur))
    heads = bilayer.head_density * HEAD_WIDTH / head
    outer = torch.exp(-0.5 * ((distance - bilayer.head_position) / head) ** 2)
    inner = torch.exp(-0.5 * ((distance + bilayer.head_position) / head) ** 2)
    core = torch.exp(-0.5 * (distance / tail) ** 2)
    both = outer * (1 + bilayer.asymmetry) + inner * (1 - bilayer.asymmetry)
    return both * heads + core * (bilayer.tail_density * TAIL_WIDTH / tail)


def single_layer_profile(distance: Tensor, width: float, blur: float) -> Tensor:
    """Density across a protein layer (capsid, S-layer) of Gaussian width `width` [Å]."""
    total = float(np.hypot(width, blur))
    return torch.exp(-0.5 * (distance / total) ** 2) * (PROTEIN_DENSITY * width / total)


def pseudo_protein(
    rng: np.random.Generator, radius: float, lobes: int, box: int, spacing: float
) -> Tensor:
    """Draw a multi-lobed globule of the given radius [Å] in a box (box, box, box) of voxels."""
    grid = (np.arange(box, dtype=np.float32) - (box - 1) / 2.0) * spacing
    lobe = radius / max(1.0, lobes ** (1 / 3)) * 0.75
    centres = rng.standard_normal((lobes, 3))
    centres *= (
        (radius - 0.6 * lobe)
        * rng.uniform(0.2, 0.95, (lobes, 1))
        / np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-6)
    )
    centres += rng.uniform(-0.5, 0.5, 3) * spacing
    out = np.zeros((box, box, box), np.float32)
    for centre in centres:
        z, y, x = ((grid - o) / lobe for o in centre)
        out += np.exp(-0.9 * (z[:, None, None] ** 2 + y[:, None] ** 2 + x**2))
    out = np.clip(out, 0.0, 1.3) * PROTEIN_DENSITY
    edge = (np.arange(box) - (box - 1) / 2.0) / (box / 2.0)
    inside = edge[:, None, None] ** 2 + edge[:, None] ** 2 + edge**2 < 1.0
    return torch.as_tensor(out * inside)


def scatter(density: Tensor, templates: Tensor, where: Tensor, which: Tensor, gain: Tensor) -> None:
    """Add `gain` x templates (n, b, b, b) into `density` centred at voxels `where` (m, 3)."""
    box = templates.shape[-1]
    offsets = torch.stack(
        torch.meshgrid(*[torch.arange(box) - (box - 1) // 2] * 3, indexing="ij"), dim=-1
    ).reshape(-1, 3)
    keep = (templates.abs().amax(dim=0) > 1e-4).reshape(-1)
    offsets, flat = offsets[keep], templates.reshape(len(templates), -1)[:, keep]
    size = torch.tensor(density.shape)
    chunk = max(1, 4_000_000 // max(1, len(offsets)))
    for start in range(0, len(where), chunk):
        part = slice(start, start + chunk)
        at = where[part, None, :] + offsets[None]
        inside = ((at >= 0) & (at < size)).all(dim=-1)
        index = (at[..., 0] * size[1] + at[..., 1]) * size[2] + at[..., 2]
        values = flat[which[part]] * gain[part, None]
        density.view(-1).index_add_(0, index[inside], values[inside])

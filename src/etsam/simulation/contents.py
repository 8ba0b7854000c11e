"""What fills a sample besides membranes: proteins, filaments, gold, carbon, ice and dirt."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from etsam.simulation.density import (
    GOLD_DENSITY,
    pseudo_protein,
    scatter,
)
from etsam.simulation.geometry import ellipsoid, random_bump, random_rotation
from etsam.simulation.scene import Scene, Wall, place


def _odd(length: float) -> int:
    return int(np.ceil(length)) // 2 * 2 + 1


def _library(
    rng: np.random.Generator, radius: tuple[float, float], count: int, spacing: float
) -> Tensor:
    box = max(3, _odd(2.4 * radius[1] / spacing))
    return torch.stack(
        [
            pseudo_protein(rng, float(rng.uniform(*radius)), int(rng.integers(1, 9)), box, spacing)
            for _ in range(count)
        ]
    )


def _gains(rng: np.random.Generator, n: int) -> Tensor:
    return torch.from_numpy(rng.uniform(0.5, 1.2, n).astype(np.float32))


def add_soluble(scene: Scene, rng: np.random.Generator, crowding: Tensor) -> None:
    """Scatter soluble pseudo-proteins; `crowding` (regions + 1,) is volume fraction by region."""
    volume = float(scene.density.numel()) * scene.spacing**3
    kinds = [(14.0, 32.0), (28.0, 52.0), (45.0, 75.0)]
    for radius in kinds:
        share = float(rng.dirichlet(np.ones(3))[0])
        each = 4.19 * (np.mean(radius) ** 3)
        count = int(min(30_000, float(crowding.max()) * share * volume / each))
        if count == 0:
            continue
        where = torch.from_numpy(rng.integers(0, scene.shape, (count, 3)))
        z, y, x = where.unbind(1)
        chance = crowding[scene.region[z, y, x].long()] / crowding.max()
        clear = scene.distance[z, y, x].abs() > radius[1] + 22.0
        chosen = clear & (torch.from_numpy(rng.random(count).astype(np.float32)) < chance)
        where = where[chosen]
        library = _library(rng, radius, 16, scene.spacing)
        which = torch.from_numpy(rng.integers(0, len(library), len(where)))
        scatter(scene.density, library, where, which, _gains(rng, len(where)))


def add_ribosomes(scene: Scene, rng: np.random.Generator, count: int) -> None:
    """Scatter ribosome-like particles, about 25 nm wide and denser than protein."""
    radius = 115.0
    box = _odd(2.5 * radius / scene.spacing)
    library = torch.stack(
        [pseudo_protein(rng, radius, 14, box, scene.spacing) * 1.3 for _ in range(8)]
    )
    where = torch.from_numpy(rng.integers(0, scene.shape, (count, 3)))
    z, y, x = where.unbind(1)
    where = where[scene.distance[z, y, x].abs() > radius + 20.0]
    which = torch.from_numpy(rng.integers(0, len(library), len(where)))
    scatter(scene.density, library, where, which, _gains(rng, len(where)))


def add_membrane_proteins(
    scene: Scene, rng: np.random.Generator, radius: float, outward: float, spread: float
) -> None:
    """Decorate membranes with globules of `radius` [Å] centred `outward` [Å] off the mid-surface.

    `spread` is the mean number of globules per area of one globule's cross-section.
    """
    near = (scene.distance - outward).abs() < 0.5 * scene.spacing
    sites = torch.nonzero(near.view(-1)).squeeze(1)
    if len(sites) == 0:
        return
    count = int(spread * len(sites) * scene.spacing**2 / (3.14 * radius**2))
    pick = sites[torch.from_numpy(rng.integers(0, len(sites), min(count, 20_000)))]
    patch = torch.from_numpy(rng.random(scene.regions + 1).astype(np.float32) ** 0.7)
    keep = torch.rand(len(pick), generator=_generator(rng)) < patch[
        scene.region.view(-1)[pick].long()
    ]
    pick = pick[keep]
    _, ny, nx = scene.shape
    where = torch.stack([pick // (ny * nx), pick // nx % ny, pick % nx], dim=1)
    library = _library(rng, (0.7 * radius, radius), 12, scene.spacing)
    which = torch.from_numpy(rng.integers(0, len(library), len(where)))
    scatter(scene.density, library, where, which, _gains(rng, len(where)))


def _generator(rng: np.random.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(int(rng.integers(2**62)))


def add_filaments(scene: Scene, rng: np.random.Generator, count: int, microtubule: bool) -> None:
    """Add gently bent filaments: actin (7 nm) or microtubules (25 nm hollow, 13 protofilaments)."""
    ball = pseudo_protein(rng, 26.0, 2, _odd(70.0 / scene.spacing), scene.spacing)[None]
    extent = float(max(scene.shape)) * scene.spacing
    for _ in range(count):
        steps = int(rng.uniform(0.2, 1.0) * extent / 40.0)
        elevation = np.radians(rng.normal(0, 12))
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.004, steps))
        direction = np.stack(
            [np.full(steps, np.sin(elevation)), np.sin(heading), np.cos(heading)], axis=1
        )
        start = rng.uniform(0, 1, 3) * np.array(scene.shape) * scene.spacing
        line = start + np.cumsum(direction * 40.0, axis=0) - direction[0] * 20.0 * steps
        if microtubule:
            turn = np.arange(13) * (2 * np.pi / 13)
            side = np.stack([np.zeros(steps), direction[:, 2], -direction[:, 1]], axis=1)
            up = np.cross(direction, side)
            ring = (
                side[:, None] * np.cos(turn)[:, None] + up[:, None] * np.sin(turn)[:, None]
            ) * 112.0
            rise = direction[:, None] * (np.arange(13) * 9.2 % 40)[:, None]
            points = (line[:, None] + ring + rise).reshape(-1, 3)
        else:
            points = line + rng.normal(0, 8.0, line.shape)
        where = torch.from_numpy(np.round(points / scene.spacing).astype(np.int64))
        inside = ((where >= 0) & (where < torch.tensor(scene.shape))).all(dim=1)
        where = where[inside]
        zeros = torch.zeros(len(where), dtype=torch.long)
        scatter(scene.density, ball, where, zeros, torch.ones(len(where)) * 0.8)


def add_gold(scene: Scene, rng: np.random.Generator, count: int, radius: float) -> None:
    """Add gold beads of `radius` [Å], anywhere or on one surface."""
    box = _odd(2 * radius / scene.spacing + 3)
    grid = (torch.arange(box) - (box - 1) / 2) * scene.spacing
    r = (grid[:, None, None] ** 2 + grid[:, None] ** 2 + grid**2).sqrt()
    bead = ((radius - r) / scene.spacing + 0.5).clamp(0, 1)[None] * GOLD_DENSITY
    where = rng.integers(0, scene.shape, (count, 3))
    if rng.random() < 0.5:
        where[:, 0] = np.clip(
            rng.choice([0.1, 0.9]) * scene.shape[0] + rng.normal(0, 2, count), 0, scene.shape[0] - 1
        )
    gain = torch.from_numpy(rng.uniform(0.8, 1.1, count).astype(np.float32))
    scatter(scene.density, bead, torch.from_numpy(where), torch.zeros(count, dtype=torch.long), gain)


def add_carbon(scene: Scene, rng: np.random.Generator, slab: tuple[float, float]) -> None:
    """Add a granular carbon film with the round edge of its hole along one side of the field."""
    z, y, x = scene.shape
    hole = float(rng.uniform(4000, 12000)) / scene.spacing
    angle = rng.uniform(0, 2 * np.pi)
    depth = float(rng.uniform(0.08, 0.45)) * max(y, x)
    edge = np.array([y, x]) / 2 + (max(y, x) / 2 - depth) * np.array(
        [np.sin(angle), np.cos(angle)]
    )
    center = edge - hole * np.array([np.sin(angle), np.cos(angle)])
    yy = torch.arange(y, dtype=torch.float32)[:, None] - float(center[0])
    xx = torch.arange(x, dtype=torch.float32)[None, :] - float(center[1])
    wave = random_bump(rng, np.zeros(3), np.array([1.0, y, x]), 12.0, 1.0)
    rough = wave(torch.zeros(1), torch.arange(y).float(), torch.arange(x).float())[0]
    inside = (torch.hypot(yy, xx) - hole + rough).clamp(-0.5, 0.5) + 0.5
    thickness = float(rng.uniform(80, 250)) / scene.spacing
    low = float(slab[0] if rng.random() < 0.5 else slab[1] - thickness)
    low += float(rng.normal(0, 2))
    start, stop = max(0, int(low)), min(z, max(int(low) + 1, int(low + thickness)))
    if stop <= start:
        return
    grain = torch.randn((stop - start, y, x), generator=_generator(rng))
    film = float(rng.uniform(0.25, 0.8)) * (1 + float(rng.uniform(0.3, 1.5)) * grain)
    scene.density[start:stop] += film * inside


def add_ice(
    scene: Scene, rng: np.random.Generator, slab: tuple[float, float], count: int
) -> None:
    """Add ice crystals and dirt on the sample's faces: lumps with sharp edges, no bilayer."""
    for _ in range(count):
        radius = float(np.exp(rng.uniform(np.log(80), np.log(600)))) / scene.spacing
        center = rng.uniform(0, 1, 3) * np.array(scene.shape)
        center[0] = slab[int(rng.integers(2))] + 0.4 * radius * rng.standard_normal()
        axes = radius * np.exp(rng.normal(0, 0.3, 3))
        lump = ellipsoid(center, axes, random_rotation(rng), (0.15, 0.4, rng))
        lower = [max(0, int(v)) for v in lump.lower]
        upper = [min(n, int(v) + 1) for n, v in zip(scene.shape, lump.upper, strict=True)]
        if any(u - low < 2 for low, u in zip(lower, upper, strict=True)):
            continue
        axes3 = [torch.arange(low, u).float() for low, u in zip(lower, upper, strict=True)]
        body = (0.5 - lump.field(*axes3)).clamp(0, 1) * float(rng.uniform(0.08, 0.35))
        box = tuple(slice(low, u) for low, u in zip(lower, upper, strict=True))
        clear = scene.distance[box].abs() > 60.0
        scene.density[box] += body * clear


def add_capsids(
    scene: Scene, rng: np.random.Generator, slab: tuple[float, float], count: int
) -> None:
    """Add capsid-like single protein shells, which are not membranes."""
    wall = Wall(bilayer=None, patchiness=0.5, layer_width=float(rng.uniform(9, 16)))
    radius = float(rng.uniform(130, 320)) / scene.spacing
    for _ in range(count):
        center = rng.uniform(0, 1, 3) * np.array(scene.shape)
        center[0] = rng.uniform(*slab)
        axes = np.full(3, radius) * np.exp(rng.normal(0, 0.03, 3))
        place(scene, ellipsoid(center, axes, random_rotation(rng), (0.0, 1.0, rng)), wall, 60.0)


def add_background(scene: Scene, rng: np.random.Generator, lumen: Tensor, gradient: float) -> None:
    """Give each compartment its density and the field a smooth gradient (thickness, dirt)."""
    scene.density += lumen[scene.region.long()]
    if gradient > 0:
        shape = np.array(scene.shape, float)
        wave = random_bump(rng, np.zeros(3), shape, 0.4 * float(shape.max()), gradient)
        axes = [torch.arange(n, dtype=torch.float32) for n in scene.shape]
        scene.density += wave(*axes)

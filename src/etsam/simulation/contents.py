"""What fills a sample besides membranes: proteins, filaments, gold, carbon, ice and dirt."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from etsam.simulation.density import (
    GOLD_DENSITY,
    PROTEIN_DENSITY,
    pseudo_protein,
    scatter,
)
from etsam.simulation.geometry import ellipsoid, random_bump, random_rotation
from etsam.simulation.imaging import gaussian
from etsam.simulation.maps import map_library, membrane_library
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
    return torch.as_tensor(rng.uniform(0.5, 1.2, n).astype(np.float32))


def add_soluble(
    scene: Scene,
    rng: np.random.Generator,
    crowding: Tensor,
    contrast: float,
    maps: tuple[str, ...] = (),
) -> None:
    """Scatter soluble proteins: pseudo-proteins, or the density maps at the given paths.

    `crowding` (regions + 1,) is their volume fraction by region, `contrast` scales their density.
    """
    volume = float(scene.density.numel()) * scene.spacing**3
    if maps:
        _add_mapped(scene, rng, crowding, contrast, maps)
        return
    kinds = [(14.0, 32.0), (28.0, 52.0), (45.0, 75.0)]
    shares = rng.dirichlet(np.ones(3))
    for radius, share in zip(kinds, shares, strict=True):
        each = 4.19 * (float(np.mean(radius)) ** 3)
        count = int(min(30_000, float(crowding.max()) * float(share) * volume / each))
        where = torch.as_tensor(rng.integers(0, scene.shape, (count, 3)))
        where = where[_clear(scene, rng, where, crowding, radius[1])]
        if len(where) == 0:
            continue
        library = _library(rng, radius, 16, scene.spacing)
        which = torch.as_tensor(rng.integers(0, len(library), len(where)))
        scatter(scene.density, library, where, which, _gains(rng, len(where)) * contrast)


def _clear(
    scene: Scene,
    rng: np.random.Generator,
    where: Tensor,
    crowding: Tensor,
    radius: float | Tensor,
) -> Tensor:
    """Which of the places (n, 3) a protein of a radius [Å] may take: clear of membranes, as crowded as drawn."""
    z, y, x = where.unbind(1)
    chance = crowding[scene.region[z, y, x].long()] / crowding.max()
    clear = scene.distance[z, y, x].abs() > radius + 22.0
    drawn = torch.as_tensor(rng.random(len(where)).astype(np.float32))
    return clear & (drawn < chance)


def _add_mapped(
    scene: Scene,
    rng: np.random.Generator,
    crowding: Tensor,
    contrast: float,
    maps: tuple[str, ...],
) -> None:
    """Scatter proteins of given maps, counted and kept clear of membranes by their own volume and radius."""
    library = map_library(maps, scene.spacing, rng, 16)
    solid = library > 0.5 * PROTEIN_DENSITY
    owner, *voxels = solid.nonzero().unbind(1)
    away = (torch.stack(voxels).float() - (library.shape[1] - 1) / 2).norm(dim=0)
    radii = torch.zeros(len(library)).scatter_reduce(0, owner, away, "amax") * scene.spacing
    each = max(1.0, float(solid.sum()) / len(library))
    count = int(min(30_000, float(crowding.max()) * scene.density.numel() / each))
    where = torch.as_tensor(rng.integers(0, scene.shape, (count, 3)))
    which = torch.as_tensor(rng.integers(0, len(library), count))
    kept = _clear(scene, rng, where, crowding, radii[which])
    where, which = where[kept], which[kept]
    scatter(scene.density, library, where, which, _gains(rng, len(where)) * contrast)


def add_ribosomes(scene: Scene, rng: np.random.Generator, count: int, contrast: float) -> None:
    """Scatter ribosome-like particles, about 25 nm wide and denser than protein."""
    radius = 115.0
    box = _odd(2.5 * radius / scene.spacing)
    library = torch.stack(
        [pseudo_protein(rng, radius, 14, box, scene.spacing) * 1.3 for _ in range(8)]
    )
    where = torch.as_tensor(rng.integers(0, scene.shape, (count, 3)))
    z, y, x = where.unbind(1)
    where = where[scene.distance[z, y, x].abs() > radius + 20.0]
    which = torch.as_tensor(rng.integers(0, len(library), len(where)))
    scatter(scene.density, library, where, which, _gains(rng, len(where)) * contrast)


def add_membrane_proteins(
    scene: Scene,
    rng: np.random.Generator,
    place: tuple[float, float],
    spread: float,
    *,
    even: bool = False,
) -> None:
    """Decorate membranes with globules of a radius [Å] whose centres lie some Å off the mid-surface.

    `place` are both, `spread` is the number of globules per area of one globule's cross-section: so many on
    `even` membranes, up to so many on others, differently on each.
    """
    radius, outward = place
    near = (scene.distance - outward).abs() < 0.5 * scene.spacing
    sites = torch.nonzero(near.view(-1)).squeeze(1)
    if len(sites) == 0:
        return
    count = int(spread * len(sites) * scene.spacing**2 / (3.14 * radius**2))
    pick = sites[torch.as_tensor(rng.integers(0, len(sites), min(count, 20_000)))]
    if not even:
        patch = torch.as_tensor(rng.random(scene.regions + 1).astype(np.float32) ** 0.7)
        chance = torch.as_tensor(rng.random(len(pick)).astype(np.float32))
        pick = pick[chance < patch[scene.region.view(-1)[pick].long()]]
    where = _voxels(pick, scene)
    library = _library(rng, (0.7 * radius, radius), 12, scene.spacing)
    which = torch.as_tensor(rng.integers(0, len(library), len(where)))
    scatter(scene.density, library, where, which, _gains(rng, len(where)))


def _voxels(index: Tensor, scene: Scene) -> Tensor:
    _, ny, nx = scene.shape
    return torch.stack([index // (ny * nx), index // nx % ny, index % nx], dim=1)


def add_mapped_membrane_proteins(
    scene: Scene, rng: np.random.Generator, maps: tuple[str, ...], spread: float
) -> None:
    """Set density maps (aligned along z, membrane in the middle) into membranes, along the normal.

    `spread` is their mean number per 10 x 10 nm of membrane. Shapes without an inside get them either way up.
    """
    sites = torch.nonzero((scene.distance.abs() < 0.5 * scene.spacing).view(-1)).squeeze(1)
    if len(sites) == 0:
        return
    count = int(min(20_000, spread * len(sites) * scene.spacing**2 / 1e4))
    pick = sites[torch.as_tensor(rng.integers(0, len(sites), count))]
    where = _voxels(pick, scene)
    limit = torch.tensor(scene.shape) - 3
    where = torch.minimum(where.clamp(min=2), limit)
    z, y, x = where.unbind(1)
    near = scene.distance
    slope = torch.stack(
        [
            near[z + 1, y, x] - near[z - 1, y, x],
            near[z, y + 1, x] - near[z, y - 1, x],
            near[z, y, x + 1] - near[z, y, x - 1],
        ],
        dim=1,
    )
    if scene.unsigned is not None:
        given = scene.unsigned[:, z, y, x].T * (scene.instance[z, y, x] == 0)[:, None]
        side = torch.as_tensor(rng.choice([-1.0, 1.0], (count, 1)).astype(np.float32))
        slope = torch.where(given.any(dim=1, keepdim=True), given * side, slope)
    library, directions = membrane_library(maps, scene.spacing, rng, 48)
    which = (torch.nn.functional.normalize(slope, dim=1) @ directions.T).argmax(dim=1)
    scatter(scene.density, library, where, which, _gains(rng, count))


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
        where = torch.as_tensor(np.round(points / scene.spacing).astype(np.int64))
        inside = ((where >= 0) & (where < torch.tensor(scene.shape))).all(dim=1)
        where = where[inside]
        zeros = torch.zeros(len(where), dtype=torch.long)
        scatter(scene.density, ball, where, zeros, torch.ones(len(where)) * 0.8)


def add_gold(scene: Scene, rng: np.random.Generator, count: int, radius: float) -> None:
    """Add gold beads of `radius` [Å], anywhere or on one surface."""
    box = _odd(2 * radius / scene.spacing + 3)
    grid = (torch.arange(box) - (box - 1) / 2) * scene.spacing
    r = (grid[:, None, None] ** 2 + grid[:, None] ** 2 + grid**2).sqrt()
    bead = ((radius - r) / scene.spacing + 0.5).clamp(0, 1)[None] * float(
        rng.uniform(0.35, 1.1) * GOLD_DENSITY
    )
    where = rng.integers(0, scene.shape, (count, 3))
    if rng.random() < 0.5:
        where[:, 0] = np.clip(
            rng.choice([0.1, 0.9]) * scene.shape[0] + rng.normal(0, 2, count), 0, scene.shape[0] - 1
        )
    gain = torch.as_tensor(rng.uniform(0.8, 1.1, count).astype(np.float32))
    scatter(scene.density, bead, torch.as_tensor(where), torch.zeros(count, dtype=torch.long), gain)


def add_carbon(scene: Scene, rng: np.random.Generator, slab: tuple[float, float]) -> None:
    """Add a granular carbon film with the round edge of its hole along one side of the field."""
    z, y, x = scene.shape
    hole = float(rng.uniform(4000, 12000)) / scene.spacing
    angle = rng.uniform(0, 2 * np.pi)
    depth = float(rng.uniform(0.08, 0.45)) * max(y, x)
    edge = np.array([y, x]) / 2 + (max(y, x) / 2 - depth) * np.array([np.sin(angle), np.cos(angle)])
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
    grain = gaussian((stop - start, y, x), rng)
    film = float(rng.uniform(0.25, 0.8)) * (1 + float(rng.uniform(0.3, 1.5)) * grain)
    scene.density[start:stop] += film * inside


def add_ice(scene: Scene, rng: np.random.Generator, slab: tuple[float, float], count: int) -> None:
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


def add_damage(scene: Scene, rng: np.random.Generator, outside: Tensor) -> None:
    """Add the granular damaged layers of a milled lamella beside the voxels `outside` it."""
    layer = torch.nn.functional.max_pool3d(
        outside.float()[None, None], (5, 1, 1), stride=1, padding=(2, 0, 0)
    )[0, 0].bool()
    layer &= ~outside
    index = torch.nonzero(layer.view(-1)).squeeze(1)
    grain = gaussian((len(index),), rng)
    strength = float(rng.uniform(0.02, 0.12))
    scene.density.view(-1)[index] += strength * (1 + grain)

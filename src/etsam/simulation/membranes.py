"""Random populations of membranes: vesicles, tubules, toroids, sheets, double and stacked walls."""

from __future__ import annotations

import numpy as np

from etsam.simulation.density import Bilayer
from etsam.simulation.geometry import (
    Shape,
    ellipsoid,
    level_set,
    random_bump,
    random_rotation,
    sheet,
    torus,
    tubule,
)
from etsam.simulation.scene import Scene, Wall, place


def random_bilayer(rng: np.random.Generator, core: float) -> Bilayer:
    """Draw a bilayer, thicker or thinner; proteins add `core` to the density in its middle."""
    return Bilayer(
        head_position=float(np.clip(rng.normal(20.5, 2.5), 16.0, 28.0)),
        head_density=float(rng.uniform(0.2, 0.34)),
        tail_density=float(rng.uniform(-0.12, 0.10)) + core,
        asymmetry=float(rng.normal(0, 0.1)),
    )


def random_offsets(rng: np.random.Generator, single: float, deepest: float) -> tuple[float, ...]:
    """Draw the mid-surfaces of a wall [Å] down to `deepest`: one (with chance `single`) or more."""
    gap = float(rng.uniform(95, 280))
    count = int(rng.choice([2, 2, 2, 2, 2, 2, 2, 3, 4]))
    count = min(count, 1 + int(deepest / gap))
    if rng.random() < single:
        return (0.0,)
    return tuple(-gap * i for i in range(count))


def _wall(rng: np.random.Generator, single: float, scene: Scene, radius: float) -> Wall:
    opening = None
    if rng.random() < 0.05:
        normal = rng.standard_normal(3)
        normal /= np.linalg.norm(normal)
        middle = np.array(scene.shape) * rng.uniform(0.3, 0.7, 3)
        z, y, x = (float(v) for v in normal)
        opening = (z, y, x, float(normal @ middle))
    return Wall(
        offsets=random_offsets(rng, single, 0.4 * radius * scene.spacing),
        bilayer=random_bilayer(rng, scene.core),
        patchiness=float(rng.choice([0.0, 0.15, 0.3, 0.5])),
        opening=opening,
    )


def random_vesicle(
    rng: np.random.Generator, center: np.ndarray, radius: float, roughness: float
) -> Shape:
    """Draw a deformed ellipsoid; `radius` in voxels, `roughness` 0 (sphere) to 1."""
    axes = radius * np.exp(rng.normal(0, 0.22 * roughness, 3))
    bump = (float(rng.uniform(0.0, 0.13)) * roughness, float(rng.uniform(0.6, 1.2)), rng)
    return ellipsoid(center, axes, random_rotation(rng), bump)


def _center(rng: np.random.Generator, scene: Scene, slab: tuple[float, float]) -> np.ndarray:
    _, y, x = scene.shape
    middle, half = (slab[0] + slab[1]) / 2, max(2.0, (slab[1] - slab[0]) / 2)
    return np.array([middle + half * rng.uniform(-0.8, 0.8), rng.uniform(0, y), rng.uniform(0, x)])


def add_vesicles(
    scene: Scene,
    rng: np.random.Generator,
    slab: tuple[float, float],
    radii: tuple[float, float],
    count: int,
) -> None:
    """Place up to `count` vesicles with log-uniform radii [Å] in `radii`, large ones first."""
    sizes = np.sort(np.exp(rng.uniform(np.log(radii[0]), np.log(radii[1]), count)))[::-1]
    roughness = float(rng.choice([0.15, 0.5, 1.0]))
    touching = float(rng.choice([55.0, 75.0, 120.0]))
    single = float(rng.choice([1.0, 0.95, 0.8, 0.4], p=[0.55, 0.3, 0.11, 0.04]))
    clusters = [_center(rng, scene, slab) for _ in range(3)]
    clustered = rng.random() < 0.35
    for size in sizes:
        radius = float(size) / scene.spacing
        for _ in range(6):
            center = _center(rng, scene, slab)
            if clustered:
                near = clusters[int(rng.integers(3))]
                center[1:] = near[1:] + rng.normal(0, 0.12 * scene.shape[1], 2)
            shape = random_vesicle(rng, center, radius, roughness)
            wall = _wall(rng, single, scene, radius)
            if place(scene, shape, wall, touching):
                break


def add_large(scene: Scene, rng: np.random.Generator, slab: tuple[float, float]) -> None:
    """Place an organelle or cell edge larger than the field, of which an arc is seen."""
    extent = max(scene.shape)
    radius = extent * float(rng.uniform(0.35, 2.0))
    center = _center(rng, scene, slab)
    angle = rng.uniform(0, 2 * np.pi)
    reach = radius - extent * float(rng.uniform(-0.1, 0.35))
    center[1:] = np.array(scene.shape[1:]) / 2 + reach * np.array([np.sin(angle), np.cos(angle)])
    center[0] += radius * float(rng.uniform(-0.5, 0.5))
    shape = random_vesicle(rng, center, radius, 0.5)
    place(scene, shape, _wall(rng, 0.6, scene, radius), 60.0)


def add_whole(scene: Scene, rng: np.random.Generator) -> None:
    """Place a closed organelle about as deep as the field, both of its poles in it or just outside."""
    depth, *plane = scene.shape
    height = float(rng.uniform(0.28, 0.68))
    axes = depth * np.array([height, *(min(height, 0.5) * rng.uniform(0.8, 1.4, 2))])
    middle = [depth * rng.normal(0.5, 0.08), *(n * rng.uniform(0.2, 0.8) for n in plane)]
    angle = float(rng.uniform(0, np.pi))
    rotation = np.eye(3)
    rotation[1:, 1:] = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    bump = (float(rng.uniform(0.0, 0.08)), float(rng.uniform(0.6, 1.2)), rng)
    shape = ellipsoid(np.array(middle), axes, rotation, bump)
    place(scene, shape, _wall(rng, 0.9, scene, float(axes.min())), 60.0)


def add_tubules(
    scene: Scene, rng: np.random.Generator, slab: tuple[float, float], count: int
) -> None:
    """Place up to `count` membrane tubules of 20 to 80 nm diameter, mostly lying flat."""
    for _ in range(count):
        radius = float(rng.uniform(110, 420)) / scene.spacing
        rotation = random_rotation(rng)
        if rng.random() < 0.7:
            a = rng.uniform(0, 2 * np.pi)
            rotation = np.array(
                [[0, np.sin(a), np.cos(a)], [1.0, 0, 0], [0, np.cos(a), -np.sin(a)]]
            )
        length = float(rng.uniform(4, 20)) * radius
        shape = tubule(_center(rng, scene, slab), radius, length, rotation, rng)
        place(scene, shape, _wall(rng, 0.95, scene, radius), 70.0)


def add_toroids(
    scene: Scene, rng: np.random.Generator, slab: tuple[float, float], count: int
) -> None:
    """Place up to `count` toroids."""
    for _ in range(count):
        tube = float(rng.uniform(150, 500)) / scene.spacing
        ring = tube * float(rng.uniform(1.3, 3.5))
        shape = torus(_center(rng, scene, slab), (ring, tube), random_rotation(rng))
        place(scene, shape, _wall(rng, 1.0, scene, tube), 70.0)


def add_network(scene: Scene, rng: np.random.Generator) -> None:
    """Place a tortuous connected membrane: reticulum, cristae, tubular networks."""
    wavelength = float(rng.uniform(1500, 5000)) / scene.spacing
    shape = level_set(scene.shape, wavelength, float(rng.uniform(0.5, 1.6)), rng)
    wall = Wall(bilayer=random_bilayer(rng, scene.core), patchiness=float(rng.choice([0.0, 0.3])))
    place(scene, shape, wall, 60.0)


def add_sheets(
    scene: Scene, rng: np.random.Generator, slab: tuple[float, float], protein: bool = False
) -> None:
    """Place a stack of undulating sheets, steep more often than flat: cisternae, thylakoids.

    With `protein`, one sheet of protein (S-layer, crystal), which is no membrane.
    """
    angle = rng.uniform(0, 2 * np.pi)
    tilt = float(np.radians(rng.choice([rng.uniform(-35, 35), rng.uniform(-80, 80)])))
    normal = np.array([np.sin(tilt), np.cos(tilt) * np.sin(angle), np.cos(tilt) * np.cos(angle)])
    rotation = np.vstack([normal, np.zeros((2, 3))])
    lower, upper = np.zeros(3), np.array(scene.shape, float)
    wave = float(rng.uniform(0.25, 1.0)) * max(scene.shape)
    bump = random_bump(rng, lower, upper, wave, wave * float(rng.uniform(0.0, 0.08)))
    pairs = int(rng.integers(1, 6))
    lumen, between = rng.uniform(90, 300), rng.uniform(90, 350)
    offsets = [float(p * (lumen + between)) + s for p in range(pairs) for s in (0.0, float(lumen))]
    if protein or rng.random() < 0.3:
        offsets = offsets[: 1 if protein else int(rng.integers(1, 3))]
    shape = sheet(scene.shape, _center(rng, scene, slab), rotation, bump)
    wall = Wall(
        offsets=tuple(offsets),
        bilayer=None if protein else random_bilayer(rng, scene.core),
        patchiness=float(rng.choice([0.0, 0.3, 0.5])),
    )
    place(scene, shape, wall, 60.0)

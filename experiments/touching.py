"""Scenes of membranes that touch, and the masks a network would make of them, in which neighbours run together.

Mid-surfaces come as close as two bilayers do (45 Å); a mask is 5 to 6 voxels thick whatever the membrane, with
smooth noise, so that at 10 to 14 Å a voxel most contacts are fused. Surfaces are those of the simulator.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import cc3d
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from etsam.frame import Frame
from etsam.membrane import Membrane, quantised
from etsam.simulation.geometry import (
    Field,
    ellipsoid,
    normalised,
    random_bump,
    random_rotation,
    sheet,
)

SHAPE = (96, 176, 176)
SPACINGS = (10.0, 12.0, 14.0)  # Å
CONTACT = (45.0, 70.0)  # Å between mid-surfaces where two membranes touch
THICKNESS = (5.0, 6.0)  # voxels, of a mask
SWAY = 12.0  # Å, by which a sac of a stack is bent by itself
SOFTNESS = 1.0  # voxels, of the blur that fuses neighbours
ROUGHNESS = 0.08  # standard deviation of the noise added to the blurred mask
LOGIT_GAIN = 12.0  # logits of a blurred mask: 6 in the middle, -6 far away
Place = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Touching:
    """A scene: its membranes numbered from 1 in the voxels of `mask` (Z, Y, X), pieces apart, and logits."""

    name: str
    true: NDArray[np.int32]
    logits: NDArray[np.float32]
    frame: Frame

    def membrane(self, *, logits: bool) -> Membrane:
        """The mask, with or without its logits."""
        field = quantised(self.logits, 0.0) if logits else None
        return Membrane(self.logits > 0, field, self.frame)


def scenes(kinds: Collection[str] = (), seeds: range = range(3)) -> Iterator[Touching]:
    """Build scenes of some kinds (default: of every kind) with some seeds, each with the next voxel spacing."""
    for kind in kinds or KINDS:
        make = KINDS[kind]
        for seed in seeds:
            rng = np.random.default_rng([seed, *map(ord, kind)])
            spacing = SPACINGS[seed % len(SPACINGS)]
            distance, owner = _nearest(make(rng, spacing))
            yield _observed(f"{kind}_{seed}", distance, owner, spacing, rng)


def _nearest(fields: list[Field]) -> tuple[NDArray[np.float32], NDArray[np.uint16]]:
    """Distance [voxels] of each voxel to the nearest mid-surface, and its number from 1."""
    axes = _axes()
    best = torch.full(SHAPE, 1e4)
    owner = torch.zeros(SHAPE, dtype=torch.int32)
    for number, field in enumerate(fields, 1):
        distance = normalised(field(*axes))[0].abs_()
        closer = distance < best
        best[closer], owner[closer] = distance[closer], number
    return best.numpy(), owner.numpy().astype(np.uint16)


def _axes() -> Place:
    z, y, x = (torch.arange(n, dtype=torch.float32) for n in SHAPE)
    return z, y, x


def _observed(
    name: str, distance: np.ndarray, owner: np.ndarray, spacing: float, rng: np.random.Generator
) -> Touching:
    """See a scene as a network does."""
    label = distance <= rng.uniform(*THICKNESS) / 2
    noise = gaussian_filter(rng.standard_normal(SHAPE).astype(np.float32), 1.5)
    soft = gaussian_filter(label.astype(np.float32), SOFTNESS) + ROUGHNESS * noise / noise.std()
    logits = np.float32(LOGIT_GAIN) * (soft - 0.5)
    # noise far from any membrane is no matter of telling membranes apart
    logits = np.where(distance <= max(THICKNESS), logits, -np.float32(LOGIT_GAIN) / 2)
    pieces = cc3d.connected_components(owner * (logits > 0), connectivity=26)
    return Touching(name, pieces.astype(np.int32), logits, Frame(SHAPE, (spacing,) * 3))


def _centre(rng: np.random.Generator, spread: float) -> np.ndarray:
    return np.array(SHAPE) / 2 + rng.uniform(-spread, spread, 3)


def _ball(rng: np.random.Generator, centre: np.ndarray, radius: float) -> Field:
    """A vesicle that is not quite round; `radius` in voxels."""
    axes = radius * np.exp(rng.normal(0, 0.04, 3))
    return ellipsoid(centre, axes, random_rotation(rng), (0.02, 0.8, rng)).field


def _shifted(field: Field, gap: Field) -> Field:
    """A surface inside another by a distance [voxels] that varies."""
    return lambda z, y, x: normalised(field(z, y, x))[0] + gap(z, y, x)


def _gap(
    rng: np.random.Generator, spacing: float, wide: tuple[float, float], reach: float
) -> Field:
    """A distance [voxels] that falls to contact in patches about `reach` Å wide."""
    closest, usual = rng.uniform(*CONTACT) / spacing, rng.uniform(*wide) / spacing
    bump = random_bump(rng, np.zeros(3), np.array(SHAPE, float), reach / spacing, 1.0)
    return lambda z, y, x: (usual + 0.6 * usual * bump(z, y, x)).clamp_(closest, 1.3 * usual)


def double(rng: np.random.Generator, spacing: float) -> list[Field]:
    """Outer and inner membrane of a mitochondrion with contact sites; the inner one has cristae."""
    axes = np.array([0.62, 0.4, 0.4]) * SHAPE[1] * np.exp(rng.normal(0, 0.08, 3))
    outer = ellipsoid(_centre(rng, 6), axes, random_rotation(rng), (0.03, 0.8, rng)).field
    inner = _shifted(outer, _gap(rng, spacing, (110, 160), 350))
    width = rng.uniform(110, 180) / spacing
    planes = []
    turn = random_rotation(rng)
    for offset in (-0.22, 0.0, 0.24):
        centre = np.array(SHAPE) / 2 + turn[0] * offset * SHAPE[1]
        across = sheet(SHAPE, centre, turn, None).field
        end = sheet(SHAPE, centre + turn[1] * rng.uniform(-25, 10), turn[[1, 0, 2]], None).field
        planes.append((across, end))

    def with_cristae(z: Tensor, y: Tensor, x: Tensor) -> Tensor:
        distance = inner(z, y, x)
        for across, end in planes:
            lumen = torch.maximum(across(z, y, x).abs() - width / 2, end(z, y, x))
            distance = _smooth_max(distance, -lumen, 4.0)
        return distance

    return [outer, with_cristae]


def _smooth_max(a: Tensor, b: Tensor, radius: float) -> Tensor:
    return torch.maximum(a, b) + (radius - (a - b).abs()).clamp_(min=0).square() / (4 * radius)


def _packed(
    rng: np.random.Generator, spacing: float, start: list[tuple[np.ndarray, float]], count: int
) -> list[tuple[np.ndarray, float]]:
    """Centres and radii [voxels] of balls, each in contact with one before and clear of all others."""
    balls = list(start)
    for _ in range(4000):
        if len(balls) >= count:
            break
        centre, radius = balls[int(rng.integers(len(balls)))]
        own = rng.uniform(180, 420) / spacing
        direction = rng.standard_normal(3)
        direction /= np.linalg.norm(direction)
        place = centre + direction * (radius + own + rng.uniform(*CONTACT) / spacing)
        if (place < -0.3 * own).any() or (place > np.array(SHAPE) + 0.3 * own).any():
            continue
        clear = [np.linalg.norm(place - c) - r - own for c, r in balls]
        if min(clear) >= CONTACT[0] / spacing:
            balls.append((place, own))
    return balls


def vesicles(rng: np.random.Generator, spacing: float) -> list[Field]:
    """A cluster of round vesicles."""
    first = (_centre(rng, 20), rng.uniform(200, 420) / spacing)
    return [_ball(rng, *ball) for ball in _packed(rng, spacing, [first], 22)]


def adhering(rng: np.random.Generator, spacing: float) -> list[Field]:
    """Vesicles that stick to each other, flat where they do."""
    first = (_centre(rng, 20), rng.uniform(250, 420) / spacing)
    balls = [(c, r * 1.16) for c, r in _packed(rng, spacing, [first], 16)]
    return [_flattened(rng, number, balls, spacing) for number in range(len(balls))]


def _flattened(
    rng: np.random.Generator, number: int, balls: list[tuple[np.ndarray, float]], spacing: float
) -> Field:
    centre, radius = balls[number]
    ball, planes = _ball(rng, centre, radius), []
    for other, (place, reach) in enumerate(balls):
        length = float(np.linalg.norm(place - centre))
        if other == number or length > radius + reach + CONTACT[1] / spacing:
            continue
        normal = (place - centre) / length
        middle = (length**2 + radius**2 - reach**2) / (2 * length)
        gap = (55.0 + 10 * ((number + other) % 2)) / spacing
        turn = np.vstack([normal, np.zeros((2, 3))])
        planes.append(sheet(SHAPE, centre + normal * (middle - gap / 2), turn, None).field)

    def field(z: Tensor, y: Tensor, x: Tensor) -> Tensor:
        distance = ball(z, y, x)
        for plane in planes:
            distance = _smooth_max(distance, plane(z, y, x), 6.0)
        return distance

    return field


def _stack(
    rng: np.random.Generator, spacing: float, lumen: tuple[float, float], gap: tuple[float, float]
) -> list[Field]:
    """Flat closed sacs one upon the other, bent together and each by itself."""
    turn = random_rotation(rng)
    low, high = np.zeros(3), np.array(SHAPE, float)
    bend = random_bump(rng, low, high, 0.5 * SHAPE[1], 5.0)
    centre = _centre(rng, 6)
    at, made = -60.0, []
    while at < 60.0:
        height = rng.uniform(*lumen) / spacing
        own = random_bump(rng, low, high, 300 / spacing, SWAY / spacing)
        made.append(_sac(turn, centre, (at, height, rng.uniform(35, 65)), (bend, own), spacing))
        at += height + rng.uniform(*gap) / spacing
    return made


def _sac(
    turn: np.ndarray,
    centre: np.ndarray,
    size: tuple[float, float, float],
    bends: tuple[Field, Field],
    spacing: float,
) -> Field:
    """A disc with a round rim: `size` is its place along the axis, height and radius [voxels]."""
    along, height, radius = size
    sway = SWAY / spacing
    axes = [
        sheet(SHAPE, centre, turn[[i, 1 - i, 2]] if i < 2 else turn[[2, 1, 0]], None).field
        for i in range(3)
    ]

    def field(z: Tensor, y: Tensor, x: Tensor) -> Tensor:
        a, b, c = (axis(z, y, x) for axis in axes)
        a = a - along + bends[0](z, y, x) + bends[1](z, y, x).clamp_(-sway, sway)
        beyond = (torch.hypot(b, c) - radius).clamp_(min=0)
        return torch.hypot(a, beyond) - height / 2

    return field


def cisternae(rng: np.random.Generator, spacing: float) -> list[Field]:
    """A Golgi stack."""
    return _stack(rng, spacing, (180, 280), (70, 110))


def grana(rng: np.random.Generator, spacing: float) -> list[Field]:
    """Stacked thylakoids: lumen and gap both about 90 Å between mid-surfaces."""
    return _stack(rng, spacing, (90, 120), (70, 95))


def contacts(rng: np.random.Generator, spacing: float) -> list[Field]:
    """A plasma membrane, a sheet of reticulum that touches it in patches, and docked vesicles."""
    turn = random_rotation(rng)
    bump = random_bump(rng, np.zeros(3), np.array(SHAPE, float), 0.6 * SHAPE[1], 4.0)
    plasma = sheet(SHAPE, _centre(rng, 6), turn, bump).field
    inner = _shifted(plasma, _gap(rng, spacing, (130, 190), 450))
    made = [plasma, inner]
    for _ in range(40):
        radius = rng.uniform(180, 300) / spacing
        place = rng.uniform(0, 1, 3) * SHAPE
        points = [torch.tensor([float(v)]) for v in place]
        height = float(plasma(*points)) - radius - rng.uniform(*CONTACT) / spacing
        place = place - turn[0] * height
        clear = [np.linalg.norm(place - c) - r - radius for c, r in _balls(made)]
        if (place > 0).all() and (place < SHAPE).all() and min(clear, default=99) > 6:
            made.append(_Docked(_ball(rng, place, radius), place, radius))
        if len(made) == 9:
            break
    return made


@dataclass(frozen=True)
class _Docked:
    """A vesicle that remembers where it is."""

    field: Field
    centre: np.ndarray
    radius: float

    def __call__(self, z: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return self.field(z, y, x)


def _balls(made: list[Field]) -> list[tuple[np.ndarray, float]]:
    return [(one.centre, one.radius) for one in made if isinstance(one, _Docked)]


def multivesicular(rng: np.random.Generator, spacing: float) -> list[Field]:
    """A body full of vesicles that touch its wall and each other."""
    radius = rng.uniform(0.44, 0.5) * SHAPE[1]
    centre = _centre(rng, 10)
    made: list[Field] = [ellipsoid(centre, np.full(3, radius), np.eye(3), (0.0, 1.0, rng)).field]
    balls: list[tuple[np.ndarray, float]] = []
    for _ in range(3000):
        own = rng.uniform(180, 350) / spacing
        direction = rng.standard_normal(3)
        direction /= np.linalg.norm(direction)
        away = radius - own - rng.uniform(*CONTACT) / spacing
        place = centre + direction * away * (1.0 if rng.random() < 0.5 else rng.random())
        clear = [np.linalg.norm(place - c) - r - own for c, r in balls]
        if min(clear, default=99) >= CONTACT[0] / spacing and 0 < place[0] < SHAPE[0]:
            balls.append((place, own))
        if len(balls) == 16:
            break
    return made + [_ball(rng, *ball) for ball in balls]


KINDS: dict[str, Callable[[np.random.Generator, float], list[Field]]] = {
    "double": double,
    "vesicles": vesicles,
    "adhering": adhering,
    "cisternae": cisternae,
    "grana": grana,
    "contacts": contacts,
    "multivesicular": multivesicular,
}

"""The sample: membranes placed without crossing, and everything else that fills a field of view."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from etsam.simulation.density import (
    Bilayer,
    bilayer_profile,
    profile_reach,
    single_layer_profile,
    voxel_blur,
)
from etsam.simulation.geometry import Shape, normalised
from etsam.simulation.imaging import TiltSeries, hidden_by_wedge

PLAIN_BILAYER = Bilayer()
FAR = 1e4  # Å, "no membrane near"
CLEARANCE = (
    150.0  # Å, as far as distances to membranes are known: what avoids or adorns them lies nearer
)
COARSE = 4  # voxels, grid on which collisions are tested


@dataclass
class Scene:
    """A volume under construction; arrays are (Z, Y, X), lengths in Å unless said otherwise."""

    density: Tensor
    distance: Tensor  # signed distance to the nearest bilayer mid-surface up to CLEARANCE, else FAR
    hidden: Tensor  # its |normal z| where it lies in the missing wedge, else 0
    region: Tensor  # int16 compartment, 0 = outside everything
    instance: Tensor  # int16 number of the nearest bilayer, 0 = none painted here
    spacing: float
    tilt: TiltSeries
    coarse: Tensor  # distance (voxels) to the nearest surface of any kind on the coarse grid
    regions: int = 0
    instances: int = 0
    core: float = 0.0  # density that proteins add in the middle of every bilayer
    removed: Tensor | None = None  # distance to bilayers that were cut off with the sample
    unsigned: Tensor | None = None  # normals zyx (3, ...) of shapes without an inside, where wanted

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along z, y, x."""
        z, y, x = self.density.shape
        return z, y, x


@dataclass(frozen=True)
class Wall:
    """What a surface is made of: mid-surface offsets [Å], a bilayer or a protein layer."""

    offsets: tuple[float, ...] = (0.0,)
    bilayer: Bilayer | None = PLAIN_BILAYER
    patchiness: float = 0.0  # relative standard deviation of its density along the surface
    layer_width: float = 12.0  # Å, of a protein layer
    opening: tuple[float, float, float, float] | None = None  # normal zyx and distance [voxels]


def empty_scene(shape: tuple[int, int, int], spacing: float, tilt: TiltSeries) -> Scene:
    """A scene of pure water."""
    coarse = tuple(-(-n // COARSE) for n in shape)
    return Scene(
        density=torch.zeros(shape),
        distance=torch.full(shape, FAR),
        hidden=torch.zeros(shape),
        region=torch.zeros(shape, dtype=torch.int16),
        instance=torch.zeros(shape, dtype=torch.int16),
        spacing=spacing,
        tilt=tilt,
        coarse=torch.full(coarse, FAR),
    )


def _axes(lower: list[int], upper: list[int], step: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    z, y, x = (
        torch.arange(low, up, step, dtype=torch.float32)
        for low, up in zip(lower, upper, strict=True)
    )
    return z, y, x


def place(scene: Scene, shape: Shape, wall: Wall, gap: float) -> bool:
    """Add a surface if it stays `gap` [Å] clear of all others and inside the field at all."""
    offsets = [o / scene.spacing for o in wall.offsets]
    around = CLEARANCE / scene.spacing
    lower = [max(0, int(v)) for v in shape.lower + min(0.0, min(offsets)) - around]
    margin = max(0.0, max(offsets)) + around
    upper = [min(n, int(v + margin) + 1) for n, v in zip(scene.shape, shape.upper, strict=True)]
    if any(u - low < 3 for low, u in zip(lower, upper, strict=True)):
        return False
    start = [low - low % COARSE for low in lower]
    rough = shape.field(*_axes(start, upper, COARSE))
    near = torch.stack([(rough - o).abs() for o in offsets]).amin(dim=0)
    window = tuple(
        slice(low // COARSE, low // COARSE + n) for low, n in zip(start, rough.shape, strict=True)
    )
    stored = scene.coarse[window]
    band = near < 0.75 * COARSE
    if int(band.sum()) < 8 or bool((stored[band] < gap / scene.spacing).any()):
        return False
    scene.coarse[window] = torch.minimum(stored, near)
    _paint(scene, shape, wall, lower, upper)
    return True


def _paint(scene: Scene, shape: Shape, wall: Wall, lower: list[int], upper: list[int]) -> None:
    axes = _axes(lower, upper)
    raw = shape.field(*axes)
    scaled, normal = normalised(raw)
    distance = scaled * scene.spacing
    box = tuple(slice(low, up) for low, up in zip(lower, upper, strict=True))
    scene.regions += 1
    scene.region[box][distance < min(wall.offsets)] = scene.regions
    if wall.opening is not None:
        n = wall.opening
        plane = n[0] * axes[0][:, None, None] + n[1] * axes[1][None, :, None] + n[2] * axes[2]
        distance = torch.where(plane < n[3], distance, torch.full_like(distance, FAR))
    blur = voxel_blur(scene.spacing)
    for offset in wall.offsets:
        index = torch.nonzero(((distance - offset).abs() < CLEARANCE).view(-1)).squeeze(1)
        d = distance.view(-1)[index] - offset
        where = _flat_index(index, distance.shape, lower, scene.shape)
        if wall.bilayer is not None:
            scene.instances += 1
            _keep_nearest(scene, where, d, normal.view(3, -1)[:, index])
        dense = d.abs() < profile_reach(scene.spacing)
        d, where = d[dense], where[dense]
        if wall.bilayer is None:
            values = single_layer_profile(d, wall.layer_width, blur)
        else:
            values = bilayer_profile(d, wall.bilayer, blur)
        if wall.patchiness > 0:
            values = values * _patches(scene, where, wall.patchiness)
        scene.density.view(-1)[where] += values


def _flat_index(
    index: Tensor, box: torch.Size, lower: list[int], shape: tuple[int, int, int]
) -> Tensor:
    x = index % box[2] + lower[2]
    rest = index // box[2]
    return ((rest // box[1] + lower[0]) * shape[1] + rest % box[1] + lower[1]) * shape[2] + x


def _keep_nearest(scene: Scene, where: Tensor, distance: Tensor, normal: Tensor) -> None:
    stored = scene.distance.view(-1)[where]
    closer = distance.abs() < stored.abs()
    at = where[closer]
    scene.distance.view(-1)[at] = distance[closer]
    scene.instance.view(-1)[at] = scene.instances
    scene.hidden.view(-1)[at] = hidden_by_wedge(normal[:, closer], scene.tilt)


def _patches(scene: Scene, where: Tensor, amount: float) -> Tensor:
    """Relative density along a surface: hash-like noise constant over cells of about 80 Å."""
    size = max(2, round(80.0 / scene.spacing))
    _, ny, nx = scene.shape
    z, y, x = where // (ny * nx) // size, where // nx % ny // size, where % nx // size
    code = (z * 73_856_093) ^ (y * 19_349_663) ^ (x * 83_492_791)
    uniform = ((code * 2_654_435_761) % 4_294_967_296).float() / 4_294_967_296.0
    return (1.0 + amount * (uniform - 0.5) * 3.46).clamp(min=0.0)

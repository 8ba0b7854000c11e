"""Build the sample a recipe describes: membranes first, then everything that avoids them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from etsam.simulation import contents as fill
from etsam.simulation import membranes
from etsam.simulation.recipe import Contents, Recipe, SimulationOptions
from etsam.simulation.scene import FAR, Scene, empty_scene
from etsam.simulation.segmentations import place_segmentation


@dataclass(frozen=True)
class Slab:
    """The sample's lower and upper face at the field's centre [voxels] and their slopes."""

    low: float
    high: float
    slope: tuple[float, float]

    def outside(self, shape: tuple[int, int, int], by: float = 0.0) -> Tensor:
        """Voxels (Z, Y, X) beyond the faces by so many voxels."""
        z, y, x = (torch.arange(n, dtype=torch.float32) for n in shape)
        tilt = (y - shape[1] / 2)[:, None] * self.slope[0] + (x - shape[2] / 2) * self.slope[1]
        height = z[:, None, None] - tilt
        return (height < self.low - by) | (height > self.high + by)


def build_sample(
    shape: tuple[int, int, int],
    recipe: Recipe,
    options: SimulationOptions,
    rng: np.random.Generator,
) -> Scene:
    """Build the scene (Z, Y, X) of a recipe, with the user's shapes and maps in the options."""
    scene = empty_scene(shape, recipe.voxel_spacing, recipe.tilt)
    scene.core = recipe.core
    depth = shape[0] * recipe.thickness
    middle = shape[0] / 2 + (shape[0] - depth) * float(rng.uniform(-0.4, 0.4)) * (depth < shape[0])
    slab = Slab(middle - depth / 2, middle + depth / 2, recipe.slope)
    faces = (slab.low, slab.high)
    if options.shapes and options.membrane_proteins:
        scene.unsigned = torch.zeros((3, *shape))
    for given in options.shapes:
        place_segmentation(scene, given, membranes.random_bilayer(rng, recipe.core), rng)
    _add_membranes(scene, rng, faces, recipe.contents)
    outside = slab.outside(shape)
    if recipe.cut:
        scene.density[outside] = 0.0
        far = slab.outside(shape, options.ghosts / scene.spacing)
        scene.removed = torch.where(outside & ~far, scene.distance, FAR)
        scene.distance[outside] = FAR
    if options.membrane_proteins:
        spread = float(rng.uniform(0.2, 2.0))
        fill.add_mapped_membrane_proteins(scene, rng, options.membrane_proteins, spread)
    _add_proteins(scene, rng, recipe.contents, options)
    scene.density[outside & (scene.distance.abs() > 60.0)] *= float(rng.choice([0.0, 0.1]))
    if recipe.cut and rng.random() < 0.5:
        fill.add_damage(scene, rng, outside)
    _add_dirt(scene, rng, faces, recipe.contents)
    return scene


def _add_membranes(
    scene: Scene, rng: np.random.Generator, faces: tuple[float, float], things: Contents
) -> None:
    if things.network:
        membranes.add_network(scene, rng)
    for _ in range(things.whole):
        membranes.add_whole(scene, rng)
    for _ in range(things.large):
        membranes.add_large(scene, rng, faces)
    for _ in range(things.sheets):
        membranes.add_sheets(scene, rng, faces)
    for _ in range(things.layers):
        membranes.add_sheets(scene, rng, faces, protein=True)
    if things.toroids:
        membranes.add_toroids(scene, rng, faces, things.toroids)
    if things.vesicles:
        membranes.add_vesicles(scene, rng, faces, things.radii, things.vesicles)
    if things.tubules:
        membranes.add_tubules(scene, rng, faces, things.tubules)
    if things.capsids:
        fill.add_capsids(scene, rng, faces, things.capsids)


def _add_proteins(
    scene: Scene, rng: np.random.Generator, things: Contents, options: SimulationOptions
) -> None:
    regions = scene.regions + 1
    inside = things.crowding[1] * rng.random(regions) ** 1.5
    inside[0] = things.crowding[0]
    crowding = torch.as_tensor(inside.astype(np.float32))
    lumen = torch.as_tensor((things.lumen * rng.random(regions)).astype(np.float32))
    lumen[0] = 0.0
    if things.embedded > 0:
        fill.add_membrane_proteins(scene, rng, (float(rng.uniform(22, 38)), 0.0), things.embedded)
    if things.spikes > 0:
        radius = float(rng.uniform(20, 45))
        outward = radius + float(rng.uniform(20, 70))
        even = options.spikes is not None
        fill.add_membrane_proteins(scene, rng, (radius, outward), things.spikes, even=even)
    if float(crowding.max()) > 0:
        fill.add_soluble(scene, rng, crowding, things.protein_contrast, options.proteins)
    if things.ribosomes:
        fill.add_ribosomes(scene, rng, things.ribosomes, things.protein_contrast)
    if things.actin:
        fill.add_filaments(scene, rng, things.actin, microtubule=False)
    if things.microtubules:
        fill.add_filaments(scene, rng, things.microtubules, microtubule=True)
    fill.add_background(scene, rng, lumen, things.gradient)


def _add_dirt(
    scene: Scene, rng: np.random.Generator, faces: tuple[float, float], things: Contents
) -> None:
    if things.ice:
        fill.add_ice(scene, rng, faces, things.ice)
    if things.gold:
        fill.add_gold(scene, rng, things.gold, float(rng.uniform(25, 75)))
    if things.carbon:
        fill.add_carbon(scene, rng, faces)

"""Build the sample a recipe describes: membranes first, then everything that avoids them."""

from __future__ import annotations

import numpy as np
import torch

from etsam.simulation import contents as fill
from etsam.simulation import membranes
from etsam.simulation.recipe import Contents, Recipe
from etsam.simulation.scene import FAR, Scene, empty_scene


def build_sample(shape: tuple[int, int, int], recipe: Recipe, rng: np.random.Generator) -> Scene:
    """Build the scene (Z, Y, X) of a recipe."""
    scene = empty_scene(shape, recipe.voxel_spacing)
    depth = shape[0] * recipe.thickness
    middle = shape[0] / 2 + (shape[0] - depth) * float(rng.uniform(-0.4, 0.4)) * (depth < shape[0])
    slab = (middle - depth / 2, middle + depth / 2)
    things = recipe.contents
    _add_membranes(scene, rng, slab, things)
    if recipe.cut:
        _cut(scene, slab)
    _add_rest(scene, rng, slab, things)
    return scene


def _add_membranes(
    scene: Scene, rng: np.random.Generator, slab: tuple[float, float], things: Contents
) -> None:
    for _ in range(things.large):
        membranes.add_large(scene, rng, slab)
    for _ in range(things.sheets):
        membranes.add_sheets(scene, rng, slab)
    if things.toroids:
        membranes.add_toroids(scene, rng, slab, things.toroids)
    if things.vesicles:
        membranes.add_vesicles(scene, rng, slab, things.radii, things.vesicles)
    if things.tubules:
        membranes.add_tubules(scene, rng, slab, things.tubules)
    if things.capsids:
        fill.add_capsids(scene, rng, slab, things.capsids)


def _outside(scene: Scene, slab: tuple[float, float]) -> torch.Tensor:
    z = torch.arange(scene.shape[0])
    return torch.nonzero((z < slab[0]) | (z > slab[1])).squeeze(1)


def _cut(scene: Scene, slab: tuple[float, float]) -> None:
    """Remove membranes beyond the sample's faces, as milling does."""
    gone = _outside(scene, slab)
    scene.density[gone] = 0.0
    scene.distance[gone] = FAR


def _add_rest(
    scene: Scene, rng: np.random.Generator, slab: tuple[float, float], things: Contents
) -> None:
    regions = scene.regions + 1
    inside = things.crowding[1] * rng.random(regions) ** 1.5
    inside[0] = things.crowding[0]
    crowding = torch.from_numpy(inside.astype(np.float32))
    lumen = torch.from_numpy((things.lumen * rng.random(regions)).astype(np.float32))
    lumen[0] = 0.0
    if things.embedded > 0:
        fill.add_membrane_proteins(scene, rng, float(rng.uniform(22, 38)), 0.0, things.embedded)
    if things.spikes > 0:
        radius = float(rng.uniform(20, 45))
        outward = radius + float(rng.uniform(20, 70))
        fill.add_membrane_proteins(scene, rng, radius, outward, things.spikes)
    if float(crowding.max()) > 0:
        fill.add_soluble(scene, rng, crowding)
    if things.ribosomes:
        fill.add_ribosomes(scene, rng, things.ribosomes)
    if things.actin:
        fill.add_filaments(scene, rng, things.actin, microtubule=False)
    if things.microtubules:
        fill.add_filaments(scene, rng, things.microtubules, microtubule=True)
    fill.add_background(scene, rng, lumen, things.gradient)
    scene.density[_outside(scene, slab)] *= float(rng.choice([0.0, 0.1]))
    if things.ice:
        fill.add_ice(scene, rng, slab, things.ice)
    if things.gold:
        fill.add_gold(scene, rng, things.gold, float(rng.uniform(25, 75)))
    if things.carbon:
        fill.add_carbon(scene, rng, slab)

"""Distances to membranes, as far as what avoids or adorns membranes needs them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from etsam.simulation.contents import add_membrane_proteins, add_ribosomes, add_soluble
from etsam.simulation.density import Bilayer
from etsam.simulation.geometry import ellipsoid
from etsam.simulation.imaging import TiltSeries
from etsam.simulation.labels import label_thickness, membrane_labels
from etsam.simulation.recipe import LEAN, Contents, RealShape, SimulationOptions, draw
from etsam.simulation.sample import build_sample
from etsam.simulation.scene import CLEARANCE, FAR, Scene, Wall, empty_scene, place
from etsam.simulation.segmentations import place_segmentation

TILT = TiltSeries(tuple(np.arange(-60, 61, 3.0)))
CENTER = np.array([50.3, 49.6, 50.1])


def sphere(spacing: float, radius: float, side: int = 100) -> tuple[Scene, torch.Tensor]:
    """A scene with a sphere of a radius in voxels, and its exact distances in Å."""
    scene = empty_scene((side,) * 3, spacing, TILT)
    round_ = (0.0, 1.0, np.random.default_rng(0))
    assert place(scene, ellipsoid(CENTER, np.full(3, radius), np.eye(3), round_), Wall(), 60.0)
    z, y, x = (torch.arange(side) - c for c in CENTER)
    exact = (z[:, None, None] ** 2 + y[:, None] ** 2 + x**2).sqrt() - radius
    return scene, exact.float() * spacing


@pytest.mark.parametrize(("spacing", "radius"), [(4.0, 20.0), (6.0, 24.0), (10.0, 30.0)])
def test_distances_are_known_all_round_a_sphere(spacing: float, radius: float) -> None:
    """At its poles too, where the shape's own box ends two voxels beyond it."""
    scene, exact = sphere(spacing, radius)
    near = exact.abs() < min(CLEARANCE, 0.5 * radius * spacing) - 5
    assert float((scene.distance - exact)[near].abs().max()) < 0.35 * spacing
    assert bool((scene.distance[exact.abs() > CLEARANCE + 5] == FAR).all())
    wall = exact.abs() <= label_thickness(spacing) / 2 - 0.1 * spacing
    assert bool((membrane_labels(scene, LEAN)[wall] != 0).all())


def test_spikes_stand_on_membranes() -> None:
    """As far from the mid-surface as the simulator draws them."""
    for outward in (40.0, 80.0, 115.0):
        scene, exact = sphere(10.0, 25.0)
        before = scene.density.clone()
        add_membrane_proteins(scene, np.random.default_rng(1), (30.0, outward), 1.0)
        added = scene.density - before
        assert float(added.sum()) > 0
        middle = float((added * exact).sum() / added.sum())
        assert middle == pytest.approx(outward, abs=6)


def test_as_many_spikes_stand_as_are_asked_for() -> None:
    """Outside of the walls, which are drawn as without; the preset's own number plays no role."""
    added = []
    for spikes in (0.0, 0.3, 1.0):
        options = SimulationOptions("virus", 10.0, spikes=spikes, core=0.0)
        recipe = draw(np.random.default_rng(3), options)
        things = Contents(
            vesicles=10, radii=(400.0, 500.0), embedded=0.0, spikes=recipe.contents.spikes
        )
        recipe = replace(recipe, contents=things)
        scene = build_sample((64, 160, 160), recipe, options, np.random.default_rng(4))
        added.append(float(scene.density[(scene.distance > 60) & (scene.distance < 110)].mean()))
    assert added[0] < 0.1 * added[1] < 0.1 * added[2]
    assert added[2] - added[0] == pytest.approx((added[1] - added[0]) / 0.3, rel=0.25)
    scene, _ = sphere(10.0, 25.0)
    shell = float(4 * np.pi * (250 + 80) ** 2)
    filled = []
    for seed in range(6):
        scene.density.zero_()
        add_membrane_proteins(scene, np.random.default_rng(seed), (30.0, 80.0), 0.5, even=True)
        one = float(scene.density.sum()) / (0.5 * shell / (np.pi * 30.0**2))
        filled.append(one)
    assert max(filled) < 1.5 * min(filled), "so many on each membrane, whatever is drawn"
    for wrong in (-0.1, 11.0):
        with pytest.raises(ValueError, match=f"coverage of {wrong} by spikes"):
            SimulationOptions(spikes=wrong)


@pytest.mark.parametrize("kind", ["ribosomes", "soluble"])
def test_proteins_keep_clear_of_membranes(kind: str) -> None:
    scene, exact = sphere(10.0, 25.0)
    before = scene.density.clone()
    rng = np.random.default_rng(2)
    if kind == "ribosomes":
        add_ribosomes(scene, rng, 400, 1.0)
    else:
        add_soluble(scene, rng, torch.tensor([0.3, 0.3]), 1.0)
    added = scene.density - before
    assert float(added[exact.abs() < 20].mean()) < 0.01 * float(added[exact > 200].mean())


def test_ribosomes_keep_clear_of_given_shapes(tmp_path: Path) -> None:
    mask = np.zeros((40, 60, 60), bool)
    mask[:, 28:32] = True
    np.savez(tmp_path / "sheet.npz", labels=mask)
    scene = empty_scene(mask.shape, 10.0, TILT)
    rng = np.random.default_rng(3)
    place_segmentation(scene, RealShape(str(tmp_path / "sheet.npz"), 10.0), Bilayer(), rng)
    wall = scene.distance < 20
    before = scene.density.clone()
    add_ribosomes(scene, rng, 400, 1.0)
    added = scene.density - before
    assert wall.any()
    assert float(added[wall].mean()) < 0.01 * float(added[scene.distance == FAR].mean())

"""The thickness of the sample: found where its faces show, not told where they do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from etsam.inspect import inspect, summary
from etsam.lamella import Lamella, find_lamella, texture
from etsam.simulation import sample
from etsam.simulation.recipe import SimulationOptions, draw
from etsam.simulation.render import render
from test_cli import Run, write_mrc

SPACING = 10.0


def slab(depth: int, low: int, high: int, contrast: float = 1.0, seed: int = 0) -> np.ndarray:
    """Noise everywhere, and coarse structure between two faces."""
    random = np.random.default_rng(seed)
    volume = random.normal(size=(depth, 96, 96))
    coarse = ndimage.gaussian_filter(random.normal(size=(high - low, 96, 96)), (0, 3, 3))
    volume[low:high] += contrast * coarse / coarse.std()
    return volume.astype(np.float32)


def lamella_of(volume: np.ndarray) -> Lamella | None:
    found = [texture(plane, SPACING) for plane in volume]
    return find_lamella(found, range(len(volume)), len(volume))


@pytest.mark.parametrize(("low", "high"), [(10, 50), (25, 40), (0, 30), (33, 64)])
def test_a_slab_is_found_to_the_slice(low: int, high: int) -> None:
    found = lamella_of(slab(64, low, high))
    assert found is not None
    assert abs(found.start - low) <= 1 and abs(found.stop - high) <= 1
    assert found.least <= high - low <= found.most


def test_faint_texture_widens_the_range() -> None:
    clear, faint = (lamella_of(slab(64, 20, 44, contrast)) for contrast in (1.0, 0.2))
    assert clear is not None and faint is not None
    assert clear.most - clear.least <= faint.most - faint.least
    assert faint.least <= 24 <= faint.most


@pytest.mark.parametrize(
    "volume",
    [
        slab(64, 0, 64),
        np.random.default_rng(1).normal(size=(64, 96, 96)).astype(np.float32),
        np.ones((64, 96, 96), np.float32),
        np.random.default_rng(1).normal(size=(64, 9, 9)).astype(np.float32),
        slab(8, 2, 6),
        np.linspace(1, 2, 64)[:, None, None] * slab(64, 0, 64),
    ],
    ids=["fills the volume", "noise", "constant", "narrow", "shallow", "a gradient"],
)
def test_nothing_is_told_where_no_face_shows(volume: np.ndarray) -> None:
    assert lamella_of(volume) is None


def test_gold_and_dirt_are_no_texture() -> None:
    plane = np.random.default_rng(2).normal(size=(96, 96)).astype(np.float32)
    dirty = plane.copy()
    dirty[:20, :20] -= 50
    assert texture(dirty, SPACING) == pytest.approx(texture(plane, SPACING), rel=0.5)


@pytest.mark.parametrize(("seed", "thickness"), [(0, 0.35), (13, 0.5)])
def test_simulated_lamellae_of_known_thickness(
    seed: int, thickness: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[sample.Slab] = []

    class Seen(sample.Slab):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(sample, "Slab", Seen)
    options = SimulationOptions(preset=("cell", "organelle")[seed % 3])
    random = np.random.default_rng(seed)
    recipe = replace(draw(random, options), thickness=thickness)
    volume, _, _ = render(recipe, (128, 160, 160), options, random)
    found = inspect(write_mrc(tmp_path / "a.mrc", volume.numpy(), recipe.voxel_spacing))
    true = made[-1].high - made[-1].low
    assert found.lamella is not None
    assert found.lamella.least <= true <= found.lamella.most
    assert found.lamella.thickness == pytest.approx(true, rel=0.2)
    told = summary(found)
    assert told["thickness_nm"] == pytest.approx(true * recipe.voxel_spacing / 10, rel=0.2)
    low, high = told["thickness_range_nm"]
    assert low <= told["thickness_nm"] <= high


def test_inspect_says_it(run: Run, tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a.mrc", slab(64, 10, 50), SPACING)
    assert "sample: about 40 nm thick" in run("inspect", "--no-timing", path)[1]
    path = write_mrc(tmp_path / "b.mrc", slab(64, 10, 50), 1.0)
    assert "sample: about 40 slices thick" in run("inspect", "--no-timing", path)[1]
    path = write_mrc(tmp_path / "c.mrc", slab(64, 0, 64), SPACING)
    assert "faces are not seen" in run("inspect", "--no-timing", path)[1]

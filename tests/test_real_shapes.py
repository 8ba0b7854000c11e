"""Segmentations that are placed in simulated tomograms keep their size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from etsam.simulation.density import Bilayer
from etsam.simulation.imaging import TiltSeries
from etsam.simulation.scene import empty_scene
from etsam.simulation.segmentations import RealShape, place_segmentation

GAP = 480.0  # Å from wall to wall, whole voxels of every grid


@pytest.mark.parametrize(("own", "spacing"), [(10, 10), (15, 10), (12, 10), (10, 12), (8, 12)])
def test_walls_of_a_segmentation_stay_as_far_apart(
    tmp_path: Path, own: float, spacing: float
) -> None:
    labels = np.zeros((181, 40, 40), np.uint8)
    gap = round(GAP / own)
    for wall in (90 - gap, 90, 90 + gap):
        labels[wall - 2 : wall + 3] = 1
    np.savez(tmp_path / "walls.npz", labels=labels)
    scene = empty_scene((163, 24, 25), spacing, TiltSeries((-60.0, 60.0)))
    shape = RealShape(str(tmp_path / "walls.npz"), own)
    place_segmentation(scene, shape, Bilayer(), np.random.default_rng(0))
    profile = np.maximum(scene.density.mean(dim=(1, 2)).numpy(), 0)
    middle = round(np.average(np.arange(163), weights=profile))
    apart = round(GAP / spacing)
    low, own_wall, high = (
        profile[start : start + apart] for start in middle - apart // 2 + apart * np.arange(-1, 2)
    )
    assert own_wall.max() > 0.1
    np.testing.assert_allclose(low, own_wall, atol=1e-3)
    np.testing.assert_allclose(high, own_wall, atol=1e-3)

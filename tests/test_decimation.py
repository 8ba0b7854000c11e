"""Meshes of several surfaces are decimated apart, and stay where they are."""

from __future__ import annotations

import numpy as np
import pytest

from etsam.frame import Frame
from etsam.membrane import Membrane
from etsam.meshes import surface_mesh

BALLS = ((28.0, 28.0, 28.0, 22.0), (46.0, 46.0, 46.0, 6.0), (8.0, 50.0, 50.0, 5.0))


@pytest.fixture(scope="module")
def membrane() -> Membrane:
    z, y, x = np.indices((60, 60, 60))
    mask = np.zeros((60, 60, 60), bool)
    for cz, cy, cx, radius in BALLS:
        mask |= (z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 < radius**2
    return Membrane(mask, None, Frame(mask.shape, (10.0,) * 3))


@pytest.mark.parametrize("limit", [1000, 5000])
def test_every_surface_keeps_its_place_and_area(membrane: Membrane, limit: int) -> None:
    pytest.importorskip("fast_simplification")
    mesh = surface_mesh(membrane, max_faces=limit)
    assert 0.9 * limit <= len(mesh.faces) <= limit
    assert mesh.area == pytest.approx(sum(4e2 * np.pi * r**2 for *_, r in BALLS), rel=0.04)
    edges = np.sort(np.concatenate([mesh.faces[:, [a, b]] for a, b in ((0, 1), (1, 2), (2, 0))]), 1)
    assert (np.unique(edges, axis=0, return_counts=True)[1] % 2 == 0).all()  # closed
    zyx = np.array([ball[:3] for ball in BALLS])
    far = np.linalg.norm(mesh.vertices[:, None] / 10 - zyx[:, ::-1], axis=2) - [b[3] for b in BALLS]
    off = np.abs(far).min(axis=1)  # voxels
    assert off.mean() < 0.4
    assert off.max() < 2.0
    assert set(np.abs(far).argmin(axis=1)) == {0, 1, 2}

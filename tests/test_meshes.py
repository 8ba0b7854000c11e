"""Meshes of volumes that are binned, and of voxels that are no cubes."""

from __future__ import annotations

import numpy as np
import pytest

from etsam.frame import Frame
from etsam.membrane import Membrane, quantised
from etsam.meshes import surface_mesh

SHAPE = (50, 52, 55)
CENTRE = np.array([24.0, 26.0, 28.5])


@pytest.mark.parametrize("kind", ["mask", "logits"])
def test_a_binned_ball_stays_where_it_is(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = 15.2 - np.linalg.norm(np.moveaxis(np.indices(SHAPE), 0, 3) - CENTRE, axis=3)
    field = quantised(inside, 0.0) if kind == "logits" else None
    membrane = Membrane(inside > 0, field, Frame(SHAPE, (10.0,) * 3))
    fine = surface_mesh(membrane)
    monkeypatch.setattr("etsam.meshes.MAX_CELLS", 6000)  # of 39 ^ 3: binned three times
    coarse = surface_mesh(membrane)
    assert len(fine.faces) / 14 < len(coarse.faces) < len(fine.faces) / 7
    for mesh in (fine, coarse):
        low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
        np.testing.assert_allclose((low + high) / 2, 10 * CENTRE[::-1], atol=2)
        np.testing.assert_allclose(high - low, 304, rtol=0.05)


def test_thick_sections_are_blurred_no_further_than_thin_ones() -> None:
    mask = np.zeros((20, 24, 24), bool)
    mask[10] = True
    mesh = surface_mesh(Membrane(mask, None, Frame(mask.shape, (30.0, 10.0, 10.0))))
    ends = mesh.vertices[:, 2].min(), mesh.vertices[:, 2].max()
    assert ends == pytest.approx((285, 315), abs=1)

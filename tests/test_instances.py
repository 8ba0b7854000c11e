"""Membranes that touch are told apart, single ones stay whole; mid-surface, normals and thickness are exact."""

from __future__ import annotations

import numpy as np
import pytest

from etsam.frame import Frame
from etsam.instances import plain_components, separate_membranes
from etsam.membrane import LOGIT_STEP, Membrane, quantised
from etsam.midsurface import mid_surface, thickness, turned

SHAPE = (44, 48, 72)
FRAME = Frame(SHAPE, (10.0,) * 3)


def away(centre: tuple[float, float, float], frame: Frame = FRAME) -> np.ndarray:
    """Distance of voxels from a point (zyx, voxels), in Å."""
    axes = [
        (np.arange(n) - c) * s for n, c, s in zip(frame.shape, centre, frame.spacing, strict=True)
    ]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return np.sqrt(z**2 + y**2 + x**2)


def shares(labels: np.ndarray, truth: np.ndarray) -> list[float]:
    """For each true membrane, the share of its voxels under its most frequent label, all different."""
    names, result = [], []
    for number in range(1, truth.max() + 1):
        counts = np.bincount(labels[truth == number])
        names.append(int(counts.argmax()))
        result.append(counts.max() / counts.sum())
    assert len(set(names)) == len(names) and 0 not in names
    return result


def test_two_vesicles_that_touch() -> None:
    left, right = away((22, 24, 19.5)), away((22, 24, 52.5))
    distance = np.stack([np.abs(left - 140), np.abs(right - 140)])
    mask = distance.min(axis=0) < 27  # 50 Å between the mid-surfaces: the walls are fused
    truth = (distance.argmin(axis=0) + 1) * mask
    assert len(plain_components(Membrane(mask, None, FRAME))) == 1
    found = separate_membranes(Membrane(mask, None, FRAME))
    assert len(found) == 2
    assert min(shares(found.labels, truth)) > 0.95
    assert ((found.labels > 0) == mask).all()


def test_walls_fused_without_a_dent_between_them() -> None:
    left, right = away((22, 24, 19.5)), away((22, 24, 51.5))
    distance = np.stack([np.abs(left - 140), np.abs(right - 140)])
    mask = distance.min(axis=0) < 27  # 40 Å between the mid-surfaces: 94 Å of mask, 54 Å a wall
    assert mask[22, 24, 33:39].all()
    truth = (distance.argmin(axis=0) + 1) * mask
    found = separate_membranes(Membrane(mask, None, FRAME), min_voxels=100)
    assert len(found) == 2
    assert min(shares(found.labels, truth)) > 0.97
    assert ((found.labels > 0) == mask).all()


def test_inner_membrane_that_touches_the_outer_one_in_a_patch() -> None:
    distance = away((22, 24, 36))
    x = np.arange(SHAPE[2]) - 36
    gap = 75 - 30 * np.tanh(x / 8)  # 45 to 105 Å: fused on one side, clear on the other
    walls = np.stack([np.abs(distance - 200), np.abs(distance - 200 + gap)])
    mask = walls.min(axis=0) < 27
    assert len(plain_components(Membrane(mask, None, FRAME))) == 1
    found = separate_membranes(Membrane(mask, None, FRAME), min_voxels=100)
    assert len(found) == 2
    assert min(shares(found.labels, (walls.argmin(axis=0) + 1) * mask)) > 0.95


def test_double_wall_with_rungs() -> None:
    distance = away((22, 24, 36))
    mask = (np.abs(distance - 110) < 22) | (np.abs(distance - 185) < 22)
    truth = np.where(distance < 147, 1, 2) * mask
    mask[20:23, 23:26, 36:] |= (distance < 190)[20:23, 23:26, 36:] & (distance > 100)[
        20:23, 23:26, 36:
    ]
    mask[20:23, 36:, 35:38] |= (distance < 190)[20:23, 36:, 35:38] & (distance > 100)[
        20:23, 36:, 35:38
    ]
    assert len(plain_components(Membrane(mask, None, FRAME))) == 1
    found = separate_membranes(Membrane(mask, None, FRAME), min_voxels=200)
    assert len(found) == 2
    assert min(shares(found.labels, truth)) > 0.95


def test_logits_tell_apart_what_the_mask_has_fused() -> None:
    x = np.broadcast_to(np.arange(SHAPE[2]) * 10.0, SHAPE)
    distance = np.stack([np.abs(x - 300), np.abs(x - 350)])
    logits = (35.0 - distance.min(axis=0)) / 10
    mask = logits > 0
    found = separate_membranes(Membrane(mask, quantised(logits, 0.0), FRAME))
    assert len(found) == 2
    assert min(shares(found.labels, (distance.argmin(axis=0) + 1) * mask)) > 0.9


@pytest.mark.parametrize("radius", [60.0, 150.0])
def test_one_vesicle_stays_whole(radius: float) -> None:
    mask = np.abs(away((22.3, 24.1, 36.2)) - radius) < 27
    found = separate_membranes(Membrane(mask, None, FRAME))
    assert len(found) == 1
    assert found.voxels[0] == mask.sum()


def test_labels_are_sorted_and_small_ones_left_out() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[5:8, 5:40, 5:60] = True
    mask[20:23, 5:20, 5:20] = True
    mask[35, 10, 10] = True
    membrane = Membrane(mask, None, FRAME)
    for method in (plain_components, separate_membranes):
        found = method(membrane, min_voxels=2)
        assert found.voxels.tolist() == [3 * 35 * 55, 3 * 15 * 15]
        assert found.labels[6, 10, 10] == 1 and found.labels[21, 10, 10] == 2
        assert found.labels[35, 10, 10] == 0


def test_empty_mask_has_no_membranes() -> None:
    membrane = Membrane(np.zeros((8, 9, 10), bool), None, Frame((8, 9, 10), (10.0,) * 3))
    assert len(mid_surface(membrane)) == 0
    assert len(separate_membranes(membrane)) == 0


@pytest.mark.parametrize("kind", ["mask", "logits"])
def test_mid_surface_normals_and_thickness_of_a_shell(kind: str) -> None:
    frame = Frame((36, 44, 48), (12.0, 10.0, 9.0), (50.0, 0.0, -20.0))
    centre, radius, thick = np.array([17.3, 21.8, 23.6]), 150.0, 55.0
    distance = away(tuple(centre), frame)
    logits = (thick / 2 - np.abs(distance - radius)) / 9
    field = quantised(logits, 0.0) if kind == "logits" else None
    membrane = Membrane(logits > 0, field, frame)
    surface = mid_surface(membrane)
    arrow = (surface.points - centre) * frame.spacing
    length = np.linalg.norm(arrow, axis=1)
    # a blur of s voxels moves the ridge inwards by about s^2 / radius
    assert length.mean() == pytest.approx(radius, abs=2.2 if kind == "mask" else 0.9)
    assert length.std() < 1.0
    outward = arrow / length[:, None]
    cosine = np.abs((outward * surface.normals).sum(axis=1))
    assert np.degrees(np.arccos(np.clip(cosine, 0, 1))).mean() < 2
    normals = turned(arrow, surface.normals, np.zeros(len(surface), int))
    assert ((normals * outward).sum(axis=1) > 0.9).all()
    local = thickness(membrane, surface)
    assert np.nanmedian(local) == pytest.approx(thick, abs=0.5)
    assert np.nanstd(local) < (4.0 if kind == "mask" else 0.5)


def test_a_mid_surface_found_slab_by_slab_is_that_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frame = Frame((40, 40, 40), (10.0,) * 3)
    mask = np.abs(away((19.5, 19.5, 19.5), frame) - 120) <= 20
    membrane = Membrane(mask, None, frame)
    whole = mid_surface(membrane)
    monkeypatch.setattr("etsam.midsurface.SLAB_VOXELS", 1)  # slabs of 8 slices
    slabs = mid_surface(membrane)
    np.testing.assert_array_equal(slabs.voxels, whole.voxels)
    np.testing.assert_allclose(slabs.points, whole.points, atol=1e-4)
    np.testing.assert_allclose(slabs.strength, whole.strength, rtol=1e-3)


def test_quantised_logits_keep_their_side() -> None:
    logits = np.array([-100.0, -0.25, 0.0, 3.0, 100.0])
    levels = quantised(logits, -0.25)
    assert levels.tolist() == [-127, 0, 4, 52, 127]
    assert pytest.approx(3.25) == LOGIT_STEP * 52

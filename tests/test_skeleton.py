"""Rungs and spurs: what is cut, and what must survive."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import label

from etsam.skeleton import clean_slice

Mask = NDArray[np.bool_]
SHAPE = (120, 140)
ROWS, COLUMNS = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(float)


def pieces(mask: Mask) -> int:
    """Count 8-connected pieces."""
    return int(label(mask, np.ones((3, 3)))[1])


def line(distance: NDArray[np.float64], thickness: float) -> Mask:
    """Make a band of a given thickness about the zero of a distance."""
    return np.abs(distance) <= thickness / 2


def parallel(spacing: float, thickness: float, angle: float = 0.0) -> tuple[Mask, NDArray, NDArray]:
    """Make two parallel bands; return them with the coordinates across and along them."""
    across = (ROWS - 60) * np.cos(angle) - (COLUMNS - 70) * np.sin(angle)
    along = (ROWS - 60) * np.sin(angle) + (COLUMNS - 70) * np.cos(angle)
    bands = line(across - spacing / 2, thickness) | line(across + spacing / 2, thickness)
    return bands, across, along


@pytest.mark.parametrize("angle", [0.0, 0.3, np.pi / 4, 1.2, np.pi / 2])
@pytest.mark.parametrize(("spacing", "thickness"), [(6, 2.0), (7, 3.0), (8, 5.0), (8, 4.0)])
@pytest.mark.parametrize("width", [1.5, 3.0, 4.0])
def test_cuts_a_rung_and_leaves_the_membranes(
    spacing: float, thickness: float, angle: float, width: float
) -> None:
    bands, across, along = parallel(spacing, thickness, angle)
    rung = line(along, width) & (np.abs(across) <= spacing / 2)
    mask = bands | rung
    assert pieces(mask) == 1
    cleaned, counts = clean_slice(mask, max_rung=5)
    assert counts.rungs == 1
    assert pieces(cleaned) == 2
    assert not (cleaned & ~mask).any()
    assert (bands & ~cleaned).sum() <= 3  # the membranes keep their pixels


def test_cuts_every_rung_of_a_ladder_and_counts_them() -> None:
    bands, across, along = parallel(8, 3.0)
    rungs = np.zeros(SHAPE, bool)
    for position in (-40, -20, 0, 20, 40):
        rungs |= line(along - position, 3) & (np.abs(across) < 4)
    cleaned, counts = clean_slice(bands | rungs, max_rung=5)
    assert counts.rungs == 5
    assert pieces(cleaned) == 2


def test_keeps_a_rung_longer_than_asked() -> None:
    bands, across, along = parallel(20, 3.0)
    mask = bands | (line(along, 3) & (np.abs(across) < 10))
    cleaned, counts = clean_slice(mask, max_rung=5)
    assert counts.rungs == 0
    assert np.array_equal(cleaned, mask)
    assert clean_slice(mask, max_rung=20)[1].rungs == 1


def test_cuts_between_concentric_vesicles_and_between_a_vesicle_and_a_membrane() -> None:
    radius = np.hypot(ROWS - 60, COLUMNS - 70)
    rings = line(radius - 40, 3) | line(radius - 48, 3)
    bridge = line(ROWS - 60, 3) & (COLUMNS > 110) & (COLUMNS < 118)
    cleaned, counts = clean_slice(rings | bridge, max_rung=5)
    assert counts.rungs == 1
    assert pieces(cleaned) == 2

    wall = line(ROWS - 20, 3)
    vesicle = line(np.hypot(ROWS - 46, COLUMNS - 70) - 18, 3)
    touch = line(COLUMNS - 70, 2) & (ROWS > 20) & (ROWS < 28)
    cleaned, counts = clean_slice(wall | vesicle | touch, max_rung=5)
    assert counts.rungs == 1
    assert pieces(cleaned) == 2


def test_never_breaks_a_membrane_with_holes_spurs_or_a_true_junction() -> None:
    wall = line(ROWS - 60, 6)
    holes = wall.copy()
    holes[60, 30::17] = False
    holes[59:61, 38::23] = False
    bumpy = wall.copy()
    for column in range(10, 130, 4):  # spurs nearer to one another than the longest rung
        bumpy[64:68, column] = True
    forked = wall | (line(COLUMNS - 70, 6) & (ROWS > 60))  # one membrane ends on another
    crossing = wall | line(COLUMNS - 70, 6)
    for mask in (holes, bumpy, forked, crossing):
        cleaned, counts = clean_slice(mask, max_rung=5)
        assert counts.rungs == 0
        assert np.array_equal(cleaned, mask)


def test_returns_the_very_slice_when_there_is_nothing_to_do() -> None:
    empty = np.zeros(SHAPE, bool)
    assert clean_slice(empty, max_rung=5)[0] is empty
    ring = line(np.hypot(ROWS - 60, COLUMNS - 70) - 30, 5)
    assert clean_slice(ring, max_rung=5, max_spur=5)[0] is ring
    ladder, across, along = parallel(8, 3.0)
    ladder |= line(along, 3) & (np.abs(across) < 4)
    assert clean_slice(ladder, max_rung=0)[0] is ladder


def test_works_at_the_border_of_the_slice() -> None:
    bands = np.zeros((40, 40), bool)
    bands[0:3] = bands[7:10] = True
    mask = bands.copy()
    mask[3:7, 20:23] = True
    cleaned, counts = clean_slice(mask, max_rung=5)
    assert counts.rungs == 1
    assert pieces(cleaned) == 2
    full, counts = clean_slice(np.ones((40, 40), bool), max_rung=5)
    assert full.all()


def test_cutting_twice_changes_nothing_more() -> None:
    random = np.random.default_rng(4)
    bands, across, along = parallel(8, 3.0, 0.4)
    for position in (-30, 5, 33):
        bands |= line(along - position, 3) & (np.abs(across) < 4)
    bands ^= random.random(SHAPE) > 0.99
    once, _ = clean_slice(bands, max_rung=5)
    twice, _ = clean_slice(once, max_rung=5)
    assert (once & ~twice).sum() <= 2


def test_removes_spurs_to_the_surface_only() -> None:
    wall = line(ROWS - 60, 5)
    mask = wall.copy()
    mask[63:70, 40:43] = True
    mask[50:58, 90:92] = True
    mask[30:58, 110:113] = True  # too long to be a spur
    cleaned, counts = clean_slice(mask, max_rung=0, max_spur=10)
    assert counts.spurs == 2
    assert not cleaned[64:70, 40:43].any()
    assert not cleaned[50:57, 90:92].any()
    assert cleaned[wall].all()
    assert cleaned[30:58, 110:113].all()

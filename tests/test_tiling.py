"""Tiling: regions cover the slice and blend without seams."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etsam.tiling import (
    OVERLAP,
    RecentSlices,
    Slab,
    blend_weights,
    mirror_images,
    quadrants,
    tiles,
    whole,
)

SIDES = st.integers(2, 5000)


@given(height=SIDES, width=SIDES)
def test_quadrants_partition_the_slice(height: int, width: int) -> None:
    regions = quadrants((height, width))
    assert len(regions) == 4
    assert sum(r.shape[0] * r.shape[1] for r in regions) == height * width
    assert regions[0].bottom == regions[2].top == height // 2


@given(height=SIDES, width=SIDES)
def test_tiles_cover_the_slice_and_overlap(height: int, width: int) -> None:
    regions = tiles((height, width))
    assert len({r.shape for r in regions}) == 1
    assert max(regions[0].shape) <= 1024
    assert min(r.top for r in regions) == min(r.left for r in regions) == 0
    assert max(r.bottom for r in regions) == height and max(r.right for r in regions) == width
    tops = sorted({r.top for r in regions})
    for upper, lower in pairwise(tops):
        assert upper + regions[0].shape[0] - lower >= OVERLAP - 1


@pytest.mark.parametrize("shape", [(700, 900), (1500, 700), (2100, 1300)])
def test_blending_is_a_partition_of_unity_without_jumps(shape: tuple[int, int]) -> None:
    regions = tiles(shape)
    weights = blend_weights(regions, shape)
    total = np.zeros(shape)
    for region, weight in zip(regions, weights, strict=True):
        canvas = np.zeros(shape)
        canvas[region.box] = weight
        assert np.abs(np.diff(canvas, axis=0)).max(initial=0) < 0.02
        assert np.abs(np.diff(canvas, axis=1)).max(initial=0) < 0.02
        total += canvas
    assert np.allclose(total, 1, atol=1e-6)
    for weight in blend_weights(quadrants(shape), shape) + blend_weights(whole(shape), shape):
        assert np.array_equal(weight, np.ones_like(weight))


def test_tiles_fade_by_the_product_of_ramps_where_they_meet_alone() -> None:
    falling = np.array([1, 0.75, 0.5, 0.25])  # to the border that meets another tile
    rising = falling[::-1]
    weights = blend_weights(tiles((5, 5), (4, 4), 3), (5, 5), 3)
    ramps = product((falling, rising), repeat=2)
    for weight, (rows, columns) in zip(weights, ramps, strict=True):
        np.testing.assert_allclose(weight, np.outer(rows, columns), rtol=1e-6)


def test_three_mirror_images_are_refused() -> None:
    with pytest.raises(ValueError, match="3 mirror images: expected one of 1, 2, 4"):
        mirror_images(whole((5, 5)), 3)


def test_mirror_images_are_in_order_however_narrow() -> None:
    part = np.arange(5, dtype=np.float32).reshape(5, 1)
    for region in mirror_images(whole((5, 1)), 4):
        mirrored = region.mirror(part)
        assert min(mirrored.strides) > 0
        assert np.array_equal(region.mirror(mirrored), part)
    square = np.arange(4).reshape(2, 2)
    assert len({region.mirror(square).tobytes() for region in mirror_images(whole((2, 2)), 4)}) == 4


def test_too_small_for_a_split() -> None:
    with pytest.raises(ValueError, match="four"):
        quadrants((1, 80))
    with pytest.raises(ValueError, match="overlap"):
        tiles((400, 400), (100, 100))


class Counted:
    """Slices that count how often they are read."""

    shape = (50, 2, 2)

    def __init__(self) -> None:
        self.reads = 0

    def read_slice(self, z: int) -> np.ndarray:
        self.reads += 1
        return np.full((2, 2), z, np.float32)


def test_a_slab_begins_where_it_was_cut() -> None:
    slab = Slab(Counted(), 5, 3)
    assert slab.shape == (3, 2, 2)
    assert [slab.read_slice(z)[0, 0] for z in range(3)] == [5, 6, 7]


def test_recent_slices_are_read_once_and_forgotten() -> None:
    source = Counted()
    recent = RecentSlices(source, keep=4)
    for z in range(2, 48):
        for neighbour in (z - 2, z - 1, z, z + 1):
            assert recent.read_slice(neighbour)[0, 0] == neighbour
    assert source.reads == 49
    assert len(recent._recent) == 4

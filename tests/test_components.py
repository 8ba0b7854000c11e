"""Blobs found slab by slab are the blobs of the whole mask."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import find_objects, label

from etsam.components import PackedMask, drop_thin, find_blobs, select_blobs


def packed(mask: np.ndarray) -> PackedMask:
    result = PackedMask((mask.shape[1], mask.shape[2]))
    for data in mask:
        result.append(data)
    return result


def selected(mask: np.ndarray, min_span: int, slab: int | None) -> np.ndarray:
    """Blobs over enough slices, picked out of all blobs, and by dropping the thin ones."""
    kept = packed(mask)
    blobs = find_blobs(kept, slab=slab, least=min_span)
    found = []
    for slices in (select_blobs(kept, blobs, blobs.span >= min_span), drop_thin(kept, blobs)):
        pairs = list(slices)
        assert [z for z, _ in pairs] == list(range(len(mask)))
        found.append(np.stack([data for _, data in pairs]))
    assert np.array_equal(*found)
    return found[0]


def test_packing_keeps_every_voxel_and_little_memory() -> None:
    mask = np.zeros((5, 33, 71), bool)
    mask[1, 3:9, 60:71] = mask[4, 32, 70] = True
    kept = packed(mask)
    assert np.array_equal(kept.read(0, 5), mask)
    assert np.array_equal(kept.read(4, 5), mask[4:])
    assert len(kept) == 5
    assert kept.nbytes < mask.size / 20
    with pytest.raises(ValueError, match="shape"):
        kept.append(mask[0, :5])


@pytest.mark.parametrize("slab", [2, 3, 7, 100, None])
@pytest.mark.parametrize("density", [0.03, 0.07, 0.3])
def test_slabs_agree_with_scipy_on_noise(slab: int | None, density: float) -> None:
    mask = np.random.default_rng(7).random((23, 30, 31)) < density
    labels, count = label(mask, np.ones((3, 3, 3)))
    spans = [box[0].stop - box[0].start for box in find_objects(labels)]
    blobs = find_blobs(packed(mask), slab=slab)
    assert sorted(blobs.span.tolist()) == sorted(spans)
    assert len(blobs.span) == count
    wanted = mask & (np.array([0, *spans]) >= 3)[labels]
    assert np.array_equal(selected(mask, 3, slab), wanted)


@pytest.mark.parametrize("slab", [2, 4, 5])
def test_blobs_that_meet_only_in_a_later_slab_are_one(slab: int) -> None:
    mask = np.zeros((12, 9, 9), bool)
    mask[0:10, 1, 1] = mask[3:10, 7, 7] = True
    mask[9, 1, 1:8] = mask[9, 1:8, 7] = True
    mask[10, 8, 8] = True  # touches by a corner
    blobs = find_blobs(packed(mask), slab=slab)
    assert blobs.span.tolist() == [11]


@pytest.mark.parametrize(
    "shape", [(5, 1, 1), (1, 3, 3), (3, 1, 3), (3, 3, 3), (1, 40, 40), (12, 1, 5)]
)
@pytest.mark.parametrize("slab", [2, 3, None])
def test_voxels_that_all_stand_apart_in_thin_volumes(
    shape: tuple[int, int, int], slab: int | None
) -> None:
    mask = np.zeros(shape, bool)
    mask[::2, ::2, ::2] = True
    blobs = find_blobs(packed(mask), slab=slab)
    assert blobs.span.tolist() == [1] * mask.sum()
    assert np.array_equal(selected(mask, 1, slab), mask)


def test_a_mask_without_voxels_or_slices() -> None:
    assert find_blobs(packed(np.zeros((4, 5, 6), bool))).span.tolist() == []
    assert find_blobs(PackedMask((5, 6))).span.tolist() == []
    assert not selected(np.zeros((4, 5, 6), bool), 2, 3).any()
    assert selected(np.ones((1, 5, 6), bool), 1, None).all()

"""Cleaning of annotations, against the same done on whole arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from etsam import components
from etsam.annotations import CleaningOptions, clean_annotation, fill_holes, smooth_mask
from etsam.components import PackedMask
from etsam.volume import tomogram_from_array

Labels = NDArray[np.int8]


def packed(volume: np.ndarray) -> PackedMask:
    result = PackedMask(volume.shape[1:])
    for plane in volume:
        result.append(plane.astype(bool))
    return result


def unpacked(mask: PackedMask) -> NDArray[np.bool_]:
    return mask.read(0, len(mask))


def clean(*given: np.ndarray, limit: np.ndarray | None = None, **options: Any) -> Labels:
    volumes = [tomogram_from_array(labels) for labels in given]
    region = None if limit is None else tomogram_from_array(limit)
    done = clean_annotation(volumes, CleaningOptions(**options), limit=region)
    return np.stack([plane for _, plane in done.slices()])


@pytest.fixture
def labels() -> Labels:
    """Random blobs, some voxels not annotated."""
    rng = np.random.default_rng(5)
    labels = (ndimage.gaussian_filter(rng.normal(size=(20, 30, 25)), 1) > 0.3).astype(np.int8)
    labels[rng.random(labels.shape) < 0.02] = -1
    return labels


def test_without_options_nothing_changes(labels: Labels) -> None:
    np.testing.assert_array_equal(clean(labels), labels)


def test_values_pick_labels_and_the_rest_is_background() -> None:
    labels = np.array([[[0, 1, 2, 3, -1]]] * 2, np.int8)
    assert clean(labels)[0, 0].tolist() == [0, 1, 1, 1, -1]
    assert clean(labels, values=(2, 3))[0, 0].tolist() == [0, 0, 1, 1, -1]


def test_annotations_are_joined_and_unknown_gives_way_to_membrane() -> None:
    one = np.array([[[0, 1, -1, -1, 0]]] * 2, np.int8)
    two = np.array([[[0, 0, 1, -1, -1]]] * 2, np.int8)
    assert clean(one, two)[0, 0].tolist() == [0, 1, 1, -1, -1]
    np.testing.assert_array_equal(clean(one, two), clean(two, one))


@pytest.mark.parametrize("outside", ["background", "ignore"])
def test_region_and_box(labels: Labels, outside: str) -> None:
    limit = np.zeros_like(labels)
    limit[:2], limit[3:, 5:20] = -1, 7
    box = (slice(0, 15), slice(None), slice(4, None))
    inside = limit > 0
    inside[15:], inside[:, :, :4] = False, False
    kept = inside | (labels == -1)  # what nobody annotated stays so
    expected = np.where(kept, labels, 0 if outside == "background" else -1)
    result = clean(labels, limit=limit, box=box, outside=outside)
    np.testing.assert_array_equal(result, expected)


def holes_of(mask: NDArray[np.bool_], largest: int) -> NDArray[np.bool_]:
    """Enclosed holes by scipy, on the whole array."""
    numbers, _ = ndimage.label(~mask)
    border = np.unique(
        np.concatenate(
            [np.take(numbers, end, axis).ravel() for axis in range(3) for end in (0, -1)]
        )
    )
    sizes = np.bincount(numbers.ravel())
    good = sizes <= largest
    good[border] = False
    good[0] = False
    return good[numbers]


@pytest.mark.parametrize("largest", [1, 4, 1000])
@pytest.mark.parametrize("slab", [2, 5, 1000])
def test_holes_are_those_of_a_whole_array_method(
    labels: Labels, largest: int, slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etsam.annotations.HOLE_SLAB_VOXELS", slab * 30 * 25)
    mask = np.random.default_rng(6).random(labels.shape) < 0.8
    holes = holes_of(mask, largest)
    assert holes.any()
    filled, count = fill_holes(packed(mask), packed(np.zeros_like(mask)), largest)
    np.testing.assert_array_equal(unpacked(filled), mask | holes)
    assert count == holes.sum()


def test_background_beside_what_is_not_annotated_is_no_hole() -> None:
    z, y, x = np.indices((9, 9, 9)) - 4
    far = np.maximum(abs(z), np.maximum(abs(y), abs(x)))
    shell = (far == 3).astype(np.int8)  # 6-connected background of 125 voxels inside
    np.testing.assert_array_equal(clean(shell, fill=200), far <= 3)
    for place in ((3, 4, 4), (4, 4, 3), (4, 5, 4), (slice(2, 7), 4, 4)):
        known = shell.copy()
        known[place] = -1
        np.testing.assert_array_equal(clean(known, fill=200), known)
    pocket = np.full((9, 9, 9), -1, np.int8)
    pocket[far <= 1], pocket[0, 0, 0] = 0, 1
    np.testing.assert_array_equal(clean(pocket, fill=200), pocket)
    wall = np.zeros((20, 30, 30), np.int8)
    wall[:, 15] = 1
    box = slice(5, 10), slice(10, 20), slice(5, 15)
    alone = np.full_like(wall, -1)
    alone[box] = wall[box]
    np.testing.assert_array_equal(clean(wall, fill=5000, box=box, outside="ignore"), alone)


def test_the_lumen_of_a_vesicle_is_larger_than_a_hole() -> None:
    z, y, x = np.ogrid[-12:13, -12:13, -12:13]
    radius = np.sqrt(z**2 + y**2 + x**2)
    shell = (abs(radius - 8) < 1.5).astype(np.int8)
    pinhole = shell.copy()
    pinhole[12, 12, 20] = 0
    result = clean(pinhole, fill=10)
    np.testing.assert_array_equal(result, shell)
    assert clean(pinhole, fill=10_000).sum() > 1.3 * shell.sum()


@pytest.mark.parametrize("sigma", [0.6, 1.0, 2.3])
def test_smoothing_is_that_of_a_whole_array_method(labels: Labels, sigma: float) -> None:
    mask = labels == 1
    unknown = np.zeros_like(mask)
    unknown[:, 20:, :9] = True
    for ignored in (np.zeros_like(mask), unknown):
        blurred, known = (
            ndimage.gaussian_filter(
                part.astype(np.float64), sigma, mode="nearest", radius=int(np.ceil(3 * sigma))
            )
            for part in (mask & ~ignored, ~ignored)
        )
        smooth, changed = smooth_mask(packed(mask & ~ignored), packed(ignored), sigma)
        unclear = ~ignored & (abs(blurred - 0.5 * known) < 0.01)
        expected = (blurred > 0.5 * known) & ~ignored
        np.testing.assert_array_equal(unpacked(smooth)[~unclear], expected[~unclear])
        assert changed == (unpacked(smooth) != mask & ~ignored).sum()


def test_smoothing_keeps_membranes_beside_what_is_not_annotated() -> None:
    sheet = np.zeros((20, 20, 20), np.int8)
    sheet[:, 9:12] = 1
    inside = (slice(None), slice(None), slice(6, 14))
    np.testing.assert_array_equal(clean(sheet, smooth=1.5), sheet)
    alone = np.full_like(sheet, -1)
    alone[inside] = sheet[inside]
    np.testing.assert_array_equal(clean(alone, smooth=1.5), alone)
    np.testing.assert_array_equal(clean(sheet, smooth=1.5, box=inside, outside="ignore"), alone)


def test_smoothed_components_have_the_voxels_that_are_written(labels: Labels) -> None:
    for least in (0, 10):
        options = CleaningOptions(smooth=0.8, min_voxels=least)
        done = clean_annotation([tomogram_from_array(labels)], options)
        written = np.stack([plane for _, plane in done.slices()])
        numbers = np.stack([plane for _, plane in done.numbers()])
        sizes = [component.voxels for component in done.components]
        assert np.bincount(numbers[labels >= 0], minlength=len(sizes) + 1).tolist()[1:] == sizes
        assert done.voxels_after == (written == 1).sum() > 0


def test_smoothing_keeps_a_thick_flat_sheet_and_evens_a_rough_one() -> None:
    sheet = np.zeros((20, 20, 20), np.int8)
    sheet[8:13] = 1
    np.testing.assert_array_equal(clean(sheet, smooth=1.0), sheet)
    rough = sheet.copy()
    rough[13, 10, 10], rough[7, 4, 4], rough[12, 6, 15] = 1, 1, 0
    np.testing.assert_array_equal(clean(rough, smooth=1.0), sheet)


def test_unknown_voxels_stay_unknown(labels: Labels) -> None:
    result = clean(labels, fill=100, smooth=1.5, min_voxels=3)
    np.testing.assert_array_equal(result == -1, labels == -1)


@pytest.fixture
def three() -> Labels:
    """Components of 60, 24 and 4 voxels; the smallest meets the largest by a corner no more."""
    labels = np.zeros((12, 14, 14), np.int8)
    labels[0:12, 2, 2:7] = 1
    labels[2:4, 8, 0:12] = 1
    labels[9:11, 8:10, 12] = 1
    return labels


def test_components_are_numbered_by_size_and_kept_or_dropped(
    three: Labels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(components, "SLAB_VOXELS", 3 * 14 * 14)
    done = clean_annotation([tomogram_from_array(three)], CleaningOptions(min_voxels=10))
    assert [(c.number, c.voxels, c.slices, c.kept) for c in done.components] == [
        (1, 60, (0, 11), True),
        (2, 24, (2, 3), True),
        (3, 4, (9, 10), False),
    ]
    numbers = np.stack([plane for _, plane in done.numbers()])
    assert numbers.dtype == np.int16
    assert np.bincount(numbers.ravel()).tolist()[1:] == [60, 24, 4]
    assert (done.voxels_before, done.voxels_after) == (88, 84)
    np.testing.assert_array_equal(clean(three, keep=(2,)) == 1, numbers == 2)
    np.testing.assert_array_equal(clean(three, drop=(1, 3)) == 1, numbers == 2)
    assert clean(three, keep=(3,), min_voxels=10).sum() == 0
    assert [clean(three, min_voxels=least).sum() for least in (24, 25)] == [84, 60]


def test_components_found_in_any_order_are_numbered_by_size() -> None:
    labels = np.zeros((4, 14, 10), np.int8)
    for row, width in ((2, 2), (6, 8), (10, 4)):
        labels[1:3, row, :width] = 1
    done = clean_annotation([tomogram_from_array(labels)], CleaningOptions())
    numbers = np.stack([plane for _, plane in done.numbers()])
    assert numbers[1, (2, 6, 10), 0].tolist() == [3, 1, 2]
    np.testing.assert_array_equal(clean(labels, keep=(1,)) == 1, numbers == 1)


def test_an_empty_annotation_stays_empty() -> None:
    empty = np.zeros((4, 5, 6), np.int8)
    options = {"fill": 5, "smooth": 1.0, "min_voxels": 2}
    np.testing.assert_array_equal(clean(empty, **options), empty)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": (4,)}, "no component 4: there are 3"),
        ({"keep": (1,), "drop": (2,)}, "give one"),
        ({"fill": -1}, "fill is -1"),
        ({"smooth": float("nan")}, "smooth is nan"),
        ({"values": (0,)}, "expected membrane labels from 1 to 16777215"),
        ({"values": (2**24,)}, "expected membrane labels from 1 to 16777215"),
        ({"box": (slice(0, 0), slice(None), slice(3))}, "the box 0:0,:,:3 leaves nothing of 12 x"),
        ({"box": (slice(None), slice(14, 20), slice(None))}, "the box :,14:20,: leaves nothing"),
        ({"box": (slice(None), slice(None), slice(5, 2))}, "the box :,:,5:2 leaves nothing"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    three: Labels, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        clean(three, **options)


def test_labels_that_are_not_there_are_told(three: Labels) -> None:
    with pytest.warns(UserWarning, match="is labelled 7, as asked for"):
        assert clean(three, values=(1, 7)).any()
    assert clean(three, three * 7, values=(1, 7)).any()


def test_numbers_that_are_none_are_no_annotation(three: Labels) -> None:
    holed = three.astype(np.float32)
    holed[3, 1, 1] = np.nan
    with pytest.raises(ValueError, match="is no annotation: slice 3 holds voxels that are no numb"):
        clean(holed)
    with pytest.raises(ValueError, match="is no region: slice 3 holds voxels that are no numbers"):
        clean(three, limit=holed)


def test_scores_are_no_annotation(three: Labels) -> None:
    with pytest.raises(ValueError, match="is no annotation: slice 0 holds"):
        clean(three * 0.5)
    with pytest.raises(ValueError, match="is no annotation"):
        clean(three - 2)
    with pytest.raises(ValueError, match="must lie on one grid"):
        clean(three, three[:5])
    with pytest.raises(ValueError, match="must lie on one grid"):
        clean(three, limit=three[:, :5])

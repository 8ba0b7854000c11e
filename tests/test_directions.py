"""Scores by plane, lean and component against geometry, and volumes on another grid."""

from __future__ import annotations

import math
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from scipy.ndimage import label as scipy_label

from etsam import directions
from etsam.components import PackedMask, blob_hits, find_blobs
from etsam.directions import PlaneDice, recall_by_lean
from etsam.evaluate import EvaluateOptions, evaluate
from etsam.pairing import Pairing
from etsam.predictions import Prediction
from etsam.resample import resampled
from etsam.volume import open_tomogram

CUBIC = (10.0, 10.0, 10.0)


def packed(mask: np.ndarray) -> PackedMask:
    result = PackedMask(mask.shape[1:])
    for plane in mask:
        result.append(plane)
    return result


def ball(
    shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> tuple[np.ndarray, ...]:
    """Distance to the middle of the volume, and the angle of the radius to Z in degrees."""
    middle = [(side - 1) / 2 for side in shape]
    z, y, x = (
        (place - centre) * step
        for place, centre, step in zip(np.indices(shape), middle, spacing, strict=True)
    )
    radius = np.sqrt(z**2 + y**2 + x**2)
    return radius, np.degrees(np.arccos(np.clip(np.abs(z) / np.maximum(radius, 1e-9), 0, 1)))


def save(path: Path, data: np.ndarray, spacing: float) -> Path:
    with mrcfile.new(path) as mrc:
        mrc.set_data(data)
        mrc.voxel_size = spacing
    return path


@pytest.mark.parametrize("half_thickness", [8.0, 25.0])
@pytest.mark.parametrize(
    ("shape", "spacing", "wrong"),
    [((84, 82, 86), CUBIC, 0.12), ((45, 82, 86), (20.0, 10.0, 10.0), 0.25)],  # blocks are coarse
)
def test_caps_of_a_vesicle_lie_flat(
    half_thickness: float,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    wrong: float,
) -> None:
    radius, lean = ball(shape, spacing)
    shell = np.abs(radius - 330) < max(half_thickness, spacing[0] / 2)
    without_caps = shell & (lean > 30)
    flat, middle, upright = recall_by_lean(packed(shell), packed(without_caps), spacing)
    assert flat < wrong
    assert middle > 1 - wrong
    assert upright == 1
    flat, middle, upright = recall_by_lean(packed(shell), packed(shell & (lean < 60)), spacing)
    assert flat == 1
    assert middle > 1 - wrong
    assert upright < wrong


@pytest.mark.parametrize(
    ("spacing", "lean"),
    [
        (CUBIC, 25.0),
        ((20.0, 10.0, 10.0), 25.0),
        ((30.0, 10.0, 10.0), 20.0),
        ((30.0, 10.0, 10.0), 55.0),
        ((10.0, 10.0, 25.0), 65.0),
    ],
)
def test_a_wall_leans_as_much_whatever_the_voxels(
    spacing: tuple[float, float, float], lean: float
) -> None:
    angle = math.radians(lean)
    normal = (math.cos(angle), 0.6 * math.sin(angle), 0.8 * math.sin(angle))
    height = sum(
        (place - 19.5) * step * part
        for place, step, part in zip(np.indices((40, 40, 40)), spacing, normal, strict=True)
    )
    wall = np.abs(height) < 30
    counts = np.zeros(directions.NONE + 1)
    for start, bins in directions._layers(packed(wall), spacing):
        _, y, x = np.nonzero(wall[start : start + directions.BLOCK])
        counts += np.bincount(bins[y // directions.BLOCK, x // directions.BLOCK], minlength=4)
    assert counts[int(lean // 30)] > 0.97 * counts.sum()


def test_a_plane_has_one_lean_and_solid_matter_none() -> None:
    wall = np.zeros((22, 30, 31), bool)
    wall[:, 12:14] = True
    found = recall_by_lean(packed(wall), packed(wall & (np.indices(wall.shape)[2] < 10)), CUBIC)
    assert math.isnan(found[0])
    assert math.isnan(found[1])
    assert found[2] == pytest.approx(10 / 31)
    solid = np.ones((12, 16, 16), bool)
    assert all(map(math.isnan, recall_by_lean(packed(solid), packed(solid), CUBIC)))
    floor = np.zeros((21, 16, 17), bool)
    floor[19:] = True  # ends in an uneven block at the last face
    assert recall_by_lean(packed(floor), packed(floor), CUBIC)[0] == 1


def test_planes_equal_scores_of_each_plane_counted_alone() -> None:
    random = np.random.default_rng(5)
    predicted, true = random.random((2, 7, 9, 8)) < 0.2
    predicted[:, 3] = true[:, 3] = False  # an empty XZ plane has no Dice
    counts = PlaneDice()
    for pair in zip(predicted, true, strict=True):
        counts.add(*pair)
    for axis, name in enumerate(("xy", "xz", "yz")):
        alone = [
            2 * np.sum(p & t) / (p.sum() + t.sum())
            for p, t in zip(
                np.moveaxis(predicted, axis, 0), np.moveaxis(true, axis, 0), strict=True
            )
            if p.any() or t.any()
        ]
        assert counts.means()[name] == pytest.approx(np.mean(alone))
    nothing = PlaneDice()
    nothing.add(np.zeros((4, 5), bool), np.zeros((4, 5), bool))
    assert all(map(math.isnan, nothing.means().values()))


@pytest.mark.parametrize("slab", [2, 5, 40])
def test_voxels_of_components_equal_scipy(slab: int) -> None:
    random = np.random.default_rng(slab)
    mask = random.random((23, 20, 19)) < 0.06
    hits = mask & (random.random(mask.shape) < 0.5)
    blobs = find_blobs(packed(mask), slab=slab)
    sizes, found = blob_hits(packed(mask), blobs, packed(hits))
    labels, count = scipy_label(mask, np.ones((3, 3, 3)))
    expected = [((labels == n).sum(), (hits & (labels == n)).sum()) for n in range(1, count + 1)]
    assert sorted(zip(sizes, found, strict=True)) == sorted(expected)


def test_rows_of_planes_leans_and_components(tmp_path: Path) -> None:
    labels = np.zeros((24, 40, 40), np.int8)
    labels[:, 4:6] = 1  # one wall found, one not, a speck
    labels[:, 20:22, :38] = 1
    labels[3, 36, 5] = 1
    labels[:, :, 39] = -1
    mask = np.zeros_like(labels)
    mask[:, 4:6] = 1
    mask[3, 36, 5] = 1
    truth = save(tmp_path / "t_membrane.mrc", labels, 10.0)
    pairing = Pairing(
        Prediction(save(tmp_path / "t.mrc", mask, 10.0), "M", kind="mask"), truth, "d", "r"
    )

    def scores(**options: int) -> dict[str, float]:
        (item,) = evaluate([pairing], EvaluateOptions(surface=False, **options))
        return {row.metric: row.value for row in item.rows}

    found = scores()
    assert found["recall_components"] == pytest.approx(2 / 3)
    assert scores(min_component=2)["recall_components"] == 0.5
    assert math.isnan(scores(min_component=10_000)["recall_components"])
    assert found["recall_normal_60_90"] == pytest.approx(found["recall"], abs=1e-3)
    assert found["dice_xy"] == pytest.approx(found["dice"], abs=1e-3)
    assert found["dice_xz"] == pytest.approx(3 / 5)  # planes of the first wall and of the speck
    assert "dice_xz" not in scores(details=False)


def test_a_prediction_on_another_grid(tmp_path: Path) -> None:
    radius, _ = ball((48, 60, 64), CUBIC)
    fine = np.abs(radius - 180) < 30
    truth = save(tmp_path / "a_membrane.mrc", fine.astype(np.int8), 10.0)
    coarse, _ = ball((24, 30, 32), (20.0, 20.0, 20.0))
    logits = ((30 - np.abs(coarse - 180)) / 10).astype(np.float32)
    logits[logits < -6] = -1024
    path = save(tmp_path / "a_scores.mrc", logits, 20.0)
    pairing = Pairing(Prediction(path, "M", kind="logits"), truth, "d", "r")
    with pytest.raises(ValueError, match="give --resample"):
        evaluate([pairing])
    (item,) = evaluate([pairing], EvaluateOptions(resample=True))
    found = {row.metric: row.value for row in item.rows}
    assert found["dice"] > 0.95
    assert found["surface_distance_mean_nm"] < 0.5


@pytest.mark.parametrize(("ours", "theirs"), [(2, 1), (1, 2), (3, 2), (2, 3)])
def test_resampling_keeps_straight_lines_straight(tmp_path: Path, ours: int, theirs: int) -> None:
    shapes = [tuple(6 * side // step for side in (4, 5, 6)) for step in (ours, theirs)]
    ramp = [
        sum(
            (np.indices(shape)[axis] + 0.5) * step * weight for axis, weight in enumerate((1, 2, 3))
        )
        for shape, step in zip(shapes, (ours, theirs), strict=True)
    ]
    source = save(tmp_path / "p.mrc", (ramp[0] / 200).astype(np.float32), 10.0 * ours)
    like = save(tmp_path / "t.mrc", np.zeros(shapes[1], np.int8), 10.0 * theirs)
    with open_tomogram(like) as grid, resampled(open_tomogram(source), grid, "probability") as seen:
        assert seen.shape == shapes[1]
        found = seen.read_slices(0, seen.shape[0])
    inner = (slice(2, -2),) * 3
    assert np.allclose(found[inner], ramp[1][inner] / 200, atol=1e-6)


def test_a_mask_on_half_as_many_voxels_is_the_majority(tmp_path: Path) -> None:
    mask = np.zeros((8, 12, 12), np.int8)
    mask[:, 4:8, 4:8] = 1
    source = save(tmp_path / "p.mrc", mask, 10.0)
    like = save(tmp_path / "t.mrc", np.zeros((4, 6, 6), np.int8), 20.0)
    with open_tomogram(like) as grid, resampled(open_tomogram(source), grid, "mask") as seen:
        found = seen.read_slice(1)
    expected = np.zeros((6, 6))
    expected[2:4, 2:4] = 1
    assert np.array_equal(found, expected)
    blobs = np.random.default_rng(0).random((8, 12, 12)) < 0.5
    source = save(tmp_path / "b.mrc", blobs.astype(np.int8), 10.0)
    with open_tomogram(like) as grid, resampled(open_tomogram(source), grid, "mask") as seen:
        found = seen.read_slices(0, 4)
    counts = blobs.reshape(4, 2, 6, 2, 6, 2).sum(axis=(1, 3, 5))
    assert np.array_equal(found, counts >= 4)
    unknown = save(tmp_path / "u.mrc", mask, 0.0)
    with (
        open_tomogram(like) as grid,
        open_tomogram(unknown) as volume,
        pytest.raises(ValueError, match="does not say its voxel size"),
    ):
        resampled(volume, grid, "mask")

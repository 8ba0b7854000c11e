"""Surface distances against geometry and an independent library."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etsam.surfaces import Surface, SurfaceCollector, SurfaceDistances, surface_distances


def surface(mask: np.ndarray, annotated: np.ndarray | None = None) -> Surface:
    collector = SurfaceCollector()
    for z, plane in enumerate(mask):
        collector.add(plane, None if annotated is None else annotated[z])
    return collector.surface()


def distances(
    prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, float, float]
) -> SurfaceDistances:
    return surface_distances(surface(prediction), surface(truth), spacing)


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning:monai")  # inside of it
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.02, 0.7))
def test_agrees_with_monai_on_random_masks(seed: int, density: float) -> None:
    metrics = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(seed)
    first, second = random.random((2, 7, 9, 8)) < density
    first[3, 4, 4] = second[2, 3, 3] = True
    spacing = (20.0, 10.0, 15.0)
    ours = distances(first, second, spacing)
    step = [value / 10 for value in spacing]
    volumes = [torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (first, second)]
    both = {"y_pred": volumes[0], "y": volumes[1], "include_background": True, "spacing": step}
    mean = metrics.compute_average_surface_distance(symmetric=True, **both)
    assert ours.mean == pytest.approx(float(mean), rel=1e-5)
    far = metrics.compute_hausdorff_distance(percentile=95, **both)
    assert ours.percentile(95) == pytest.approx(float(far), rel=1e-5)
    near = metrics.compute_surface_dice(class_thresholds=[1.5001], **both)
    assert ours.dice(1.5001) == pytest.approx(float(near), rel=1e-5)


def test_two_planes_are_their_distance_apart() -> None:
    first, second = np.zeros((2, 12, 6, 6), bool)
    first[2], second[7] = True, True
    found = distances(first, second, (13.0, 10.0, 10.0))
    assert found.mean == pytest.approx(6.5)
    assert found.percentile(95) == pytest.approx(6.5)
    assert (found.dice(6.4), found.dice(6.6)) == (0.0, 1.0)


def test_points_looked_up_in_parts_are_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = np.random.default_rng(0).random((2, 6, 7, 8)) < 0.1
    spacing = (13.0, 10.0, 8.0)
    whole = distances(first, second, spacing)
    monkeypatch.setattr("etsam.surfaces.QUERY", 10)
    parts = distances(first, second, spacing)
    assert whole.from_prediction.size > 20
    np.testing.assert_array_equal(parts.from_prediction, whole.from_prediction)
    np.testing.assert_array_equal(parts.from_truth, whole.from_truth)


def test_a_solid_ball_has_only_its_shell() -> None:
    z, y, x = np.indices((21, 21, 21)) - 10
    ball = z**2 + y**2 + x**2 <= 64
    radius = np.linalg.norm(surface(ball).voxels - 10, axis=1)
    assert radius.min() > 6.5
    assert radius.max() <= 8
    assert len(radius) < ball.sum() / 2
    assert distances(ball, ball, (10.0, 10.0, 10.0)).mean == 0


def test_only_annotated_border_voxels_count() -> None:
    mask = np.zeros((5, 8, 8), bool)
    mask[2] = True
    counted = np.zeros_like(mask)
    counted[:, :, :4] = True
    found = surface(mask, counted)
    points = found.voxels[found.known]
    assert len(points) == 32
    assert points[:, 2].max() == 3
    assert len(found.voxels) == 64


def test_a_mask_that_is_right_where_there_is_an_annotation_is_perfect() -> None:
    z, y, x = np.indices((40, 44, 44)) - np.reshape((20, 22, 22), (3, 1, 1, 1))
    radius = np.sqrt(z**2 + y**2 + x**2)
    shell = np.abs(radius - 15) <= 3
    hidden = shell & (np.abs(z) > 0.6 * radius)
    half = np.broadcast_to(y < 0, shell.shape)
    for unknown in (hidden, half, np.broadcast_to(np.abs(z) > 12, shell.shape)):
        truth = surface(shell & ~unknown, ~unknown)
        noise = np.random.default_rng(0).random(shell.shape) < 0.5
        for guess in (shell, shell & ~unknown, np.where(unknown, noise, shell)):
            found = surface_distances(surface(guess, ~unknown), truth, (10.0, 10.0, 10.0))
            assert found.from_truth.size == found.from_prediction.size > 1000
            assert found.dice(0) == 1
            assert found.mean == found.percentile(95) == 0


def test_what_is_wrong_beside_the_unknown_is_measured() -> None:
    wall, unknown = np.zeros((2, 9, 20, 20), bool)
    wall[:, 8:12], unknown[:, :, 10:] = True, True
    truth = surface(wall & ~unknown, ~unknown)
    moved = surface(np.roll(wall, 3, 1), ~unknown)
    found = surface_distances(moved, truth, (10.0, 10.0, 10.0))
    assert found.percentile(95) == pytest.approx(3)
    nothing = surface(np.zeros_like(wall), ~unknown)
    lost = surface_distances(nothing, truth, (10.0, 10.0, 10.0))
    assert lost.dice(2) == 0
    assert math.isnan(lost.mean)


def test_empty_surfaces() -> None:
    empty, full = np.zeros((3, 4, 4), bool), np.ones((3, 4, 4), bool)
    neither = distances(empty, empty, (10.0, 10.0, 10.0))
    assert math.isnan(neither.dice(2))
    assert math.isnan(neither.mean)
    one = distances(empty, full, (10.0, 10.0, 10.0))
    assert one.dice(2) == 0
    assert math.isnan(one.mean)
    assert math.isnan(one.percentile(95))

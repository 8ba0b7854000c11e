"""Scores of files whose values follow from geometry: other sections, leans, what nobody annotated."""

from __future__ import annotations

import math
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from etsam.evaluate import EvaluateOptions, evaluate
from etsam.pairing import Pairing
from etsam.predictions import Prediction

CUBIC = (10.0, 10.0, 10.0)


def save(path: Path, data: np.ndarray, spacing: tuple[float, float, float]) -> Path:
    with mrcfile.new(path) as mrc:
        mrc.set_data(data.astype(np.int8))
        mrc.voxel_size = spacing[::-1]
    return path


def scores(
    folder: Path,
    mask: np.ndarray,
    labels: np.ndarray,
    spacing: tuple[float, float, float] = CUBIC,
) -> dict[str, float]:
    truth = save(folder / "t_membrane.mrc", labels, spacing)
    prediction = Prediction(save(folder / "p.mrc", mask, spacing), "M", kind="mask")
    (item,) = evaluate([Pairing(prediction, truth, "d", "r")], EvaluateOptions())
    return {row.metric: row.value for row in item.rows}


def test_distances_across_sections_are_those_of_sections(tmp_path: Path) -> None:
    labels = np.zeros((12, 20, 22))
    labels[4:6] = 1
    found = scores(tmp_path, np.roll(labels, 1, 0), labels, (40.0, 10.0, 8.0))
    assert found["surface_distance_95_nm"] == pytest.approx(4)


def test_a_wall_leans_as_it_does_in_angstrom(tmp_path: Path) -> None:
    z, y, _ = np.indices((24, 48, 48))
    wall = np.abs(z - y / 2) <= 0.5  # 45 degrees; 27 degrees in voxels
    found = scores(tmp_path, wall, wall, (20.0, 10.0, 10.0))
    assert found["recall_normal_30_60"] == 1
    assert math.isnan(found["recall_normal_0_30"])


def test_what_is_claimed_where_nobody_annotated_is_no_surface(tmp_path: Path) -> None:
    labels = np.zeros((9, 30, 30))
    labels[:, 8:11] = 1
    labels[:, :, 15:] = -1
    noise = np.random.default_rng(0).random(labels.shape) < 0.5
    found = scores(tmp_path, (labels == 1) | ((labels == -1) & noise), labels)
    assert (found["surface_dice_2nm"], found["surface_distance_mean_nm"]) == (1, 0)


@pytest.mark.parametrize(("sections", "found"), [(4, 1.0), (3, 0.0)])
def test_a_component_is_found_from_half_its_voxels_on(
    tmp_path: Path, sections: int, found: float
) -> None:
    labels = np.zeros((8, 20, 20))
    labels[:, 5:7] = 1
    mask = labels.copy()
    mask[sections:] = 0
    assert scores(tmp_path, mask, labels)["recall_components"] == found

"""Dark or bright membranes: told apart on simulations, left to the user for published networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from etsam.frames import REFERENCE_SPEC
from etsam.options import SegmentOptions
from etsam.pipeline import StageRun, Volume
from etsam.polarity import CERTAIN, membrane_evidence, preference, settle_polarity, skewness
from etsam.simulate import simulate
from etsam.simulation.recipe import SimulationOptions
from etsam.stages import Stage, load_stages
from etsam.volume import tomogram_from_array
from tiny_model import tiny_stages

EASY = SimulationOptions(
    preset="vesicles", voxel_spacing=10.0, contrast_to_noise=2.5, bright_membranes=False, views=61
)


@pytest.fixture(scope="module")
def stage() -> Stage:
    return load_stages(SegmentOptions())[0]


@pytest.fixture(scope="module")
def tomogram() -> np.ndarray:
    return simulate(71, (20, 160, 160), EASY).tomogram


def volume(data: np.ndarray) -> Volume:
    return Volume(tomogram_from_array(data, voxel_spacing=10.0), (10.0,) * 3)


def test_dark_and_bright_membranes_are_told_apart(tomogram: np.ndarray, stage: Stage) -> None:
    assert settle_polarity(volume(tomogram), stage, SegmentOptions()).polarity == "dark"
    assert settle_polarity(volume(-tomogram), stage, SegmentOptions()).polarity == "bright"


def test_the_negative_swaps_the_evidence(tomogram: np.ndarray, stage: Stage) -> None:
    dark, bright = (
        membrane_evidence(StageRun(stage, volume(d), "grid_zero")) for d in (tomogram, -tomogram)
    )
    assert dark == pytest.approx(bright[::-1], rel=0.02, abs=1e-3)
    assert dark[0] > 2 * dark[1]


def test_noise_counts_as_dark(stage: Stage) -> None:
    noise = np.random.default_rng(0).normal(size=(20, 96, 96)).astype(np.float32)
    for sign in (1, -1):
        assert settle_polarity(volume(sign * noise), stage, SegmentOptions()).polarity == "dark"


def test_an_answer_that_is_given_is_kept(tomogram: np.ndarray, stage: Stage) -> None:
    for asked in ("dark", "bright"):
        options = SegmentOptions(polarity=asked)
        assert settle_polarity(volume(tomogram), stage, options) is options


def test_published_networks_take_dark_membranes(tomogram: np.ndarray) -> None:
    published = tiny_stages(replace(REFERENCE_SPEC, image_size=64))[0]
    assert settle_polarity(volume(-tomogram), published, SegmentOptions()).polarity == "dark"


@pytest.mark.parametrize("preset", ["vesicles", "cell", "virus"])
def test_dense_things_stand_out_on_the_side_of_membranes(preset: str) -> None:
    options = replace(EASY, preset=preset, contrast_to_noise=1.5)
    data = simulate(72, (20, 160, 160), options).tomogram
    seen, inverted = (skewness(tomogram_from_array(grey)) for grey in (data, -data))
    huge = skewness(tomogram_from_array((1e25 * data).astype(np.float32)))
    assert huge == pytest.approx(seen, rel=1e-4)
    assert seen < -0.1
    assert inverted == pytest.approx(-seen, rel=1e-4)


def test_skewness_decides_where_the_network_cannot() -> None:
    limit = np.log(CERTAIN)
    assert preference(0.42, 0.46, 1.0) > limit > preference(0.42, 0.46, 0.0)
    assert preference(0.06, 0.005, 1.5) < 0 < limit < preference(0.005, 0.06, -1.5)


def test_a_constant_volume_has_no_skewness() -> None:
    assert skewness(tomogram_from_array(np.ones((4, 16, 16), np.float32))) == 0.0


@pytest.mark.parametrize(
    ("spacing", "sign", "polarity"),
    [(5.0, 1, "dark"), (6.7, 1, "dark"), (8.0, 1, "dark"), (5.0, -1, "bright")],
)
def test_a_real_slice_of_dark_viruses_is_dark_whatever_its_spacing(
    shared: Path, stage: Stage, spacing: float, sign: int, polarity: str
) -> None:
    """Said too large, its noise looks more like bright membranes than its viruses like dark ones."""
    plane = tifffile.imread(shared / "real_small" / "cryocompare_sarscov2_TS_001_z133.tif")
    grey = np.stack([sign * plane.astype(np.float32)] * 3)
    given = Volume(tomogram_from_array(grey, voxel_spacing=spacing), (spacing,) * 3)
    assert settle_polarity(given, stage, SegmentOptions()).polarity == polarity

"""Both stages against one run of the published reference pipeline (../shared/golden)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from etsam.options import SegmentOptions
from etsam.pipeline import Volume, segment_slices
from etsam.sam2 import SAM2Config, load_checkpoint
from etsam.stages import Stage, stage_spec
from etsam.volume import tomogram_from_array

CONFIG = SAM2Config(
    image_size=256,
    embed_dim=16,
    num_heads=1,
    stages=(1, 2, 3, 1),
    global_blocks=(4,),
    window_spec=(8, 4, 8, 4),
    pos_embed_size=(7, 7),
    d_model=64,
    memory_dim=16,
    memory_layers=2,
    memory_feed_forward=128,
)
RUNS = (
    "min_max_positive_values__grid_zero__zero__50",
    "softplus_minmax__grid_zero__zero__50",
    "min_max_positive_values__grid__etsam_stage1_partial__10",
)
MAX_ERROR, MEAN_ERROR = 0.05, 2e-3


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    return shared / "golden"


@pytest.fixture(scope="module")
def stages(golden: Path) -> list[Stage]:
    paths = [golden / f"stage{n}.pt" for n in (1, 2)]
    loaded = (load_checkpoint(path, CONFIG) for path in paths)
    return [
        Stage(made[0], stage_spec(*made, path)) for path, made in zip(paths, loaded, strict=True)
    ]


def options_of(run: str) -> SegmentOptions:
    normalisation, stage1, stage2, interval = run.split("__")
    return SegmentOptions(
        normalize_method=normalisation,
        stage1_prompt=stage1,
        stage2_prompt=stage2,
        interval=int(interval),
        first_slice="prompt",
    )


def logits_of(golden: Path, stages: list[Stage], options: SegmentOptions) -> np.ndarray:
    tomogram = tomogram_from_array(np.load(golden / "tomogram.npy"))
    return np.stack(list(segment_slices(Volume(tomogram), stages, options)))


def test_every_golden_run_is_tested(golden: Path) -> None:
    with np.load(golden / "expected.npz") as expected:
        assert {key.rpartition("__")[0] for key in expected} == set(RUNS)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("last", [1, 2])
def test_logits_are_the_references(golden: Path, stages: list[Stage], run: str, last: int) -> None:
    with np.load(golden / "expected.npz") as file:
        expected = file[f"{run}__stage{last}"]
    error = np.abs(logits_of(golden, stages[:last], options_of(run)) - expected)
    assert np.median(expected.std(axis=(1, 2))) > 0.5, "the reference went silent"
    assert error.max() < MAX_ERROR and error.mean() < MEAN_ERROR, (error.max(), error.mean())


def test_predicting_the_first_slice_changes_little_but_the_first(
    golden: Path, stages: list[Stage]
) -> None:
    """With the virtual slice the prompt is no answer any more; stage 1 goes on alike after it."""
    options = options_of(RUNS[0])
    with np.load(golden / "expected.npz") as file:
        expected = file[f"{RUNS[0]}__stage1"]
    logits = logits_of(golden, stages[:1], replace(options, first_slice="predict"))
    assert set(np.sign(expected[0].ravel())) == {-1.0}
    assert logits[0].std() > 0.5 and (logits[0] > 0).any()
    ahead = np.abs(logits[12:] - expected[12:]).mean()
    assert ahead < 0.25 * expected[12:].std()

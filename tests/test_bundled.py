"""The bundled model on what it was never trained on: simulated and, where at hand, real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from etsam.metrics import confusion
from etsam.options import LOGIT_THRESHOLD, SegmentOptions
from etsam.segmentation import segment_array
from etsam.simulate import simulate
from etsam.simulation.recipe import SimulationOptions
from etsam.volume import open_tomogram
from etsam.weights import COMPACT

SIZE_LIMIT = 40_000_000  # bytes of both stages together


def test_the_files_are_small() -> None:
    sizes = [(COMPACT.folder / name).stat().st_size for name in (COMPACT.stage1, COMPACT.stage2)]
    assert 1_000_000 < sum(sizes) < SIZE_LIMIT


def membranes(grey: np.ndarray, spacing: float) -> np.ndarray:
    return segment_array(grey, SegmentOptions(voxel_spacing=spacing)) > LOGIT_THRESHOLD


def test_an_easy_simulation_is_found() -> None:
    options = SimulationOptions("vesicles", 10.0, 3.0, bright_membranes=False, views=61)
    made = simulate(1_000_000_900, (16, 160, 160), options)
    found = confusion(membranes(made.tomogram, 10.0), made.mask)
    assert (made.mask == 1).sum() > 1000
    assert found.dice > 0.7


def test_the_lysosome_is_found(shared: Path) -> None:
    """Eight slices round the middle of a real tomogram: the whole ring, little else near it."""
    folder = shared / "real" / "lysosome"
    with open_tomogram(folder / "tomogram.mrc") as tomogram:
        grey = tomogram.read_slices(116, 124)[:, 112:432, :352]
    with open_tomogram(folder / "partial_labels.mrc") as labels:
        truth = labels.read_slices(116, 124)[:, 112:432, :352]
    found = confusion(membranes(grey, 13.6), truth)
    assert found.dice > 0.75
    assert found.recall > 0.75


@pytest.mark.parametrize("seed", [0, 1])
def test_noise_stays_empty(seed: int) -> None:
    noise = np.random.default_rng(seed).normal(size=(8, 128, 128)).astype(np.float32)
    assert membranes(noise, 10.0).mean() < 0.01

"""Training pairs with bright membranes are seen as those with dark ones are, in both stages."""

from __future__ import annotations

import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from etsam.dataset import SliceStore, logits_path, open_pairs
from etsam.feedback import write_stage1_logits
from etsam.frames import REFERENCE_SPEC, FrameSpec
from etsam.polarity import bright_membranes
from etsam.simulate import simulate
from etsam.simulation.recipe import SimulationOptions
from etsam.train import TrainOptions
from etsam.training.tasks import open_groups
from etsam.volume import open_tomogram, tomogram_from_array
from tiny_model import write_tiny_model
from tiny_training import write_pairs

EVERYTHING = (slice(None), slice(None))


@pytest.fixture
def dark(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "dark")


@pytest.fixture
def bright(dark: Path) -> Path:
    """The same pairs, but the first tomogram's negative."""
    folder = shutil.copytree(dark, dark.with_name("bright"))
    with mrcfile.mmap(folder / "t0.mrc", "r+") as mrc:
        mrc.data[:] = -mrc.data
    return folder


@pytest.mark.parametrize(
    ("seed", "given"),
    [
        (71, SimulationOptions(preset="vesicles", contrast_to_noise=2.5, bright_membranes=False)),
        (212, SimulationOptions(bright_membranes=False)),  # crowded, walls ring
        (26, SimulationOptions(bright_membranes=False)),  # gold
    ],
)
def test_labels_tell_dark_from_bright(seed: int, given: SimulationOptions) -> None:
    made = simulate(seed, (24, 96, 96), given)
    mask = tomogram_from_array(made.mask)
    assert not bright_membranes(tomogram_from_array(made.tomogram), mask)
    assert bright_membranes(tomogram_from_array(-made.tomogram), mask)


def test_without_membrane_it_counts_as_dark(dark: Path) -> None:
    with open_tomogram(dark / "t0.mrc") as tomogram:
        for value in (0, -1):
            labels = np.full(tomogram.shape, value, np.int8)
            assert not bright_membranes(tomogram, tomogram_from_array(labels))


def test_bright_pairs_look_as_dark_ones_do(dark: Path, bright: Path, store: SliceStore) -> None:
    for spec in (FrameSpec(), FrameSpec(invert=True)):
        one, other = (
            open_pairs(folder, spec, store, with_logits=False)[0] for folder in (dark, bright)
        )
        assert (one.is_inverted, other.is_inverted) == (spec.invert, not spec.invert)
        grey = one.read_grey(3, EVERYTHING)
        torch.testing.assert_close(grey, other.read_grey(3, EVERYTHING), rtol=0, atol=0.02)
    seen = open_pairs(bright, REFERENCE_SPEC, store, with_logits=False)
    assert not any(pair.is_inverted for pair in seen)  # as `etsam segment` shows it to these


def test_stage_1_finds_the_same_in_bright_tomograms(
    dark: Path, bright: Path, tmp_path: Path
) -> None:
    stage1 = write_tiny_model(tmp_path) / "stage1.safetensors"
    found = []
    for folder in (dark, bright):
        assert write_stage1_logits(folder, stage1, device="cpu") == 2
        found.append(np.load(logits_path(folder / "t0.mrc")).astype(int))
    assert found[0].std() > 1
    assert np.corrcoef(found[0].ravel(), found[1].ravel())[0, 1] > 0.99


def test_how_many_are_seen_inverted_is_told(dark: Path, bright: Path) -> None:
    told = r"bright: 1 tomograms \(t0, ...\) are seen inverted: by their labels, membranes are br"
    with pytest.warns(UserWarning, match=told):
        open_groups(TrainOptions(bright, bright / "run", sizes=(64,)), SliceStore(1))
    open_groups(TrainOptions(dark, dark / "run", sizes=(64,)), SliceStore(1))

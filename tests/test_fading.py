"""Simulated contrast that is not the same everywhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from etsam.simulation.recipe import SimulationOptions, draw
from etsam.simulation.render import depth_fading_profile, fading_field, render


def contrast(volume: Tensor, labels: Tensor, slices: slice) -> float:
    """How much darker than the rest walls are in some slices."""
    part, walls = volume[slices], labels[slices]
    return float(part[walls == 0].mean() - part[walls == 1].mean())


def test_fading_takes_density_away_in_places_and_nothing_else() -> None:
    field = fading_field((32, 64, 64), 0.8, np.random.default_rng(2))
    assert field.shape == (32, 64, 64) and field.min() >= 0.2 and field.max() <= 1
    assert field.min() < 0.5 < 0.8 < field.max()
    assert field.diff(dim=0).abs().mean() < 0.2 * field.std(), "white noise would give 1.1"
    options = SimulationOptions(preset="vesicles", voxel_spacing=10.0, views=41)
    (plain, labels, _), (faded, same, _) = (
        render(draw(np.random.default_rng(5), o), (32, 64, 64), o, np.random.default_rng(6))
        for o in (options, replace(options, fading=0.9))
    )
    assert torch.equal(labels, same) and not torch.equal(plain, faded)
    with pytest.raises(ValueError, match="fading of 1.5"):
        SimulationOptions(fading=1.5)


def test_depth_fading_leaves_walls_faint_at_the_bottom_and_top() -> None:
    profile = depth_fading_profile(100, 0.9, np.random.default_rng(3))[:, 0, 0]
    top = int((profile == 1).nonzero().median())
    assert profile.max() == 1 and profile.min() >= 0.1 - 1e-6 and 30 < top < 70
    assert (profile[:top].diff() >= 0).all() and (profile[top:].diff() <= 0).all()
    assert profile[0] < 0.3 and profile[-1] < 0.3
    options = SimulationOptions("vesicles", 10.0, contrast_to_noise=5.0, views=41)
    (plain, labels, _), (faded, same, _) = (
        render(draw(np.random.default_rng(5), o), (64, 64, 64), o, np.random.default_rng(6))
        for o in (options, replace(options, depth_fading=0.95))
    )
    assert torch.equal(labels, same)
    for end in (slice(0, 6), slice(58, 64)):
        whole, faint = (
            contrast(volume, labels, end) / contrast(volume, labels, slice(26, 38))
            for volume in (plain, faded)
        )
        assert faint < 0.5 * whole
    with pytest.raises(ValueError, match=r"fading of -0\.1"):
        SimulationOptions(depth_fading=-0.1)

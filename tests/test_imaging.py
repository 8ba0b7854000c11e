"""Faults of the detector in simulated views."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from etsam.simulation.imaging import TiltSeries, noise_views

PLANE = (96, 128)


def bad_voxels(tilt: TiltSeries, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns, from the middle, that a bad column changes in the only view of a series."""
    changed, plain = (
        torch.fft.irfft2(noise_views(each, PLANE, np.random.default_rng(seed)), s=PLANE)
        for each in (tilt, replace(tilt, bad_columns=0))
    )
    difference = (changed - plain)[0].abs().numpy()
    y, x = np.nonzero(difference > difference.max() / 2)
    return y - PLANE[0] / 2, x - PLANE[1] / 2


@pytest.mark.parametrize("axis", [0.0, 12.0, -40.0])
@pytest.mark.parametrize("seed", [4, 5])
def test_bad_columns_of_the_detector_run_along_the_tilt_axis(axis: float, seed: int) -> None:
    angle = np.radians(axis)
    places = []
    for tilted in (0.0, 50.0):
        y, x = bad_voxels(TiltSeries((tilted,), axis_angle=axis, bad_columns=1), seed)
        across = x * np.cos(angle) - y * np.sin(angle)
        assert len(y) > 20 and np.ptp(across) <= 1
        places.append(across.mean())
    assert places[0] / np.cos(np.radians(50)) == pytest.approx(places[1], abs=1.5)

"""What the microscope and its detector do to simulated views, in closed form."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from etsam.simulation.imaging import (
    Reconstruction,
    TiltSeries,
    contrast_transfer,
    dose_envelope,
    hidden_by_wedge,
    noise_views,
    project,
    view_frequencies,
    wavelength,
    weight_views,
)

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


def test_spherical_aberration_takes_phase_from_underfocus() -> None:
    k, length = 0.2, wavelength(300.0)
    phase = math.pi * length * 5000 * k**2 - 0.5 * math.pi * 2.7e7 * length**3 * k**4
    found = contrast_transfer(torch.tensor([k]), TiltSeries((0.0,), defocus=5000.0))
    assert float(found) == pytest.approx(math.sin(phase + math.asin(0.07)), abs=1e-4)


def test_dose_envelope_falls_by_half_the_exposure_over_the_critical_one() -> None:
    critical = 0.245 * 0.05**-1.665 + 2.81  # Grant and Grigorieff (2015)
    found = dose_envelope(torch.tensor([0.05]), torch.tensor(30.0))
    assert float(found) == pytest.approx(math.exp(-30 / (2 * critical)), rel=1e-5)


def test_a_point_moves_across_a_tilt_axis_that_is_turned() -> None:
    volume = torch.zeros(21, 64, 64)
    volume[16, 32, 32] = 1  # 6 voxels above the plane z = 10
    tilt = TiltSeries((45.0,), axis_angle=30.0)
    image = torch.fft.irfft2(project(volume, tilt, 10.0)[0], s=(64, 64))
    y, x = divmod(int(image.argmax()), 64)
    assert (y - 32, x - 32) == (round(-6 * math.sin(math.pi / 6)), round(6 * math.cos(math.pi / 6)))


@pytest.mark.parametrize("axis", [0.0, 30.0])
def test_frequencies_of_views_lie_on_the_detector(axis: float) -> None:
    ky, kx = torch.fft.fftfreq(PLANE[0])[:, None], torch.fft.rfftfreq(PLANE[1])[None]
    found = view_frequencies(PLANE, TiltSeries((0.0, 60.0), axis_angle=axis))
    torch.testing.assert_close(found.total[0], torch.hypot(ky, kx), atol=1e-6, rtol=0)
    assert found.across[1].max() == pytest.approx(2 * float(found.across[0].max()))
    assert torch.equal(found.seen > 0, found.across <= 0.5)


def test_noise_is_stronger_where_the_sample_is_thicker() -> None:
    tilt = TiltSeries((0.0, 60.0), attenuation=0.3)
    views = torch.fft.irfft2(noise_views(tilt, PLANE, np.random.default_rng(0)), s=PLANE)
    assert float(views[0].std()) == pytest.approx(1, rel=0.02)
    assert float(views[1].std()) == pytest.approx(math.exp(0.15) * math.sqrt(2), rel=0.02)


def test_phases_are_flipped_without_a_change_of_size() -> None:
    tilt, views = TiltSeries((0.0,)), torch.ones(1, PLANE[0], PLANE[1] // 2 + 1)
    plain, flipped = (
        weight_views(views, tilt, Reconstruction(ctf_correction=correction), PLANE, 10.0)
        for correction in ("none", "flip")
    )
    transfer = contrast_transfer(view_frequencies(PLANE, tilt).total / 10, tilt)
    assert (transfer < 0).any()
    torch.testing.assert_close(flipped, plain * transfer.sign())


def test_walls_are_hidden_across_the_tilt_axis_wherever_it_points() -> None:
    axis, steep = math.radians(30), math.radians(45)
    lean = torch.tensor([1.0, -1.0]) * math.cos(steep)
    up = torch.full((2,), math.sin(steep))
    across = torch.stack([up, -lean * math.sin(axis), lean * math.cos(axis)])
    tilt = TiltSeries((-60.0, 30.0), axis_angle=30.0)
    assert (hidden_by_wedge(across, tilt) > 0).tolist() == [True, False]
    flat = torch.tensor([[0.92], [0.0], [math.sqrt(1 - 0.92**2)]])  # seen at 67 degrees
    assert hidden_by_wedge(flat, TiltSeries((-70.0, 70.0))).item() == pytest.approx(0.92)

"""A tilt series and its reconstruction, all in Fourier space: projection, CTF, noise, back-projection.

Rotation about one axis keeps the coordinate along it. In the coordinate u = x + z tan(tilt) of the
plane z = 0 a projection is a sum over sheared planes, so for each spatial frequency along x it is a
small matrix product over z (for an axis along y; otherwise a sum by Horner's rule). The field
repeats periodically: what lies outside it streaks in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class TiltSeries:
    """How the tilt series is taken; angles in degrees."""

    angles: tuple[float, ...]
    axis_angle: float = 0.0  # of the tilt axis, from y towards x
    defocus: float = 30_000.0  # Å, positive = underfocus
    voltage: float = 300.0  # kV
    amplitude_contrast: float = 0.07
    exposure: float = 100.0  # electrons / Å^2 in all
    dose_symmetric: bool = True
    shift: float = 0.0  # misalignment per view, standard deviation, voxels
    hot_pixels: int = 0
    bad_columns: int = 0  # of the detector, along the tilt axis
    attenuation: float = 0.3  # inelastic loss at zero tilt, thickness / mean free path
    blur: float = 0.0  # Å, standard deviation: motion and warping that alignment leaves


@dataclass(frozen=True)
class Reconstruction:
    """How the volume is made from the tilt series."""

    saturation: float = 0.0  # cycles per voxel above which the ramp is flat (SIRT-like); 0 = none
    cutoff: float = 0.5  # cycles per voxel where the radial filter starts to fall
    falloff: float = 0.05
    high_pass: float = 0.0  # cycles per voxel below which views are damped
    ctf_correction: str = "none"  # none, flip or wiener
    in_plane_cutoff: float = 1.0  # isotropic Gaussian low-pass of the views, cycles per voxel


def wavelength(voltage: float) -> float:
    """Relativistic electron wavelength [Å] for a voltage [kV]."""
    v = voltage * 1e3
    return 12.2643 / math.sqrt(v + 0.97845e-6 * v * v)


def contrast_transfer(frequency: Tensor, tilt: TiltSeries) -> Tensor:
    """Phase-contrast transfer at spatial frequencies [1/Å]; positive at low frequency."""
    lam = wavelength(tilt.voltage)
    k2 = frequency.square()
    phase = math.pi * lam * tilt.defocus * k2 - 0.5 * math.pi * 2.7e7 * lam**3 * k2.square()
    return torch.sin(phase + math.asin(tilt.amplitude_contrast))


def exposure_before(tilt: TiltSeries) -> np.ndarray:
    """Accumulated exposure [electrons / Å^2] at the middle of each view, in order of `angles`."""
    angles = np.asarray(tilt.angles)
    order = np.argsort(np.abs(angles) if tilt.dose_symmetric else angles, kind="stable")
    out = np.empty(len(angles))
    out[order] = (np.arange(len(angles)) + 0.5) * tilt.exposure / len(angles)
    return out


def dose_envelope(frequency: Tensor, exposure: Tensor, voltage: float = 300.0) -> Tensor:
    """Radiation-damage envelope at frequencies [1/Å] (Grant and Grigorieff, 2015); voltage in kV.

    At 200 kV four fifths of the exposure do what they do at 300 kV; between them it is a straight line.
    """
    endured = 1.0 + 0.002 * (voltage - 300.0)
    critical = endured * (0.245 * frequency.clamp(min=1e-3) ** -1.665 + 2.81)
    return torch.exp(-0.5 * exposure / critical)


def _tangents(tilt: TiltSeries) -> Tensor:
    return torch.tensor(np.tan(np.radians(tilt.angles)), dtype=torch.float32)


def across_frequency(plane: tuple[int, int], tilt: TiltSeries) -> Tensor:
    """Frequency component across the tilt axis, (ky, kx) cycles per voxel; (1, kx) if along y."""
    kx: Tensor = torch.fft.rfftfreq(plane[1])[None, :]
    if tilt.axis_angle == 0:
        return kx
    ky: Tensor = torch.fft.fftfreq(plane[0])[:, None]
    angle = math.radians(tilt.axis_angle)
    return kx * math.cos(angle) - ky * math.sin(angle)


def _shear_angles(plane: tuple[int, int], tilt: TiltSeries) -> Tensor:
    """Phase per plane of depth, (views, ky, kx)."""
    across = across_frequency(plane, tilt)
    return -2 * math.pi * across[None] * _tangents(tilt)[:, None, None]


def _phase(angle: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(angle), angle)


def _shear_matrix(depth: int, plane: tuple[int, int], tilt: TiltSeries, center: float) -> Tensor:
    """Phases (kx, views, z) that shear each plane z by z tan(tilt), for an axis along y."""
    z = torch.arange(depth, dtype=torch.float32) - center
    return _phase(_shear_angles(plane, tilt)[:, 0].T[:, :, None] * z)


@dataclass(frozen=True)
class Frequencies:
    """Spatial frequencies of the views' spectra (views, ky, kx), in cycles per voxel."""

    across: Tensor  # across the tilt axis, on the detector; (views, ky or 1, kx)
    total: Tensor
    seen: Tensor  # below the detector's Nyquist frequency


def _cosines(tilt: TiltSeries) -> Tensor:
    return torch.cos(torch.atan(_tangents(tilt)))[:, None, None]


def view_frequencies(plane: tuple[int, int], tilt: TiltSeries) -> Frequencies:
    """Detector frequencies of each view of planes (y, x)."""
    across = across_frequency(plane, tilt)[None].abs() / _cosines(tilt)
    angle = math.radians(tilt.axis_angle)
    ky, kx = torch.fft.fftfreq(plane[0])[:, None], torch.fft.rfftfreq(plane[1])[None, :]
    along = ky * math.cos(angle) + kx * math.sin(angle)
    return Frequencies(across, torch.hypot(across, along[None]), (across <= 0.5).float())


def project(volume: Tensor, tilt: TiltSeries, center: float) -> Tensor:
    """Spectra (views, ky, kx) of the projections of `volume` (z, y, x) along each tilt."""
    plane = (volume.shape[1], volume.shape[2])
    spectrum = torch.fft.rfft2(volume)
    if tilt.axis_angle == 0:
        shear = _shear_matrix(volume.shape[0], plane, tilt, center)
        views = torch.bmm(shear, spectrum.permute(2, 0, 1).contiguous()).permute(1, 2, 0)
    else:
        angles = _shear_angles(plane, tilt)
        step = _phase(angles)
        views = torch.zeros_like(step)
        for section in spectrum.flip(0):
            views = views.mul_(step).add_(section)
        views = views * _phase(-center * angles)
    return views / _cosines(tilt)


def image_views(
    views: Tensor,
    tilt: TiltSeries,
    plane: tuple[int, int],
    spacing: float,
    rng: np.random.Generator,
) -> Tensor:
    """What the microscope makes of projections: CTF, dose envelope, blur and misalignment."""
    frequencies = view_frequencies(plane, tilt)
    k = frequencies.total / spacing
    exposure = torch.as_tensor(exposure_before(tilt).astype(np.float32))[:, None, None]
    transfer = contrast_transfer(k, tilt) * dose_envelope(k, exposure, tilt.voltage)
    out = views * (transfer * torch.exp(-0.5 * (2 * math.pi * tilt.blur * k).square()))
    if tilt.shift > 0:
        drawn = rng.normal(0, tilt.shift, (2, len(tilt.angles), 1, 1)).astype(np.float32)
        shift = torch.as_tensor(drawn)
        ky = torch.fft.fftfreq(plane[0])[None, :, None]
        kx = torch.fft.rfftfreq(plane[1])[None, None, :]
        angle = -2 * math.pi * (ky * shift[0] + kx * shift[1])
        out = out * _phase(angle)
    return out


def noise_views(tilt: TiltSeries, plane: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Spectra of shot noise, unit variance at zero tilt and stronger where the sample is thicker."""
    noise = gaussian((len(tilt.angles), *plane), rng)
    for _ in range(tilt.hot_pixels):
        view, y, x = (int(rng.integers(n)) for n in noise.shape)
        noise[view, y, x] += float(rng.choice([-1.0, 1.0]) * rng.uniform(20, 120))
    for _ in range(tilt.bad_columns):
        position, gain = float(rng.uniform(-0.5, 0.5)), float(rng.normal(0, 0.2))
        for view, angle in enumerate(np.radians(tilt.angles)):
            column = plane[1] * (0.5 + position / np.cos(angle))
            noise[view][_along_axis(plane, column, tilt.axis_angle)] += gain
    cosine = _cosines(tilt)
    loss = torch.exp(0.5 * tilt.attenuation * (1 / cosine - 1))
    spectrum: Tensor = torch.fft.rfft2(noise)
    return spectrum * (loss / cosine.sqrt())


def _along_axis(plane: tuple[int, int], column: float, axis_angle: float) -> tuple[Tensor, Tensor]:
    """Rows and columns of a line along the tilt axis, a voxel a row, that is at `column` for an axis along y."""
    axis = math.radians(axis_angle)
    rows = np.arange(plane[0])
    turned = (column - plane[1] / 2) * (1 / math.cos(axis) - 1)
    columns = (column + turned + (rows - plane[0] / 2) * math.tan(axis)).astype(int)
    seen = (columns >= 0) & (columns < plane[1])
    return torch.as_tensor(rows[seen]), torch.as_tensor(columns[seen])


def gaussian(shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """White noise of unit variance, the same on every device."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    noise = torch.randn(shape, generator=generator, device="cpu")
    return torch.as_tensor(noise, device=torch.get_default_device())


def weight_views(
    views: Tensor, tilt: TiltSeries, recipe: Reconstruction, plane: tuple[int, int], spacing: float
) -> Tensor:
    """Apply the radial filter, the CTF correction and the detector's limit to spectra of views."""
    f = view_frequencies(plane, tilt)
    u = f.across
    radial = u / (1 + (u / recipe.saturation).square()).sqrt() if recipe.saturation else u
    radial = radial * torch.exp(-0.5 * ((u - recipe.cutoff).clamp(min=0) / recipe.falloff) ** 2)
    if recipe.high_pass > 0:
        radial = radial * (1 - torch.exp(-0.5 * (f.total / recipe.high_pass) ** 2))
    weight = radial * f.seen
    weight = weight * torch.exp(-0.5 * (f.total / recipe.in_plane_cutoff) ** 2)
    if recipe.ctf_correction != "none":
        transfer = contrast_transfer(f.total / spacing, tilt)
        if recipe.ctf_correction == "flip":
            weight = weight * transfer.sign()
        else:
            weight = weight * transfer / (transfer.square() + 0.15)
    return views * weight


def back_project(
    views: Tensor, depth: int, plane: tuple[int, int], tilt: TiltSeries, center: float
) -> Tensor:
    """Volume (depth, y, x) from weighted spectra of views (views, ky, kx)."""
    if tilt.axis_angle == 0:
        shear = _shear_matrix(depth, plane, tilt, center).conj().transpose(1, 2)
        spectrum = torch.bmm(shear, views.permute(2, 0, 1).contiguous()).permute(1, 2, 0)
    else:
        angles = _shear_angles(plane, tilt)
        step = _phase(-angles)
        views = views * _phase(center * angles)
        spectrum = torch.empty((depth, *views.shape[1:]), dtype=views.dtype)
        for z in range(depth):
            spectrum[z] = views.sum(dim=0)
            views = views.mul_(step)
    volume: Tensor = torch.fft.irfft2(spectrum, s=plane)
    return volume / len(tilt.angles)


def hidden_by_wedge(normal: Tensor, tilt: TiltSeries) -> Tensor:
    """How much surfaces with these unit normals (zyx, (3, ...)) lean, where no view shows them.

    A membrane's signal lies in Fourier space along its normal; it is lost where no view passes.

    Returns
    -------
    hidden
        |normal z| in the missing wedge and wherever it is above 0.9, else 0.
    """
    nz, ny, nx = normal.unbind(0)
    axis = math.radians(tilt.axis_angle)
    across = nx * math.cos(axis) - ny * math.sin(axis)
    angle = torch.rad2deg(torch.atan(nz / torch.where(across.abs() < 1e-4, 1e-4, across)))
    outside = (angle > max(tilt.angles)) | (angle < min(tilt.angles))
    return nz.abs() * (outside | (nz.abs() > 0.9))

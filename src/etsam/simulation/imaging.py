"""A tilt series and its reconstruction, all in Fourier space: projection, CTF, noise, back-projection.

Rotation about one axis keeps the coordinate along it. In the coordinate u = x + z tan(tilt) of the
plane z = 0 a projection is a sum over sheared planes, so for each spatial frequency along x it is a
small matrix product over z. The field repeats periodically: what lies outside it streaks in.
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
    axis: str = "y"
    defocus: float = 30_000.0  # Å, positive = underfocus
    voltage: float = 300.0  # kV
    amplitude_contrast: float = 0.07
    exposure: float = 100.0  # electrons / Å^2 in all
    dose_symmetric: bool = True
    shift: float = 0.0  # misalignment per view, standard deviation, voxels
    hot_pixels: int = 0
    attenuation: float = 0.3  # inelastic loss at zero tilt, thickness / mean free path


@dataclass(frozen=True)
class Reconstruction:
    """How the volume is made from the tilt series."""

    ramp_power: float = 1.0  # 1 = weighted back-projection; lower = SIRT-like
    cutoff: float = 0.5  # cycles per voxel where the radial filter starts to fall
    falloff: float = 0.05
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


def dose_envelope(frequency: Tensor, exposure: Tensor) -> Tensor:
    """Radiation-damage envelope at frequencies [1/Å] (Grant and Grigorieff, 2015)."""
    critical = 0.245 * frequency.clamp(min=1e-3) ** -1.665 + 2.81
    return torch.exp(-0.5 * exposure / critical)


def _tangents(tilt: TiltSeries) -> Tensor:
    return torch.tensor(np.tan(np.radians(tilt.angles)), dtype=torch.float32)


def shear_matrix(depth: int, width: int, tilt: TiltSeries, center: float) -> Tensor:
    """Phases (kx, views, z) that shear each plane z by z tan(tilt) for a row of `width` voxels."""
    frequency = torch.fft.rfftfreq(width)
    z = torch.arange(depth, dtype=torch.float32) - center
    angle = -2 * math.pi * frequency[:, None, None] * _tangents(tilt)[:, None] * z
    return torch.polar(torch.ones_like(angle), angle)


@dataclass(frozen=True)
class Frequencies:
    """Spatial frequencies of the views' spectra (views, ky, kx), in cycles per voxel."""

    along_u: Tensor  # (views, 1, kx): across the tilt axis, on the detector
    total: Tensor  # (views, ky, kx)
    seen: Tensor  # (views, 1, kx): below the detector's Nyquist frequency
    cosine: Tensor  # (views, 1, 1)


def view_frequencies(shape: tuple[int, int], tilt: TiltSeries) -> Frequencies:
    """Detector frequencies of each view for planes of `shape` (y, x)."""
    cosine = torch.cos(torch.atan(_tangents(tilt)))[:, None, None]
    along = torch.fft.rfftfreq(shape[1])[None, None, :] / cosine
    ky = torch.fft.fftfreq(shape[0])[None, :, None]
    return Frequencies(along, torch.hypot(along, ky), (along <= 0.5).float(), cosine)


def project(volume: Tensor, tilt: TiltSeries, center: float) -> Tensor:
    """Spectra (views, ky, kx) of the projections of `volume` (z, y, x) along each tilt."""
    spectrum = torch.fft.rfft2(volume).permute(2, 0, 1)  # (kx, z, ky)
    shear = shear_matrix(volume.shape[0], volume.shape[2], tilt, center)
    views = torch.bmm(shear, spectrum.contiguous()).permute(1, 2, 0)  # (views, ky, kx)
    cosine = torch.cos(torch.atan(_tangents(tilt)))[:, None, None]
    return views / cosine


def image_views(
    views: Tensor, tilt: TiltSeries, plane: tuple[int, int], spacing: float, rng: np.random.Generator
) -> Tensor:
    """What the microscope makes of projections: CTF, dose envelope and misalignment."""
    frequencies = view_frequencies(plane, tilt)
    k = frequencies.total / spacing
    exposure = torch.from_numpy(exposure_before(tilt)).float()[:, None, None]
    out = views * (contrast_transfer(k, tilt) * dose_envelope(k, exposure))
    if tilt.shift > 0:
        shift = torch.from_numpy(rng.normal(0, tilt.shift, (2, len(tilt.angles), 1, 1))).float()
        ky = torch.fft.fftfreq(plane[0])[None, :, None]
        kx = torch.fft.rfftfreq(plane[1])[None, None, :]
        angle = -2 * math.pi * (ky * shift[0] + kx * shift[1])
        out = out * torch.polar(torch.ones_like(angle), angle)
    return out


def noise_views(
    tilt: TiltSeries, plane: tuple[int, int], rng: np.random.Generator
) -> Tensor:
    """Spectra of white shot noise (unit variance at zero tilt), stronger where the sample is thicker."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    noise = torch.randn((len(tilt.angles), *plane), generator=generator)
    for _ in range(tilt.hot_pixels):
        view, y, x = (int(rng.integers(n)) for n in noise.shape)
        noise[view, y, x] += float(rng.choice([-1.0, 1.0]) * rng.uniform(20, 120))
    spectrum = torch.fft.rfft2(noise)
    cosine = torch.cos(torch.atan(_tangents(tilt)))[:, None, None]
    loss = torch.exp(0.5 * tilt.attenuation * (1 / cosine - 1))
    return spectrum * loss / cosine.sqrt()


def weight_views(
    views: Tensor, tilt: TiltSeries, recipe: Reconstruction, plane: tuple[int, int], spacing: float
) -> Tensor:
    """Apply the radial filter, the CTF correction and the detector's limit to spectra of views."""
    f = view_frequencies(plane, tilt)
    u = f.along_u
    radial = (u / 0.5).clamp(max=1.0) ** recipe.ramp_power
    radial = radial * torch.exp(-0.5 * ((u - recipe.cutoff).clamp(min=0) / recipe.falloff) ** 2)
    radial[:, :, 0] = 0.0
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
    views: Tensor, depth: int, width: int, tilt: TiltSeries, center: float
) -> Tensor:
    """Volume (depth, y, x) from weighted spectra of views (views, ky, kx)."""
    shear = shear_matrix(depth, width, tilt, center)
    spectrum = torch.bmm(shear.conj().transpose(1, 2), views.permute(2, 0, 1).contiguous())
    volume = torch.fft.irfft2(spectrum.permute(1, 2, 0), s=(views.shape[1], width))
    return volume / len(tilt.angles)

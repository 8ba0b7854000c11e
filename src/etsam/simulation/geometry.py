"""Surfaces as signed distance fields on a voxel grid; lengths and coordinates in voxels, zyx."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# A field maps three coordinate vectors (nz,), (ny,), (nx,) to approximate distances (nz, ny, nx),
# negative inside.
Field = Callable[[Tensor, Tensor, Tensor], Tensor]
Vector = np.ndarray


@dataclass(frozen=True)
class Shape:
    """A surface: its signed distance field and the box (zyx, voxels) that holds it."""

    field: Field
    lower: Vector
    upper: Vector


@dataclass(frozen=True)
class Bump:
    """Smooth random displacement: cubic B-spline coefficients on a coarse grid."""

    coefficients: Tensor
    lower: Vector
    spacing: float

    def __call__(self, z: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Evaluate the displacement on the grid of three coordinate vectors."""
        weights = [
            bspline_matrix((c - float(low)) / self.spacing, n)
            for c, low, n in zip((z, y, x), self.lower, self.coefficients.shape, strict=True)
        ]
        out = torch.einsum("abc,za->zbc", self.coefficients, weights[0])
        out = torch.einsum("zbc,yb->zyc", out, weights[1])
        return out @ weights[2].T


def bspline_matrix(position: Tensor, knots: int) -> Tensor:
    """Weights (n, knots) of a cubic B-spline at positions counted in knots (clamped)."""
    p = position.clamp(0.0, knots - 3 - 1e-3) + 1.0
    index = p.floor()
    t = (p - index)[:, None]
    basis = torch.cat(
        [
            (1 - t) ** 3,
            3 * t**3 - 6 * t**2 + 4,
            -3 * t**3 + 3 * t**2 + 3 * t + 1,
            t**3,
        ],
        dim=1,
    )
    columns = index.long()[:, None] + torch.arange(-1, 3, device=p.device)
    out = torch.zeros(len(p), knots, dtype=p.dtype, device=p.device)
    return out.scatter_(1, columns.clamp(0, knots - 1), basis / 6.0)


def random_bump(
    rng: np.random.Generator, lower: Vector, upper: Vector, spacing: float, amplitude: float
) -> Bump:
    """Draw a displacement of standard deviation about `amplitude`, correlated over `spacing`."""
    spacing = max(spacing, float(np.max(upper - lower)) / 24.0, 2.0)
    knots = [int(np.ceil((u - low) / spacing)) + 4 for low, u in zip(lower, upper, strict=True)]
    coefficients = rng.standard_normal(knots).astype(np.float32) * (amplitude * 2.4)
    return Bump(torch.as_tensor(coefficients), np.asarray(lower, float), spacing)


def random_rotation(rng: np.random.Generator) -> Vector:
    """Draw a uniformly distributed rotation matrix (3, 3)."""
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    q = q * np.sign(np.diag(r))
    if np.linalg.det(q) < 0:
        q[:, 0] = -q[:, 0]
    return np.asarray(q)


def rotated(
    z: Tensor, y: Tensor, x: Tensor, center: Vector, rotation: Vector
) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates in the frame of an object: three tensors (nz, ny, nx)."""
    c = [(v - float(o)) for v, o in zip((z, y, x), center, strict=True)]
    r = rotation.tolist()
    first, second, third = (
        (row[0] * c[0][:, None, None] + row[1] * c[1][None, :, None]) + row[2] * c[2] for row in r
    )
    return first, second, third


def _with_bump(distance: Tensor, bump: Bump | None, z: Tensor, y: Tensor, x: Tensor) -> Tensor:
    return distance if bump is None else distance + bump(z, y, x)


def ellipsoid(
    center: Vector, axes: Vector, rotation: Vector, bump: tuple[float, float, np.random.Generator]
) -> Shape:
    """Ellipsoid with semi-axes `axes`; `bump` = (relative amplitude, correlation / radius, rng)."""
    reach = float(np.max(axes)) * (1.0 + 3.0 * bump[0]) + 2.0
    lower, upper = center - reach, center + reach
    mean = float(np.mean(axes))
    wave = random_bump(bump[2], lower, upper, bump[1] * mean, bump[0] * mean)
    inverse = (1.0 / axes).tolist()

    def field(z: Tensor, y: Tensor, x: Tensor) -> Tensor:
        q = rotated(z, y, x, center, rotation)
        scaled = [c * i for c, i in zip(q, inverse, strict=True)]
        k1 = (scaled[0].square() + scaled[1].square() + scaled[2].square()).sqrt_()
        s = [c * i for c, i in zip(scaled, inverse, strict=True)]
        k2 = (s[0].square() + s[1].square() + s[2].square()).sqrt_().clamp_(min=1e-6)
        return _with_bump(k1 * (k1 - 1.0) / k2, wave, z, y, x)

    return Shape(field, lower, upper)


def torus(center: Vector, radii: tuple[float, float], rotation: Vector) -> Shape:
    """Torus of ring radius `radii[0]` and tube radius `radii[1]`."""
    reach = radii[0] + radii[1] + 2.0

    def field(z: Tensor, y: Tensor, x: Tensor) -> Tensor:
        a, b, c = rotated(z, y, x, center, rotation)
        return torch.hypot(torch.hypot(b, c) - radii[0], a) - radii[1]

    return Shape(field, center - reach, center + reach)


def tubule(
    center: Vector, radius: float, length: float, rotation: Vector, rng: np.random.Generator
) -> Shape:
    """Capped tube along a gently winding line of the given length."""
    reach = length / 2 + radius * 2.0 + 4.0
    period = length * float(rng.uniform(0.6, 2.0))
    sway = rng.uniform(-0.12, 0.12, 2) * period / 2
    phase = rng.uniform(0, 2 * np.pi, 2)

    def field(z: Tensor, y: Tensor, x: Tensor) -> Tensor:
        a, b, c = rotated(z, y, x, center, rotation)
        along = a * (2 * np.pi / period)
        b = b - float(sway[0]) * torch.sin(along + float(phase[0]))
        c = c - float(sway[1]) * torch.sin(along + float(phase[1]))
        beyond = (a.abs() - length / 2).clamp_(min=0.0)
        return (b.square() + c.square() + beyond.square()).sqrt_() - radius

    return Shape(field, center - reach, center + reach)


def sheet(grid: tuple[int, int, int], center: Vector, rotation: Vector, bump: Bump | None) -> Shape:
    """Infinite undulating plane through `center` whose normal is the first row of `rotation`."""

    def field(z: Tensor, y: Tensor, x: Tensor) -> Tensor:
        n = rotation[0].tolist()
        c = [v - float(o) for v, o in zip((z, y, x), center, strict=True)]
        plane = (n[0] * c[0][:, None, None] + n[1] * c[1][None, :, None]) + n[2] * c[2]
        return _with_bump(plane, bump, z, y, x)

    return Shape(field, np.zeros(3), np.asarray(grid, float))


def level_set(
    grid: tuple[int, int, int], wavelength: float, level: float, rng: np.random.Generator
) -> Shape:
    """Tortuous connected surface: where smooth noise of a wavelength (voxels) crosses `level`."""
    lower, upper = np.zeros(3), np.asarray(grid, float)
    wave = random_bump(rng, lower, upper, wavelength / 2, wavelength / 4)

    def field(z: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return wave(z, y, x) - level * wavelength / 4

    return Shape(field, lower, upper)


def normalised(field: Tensor) -> tuple[Tensor, Tensor]:
    """Turn a field into first-order distances; also the surfaces' normals zyx, (3, ...)."""
    normal = torch.stack(torch.gradient(field))
    norm = normal.square().sum(dim=0).sqrt_().clamp_(0.3, 4.0)
    return field / norm, normal.div_(norm)

"""Protein density maps a user supplies, as templates on the scene's grid."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy.ndimage import affine_transform, center_of_mass
from torch import Tensor

from etsam.frame import is_cubic
from etsam.simulation.density import PROTEIN_DENSITY
from etsam.simulation.geometry import Vector, random_rotation
from etsam.volume import open_tomogram

MAX_MAP_SIDE = 512  # voxels
MAX_MAP_LENGTH = 1500.0  # Å


@lru_cache(maxsize=64)
def read_map(path: str) -> tuple[np.ndarray, float]:
    """Read a map scaled to protein density, background cut away; also its spacing [Å].

    Raises
    ------
    FileNotFoundError, ValueError
        It is missing, no volume, too large, without a voxel spacing or of voxels that are no cubes, or nothing
        in it is above 0.
    """
    with open_tomogram(path) as volume:
        if max(volume.shape) > MAX_MAP_SIDE:
            raise ValueError(
                f"{path} has {' x '.join(map(str, volume.shape))} voxels: expected the map of a protein, of up "
                f"to {MAX_MAP_SIDE} a side"
            )
        if volume.voxel_spacing is None:
            raise ValueError(f"{path} has no voxel spacing: set it in the header")
        low, spacing = min(volume.voxel_spacing), max(volume.voxel_spacing)
        if max(volume.shape) * spacing > MAX_MAP_LENGTH:
            raise ValueError(
                f"{path} is {max(volume.shape) * spacing:.0f} Å long: expected the map of a protein, of up to "
                f"{MAX_MAP_LENGTH:.0f} Å"
            )
        if not is_cubic(volume.voxel_spacing):
            raise ValueError(f"{path} has voxels of {low:g} to {spacing:g} Å: expected cubes")
        data = volume.read_slices(0, volume.shape[0])
        volume.require_finite()
    if data.max() <= 0:
        raise ValueError(f"{path} holds nothing above 0: expected the density of a protein")
    occupied = data[data > 0.05 * data.max()]
    scaled = np.clip(data / float(np.percentile(occupied, 75)), 0.0, 1.5)
    scaled[scaled < 0.1] = 0.0
    return scaled * PROTEIN_DENSITY, spacing


def turned(path: str, rotation: Vector, box: int, spacing: float, center: Vector) -> np.ndarray:
    """Resample a map about `center` (its voxels), rotated, into a cube of `box` voxels."""
    data, own = read_map(path)
    scale = spacing / own
    matrix = rotation.T * scale
    offset = center - matrix @ np.full(3, (box - 1) / 2)
    return np.asarray(affine_transform(data, matrix, offset, (box,) * 3, np.float32, order=1))


def _box(paths: tuple[str, ...], spacing: float) -> int:
    widest = max(max(read_map(path)[0].shape) * read_map(path)[1] for path in paths)
    return int(np.ceil(widest / spacing)) // 2 * 2 + 1


def map_library(
    paths: tuple[str, ...], spacing: float, rng: np.random.Generator, count: int
) -> Tensor:
    """Templates (count, b, b, b): maps drawn from `paths` about their centre, random rotations."""
    box = _box(paths, spacing)
    out = []
    for _ in range(count):
        path = paths[int(rng.integers(len(paths)))]
        center = np.asarray(center_of_mass(read_map(path)[0]))
        out.append(turned(path, random_rotation(rng), box, spacing, center))
    return torch.as_tensor(np.stack(out))


def membrane_library(
    paths: tuple[str, ...], spacing: float, rng: np.random.Generator, count: int
) -> tuple[Tensor, Tensor]:
    """Templates of maps aligned along z, rotated; also where their z axis points, (count, 3) zyx."""
    box = _box(paths, spacing)
    out, directions = [], []
    for _ in range(count):
        path = paths[int(rng.integers(len(paths)))]
        rotation = random_rotation(rng)
        center = (np.asarray(read_map(path)[0].shape) - 1) / 2
        out.append(turned(path, rotation, box, spacing, center))
        directions.append(rotation[:, 0])
    return torch.as_tensor(np.stack(out)), torch.as_tensor(np.stack(directions).astype(np.float32))

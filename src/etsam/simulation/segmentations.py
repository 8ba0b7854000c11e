"""Real membrane shapes: segmentations a user supplies become bilayers of the scene."""

from __future__ import annotations

import errno
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import affine_transform, distance_transform_edt, gaussian_filter

from etsam.frame import is_cubic
from etsam.simulation.density import Bilayer, bilayer_profile, profile_reach, voxel_blur
from etsam.simulation.imaging import hidden_by_wedge
from etsam.simulation.scene import CLEARANCE, COARSE, Scene
from etsam.storage import check_spacing
from etsam.volume import open_tomogram

DAMAGES = (
    *(EOFError, LookupError, RuntimeError, TypeError, ValueError),
    *(zipfile.BadZipFile, zlib.error),
)
"""What `numpy.load` raises where a file is not what its name says."""


@dataclass(frozen=True)
class RealShape:
    """A segmentation on disk (.npz with `labels`, or MRC), its spacing [Å] and membrane labels."""

    path: str
    voxel_spacing: float
    labels: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        check_spacing(self.voxel_spacing)


def real_shape(
    path: Path | str, voxel_spacing: float | None = None, labels: tuple[int, ...] = (1,)
) -> RealShape:
    """A segmentation with the spacing [Å] that its header has, where none is given.

    Raises
    ------
    FileNotFoundError, ValueError
        It is missing, cannot be read, says no spacing, or no voxel carries one of the labels.
    """
    path = Path(path).resolve()
    _membrane_of(path, labels)
    if voxel_spacing is None:
        wanted = f"{path} says no voxel spacing: give its own, --segmentation-spacing"
        if path.suffix == ".npz":
            raise ValueError(wanted)
        with open_tomogram(path) as volume:
            if volume.voxel_spacing is None:
                raise ValueError(wanted)
            if not is_cubic(volume.voxel_spacing):
                raise ValueError(f"{path} has voxels that are no cubes: resample it first")
            voxel_spacing = max(volume.voxel_spacing)
    return RealShape(str(path), voxel_spacing, labels)


def read_segmentation(shape: RealShape) -> np.ndarray:
    """Read the membrane of a segmentation as bool (Z, Y, X).

    Raises
    ------
    ValueError
        It cannot be read, is no volume, or no voxel carries one of the labels.
    FileNotFoundError
        It is not there.
    """
    return _membrane_of(Path(shape.path), shape.labels)


def _membrane_of(path: Path, chosen: tuple[int, ...]) -> np.ndarray:
    labels = _read_npz(path) if path.suffix == ".npz" else _read_volume(path)
    if labels.ndim != 3 or labels.dtype.kind not in "biuf":
        raise ValueError(
            f"{path} is no segmentation: its labels are {labels.dtype} of shape {labels.shape}, "
            "expected numbers (Z, Y, X)"
        )
    mask = np.isin(labels, chosen)
    if not mask.any():
        raise ValueError(f"{path} has no voxel labelled {chosen}; check the labels")
    return mask


def _read_npz(path: Path) -> np.ndarray:
    try:
        with np.load(path) as stored:
            return np.asarray(stored["labels"])
    except (OSError, *DAMAGES) as wrong:
        if isinstance(wrong, OSError) and wrong.errno != errno.EINVAL:  # of a place that is nowhere
            raise
        raise ValueError(
            f"{path} is no segmentation: expected a NumPy .npz file with an array `labels`"
        ) from None


def _read_volume(path: Path) -> np.ndarray:
    with open_tomogram(path) as volume:
        labels = np.stack([volume.read_slice(z) for z in range(volume.shape[0])])
        volume.require_finite()
    return labels


def midsurface_distance(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unsigned distance to the middle of a segmented sheet and its normals (3, ...), in voxels."""
    inner, nearest_out = distance_transform_edt(mask, return_indices=True)
    outer, nearest_in = distance_transform_edt(~mask, return_indices=True)
    half = 2.0 * float(inner[mask].mean()) - 1.0
    distance = np.where(mask, half - (inner - 0.5), half + (outer - 0.5)).astype(np.float32)
    smooth = gaussian_filter(distance, 1.0)
    distance = np.sqrt(np.clip(smooth**2 - 0.64, 0.0, None))
    grid = np.indices(mask.shape)
    normal = (np.where(mask, nearest_out, nearest_in) - grid).astype(np.float32)
    normal = np.stack([gaussian_filter(n * np.sign(normal[2] + 1e-3), 1.0) for n in normal])
    return distance, normal / np.maximum(np.linalg.norm(normal, axis=0), 1e-6)


def _window(mask: np.ndarray, shape: list[int], rng: np.random.Generator) -> np.ndarray:
    """Cut or pad a mask to a shape, about its most central voxel, turned by quarter turns."""
    mask = np.rot90(mask, int(rng.integers(4)), axes=(1, 2))
    voxels = np.argwhere(mask)
    middle = voxels[np.square(voxels - np.median(voxels, axis=0)).sum(axis=1).argmin()]
    out = np.zeros(shape, bool)
    target, source = [], []
    for n, m, size in zip(shape, middle, mask.shape, strict=True):
        low = m - n // 2  # the window's first voxel in the mask's coordinates
        start, stop = max(0, low), min(size, low + n)
        source.append(slice(start, stop))
        target.append(slice(start - low, stop - low))
    out[tuple(target)] = mask[tuple(source)]
    return out


def _scaled(mask: np.ndarray, factor: float, shape: tuple[int, int, int]) -> np.ndarray:
    """Resample a mask to `factor` times as many voxels a side, cut to a shape.

    Corners of both grids coincide. `scipy.ndimage.zoom` rounds the factor to whole sides.
    """
    offset = 0.5 / factor - 0.5
    values = mask.astype(np.float32)
    scaled = affine_transform(values, [1 / factor] * 3, offset, shape, order=1, mode="nearest")
    return np.asarray(scaled > 0.5)


def place_segmentation(
    scene: Scene, shape: RealShape, bilayer: Bilayer, rng: np.random.Generator
) -> None:
    """Add the membranes of a segmentation to an empty scene, resampled to its spacing."""
    mask = read_segmentation(shape)
    factor = shape.voxel_spacing / scene.spacing
    window = _window(mask, [int(np.ceil(n / factor)) + 2 for n in scene.shape], rng)
    distance, normal = midsurface_distance(_scaled(window, factor, scene.shape))
    near = torch.as_tensor(distance * scene.spacing)
    index = torch.nonzero((near < CLEARANCE).view(-1)).squeeze(1)
    d = near.view(-1)[index]
    dense = d < profile_reach(scene.spacing)
    values = bilayer_profile(d[dense], bilayer, voxel_blur(scene.spacing))
    scene.density.view(-1)[index[dense]] += values
    scene.distance.view(-1)[index] = d
    normals = torch.as_tensor(normal.reshape(3, -1))[:, index]
    if scene.unsigned is not None:
        scene.unsigned.view(3, -1)[:, index] = normals
    scene.hidden.view(-1)[index] = hidden_by_wedge(normals, scene.tilt)
    scene.coarse = torch.minimum(
        scene.coarse, torch.as_tensor(distance[::COARSE, ::COARSE, ::COARSE].copy())
    )

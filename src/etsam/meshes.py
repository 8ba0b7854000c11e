"""Triangle meshes of membrane masks: marching cubes on a smooth field, decimation, Taubin smoothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_matrix, csr_matrix, diags
from scipy.sparse.csgraph import connected_components
from skimage.measure import marching_cubes

from etsam.frame import Frame
from etsam.membrane import LOGIT_STEP, Membrane

MAX_FACES = 500_000
MAX_CELLS = 64_000_000
"""Voxels marched over; a larger volume is binned by 2 first, or by more."""

SMOOTHING = 0.7
"""Standard deviation [voxels after binning] of the field's blur, along the axis of finest spacing."""

PARTS = 16
"""Groups of surfaces that are decimated one after the other."""

TAUBIN_STEPS = 10
TAUBIN_SHRINK = 0.5
TAUBIN_GROW = -0.53  # Taubin (1995): pass band 1 / 0.5 - 1 / 0.53 = 0.11
_march: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = marching_cubes
LOGIT_CLIP = 2.0  # logits further from the threshold say no more about where the surface is


@dataclass(frozen=True)
class Mesh:
    """Triangles: `vertices` float64 (n, 3) xyz in Å, `faces` int64 (m, 3), seen from outside anticlockwise."""

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]

    @property
    def area(self) -> float:
        """Area of all triangles [Å^2]."""
        a, b, c = (self.vertices[self.faces[:, corner]] for corner in range(3))
        return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def surface_mesh(membrane: Membrane, *, max_faces: int = MAX_FACES) -> Mesh:
    """Return the surface of a membrane mask; open where the membrane leaves the volume.

    Parameters
    ----------
    membrane
        Mask; with a field, the surface lies where the logits cross the threshold.
    max_faces
        The mesh is decimated to at most this many triangles.

    Raises
    ------
    ValueError
        If the mask is empty or the limit is not a useful number.
    """
    if max_faces < 100:
        raise ValueError(f"max_faces is {max_faces}: expected at least 100")
    box = bounding_box(membrane.mask, margin=4)
    if box is None:
        raise ValueError("the mask is empty: there is no surface; try a lower threshold")
    start = np.array([part.start for part in box])
    binning = binning_for([part.stop - part.start for part in box])
    if membrane.field is None:
        cells, level = _binned(membrane.mask[box], binning), 0.5
    else:
        limit = round(LOGIT_CLIP / LOGIT_STEP)
        cells, level = _binned(membrane.field[box].clip(-limit, limit), binning), 0.0
    spacing = np.array(membrane.frame.spacing)
    cells = gaussian_filter(cells, SMOOTHING * spacing.min() / spacing, mode="nearest")
    if min(cells.shape) < 2 or not cells.min() < level < cells.max():
        thin = (
            "too small to be smoothed" if binning == 1 else f"too thin when binned {binning} times"
        )
        raise ValueError(
            f"the mask has no surface: it fills the volume, or is {thin}; leave out meshes and copick"
        )
    corners, faces, _, _ = _march(cells, level, allow_degenerate=False)
    voxels = (corners + 0.5) * binning - 0.5 + start
    return _finished(membrane.frame, voxels, faces, max_faces)


def bounding_box(mask: NDArray[np.bool_], margin: int = 0) -> tuple[slice, slice, slice] | None:
    """Return the box round all true voxels, `margin` wider where the volume allows; None without any."""
    plane = np.logical_or.reduce(mask, axis=0)
    profiles = [
        np.logical_or.reduce(mask, axis=(1, 2)),
        np.logical_or.reduce(plane, axis=1),
        np.logical_or.reduce(plane, axis=0),
    ]
    if not plane.any():
        return None
    ends = [np.flatnonzero(profile)[[0, -1]] for profile in profiles]
    z, y, x = (
        slice(max(0, int(low) - margin), min(size, int(high) + margin + 1))
        for (low, high), size in zip(ends, mask.shape, strict=True)
    )
    return z, y, x


def binning_for(shape: list[int]) -> int:
    """Return the smallest binning that leaves at most `MAX_CELLS` voxels."""
    binning = 1
    while np.prod(np.array(shape, float) / binning) > MAX_CELLS:
        binning += 1
    return binning


def _binned(data: np.ndarray, binning: int) -> NDArray[np.float32]:
    """Return means over cubes of voxels; the last cubes repeat the last voxels."""
    if binning == 1:
        return np.asarray(data, np.float32)
    sides = [-(-size // binning) for size in data.shape]
    result = np.empty(sides, np.float32)
    for z in range(sides[0]):
        slab = data[z * binning : (z + 1) * binning]
        padding = [
            (0, binning - len(slab)),
            *((0, side * binning - n) for side, n in zip(sides[1:], data.shape[1:], strict=True)),
        ]
        slab = np.pad(np.asarray(slab, np.float32), padding, mode="edge")
        blocks = slab.reshape(binning, sides[1], binning, sides[2], binning)
        result[z] = blocks.mean(axis=(0, 2, 4))
    return result


def _finished(frame: Frame, voxels: np.ndarray, faces: np.ndarray, max_faces: int) -> Mesh:
    """Bring a mesh into Å, keep it below the limit and smooth it.

    Decimation first: it roughens what was smoothed before it, and leaves less to smooth.
    """
    vertices = frame.to_angstrom(voxels)
    faces = np.asarray(faces, np.int64)  # outward in xyz: the way from zyx turns them round once
    if len(faces) > max_faces:
        vertices, faces = _decimated(vertices, faces, max_faces)
    return Mesh(taubin(vertices, faces), faces)


def taubin(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], steps: int = TAUBIN_STEPS
) -> NDArray[np.float64]:
    """Smooth a mesh without shrinking it (Taubin, SIGGRAPH 1995); vertices on its rim stay."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    ones = np.ones(len(edges), np.float32)
    count = len(vertices)
    one_way = coo_matrix((ones, (edges[:, 0], edges[:, 1])), (count, count)).tocsr()
    both = one_way + one_way.T
    rim = np.unique(np.stack((both == 1).nonzero())) if both.nnz else np.zeros(0, int)
    links = csr_matrix((np.ones_like(both.data), both.indices, both.indptr), both.shape)
    degree = np.maximum(np.diff(both.indptr), 1)
    mean = diags(1.0 / degree) @ links
    result = vertices.copy()
    for _ in range(steps):
        for factor in (TAUBIN_SHRINK, TAUBIN_GROW):
            moved = result + factor * (mean @ result - result)
            moved[rim] = vertices[rim]
            result = moved
    return result


def _decimated(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], max_faces: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Reduce a mesh by quadric edge collapse; vertices are kept near 0 for single precision.

    Surfaces that do not touch are reduced apart, to their share of the triangles, which takes less
    time and memory than all at once; one after the other, since the library keeps its state
    outside the call.
    """
    try:
        import fast_simplification
    except ImportError as error:
        raise ValueError(
            f'a mesh of {len(faces):,} triangles needs decimation: pip install "etsam[export]"'
        ) from error
    centre = vertices.mean(axis=0)

    def reduced(part: _Part) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        points = np.asarray(vertices[part.vertices] - centre, np.float32)
        target = int(max_faces * len(part.faces) / len(faces))
        done = fast_simplification.simplify(points, part.faces, target_count=target)
        return done[0], done[1]

    points, triangles = zip(*map(reduced, _apart(faces, len(vertices))), strict=True)
    before = np.cumsum([0, *map(len, points[:-1])])
    return (
        np.concatenate(points).astype(np.float64) + centre,
        np.concatenate([part + start for part, start in zip(triangles, before, strict=True)]),
    )


@dataclass(frozen=True)
class _Part:
    """Numbers of some of a mesh's vertices, and its triangles of these (n, 3), numbered anew."""

    vertices: NDArray[np.int64]
    faces: NDArray[np.int32]


def _apart(faces: NDArray[np.int64], count: int) -> list[_Part]:
    """Divide a mesh of so many vertices into at most `PARTS`, of about one size, that share no vertex."""
    edges = np.concatenate([faces[:, :2], faces[:, 1:]])
    links = coo_matrix((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), (count, count))
    number, piece = connected_components(links, directed=False)
    size = np.bincount(piece[faces[:, 0]], minlength=number)
    load, part_of = np.zeros(PARTS, np.int64), np.zeros(number, np.int64)
    for one in np.argsort(-size, kind="stable"):
        part_of[one] = load.argmin()
        load[part_of[one]] += size[one]
    home = part_of[piece]
    face_home = home[faces[:, 0]]
    names, parts = np.empty(count, np.int32), []
    for part in np.flatnonzero(load):
        vertices = np.flatnonzero(home == part)
        names[vertices] = np.arange(len(vertices))
        parts.append(_Part(vertices, names[faces[face_home == part]]))
    return parts

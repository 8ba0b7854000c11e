"""The mid-surface of a membrane: where its field has a ridge, with normals and local thickness.

At each membrane voxel the field (blurred mask, or logits) is expanded to second order. Across a sheet it
curves most, along the eigenvector of the Hessian's most negative eigenvalue; where the slope along it
vanishes within the voxel lies the ridge, to a fraction of a voxel (Steger, IEEE PAMI 20 (1998) 113).
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree
from scipy.spatial import cKDTree

from etsam.membrane import LOGIT_STEP, Membrane

MASK_BLUR = 1.5
"""Least standard deviation of a mask's blur [voxels], along the axis of finest spacing."""

LOGIT_BLUR = 1.0
"""The same for logits, which have their ridge already; a blur moves it towards the inside of a bend."""

BLUR_PER_THICKNESS = 0.3
"""Standard deviation of the blur over the thickness of the mask; makes a box one clear ridge."""

CLEAR_SHEET = 0.7  # sheetness of a membrane that bends gently
FAINT = 0.2  # share of the median strength of clear sheets
FACING = 0.7  # cosine between a normal and that of a face of the volume
HALF_VOXEL = 0.6  # a little more than half, so that ridges are closed
CHUNK = 400_000  # voxels expanded at once
SLAB_VOXELS = 20_000_000  # voxels blurred at once by a thread
THREADS = min(4, os.cpu_count() or 1)
THICKNESS_REACH = 12.0  # voxels to either side
THICKNESS_STEP = 0.5
NEIGHBOURS = 8  # of a point, when normals are turned to one side

_DIRECTIONS = [(z, y, x) for z in (-1, 0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1)]


@dataclass(frozen=True)
class MidSurface:
    """Points on the middle of membranes.

    `voxels` int32 (n, 3) zyx are the voxels they lie in, `points` float32 (n, 3) zyx their places in voxels;
    `normals` float32 (n, 3) are unit vectors in Å space, zyx, of either sign; `sheetness` (n,) is 1 where the
    membrane is flat and 0 where it is as curved along as across; `strength` (n,) is how sharp the ridge is,
    the second derivative across it [1/Å^2].
    """

    voxels: NDArray[np.int32]
    points: NDArray[np.float32]
    normals: NDArray[np.float32]
    sheetness: NDArray[np.float32]
    strength: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.voxels)

    def take(self, chosen: np.ndarray) -> MidSurface:
        """Return some of the points, by index or by truth value."""
        return MidSurface(*(values[chosen] for values in vars(self).values()))


def typical_thickness(membrane: Membrane) -> float:
    """Return the thickness of a mask [Å]: its volume over half its surface; 0 for an empty one.

    The surface is counted in faces of voxels, which add up to 3/2 of a surface of mixed directions.
    """
    mask, spacing = membrane.mask, membrane.frame.spacing
    volume = membrane.frame.voxel_volume
    area = 0.0
    for z, plane in enumerate(mask):
        above = plane if z == 0 else mask[z - 1]
        area += np.count_nonzero(plane ^ above) * volume / spacing[0]
        area += np.count_nonzero(plane[1:] ^ plane[:-1]) * volume / spacing[1]
        area += np.count_nonzero(plane[:, 1:] ^ plane[:, :-1]) * volume / spacing[2]
    return float(np.count_nonzero(mask)) * volume * 3 / area if area else 0.0


def mid_surface(membrane: Membrane, *, blur: float | None = None) -> MidSurface:
    """Find the mid-surface of all membranes, slab by slab.

    `blur` is in voxels along the axis of finest spacing (default: from the thickness of the mask).
    Memory is a slab of float32 and what the points take, whatever Z.
    """
    spacing = np.array(membrane.frame.spacing)
    if blur is None and membrane.field is None:
        typical = typical_thickness(membrane) / spacing.min()
        blur = max(MASK_BLUR, BLUR_PER_THICKNESS * typical)
    elif blur is None:
        blur = LOGIT_BLUR
    sigma = blur * spacing.min() / spacing
    margin = int(np.ceil(4 * sigma[0])) + 2
    depth, height, width = membrane.mask.shape
    step = max(8, SLAB_VOXELS // (height * width))

    def ridges(start: int) -> list[MidSurface]:
        stop = min(start + step, depth)
        low, high = max(0, start - margin), min(depth, stop + margin)
        field = _field(membrane, low, high)
        field = np.pad(gaussian_filter(field, sigma, mode="nearest", truncate=4.0), 1, mode="edge")
        inside = np.argwhere(membrane.mask[start:stop]) + np.array([start - low, 0, 0])
        parts = []
        for first in range(0, len(inside), CHUNK):
            part = _ridge(field, inside[first : first + CHUNK], spacing)
            part.voxels[:, 0] += low
            part.points[:, 0] += low
            parts.append(part)
        return parts

    with ThreadPoolExecutor(THREADS) as pool:  # scipy and numpy let go of the interpreter
        parts = [part for found in pool.map(ridges, range(0, depth, step)) for part in found]
    return _without_faint(_without_faces(joined(parts), membrane.mask.shape))


def joined(parts: list[MidSurface]) -> MidSurface:
    """The points of several mid-surfaces as one."""
    empty = np.zeros((0, 3), np.float32)
    none = np.zeros(0, np.float32)
    nothing = MidSurface(empty.astype(np.int32), empty, empty, none, none)
    columns = zip(*(vars(part).values() for part in (nothing, *parts)), strict=True)
    return MidSurface(*(np.concatenate(column) for column in columns))


def _without_faces(surface: MidSurface, shape: tuple[int, ...]) -> MidSurface:
    """Drop ridges that lie in the faces of the volume: there the blur has nothing beyond to look at."""
    at_face = (surface.voxels <= 1) | (surface.voxels >= np.array(shape) - 2)
    flat = at_face & (np.abs(surface.normals) > FACING)
    return surface.take(~np.logical_or.reduce(flat, axis=1))


def _without_faint(surface: MidSurface) -> MidSurface:
    """Drop ridges that are no sheets: much fainter than the others, as at the rim of a mask."""
    clear = surface.strength[surface.sheetness > CLEAR_SHEET]
    if not len(clear):
        return surface
    return surface.take(surface.strength * surface.sheetness >= FAINT * np.median(clear))


def thickness(membrane: Membrane, surface: MidSurface) -> NDArray[np.float32]:
    """Return how thick the mask is at each point of its mid-surface, along the normal [Å]; NaN beyond reach.

    The thickness of a mask is that of the label it learned from rather than of the bilayer itself.
    """
    return np.asarray(reaches(membrane, surface).sum(axis=1), np.float32)


def reaches(membrane: Membrane, surface: MidSurface) -> NDArray[np.float32]:
    """Return how far the mask goes on along and against the normal of each point (n, 2) [Å]; NaN beyond reach."""
    spacing = np.array(membrane.frame.spacing)
    fine = spacing.min()
    direction = surface.normals / spacing * fine  # voxels per step of the finest spacing
    with ThreadPoolExecutor(THREADS) as pool:
        sides = list(
            pool.map(lambda sign: _reach(membrane, surface.points, sign * direction), (1.0, -1.0))
        )
    return np.asarray(np.stack(sides, axis=1) * fine, np.float32)


def turned(
    points: np.ndarray, normals: np.ndarray, groups: NDArray[np.integer]
) -> NDArray[np.float32]:
    """Turn normals to one side of each group's sheet, away from the inside where it is curved.

    Signs are carried along a minimum spanning tree over neighbours that favours parallel normals
    (Hoppe et al., SIGGRAPH 1992).

    Parameters
    ----------
    points, normals
        (n, 3) in one order of axes and one unit of length.
    groups
        Number of each point's sheet (n,).
    """
    count = len(points)
    if count < 2:
        return normals.astype(np.float32)
    _, near = cKDTree(points).query(points, k=min(NEIGHBOURS, count))
    first = np.repeat(np.arange(count), near.shape[1] - 1)
    second = near[:, 1:].ravel()
    same = groups[first] == groups[second]
    first, second = first[same], second[same]
    agreement = np.einsum("ij,ij->i", normals[first], normals[second])
    weight = 1.0 - np.abs(agreement) + 1e-6
    graph = coo_matrix((weight, (first, second)), (count, count)).tocsr()
    tree = minimum_spanning_tree(graph.maximum(graph.T))
    sign = _carried(tree + tree.T, normals)
    result = normals * sign[:, None]
    _, part = connected_components(tree, directed=False)
    away = _outward(points, result, part)
    return np.asarray(result * np.where(away[part] < 0, -1.0, 1.0)[:, None], np.float32)


def _outward(points: np.ndarray, normals: np.ndarray, part: np.ndarray) -> NDArray[np.float64]:
    """Return, for each connected part, whether normals point away from its centre (positive) or to it."""
    size = np.bincount(part).astype(float)
    centre = np.stack([np.bincount(part, points[:, axis]) for axis in range(3)], 1) / size[:, None]
    away = np.einsum("ij,ij->i", points - centre[part], normals)
    return np.asarray(np.bincount(part, away))


def _carried(tree: coo_matrix, normals: np.ndarray) -> NDArray[np.float64]:
    """Return signs that make neighbours in a forest agree."""
    count = len(normals)
    sign = np.zeros(count)
    _, part = connected_components(tree, directed=False)
    roots = np.unique(part, return_index=True)[1]
    for root in roots:
        order, before = breadth_first_order(tree, root, directed=False)
        sign[root] = 1.0
        above = before[order[1:]]
        agree = np.sign(np.einsum("ij,ij->i", normals[order[1:]], normals[above]))
        agree[agree == 0] = 1.0
        for node, parent, same in zip(order[1:].tolist(), above.tolist(), agree, strict=True):
            sign[node] = sign[parent] * same
    return sign


def _field(membrane: Membrane, low: int, high: int) -> NDArray[np.float32]:
    """Return slices of what has its ridge in the middle of membranes."""
    if membrane.field is None:
        return membrane.mask[low:high].astype(np.float32)
    return membrane.field[low:high].astype(np.float32) * np.float32(LOGIT_STEP)


def _ridge(field: NDArray[np.float32], voxels: np.ndarray, spacing: np.ndarray) -> MidSurface:
    """Return the ridge points of some voxels of a field that is padded by one."""
    strides = np.array(field.strides) // field.itemsize
    flat = (voxels + 1) @ strides
    values = {step: field.reshape(-1)[flat + int(np.dot(step, strides))] for step in _DIRECTIONS}
    slope, curve = _derivatives(values, spacing)
    lowest, other, direction = _most_negative(curve)
    along = np.einsum("ij,ij->i", slope, direction)
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = (-along / lowest)[:, None] * direction / spacing
        sheetness = 1.0 - np.abs(other / lowest)
    good = (lowest < 0) & (np.abs(shift) <= HALF_VOXEL).all(axis=1) & (sheetness > 0)
    found = voxels[good]
    return MidSurface(
        found.astype(np.int32),
        (found + shift[good]).astype(np.float32),
        direction[good].astype(np.float32),
        sheetness[good].astype(np.float32),
        -lowest[good].astype(np.float32),
    )


def _derivatives(
    values: dict[tuple[int, int, int], np.ndarray], spacing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return slopes (n, 3) and second derivatives (n, 3, 3) per Å by central differences."""
    count = len(values[0, 0, 0])
    slope, curve = np.empty((count, 3)), np.empty((count, 3, 3))
    unit = np.eye(3, dtype=int)
    for i in range(3):
        up, down = values[tuple(unit[i])], values[tuple(-unit[i])]
        slope[:, i] = (up - down) / (2 * spacing[i])
        curve[:, i, i] = (up - 2 * values[0, 0, 0] + down) / spacing[i] ** 2
        for j in range(i):
            mixed = values[tuple(unit[i] + unit[j])] + values[tuple(-unit[i] - unit[j])]
            mixed = mixed - values[tuple(unit[i] - unit[j])] - values[tuple(unit[j] - unit[i])]
            curve[:, i, j] = curve[:, j, i] = mixed / (4 * spacing[i] * spacing[j])
    return slope, curve


def _most_negative(curve: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of symmetric matrices (n, 3, 3) the lowest eigenvalue, the one with the next
    largest magnitude, and the unit eigenvector of the lowest.

    In closed form (Smith, Commun. ACM 4 (1961) 168), which is 20 times as fast as LAPACK's.
    """
    mean = np.trace(curve, axis1=1, axis2=2) / 3
    centred = curve - mean[:, None, None] * np.eye(3)
    scale = np.sqrt(np.einsum("nij,nij->n", centred, centred) / 6) + 1e-30
    half = np.linalg.det(centred / scale[:, None, None]) / 2
    angle = np.arccos(np.clip(half, -1, 1)) / 3
    highest = mean + 2 * scale * np.cos(angle)
    lowest = mean + 2 * scale * np.cos(angle + 2 * np.pi / 3)
    middle = 3 * mean - highest - lowest
    other = np.where(np.abs(highest) > np.abs(middle), highest, middle)
    rest = curve - lowest[:, None, None] * np.eye(3)
    crossed = np.stack([np.cross(rest[:, i], rest[:, (i + 1) % 3]) for i in range(3)], axis=1)
    length = np.linalg.norm(crossed, axis=2)
    best = length.argmax(axis=1)
    rows = np.arange(len(curve))
    direction = crossed[rows, best] / (length[rows, best] + 1e-300)[:, None]
    return lowest, other, direction


def _reach(membrane: Membrane, points: np.ndarray, direction: np.ndarray) -> NDArray[np.float32]:
    """Return how far [finest voxels] the mask goes on from points in a direction; NaN beyond reach."""
    level = 0.5 if membrane.field is None else 0.0
    volume = membrane.mask.view(np.uint8) if membrane.field is None else membrane.field
    reach = np.full(len(points), np.nan, np.float32)
    active = np.arange(len(points))
    before = map_coordinates(volume, points.T, np.float32, order=1, mode="nearest")
    for step in np.arange(THICKNESS_STEP, THICKNESS_REACH + THICKNESS_STEP, THICKNESS_STEP):
        places = points[active] + step * direction[active]
        now = map_coordinates(volume, places.T, np.float32, order=1, mode="nearest")
        out = now <= level
        drop = np.maximum(before[out] - now[out], 1e-6)
        part = np.clip((before[out] - level) / drop, 0, 1)
        reach[active[out]] = step - THICKNESS_STEP + part * THICKNESS_STEP
        active, before = active[~out], now[~out]
        if not len(active):
            break
    return reach

"""Sheets of points, and what of a mask belongs to each.

A mask that is as thick as one membrane has one sheet of mid-surface in it. Where membranes touch it is thicker, and
its middle belongs to none. But its skin does: the face of a membrane that looks into a vesicle goes on smoothly
behind the place where another one touches from outside. So sheets are made of points where the mask is thin,
and carried on from there along the skin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from etsam.frame import Frame
from etsam.midsurface import MidSurface

LINK = 2.3
"""How far [finest voxels] a sheet reaches to its next point: over a voxel's corner."""

BEND = 0.77
"""Least cosine between the normals of neighbours in a sheet: 40 degrees over a voxel or two."""

ACROSS = 0.5
"""Largest share of a step between neighbours that goes across the sheet."""

SINGLE = 1.3
"""Thickness of a mask, in that of one membrane, from which there may be two."""

USUAL = 25
"""Percentile of the thickness over all points that is taken for that of one membrane."""

SMALLEST_SHEET = 30
"""Points; a smaller sheet is part of the nearest larger one of its blob."""

SCRAP = 400
"""Points; a smaller sheet that lies along a larger one belongs to it."""

SCRAP_CONTACT = 0.15
"""Least share of a scrap's points that have the larger sheet within reach."""

ONWARD = 0.6
"""Least cosine between the directions two sheets face where they are one."""

MEETING = 12
"""Least number of neighbouring voxels of the skin at which sheets that are one meet so."""

CHUNK = 2_000_000
OPEN = np.int32(np.iinfo(np.int32).min)
SKIN = np.int32(OPEN + 1)
_STEPS = [(z, y, x) for z in (-1, 0, 1) for y in (-1, 0, 1) for x in (-1, 0, 1) if (z, y, x) != (0, 0, 0)]


def link_sheets(
    surface: MidSurface, blob: NDArray[np.integer], reach: NDArray[np.float32], frame: Frame
) -> NDArray[np.int64]:
    """Return the number of each point's sheet from 0, or -1 where the mask is thick or the sheet too small.

    Parameters
    ----------
    surface, blob
        Points of the mid-surface and the connected piece of the mask each lies in, from 1.
    reach
        How far the mask goes on to either side of each point (n, 2) [Å], NaN beyond reach.
    """
    sheets = np.full(len(surface), -1, np.int64)
    thick = reach.sum(axis=1)
    known = np.isfinite(thick)
    if not known.any():
        return sheets
    thin = np.flatnonzero(known & (thick <= SINGLE * np.percentile(thick[known], USUAL)))
    places = surface.points[thin] * np.array(frame.spacing, np.float32)
    pairs = cKDTree(places).query_pairs(LINK * min(frame.spacing), output_type="ndarray").T
    first, second = pairs[:, _same_sheet(places, surface.normals[thin], *pairs)]
    links = coo_matrix((np.ones(len(first), bool), (first, second)), (len(thin), len(thin)))
    sheet = connected_components(links, directed=False)[1]
    number, sheet = _with_scraps(sheet, pairs)
    size = np.bincount(sheet, minlength=number)
    home = np.zeros(number, np.int64)
    home[sheet] = blob[thin]
    largest = np.zeros(int(blob.max()) + 1, np.int64)
    np.maximum.at(largest, home, size)
    keep = size >= np.minimum(SMALLEST_SHEET, largest[home])
    sheets[thin] = np.where(keep, np.cumsum(keep) - 1, -1)[sheet]
    return sheets


def _with_scraps(sheet: NDArray[np.int32], pairs: np.ndarray) -> tuple[int, NDArray[np.int64]]:
    """Join scraps to the larger sheet that most of their points touch; `pairs` (2, n) are near points."""
    size = np.bincount(sheet)
    one, other = sheet[pairs[0]], sheet[pairs[1]]
    point = np.concatenate([pairs[0], pairs[1]])
    scrap, large = np.concatenate([one, other]), np.concatenate([other, one])
    # a scrap's points, each counted once for every larger sheet beside it
    good = (size[scrap] < SCRAP) & (size[large] > size[scrap])
    touches = np.unique(np.stack([scrap[good], large[good], point[good]]), axis=1)
    contacts, count = np.unique(touches[:2], axis=1, return_counts=True)
    joined = count >= SCRAP_CONTACT * size[contacts[0]]
    contacts, count = contacts[:, joined], count[joined]
    best = np.lexsort([-count, contacts[0]])
    scraps, first = np.unique(contacts[0][best], return_index=True)
    every = np.arange(len(size))
    target = every.copy()
    target[scraps] = contacts[1][best][first]
    links = coo_matrix((np.ones(len(size), bool), (every, target)), (len(size), len(size)))
    number, group = connected_components(links, directed=False)
    return int(number), np.asarray(group[sheet], np.int64)


def _same_sheet(
    places: np.ndarray, normals: np.ndarray, first: np.ndarray, second: np.ndarray
) -> NDArray[np.bool_]:
    """Say which pairs of points go on in one sheet."""
    good = np.empty(len(first), bool)
    for start in range(0, len(first), CHUNK):
        a, b = first[start : start + CHUNK], second[start : start + CHUNK]
        step = places[b] - places[a]
        length = np.linalg.norm(step, axis=1)
        across = np.maximum(
            np.abs(np.einsum("ij,ij->i", step, normals[a])),
            np.abs(np.einsum("ij,ij->i", step, normals[b])),
        )
        turn = np.abs(np.einsum("ij,ij->i", normals[a], normals[b]))
        good[start : start + CHUNK] = (turn >= BEND) & (across <= ACROSS * length + 1e-3)
    return good


@dataclass
class _Canvas:
    """A padded volume (Z + 2, Y + 2, X + 2) of codes, flat, and the steps to a voxel's 26 neighbours.

    Codes: 0 outside; `OPEN` and `SKIN` not yet painted; 2 i + side + 1 painted from point i and, on the skin, from the
    side its normal looks to (0) or the other (1); -b a piece b of the mask that has one sheet only.
    """

    codes: NDArray[np.int32]
    steps: list[int]
    nearest: list[int]


def carry_on(
    blobs: NDArray[np.uint32],
    surface: MidSurface,
    sheets: NDArray[np.int64],
    reach: NDArray[np.float32],
    frame: Frame,
) -> None:
    """Give every voxel of a piece of the mask with several sheets to one of them, in place.

    Parameters
    ----------
    blobs
        Connected pieces of the mask from 1 (Z, Y, X); those with several sheets get numbers above.
    surface, sheets, reach
        As `link_sheets` takes and returns them.
    """
    used = np.flatnonzero(sheets >= 0)
    home = blobs[tuple(surface.voxels[used].T)]
    pairs = np.unique(np.stack([home, sheets[used]]), axis=1)
    several = np.zeros(int(blobs.max(initial=0)) + 1, bool)
    counted, count = np.unique(pairs[0], return_counts=True)
    several[counted[count > 1]] = True
    used = used[several[home]]
    if not len(used):
        return
    canvas = _canvas(blobs, several)
    painted = _seeded(canvas, surface, used, reach, frame)
    _spread(canvas, painted, SKIN, canvas.steps)
    places = surface.points * np.array(frame.spacing, np.float32)
    merged = _joined(canvas, places, surface.normals, sheets)
    painted = np.flatnonzero(canvas.codes > 0)
    _fill(canvas, painted)
    names = (merged + several.size).astype(np.uint32)
    whole = canvas.codes.reshape(np.array(blobs.shape) + 2)[1:-1, 1:-1, 1:-1]
    for plane, codes in zip(blobs, whole, strict=True):
        new = codes > 0
        plane[new] = names[(codes[new] - 1) // 2]


def _canvas(blobs: NDArray[np.uint32], several: NDArray[np.bool_]) -> _Canvas:
    """Return a canvas on which the pieces with several sheets are to be painted."""
    shape = np.array(blobs.shape) + 2
    codes = np.zeros(shape, np.int32)
    for z, plane in enumerate(blobs):
        inner = plane > 0
        for other in (blobs[max(z - 1, 0)], blobs[min(z + 1, len(blobs) - 1)]):
            inner &= other > 0
        for axis in (0, 1):
            for side in (-1, 1):
                near = np.roll(plane > 0, side, axis)
                edge = [slice(None), slice(None)]
                edge[axis] = slice(0, 1) if side == 1 else slice(-1, None)
                near[tuple(edge)] = True  # the mask goes on beyond the volume
                inner &= near
        play = several[plane]
        codes[z + 1, 1:-1, 1:-1] = np.where(play, np.where(inner, OPEN, SKIN), -plane.astype(np.int32))
    weights = np.array([shape[1] * shape[2], shape[2], 1])
    steps = [int(np.dot(step, weights)) for step in _STEPS]
    nearest = [int(sign * weight) for weight in weights for sign in (-1, 1)]
    return _Canvas(codes.reshape(-1), steps, nearest)


def _seeded(
    canvas: _Canvas, surface: MidSurface, used: np.ndarray, reach: np.ndarray, frame: Frame
) -> NDArray[np.int64]:
    """Paint the skin to either side of points; returns the flat places that were painted."""
    spacing = np.array(frame.spacing)
    direction = surface.normals[used] / spacing  # voxels per Å
    shape = surface_shape = np.array(frame.shape)
    weights = np.array([(shape[1] + 2) * (shape[2] + 2), shape[2] + 2, 1])
    found = []
    for side, sign in ((0, 1.0), (1, -1.0)):
        for inward in (0.3, 0.7, 1.1):  # finest voxels from where the mask ends
            far = reach[used, side] - inward * spacing.min()
            places = np.rint(surface.points[used] + sign * far[:, None] * direction).astype(np.int64)
            places = np.clip(places, 0, surface_shape - 1) + 1
            flat = places @ weights
            free = canvas.codes[flat] == SKIN
            canvas.codes[flat[free]] = (2 * used[free] + side + 1).astype(np.int32)
            found.append(flat[free])
    return np.unique(np.concatenate(found))


def _spread(canvas: _Canvas, front: NDArray[np.int64], code: np.int32, steps: list[int]) -> None:
    """Paint unpainted voxels of a code from their neighbours, until none is left within reach."""
    while len(front):
        front = _layer(canvas, front, (code,), steps)


def _layer(
    canvas: _Canvas, front: NDArray[np.int64], open_codes: tuple[np.int32, ...], steps: list[int]
) -> NDArray[np.int64]:
    """Paint the unpainted neighbours of a front; returns them."""
    codes, fresh = canvas.codes, []
    for step in steps:
        near = front + step
        free = np.isin(codes[near], open_codes)
        codes[near[free]] = codes[front[free]]
        fresh.append(near[free])
    return np.unique(np.concatenate(fresh))


def _fill(canvas: _Canvas, front: NDArray[np.int64]) -> None:
    """Paint all that is left, layer by layer from what is painted."""
    turn = 0
    while len(front):
        steps = canvas.nearest if turn % 2 == 0 else canvas.steps
        front = _layer(canvas, front, (OPEN, SKIN), steps)
        turn += 1


def _joined(
    canvas: _Canvas, places: np.ndarray, normals: NDArray[np.float32], sheets: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the sheets of points with those made one that go on in each other on the skin."""
    skin = np.flatnonzero(canvas.codes > 0)
    votes = []
    for step in canvas.steps[: len(canvas.steps) // 2]:
        other = canvas.codes[skin + step]
        both = other > 0
        a, b = canvas.codes[skin[both]] - 1, other[both] - 1
        differ = sheets[a // 2] != sheets[b // 2]
        a, b = a[differ], b[differ]
        facing_a = normals[a // 2] * (1 - 2 * (a & 1))[:, None]
        facing_b = normals[b // 2] * (1 - 2 * (b & 1))[:, None]
        onward = np.einsum("ij,ij->i", facing_a, facing_b) > ONWARD
        apart = np.einsum("ij,ij->i", places[b // 2] - places[a // 2], facing_b - facing_a)
        pair = np.sort(np.stack([sheets[a // 2], sheets[b // 2]]), axis=0)
        votes.append(np.vstack([pair, onward | (apart > 0), ~onward & (apart < 0), onward]))
    pair, onward, against = (part for part in _counted(np.concatenate(votes, axis=1).astype(np.int64)))
    one = (onward >= MEETING) & (onward > against)
    count = int(sheets.max()) + 1
    links = coo_matrix((np.ones(int(one.sum()), bool), tuple(pair[:, one])), (count, count))
    group = connected_components(links, directed=False)[1]
    return np.where(sheets >= 0, group[sheets], -1)


def _counted(votes: NDArray[np.int64]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return pairs (2, m) and how many votes each has for and against it."""
    pair, place = np.unique(votes[:2], axis=1, return_inverse=True)
    place = place.ravel()
    size = pair.shape[1]
    return pair, np.bincount(place, votes[2], size), np.bincount(place, votes[3], size)

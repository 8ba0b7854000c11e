"""Sheets of points, and what of a mask belongs to each.

A mask that is as thick as one membrane has one sheet of mid-surface in it. Where membranes touch it is thicker, and
its middle belongs to none. But its skin does: the face of a membrane that looks into a vesicle goes on smoothly
behind the place where another one touches from outside. So sheets are made of points where the mask is thin,
and carried on from there along the skin.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

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

SINGLE = (0.7, 1.3)
"""Thickness of a mask, in that of one membrane: below lies an edge, above may be two membranes."""

USUAL = 25
"""Percentile of the thickness over all points that is taken for that of one membrane."""

OWN_SIDE = 0.65
"""How far from its middle, in thicknesses of one membrane, the skin is that of this membrane."""

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
SKIN_DEPTHS = (0.3, 0.7, 1.1)
"""Where along a normal the skin is looked for, in finest voxels from where the mask ends."""

INSIDE, SKIN = np.int32(-2), np.int32(-1)
_STEPS = sorted(product((-1, 0, 1), repeat=3), key=lambda step: np.abs(step).sum())[1:]


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
    ratio = reach.sum(axis=1) / _usual_thickness(reach)
    thin = np.flatnonzero((ratio >= SINGLE[0]) & (ratio <= SINGLE[1]))  # nan is neither
    if not len(thin):
        return sheets
    places = surface.points[thin] * np.array(frame.spacing, np.float32)
    tree = cKDTree(places, compact_nodes=False, balanced_tree=False)  # even points: quicker so
    pairs = tree.query_pairs(LINK * min(frame.spacing), output_type="ndarray").T
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


def _usual_thickness(reach: NDArray[np.float32]) -> float:
    """Return the thickness of one membrane [Å], NaN where it is known of no point."""
    thick = reach.sum(axis=1)
    known = thick[np.isfinite(thick)]
    return float(np.percentile(known, USUAL)) if len(known) else float("nan")


def _with_scraps(sheet: NDArray[np.int32], pairs: np.ndarray) -> tuple[int, NDArray[np.int64]]:
    """Join scraps to the larger sheet that most of their points touch; `pairs` (2, n) are near points."""
    size = np.bincount(sheet)
    pairs = pairs[:, sheet[pairs[0]] != sheet[pairs[1]]]
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


@dataclass(frozen=True)
class _Canvas:
    """A volume padded by a voxel (Z + 2, Y + 2, X + 2), flat, in which pieces of a mask are painted.

    Codes: 0 not to be painted; `INSIDE` and `SKIN` still to be painted; 2 i + side + 1 painted from point i, on
    the skin from the side its normal looks to (0) or from the other (1). `around` are the steps to the 26
    neighbours, nearest first; `stride` is what a voxel along z, y, x adds.
    """

    codes: NDArray[np.int32]
    stride: NDArray[np.int64]
    around: list[int]


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
        Connected pieces of the mask from 1 (Z, Y, X); what belongs to a sheet gets a number above.
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
    front = _seeded(canvas, surface, used, reach, frame)
    _spread(canvas, front, (SKIN,))
    skin = np.flatnonzero(canvas.codes > 0)
    places = surface.points * np.array(frame.spacing, np.float32)
    names = _going_on(canvas, skin, (places, surface.normals), sheets) + several.size
    _spread(canvas, skin, (SKIN, INSIDE))
    whole = canvas.codes.reshape(np.array(blobs.shape) + 2)[1:-1, 1:-1, 1:-1]
    for plane, codes in zip(blobs, whole, strict=True):
        painted = codes > 0
        plane[painted] = names[(codes[painted] - 1) // 2]


def _canvas(blobs: NDArray[np.uint32], several: NDArray[np.bool_]) -> _Canvas:
    """Return a canvas on which the pieces with several sheets are to be painted.

    At the faces of the volume there is no skin: the mask goes on beyond them.
    """
    shape = np.array(blobs.shape) + 2
    codes = np.zeros(shape, np.int32)
    for z, plane in enumerate(blobs):
        to_paint = several[plane]
        if not to_paint.any():
            continue
        here = np.pad(plane > 0, 1, mode="edge")
        inside = (blobs[max(z - 1, 0)] > 0) & (blobs[min(z + 1, len(blobs) - 1)] > 0)
        inside &= here[:-2, 1:-1] & here[2:, 1:-1] & here[1:-1, :-2] & here[1:-1, 2:]
        codes[z + 1, 1:-1, 1:-1] = np.where(to_paint, np.where(inside, INSIDE, SKIN), np.int32(0))
    stride = np.array([shape[1] * shape[2], shape[2], 1], np.int64)
    around = [int(np.dot(step, stride)) for step in _STEPS]
    return _Canvas(codes.reshape(-1), stride, around)


def _seeded(
    canvas: _Canvas, surface: MidSurface, used: np.ndarray, reach: np.ndarray, frame: Frame
) -> NDArray[np.int64]:
    """Paint the skin where the normals of points go through it; returns the flat places."""
    spacing = np.array(frame.spacing)
    furthest = OWN_SIDE * _usual_thickness(reach)
    found = []
    for side, sign in ((0, 1.0), (1, -1.0)):
        near = used[reach[used, side] <= furthest]
        along = surface.normals[near] / spacing  # voxels per Å
        for depth in SKIN_DEPTHS:
            far = sign * (reach[near, side] - depth * spacing.min())
            places = np.rint(surface.points[near] + far[:, None] * along).astype(np.int64)
            flat = (places.clip(0, np.array(frame.shape) - 1) + 1) @ canvas.stride
            free = canvas.codes[flat] == SKIN
            canvas.codes[flat[free]] = 2 * near[free] + side + 1
            found.append(flat[free])
    return np.unique(np.concatenate(found))


def _spread(canvas: _Canvas, front: NDArray[np.int64], unpainted: tuple[np.int32, ...]) -> None:
    """Paint neighbours of a front without doubles, layer by layer, until none is left."""
    codes = canvas.codes
    while len(front):
        fresh = []
        for step in canvas.around:
            near = front + step
            code = codes[near]
            free = np.logical_or.reduce([code == wanted for wanted in unpainted])
            near = near[free]
            codes[near] = codes[front[free]]
            fresh.append(near)  # painted now, so that no later step finds it again
        front = np.concatenate(fresh)
        front.sort()


def _going_on(
    canvas: _Canvas,
    skin: NDArray[np.int64],
    points: tuple[np.ndarray, np.ndarray],
    sheets: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return the sheets of points, with those made one that go on in each other on the skin.

    Two sheets that meet on the skin are one where both look the same way, or away from each other, as at the rim
    of a flat sac; where they look at each other, as in the crevice between two vesicles, they are not.
    """
    places, normals = points
    votes = []
    for step in (step for step in canvas.around if step > 0):  # each pair once
        code = canvas.codes[skin + step]
        both = code > 0
        a, b = canvas.codes[skin[both]] - 1, code[both] - 1
        differ = sheets[a // 2] != sheets[b // 2]
        a, b = a[differ], b[differ]
        facing = [normals[one // 2] * (1 - 2 * (one & 1))[:, None] for one in (a, b)]
        onward = np.einsum("ij,ij->i", *facing) > ONWARD
        apart = np.einsum("ij,ij->i", places[b // 2] - places[a // 2], facing[1] - facing[0])
        pair = np.sort(np.stack([sheets[a // 2], sheets[b // 2]]), axis=0)
        votes.append(np.vstack([pair, onward | (apart > 0)]))
    found = np.concatenate(votes, axis=1)
    pair, number = np.unique(found[:2], axis=1, return_inverse=True)
    number = number.ravel()
    good = np.bincount(number, found[2], pair.shape[1])
    one = (good >= MEETING) & (2 * good > np.bincount(number, minlength=pair.shape[1]))
    count = int(sheets.max()) + 1
    links = coo_matrix((np.ones(int(one.sum()), bool), tuple(pair[:, one])), (count, count))
    group = connected_components(links, directed=False)[1]
    return np.asarray(group[sheets], np.int64)

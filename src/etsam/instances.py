"""Membranes one by one: touching and parallel ones of a mask are told apart by their mid-surfaces.

Points of the mid-surface are linked to neighbours that go on in the same sheet: normals within
`BEND` of each other, and the step between them along both sheets rather than across. What hangs
together is a membrane; voxels of the mask go to the nearest sheet.
"""

from __future__ import annotations

from dataclasses import dataclass

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from etsam.frame import Frame
from etsam.membrane import Membrane
from etsam.midsurface import MidSurface, mid_surface

MAX_LABEL = 32_767
"""Largest label an int16 volume holds."""

LINK = 2.3
"""How far [finest voxels] a sheet reaches to its next point: over a voxel's corner."""

BEND = 0.77
"""Least cosine between the normals of neighbours in a sheet: 40 degrees over a voxel or two."""

ACROSS = 0.5
"""Largest share of a step between neighbours that goes across the sheet."""

SMALLEST_SHEET = 30
"""Points; a smaller sheet is part of the nearest larger one of its blob."""

SCRAP = 400
"""Points; a smaller sheet that lies along a larger one belongs to it."""

SCRAP_CONTACT = 0.15
"""Least share of a scrap's points that have the larger sheet within reach."""

CHUNK = 2_000_000


@dataclass(frozen=True)
class Instances:
    """Labels int16 (Z, Y, X), 0 outside and 1 for the largest membrane, and their sizes in voxels."""

    labels: NDArray[np.int16]
    voxels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.voxels)


def plain_components(membrane: Membrane, *, min_voxels: int = 0) -> Instances:
    """Label the 26-connected components of a mask, largest first."""
    return _sorted_labels(_blobs(membrane.mask), min_voxels)


def separate_membranes(
    membrane: Membrane, *, min_voxels: int = 0, surface: MidSurface | None = None
) -> Instances:
    """Label each membrane of a mask, touching and parallel ones apart, largest first.

    Parameters
    ----------
    membrane
        Mask; with logits, ridges in them separate what the mask has run together.
    min_voxels
        Smaller membranes are left out (label 0).
    surface
        The mid-surface, where it is known already.
    """
    blobs = _blobs(membrane.mask)
    found = mid_surface(membrane) if surface is None else surface
    blob_of = blobs[tuple(found.voxels.T)]
    sheets = link_sheets(found, blob_of, membrane.frame)
    return _sorted_labels(_nearest_sheet(blobs, found, sheets, membrane.frame), min_voxels)


def link_sheets(surface: MidSurface, blob: NDArray[np.integer], frame: Frame) -> NDArray[np.int64]:
    """Return the number of each point's sheet from 0, or -1 where no sheet is large enough.

    Each blob keeps its largest sheet, however small.
    """
    if not len(surface):
        return np.zeros(0, np.int64)
    places = surface.points * np.array(frame.spacing, np.float32)
    reach = LINK * min(frame.spacing)
    pairs = cKDTree(places).query_pairs(reach, output_type="ndarray").T
    first, second = pairs[:, _same_sheet(places, surface.normals, *pairs)]
    count = len(surface)
    links = coo_matrix((np.ones(len(first), bool), (first, second)), (count, count))
    number, sheet = connected_components(links, directed=False)
    number, sheet = _with_scraps(sheet, pairs)
    size = np.bincount(sheet, minlength=number)
    home = np.zeros(number, np.int64)
    home[sheet] = blob
    largest = np.zeros(int(blob.max()) + 1, np.int64)
    np.maximum.at(largest, home, size)
    keep = size >= np.minimum(SMALLEST_SHEET, largest[home])
    renamed = np.where(keep, np.cumsum(keep) - 1, -1)
    return np.asarray(renamed[sheet], np.int64)


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


def _nearest_sheet(
    blobs: NDArray[np.uint32], surface: MidSurface, sheets: NDArray[np.int64], frame: Frame
) -> NDArray[np.uint32]:
    """Give each voxel of a blob with several sheets to the nearest one; other blobs stay whole."""
    labels = blobs.copy()
    used = sheets >= 0
    home = blobs[tuple(surface.voxels[used].T)]
    pairs = np.unique(np.stack([home, sheets[used]]), axis=1)
    several = np.zeros(int(blobs.max(initial=0)) + 1, bool)
    counted, count = np.unique(pairs[0], return_counts=True)
    several[counted[count > 1]] = True
    chosen = several[home]
    if not chosen.any():
        return labels
    spacing = np.array(frame.spacing, np.float32)
    tree = cKDTree(surface.points[used][chosen] * spacing)
    names = (sheets[used][chosen] + int(blobs.max()) + 1).astype(np.uint32)
    split = several[blobs]
    for z in range(len(blobs)):
        places = np.argwhere(split[z])
        if len(places):
            voxels = np.column_stack([np.full(len(places), z), places]) * spacing
            _, near = tree.query(voxels, workers=-1)
            labels[z][split[z]] = names[near]
    return labels


def _blobs(mask: NDArray[np.bool_]) -> NDArray[np.uint32]:
    return np.asarray(
        cc3d.connected_components(mask, connectivity=26, binary_image=True, out_dtype=np.uint32)
    )


def _sorted_labels(labels: NDArray[np.uint32], min_voxels: int) -> Instances:
    """Number labels by size, at most as many as int16 holds."""
    size = _sizes(labels)
    size[0] = 0
    order = np.argsort(-size, kind="stable")
    order = order[size[order] >= max(1, min_voxels)][:MAX_LABEL]
    names = np.zeros(len(size), np.int16)
    names[order] = np.arange(1, len(order) + 1)
    result = np.empty(labels.shape, np.int16)
    for z, plane in enumerate(labels):
        result[z] = names[plane]
    return Instances(result, size[order])


def _sizes(labels: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Count the voxels of each label, slice by slice."""
    size = np.zeros(int(labels.max(initial=0)) + 1, np.int64)
    for plane in labels:
        names, count = np.unique(plane, return_counts=True)
        size[names] += count
    return size

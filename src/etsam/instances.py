"""Membranes one by one: touching and parallel ones of a mask are told apart by their mid-surfaces.

Where the mask is as thick as one membrane, points of the mid-surface that go on in one sheet are linked, and sheets
are carried on along the skin of the mask over the places where it is thicker, where membranes have run together
(`etsam.sheets`). Voxels inside follow the skin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from etsam.components import label_voxels
from etsam.membrane import MAX_LABEL, Membrane
from etsam.midsurface import MidSurface, mid_surface, reaches
from etsam.sheets import carry_on, link_sheets

MIN_VOXELS = 500
"""Smaller membranes get no label, unless something else is asked for."""


@dataclass(frozen=True)
class Instances:
    """Labels int16 (Z, Y, X), 0 outside; their numbers, rising, and sizes in voxels.

    Numbers begin at 1 for the largest membrane, unless a user's are kept.
    """

    labels: NDArray[np.int16]
    numbers: NDArray[np.int16]
    voxels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.voxels)

    def largest(self, count: int) -> list[int]:
        """Numbers of the largest membranes, the largest first."""
        order = np.argsort(-self.voxels, kind="stable")[:count]
        return [int(number) for number in self.numbers[order]]


def plain_components(membrane: Membrane, *, min_voxels: int = 0) -> Instances:
    """Label the 26-connected components of a mask, largest first."""
    return _sorted_labels(label_voxels(membrane.mask), min_voxels)


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
    blobs = label_voxels(membrane.mask)
    found = mid_surface(membrane) if surface is None else surface
    reach = reaches(membrane, found)
    blob = blobs[tuple(found.voxels.T)]
    sheets = link_sheets(found, blob, reach, membrane.frame)
    carry_on(blobs, found, sheets, reach, membrane.frame)
    return _sorted_labels(blobs, min_voxels)


def kept_labels(membrane: Membrane, *, min_voxels: int = 0) -> Instances:
    """Take the numbers that a mask's file holds as they are.

    Raises
    ------
    ValueError
        The mask was read without them.
    """
    if membrane.numbers is None:
        raise ValueError("the mask was read without its numbers: load_membrane(..., numbers=True)")
    size = _sizes(membrane.numbers)
    size[0] = 0
    numbers = np.flatnonzero(size >= max(1, min_voxels))
    labels = membrane.numbers
    if len(numbers) < np.count_nonzero(size):
        labels = np.where(np.isin(labels, numbers), labels, np.int16(0))
    return Instances(labels, numbers.astype(np.int16), size[numbers])


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
    return Instances(result, np.arange(1, len(order) + 1, dtype=np.int16), size[order])


def _sizes(labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """Count the voxels of each label, slice by slice."""
    size = np.zeros(int(labels.max(initial=0)) + 1, np.int64)
    for plane in labels:
        names, count = np.unique(plane, return_counts=True)
        size[names] += count
    return size

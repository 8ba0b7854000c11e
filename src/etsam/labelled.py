"""Mid-surfaces of labels that may touch, each on its own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from etsam.frame import Frame
from etsam.instances import Instances
from etsam.membrane import Membrane
from etsam.midsurface import MidSurface, joined, mid_surface, thickness

ROOM = 16
"""Voxels around a label that its blur and its thickness look at."""


def label_masks(
    instances: Instances, frame: Frame
) -> Iterator[tuple[int, NDArray[np.int64], Membrane]]:
    """Each label's number, the first voxel (zyx) of a box with room around it, and its mask in this box."""
    labels = instances.labels
    for number, found in enumerate(find_objects(labels), 1):
        if found is not None:
            box = tuple(
                slice(max(0, side.start - ROOM), min(n, side.stop + ROOM))
                for side, n in zip(found, labels.shape, strict=True)
            )
            mask = labels[box] == number
            first = np.array([side.start for side in box])
            yield number, first, Membrane(mask, None, Frame(mask.shape, frame.spacing))


def label_surface(instances: Instances, frame: Frame) -> MidSurface:
    """The mid-surfaces of all labels, each found as if the others were not there."""
    parts = []
    for _, first, membrane in label_masks(instances, frame):
        part = mid_surface(membrane)
        part.voxels[:] += first.astype(np.int32)
        part.points[:] += first.astype(np.float32)
        parts.append(part)
    return joined(parts)


def label_thickness(instances: Instances, frame: Frame, surface: MidSurface) -> NDArray[np.float32]:
    """How thick its own label is at each point of a `label_surface` [Å]; NaN beyond reach."""
    named = instances.labels[tuple(surface.voxels.T)]
    found = np.full(len(surface), np.nan, np.float32)
    for number, first, membrane in label_masks(instances, frame):
        chosen = named == number
        part = surface.take(chosen)
        part.points[:] -= first.astype(np.float32)
        found[chosen] = thickness(membrane, part)
    return found

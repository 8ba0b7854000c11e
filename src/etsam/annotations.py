"""Cleaning of annotations, read slice by slice and kept packed: what people do before they train.

In this order: which values are membrane, several annotations joined, everything outside a region left
out, holes filled, surfaces smoothed, components kept or dropped. What is -1 (not annotated) stays -1.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter

from etsam.components import Blobs, PackedMask, blob_hits, find_blobs, select_blobs
from etsam.metrics import IGNORE
from etsam.volume import Tomogram

Progress = Callable[[str, int, int], None]
Box = tuple[slice, slice, slice]

NARROWEST = 0.1  # voxels; a narrower Gaussian changes nothing
REACH = 3.0  # standard deviations of the Gaussian that smooths
HALF = 0.5
HOLE_SLAB_VOXELS = 8_000_000  # looked at together; outside membranes nearly every voxel counts
LABELS_APART = 1 << 24  # volumes are read as float32, which tells whole numbers apart up to here
MOST_NUMBERS = 32_767  # components that an int16 volume can number


@dataclass(frozen=True)
class CleaningOptions:
    """Choices for cleaning; the defaults change nothing.

    Attributes
    ----------
    values
        Labels that are membrane; empty: all above 0.
    box
        Slices zyx outside which nothing counts.
    outside
        What becomes of what is outside the region: 0, or -1 (not annotated).
    fill
        Largest hole to fill, in voxels; a hole is enclosed on all sides.
    smooth
        Standard deviation of a Gaussian, in voxels; the mask is where it stays above one half.
    min_voxels
        Smaller components (26-connected) are dropped.
    keep, drop
        Components by number, 1 the largest, as counted before any is dropped.
    """

    values: tuple[int, ...] = ()
    box: Box | None = None
    outside: Literal["background", "ignore"] = "background"
    fill: int = 0
    smooth: float = 0.0
    min_voxels: int = 0
    keep: tuple[int, ...] = ()
    drop: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("fill", "smooth", "min_voxels"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: expected 0 (off) or more")
        if 0 < self.smooth < NARROWEST:
            raise ValueError(f"smooth is {self.smooth}: expected 0 (off), or {NARROWEST} or more")
        if not all(1 <= value < LABELS_APART for value in self.values):
            raise ValueError(
                f"values are {self.values}: expected membrane labels from 1 to {LABELS_APART - 1}, "
                "beyond which float32 does not tell them apart"
            )
        if self.keep and self.drop:
            raise ValueError("keep leaves only some components, drop leaves out some: give one")


@dataclass(frozen=True)
class Component:
    """A connected part of an annotation; slices are its first and last."""

    number: int
    voxels: int
    slices: tuple[int, int]
    kept: bool


@dataclass(frozen=True)
class Cleaned:
    """A clean annotation: labels by `slices`, and what was found in it.

    ``filled`` are the voxels of filled holes, ``smoothed`` those that smoothing changed,
    ``left_out`` those of membranes outside the region; ``rank`` is the place of each blob among
    the components.
    """

    components: tuple[Component, ...]
    voxels_before: int
    voxels_after: int
    left_out: int
    filled: int
    smoothed: int
    mask: PackedMask
    ignored: PackedMask
    blobs: Blobs
    rank: NDArray[np.int64]

    def slices(self) -> Iterator[tuple[int, NDArray[np.int8]]]:
        """Yield (z, labels): 1 membrane, 0 not, -1 not annotated."""
        kept = np.array([component.kept for component in self.components], bool)
        for z, plane in select_blobs(self.mask, self.blobs, kept[self.rank]):
            labels = plane.astype(np.int8)
            labels[self.ignored.read(z, z + 1)[0]] = IGNORE
            yield z, labels

    def numbers(self) -> Iterator[tuple[int, NDArray[np.int16]]]:
        """Yield (z, number of the component of each voxel), the largest 32,767."""
        numbers = np.arange(1, len(self.components) + 1)
        numbers[MOST_NUMBERS:] = 0
        return select_blobs(self.mask, self.blobs, numbers.astype(np.int16)[self.rank])


def clean_annotation(
    annotations: Sequence[Tomogram],
    options: CleaningOptions,
    *,
    limit: Tomogram | None = None,
    progress: Progress | None = None,
) -> Cleaned:
    """Join annotations of one tomogram and clean them.

    A voxel is membrane where one of them says so; else not annotated where one says so. ``limit``
    is a region: where it is above 0 annotations count.

    Raises
    ------
    ValueError
        Shapes differ, labels are no whole numbers from -1 on, the box leaves nothing, or a
        component's number is not there.

    Warns
    -----
    UserWarning
        No voxel has one of the labels in ``values``.
    """
    mask, ignored, before, left_out = _joined(annotations, options, limit, progress)
    filled = smoothed = 0
    if options.fill:
        mask, filled = fill_holes(mask, ignored, options.fill)
    if options.smooth:
        mask, smoothed = smooth_mask(mask, ignored, options.smooth)
    blobs = find_blobs(mask)
    sizes, _ = blob_hits(mask, blobs, mask)
    order = _by_size(sizes)
    _check_numbers(len(order), options)
    components = tuple(
        Component(
            number,
            int(sizes[blob]),
            (int(blobs.first[blob]), int(blobs.last[blob])),
            _is_kept(number, int(sizes[blob]), options),
        )
        for number, blob in enumerate(order, 1)
    )
    after = sum(component.voxels for component in components if component.kept)
    return Cleaned(
        components,
        before,
        after,
        left_out,
        filled,
        smoothed,
        mask,
        ignored,
        blobs,
        np.argsort(order),
    )


def fill_holes(mask: PackedMask, ignored: PackedMask, largest: int) -> tuple[PackedMask, int]:
    """Fill holes of at most ``largest`` voxels that are enclosed on all sides.

    Holes meet at faces (6-connected), so that a wall of voxels that meet at edges encloses them;
    what reaches a face of the volume, or of what is not annotated, is no hole.

    Returns
    -------
    tuple
        The filled mask, and how many voxels were filled.
    """
    outside, faces = PackedMask(mask.slice_shape), PackedMask(mask.slice_shape)
    depth = len(mask)
    edge = np.ones(mask.slice_shape, bool)
    edge[1:-1, 1:-1] = False
    for z in range(depth):
        outside.append(~mask.read(z, z + 1)[0] & ~ignored.read(z, z + 1)[0])
        faces.append(np.ones_like(edge) if z in (0, depth - 1) else edge | _beside(ignored, z))
    slab = max(2, HOLE_SLAB_VOXELS // edge.size)
    blobs = find_blobs(outside, slab=slab, connectivity=6)
    sizes, at_faces = blob_hits(outside, blobs, faces)
    holes = (sizes <= largest) & (at_faces == 0)
    result, filled = PackedMask(mask.slice_shape), 0
    for z, plane in select_blobs(outside, blobs, holes):
        filled += int(np.count_nonzero(plane))
        result.append(mask.read(z, z + 1)[0] | plane)
    return result, filled


def _beside(mask: PackedMask, z: int) -> NDArray[np.bool_]:
    """Voxels of a slice inside the volume that share a face with one of the mask."""
    before, own, after = mask.read(z - 1, z + 2)
    near: NDArray[np.bool_] = binary_dilation(own) | before | after
    return near


def smooth_mask(mask: PackedMask, ignored: PackedMask, sigma: float) -> tuple[PackedMask, int]:
    """Smooth a mask with a Gaussian (voxels), cut off at 3 sigma, and cut it at one half.

    What is not annotated counts neither as membrane nor as background, and is no part of the result.
    Sheets thinner than about 1.35 sigma vanish.

    Returns
    -------
    tuple
        The smooth mask, and how many voxels changed.
    """
    result, changed = PackedMask(mask.slice_shape), 0
    both = zip(_blurred(mask, sigma), _blurred(ignored, sigma), strict=True)
    for z, (member, hidden) in enumerate(both):
        known = (1 - hidden).clip(0)  # exactly 1 far from what is not annotated
        smooth = (member > HALF * known) & ~ignored.read(z, z + 1)[0]
        changed += int(np.count_nonzero(smooth != mask.read(z, z + 1)[0]))
        result.append(smooth)
    return result, changed


def _blurred(mask: PackedMask, sigma: float) -> Iterator[NDArray[np.float32]]:
    """Yield each slice of a mask under a Gaussian, the volume continued by its outer voxels."""
    reach = math.ceil(REACH * sigma)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    depth = len(mask)
    blurred: dict[int, NDArray[np.float32] | None] = {}  # None: an empty slice
    for z in range(depth):
        blurred.pop(z - reach - 1, None)
        total = np.zeros(mask.slice_shape, np.float32)
        for step, weight in zip(range(-reach, reach + 1), weights, strict=True):
            near = min(max(z + step, 0), depth - 1)
            if near not in blurred:
                blurred[near] = _blur(mask.read(near, near + 1)[0], sigma)
            plane = blurred[near]
            if plane is not None:
                total += np.float32(weight) * plane
        yield total


def _blur(plane: NDArray[np.bool_], sigma: float) -> NDArray[np.float32] | None:
    if not plane.any():
        return None
    return np.asarray(
        gaussian_filter(plane.astype(np.float32), sigma, mode="nearest", truncate=REACH)
    )


def _joined(
    annotations: Sequence[Tomogram],
    options: CleaningOptions,
    limit: Tomogram | None,
    progress: Progress | None,
) -> tuple[PackedMask, PackedMask, int, int]:
    """Read annotations as one mask; returns also voxels before, and those left out by the region."""
    shape = annotations[0].shape
    for volume in (*annotations, *([limit] if limit is not None else [])):
        if volume.shape != shape:
            raise ValueError(
                f"{volume.path} has shape {volume.shape}, {annotations[0].path} has {shape}: they "
                "must lie on one grid"
            )
    _check_box(shape, options.box)
    mask, ignored = PackedMask(shape[1:]), PackedMask(shape[1:])
    before = left_out = 0
    unseen = set(options.values)
    for z in range(shape[0]):
        member, unknown = np.zeros(shape[1:], bool), np.zeros(shape[1:], bool)
        for volume in annotations:
            labels = volume.read_slice(z)
            _check_labels(labels, volume, z)
            member |= np.isin(labels, options.values) if options.values else labels > 0
            unknown |= labels == IGNORE
            unseen -= {value for value in unseen if (labels == value).any()}
        unknown &= ~member
        before += int(np.count_nonzero(member))
        region = _region(z, shape, options, limit)
        if region is not None:
            left_out += int(np.count_nonzero(member & ~region))
            member &= region
            unknown = unknown if options.outside == "background" else unknown | ~region
        mask.append(member)
        ignored.append(unknown)
        if progress is not None:
            progress("read", z + 1, shape[0])
    if unseen:
        listed = " and ".join(str(volume.path) for volume in annotations)
        wanted = " or ".join(map(str, sorted(unseen)))
        warnings.warn(f"no voxel of {listed} is labelled {wanted}, as asked for", stacklevel=3)
    return mask, ignored, before, left_out


def _region(
    z: int, shape: tuple[int, int, int], options: CleaningOptions, limit: Tomogram | None
) -> NDArray[np.bool_] | None:
    """Where annotations count in a slice; None: everywhere."""
    region = None if limit is None else limit.read_slice(z) > 0
    if limit is not None and limit.replaced_voxels:
        raise ValueError(f"{limit.path} is no region: slice {z} holds voxels that are no numbers")
    if options.box is None:
        return region
    inside = np.zeros(shape[1:], bool)
    if z in range(shape[0])[options.box[0]]:
        inside[options.box[1:]] = True
    return inside if region is None else inside & region


def _check_box(shape: tuple[int, int, int], box: Box | None) -> None:
    if box is not None and not all(range(n)[side] for n, side in zip(shape, box, strict=True)):
        ends = [("" if end is None else str(end) for end in (s.start, s.stop)) for s in box]
        raise ValueError(
            f"the box {','.join(map(':'.join, ends))} leaves nothing of {' x '.join(map(str, shape))} voxels: "
            "expected Z:Z,Y:Y,X:X, each from a smaller to a larger number inside"
        )


def _check_labels(labels: NDArray[np.float32], volume: Tomogram, z: int) -> None:
    if volume.replaced_voxels:
        raise ValueError(
            f"{volume.path} is no annotation: slice {z} holds voxels that are no numbers, expected "
            "whole ones: 0, labels from 1 on, and -1 (not annotated)"
        )
    if labels.min() < IGNORE or not np.array_equal(labels, np.rint(labels)):
        raise ValueError(
            f"{volume.path} is no annotation: slice {z} holds {labels.min():g} to "
            f"{labels.max():g}, expected whole numbers: 0, labels from 1 on, and -1 (not annotated)"
        )


def _by_size(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Blobs, the largest first; of equal ones the first found."""
    return np.argsort(-sizes, kind="stable")


def _check_numbers(count: int, options: CleaningOptions) -> None:
    wrong = [number for number in (*options.keep, *options.drop) if not 1 <= number <= count]
    if wrong:
        raise ValueError(f"no component {wrong[0]}: there are {count}, 1 the largest")


def _is_kept(number: int, voxels: int, options: CleaningOptions) -> bool:
    listed = number in options.keep if options.keep else number not in options.drop
    return listed and voxels >= options.min_voxels

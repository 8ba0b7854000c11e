"""What a report says of a segmentation: sizes in physical units, and what a reader should look at twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etsam.instances import Instances, plain_components, separate_membranes
from etsam.membrane import LOGIT_STEP, Membrane
from etsam.meshes import Mesh, surface_mesh
from etsam.midsurface import MidSurface, mid_surface, thickness
from etsam.options import LOGIT_THRESHOLD, MIN_SLICES
from etsam.record import what_to_try
from etsam.volume import Tomogram

PAGE_FACES = 120_000
LISTED = 10  # membranes in the table
SMALL_VOXELS = 500
BORDER = 2  # voxels
END_SHARE = 0.05  # of the slices, at the top and at the bottom
EVERY = 4  # slices between those whose grey values are looked at


@dataclass(frozen=True)
class Flag:
    """Something to look at: a short name, what was found, and what may help; `level` is info or warn."""

    name: str
    level: str
    text: str


@dataclass(frozen=True)
class Measured:
    """Everything computed for a page. `rows` are label and value; `membranes` the largest ones."""

    rows: dict[str, Any]
    membranes: list[dict[str, Any]]
    flags: list[Flag]
    mesh: Mesh | None
    instances: Instances
    vertex_membranes: NDArray[np.int16] = field(default_factory=lambda: np.zeros(0, np.int16))


def measure(
    membrane: Membrane, tomogram: Tomogram, parameters: Mapping[str, Any] | None = None
) -> Measured:
    """Measure a segmentation; an empty one has a flag and no mesh.

    `parameters` are those it was made with, as far as they are known; what was tried is not advised.
    """
    known = parameters or {}
    polarity, level = known.get("polarity"), known.get("logit_threshold")
    if not membrane.mask.any():
        level = LOGIT_THRESHOLD if level is None else level
        tries = what_to_try(level, polarity, spacing=known.get("voxel_spacing") is None)
        text = f"No voxel is above the threshold: {tries}."
        nothing = np.zeros(0, np.int16)
        none = Instances(np.zeros(membrane.mask.shape, np.int16), nothing, nothing.astype(np.int64))
        return Measured({"membrane_volume_um3": 0.0}, [], [Flag("empty", "warn", text)], None, none)
    surface = mid_surface(membrane)
    instances = separate_membranes(membrane, surface=surface)
    plain = plain_components(membrane)
    mesh, reason = _mesh(membrane)
    local = thickness(membrane, surface) / 10
    greys = _grey_levels(tomogram, instances)
    voxels = int(np.count_nonzero(membrane.mask))
    volume = voxels * membrane.frame.voxel_volume
    area = None if mesh is None else mesh.area / 2
    found = local[np.isfinite(local)]
    rows: dict[str, Any] = {
        "membrane_volume_um3": volume / 1e12,
        "membrane_area_um2": None if area is None else area / 1e8,
        "share_of_volume": voxels / membrane.mask.size,
        "membranes": int(np.count_nonzero(instances.voxels >= SMALL_VOXELS)),
        "connected_components": len(plain),
        "thickness_nm": float(np.median(found)) if found.size else None,
        "thickness_p5_p95_nm": np.percentile(found, [5, 95]).tolist() if found.size else None,
    }
    flags = _flags(membrane, plain, local)
    flags += _grey_flags(greys, is_bright=polarity == "bright")
    if mesh is None:
        flags.append(Flag("no surface", "info", f"No 3-D view, and no area: {reason}."))
    return Measured(
        rows,
        _largest(instances, surface, local, area),
        flags,
        mesh,
        instances,
        _colours(mesh, membrane, surface, instances),
    )


def _mesh(membrane: Membrane) -> tuple[Mesh | None, str]:
    """Return the surface for the page, or why there is none: a mask too thin for one, a library not installed."""
    try:
        return surface_mesh(membrane, max_faces=PAGE_FACES), ""
    except ValueError as error:
        return None, str(error).partition(";")[0]


def _largest(
    instances: Instances, surface: MidSurface, local: np.ndarray, area: float | None
) -> list[dict[str, Any]]:
    """Describe the largest membranes; area is shared out by points of the mid-surface."""
    names = instances.labels[tuple(surface.voxels.T)]
    points = np.bincount(names[names > 0], minlength=len(instances) + 1)
    result = []
    large = int(np.count_nonzero(instances.voxels >= SMALL_VOXELS))
    for number in range(1, min(LISTED, large) + 1):
        own = local[names == number]
        own = own[np.isfinite(own)]
        slices = np.flatnonzero((instances.labels == number).any(axis=(1, 2)))
        share = float(points[number]) / max(1, int(points.sum()))
        result.append(
            {
                "label": number,
                "voxels": int(instances.voxels[number - 1]),
                "area_um2": None if area is None else area / 1e8 * share,
                "thickness_nm": float(np.median(own)) if own.size else None,
                "slices": [int(slices[0]), int(slices[-1])],
            }
        )
    return result


def _grey_levels(tomogram: Tomogram, instances: Instances) -> tuple[np.ndarray, np.ndarray, float]:
    """Return each label's sum and number of grey values in some slices (0: no membrane), and their spread."""
    count = len(instances) + 1
    total, number, square = np.zeros(count), np.zeros(count), 0.0
    for z in range(0, tomogram.shape[0], EVERY):
        data = tomogram.read_slice(z).astype(np.float64).ravel()
        names = instances.labels[z].ravel()
        total += np.bincount(names, data, count)
        number += np.bincount(names, minlength=count)
        square += float(np.square(data).sum())
    voxels = number.sum()
    spread = float(np.sqrt(max(square / voxels - (total.sum() / voxels) ** 2, 0.0)))
    return total, number, spread


def _flags(membrane: Membrane, plain: Instances, local: np.ndarray) -> list[Flag]:
    """Collect what a reader should look at, but for grey values."""
    found = _place_flags(membrane, plain)
    voxels = int(plain.voxels.sum())
    small = plain.voxels[plain.voxels < SMALL_VOXELS]
    if len(small) > 50 or small.sum() > 0.1 * voxels:
        least = min(MIN_SLICES, len(membrane.mask))
        text = (
            f"{len(small)} specks of fewer than {SMALL_VOXELS} voxels hold {small.sum() / voxels:.0%} "
            f"of the mask: etsam postprocess drops those over fewer than {least} slices."
        )
        found.append(Flag("noisy", "warn", text))
    if voxels < 1e-4 * membrane.mask.size:
        text = "Less than 1 voxel in 10,000 is membrane: compare with a lower threshold."
        found.append(Flag("nearly empty", "warn", text))
    if membrane.field is not None:
        unsure = np.count_nonzero(np.abs(membrane.field) <= round(0.5 / LOGIT_STEP))
        if unsure > 0.5 * voxels:
            text = (
                f"{unsure:,} voxels lie within 0.5 of the threshold: move it and see what changes."
            )
            found.append(Flag("unsure", "info", text))
    typical = np.nanmedian(local) if np.isfinite(local).any() else 0.0
    thick = float(np.mean(~(local <= 2 * typical))) if local.size else 0.0
    if thick > 0.1:
        text = (
            f"{thick:.0%} of the surface is more than twice as thick as the rest: ice, carbon or "
            "membranes run together look like that."
        )
        found.append(Flag("ice or carbon", "warn", text))
    return found


def _place_flags(membrane: Membrane, plain: Instances) -> list[Flag]:
    """Flag what touches the sides, the top or the bottom of the volume."""
    labels, found = plain.labels, []
    edge = [
        labels[:, :BORDER],
        labels[:, -BORDER:],
        labels[:, :, :BORDER],
        labels[:, :, -BORDER:],
    ]
    touching = np.unique(np.concatenate([np.unique(part) for part in edge]))
    cut = int(np.count_nonzero(plain.voxels[touching[touching > 0] - 1] >= SMALL_VOXELS))
    if cut:
        text = f"Cut by the sides of the volume, so that areas are partial: {cut} of the membranes."
        found.append(Flag("touches border", "info", text))
    area = np.array([np.count_nonzero(plane) for plane in membrane.mask], float)
    end = max(1, round(END_SHARE * len(area)))
    for name, part in (("bottom", area[:end]), ("top", area[-end:])):
        if len(area) > 4 * end and part.mean() > 1.5 * area.mean():
            text = f"The {name} {end} slices hold more membrane than the rest: often an artefact."
            found.append(Flag(f"{name} of volume", "warn", text))
    return found


def _grey_flags(greys: tuple[np.ndarray, np.ndarray, float], *, is_bright: bool) -> list[Flag]:
    """Flag bright membranes, unless such were looked for, and single ones much darker than the rest."""
    total, number, spread = greys
    if number[0] == 0 or number[1:].sum() == 0 or spread == 0:
        return []
    outside = total[0] / number[0]
    contrast = (total[1:].sum() / number[1:].sum() - outside) / spread
    found = []
    if contrast > 0.05 and not is_bright:
        text = (
            "Membranes are brighter than what surrounds them: try etsam segment --polarity bright."
        )
        found.append(Flag("bright membranes", "warn", text))
    seen = number[1:] >= SMALL_VOXELS / EVERY
    own = (total[1:][seen] / number[1:][seen] - outside) / spread
    dark = int(np.count_nonzero(own < min(3 * contrast, -2.0)))
    if dark:
        text = f"Much darker than the others: {dark} of the membranes. Gold, ice or a carbon edge?"
        found.append(Flag("ice or carbon", "warn", text))
    return found


def _colours(
    mesh: Mesh | None, membrane: Membrane, surface: MidSurface, instances: Instances
) -> NDArray[np.int16]:
    """Return the membrane nearest to each vertex."""
    if mesh is None or not len(surface):
        return np.zeros(0 if mesh is None else len(mesh.vertices), np.int16)
    from scipy.spatial import cKDTree

    names = instances.labels[tuple(surface.voxels.T)]
    step = max(1, len(names) // 400_000)
    tree = cKDTree(membrane.frame.to_angstrom(surface.points[::step]))
    _, near = tree.query(mesh.vertices)
    return np.asarray(names[::step][near], np.int16)

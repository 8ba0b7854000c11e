"""Oriented points on membranes as a STAR file in RELION's conventions.

RELION turns a reference by the matrix of (rot, tilt, psi) into the tomogram, so that its z axis comes to lie along
(-sin tilt cos psi, sin tilt sin psi, cos tilt), here the membrane's normal. Turning about the normal is left open:
rot is 0, and the priors hold tilt and psi.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from etsam.frame import Frame
from etsam.midsurface import MidSurface, turned

SPACING = 100.0
"""Default side of the cubes that hold a point each [Å]."""

CLOSEST = 0.4
"""Least distance of two points of a membrane, in parts of the spacing."""

NOT_IN_STAR = re.compile(
    r"""^$|^[_$;\[\]]|^(data|loop|save|stop|global)_|[#'"\x00-\x1f\x7f]""", re.I
)
"""What a STAR file takes for something else than a value (Hall, Allen and Brown, Acta Cryst. A47 (1991) 655)."""


@dataclass(frozen=True)
class OrientedPoints:
    """Points zyx in voxels, unit normals zyx in Å space, and the membrane each lies on, from 1."""

    points: NDArray[np.float32]
    normals: NDArray[np.float32]
    membranes: NDArray[np.int64]


def oriented_points(
    surface: MidSurface, membranes: NDArray[np.integer], frame: Frame, spacing: float = SPACING
) -> OrientedPoints:
    """Thin a mid-surface to a point in each cube of `spacing` Å, normals to one side of each membrane.

    Parameters
    ----------
    surface
        Points of the mid-surface.
    membranes
        Label of each point (n,); points with label 0 are left out.
    frame
        Where the volume lies.
    spacing
        Side of the cubes [Å]; neighbours are mostly 0.6 to 0.7 times as far apart.

    Raises
    ------
    ValueError
        If the spacing is smaller than a voxel.
    """
    check_point_spacing(spacing, frame)
    inside = membranes > 0
    surface, membranes = surface.take(inside), membranes[inside]
    places = surface.points * np.array(frame.spacing, np.float32)
    normals = turned(places, surface.normals, membranes)
    chosen = _thinned(places, membranes, spacing)
    return OrientedPoints(
        surface.points[chosen], normals[chosen], membranes[chosen].astype(np.int64)
    )


def check_point_spacing(spacing: float, frame: Frame) -> None:
    """Refuse a spacing between points [Å] that is smaller than a voxel, also one that is no number.

    Raises
    ------
    ValueError
        If it is.
    """
    least = min(frame.spacing)
    if not spacing >= least:
        raise ValueError(
            f"a spacing of {spacing:g} Å between points: expected at least a voxel, {least:g} Å"
        )


def check_star_name(tomogram: str) -> None:
    """Refuse a tomogram's name that cannot stand in a STAR file; another would not be found again.

    Raises
    ------
    ValueError
        If it cannot.
    """
    if NOT_IN_STAR.search(tomogram):
        raise ValueError(
            f"a tomogram called {tomogram!r} cannot stand in a STAR file (quotes, #, line breaks, or a "
            "start such as _ or data_): rename the mask, or give --tomogram with another name"
        )


def _thinned(
    places: NDArray[np.float32], membranes: NDArray[np.integer], spacing: float
) -> NDArray[np.int64]:
    """Return, of each membrane in each cube of a grid, the point nearest to their mean.

    Of two that are closer than `CLOSEST` the second is left out.
    """
    cells = np.column_stack([np.floor(places / spacing).astype(np.int64), membranes])
    _, cell = np.unique(cells, axis=0, return_inverse=True)
    cell = cell.ravel()
    count = np.bincount(cell)
    mean = np.stack([np.bincount(cell, places[:, axis]) / count for axis in range(3)], axis=1)
    away = np.linalg.norm(places - mean[cell], axis=1)
    order = np.lexsort([away, cell])
    chosen = np.asarray(order[np.searchsorted(cell[order], np.arange(len(count)))])
    close = cKDTree(places[chosen]).query_pairs(CLOSEST * spacing, output_type="ndarray")
    kept = np.ones(len(chosen), bool)
    for first, second in close[np.lexsort(close.T[::-1])]:
        if kept[first] and membranes[chosen[first]] == membranes[chosen[second]]:
            kept[second] = False
    return chosen[kept]


def write_mid_surface(
    path: Path,
    surface: MidSurface,
    membranes: NDArray[np.integer],
    thickness: NDArray[np.floating],
    frame: Frame,
) -> None:
    """Write a table of all points of the mid-surface: place and normal xyz, thickness, membrane.

    Places are in Å with the MRC origin, thickness in nm (nan where it is not known), membranes labels from 1.
    """
    places = surface.points * np.array(frame.spacing, np.float32)
    normals = turned(places, surface.normals, membranes)[:, ::-1]
    table = np.column_stack([frame.to_angstrom(surface.points), normals, thickness / 10, membranes])
    header = "x_A,y_A,z_A,normal_x,normal_y,normal_z,thickness_nm,label"
    formats = ["%.2f"] * 3 + ["%.4f"] * 3 + ["%.2f", "%d"]
    np.savetxt(path, table, formats, delimiter=",", header=header, comments="")


def relion_angles(normals: NDArray[np.floating]) -> tuple[np.ndarray, np.ndarray]:
    """Return tilt and psi [degrees] that bring the z axis onto normals (n, 3) zyx."""
    z, y, x = normals.astype(np.float64).T
    tilt = np.degrees(np.arctan2(np.hypot(x, y), z))
    psi = np.degrees(np.arctan2(y, -x))
    return tilt, np.where(np.hypot(x, y) > 0, psi, 0.0)


def write_star(path: Path, points: OrientedPoints, frame: Frame, tomogram: str) -> None:
    """Write points for RELION 4 (voxels) and 5 (Å from the tomogram's centre).

    Both count from the tomogram's first voxel, as RELION knows no MRC origin; its centre is half the number of
    voxels, also of an odd one (`ParticleSet::getParticleCoordDecenteredPixel`, RELION 5).

    Raises
    ------
    ValueError
        If starfile is not there, or the tomogram's name cannot stand in a STAR file.
    """
    check_star_name(tomogram)
    try:
        import pandas as pd
        import starfile
    except ImportError as error:
        raise ValueError('writing STAR needs starfile: pip install "etsam[export]"') from error
    tilt, psi = relion_angles(points.normals)
    columns: dict[str, object] = {"rlnTomoName": [tomogram] * len(points.points)}
    centred = (points.points - np.array(frame.shape) / 2) * np.array(frame.spacing)
    for axis, name in enumerate("ZYX"):
        columns[f"rlnCoordinate{name}"] = points.points[:, axis].round(3)
        columns[f"rlnCenteredCoordinate{name}Angst"] = centred[:, axis].round(3)
    columns |= {
        "rlnAngleRot": np.zeros(len(tilt)),
        "rlnAngleTilt": tilt.round(3),
        "rlnAnglePsi": psi.round(3),
        "rlnAngleTiltPrior": tilt.round(3),
        "rlnAnglePsiPrior": psi.round(3),
        "rlnTomoManifoldIndex": points.membranes,
        "rlnPixelSize": np.full(len(tilt), frame.spacing[2]),
    }
    starfile.write({"particles": pd.DataFrame(columns)}, path)

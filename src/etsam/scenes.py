"""Surfaces of ground truth and of each method's mask side by side in 3-D, right and wrong in colour.

Drawn by matplotlib without a display: shaded triangles, seen in parallel projection. In a method's
panel its own surface is sky blue where the truth is near and vermilion where it is not; surface of the
truth that no predicted membrane is near is yellow.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from etsam.drawing import round_length, shortened, style
from etsam.frame import Frame
from etsam.membrane import LOGIT_STEP, Membrane
from etsam.meshes import Mesh, surface_mesh
from etsam.metrics import IGNORE
from etsam.overlay import Reference, check_grids
from etsam.panels import EXTRA, FOUND, MISSED, Masks, difference_legend
from etsam.volume import Tomogram

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 256  # voxels of the longest side that are left after binning
LEVEL = 0.4  # of `_binned` at the surface
THICKENED = 1.6  # times by which binned voxels count as fuller, so that thin walls stay
FACES = 120_000  # triangles of a surface
TOLERANCE = (
    2.0  # nm within which surfaces agree, as in `etsam evaluate`; at least 1.5 binned voxels
)
TRUE = "#A0A0A0"
PANEL = 2.2  # inches
LETTERS = 36  # that stand above a panel
AMBIENT, DIFFUSE = 0.35, 0.7
FOG = 0.35  # share of white mixed into what is farthest
LIGHT = (-0.4, 0.5, 0.75)  # right, up, towards the viewer


@dataclass(frozen=True)
class View:
    """Where the viewer stands [degrees], and whether what lies in front of the middle is cut away."""

    elevation: float = 30.0
    azimuth: float = -60.0
    cutaway: bool = False

    def axes(self) -> NDArray[np.float64]:
        """Return the unit vectors (3, 3) xyz to the right, up, and towards the viewer."""
        up, round_z = np.radians((self.elevation, self.azimuth))
        towards = np.array([np.cos(up) * np.cos(round_z), np.cos(up) * np.sin(round_z), np.sin(up)])
        right = np.array([-np.sin(round_z), np.cos(round_z), 0.0])
        return np.stack([right, np.cross(towards, right), towards])


@dataclass(frozen=True)
class _Body:
    """A mask on a coarser grid, its surface, and how far every voxel is from it [nm]."""

    mesh: Mesh | None
    distance: NDArray[np.float32]
    frame: Frame

    def away(self, places: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the distance [nm] of places (n, 3) xyz in Å to the mask."""
        voxels = np.rint(self.frame.to_voxels(places)).astype(int)
        z, y, x = np.clip(voxels, 0, np.array(self.frame.shape) - 1).T
        away: NDArray[np.float32] = self.distance[z, y, x]
        return away


@style()
def surface_panels(
    truth: Tomogram, masks: Masks, *, view: View | None = None, tolerance: float = TOLERANCE
) -> Figure:
    """Draw the surface of the truth, and beside it that of each method with its differences.

    What the truth does not annotate (-1) is left out everywhere.

    Parameters
    ----------
    truth
        1 membrane, 0 not, -1 not annotated.
    masks
        Name, volume and threshold of each method.
    view, tolerance
        Direction; distance [nm] within which surfaces agree.

    Raises
    ------
    ValueError
        If shapes or voxel sizes differ (see `check_grids`), or the truth holds other than labels, or
        no membrane.
    """
    check_grids(("the ground truth", truth), ((mask[0], mask[1]) for mask in masks))
    view = view or View()
    labels = Reference(truth).labels
    true = _body(truth, lambda z: labels(z) == 1)
    if true.mesh is None:
        raise ValueError(
            f"{truth.path or 'the truth'} has no surface to draw: it holds no membrane (1), fills the "
            "volume, or has a single slice"
        )
    near = max(tolerance, 0.15 * max(true.frame.spacing))
    panels = [("ground truth", [(true.mesh, TRUE)])]
    names = shortened([name for name, _, _ in masks], LETTERS)
    for name, (_, volume, threshold) in zip(names, masks, strict=True):

        def predicted(
            z: int, volume: Tomogram = volume, threshold: float = threshold
        ) -> NDArray[np.bool_]:
            annotated: NDArray[np.bool_] = labels(z) != IGNORE
            mask: NDArray[np.bool_] = volume.read_slice(z) > threshold
            return mask & annotated

        found = _body(truth, predicted)
        parts = [(_part(true.mesh, found, near, beyond=True), MISSED)]
        if found.mesh is not None:
            parts.append((_part(found.mesh, true, near, beyond=False), FOUND))
            parts.append((_part(found.mesh, true, near, beyond=True), EXTRA))
        panels.append((name, parts))
    return _draw(panels, view, known=truth.voxel_spacing is not None)


def _body(like: Tomogram, plane: Callable[[int], NDArray[np.bool_]]) -> _Body:
    """Bin a mask that comes slice by slice and find its surface."""
    binning = -(-max(like.shape) // SIDE)
    shares = _binned(like.shape, plane, binning)
    step = like.voxel_spacing or (1.0, 1.0, 1.0)
    z, y, x = (binning * one for one in step)
    frame = Frame((shares.shape[0], shares.shape[1], shares.shape[2]), (z, y, x))
    inside = shares > LEVEL
    if not inside.any():
        return _Body(None, np.full(shares.shape, np.inf, np.float32), frame)
    field = np.rint((shares - LEVEL) * 4 / LOGIT_STEP).clip(-127, 127).astype(np.int8)
    try:
        mesh: Mesh | None = surface_mesh(Membrane(inside, field, frame), max_faces=_most_faces())
    except ValueError:  # nothing but specks, which smoothing takes away
        mesh = None
    away = distance_transform_edt(~inside, sampling=[one / 10 for one in frame.spacing])
    return _Body(mesh, away.astype(np.float32), frame)


def _most_faces() -> int:
    """Return the limit of triangles; none where the library that leaves some out is not installed."""
    return FACES if importlib.util.find_spec("fast_simplification") else sys.maxsize


def _binned(
    shape: tuple[int, int, int], plane: Callable[[int], NDArray[np.bool_]], binning: int
) -> NDArray[np.float32]:
    """Return how full of membrane each block of voxels is, 0 to 1; see `THICKENED`."""
    shares = np.zeros([-(-side // binning) for side in shape], np.float32)
    rows, columns = (np.arange(0, side, binning) for side in shape[1:])
    for z in range(shape[0]):
        mask = plane(z)
        if mask.any():
            sums = np.add.reduceat(mask.astype(np.float32), rows, axis=0)
            shares[z // binning] += np.add.reduceat(sums, columns, axis=1)
    filled: NDArray[np.float32] = np.minimum(
        shares * np.float32(min(binning, THICKENED) / binning**3), 1
    )
    return filled


def _part(mesh: Mesh, other: _Body, near: float, *, beyond: bool) -> Mesh:
    """Return the triangles further than `near` from another mask, or those that are not."""
    away = other.away(mesh.vertices[mesh.faces].mean(axis=1)) > near
    return Mesh(mesh.vertices, mesh.faces[away == beyond])


def _draw(panels: list[tuple[str, list[tuple[Mesh, str]]]], view: View, *, known: bool) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axes = view.axes()
    corners = np.concatenate(
        [mesh.vertices[np.unique(mesh.faces)] for _, parts in panels for mesh, _ in parts]
    )
    seen = corners @ axes.T
    low, high = seen.min(axis=0), seen.max(axis=0)
    ratio = float((high[1] - low[1]) / (high[0] - low[0]))
    height = PANEL * min(max(ratio, 0.4), 1.6)
    figure = Figure(figsize=(PANEL * len(panels), height + 0.55), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for place, (name, parts) in zip(grid, panels, strict=True):
        triangles, colours = _shaded(parts, axes, (low[2], high[2]), cutaway=view.cutaway)
        _fill(place, triangles, colours)
        place.set_title(name, pad=3)
        place.set_aspect("equal")
        margin = 0.02 * float((high - low)[:2].max())
        place.set_xlim(low[0] - margin, high[0] + margin)
        place.set_ylim(low[1] - 4 * margin, high[1] + margin)
        place.set_axis_off()
    length = round_length(0.25 * float(high[0] - low[0]) / (10 if known else 1))
    start, bottom = float(low[0]), float(low[1]) - 3 * margin
    grid[0].plot([start, start + length * (10 if known else 1)], [bottom, bottom], "k-", lw=1.5)
    grid[0].text(start, bottom + margin, f"{length:g} {'nm' if known else 'voxels'}", fontsize=6.5)
    if len(panels) > 1:
        difference_legend(figure, edge="0.4")
    return figure


def _shaded(
    parts: list[tuple[Mesh, str]],
    axes: NDArray[np.float64],
    depths: tuple[float, float],
    *,
    cutaway: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return triangles (n, 3, 2) on the page, the farthest first, and their colours (n, 3)."""
    from matplotlib.colors import to_rgb

    pages, tones, order = [], [], []
    light = np.array(LIGHT) / np.linalg.norm(LIGHT)
    for mesh, colour in parts:
        seen = mesh.vertices @ axes.T
        corners = seen[mesh.faces]
        depth = corners[:, :, 2].mean(axis=1)
        lit = AMBIENT + DIFFUSE * np.abs(_normals(seen, mesh.faces) @ light)
        far = 1 - (depth - depths[0]) / max(depths[1] - depths[0], 1e-9)
        tone = np.clip(np.array(to_rgb(colour)) * lit[:, None], 0, 1)
        tone += FOG * far[:, None] * (1 - tone)
        kept = depth <= np.mean(depths) if cutaway else np.ones(len(depth), bool)
        pages.append(corners[kept][:, :, :2])
        tones.append(tone[kept])
        order.append(depth[kept])
    first = np.argsort(np.concatenate(order), kind="stable")
    return np.concatenate(pages)[first], np.concatenate(tones)[first]


def _normals(vertices: NDArray[np.float64], faces: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return unit normals (n, 3) of faces, averaged over their neighbours."""
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    flat = np.cross(b - a, c - a)
    smooth = np.stack(
        [
            np.bincount(faces.ravel(), np.repeat(flat[:, axis], 3), minlength=len(vertices))
            for axis in range(3)
        ],
        axis=1,
    )
    mean = smooth[faces].mean(axis=1)
    return np.asarray(mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12))


def _fill(place: Any, triangles: NDArray[np.float64], colours: NDArray[np.float64]) -> None:
    """Paint triangles in their order, as pixels also in vector formats: there are too many."""
    from matplotlib.collections import PolyCollection

    painted = PolyCollection(
        list(triangles), facecolors=colours, edgecolors=colours, linewidths=0.15, rasterized=True
    )
    place.add_collection(painted)

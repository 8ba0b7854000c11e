"""Slices of a tomogram beside its ground truth and each method's mask, differences in colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from etsam.drawing import round_length, shortened, style
from etsam.metrics import IGNORE
from etsam.overlay import Reference, check_grids
from etsam.volume import Tomogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FOUND, EXTRA, MISSED = "#56B4E9", "#D55E00", "#F0E442"
"""Colours of membrane found, of what is not membrane, and of membrane missed."""

OPACITY = 0.75
SMOOTHING = 1.2  # voxels
CONTRAST = (0.5, 99.5)  # percentiles shown black and white
PANEL = 1.65  # inches
LETTERS = 28  # that stand above a panel
FADED = 0.45  # brightness left where nobody annotated


@dataclass(frozen=True)
class Words:
    """What the picture that masks are held against is called, and what agreement and the rest are.

    `last`: it stands to the right of the masks, not to their left.
    """

    truth: str = "ground truth"
    found: str = "membrane, found"
    extra: str = "not membrane"
    missed: str = "membrane, missed"
    last: bool = False


CLEANED = Words("after", "kept", "removed", "added", last=True)
"""A mask before cleaning, held against itself after it."""

Masks = Sequence[tuple[str, Tomogram, float]]
"""Name, volume and threshold of each method; scores above are membrane."""


@style()
def slice_panels(
    tomogram: Tomogram,
    truth: Reference | None,
    masks: Masks,
    slices: Sequence[int],
    words: Words | None = None,
) -> Figure:
    """Draw a row per slice: the tomogram, the truth, and each method coloured by right and wrong.

    Where the truth is -1 (not annotated) the picture is faded and masks are white, neither right nor
    wrong. Without a truth all masks have one colour.

    Raises
    ------
    ValueError
        If shapes or voxel sizes differ (see `check_grids`), a slice is not in the volume, or the
        truth holds other than labels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    given = [] if truth is None else [("the ground truth", truth.volume)]
    check_grids(("the tomogram", tomogram), [*given, *((mask[0], mask[1]) for mask in masks)])
    outside = [z for z in slices if not 0 <= z < tomogram.shape[0]]
    if outside or not slices:
        raise ValueError(f"slices {list(slices)}: expected some of 0 to {tomogram.shape[0] - 1}")
    words = words or Words()
    held = [words.truth] if truth is not None else []
    shown = shortened([name for name, _, _ in masks], LETTERS)
    names = ["tomogram", *(shown + held if words.last else held + shown)]
    ratio = tomogram.shape[1] / tomogram.shape[2]
    size = PANEL * len(names), (PANEL * ratio + 0.06) * len(slices) + 0.42
    close = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.02, wspace=0.01, hspace=0.01)
    figure = Figure(figsize=size, layout=close)
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(slices), len(names), squeeze=False)
    for row, z in zip(grid, slices, strict=True):
        places = [row[0], *(np.roll(row[1:], 1) if words.last else row[1:])]
        _draw_row(places, tomogram, truth, masks, z)
    for axes, name in zip(grid[0], names, strict=True):
        axes.set_title(name, pad=3)
    _scale_bar(grid[0][0], tomogram)
    if truth is not None and masks:
        difference_legend(figure, words)
    return figure


def coloured(mask: NDArray[np.bool_], labels: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Return RGBA (Y, X, 4) of a mask against labels: found, extra, missed; clear elsewhere."""
    from matplotlib.colors import to_rgb

    picture = np.zeros((*mask.shape, 4), np.float32)
    annotated = np.ones_like(mask) if labels is None else labels != IGNORE
    true = mask if labels is None else labels == 1
    for colour, where in (
        (FOUND, mask & true),
        (EXTRA, mask & ~true & annotated),
        (MISSED, ~mask & true),
    ):
        picture[where] = (*to_rgb(colour), OPACITY)
    picture[mask & ~annotated] = (1, 1, 1, 0.5 * OPACITY)
    return picture


def _draw_row(
    row: Sequence[Axes], tomogram: Tomogram, truth: Reference | None, masks: Masks, z: int
) -> None:
    smooth = gaussian_filter(tomogram.read_slice(z), SMOOTHING)
    low, high = np.percentile(smooth, CONTRAST)
    grey = np.clip((smooth - low) / max(float(high - low), 1e-12), 0, 1)
    labels = None if truth is None else truth.labels(z)
    pictures = [] if labels is None else [coloured(labels == 1, labels)]
    pictures += [coloured(v.read_slice(z) > threshold, labels) for _, v, threshold in masks]
    faded = grey if labels is None else np.where(labels == IGNORE, FADED * grey, grey)
    for axes, picture in zip(row, [None, *pictures], strict=True):
        shown = grey if picture is None else faded
        axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="bilinear")
        if picture is not None:
            axes.imshow(picture, interpolation="nearest")
        axes.set_axis_off()
    row[0].text(
        0.03, 0.97, f"z = {z}", transform=row[0].transAxes, va="top", color="white", fontsize=6.5,
        bbox={"facecolor": "black", "alpha": 0.5, "pad": 1, "lw": 0},
    )  # fmt: skip


def _scale_bar(axes: Axes, tomogram: Tomogram) -> None:
    """Draw a bar of a round length, about a quarter of the width."""
    step = None if tomogram.voxel_spacing is None else tomogram.voxel_spacing[2] / 10
    length = round_length(0.25 * tomogram.shape[2] * (step or 1))
    share = length / (step or 1) / tomogram.shape[2]
    axes.plot([0.05, 0.05 + share], [0.05, 0.05], "w-", lw=2, transform=axes.transAxes)
    unit = "voxels" if step is None else "nm"
    axes.text(
        0.05, 0.075, f"{length:g} {unit}", transform=axes.transAxes, color="white", fontsize=6.5,
        bbox={"facecolor": "black", "alpha": 0.5, "pad": 1, "lw": 0},
    )  # fmt: skip


def difference_legend(figure: Figure, words: Words | None = None, *, edge: str = "none") -> None:
    """Say below a figure what the three colours mean."""
    from matplotlib.patches import Patch

    words = words or Words()
    entries = [(FOUND, words.found), (EXTRA, words.extra), (MISSED, words.missed)]
    handles = [
        Patch(facecolor=colour, edgecolor=edge, lw=0.4, label=text) for colour, text in entries
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)

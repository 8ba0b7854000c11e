"""What all figures share: type, colours and their second cues, names of metrics, room for words, files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etsam.storage import appearing, naming, refuse_taken

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.container import Container
    from matplotlib.figure import Figure

DPI = 300
COLUMN = 3.35
"""Width of a journal's column [inches]; a page is twice as wide."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette."""

HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++", "oo")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = "osD^vPX"

LABELS = {
    "dice": "Dice",
    "iou": "IoU",
    "precision": "Precision",
    "recall": "Recall",
    "auprc": "AUPRC",
    "surface_distance_mean_nm": "Mean surface distance [nm]",
    "surface_distance_95_nm": "95 % surface distance [nm]",
    "dice_xy": "Mean Dice of XY planes",
    "dice_xz": "Mean Dice of XZ planes",
    "dice_yz": "Mean Dice of YZ planes",
    "recall_normal_0_30": "Recall, normal 0–30° to the beam",
    "recall_normal_30_60": "Recall, normal 30–60° to the beam",
    "recall_normal_60_90": "Recall, normal 60–90° to the beam",
    "recall_components": "Components found",
    "seconds": "Time [s]",
    "ram_mb": "Memory [MB]",
    "vram_mb": "GPU memory [MB]",
}

UNIT_ENDINGS = {"_nm": "nm", "_mb": "MB", "seconds": "s"}
"""How metrics that have a unit end: distances and costs, of which less is better."""

STYLE: dict[Any, Any] = {
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.titlesize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.title_fontsize": 6.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "hatch.linewidth": 0.4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
    "text.parse_math": False,  # a $ in a name is one
}

SMALL = 6.5  # points: type of ticks and legends
ENTRY = 31.0  # points that an entry of a legend takes besides its name
LEGEND_ROW = 0.13  # inches
LONGEST = 40  # letters of a method's name


@dataclass(frozen=True)
class Scale:
    """Metrics that share an axis, from `low` to `high`; `share`: they go from 0 to 1."""

    metrics: list[str]
    share: bool
    low: float
    high: float

    @property
    def title(self) -> str:
        """What stands beside the axis."""
        known = unit(self.metrics[0])
        return "score" if self.share else f"[{known}]" if known else "value"

    @property
    def reach(self) -> float:
        """Length of the axis."""
        return self.high - self.low


@contextmanager
def style() -> Iterator[None]:
    """Draw under `STYLE`, whatever the user's own settings; a decorator too."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches, which needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


@dataclass(frozen=True)
class Saving:
    """How figures become files.

    Attributes
    ----------
    formats
        File types of matplotlib: pdf, png, svg, ...
    overwrite
        Replace files that are there; without it they are refused before anything is drawn.
    """

    formats: Sequence[str] = ("pdf", "png")
    overwrite: bool = False

    def check(self, path: Path, *others: str) -> None:
        """Refuse a figure whose files are there, in any format or in the `others` that go with it.

        Raises
        ------
        FileExistsError
            One is there, and is not to be replaced.
        """
        for target in (figure_file(path, kind) for kind in (*self.formats, *others)):
            if not self.overwrite:
                refuse_taken(target)


USUAL = Saving()


def save(figure: Figure, path: Path, formats: Sequence[str]) -> list[Path]:
    """Write a figure in each format beside each other, replacing files; they appear when all are complete.

    Raises
    ------
    ValueError
        If matplotlib does not know a format.
    OSError
        One cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [figure_file(path, kind) for kind in formats]
    with ExitStack() as stack, style():
        partials = [stack.enter_context(appearing(target)) for target in files]
        for kind, target, partial in zip(formats, files, partials, strict=True):
            with naming(target):
                figure.savefig(partial, format=kind, dpi=DPI)
    return files


def figure_file(path: Path, kind: str) -> Path:
    """Return the name of a figure in a format."""
    return path.with_name(f"{path.name}.{kind}")


def colour_of(number: int) -> str:
    """Return the colour of the method or metric of that number."""
    return COLOURS[number % len(COLOURS)]


def hatch_of(number: int) -> str:
    """Return the hatch that goes with the colour; where colours come again it is another one."""
    return HATCHES[_cue(number)]


def bar_look(number: int) -> dict[str, Any]:
    """Return how the bars of the method of that number are filled."""
    return {
        "facecolor": colour_of(number),
        "hatch": hatch_of(number),
        "edgecolor": "white",
        "linewidth": 0,
    }


def dash_of(number: int) -> Any:
    """Return the dash that goes with the colour; where colours come again it is another one."""
    return DASHES[_cue(number)]


def label(metric: str) -> str:
    """Return a metric's name for people."""
    tolerance = re.fullmatch(r"surface_dice_([\d.]+)nm", metric)
    if tolerance:
        return f"Surface Dice at {tolerance[1]} nm"
    return LABELS.get(metric, metric.replace("_", " "))


def unit(metric: str) -> str | None:
    """Return the unit of a metric that has one."""
    return next((name for end, name in UNIT_ENDINGS.items() if metric.endswith(end)), None)


def less_is_better(metric: str) -> bool:
    """Whether the smallest value is the best."""
    return unit(metric) is not None


def scales(values: Mapping[str, ArrayLike]) -> list[Scale]:
    """Sort metrics by the axis they need: those from 0 to 1 share one, each other has its own.

    A metric goes from 0 to 1 if it has no unit and no finite value lies outside.
    """
    shares, others = [], []
    for metric in values:
        known = finite(values[metric])
        low, high = float(known.min(initial=0)), float(known.max(initial=0))
        if unit(metric) is None and low >= 0 and high <= 1:
            shares.append(metric)
        else:
            others.append(Scale([metric], False, low, high if high > low else low + 1))
    return [Scale(shares, True, 0.0, 1.0), *others] if shares else others


def finite(values: ArrayLike) -> NDArray[np.float64]:
    """Return the values that are neither NaN nor infinite, as float64."""
    given = np.asarray(values, np.float64)
    return given[np.isfinite(given)]


def mean_of(values: ArrayLike) -> float:
    """Return the mean of the finite values; NaN where there is none."""
    known = finite(values)
    return float(known.mean()) if known.size else math.nan


def shortened(names: Sequence[str], longest: int = LONGEST) -> list[str]:
    """Cut long names in their middle, where that leaves them distinct; else number them."""
    kept = longest - 1
    for head in sorted(range(kept + 1), key=lambda head: abs(2 * head - kept)):
        cut = [
            name if len(name) <= longest else f"{name[:head]}…{name[len(name) - (kept - head) :]}"
            for name in names
        ]
        if len(set(cut)) == len(set(names)):
            return cut
    order = list(dict.fromkeys(names))
    return [
        name if len(name) <= longest else f"{name[: longest - 5]}… {order.index(name) + 1}"
        for name in names
    ]


def text_width(text: str) -> float:
    """Return how many inches a line of small type takes."""
    from matplotlib.textpath import TextPath

    return float(TextPath((0, 0), text, size=SMALL).get_extents().width) / 72 if text else 0.0


def legend_columns(names: Sequence[str], width: float) -> int:
    """Return how many entries of a legend stand beside each other in so many inches."""
    widest = ENTRY / 72 + max(map(text_width, names), default=0)
    rows = -(-len(names) // max(1, int(width / widest)))
    return -(-len(names) // max(rows, 1))


def legend_height(names: Sequence[str], width: float) -> float:
    """Return how many inches the legend of these names takes above a figure of that width."""
    return LEGEND_ROW * -(-len(names) // max(legend_columns(names, width), 1))


def legend_above(
    figure: Figure,
    handles: Sequence[Artist | Container],
    names: Sequence[str],
    *,
    title: str | None = None,
) -> None:
    """Name what is drawn above a figure, in as many rows as its width asks for."""
    figure.legend(
        handles=list(handles),
        labels=list(names),
        title=title,
        loc="outside upper center",
        ncols=max(legend_columns(names, figure.get_figwidth()), 1),
        handlelength=2.4,
        columnspacing=1.4,
    )


def _cue(number: int) -> int:
    return (number + number // len(COLOURS)) % len(COLOURS)


def round_length(wanted: float) -> float:
    """Return the largest of 1, 2, 5, 10, ... (and their tenths) that is not longer."""
    power = float(10.0 ** np.floor(np.log10(wanted)))
    return max(factor for factor in (1, 2, 5) if factor * power <= wanted * 1.0001) * power

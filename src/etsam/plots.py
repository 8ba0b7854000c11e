"""Charts of scores with matplotlib: drawn on figures of print size, told apart with any colour vision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from etsam.compare import Comparisons
from etsam.statistics import NOT_SIGNIFICANT
from etsam.tables import Score, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN = 3.35
"""Width of a journal's column [inches]; a page is twice as wide."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette."""

HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++", "")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), "-")
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

STYLE: dict[Any, Any] = {
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.titlesize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "hatch.linewidth": 0.4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
    "svg.fonttype": "none",
}


@contextmanager
def style() -> Iterator[None]:
    """Draw under `STYLE`, whatever the user's own settings; a decorator too."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def label(metric: str) -> str:
    """Return a metric's name for people."""
    return LABELS.get(metric, metric.replace("_", " "))


@style()
def box_plots(
    table: dict[str, dict[str, Series]], comparisons: Comparisons, *, width: float = 2 * COLUMN
) -> Figure:
    """Boxes of each metric and method with every tomogram as a dot, and brackets between methods.

    Boxes span the quartiles, whiskers reach the last value within 1.5 times that; the diamond is
    the mean. Brackets carry the marks of `compare` (paper, Fig. 1b).
    """
    figure, axes = _axes(width, 2.6)
    methods, metrics = comparisons.methods, comparisons.metrics
    step = 0.8 / len(methods)
    random = np.random.default_rng(0)
    for group, metric in enumerate(metrics):
        top = 0.0
        for number, method in enumerate(methods):
            values = _finite(table[method][metric])
            place = group + (number - (len(methods) - 1) / 2) * step
            _box(axes, values, place, 0.8 * step, number)
            spots = place + random.uniform(-0.2, 0.2, len(values)) * step
            axes.plot(spots, values, ".", ms=2.5, color="0.25", zorder=3)
            top = max(top, *values) if len(values) else top
        _brackets(axes, comparisons, metric, (group, step), top)
    axes.set_xticks(range(len(metrics)), [label(metric) for metric in metrics])
    axes.set_xlim(-0.55, len(metrics) - 0.45)
    axes.set_ylim(bottom=-0.02)
    axes.set_yticks(np.arange(0, 1.01, 0.2))
    axes.set_ylabel("Score")
    axes.spines["left"].set_bounds(0, 1)
    _legend_above(axes, methods)
    return figure


@style()
def tomogram_bars(
    table: dict[str, dict[str, Series]], metric: str, *, width: float = 2 * COLUMN
) -> Figure:
    """Bars of one metric for each tomogram and method, the means as last group (paper, Fig. 1a, 1d)."""
    methods = [name for name in table if metric in table[name]]
    names = list(dict.fromkeys(key for method in methods for key in table[method][metric]))
    figure, axes = _axes(width, 2.3)
    step = 0.84 / len(methods)
    for number, method in enumerate(methods):
        series = table[method][metric]
        values = [series.get(name, np.nan) for name in names]
        mean = float(np.nanmean(values))
        places = np.append(np.arange(len(names)), len(names) + 0.4)
        axes.bar(
            places + (number - (len(methods) - 1) / 2) * step,
            [*values, mean],
            0.92 * step,
            label=method,
            color=COLOURS[number % len(COLOURS)],
            hatch=HATCHES[number % len(HATCHES)],
            edgecolor="white",
            linewidth=0,
        )
    several = len({dataset for dataset, _ in names}) > 1
    ticks = [f"{dataset}/{run}" if several else run for dataset, run in names]
    axes.set_xticks(
        [*range(len(names)), len(names) + 0.4], [*ticks, "mean"], rotation=40, ha="right"
    )
    axes.get_xticklabels()[-1].set_fontweight("bold")
    axes.set_xlim(-0.6, len(names) + 1)
    axes.set_ylabel(label(metric))
    _legend_above(axes, methods)
    return figure


@style()
def precision_recall(
    curves: Sequence[Score], areas: dict[str, float], *, width: float = COLUMN
) -> Figure:
    """Mean precision over recall of each method, with the mean AUPRC in the legend (paper, Fig. 1c).

    `curves` are the rows that `etsam evaluate --curves` writes; `areas` the AUPRC by method.
    """
    figure, axes = _axes(width, width * 0.86)
    grouped: dict[str, dict[float, list[float]]] = {}
    stages = {(row.method, row.stage) for row in curves}
    for row in curves:
        several = sum(method == row.method for method, _ in stages) > 1
        name = f"{row.method} {row.stage}" if several else row.method
        recall = 0.0 if row.threshold is None else row.threshold
        grouped.setdefault(name, {}).setdefault(recall, []).append(row.value)
    for number, (name, points) in enumerate(grouped.items()):
        recalls = sorted(points)
        text = f"{name} ({areas[name]:.3f})" if name in areas else name
        axes.plot(
            recalls,
            [float(np.nanmean(points[recall])) for recall in recalls],
            color=COLOURS[number % len(COLOURS)],
            ls=DASHES[number % len(DASHES)],
            lw=1.2,
            label=text,
        )
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="Recall", ylabel="Precision")
    axes.legend(title="method (AUPRC)" if areas else None, title_fontsize=6.5, loc="lower left")
    return figure


@style()
def threshold_sweep(
    rows: Sequence[Score], name: str, metrics: Sequence[str], *, width: float = COLUMN
) -> Figure:
    """Mean of each metric over the thresholds of one method's stage; the best Dice is marked."""
    figure, axes = _axes(width, width * 0.8)
    for number, metric in enumerate(metrics):
        points: dict[float, list[float]] = {}
        for row in rows:
            if row.metric == metric and row.threshold is not None:
                points.setdefault(row.threshold, []).append(row.value)
        levels = sorted(points)
        means = [float(np.nanmean(points[level])) for level in levels]
        axes.plot(
            levels,
            means,
            color=COLOURS[number % len(COLOURS)],
            ls=DASHES[number % len(DASHES)],
            lw=1,
            marker=MARKERS[number % len(MARKERS)],
            ms=3,
            label=label(metric),
        )
        if metric == "dice" and means:
            best = int(np.argmax(means))
            axes.axvline(levels[best], color="0.6", lw=0.6, ls=":")
            axes.annotate(
                f"best Dice {means[best]:.3f}\nat {levels[best]:g}",
                (levels[best], 0.02),
                xytext=(3, 0),
                textcoords="offset points",
                fontsize=6,
                color="0.3",
            )
    axes.set(ylim=(0, 1), xlabel="Threshold", ylabel="Mean score", title=name)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 0.05))
    return figure


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _finite(series: Series) -> list[float]:
    return [value for value in series.values() if np.isfinite(value)]


def _box(axes: Axes, values: list[float], place: float, width: float, number: int) -> None:
    colour = COLOURS[number % len(COLOURS)]
    axes.boxplot(
        [values],
        positions=[place],
        widths=width,
        manage_ticks=False,
        patch_artist=True,
        showfliers=False,
        showmeans=True,
        boxprops={"facecolor": colour, "alpha": 0.55, "edgecolor": colour, "linewidth": 0.8},
        medianprops={"color": "black", "linewidth": 1.0},
        whiskerprops={"color": colour, "linewidth": 0.8},
        capprops={"color": colour, "linewidth": 0.8},
        meanprops={"marker": "D", "mfc": "white", "mec": "black", "ms": 3, "mew": 0.6, "zorder": 4},
    )


def _brackets(
    axes: Axes, comparisons: Comparisons, metric: str, group: tuple[float, float], top: float
) -> None:
    """Draw a bracket per pair of methods, narrow ones below wide ones."""
    methods = comparisons.methods
    centre, step = group
    pairs = sorted(combinations(range(len(methods)), 2), key=lambda pair: pair[1] - pair[0])
    height = max(top, 0.0) + 0.04
    for first, second in pairs:
        mark = comparisons.mark(metric, methods[first], methods[second])
        if mark is None:
            continue
        middle = (len(methods) - 1) / 2
        left, right = (centre + (place - middle) * step for place in (first, second))
        left, right = left + 0.05 * step, right - 0.05 * step
        axes.plot(
            [left, left, right, right],
            [height, height + 0.015, height + 0.015, height],
            "k-",
            lw=0.6,
            clip_on=False,
        )
        raised = mark == NOT_SIGNIFICANT
        axes.annotate(
            mark,
            ((left + right) / 2, height + 0.015),
            xytext=(0, 1 if raised else -1.5),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=6 if raised else 7,
        )
        height += 0.085


def _legend_above(axes: Axes, methods: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(
            facecolor=COLOURS[number % len(COLOURS)],
            hatch=HATCHES[number % len(HATCHES)] if axes.containers else "",
            edgecolor="white",
            label=method,
        )
        for number, method in enumerate(methods)
    ]
    axes.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=len(methods),
        handlelength=1.4,
    )

"""Charts of scores with matplotlib: drawn on figures of print size, told apart with any colour vision."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from etsam.compare import Comparisons
from etsam.drawing import (
    COLUMN,
    MARKERS,
    Scale,
    bar_look,
    colour_of,
    dash_of,
    finite,
    hatch_of,
    label,
    legend_above,
    legend_height,
    mean_of,
    new_figure,
    scales,
    shortened,
    style,
    text_width,
)
from etsam.statistics import NOT_SIGNIFICANT
from etsam.tables import CURVE, Score, Series, columns_of, evened, variant_names, warn_of_uneven

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

BOXES, BARS = 1.75, 1.45  # inches from the least to the greatest score, whatever stands around
BRACKET = 9 / 72  # inches from one row of brackets to the next
MOST_BRACKETED = 6  # methods with a bracket for each pair
ROOM = 0.47  # inches of a figure for ticks and their labels
MARGIN = 0.03  # of a scale, left free at its ends
FILLING = 0.4  # opacity of boxes
SLANTED = 30  # tomograms at most whose names are slanted; more stand upright
MOST_NAMED = 55  # tomograms that all have their names
RUN_LETTERS, DATASET_LETTERS = 18, 10  # of names below bars


@style()
def box_plots(
    table: dict[str, dict[str, Series]], comparisons: Comparisons, *, width: float = 2 * COLUMN
) -> Figure:
    """Boxes of each metric and method with every tomogram as a dot, and brackets between methods.

    Boxes span the quartiles, whiskers reach the last value within 1.5 times that; the diamond is
    the mean; of the tomograms that all methods have a score of. Brackets carry the marks of `compare`
    (paper, Fig. 1b); there are none between more than six methods, nor where a pair was not tested. A
    method without a metric leaves its place there empty. Metrics that do not go from 0 to 1 have an axis
    of their own.
    """
    methods, metrics = comparisons.methods, comparisons.metrics
    series = {}
    for metric in metrics:
        scores, _ = evened({method: table[method].get(metric, {}) for method in methods})
        series[metric] = [finite([*scores[method].values()]) for method in methods]
    values = {metric: np.concatenate(series[metric]) for metric in metrics}
    rows = len(_bracket_rows(len(methods))) if comparisons.tests else 0
    if len(methods) > MOST_BRACKETED:
        warnings.warn(
            f"{len(methods)} methods: boxes without brackets; `etsam compare` has the tests",
            stacklevel=2,
        )
    names, panels = shortened(methods), scales(values)
    height = ROOM + BOXES + rows * BRACKET + legend_height(names, width)
    figure = new_figure(width, height)
    ratios = [len(panel.metrics) for panel in panels]
    grid = figure.subplots(1, len(panels), squeeze=False, width_ratios=ratios)[0]
    for axes, panel in zip(grid, panels, strict=True):
        row_height = panel.reach * BRACKET / BOXES
        _set_scale(axes, panel, rows * row_height)
        for place, metric in enumerate(panel.metrics):
            _draw_boxes(axes, series[metric], place)
            lowest = float(values[metric].max(initial=panel.low)) + MARGIN * panel.reach
            _draw_brackets(axes, comparisons, metric, place, (lowest, row_height))
    legend_above(figure, _patches(range(len(methods)), boxes=True), names)
    return figure


@style()
def tomogram_bars(
    table: dict[str, dict[str, Series]], metric: str, *, width: float = 2 * COLUMN
) -> Figure:
    """Bars of one metric for each tomogram and method, the means as last group (paper, Fig. 1a, 1d).

    Means are over the tomograms that all methods have a score of. Long names are cut in the middle; of
    more than 55 tomograms only some are named. Methods without the metric are left out, the others look
    as in every figure of the table.
    """
    looks = {name: number for number, name in enumerate(table) if metric in table[name]}
    methods = list(looks)
    tomograms = list(dict.fromkeys(key for name in methods for key in table[name][metric]))
    ticks, names = _tomogram_names(tomograms), shortened(methods)
    rotation = 40 if len(ticks) <= SLANTED else 90
    below = max(map(text_width, ticks)) * np.sin(np.radians(rotation))
    height = ROOM + BARS + below + legend_height(names, width)
    figure = new_figure(width, height)
    axes = figure.add_subplot()
    shared, _ = evened(columns_of(table, metric))
    step = 0.84 / len(methods)
    last = len(tomograms) + 0.4
    places = np.append(np.arange(len(tomograms)), last)
    for number, method in enumerate(methods):
        given = np.array([table[method][metric].get(key, np.nan) for key in tomograms])
        values = np.where(np.isfinite(given), given, np.nan)
        axes.bar(
            places + (number - (len(methods) - 1) / 2) * step,
            [*values, mean_of([*shared[method].values()])],
            0.92 * step,
            **bar_look(looks[method]),
        )
    every = -(-len(ticks) // MOST_NAMED)
    named = [*range(0, len(ticks), every), last]
    side = "right" if rotation < 90 else "center"
    axes.set_xticks(named, [*ticks[::every], "mean"], rotation=rotation, ha=side)
    axes.get_xticklabels()[-1].set_fontweight("bold")
    axes.set_xlim(-0.6, last + 0.6)
    axes.set_ylabel(label(metric))
    legend_above(figure, _patches(looks.values()), names)
    return figure


@style()
def precision_recall(
    curves: Sequence[Score], areas: dict[tuple[str, str], float], *, width: float = COLUMN
) -> Figure:
    """Mean precision over recall of each method, with the mean AUPRC in the legend (paper, Fig. 1c).

    `curves` are the rows that `etsam evaluate --curves` writes; `areas` the AUPRC by (method, stage).
    Means are over the tomograms that all methods have a curve of, as a warning says.
    """
    grouped: dict[tuple[str, str], dict[float, Series]] = {}
    for row in curves:
        recall = 0.0 if row.threshold is None else row.threshold
        places = grouped.setdefault((row.method, row.stage), {})
        places.setdefault(recall, {})[row.tomogram] = row.value
    columns = {
        (key, recall): series
        for key, points in grouped.items()
        for recall, series in points.items()
    }
    shared, note = evened(columns)
    warn_of_uneven({CURVE: note}, "methods")
    known = variant_names(curves)
    names = shortened([known[key] for key in grouped])
    texts = [
        f"{name} ({areas[key]:.3f})" if key in areas else name
        for name, key in zip(names, grouped, strict=True)
    ]
    title = "method (AUPRC)" if areas.keys() & grouped.keys() else None
    above = legend_height(texts, width) + (legend_height([title], width) if title else 0)
    figure = new_figure(width, 0.78 * width + above)
    axes = figure.add_subplot()
    lines = []
    for number, (key, points) in enumerate(grouped.items()):
        recalls = sorted(points)
        means = [mean_of([*shared[key, recall].values()]) for recall in recalls]
        lines += axes.plot(recalls, means, color=colour_of(number), ls=dash_of(number), lw=1.2)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="Recall", ylabel="Precision")
    legend_above(figure, lines, texts, title=title)
    return figure


@style()
def threshold_sweep(
    rows: Sequence[Score], name: str, metrics: Sequence[str], *, width: float = COLUMN
) -> Figure:
    """Mean of each metric over the thresholds of one method's stage; the best Dice is marked.

    Means are over the tomograms with a score at all thresholds, as a warning says.
    """
    texts = [label(metric) for metric in metrics]
    figure = new_figure(width, 0.83 * width + legend_height(texts, width))
    axes = figure.add_subplot()
    lines, notes = [], {}
    for number, metric in enumerate(metrics):
        columns: dict[float, Series] = {}
        for row in rows:
            if row.metric == metric and row.threshold is not None:
                columns.setdefault(row.threshold, {})[row.tomogram] = row.value
        points, notes[metric] = evened(columns)
        levels = sorted(points)
        means = [mean_of([*points[level].values()]) for level in levels]
        lines += axes.plot(
            levels,
            means,
            color=colour_of(number),
            ls=dash_of(number),
            lw=1,
            marker=MARKERS[number % len(MARKERS)],
            ms=3,
            clip_on=False,
        )
        if metric == "dice" and np.isfinite(means).any():
            best = int(np.nanargmax(means))
            axes.axvline(levels[best], color="0.6", lw=0.6, ls=":")
            axes.annotate(
                f"best Dice {means[best]:.3f}\nat {levels[best]:g}",
                (levels[best], 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=6,
                color="0.3",
            )
    warn_of_uneven(notes, "thresholds")
    axes.set(ylim=(0, 1), xlabel="Threshold", ylabel="Mean score")
    axes.set_title(shortened([name])[0], pad=20)
    legend_above(figure, lines, texts)
    return figure


def _set_scale(axes: Axes, scale: Scale, above: float) -> None:
    """Give an axis its scale, with room above it for brackets, and name its metrics."""
    axes.set_xticks(
        range(len(scale.metrics)), [fill(label(metric), 20) for metric in scale.metrics]
    )
    axes.set_xlim(-0.55, len(scale.metrics) - 0.45)
    axes.set_ylabel(scale.title[0].upper() + scale.title[1:])
    margin = MARGIN * scale.reach
    axes.set_ylim(scale.low - margin, scale.high + 2 * margin + above)
    ticks = np.arange(0, 1.01, 0.2) if scale.share else axes.get_yticks()
    axes.set_yticks([tick for tick in ticks if scale.low <= tick <= scale.high])
    axes.spines["left"].set_bounds(scale.low, scale.high)


def _draw_boxes(axes: Axes, series: Sequence[NDArray[np.float64]], place: int) -> None:
    """Draw the boxes of one metric, a method each, around a place on the x axis."""
    step = 0.8 / len(series)
    random = np.random.default_rng(0)
    for number, values in enumerate(series):
        middle = place + (number - (len(series) - 1) / 2) * step
        _box(axes, values, (middle, 0.8 * step), number)
        spots = middle + random.uniform(-0.2, 0.2, len(values)) * step
        axes.plot(spots, values, ".", ms=2.5, color="0.25", zorder=3)


def _box(axes: Axes, values: NDArray[np.float64], place: tuple[float, float], number: int) -> None:
    colour = colour_of(number)
    axes.boxplot(
        [values],
        positions=[place[0]],
        widths=place[1],
        manage_ticks=False,
        patch_artist=True,
        showfliers=False,
        showmeans=True,
        boxprops=_box_look(number),
        medianprops={"color": "black", "linewidth": 1.0},
        whiskerprops={"color": colour, "linewidth": 0.8},
        capprops={"color": colour, "linewidth": 0.8},
        meanprops={"marker": "D", "mfc": "white", "mec": "black", "ms": 3, "mew": 0.6, "zorder": 4},
    )


def _box_look(number: int) -> dict[str, Any]:
    """Return colours and hatch of a method's boxes."""
    from matplotlib.colors import to_rgba

    colour = colour_of(number)
    faint = to_rgba(colour, FILLING)
    return {"facecolor": faint, "edgecolor": colour, "hatch": hatch_of(number), "linewidth": 0.8}


def _bracket_rows(methods: int) -> list[list[tuple[int, int]]]:
    """Sort the pairs of methods into rows in which none lies over another, narrow ones first."""
    if methods > MOST_BRACKETED:
        return []
    return [
        [(first, first + apart) for first in range(start, methods - apart, apart)]
        for apart in range(1, methods)
        for start in range(min(apart, methods - apart))
    ]


def _draw_brackets(
    axes: Axes, comparisons: Comparisons, metric: str, place: int, heights: tuple[float, float]
) -> None:
    """Draw the brackets of a metric; `heights` are those of the lowest row and of each row."""
    methods = comparisons.methods
    step = 0.8 / len(methods)
    height, row_height = heights
    for row in _bracket_rows(len(methods)):
        for first, second in row:
            mark = comparisons.mark(metric, methods[first], methods[second])
            if mark is None:
                continue
            left, right = (place + (end - (len(methods) - 1) / 2) * step for end in (first, second))
            left, right = left + 0.05 * step, right - 0.05 * step
            top = height + 0.15 * row_height
            axes.plot([left, left, right, right], [height, top, top, height], "k-", lw=0.6)
            raised = mark == NOT_SIGNIFICANT
            axes.annotate(
                mark,
                ((left + right) / 2, top),
                xytext=(0, 0.5 if raised else -2),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=6 if raised else 7,
            )
        height += row_height


def _patches(numbers: Iterable[int], *, boxes: bool = False) -> list[Patch]:
    """Return what stands in the legend for bars, or for boxes, of the methods of these numbers."""
    from matplotlib.patches import Patch

    look = _box_look if boxes else bar_look
    return [Patch(**look(number)) for number in numbers]


def _tomogram_names(tomograms: Sequence[tuple[str, str]]) -> list[str]:
    """Return short names, with the dataset where there are several."""
    datasets, runs = ([key[part] for key in tomograms] for part in (0, 1))
    if len(set(datasets)) == 1:
        return shortened(runs, RUN_LETTERS + DATASET_LETTERS)
    pairs = zip(shortened(datasets, DATASET_LETTERS), shortened(runs, RUN_LETTERS), strict=True)
    return [f"{dataset}/{run}" for dataset, run in pairs]

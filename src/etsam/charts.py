"""Charts of costs, of what post-processing changes, and tables of ablations."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from etsam.drawing import (
    COLOURS,
    COLUMN,
    Scale,
    bar_look,
    finite,
    label,
    legend_above,
    less_is_better,
    mean_of,
    new_figure,
    scales,
    shortened,
    style,
    unit,
)
from etsam.statistics import summarise
from etsam.tables import Score, Series, evened, warn_of_uneven

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import BarContainer
    from matplotlib.figure import Figure

UNITS = {
    "seconds": (("s", 1.0), ("min", 60.0), ("h", 3600.0)),
    "ram_mb": (("MB", 1.0), ("GB", 1000.0)),
    "vram_mb": (("MB", 1.0), ("GB", 1000.0)),
}
"""Units of each cost, and from which value on they are used."""

TITLES = {"seconds": "Time", "ram_mb": "Memory", "vram_mb": "GPU memory"}
FEW_LEVELS = 10  # thresholds whose names fit beside each other
LARGE = 2.0  # times a unit from which it is taken

Table = dict[str, dict[str, Series]]


@style()
def cost_bars(table: Table, *, width: float = 2 * COLUMN) -> Figure:
    """Mean time, memory and GPU memory of each method, every tomogram a dot (paper, Fig. 1d).

    The whisker is the SD. A method without a number has no bar.

    Raises
    ------
    ValueError
        If no method has any of the three.
    """
    costs = [
        name
        for name in UNITS
        if any(finite([*series.get(name, {}).values()]).size for series in table.values())
    ]
    if not costs:
        raise ValueError(f"no costs in the table: expected one of {', '.join(UNITS)}")
    figure = new_figure(width, 0.62 + 0.24 * len(table))
    grid = figure.subplots(1, len(costs), squeeze=False)[0]
    for axes, cost in zip(grid, costs, strict=True):
        _bars(axes, table, cost)
        if axes is not grid[0]:
            axes.set_yticklabels([])
    return figure


@style()
def change_plot(
    table: Table, before: str, after: str, metrics: Sequence[str], *, width: float = 2 * COLUMN
) -> Figure:
    """Mean scores of two methods, and the change on each tomogram (paper, Fig. 4).

    The diamond is the mean change with its bootstrap interval (95 %). Metrics from 0 to 1 stand in one
    row, their changes in percentage points; each other has a row of its own, in its unit.

    Raises
    ------
    ValueError
        If a method is not in the table, or they share no metric and tomogram.
    """
    for name in (before, after):
        if name not in table:
            raise ValueError(f"no method {name!r}: the table has {', '.join(table)}")
    pairs = {metric: _paired(table[before], table[after], metric) for metric in metrics}
    pairs = {metric: both for metric, both in pairs.items() if both.size}
    if not pairs:
        raise ValueError(f"{before} and {after} share no tomogram with {', '.join(metrics)}")
    rows = scales(pairs)
    figure = new_figure(width, 1.8 * len(rows) + 0.3)
    names = shortened([before, after], 30)
    for (left, right), scale in zip(
        figure.subplots(len(rows), 2, squeeze=False), rows, strict=True
    ):
        members = [pairs[metric] for metric in scale.metrics]
        bars = _mean_bars(left, members, scale)
        _changes(right, [both[:, 1] - both[:, 0] for both in members], scale)
        for axes in (left, right):
            axes.set_xticks(range(len(members)), [fill(label(one), 14) for one in scale.metrics])
    legend_above(figure, bars, names)
    return figure


@dataclass(frozen=True)
class Ablation:
    """Means by variant and threshold, NaN where there is none; `title` says of what.

    `metrics` are those of the rows.
    """

    title: str
    names: list[str]
    metrics: list[str]
    thresholds: list[float]
    means: NDArray[np.float64]

    @property
    def best(self) -> NDArray[np.bool_]:
        """Where the best of each row stands: the smallest of distances and costs, else the largest."""
        signs = np.array([-1.0 if less_is_better(metric) else 1.0 for metric in self.metrics])
        good = self.means * signs[:, None]
        best: NDArray[np.bool_] = good == np.nanmax(good, axis=1, keepdims=True)
        return best

    @property
    def shades(self) -> NDArray[np.float64]:
        """The means from 0 to 1, by metrics of the same unit."""
        units = [unit(metric) for metric in self.metrics]
        shades = np.full(self.means.shape, np.nan)
        for one in set(units):
            rows = np.array([other == one for other in units])
            low, high = np.nanmin(self.means[rows]), np.nanmax(self.means[rows])
            shades[rows] = (self.means[rows] - low) / (high - low) if high > low else 0.5
        return shades

    def markdown(self) -> str:
        """Return the table as Markdown, the best of each row bold."""
        head = ["variant", *(f"{threshold:g}" for threshold in self.thresholds)]
        lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for name, row, best in zip(self.names, self.means, self.best, strict=True):
            cells = [_cell(value, bold=bold) for value, bold in zip(row, best, strict=True)]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"


def ablation(rows: Sequence[Score], metrics: Sequence[str] = ("dice",)) -> Ablation:
    """Arrange the scores of a sweep: a row per method, stage and metric, a column per threshold.

    Means of a metric are over the tomograms that all rows have a score of at all their thresholds, as a
    warning says.

    Raises
    ------
    ValueError
        If the table has no such score at any threshold.
    """
    grouped: dict[tuple[str, str, str], dict[float, Series]] = {}
    for row in rows:
        if row.metric in metrics and row.threshold is not None:
            points = grouped.setdefault((row.stage, row.method, row.metric), {})
            points.setdefault(row.threshold, {})[row.tomogram] = row.value
    if not grouped:
        listed = " or ".join(metrics)
        raise ValueError(f"no {listed} at any threshold: run `etsam evaluate --sweep`")
    swept = {row.method for row in rows if row.threshold is not None}
    masks = [name for name in dict.fromkeys(row.method for row in rows) if name not in swept]
    if masks:
        warnings.warn(f"left out, without a threshold: {', '.join(masks)}", stacklevel=2)
    thresholds = sorted({level for points in grouped.values() for level in points})
    means = np.full((len(grouped), len(thresholds)), np.nan)
    places, notes = list(grouped), {}
    for metric in dict.fromkeys(name for *_, name in places):
        columns = {
            (number, thresholds.index(level)): series
            for number, place in enumerate(places)
            if place[-1] == metric
            for level, series in grouped[place].items()
        }
        shared, notes[metric] = evened(columns)
        for cell, series in shared.items():
            means[cell] = mean_of([*series.values()])
    warn_of_uneven(notes, "rows and thresholds")
    scored = ~np.isnan(means).all(axis=1)
    if not scored.any():
        raise ValueError(f"{' and '.join(metrics)} are undefined throughout")
    kept = [key for key, known in zip(grouped, scored, strict=True) if known]
    names = [
        f"{stage}: {method}" + (f", {label(metric)}" if len(metrics) > 1 else "")
        for stage, method, metric in kept
    ]
    title = f"Mean {label(metrics[0])}" if len(metrics) == 1 else "Mean scores"
    return Ablation(title, names, [metric for *_, metric in kept], thresholds, means[scored])


@style()
def ablation_table(found: Ablation, *, width: float = 2 * COLUMN) -> Figure:
    """Draw an ablation as a table of numbers on a scale of brightness; the best of each row is bold."""
    figure = new_figure(width, 0.55 + 0.2 * len(found.names))
    axes = figure.add_subplot()
    shades, best = found.shades, found.best
    axes.imshow(shades, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for row, column in np.argwhere(~np.isnan(found.means)):
        axes.text(
            column,
            row,
            f"{found.means[row, column]:.3f}",
            ha="center",
            va="center",
            color="white" if shades[row, column] < 0.55 else "black",
            weight="bold" if best[row, column] else "normal",
            fontsize=6,
        )
    levels = [f"{level:.3g}" for level in found.thresholds]
    axes.set_xticks(range(len(levels)), levels, rotation=90 if len(levels) > FEW_LEVELS else 0)
    axes.set_yticks(range(len(found.names)), shortened(found.names, 60))
    axes.tick_params(length=0)
    axes.set_xlabel("Threshold")
    axes.set_title(found.title)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def _bars(axes: Axes, table: Table, cost: str) -> None:
    """Draw a bar for each method, the first one on top."""
    known = {name: finite([*series.get(cost, {}).values()]) for name, series in table.items()}
    drawn = {name: values for name, values in known.items() if values.size}
    largest = max(float(values.mean()) for values in drawn.values())
    unit, size = next(
        (one for one in reversed(UNITS[cost]) if largest >= LARGE * one[1]), UNITS[cost][0]
    )
    random = np.random.default_rng(0)
    reach = max(float(values.max()) for values in drawn.values()) / size
    for place, name in enumerate(table):
        if name not in drawn:
            continue
        values = drawn[name] / size
        mean, sd = float(values.mean()), float(values.std(ddof=1)) if values.size > 1 else 0.0
        axes.barh(
            place,
            mean,
            0.66,
            **bar_look(place),
        )
        if values.size > 1:
            axes.plot([max(mean - sd, 0), mean + sd], [place, place], "k-", lw=0.8)
            spots = place + random.uniform(-0.2, 0.2, values.size)
            axes.plot(values, spots, ".", ms=2.5, color="0.25", zorder=3)
        text = f"{mean:.3g} ± {sd:.2g}" if values.size > 1 else f"{mean:.3g}"
        end = max(float(values.max()), mean + sd)
        axes.annotate(
            text, (end, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=6
        )
        reach = max(reach, mean + sd)
    axes.set_xlim(0, 1.5 * reach)
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.set_yticks(range(len(table)), shortened(list(table), 30))
    axes.set_xlabel(f"{TITLES[cost]} [{unit}]")


def _paired(
    before: dict[str, Series], after: dict[str, Series], metric: str
) -> NDArray[np.float64]:
    """Return the scores (n, 2) of the tomograms that have both."""
    first, second = before.get(metric, {}), after.get(metric, {})
    both = [(first[key], second[key]) for key in first if key in second]
    values = np.array(both, np.float64).reshape(-1, 2)
    kept: NDArray[np.float64] = values[np.isfinite(values).all(axis=1)]
    return kept


def _mean_bars(
    axes: Axes, pairs: Sequence[NDArray[np.float64]], scale: Scale
) -> list[BarContainer]:
    """Draw the means of both methods, a pair of bars for each metric."""
    drawn = []
    for number in (0, 1):
        means = [float(both[:, number].mean()) for both in pairs]
        places = np.arange(len(pairs)) + 0.4 * (number - 0.5)
        drawn.append(
            axes.bar(
                places,
                means,
                0.37,
                **bar_look(number),
            )
        )
        for place, mean in zip(places, means, strict=True):
            axes.annotate(f"{mean:.3f}", (place, mean), ha="center", va="bottom", fontsize=5.5)
    if scale.share:
        axes.set_ylim(0, 1)
    else:
        axes.margins(y=0.1)
    axes.set_ylabel(f"Mean {scale.title}")
    return drawn


def _changes(axes: Axes, changes: Sequence[NDArray[np.float64]], scale: Scale) -> None:
    """Draw the change of each tomogram, and the mean with its interval, for each metric."""
    random = np.random.default_rng(0)
    axes.axhline(0, color="0.6", lw=0.6)
    for place, change in enumerate(changes):
        values = 100 * change if scale.share else change
        spots = place + random.uniform(-0.18, 0.18, values.size)
        axes.plot(spots, values, ".", ms=3, color=COLOURS[5])
        found = summarise(values)
        if values.size > 1:
            axes.plot([place, place], [found.low, found.high], "k-", lw=1)
        axes.plot(place, found.mean, "D", mfc="white", mec="black", ms=4, mew=0.8)
        axes.annotate(
            f"{found.mean:+.2f}",
            (place, found.mean),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=6,
        )
    axes.set_xlim(-0.5, len(changes) - 0.4)
    step = "percentage points" if scale.share else unit(scale.metrics[0])
    axes.set_ylabel(f"Change [{step}]" if step else "Change")


def _cell(value: float, *, bold: bool) -> str:
    if np.isnan(value):
        return ""
    return f"**{value:.3f}**" if bold else f"{value:.3f}"

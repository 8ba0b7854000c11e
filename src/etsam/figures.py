"""Figures from tables of scores and from volumes, as PDF and PNG."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from etsam.charts import ablation, ablation_table, change_plot, cost_bars
from etsam.compare import compare
from etsam.costs import read_costs
from etsam.panels import CLEANED, slice_panels
from etsam.plots import box_plots, precision_recall, style, threshold_sweep, tomogram_bars
from etsam.predictions import TYPICAL_THRESHOLD, recognise, score_kind
from etsam.scenes import View, surface_panels
from etsam.storage import write_text
from etsam.tables import Score, Series, variants
from etsam.volume import Tomogram, open_tomogram

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("pdf", "png")
DPI = 300
MASK_METRICS = ("dice", "iou", "precision", "recall")
FEWEST = 3  # tomograms a box needs


def figures(
    rows: Sequence[Score],
    folder: Path,
    *,
    curves: Sequence[Score] = (),
    metrics: Sequence[str] = (),
    methods: Sequence[str] = (),
    thresholds: dict[str, float] | None = None,
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Draw what a table of scores has: boxes, bars, sweeps, curves; return the files.

    Parameters
    ----------
    rows
        Scores; with curves, their AUPRC goes into the legend.
    folder
        Where the figures go; made if it is not there.
    curves
        Rows that `etsam evaluate --curves` writes.
    metrics, methods, thresholds
        As `compare`.
    formats
        File types of matplotlib: pdf, png, svg, ...

    Raises
    ------
    ModuleNotFoundError
        If matplotlib is not installed.
    ValueError
        As `compare`.
    """
    table = variants(rows, thresholds)
    table = _chosen(table, methods)
    files = []
    scored = [
        name for name in table if any(metric in table[name] for metric in metrics or ("dice",))
    ]
    if scored and len({row.tomogram for row in rows}) >= FEWEST:
        comparisons = compare(rows, metrics=metrics, methods=scored, thresholds=thresholds)
        files += save(box_plots(table, comparisons), folder / "boxes", formats)
    present = dict.fromkeys(metric for series in table.values() for metric in series)
    for metric in metrics or present:
        files += save(tomogram_bars(table, metric), folder / f"bars_{metric}", formats)
    for name, members in _swept(rows).items():
        drawn = threshold_sweep(members, name, MASK_METRICS)
        files += save(drawn, folder / f"sweep_{name.replace(' ', '_')}", formats)
    if curves:
        areas = {
            name: float(np.nanmean(list(series["auprc"].values())))
            for name, series in table.items()
            if "auprc" in series
        }
        files += save(precision_recall(curves, areas), folder / "precision_recall", formats)
    return files


def slice_figure(
    tomogram: Path,
    masks: Sequence[tuple[str, Path]],
    output: Path,
    *,
    truth: Path | None = None,
    slices: Sequence[int] = (),
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Draw slices of a tomogram beside truth and named masks (or scores at their usual threshold).

    `output` is a name without file type; `slices` default to a quarter, half and three quarters of
    the depth.

    Raises
    ------
    FileNotFoundError, ValueError
        A volume is missing or of another shape, or a slice is not there.
    """
    with ExitStack() as stack:
        volume = stack.enter_context(closing(open_tomogram(tomogram)))
        labels = None if truth is None else stack.enter_context(closing(open_tomogram(truth)))
        shown = [_opened(stack, *mask) for mask in masks]
        drawn = slice_panels(volume, labels, shown, tuple(slices) or _thirds(volume))
    return save(drawn, output, formats)


def cleaning_figure(
    tomogram: Path,
    masks: tuple[Path, Path],
    output: Path,
    *,
    slices: Sequence[int] = (),
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Draw slices of a tomogram with a mask after and before cleaning: kept, removed, added.

    `masks` are before and after; see `slice_figure` for the rest.

    Raises
    ------
    FileNotFoundError, ValueError
        A volume is missing or of another shape, or a slice is not there.
    """
    with ExitStack() as stack:
        volume = stack.enter_context(closing(open_tomogram(tomogram)))
        before = _opened(stack, "before", masks[0])
        after = stack.enter_context(closing(open_tomogram(masks[1])))
        chosen = tuple(slices) or _thirds(volume)
        drawn = slice_panels(volume, after, [before], chosen, CLEANED)
    return save(drawn, output, formats)


def surface_figure(
    truth: Path,
    masks: Sequence[tuple[str, Path]],
    output: Path,
    *,
    view: View | None = None,
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Draw the surface of the truth beside that of each named mask, right and wrong in colour.

    Raises
    ------
    FileNotFoundError, ValueError
        A volume is missing or of another shape, or the truth is empty.
    """
    with ExitStack() as stack:
        labels = stack.enter_context(closing(open_tomogram(truth)))
        drawn = surface_panels(labels, [_opened(stack, *mask) for mask in masks], view=view)
    return save(drawn, output, formats)


def cost_figure(
    places: Sequence[Path],
    output: Path,
    *,
    methods: Sequence[str] = (),
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Draw time, memory and GPU memory of each method; see `read_costs` for what `places` are.

    Raises
    ------
    FileNotFoundError, ValueError
        There are no costs, or a method is unknown.
    """
    table = _chosen(variants(read_costs(places)), methods)
    return save(cost_bars(table), output, formats)


def change_figure(
    rows: Sequence[Score],
    names: tuple[str, str],
    output: Path,
    *,
    metrics: Sequence[str] = (),
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Draw what the second of two methods changes over the first, as post-processing does.

    A name may say a threshold, as in "ETSAM@-0.25".

    Raises
    ------
    ValueError
        A method is unknown, or they have nothing in common.
    """
    table: dict[str, dict[str, Series]] = {}
    for given in names:
        name, _, level = given.partition("@")
        try:
            found = variants(rows, {name: float(level)} if level else None)
        except ValueError as error:
            raise ValueError(f"{given}: {error}") from error
        table |= {given if key == name else key: series for key, series in found.items()}
    return save(change_plot(table, *names, metrics or MASK_METRICS), output, formats)


def ablation_figure(
    rows: Sequence[Score],
    output: Path,
    *,
    metrics: Sequence[str] = ("dice",),
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Draw the means of every method and stage at every threshold, and write them as Markdown.

    Raises
    ------
    ValueError
        There is no such score.
    """
    found = ablation(rows, metrics)
    files = save(ablation_table(found), output, formats)
    text = output.with_name(f"{output.name}.md")
    write_text(text, found.markdown())
    return [*files, text]


def save(figure: Figure, path: Path, formats: Sequence[str]) -> list[Path]:
    """Write a figure in each format beside each other; files appear only when complete.

    Raises
    ------
    ValueError
        If matplotlib does not know a format.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    files = []
    for kind in formats:
        target = path.with_name(f"{path.name}.{kind}")
        partial = target.with_name(target.name + ".partial")
        try:
            with style():
                figure.savefig(partial, format=kind, dpi=DPI)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        files.append(target)
    return files


def _chosen(
    table: dict[str, dict[str, Series]], methods: Sequence[str]
) -> dict[str, dict[str, Series]]:
    """Return the methods asked for, in their order."""
    unknown = set(methods) - set(table)
    if unknown:
        raise ValueError(f"no method {min(unknown)!r}: the table has {', '.join(table)}")
    return {name: table[name] for name in methods or table}


def _opened(stack: ExitStack, name: str, path: Path) -> tuple[str, Tomogram, float]:
    """Open a mask or scores, and say above what they are membrane."""
    seen = recognise(path)
    opened = stack.enter_context(closing(seen.open()))
    usual = TYPICAL_THRESHOLD[seen.kind or score_kind(opened)]
    return name, opened, usual if seen.threshold is None else seen.threshold


def _thirds(volume: Tomogram) -> tuple[int, ...]:
    """Return the slices at a quarter, half and three quarters of the depth."""
    return tuple(round(volume.shape[0] * part) for part in (0.25, 0.5, 0.75))


def _swept(rows: Sequence[Score]) -> dict[str, list[Score]]:
    """Group the rows of stages that were scored at three thresholds or more."""
    grouped: dict[str, list[Score]] = {}
    for row in rows:
        if row.metric in MASK_METRICS:
            grouped.setdefault(f"{row.method} {row.stage}", []).append(row)
    return {
        name: members
        for name, members in grouped.items()
        if len({row.threshold for row in members}) >= FEWEST
    }

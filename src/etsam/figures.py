"""Figures from tables of scores and from volumes, as PDF and PNG."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from etsam.compare import compare
from etsam.panels import slice_panels
from etsam.plots import box_plots, precision_recall, style, threshold_sweep, tomogram_bars
from etsam.predictions import TYPICAL_THRESHOLD, recognise, score_kind
from etsam.tables import Score, variants
from etsam.volume import open_tomogram

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("pdf", "png")
DPI = 300
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
    folder.mkdir(parents=True, exist_ok=True)
    table = variants(rows, thresholds)
    unknown = set(methods) - set(table)
    if unknown:
        raise ValueError(f"no method {min(unknown)!r}: the table has {', '.join(table)}")
    table = {name: table[name] for name in methods or table}
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
        drawn = threshold_sweep(members, name, ("dice", "iou", "precision", "recall"))
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
        shown = []
        for name, path in masks:
            seen = recognise(path)
            opened = stack.enter_context(closing(seen.open()))
            usual = TYPICAL_THRESHOLD[seen.kind or score_kind(opened)]
            shown.append((name, opened, usual if seen.threshold is None else seen.threshold))
        depth = volume.shape[0]
        chosen = tuple(slices) or tuple(round(depth * part) for part in (0.25, 0.5, 0.75))
        drawn = slice_panels(volume, labels, shown, chosen)
    output.parent.mkdir(parents=True, exist_ok=True)
    return save(drawn, output, formats)


def save(figure: Figure, path: Path, formats: Sequence[str]) -> list[Path]:
    """Write a figure in each format beside each other; files appear only when complete.

    Raises
    ------
    ValueError
        If matplotlib does not know a format.
    """
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


def _swept(rows: Sequence[Score]) -> dict[str, list[Score]]:
    """Group the rows of stages that were scored at three thresholds or more."""
    grouped: dict[str, list[Score]] = {}
    for row in rows:
        if row.metric in ("dice", "iou", "precision", "recall"):
            grouped.setdefault(f"{row.method} {row.stage}", []).append(row)
    return {
        name: members
        for name, members in grouped.items()
        if len({row.threshold for row in members}) >= FEWEST
    }

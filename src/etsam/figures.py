"""Figures from tables of scores and from volumes, as PDF and PNG."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from etsam.charts import ablation, ablation_table, change_plot, cost_bars
from etsam.compare import compare
from etsam.costs import read_costs
from etsam.drawing import USUAL, Saving, figure_file, mean_of, save
from etsam.overlay import Reference
from etsam.panels import CLEANED, slice_panels
from etsam.plots import (
    box_plots,
    precision_recall,
    threshold_sweep,
    tomogram_bars,
)
from etsam.predictions import TYPICAL_THRESHOLD, recognise, score_kind
from etsam.scenes import View, surface_panels
from etsam.storage import write_text
from etsam.tables import (
    CURVE,
    Score,
    Series,
    columns_of,
    evened,
    variant_names,
    variants,
    warn_of_uneven,
)
from etsam.volume import Tomogram, open_tomogram

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    saving: Saving = USUAL,
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
    saving
        File types, and whether to replace.

    Raises
    ------
    ModuleNotFoundError
        If matplotlib is not installed.
    FileExistsError
        A figure is there already.
    ValueError
        As `compare`; or `curves` are no curves, or of none of the methods.
    """
    table = _chosen(variants(rows, thresholds), methods)
    drawn = _drawn_metrics(table, metrics)
    names = variant_names(rows)
    drawn_curves = _chosen_curves(curves, names, methods)
    plans: dict[str, Callable[[], Figure]] = {}
    tested: tuple[str, ...] = ()
    wanted = metrics or MASK_METRICS
    scored = [name for name in table if any(metric in table[name] for metric in wanted)]
    if scored and len({row.tomogram for row in rows}) >= FEWEST:
        comparisons = compare(
            rows, metrics=metrics, methods=scored, thresholds=thresholds, skip_few=True
        )
        tested = comparisons.metrics  # of which it has said what is uneven
        plans["boxes"] = partial(box_plots, table, comparisons)
    _say_uneven(table, [metric for metric in drawn if metric not in tested])
    for metric in drawn:
        plans[_file_name(f"bars_{metric}")] = partial(tomogram_bars, table, metric)
    shown = [row for row in rows if names[row.method, row.stage] in table]
    for name, members in _swept(shown).items():
        plans[_file_name(f"sweep_{name}")] = partial(threshold_sweep, members, name, MASK_METRICS)
    if drawn_curves:
        areas = _mean_areas(table, names)
        plans["precision_recall"] = partial(precision_recall, drawn_curves, areas)
    return _save_all(plans, folder, saving)


def slice_figure(
    tomogram: Path,
    masks: Sequence[tuple[str, Path]],
    output: Path,
    *,
    truth: Path | None = None,
    slices: Sequence[int] = (),
    voxel_spacing: float | None = None,
    saving: Saving = USUAL,
) -> list[Path]:
    """Draw slices of a tomogram beside truth and named masks (or scores at their usual threshold).

    `output` is a name without file type; `slices` default to a quarter, half and three quarters of
    the depth; `voxel_spacing` in Å takes the place of the headers'.

    Raises
    ------
    FileExistsError, FileNotFoundError, ValueError
        The figure is there already, a volume is missing or of another shape or voxel size, a slice is not
        there, or the truth holds other than 1, 0 and -1.
    """
    saving.check(output)
    with ExitStack() as stack:
        volume = _volume(stack, tomogram, voxel_spacing)
        held = None if truth is None else Reference(_volume(stack, truth, voxel_spacing))
        shown = [_opened(stack, *mask, voxel_spacing) for mask in masks]
        drawn = slice_panels(volume, held, shown, tuple(slices) or _quarters(volume))
    return save(drawn, output, saving.formats)


def cleaning_figure(
    tomogram: Path,
    masks: tuple[Path, Path],
    output: Path,
    *,
    slices: Sequence[int] = (),
    voxel_spacing: float | None = None,
    saving: Saving = USUAL,
) -> list[Path]:
    """Draw slices of a tomogram with a mask after and before cleaning: kept, removed, added.

    `masks` are before and after, or scores, of which those above their usual threshold count; see
    `slice_figure` for the rest.

    Raises
    ------
    FileExistsError, FileNotFoundError, ValueError
        The figure is there already, a volume is missing or of another shape or voxel size, or a slice is not there.
    """
    saving.check(output)
    with ExitStack() as stack:
        volume = _volume(stack, tomogram, voxel_spacing)
        before = _opened(stack, "before", masks[0], voxel_spacing)
        _, after, threshold = _opened(stack, "after", masks[1], voxel_spacing)
        chosen = tuple(slices) or _quarters(volume)
        drawn = slice_panels(volume, Reference(after, threshold), [before], chosen, CLEANED)
    return save(drawn, output, saving.formats)


def surface_figure(
    truth: Path,
    masks: Sequence[tuple[str, Path]],
    output: Path,
    *,
    view: View | None = None,
    voxel_spacing: float | None = None,
    saving: Saving = USUAL,
) -> list[Path]:
    """Draw the surface of the truth beside that of each named mask, right and wrong in colour.

    Raises
    ------
    FileExistsError, FileNotFoundError, ValueError
        The figure is there already, a volume is missing or of another shape or voxel size, or the truth is
        empty or holds other than 1, 0 and -1.
    """
    saving.check(output)
    with ExitStack() as stack:
        labels = _volume(stack, truth, voxel_spacing)
        shown = [_opened(stack, *mask, voxel_spacing) for mask in masks]
        drawn = surface_panels(labels, shown, view=view)
    return save(drawn, output, saving.formats)


def cost_figure(
    places: Sequence[Path],
    output: Path,
    *,
    methods: Sequence[str] = (),
    saving: Saving = USUAL,
) -> list[Path]:
    """Draw time, memory and GPU memory of each method; see `read_costs` for what `places` are.

    Raises
    ------
    FileExistsError, FileNotFoundError, ValueError
        The figure is there already, there are no costs, or a method is unknown.
    """
    saving.check(output)
    table = _chosen(variants(read_costs(places)), methods)
    return save(cost_bars(table), output, saving.formats)


def change_figure(
    rows: Sequence[Score],
    names: tuple[str, str],
    output: Path,
    *,
    metrics: Sequence[str] = (),
    saving: Saving = USUAL,
) -> list[Path]:
    """Draw what the second of two methods changes over the first, as post-processing does.

    A name may say a threshold, as in "ETSAM@-0.25".

    Raises
    ------
    FileExistsError, ValueError
        The figure is there already, a method is unknown or its threshold not clear, or they have nothing in common.
    """
    saving.check(output)
    table = {name: _series_of(rows, name) for name in names}
    return save(change_plot(table, *names, metrics or MASK_METRICS), output, saving.formats)


def ablation_figure(
    rows: Sequence[Score],
    output: Path,
    *,
    metrics: Sequence[str] = ("dice",),
    saving: Saving = USUAL,
) -> list[Path]:
    """Draw the means of every method and stage at every threshold, and write them as Markdown.

    Raises
    ------
    FileExistsError, ValueError
        The figure or its Markdown is there already, or there is no such score.
    """
    saving.check(output, "md")
    found = ablation(rows, metrics)
    files = save(ablation_table(found), output, saving.formats)
    text = figure_file(output, "md")
    write_text(text, found.markdown())
    return [*files, text]


def _save_all(plans: dict[str, Callable[[], Figure]], folder: Path, saving: Saving) -> list[Path]:
    """Draw and write figures by name, one after the other, once it is known that all may be written."""
    for name in plans:
        saving.check(folder / name)
    return [
        path for name, draw in plans.items() for path in save(draw(), folder / name, saving.formats)
    ]


def _chosen(
    table: dict[str, dict[str, Series]], methods: Sequence[str]
) -> dict[str, dict[str, Series]]:
    """Return the methods asked for, in their order."""
    unknown = set(methods) - set(table)
    if unknown:
        raise ValueError(f"no method {min(unknown)!r}: the table has {', '.join(table)}")
    return {name: table[name] for name in methods or table}


def _drawn_metrics(table: dict[str, dict[str, Series]], metrics: Sequence[str]) -> list[str]:
    """Return the metrics asked for, or all of the table."""
    present = dict.fromkeys(metric for series in table.values() for metric in series)
    for metric in metrics:
        if metric not in present:
            raise ValueError(f"no metric {metric!r}: the table has {', '.join(present)}")
    return list(metrics or present)


def _chosen_curves(
    curves: Sequence[Score], names: dict[tuple[str, str], str], methods: Sequence[str]
) -> list[Score]:
    """Return the curves of the methods asked for, which `names` calls as the scores do."""
    other = next((row.metric for row in curves if row.metric != CURVE), None)
    if other is not None:
        raise ValueError(
            f"the table of curves holds {other!r}: expected only {CURVE!r}, as "
            "`etsam evaluate --curves` writes it"
        )
    found = [row for row in curves if not methods or names.get((row.method, row.stage)) in methods]
    if curves and not found:
        have = ", ".join(dict.fromkeys(f"{row.method} {row.stage}" for row in curves))
        raise ValueError(f"no curve of {', '.join(methods)}: the table of curves has {have}")
    return found


def _say_uneven(table: dict[str, dict[str, Series]], metrics: Sequence[str]) -> None:
    """Warn where methods have not the same tomograms."""
    warn_of_uneven({metric: evened(columns_of(table, metric))[1] for metric in metrics}, "methods")


def _mean_areas(
    table: dict[str, dict[str, Series]], names: dict[tuple[str, str], str]
) -> dict[tuple[str, str], float]:
    """Return the mean AUPRC of each (method, stage) of the table that has one."""
    areas, _ = evened(columns_of(table, "auprc"))
    return {key: mean_of([*areas[name].values()]) for key, name in names.items() if name in areas}


def _series_of(rows: Sequence[Score], given: str) -> dict[str, Series]:
    """Return the scores of METHOD or METHOD@THRESHOLD."""
    names = variant_names(rows)
    known = list(names.values())
    name, _, level = (given, "", "") if given in known else given.rpartition("@")
    if name not in known:
        raise ValueError(f"no method {name or given!r}: the table has {', '.join(known)}")
    members = [row for row in rows if names[row.method, row.stage] == name]
    try:
        wanted = {members[0].method: float(level)} if level else None
    except ValueError:
        raise ValueError(f"{given!r}: expected METHOD@THRESHOLD, as in ETSAM@-0.25") from None
    try:
        (series,) = variants(members, wanted).values()
    except ValueError as error:  # this command has no --at
        raise ValueError(str(error).replace(f"--at {members[0].method}=", f"{name}@")) from error
    return series


def _volume(stack: ExitStack, path: Path, voxel_spacing: float | None) -> Tomogram:
    return stack.enter_context(closing(open_tomogram(path, voxel_spacing=voxel_spacing)))


def _opened(
    stack: ExitStack, name: str, path: Path, voxel_spacing: float | None
) -> tuple[str, Tomogram, float]:
    """Open a mask or scores, and say above what they are membrane."""
    seen = recognise(path)
    opened = stack.enter_context(closing(seen.open(voxel_spacing=voxel_spacing)))
    usual = TYPICAL_THRESHOLD[seen.kind or score_kind(opened)]
    return name, opened, usual if seen.threshold is None else seen.threshold


def _quarters(volume: Tomogram) -> tuple[int, ...]:
    """Return the slices at a quarter, half and three quarters of the depth, each once."""
    return tuple(sorted({int(volume.shape[0] * part) for part in (0.25, 0.5, 0.75)}))


def _file_name(text: str) -> str:
    """Return a name without spaces, folders and what else a table may hold."""
    return re.sub(r"[^\w.+-]+|\.{2,}", "_", text)


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

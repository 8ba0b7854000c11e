"""Figures from tables of scores and from volumes, as PDF and PNG."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from etsam.charts import ablation, ablation_table, change_plot, cost_bars
from etsam.compare import compare
from etsam.costs import read_costs
from etsam.drawing import mean_of, style
from etsam.overlay import Reference
from etsam.panels import CLEANED, slice_panels
from etsam.plots import (
    CURVE,
    box_plots,
    precision_recall,
    threshold_sweep,
    tomogram_bars,
)
from etsam.predictions import TYPICAL_THRESHOLD, recognise, score_kind
from etsam.scenes import View, surface_panels
from etsam.storage import write_text
from etsam.tables import Score, Series, variant_names, variants
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
        As `compare`; or `curves` are no curves, or of none of the methods.
    """
    table = _chosen(variants(rows, thresholds), methods)
    present = dict.fromkeys(metric for series in table.values() for metric in series)
    for metric in metrics:
        if metric not in present:
            raise ValueError(f"no metric {metric!r}: the table has {', '.join(present)}")
    names = variant_names(rows)
    drawn_curves = _chosen_curves(curves, names, methods)
    files = []
    scored = [
        name for name in table if any(metric in table[name] for metric in metrics or MASK_METRICS)
    ]
    if scored and len({row.tomogram for row in rows}) >= FEWEST:
        comparisons = compare(
            rows, metrics=metrics, methods=scored, thresholds=thresholds, skip_few=True
        )
        files += save(box_plots(table, comparisons), folder / "boxes", formats)
    for metric in metrics or present:
        drawn = tomogram_bars(table, metric)
        files += save(drawn, folder / _file_name(f"bars_{metric}"), formats)
    shown = [row for row in rows if names[row.method, row.stage] in table]
    for name, members in _swept(shown).items():
        drawn = threshold_sweep(members, name, MASK_METRICS)
        files += save(drawn, folder / _file_name(f"sweep_{name}"), formats)
    if drawn_curves:
        drawn = precision_recall(drawn_curves, _mean_areas(rows))
        files += save(drawn, folder / "precision_recall", formats)
    return files


def slice_figure(
    tomogram: Path,
    masks: Sequence[tuple[str, Path]],
    output: Path,
    *,
    truth: Path | None = None,
    slices: Sequence[int] = (),
    voxel_spacing: float | None = None,
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Draw slices of a tomogram beside truth and named masks (or scores at their usual threshold).

    `output` is a name without file type; `slices` default to a quarter, half and three quarters of
    the depth; `voxel_spacing` in Å takes the place of the headers'.

    Raises
    ------
    FileNotFoundError, ValueError
        A volume is missing or of another shape or voxel size, a slice is not there, or the truth
        holds other than 1, 0 and -1.
    """
    with ExitStack() as stack:
        volume = _volume(stack, tomogram, voxel_spacing)
        held = None if truth is None else Reference(_volume(stack, truth, voxel_spacing))
        shown = [_opened(stack, *mask, voxel_spacing) for mask in masks]
        drawn = slice_panels(volume, held, shown, tuple(slices) or _quarters(volume))
    return save(drawn, output, formats)


def cleaning_figure(
    tomogram: Path,
    masks: tuple[Path, Path],
    output: Path,
    *,
    slices: Sequence[int] = (),
    voxel_spacing: float | None = None,
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Draw slices of a tomogram with a mask after and before cleaning: kept, removed, added.

    `masks` are before and after, or scores, of which those above their usual threshold count; see
    `slice_figure` for the rest.

    Raises
    ------
    FileNotFoundError, ValueError
        A volume is missing or of another shape or voxel size, or a slice is not there.
    """
    with ExitStack() as stack:
        volume = _volume(stack, tomogram, voxel_spacing)
        before = _opened(stack, "before", masks[0], voxel_spacing)
        _, after, threshold = _opened(stack, "after", masks[1], voxel_spacing)
        chosen = tuple(slices) or _quarters(volume)
        drawn = slice_panels(volume, Reference(after, threshold), [before], chosen, CLEANED)
    return save(drawn, output, formats)


def surface_figure(
    truth: Path,
    masks: Sequence[tuple[str, Path]],
    output: Path,
    *,
    view: View | None = None,
    voxel_spacing: float | None = None,
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Draw the surface of the truth beside that of each named mask, right and wrong in colour.

    Raises
    ------
    FileNotFoundError, ValueError
        A volume is missing or of another shape or voxel size, or the truth is empty or holds other
        than 1, 0 and -1.
    """
    with ExitStack() as stack:
        labels = _volume(stack, truth, voxel_spacing)
        shown = [_opened(stack, *mask, voxel_spacing) for mask in masks]
        drawn = surface_panels(labels, shown, view=view)
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
        A method is unknown or its threshold not clear, or they have nothing in common.
    """
    table = {name: _series_of(rows, name) for name in names}
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


def _mean_areas(rows: Sequence[Score]) -> dict[tuple[str, str], float]:
    """Return the mean AUPRC of each (method, stage) that has one."""
    areas: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row.metric == "auprc":
            areas.setdefault((row.method, row.stage), []).append(row.value)
    return {key: mean_of(values) for key, values in areas.items()}


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

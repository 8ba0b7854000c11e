"""A page to look at before trusting a mask: one HTML file per tomogram, and an index of many."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from etsam.frame import frame_of
from etsam.membrane import load_membrane
from etsam.options import LOGIT_THRESHOLD, take_paths
from etsam.overlay import check_shapes
from etsam.provenance import record_path
from etsam.report.numbers import Flag, measure
from etsam.report.pack import pack_mesh, pack_volume, thumbnail
from etsam.report.page import INDEX_MARK, IndexRow, PageSource, index_html, page_html
from etsam.report.recorded import read_recorded, recorded_parameters, recorded_threshold
from etsam.staging import hidden_folder
from etsam.storage import refuse_taken, same_spacing, write_text
from etsam.volume import (
    Tomogram,
    open_tomogram,
    output_path,
    refuse_input,
    stem_of,
    whole_volume,
)

SUFFIX = "_report.html"
INDEX = "index.html"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ReportOptions:
    """Where results are and the report goes; None is beside the tomogram.

    `threshold` None is the recorded one. `mask` and `logits` name files that do not have the usual names.
    """

    results: Path | None = None
    output: Path | None = None
    threshold: float | None = None
    mask: Path | None = None
    logits: Path | None = None
    voxel_spacing: float | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        take_paths(self, "results", "output", "mask", "logits")


def report_file(
    path: Path | str, options: ReportOptions | None = None, progress: Progress | None = None
) -> IndexRow:
    """Write the page of a segmented tomogram, and return its row for an index.

    The logits are shown where there are any of the mask's run, with a threshold to move, otherwise the
    mask. All is measured with the tomogram's voxel spacing and origin; where the segmentation says another
    spacing there is a warning.

    Raises
    ------
    FileNotFoundError, FileExistsError, OSError
        If the tomogram or its segmentation is not there, or the page is, or cannot be written.
    ValueError
        If the shapes differ, the voxel spacing is unknown, or the JSON beside the mask is damaged.
    """
    options = options or ReportOptions()
    tomogram_path = Path(path)
    target = page_path(tomogram_path, options.output)
    refuse_input([target], tomogram_path, "tomogram")
    if not options.overwrite:
        refuse_taken(target)
    with ExitStack() as stack:
        opened = open_tomogram(tomogram_path, voxel_spacing=options.voxel_spacing)
        tomogram = stack.enter_context(closing(opened))
        frame = frame_of(tomogram)
        recorded = _recorded(tomogram_path, options)
        source_path = _segmentation(tomogram_path, options, recorded)
        threshold = _threshold(options, recorded)
        _check_grid(source_path, tomogram, options)
        # it can be made, so the page can be written
        stack.enter_context(hidden_folder(target.parent, target.name))
        _say(progress, 0)
        loaded = load_membrane(source_path, threshold=threshold, voxel_spacing=frame.spacing[0])
        membrane = replace(loaded, frame=frame)
        if loaded.field is None and options.threshold is not None:
            warnings.warn(f"{source_path} is a mask: --logit-threshold is for logits", stacklevel=2)
        parameters = recorded_parameters(recorded) | {"logit_threshold": threshold}
        measured = measure(membrane, tomogram, parameters)
        _say(progress, 1)
        volume = pack_volume(tomogram, membrane)
        mesh = None
        if measured.mesh is not None:
            mesh = pack_mesh(measured.mesh, measured.vertex_membranes)
        source = PageSource(
            whole_volume(tomogram_path).name,
            frame,
            threshold,
            membrane.field is not None,
            recorded,
        )
        _say(progress, 2)
        write_text(target, page_html(source, measured, volume, mesh))
        picture = thumbnail(tomogram, membrane)
        _say(progress, 3)
    return IndexRow(stem_of(tomogram_path), target, picture, measured.rows, measured.flags)


def kept_row(path: Path | str, options: ReportOptions) -> IndexRow:
    """Return a row of an index for a page that was there and is kept: its link, nothing measured."""
    target = page_path(Path(path), options.output)
    flag = Flag("page of before", "info", "Its numbers are on the page; --overwrite makes it anew.")
    return IndexRow(stem_of(path), target, None, {}, [flag])


def failed_row(path: Path | str, options: ReportOptions, reason: str) -> IndexRow:
    """Return a row of an index for a tomogram whose page could not be made: why, nothing measured."""
    target = page_path(Path(path), options.output)
    page = target if target.exists() else None
    return IndexRow(stem_of(path), page, None, {}, [Flag("failed", "warn", reason)])


def write_index(rows: Sequence[IndexRow], folder: Path | str, *, overwrite: bool = False) -> Path:
    """Write the index of pages into a folder; the pages may lie elsewhere.

    Raises
    ------
    FileExistsError
        As `check_index`.
    """
    path = check_index(Path(folder), overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, index_html(rows, "Membranes: what to look at", path.parent))
    return path


def check_index(folder: Path, *, overwrite: bool) -> Path:
    """Return the name of a folder's index.

    Raises
    ------
    FileExistsError
        There is one already, and `overwrite` is not set or the page is not ours.
    """
    path = folder / INDEX
    if path.exists():
        if INDEX_MARK.encode() not in path.read_bytes():
            raise FileExistsError(f"{path} is no index of ours: move it, or give another --output")
        if not overwrite:
            refuse_taken(path)
    return path


def page_path(tomogram: Path, output: Path | None) -> Path:
    """Return the name of a tomogram's page."""
    return (output or whole_volume(tomogram).parent) / f"{stem_of(tomogram)}{SUFFIX}"


def _segmentation(
    tomogram: Path, options: ReportOptions, recorded: Mapping[str, Any] | None
) -> Path:
    """Return the logits of a tomogram, or its mask where the mask's run stored no logits."""
    given = options.logits or options.mask
    if given is not None:
        return given
    mask = output_path(tomogram, "_membrane", options.results)
    logits = output_path(mask, "_logits")
    found = [logits, mask, mask.with_suffix(".mrc")]
    if logits.exists() and recorded_parameters(recorded).get("store_logits") is False:
        warnings.warn(
            f"{logits} is of another run than {mask.name}, which stored no logits: the mask is shown",
            stacklevel=3,
        )
        found.remove(logits)
    for path in found:
        if path.exists():
            return path
    raise FileNotFoundError(
        f"{tomogram} has no segmentation {mask.name} in {mask.parent}: run `etsam segment --store-logits`, "
        "or say where with --results"
    )


def _recorded(tomogram: Path, options: ReportOptions) -> dict[str, Any] | None:
    """Return the JSON that `etsam segment` wrote, where there is one."""
    given = options.mask or output_path(tomogram, "_membrane", options.results)
    return read_recorded(record_path(given))


def _threshold(options: ReportOptions, recorded: dict[str, Any] | None) -> float:
    if options.threshold is not None:
        return options.threshold
    known = recorded_threshold(recorded)
    return LOGIT_THRESHOLD if known is None else known


def _check_grid(path: Path, tomogram: Tomogram, options: ReportOptions) -> None:
    """Refuse a segmentation of another shape; say so where its voxels are of another size."""
    with closing(open_tomogram(path, voxel_spacing=options.voxel_spacing)) as segmentation:
        check_shapes((str(tomogram.path), tomogram), (str(path), segmentation))
        mine, theirs = segmentation.voxel_spacing, tomogram.voxel_spacing
        if mine and theirs and not same_spacing(mine, theirs):
            sizes = [" x ".join(f"{step:g}" for step in one) for one in (mine, theirs)]
            warnings.warn(
                f"{path} says voxels of {sizes[0]} Å, the tomogram {sizes[1]} Å: the tomogram's are "
                "taken; give --voxel-spacing where they are wrong",
                stacklevel=3,
            )


def _say(progress: Progress | None, done: int) -> None:
    if progress is not None:
        progress("report", done, 3)

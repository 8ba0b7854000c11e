"""Segment with another method, to compare with: the ridge filter, MemBrain-seg or TARDIS."""

from __future__ import annotations

import math
import shutil
import tempfile
import warnings
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from etsam import __version__
from etsam.baselines.programs import (
    LOG,
    MEMBRAIN,
    ProgramOptions,
    Run,
    find_executable,
    run_program,
    score_slices,
)
from etsam.baselines.ridge import Progress, RidgeOptions, ridge_slices
from etsam.provenance import (
    Clock,
    earlier_record,
    input_record,
    is_as_written,
    outputs_record,
    provenance,
    weights_record,
    write_json,
)
from etsam.record import reading_notes, told_of
from etsam.results import write_thresholded
from etsam.storage import SPACING_UNKNOWN, refuse_taken, remove
from etsam.volume import Tomogram, open_tomogram, output_path, refuse_input

RIDGE_THRESHOLD = 0.0
"""Where the ridge filter's mean Dice on simulated tomograms is largest."""


@dataclass(frozen=True)
class BaselineResult:
    """The files that were written."""

    mask: Path
    scores: Path | None
    provenance: Path


def baseline(
    path: Path | str,
    output: Path | str | None = None,
    *,
    options: RidgeOptions | ProgramOptions | None = None,
    threshold: float | None = None,
    store_scores: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BaselineResult:
    """Find membranes by another method and write a mask and its JSON beside the tomogram.

    Names are those that `etsam evaluate` knows: NAME_ridge.mrc and NAME_ridge_logits.mrc,
    NAME_CHECKPOINT_segmented.mrc and NAME_scores.mrc (MemBrain-seg), NAME_semantic.mrc and
    NAME_CNN.mrc (TARDIS). Geometry is the tomogram's, whatever the program writes.

    Parameters
    ----------
    path
        Tomogram with dark membranes (see `invert` of the options).
    output
        Folder for the results.
    options
        Scales of the ridge filter (default), or which other program and how it is run.
    threshold
        Voxels with larger scores are membrane; None: the method's own.
    store_scores, overwrite
        Also write the scores; replace results that are there (scores not made again go too).
    progress
        Called with (what, slices done, slices in all).

    Raises
    ------
    FileNotFoundError, ValueError
        The tomogram is missing or unfit; the program is not there, failed, or wrote nothing. All it
        said is then kept in NAME_PROGRAM.log.
    FileExistsError
        A result is there already.
    """
    options = options or RidgeOptions()
    if threshold is None:
        threshold = (
            RIDGE_THRESHOLD if isinstance(options, RidgeOptions) else options.program.threshold
        )
    result = result_names(path, None if output is None else Path(output), options, store_scores)
    _refuse_existing(result, Path(path), overwrite)
    spacing = options.voxel_spacing
    with told_of(Path(path)) as told, closing(open_tomogram(path, voxel_spacing=spacing)) as source:
        details = _segment(source, options, threshold, result, progress)
        notes = [note for note in reading_notes(source) if not note.endswith(SPACING_UNKNOWN)]
        details["parameters"] |= {"threshold": threshold, "store_scores": store_scores}
        details |= {"warnings": [*told, *notes]}
        _remove_stale(result_names(path, result.mask.parent, options, scores=True), result)
        made = [written for written in (result.mask, result.scores) if written is not None]
        write_json(result.provenance, details | {"outputs": outputs_record(made)})
        for note in notes:
            warnings.warn(note, stacklevel=2)
    return result


def _refuse_existing(result: BaselineResult, source: Path, overwrite: bool) -> None:
    """Keep the tomogram, and without `overwrite` results that are there."""
    targets = [*filter(None, (result.mask, result.scores, result.provenance))]
    refuse_input(targets, source, "tomogram")
    if not overwrite:
        for target in targets:
            refuse_taken(target)


def _remove_stale(names: BaselineResult, made: BaselineResult) -> None:
    """Remove the scores that the run before wrote and this one did not; they are of another mask."""
    earlier = earlier_record(made.provenance, "baseline") or {}
    if made.scores is None and names.scores and is_as_written(names.scores, earlier):
        remove(names.scores)


def _segment(
    tomogram: Tomogram,
    options: RidgeOptions | ProgramOptions,
    threshold: float,
    result: BaselineResult,
    progress: Progress | None,
) -> dict[str, Any]:
    """Write mask and scores; return the JSON's contents."""
    clock = Clock()
    run: Run | None = None
    with ExitStack() as stack:
        if isinstance(options, ProgramOptions):
            with clock.stage(options.program.name):
                run = _run(stack, tomogram, options, result.mask, progress)
            slices = score_slices(run, tomogram, options.program.name, progress)
        else:
            result.mask.parent.mkdir(parents=True, exist_ok=True)
            slices = ridge_slices(tomogram, options, progress)
        stack.enter_context(closing(slices))
        label = f"etsam {__version__} baseline {_method(options)} > {threshold:g}"
        voxels = write_thresholded(
            slices, tomogram, threshold, mask=result.mask, scores=result.scores, label=label
        )
    details = _details(options, run, clock, input_record(tomogram))
    details["results"] = {
        "membrane_voxels": voxels,
        "membrane_fraction": voxels / math.prod(tomogram.shape),
    }
    return details


def _method(options: RidgeOptions | ProgramOptions) -> str:
    return "ridge" if isinstance(options, RidgeOptions) else options.program.name


def result_names(
    path: Path | str, folder: Path | None, options: RidgeOptions | ProgramOptions, scores: bool
) -> BaselineResult:
    """Return the names of the results, which tell `etsam evaluate` whose they are."""
    if isinstance(options, RidgeOptions):
        ours, theirs = "_ridge", "_ridge_logits"
    else:
        theirs = options.program.scores
        ours = "_semantic"
        if options.program == MEMBRAIN:
            checkpoint = "" if options.weights is None else options.weights.name
            ours = f"_{checkpoint.split('-val_loss')[0]}_segmented"
    mask = output_path(path, ours, folder)
    kept = output_path(path, theirs, folder) if scores else None
    return BaselineResult(mask, kept, mask.with_suffix(".json"))


def _run(
    stack: ExitStack,
    tomogram: Tomogram,
    options: ProgramOptions,
    mask: Path,
    progress: Progress | None,
) -> Run:
    """Run another program in a scratch folder beside the results; keep what it said if it fails."""
    name = options.program.name
    find_executable(options)
    mask.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(
        stack.enter_context(tempfile.TemporaryDirectory(prefix=f".etsam-{name}-", dir=mask.parent))
    ).resolve()
    log = output_path(tomogram.path or mask, f"_{name}", mask.parent).with_suffix(".log")
    log.unlink(missing_ok=True)
    try:
        return run_program(tomogram, options, scratch, progress)
    except ValueError as error:
        if not (scratch / LOG).is_file():
            raise
        shutil.copyfile(scratch / LOG, log)
        raise ValueError(f"{error} (all it said: {log})") from error


def _details(
    options: RidgeOptions | ProgramOptions, run: Run | None, clock: Clock, source: dict[str, Any]
) -> dict[str, Any]:
    """Return the JSON's contents; time and memory are the other program's where one ran."""
    if run is None or isinstance(options, RidgeOptions):
        return provenance(
            "baseline",
            parameters={"method": "ridge", **asdict(options)},
            inputs=[source],
            clock=clock,
        )
    weights = options.weights
    details = provenance(
        "baseline",
        parameters={
            "method": options.program.name,
            "command": run.command,
            "invert": options.invert,
            "voxel_spacing": options.voxel_spacing,
        },
        inputs=[source],
        compute={"weights": [weights_record(weights.name, weights)]} if weights else None,
        clock=clock,
    )
    return details | {"peak_rss_mb": run.peak_rss_mb}

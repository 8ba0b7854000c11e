"""Segment with another method, to compare with: the ridge filter, MemBrain-seg or TARDIS."""

from __future__ import annotations

import math
import shutil
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
    run_program,
    score_slices,
)
from etsam.baselines.ridge import Progress, RidgeOptions, ridge_slices
from etsam.ngff_metadata import refuse_folder
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
from etsam.staging import hidden_folder, place_files
from etsam.storage import SPACING_UNKNOWN, refuse_taken
from etsam.volume import Tomogram, open_tomogram, output_path, refuse_input, stem_of

RIDGE_THRESHOLD = 0.0
"""Where the ridge filter's mean Dice on simulated tomograms is largest."""


@dataclass(frozen=True)
class BaselineResult:
    """The files that were written."""

    mask: Path
    scores: Path | None
    provenance: Path

    def volumes(self) -> list[Path]:
        """All files but the JSON."""
        return [path for path in (self.mask, self.scores) if path is not None]


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
    threshold = _usual_threshold(options) if threshold is None else threshold
    result = result_names(path, None if output is None else Path(output), options, store_scores)
    _refuse_existing(result, Path(path), overwrite)
    home, spacing = result.mask.parent, options.voxel_spacing
    with ExitStack() as stack:
        told = stack.enter_context(told_of(Path(path)))
        source = stack.enter_context(closing(open_tomogram(path, voxel_spacing=spacing)))
        folder = stack.enter_context(hidden_folder(home, stem_of(result.mask)))
        staged = result_names(path, folder, options, store_scores)
        details = _segment(source, options, threshold, staged, progress)
        notes = _notes(source, options, details["results"]["membrane_voxels"])
        details["parameters"] |= {"threshold": threshold, "store_scores": store_scores}
        outputs = outputs_record(staged.volumes())
        details |= {"warnings": [*told, *notes], "outputs": outputs}
        write_json(staged.provenance, details)
        stale = _stale(result_names(path, home, options, scores=True), result)
        place_files(folder, [result.provenance, *result.volumes()], stale)
        for note in notes:
            warnings.warn(note, stacklevel=2)
    return result


def _notes(tomogram: Tomogram, options: RidgeOptions | ProgramOptions, voxels: int) -> list[str]:
    """What the user should know of a tomogram that has been segmented, with so many voxels of membrane."""
    notes = [note for note in reading_notes(tomogram) if not note.endswith(SPACING_UNKNOWN)]
    if not voxels:
        other = "leave out --invert" if options.invert else "--invert"
        notes.append(f"no membrane found: try a lower --logit-threshold, or {other}")
    return notes


def _usual_threshold(options: RidgeOptions | ProgramOptions) -> float:
    return RIDGE_THRESHOLD if isinstance(options, RidgeOptions) else options.program.threshold


def _refuse_existing(result: BaselineResult, source: Path, overwrite: bool) -> None:
    """Keep the tomogram, and without `overwrite` results that are there."""
    targets = [*result.volumes(), result.provenance]
    refuse_input(targets, source, "tomogram")
    for target in targets:
        refuse_folder(target)
        if not overwrite:
            refuse_taken(target)


def _stale(names: BaselineResult, made: BaselineResult) -> list[Path]:
    """The scores that the run before wrote and this one did not; they are of another mask."""
    earlier = earlier_record(made.provenance, "baseline") or {}
    others = [path for path in names.volumes() if path not in made.volumes()]
    return [path for path in others if is_as_written(path, earlier)]


def _segment(
    tomogram: Tomogram,
    options: RidgeOptions | ProgramOptions,
    threshold: float,
    staged: BaselineResult,
    progress: Progress | None,
) -> dict[str, Any]:
    """Write mask and scores in a hidden folder; return the JSON's contents."""
    clock = Clock()
    run: Run | None = None
    with ExitStack() as stack:
        if isinstance(options, ProgramOptions):
            with clock.stage(options.program.name):
                run = _run(tomogram, options, staged.mask, progress)
            slices = score_slices(run, tomogram, options.program.name, progress)
        else:
            slices = ridge_slices(tomogram, options, progress)
        stack.enter_context(closing(slices))
        label = f"etsam {__version__} baseline {_method(options)} > {threshold:g}"
        voxels = write_thresholded(
            slices, tomogram, threshold, mask=staged.mask, scores=staged.scores, label=label
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
    tomogram: Tomogram, options: ProgramOptions, staged: Path, progress: Progress | None
) -> Run:
    """Run another program where a mask is staged; keep what it said, in the folder above, if it fails."""
    name = options.program.name
    scratch = staged.parent.resolve() / name
    scratch.mkdir()
    home = staged.parent.parent
    log = output_path(tomogram.path or staged, f"_{name}", home).with_suffix(".log")
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

"""Segment membranes: arrays to logits for programs, files to masks for users.

The module is called segmentation because ``etsam.segment`` is its function. Torch is imported when
a model is loaded, so that wrong input is refused at once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from etsam import __version__
from etsam.arrays import file_of
from etsam.frame import frame_of
from etsam.logits import NpyWriter, check_npy
from etsam.memory import less_memory, memory_errors, with_smaller_tiles
from etsam.options import Normalisation, PromptKind, SegmentOptions, given_options
from etsam.postprocess import CleaningOptions, postprocess
from etsam.preview import save_preview
from etsam.provenance import (
    Clock,
    HashInBackground,
    input_record,
    outputs_record,
    refuse_changed,
    states_of,
    write_json,
)
from etsam.record import (
    array_notes,
    notes_on,
    reading_notes,
    segmentation_details,
    segmentation_label,
    told_of,
)
from etsam.results import (
    SegmentResult,
    Task,
    clear_folder,
    earlier_result,
    is_finished,
    outdated,
    refuse_existing,
    refuse_others,
    request_of,
    result_names,
    work_folder,
    write_thresholded,
)
from etsam.storage import require_space
from etsam.volume import Tomogram, open_tomogram, tomogram_from_array

if TYPE_CHECKING:
    from etsam.stages import Stage
    from etsam.unfinished import Unfinished

Progress = Callable[[float, str], None]
Load = Callable[[Progress | None], "list[Stage]"]


def segment(
    volume: np.ndarray | str | PathLike[str],
    *,
    normalize_method: Normalisation | None = None,
    split_processing: bool = False,
    stage1_prompt: PromptKind | None = None,
    stage2_prompt: PromptKind | None = None,
    progress: Progress | None = None,
    output_path: str | Path | None = None,
) -> np.ndarray:
    """Find the membranes of a volume with the bundled model; what the ETSAM napari plugin calls.

    Parameters
    ----------
    volume
        (Z, Y, X) array or memory map, or the path of a tomogram.
    normalize_method, split_processing, stage1_prompt, stage2_prompt
        As in `SegmentOptions`; None is the model's own. `segment_array` takes all options.
    progress
        Called with (fraction in 0..1, message); an exception in it cancels and leaves nothing.
    output_path
        A .npy file to write instead of holding the logits in memory.

    Returns
    -------
    logits
        Float32 (Z, Y, X); a read-only memory map of `output_path` where that is given.

    Raises
    ------
    ValueError, OSError, MemoryError
        As `segment_array`.
    """
    options = SegmentOptions(
        normalize_method=normalize_method,
        split_processing=split_processing,
        stage1_prompt=stage1_prompt,
        stage2_prompt=stage2_prompt,
    )
    logits, notes = _logits(volume, options, progress, output_path)
    _tell(notes)
    return logits


def segment_array(
    volume: np.ndarray | str | PathLike[str],
    options: SegmentOptions | None = None,
    *,
    progress: Progress | None = None,
    output_path: str | Path | None = None,
) -> np.ndarray:
    """Find the membranes of a volume with any model and options; see `segment`.

    Options about files, thresholds and post-processing play no role. What was odd in the volume is
    told as warnings.

    Raises
    ------
    ValueError
        The volume is constant or not three-dimensional, an option does not fit it, or
        `output_path` is no .npy or the volume itself.
    FileNotFoundError, OSError
        A file is missing, weights cannot be fetched, or the disk is full.
    MemoryError
        There is too little of it, also for the smallest tiles.
    TypeError
        `options` are none.
    """
    logits, notes = _logits(volume, given_options(options), progress, output_path)
    _tell(notes)
    return logits


def _logits(
    volume: np.ndarray | str | PathLike[str],
    options: SegmentOptions,
    progress: Progress | None,
    output_path: str | Path | None,
) -> tuple[np.ndarray, list[str]]:
    """Logits of a volume, and what the caller should know of it."""
    if output_path is not None:
        source = Path(volume) if isinstance(volume, str | PathLike) else file_of(volume)
        check_npy(Path(output_path), source)
    with ExitStack() as stack:
        tomogram = stack.enter_context(closing(_open(volume, options)))
        write: Callable[[int, np.ndarray], None]
        if output_path is None:
            writer, logits = None, np.empty(tomogram.shape, np.float32)
            write = logits.__setitem__
        else:
            writer = stack.enter_context(NpyWriter(Path(output_path), tomogram.shape))
            write = writer.write_slice
        stages = _load(options, progress)

        def attempt(options: SegmentOptions) -> None:
            if writer is not None:
                writer.restart()
            options = _with_polarity(tomogram, stages, options, progress)
            with closing(_slices(tomogram, stages, options, progress)) as slices:
                for z, plane in enumerate(slices):
                    write(z, plane)

        with_smaller_tiles(attempt, options, *_room(tomogram, stages, options))
        notes = [*array_notes(tomogram, stages), *reading_notes(tomogram)]
    return logits if output_path is None else np.load(output_path, mmap_mode="r"), notes


def _tell(notes: Iterable[str]) -> None:
    """Warn the caller of the function that found out."""
    for note in notes:
        warnings.warn(note, stacklevel=3)


def segment_file(
    path: str | Path,
    options: SegmentOptions | None = None,
    progress: Progress | None = None,
    *,
    load: Load | None = None,
    resume: bool = False,
    run: str = "",
) -> SegmentResult:
    """Segment a tomogram and write mask, JSON and what else the options ask for.

    ``TS_1.mrc`` gives ``TS_1_membrane.mrc`` and, beside it, what `SegmentResult` lists, renamed
    when all is complete. What an interruption or a full disk leaves a later call goes on with.

    Parameters
    ----------
    load
        Loads the networks (default: those of the options), so that many tomograms share them.
    resume
        Keep a result of the same input, weights and parameters, else go on where a run stopped.
    run
        A name for this run: what the same run has done already counts as with `resume`.

    Raises
    ------
    FileNotFoundError, FileExistsError, ValueError, OSError, MemoryError
        Input missing or unfit, results there or being made already, disk or memory used up.
    """
    options, clock, path = given_options(options), Clock(), Path(path)
    before = states_of([path])
    with told_of(path) as told, closing(_open(path, options)) as tomogram:
        result = _names(tomogram, path, options)
        earlier = earlier_result(result)
        ours = earlier is not None and (resume or bool(run and earlier.get("run") == run))
        refuse_existing(result, path, replaceable=options.overwrite or ours)
        stages = _load(options, progress, load)
        networks = [stage.identity for stage in stages]
        task = Task(input_record(tomogram, before), networks, request_of(options))
        if earlier is not None and ours and is_finished(result, earlier, task):
            return replace(result, details=earlier, reused=True)
        refuse_others(result, earlier, overwrite=options.overwrite)
        with work_folder(result) as folder, HashInBackground(path) as hashed:
            refuse_existing(result, path, replaceable=options.overwrite or ours)  # made meanwhile
            staged = result.staged(folder)
            with _unfinished(folder, task, stages, resume, run) as unfinished:
                work = partial(_attempt, tomogram, stages, progress, unfinished, staged)
                kept = replace(options, tile=unfinished.settled.get("tile", options.tile))
                with clock.stage("segment"):
                    options, voxels = with_smaller_tiles(work, kept, *_room(tomogram, stages, kept))
                with clock.stage("finish"), memory_errors(less_memory(stages)):
                    cleaning = _finish(tomogram, options, staged)
            refuse_changed(before)
            notes = [*notes_on(tomogram, stages, options, voxels), *outdated(result)]
            details = segmentation_details(tomogram, stages, options, voxels, cleaning, clock)
            details |= task.record(hashed.result()) | {"run": run or None}
            details |= {"outputs": outputs_record(staged.beside()), "warnings": [*told, *notes]}
            write_json(staged.provenance, details)
            result.details.update(details)
        _tell(notes)
    return result


def _open(volume: np.ndarray | str | PathLike[str], options: SegmentOptions) -> Tomogram:
    """Open what is to be segmented, an array or a path."""
    if not isinstance(volume, str | PathLike):
        return tomogram_from_array(volume, voxel_spacing=options.voxel_spacing)
    if not fspath(volume):
        raise ValueError(f"the volume is {volume!r}: expected a file or an array (Z, Y, X)")
    return open_tomogram(Path(volume), voxel_spacing=options.voxel_spacing)


def _names(tomogram: Tomogram, path: Path, options: SegmentOptions) -> SegmentResult:
    """Where the results go; refuses before the work what could not be written after it."""
    if options.instances:
        frame_of(tomogram)  # labels need a known voxel spacing
    return result_names(path, options)


def _load(
    options: SegmentOptions, progress: Progress | None, load: Load | None = None
) -> list[Stage]:
    """Load the model's networks, and torch with them; by `load` where that is given."""
    from etsam.stages import load_stages

    with memory_errors():
        return load_stages(options, progress) if load is None else load(progress)


def _with_polarity(
    tomogram: Tomogram, stages: list[Stage], options: SegmentOptions, progress: Progress | None
) -> SegmentOptions:
    """Settle whether membranes are dark or bright."""
    from etsam.pipeline import Volume
    from etsam.polarity import settle_polarity

    return settle_polarity(Volume(tomogram, tomogram.voxel_spacing), stages[0], options, progress)


def _room(tomogram: Tomogram, stages: list[Stage], options: SegmentOptions) -> tuple[int, str]:
    """Longest side of what the networks see at once, 0 where it cannot be tiled; what needs less memory."""
    from etsam.pipeline import Volume, largest_frame

    frame = largest_frame(Volume(tomogram, tomogram.voxel_spacing), stages, options)
    return frame, less_memory(stages)


def _attempt(
    tomogram: Tomogram,
    stages: list[Stage],
    progress: Progress | None,
    unfinished: Unfinished,
    staged: SegmentResult,
    options: SegmentOptions,
) -> tuple[SegmentOptions, int]:
    """Segment with tiles of the size given; returns the options, all settled, and how many voxels are membrane.

    What is on disk of another size is begun anew.
    """
    from etsam.pipeline import Volume, missing_bytes

    if unfinished.settled.get("tile", options.tile) != options.tile:
        run = unfinished.settled["run"]
        unfinished.restart()
        unfinished.settled["run"] = run
        clear_folder(staged.mask.parent)
    unfinished.settled["tile"] = options.tile
    needed = missing_bytes(Volume(tomogram, tomogram.voxel_spacing), stages, unfinished)
    needed += math.prod(tomogram.shape) * staged.voxel_bytes
    require_space(staged.mask.parent, needed, f"making {staged.mask.name}")
    options = _settled(tomogram, stages, options, progress, unfinished)
    with closing(_slices(tomogram, stages, options, progress, unfinished)) as slices:
        voxels = write_thresholded(
            slices,
            tomogram,
            options.logit_threshold,
            mask=staged.mask,
            scores=staged.logits,
            label=segmentation_label(options),
        )
    return options, voxels


def _settled(
    tomogram: Tomogram,
    stages: list[Stage],
    options: SegmentOptions,
    progress: Progress | None,
    unfinished: Unfinished,
) -> SegmentOptions:
    """Settle the polarity, once for all processes that go on with this run."""
    if "polarity" not in unfinished.settled:
        options = _with_polarity(tomogram, stages, options, progress)
        unfinished.settled["polarity"] = options.polarity
    return replace(options, polarity=unfinished.settled["polarity"])


def _unfinished(
    folder: Path, task: Task, stages: list[Stage], resume: bool, run: str
) -> Unfinished:
    """What an earlier process left in the folder, or a new beginning in an empty folder.

    Raises
    ------
    OSError
        With `resume` where what was left cannot be read; it stays there.
    """
    import torch

    from etsam.unfinished import Unfinished

    dtypes = dict.fromkeys(str(stage.dtype) for stage in stages)
    made_by = [__version__, torch.__version__, stages[0].device.type, *dtypes]
    unfinished = Unfinished(folder, asdict(task) | {"made_by": made_by})
    try:
        found = unfinished.load()
    except OSError:
        if resume:
            raise
        found = False
    if not found or not (resume or (run and unfinished.settled.get("run") == run)):
        unfinished.restart()
    unfinished.settled["run"] = run
    clear_folder(folder, keep=unfinished.files())
    return unfinished


def _slices(
    tomogram: Tomogram,
    stages: list[Stage],
    options: SegmentOptions,
    progress: Progress | None,
    unfinished: Unfinished | None = None,
) -> Generator[np.ndarray, None, None]:
    """Logits of every slice in order."""
    from etsam.pipeline import Volume, segment_slices

    volume = Volume(tomogram, tomogram.voxel_spacing)
    return segment_slices(volume, stages, options, progress, unfinished)


def _finish(
    tomogram: Tomogram, options: SegmentOptions, staged: SegmentResult
) -> dict[str, Any] | None:
    """Draw the preview, clean the mask, number membranes; returns what cleaning removed."""
    if staged.preview is not None:
        with closing(open_tomogram(staged.mask)) as mask:
            save_preview(staged.preview, tomogram, mask)
    cleaned = None
    if staged.cleaned is not None:
        asked = CleaningOptions(min_slices=options.min_slices)
        cleaned = postprocess(staged.mask, staged.cleaned, asked).summary
    if staged.instances is not None:
        from etsam.export.layouts import write_instances

        source = staged.cleaned or staged.mask
        write_instances(source, staged.instances, tomogram, voxel_spacing=options.voxel_spacing)
    return None if cleaned is None else asdict(cleaned)

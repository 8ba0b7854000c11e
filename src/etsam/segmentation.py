"""Segment membranes: arrays to logits for programs, files to masks for users.

The module is called segmentation because ``etsam.segment`` is its function. Torch is imported when
a model is loaded, so that wrong input is refused at once.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from etsam import __version__
from etsam.logits import NpyWriter
from etsam.options import SegmentOptions
from etsam.postprocess import postprocess
from etsam.preview import save_preview
from etsam.provenance import Clock, input_record, provenance, write_json
from etsam.volume import (
    KNOWN_SUFFIXES,
    Tomogram,
    create_volume,
    open_tomogram,
    output_path,
    tomogram_from_array,
)

if TYPE_CHECKING:
    from etsam.frames import PromptKind
    from etsam.intensity import Normalisation
    from etsam.stages import Stage

Progress = Callable[[float, str], None]

EMPTY = (
    "no membrane found in {path}: look at the preview; try --logit-threshold -1, --invert where "
    "membranes are bright, or --voxel-spacing"
)


@dataclass(frozen=True)
class SegmentResult:
    """The files that were written; None for those that were not asked for.

    ``details`` is what the JSON file holds.
    """

    mask: Path
    provenance: Path
    preview: Path | None
    logits: Path | None
    cleaned: Path | None
    details: dict[str, Any]

    def json(self) -> str:
        """One line of JSON with paths and details."""
        paths = {
            name: None if value is None else str(value)
            for name, value in vars(self).items()
            if name != "details"
        }
        return json.dumps(paths | self.details, default=str)

    def paths(self) -> list[Path]:
        """All files of the result."""
        return [path for path in vars(self).values() if isinstance(path, Path)]

    def staged(self, folder: Path) -> SegmentResult:
        """The same file names in another folder."""
        moved: dict[str, Any] = {
            name: folder / path.name for name, path in vars(self).items() if isinstance(path, Path)
        }
        return replace(self, **moved)


def segment(
    volume: np.ndarray | str | Path,
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
        (Z, Y, X) array or memory map with dark membranes, or the path of a tomogram.
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
    ValueError, OSError
        As `segment_array`.
    """
    options = SegmentOptions(
        normalize_method=normalize_method,
        split_processing=split_processing,
        stage1_prompt=stage1_prompt,
        stage2_prompt=stage2_prompt,
    )
    return segment_array(volume, options, progress=progress, output_path=output_path)


def segment_array(
    volume: np.ndarray | str | Path,
    options: SegmentOptions | None = None,
    *,
    progress: Progress | None = None,
    output_path: str | Path | None = None,
) -> np.ndarray:
    """Find the membranes of a volume with any model and options; see `segment`.

    Options about files, thresholds and post-processing play no role.

    Raises
    ------
    ValueError
        The volume is constant or not three-dimensional, or an option does not fit it.
    FileNotFoundError, OSError
        A file is missing, weights cannot be fetched, or the disk is full.
    """
    options = options or SegmentOptions()
    opened = (
        open_tomogram(volume, voxel_spacing=options.voxel_spacing)
        if isinstance(volume, str | Path)
        else tomogram_from_array(volume, voxel_spacing=options.voxel_spacing)
    )
    with ExitStack() as stack:
        tomogram = stack.enter_context(closing(opened))
        if output_path is None:
            logits = np.empty(tomogram.shape, np.float32)
            write: Callable[[int, np.ndarray], None] = logits.__setitem__
        else:
            target = Path(output_path)
            write = stack.enter_context(NpyWriter(target, tomogram.shape)).write_slice
        slices = _slices(tomogram, _load(options, progress), options, progress)
        with closing(slices):
            for z, plane in enumerate(slices):
                write(z, plane)
    return logits if output_path is None else np.load(target, mmap_mode="r")


def segment_file(
    path: str | Path,
    options: SegmentOptions | None = None,
    progress: Progress | None = None,
) -> SegmentResult:
    """Segment a tomogram and write mask, JSON and what else the options ask for.

    ``TS_1.mrc`` gives ``TS_1_membrane.mrc`` and, beside it, ``.json``, ``.png``, ``_logits.mrc``
    and ``_postprocessed.mrc``. Everything is made in a hidden folder there and renamed at the end:
    a failure, or an exception of `progress`, leaves nothing.

    Raises
    ------
    FileNotFoundError, FileExistsError, ValueError, OSError
        The tomogram is missing or unfit, a result is there already, or the disk is full.
    """
    options = options or SegmentOptions()
    clock = Clock()
    with closing(open_tomogram(path, voxel_spacing=options.voxel_spacing)) as tomogram:
        result = _names(Path(path), options)
        _refuse_existing(result, Path(path), options)
        stages = _load(options, progress)
        with _staged(result) as folder:
            with clock.stage("segment"):
                voxels = _write_volumes(tomogram, stages, options, result.staged(folder), progress)
            with clock.stage("finish"):
                cleaning = _finish(tomogram, options, result.staged(folder))
            notes = list(tomogram.notes)
            if not voxels:
                notes.append(EMPTY.format(path=path))
            result.details.update(
                provenance(
                    "segment",
                    parameters=asdict(options),
                    results={
                        "membrane_voxels": voxels,
                        "membrane_fraction": voxels / math.prod(tomogram.shape),
                        "cleaning": cleaning,
                    },
                    inputs=[input_record(tomogram)],
                    compute=_compute(stages, options),
                    clock=clock,
                    warnings=notes,
                )
            )
            write_json(folder / result.provenance.name, result.details)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return result


def _load(options: SegmentOptions, progress: Progress | None) -> list[Stage]:
    """Load the model's networks, and torch with them."""
    from etsam.stages import load_stages

    return load_stages(options, progress)


def _slices(
    tomogram: Tomogram, stages: list[Stage], options: SegmentOptions, progress: Progress | None
) -> Generator[np.ndarray, None, None]:
    """Logits of every slice in order."""
    from etsam.pipeline import Volume, segment_slices

    volume = Volume(tomogram, tomogram.voxel_spacing)
    return segment_slices(volume, stages, options, progress)


def _names(path: Path, options: SegmentOptions) -> SegmentResult:
    """Names of all results."""
    output = options.output
    if output is not None and KNOWN_SUFFIXES.search(output.name) and not _is_folder(output):
        mask = output
    else:
        mask = output_path(path, "_membrane", output)
    stem = KNOWN_SUFFIXES.sub("", mask.name)
    return SegmentResult(
        mask,
        mask.with_name(f"{stem}.json"),
        mask.with_name(f"{stem}.png") if options.preview else None,
        output_path(mask, "_logits") if options.store_logits else None,
        output_path(mask, "_postprocessed") if options.post_process else None,
        {},
    )


def _is_folder(path: Path) -> bool:
    """Whether a path is a folder for results, which an OME-Zarr is not."""
    return path.is_dir() and path.suffix.lower() != ".zarr"


def _refuse_existing(result: SegmentResult, source: Path, options: SegmentOptions) -> None:
    """Keep results that are there, and always the tomogram."""
    for path in result.paths():
        if path.exists() and path.resolve() == source.resolve():
            raise ValueError(f"{path} is the tomogram itself: give another --output")
        if path.exists() and not options.overwrite:
            raise FileExistsError(f"{path} is there already: give --overwrite or another --output")


@contextmanager
def _staged(result: SegmentResult) -> Iterator[Path]:
    """Hidden folder beside the results whose files get their names when all went well."""
    result.mask.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(
        tempfile.mkdtemp(prefix=f".{result.mask.name}-", suffix=".partial", dir=result.mask.parent)
    )
    try:
        yield folder
        for path in result.paths():
            if path.is_dir():
                shutil.rmtree(path)
            (folder / path.name).replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_volumes(
    tomogram: Tomogram,
    stages: list[Stage],
    options: SegmentOptions,
    staged: SegmentResult,
    progress: Progress | None,
) -> int:
    """Write mask and logits slice by slice; returns the number of membrane voxels."""
    label = f"etsam {__version__} segment {options.model} logits > {options.logit_threshold:g}"
    voxels = 0
    with ExitStack() as stack:
        mask = create_volume(staged.mask, tomogram, dtype="int8", label=label[:80])
        stack.enter_context(mask)
        logits = None
        if staged.logits is not None:
            logits = create_volume(staged.logits, tomogram, dtype="float32", label=label[:80])
            stack.enter_context(logits)
        slices = stack.enter_context(closing(_slices(tomogram, stages, options, progress)))
        for z, plane in enumerate(slices):
            membrane = plane > options.logit_threshold
            voxels += int(np.count_nonzero(membrane))
            mask.write_slice(z, membrane.view(np.int8))
            if logits is not None:
                logits.write_slice(z, plane)
    return voxels


def _finish(
    tomogram: Tomogram, options: SegmentOptions, staged: SegmentResult
) -> dict[str, Any] | None:
    """Draw the preview and clean the mask; returns what cleaning removed."""
    if staged.preview is not None:
        with closing(open_tomogram(staged.mask)) as mask:
            save_preview(staged.preview, tomogram, mask)
    if staged.cleaned is None:
        return None
    cleaned = postprocess(staged.mask, staged.cleaned, min_slices=options.min_slices)
    return asdict(cleaned.summary)


def _compute(stages: list[Stage], options: SegmentOptions) -> dict[str, Any]:
    """Device, precision and weights for the provenance."""
    weights = [
        {
            "name": str(options.model),
            "path": str(stage.path),
            "sha256": stage.sha256,
            "frames": stage.spec.to_dict(),
        }
        for stage in stages
    ]
    weight = stages[0].model.no_mem_embed
    dtype = str(weight.dtype).removeprefix("torch.")
    return {"device": str(weight.device), "dtype": dtype, "weights": weights}

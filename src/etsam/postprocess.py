"""Clean a membrane mask: cut rungs between parallel membranes, drop blobs of few slices.

Rungs are cut first, so that a scrap of noise which hung on a membrane by a rung is judged by itself
and every blob of the result spans at least `min_slices` slices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from etsam.components import Blobs, PackedMask, drop_thin, find_blobs
from etsam.in_order import in_order
from etsam.ngff_metadata import refuse_folder
from etsam.options import MIN_SLICES, check_counts
from etsam.provenance import (
    Clock,
    State,
    input_record,
    provenance,
    record_path,
    refuse_changed,
    states_of,
    write_json,
)
from etsam.results import names_mask
from etsam.skeleton import clean_packed
from etsam.staging import hidden_folder, place_files
from etsam.storage import refuse_taken
from etsam.volume import (
    Tomogram,
    create_volume,
    open_tomogram,
    output_path,
    refuse_input,
    stem_of,
)

MAX_RUNG = 5
"""Longest rung to cut, in skeleton pixels (released code; the paper does not mention rungs)."""

SUFFIX = "_postprocessed"
BATCH = 16  # slices read at once
WORTH_A_PROCESS = 50_000_000  # voxels; fewer are cleaned sooner than a process starts

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CleaningOptions:
    """What is removed from a mask.

    Attributes
    ----------
    min_slices
        Blobs (26-connected) over fewer consecutive slices are dropped; 0 and 1 keep all. In a
        volume with fewer slices, blobs through the whole volume are kept.
    max_rung
        Longest rung between parallel membranes to cut per slice, in skeleton pixels; 0 cuts none.
    max_spur
        Longest free branch to remove per slice, in skeleton pixels; 0 removes none.
    """

    min_slices: int = MIN_SLICES
    max_rung: int = MAX_RUNG
    max_spur: int = 0

    def __post_init__(self) -> None:
        check_counts(self, {"min_slices": 0, "max_rung": 0, "max_spur": 0})

    @property
    def label(self) -> str:
        """Line for the header of the result."""
        text = " ".join(f"{name}={value}" for name, value in vars(self).items())
        return f"etsam postprocess {text}"[:80]


AS_USUAL = CleaningOptions()


@dataclass(frozen=True)
class CleaningSummary:
    """What cleaning found and removed; voxels are membrane voxels."""

    blobs: int
    blobs_dropped: int
    rungs_cut: int
    spurs_removed: int
    voxels_before: int
    voxels_after: int


@dataclass(frozen=True)
class Postprocessed:
    """The files written by `postprocess` and what was removed from the mask."""

    path: Path
    provenance: Path
    summary: CleaningSummary


def postprocess(
    mask: Path | str | Tomogram,
    output: Path | str | None = None,
    options: CleaningOptions = AS_USUAL,
    *,
    overwrite: bool = False,
    workers: int = 1,
    progress: Progress | None = None,
) -> Postprocessed:
    """Clean a membrane mask and write the result beside it, with the same geometry, and a JSON.

    Parameters
    ----------
    mask
        MRC file or OME-Zarr with 0 and one other value, or an open one (which stays open).
    output
        Folder, made if needed, or the result's name in .mrc or .zarr (default
        `{stem}_postprocessed.mrc` beside the mask).
    options
        What is removed.
    overwrite
        Replace an output that is there.
    workers
        Processes for large masks, see `etsam.in_order.in_order`; small ones take one.
    progress
        Called with ("clean" or "write", slices done, slices in all).

    Raises
    ------
    FileNotFoundError
        If there is no such mask.
    FileExistsError
        If the output or its JSON is there and `overwrite` is not set.
    ValueError
        If the volume is no mask, changed while it was read, or the output is it, holds it or lies in it.
    """
    path, clock = mask.path if isinstance(mask, Tomogram) else Path(mask), Clock()
    before = states_of(filter(None, [path]))
    source = mask if isinstance(mask, Tomogram) else open_tomogram(mask)
    try:
        target, record = _targets(source, output, overwrite)
        workers = min(workers, math.prod(source.shape) // WORTH_A_PROCESS)
        packed = _PackedBatches(source.shape, _batches(source))
        cleaned = _clean(packed, options, workers, progress)
        with hidden_folder(target.parent, stem_of(target)) as folder:
            summary = _write(cleaned, folder / target.name, source, options, progress)
            refuse_changed(before)
            details = _details(source, before, options, summary, clock)
            write_json(folder / record.name, details)
            place_files(folder, [record, target])
    finally:
        if source is not mask:
            source.close()
    return Postprocessed(target, record, summary)


def clean_mask(
    mask: np.ndarray, options: CleaningOptions = AS_USUAL
) -> tuple[np.ndarray, CleaningSummary]:
    """Clean a mask in memory; see `postprocess`.

    Parameters
    ----------
    mask
        (Z, Y, X), bool or 0/1 int8 or uint8; never changed.
    options
        What is removed.

    Returns
    -------
    tuple
        A new mask of the same shape and data type, and what was removed.

    Raises
    ------
    ValueError
        If the array is not a (Z, Y, X) mask.
    """
    if mask.ndim != 3 or 0 in mask.shape[1:] or mask.dtype.kind not in "bui":
        raise ValueError(
            f"array of shape {mask.shape} and type {mask.dtype}: expected a (Z, Y, X) mask of "
            "bool or 0/1 integers; compare logits with a threshold first"
        )
    batches = (np.asarray(mask[z : z + BATCH]) for z in range(0, len(mask), BATCH))
    found = _clean(_PackedBatches(mask.shape, batches), options, 1, None)
    result = np.empty(mask.shape, mask.dtype)
    after = 0
    for z, data in found.slices():
        result[z] = data
        after += int(np.count_nonzero(data))
    return result, found.summary(after)


@dataclass(frozen=True)
class _Cleaned:
    """A mask without rungs, and its blobs."""

    mask: PackedMask
    blobs: Blobs
    counts: tuple[int, int, int]  # rungs, spurs, voxels before

    def slices(self) -> Iterator[tuple[int, NDArray[np.bool_]]]:
        """Yield (z, slice) of the result."""
        return drop_thin(self.mask, self.blobs)

    def summary(self, voxels_after: int) -> CleaningSummary:
        """Put together what was removed."""
        rungs, spurs, before = self.counts
        span = self.blobs.span
        dropped = int(np.count_nonzero(span < self.blobs.least))
        return CleaningSummary(len(span), dropped, rungs, spurs, before, voxels_after)


@dataclass
class _PackedBatches:
    """Batches of slices as packed bits (n, bytes); counts voxels and refuses what is no mask."""

    shape: tuple[int, ...]
    batches: Iterator[np.ndarray]
    voxels: int = 0

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        value = 0.0
        for batch in self.batches:
            masks = batch != 0
            value = _one_value(batch, masks, value)
            self.voxels += int(np.count_nonzero(masks))
            yield np.packbits(masks.reshape(len(batch), -1), axis=1)


def _clean(
    batches: _PackedBatches,
    options: CleaningOptions,
    workers: int,
    progress: Progress | None,
) -> _Cleaned:
    """Cut rungs slice by slice as the slices come, then find the blobs."""
    depth, *sides = batches.shape
    packed = PackedMask((sides[0], sides[1]))
    rungs = spurs = 0
    longest = options.max_rung, options.max_spur
    work = partial(clean_packed, shape=packed.slice_shape, longest=longest)
    with closing(in_order(work, batches, workers)) as results:
        for slices, removed in results:
            for data in slices:
                packed.append_packed(data)
            rungs += removed.rungs
            spurs += removed.spurs
            if progress is not None:
                progress("clean", len(packed), depth)
    blobs = find_blobs(packed, least=min(options.min_slices, len(packed)))
    return _Cleaned(packed, blobs, (rungs, spurs, batches.voxels))


def _write(
    cleaned: _Cleaned,
    target: Path,
    like: Tomogram,
    options: CleaningOptions,
    progress: Progress | None,
) -> CleaningSummary:
    """Write the result, and say what was removed."""
    after = 0
    with create_volume(target, like, dtype="int8", label=options.label) as writer:
        for z, data in cleaned.slices():
            writer.write_slice(z, data.view(np.int8))
            after += int(np.count_nonzero(data))
            if progress is not None:
                progress("write", z + 1, like.shape[0])
    return cleaned.summary(after)


def _batches(source: Tomogram) -> Iterator[np.ndarray]:
    """Read a volume a few slices at a time."""
    depth = source.shape[0]
    for start in range(0, depth, BATCH):
        batch = source.read_slices(start, min(start + BATCH, depth))
        source.require_finite()
        yield batch


def _one_value(batch: np.ndarray, masks: NDArray[np.bool_], value: float) -> float:
    """Return the one value besides 0 seen so far (0 when none was), or refuse the batch."""
    if not masks.any():
        return value
    high = low = float(batch.max())
    if not np.array_equal(batch == high, masks):  # a gather is slower than this
        values = batch[masks]
        low, high = float(values.min()), float(values.max())
    if low != high or low < 0 or value not in (0.0, low):
        raise ValueError(
            f"not a mask: found the values {min(low, value or low):g} and {max(high, value):g}, "
            "expected 0 and one other; compare logits or probabilities with a threshold first, "
            "or pick one label"
        )
    return low


def _details(
    source: Tomogram,
    before: Mapping[Path, State],
    options: CleaningOptions,
    summary: CleaningSummary,
    clock: Clock,
) -> dict[str, Any]:
    """Return what the JSON beside the result says."""
    return provenance(
        "postprocess",
        parameters=asdict(options),
        results=asdict(summary),
        inputs=[input_record(source, before)],
        clock=clock,
        warnings=source.notes,
    )


def _targets(source: Tomogram, output: Path | str | None, overwrite: bool) -> tuple[Path, Path]:
    """Name the output and its JSON, and make sure that they may be written."""
    if output is not None and names_mask(Path(output)):
        target = Path(output)
    elif source.path is None:
        raise ValueError("a mask from an array has no name: give an output file")
    else:
        target = output_path(source.path, SUFFIX, output)
    record = record_path(target)
    if source.path is not None:
        refuse_input((target, record), source.path, "mask")
    for path in (target, record):
        refuse_folder(path)
        if not overwrite:
            refuse_taken(path)
    return target, record

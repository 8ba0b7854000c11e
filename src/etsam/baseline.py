"""Segment with the classical ridge filter: the same files as `segment`, without a network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from etsam import __version__
from etsam.baselines.ridge import Planes, Progress, RidgeOptions, ridge_slices
from etsam.provenance import Clock, input_record, provenance, write_json
from etsam.volume import Tomogram, create_volume, open_tomogram, output_path

THRESHOLD = 0.0
"""Where the mean Dice on simulated tomograms is largest."""


@dataclass(frozen=True)
class BaselineResult:
    """The files that were written."""

    mask: Path
    logits: Path | None
    provenance: Path


def baseline(
    path: Path | str,
    output: Path | str | None = None,
    *,
    options: RidgeOptions | None = None,
    threshold: float = THRESHOLD,
    store_logits: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BaselineResult:
    """Find membranes with a ridge filter and write NAME_ridge.mrc and its JSON beside the tomogram.

    Parameters
    ----------
    path
        Tomogram with dark membranes (see `RidgeOptions.invert`).
    output
        Folder for the results.
    options
        Scales of the filter.
    threshold, store_logits, overwrite
        Voxels with larger scores are membrane; also write the scores, NAME_ridge_logits.mrc; replace
        results that are there.
    progress
        Called with (what, slices done, slices in all).

    Raises
    ------
    FileNotFoundError, ValueError
        The tomogram is missing or unfit.
    FileExistsError
        A result is there already.
    """
    options = options or RidgeOptions()
    clock = Clock()
    folder = None if output is None else Path(output)
    mask_path = output_path(path, "_ridge", folder)
    logits_path = output_path(path, "_ridge_logits", folder) if store_logits else None
    result = BaselineResult(mask_path, logits_path, mask_path.with_suffix(".json"))
    for target in filter(None, (result.mask, result.logits, result.provenance)):
        if target.exists() and not overwrite:
            raise FileExistsError(
                f"{target} is there already: give --overwrite or another --output"
            )
    with closing(open_tomogram(path, voxel_spacing=options.voxel_spacing)) as tomogram:
        result.mask.parent.mkdir(parents=True, exist_ok=True)
        with closing(ridge_slices(tomogram, options, progress)) as slices:
            voxels = _write(result, tomogram, slices, threshold)
        details = provenance(
            "baseline",
            parameters={**asdict(options), "threshold": threshold, "store_logits": store_logits},
            results={
                "membrane_voxels": voxels,
                "membrane_fraction": voxels / math.prod(tomogram.shape),
            },
            inputs=[input_record(tomogram)],
            clock=clock,
        )
    write_json(result.provenance, details)
    return result


def _write(
    result: BaselineResult, tomogram: Tomogram, slices: Iterator[Planes], threshold: float
) -> int:
    """Write mask and scores slice by slice; returns the number of membrane voxels."""
    label = f"etsam {__version__} baseline ridge > {threshold:g}"
    voxels = 0
    with ExitStack() as stack:
        mask = create_volume(result.mask, tomogram, dtype="int8", label=label)
        stack.enter_context(mask)
        logits = None
        if result.logits is not None:
            logits = create_volume(result.logits, tomogram, dtype="float32", label=label)
            stack.enter_context(logits)
        for z, plane in enumerate(slices):
            membrane = plane > threshold
            voxels += int(np.count_nonzero(membrane))
            mask.write_slice(z, membrane.view(np.int8))
            if logits is not None:
                logits.write_slice(z, plane)
    return voxels

"""Segment membranes: arrays to logits for programs, files to masks for users.

The module is called segmentation because ``etsam.segment`` is its function.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from etsam.logits import NpyWriter
from etsam.options import SegmentOptions
from etsam.volume import Tomogram, open_tomogram, tomogram_from_array

if TYPE_CHECKING:
    from etsam.frames import PromptKind
    from etsam.intensity import Normalisation

Progress = Callable[[float, str], None]


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
    """Find the membranes of a volume with the bundled model; the ETSAM napari plugin's entry.

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
        Float32 (Z, Y, X); a read-only memory map of `output_path` when that is given.
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

    Options about files (output, preview, thresholds, post-processing) play no role.

    Raises
    ------
    ValueError
        The volume is constant or not three-dimensional, or an option does not fit it.
    FileNotFoundError, OSError
        A file is missing, or weights cannot be fetched.
    """
    options = options or SegmentOptions()
    opened = (
        open_tomogram(volume, voxel_spacing=options.voxel_spacing)
        if isinstance(volume, str | Path)
        else tomogram_from_array(volume, voxel_spacing=options.voxel_spacing)
    )
    with closing(opened) as tomogram:
        if output_path is None:
            logits = np.empty(tomogram.shape, np.float32)
            with closing(_slices(tomogram, options, progress)) as slices:
                for z, plane in enumerate(slices):
                    logits[z] = plane
            return logits
        target = Path(output_path)
        with NpyWriter(target, tomogram.shape) as writer:
            with closing(_slices(tomogram, options, progress)) as slices:
                for z, plane in enumerate(slices):
                    writer.write_slice(z, plane)
    return np.load(target, mmap_mode="r")


def _slices(
    tomogram: Tomogram, options: SegmentOptions, progress: Progress | None
) -> Iterator[np.ndarray]:
    """Load the model and yield the logits of every slice."""
    from etsam.pipeline import Volume, load_stages, segment_slices

    stages = load_stages(options, progress)
    yield from segment_slices(
        Volume(tomogram, tomogram.voxel_spacing), stages, options, progress
    )

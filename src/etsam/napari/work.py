"""What the panel does in a thread: logits slice by slice, with progress, and a way to stop."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from etsam.memory import memory_errors
from etsam.napari.files import layer_volume
from etsam.options import SegmentOptions
from etsam.record import array_notes, reading_notes

ADVICE = "check the layer's scale (Å per voxel), or segment a crop"
"""What to do where memory runs out: a scale that is too large makes large frames."""


class CancelledError(Exception):
    """The user stopped the run."""


class FailedError(Exception):
    """Torch gave up: napari's workers end without a word at a RuntimeError."""


@dataclass
class Run:
    """A run that can be stopped, and looked at, from another thread.

    It knows nothing of Qt: a widget that is gone cannot be told, but need not ask.
    """

    stop: threading.Event = field(default_factory=threading.Event)
    started: float = field(default_factory=time.monotonic)
    state: tuple[float, str] = (0.0, "")
    """How much is done, 0 to 1, and what is being done, with the time left."""

    def progress(self, fraction: float, message: str) -> None:
        """Note progress and the remaining time; what `segment_slices` calls.

        Raises
        ------
        CancelledError
            If the run was stopped.
        """
        if self.stop.is_set():
            raise CancelledError
        left = ""
        if 0.02 < fraction < 1:
            seconds = (time.monotonic() - self.started) * (1 - fraction) / fraction
            left = f", {seconds / 60:.0f} min left" if seconds > 90 else f", {seconds:.0f} s left"
        self.state = (fraction, message + left)


def logits_or_stop(
    data: Any, meta: dict[str, Any], options: SegmentOptions, run: Run
) -> Generator[tuple[int, np.ndarray], None, bool]:
    """Yield what `logit_slices` does; returns whether all came.

    Raises
    ------
    MemoryError, FailedError, ValueError, OSError
        As `logit_slices`, and what torch raises.
    """
    try:
        with memory_errors(ADVICE):
            yield from logit_slices(data, meta, options, run)
    except CancelledError:
        return False
    except RuntimeError as wrong:
        raise FailedError(str(wrong)) from wrong
    return True


def logit_slices(
    data: Any, meta: dict[str, Any], options: SegmentOptions, run: Run
) -> Generator[tuple[int, np.ndarray], None, None]:
    """Yield (z, logits float32 (Y, X)) of a layer's array with the model of `options`.

    Warns of voxels that were not numbers, and of a layer whose scale says no size.

    Raises
    ------
    CancelledError
        If the run was stopped.
    ValueError, OSError
        As `segment_array`.
    """
    run.progress(0.0, "loading the model")
    from etsam.pipeline import Volume, segment_slices
    from etsam.polarity import settle_polarity
    from etsam.stages import load_stages

    with layer_volume(data, meta) as tomogram:
        stages = load_stages(options, run.progress)
        volume = Volume(tomogram, tomogram.voxel_spacing)
        options = settle_polarity(volume, stages[0], options, run.progress)
        with closing(segment_slices(volume, stages, options, run.progress)) as slices:
            for z, plane in enumerate(slices):
                yield z, plane
                if run.stop.is_set():
                    raise CancelledError
        told = array_notes(tomogram, stages, "a layer of scale 1", "set its scale to Å per voxel")
        for note in [*told, *reading_notes(tomogram)]:
            warnings.warn(note, stacklevel=2)

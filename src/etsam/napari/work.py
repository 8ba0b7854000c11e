"""What the panel does in a thread: logits slice by slice, with progress, and a way to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from etsam.napari.files import layer_volume
from etsam.options import SegmentOptions

Report = Callable[[float, str], None]


class CancelledError(Exception):
    """The user stopped the run."""


@dataclass
class Run:
    """A run that can be stopped from another thread, with the seconds it has still to go."""

    report: Report
    stop: threading.Event = field(default_factory=threading.Event)
    started: float = field(default_factory=time.monotonic)

    def progress(self, fraction: float, message: str) -> None:
        """Pass progress on with the remaining time; what `segment_slices` calls.

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
        self.report(fraction, message + left)


def logit_slices(
    data: Any, meta: dict[str, Any], options: SegmentOptions, run: Run
) -> Generator[tuple[int, np.ndarray], None, None]:
    """Yield (z, logits float32 (Y, X)) of a layer's array with the model of `options`.

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

"""What the batch tests run in processes of their own, so that they can be killed."""

from __future__ import annotations

import warnings
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from etsam import unfinished
from etsam.batch import BatchPlan, run_batch
from etsam.options import SegmentOptions

WINDOW = 4  # slices, smaller than the real one so that small volumes have several


def segment_all(
    paths: list[Path], options: SegmentOptions, manifest: Path, slices: Synchronized[int]
) -> None:
    """Segment a batch with resume, counting slices."""
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    unfinished.SAVE_SLICES = WINDOW

    def progress(fraction: float, message: str) -> None:
        if "slice" in message and "stage" in message:
            slices.value += 1

    plan = BatchPlan(paths, options, resume=True, manifest=manifest)
    for outcome in run_batch(plan, lambda path: progress):
        assert outcome.error is None, outcome.error

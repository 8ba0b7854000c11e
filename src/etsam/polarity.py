"""Whether membranes are dark or bright: try both on a few slabs and see which the network knows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np

from etsam.intensity import SliceSource, measure_intensity
from etsam.options import SegmentOptions
from etsam.pipeline import Progress, StageRun, Volume, run_stage
from etsam.prompts import LEAD_IN
from etsam.stages import Stage
from etsam.tiling import Cropped, Region

SLABS = 3
SLAB_DEPTH = 12  # slices
SLAB_SIDE = 320  # voxels
CERTAIN = 1.2
"""How many times the evidence the inverted volume has to give before it is believed."""
LEAST = 0.01
"""Evidence, in mean positive logit, below which there may be no membrane at all."""


@dataclass(frozen=True)
class Slab:
    """A range of slices of a volume."""

    source: SliceSource
    start: int
    depth: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.depth, *self.source.shape[1:])

    def read_slice(self, z: int) -> np.ndarray:
        return self.source.read_slice(self.start + z)


def settle_polarity(
    volume: Volume, stage: Stage, options: SegmentOptions, progress: Progress | None = None
) -> SegmentOptions:
    """Replace the polarity ``auto`` by ``dark`` or ``bright``.

    Bright is believed only where a network of ours finds clearly more membrane in the inverted
    volume. Published networks follow their authors' pipeline, which takes dark membranes.
    """
    if options.polarity != "auto":
        return options
    if stage.spec.size == "square":
        return replace(options, polarity="dark")
    if progress is not None:
        progress(0.0, "dark or bright membranes?")
    run = StageRun(stage, volume, prompt=stage.spec.prompt or "grid_zero", lead_in=LEAD_IN)
    dark, bright = membrane_evidence(run)
    found = bright > max(CERTAIN * dark, LEAST)
    return replace(options, polarity="bright" if found else "dark")


def membrane_evidence(run: StageRun) -> tuple[float, float]:
    """How much membrane a first stage is sure of, as seen and inverted.

    Returns
    -------
    seen, inverted
        Mean of the positive logits over up to three slabs of 12 slices, dark membranes first.
    """
    sums = []
    for invert in (False, True):
        scaling = measure_intensity(run.volume.slices, run.stage.spec.normalisation, invert=invert)
        found = [
            float(np.maximum(logits, 0).mean())
            for slab in _slabs(run.volume)
            for logits in _answers(replace(run, volume=slab, scaling=scaling))
        ]
        sums.append(float(np.mean(found)))
    return sums[0], sums[1]


def _answers(run: StageRun) -> Iterator[np.ndarray]:
    with closing(run_stage(run)) as slices:
        yield from slices


def _slabs(volume: Volume) -> Iterator[Volume]:
    """Cut slabs from the middle of the slices at a quarter, a half and three quarters of Z."""
    depth, *sides = volume.slices.shape
    low = [max(0, (side - SLAB_SIDE) // 2) for side in sides]
    region = Region(
        low[0], min(sides[0], low[0] + SLAB_SIDE), low[1], min(sides[1], low[1] + SLAB_SIDE)
    )
    cropped = Cropped(volume.slices, region)
    thick = min(depth, SLAB_DEPTH)
    for number in range(SLABS):
        start = min(max(0, (number + 1) * depth // (SLABS + 1) - thick // 2), depth - thick)
        yield Volume(Slab(cropped, start, thick), volume.voxel_spacing)

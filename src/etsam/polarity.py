"""Whether membranes are dark or bright: by labels, by what the network knows, by how dense things stand out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice

import numpy as np
from scipy.ndimage import binary_dilation, gaussian_filter

from etsam.frames import FrameSpec
from etsam.intensity import SliceSource, measure_intensity
from etsam.options import SegmentOptions
from etsam.pipeline import Progress, StageRun, Volume, as_seen, run_stage
from etsam.prompts import LEAD_IN
from etsam.stages import Stage
from etsam.tiling import Cropped, Region

PLACES = 3
SLICES = 4  # at each place
SIDE = 320  # voxels
CERTAIN, CONTRARY = 1.2, 4.0
"""How many times the evidence the inverted volume has to give before it is believed; where dense things are dark."""
TRUST, MOST = 0.5, 1.5
"""Weight of the skewness beside the logarithm of that ratio, and the largest that counts."""
FINE, COARSE = 1.5, 12.0
"""Standard deviations [voxels] between which skewness is looked for."""
LEAST = 0.01
"""Evidence, in mean positive logit, below which there may be no membrane at all."""

LABELLED = 12
"""Slices with membrane that are looked at where there are labels."""
CLOSE = 5
"""Voxels around a labelled membrane that it is compared with."""
CLEARLY = 0.15
"""Standard deviations of a slice by which labelled membranes stand out; by less, skewness decides."""


def settle_polarity(
    volume: Volume, stage: Stage, options: SegmentOptions, progress: Progress | None = None
) -> SegmentOptions:
    """Replace the polarity ``auto`` by ``dark`` or ``bright``.

    Bright is believed only where a network of ours finds clearly more membrane in the inverted
    volume. The gaps of stacked membranes look like membranes too; proteins, gold and ice, whose
    grey values are far out on the same side as membranes, decide then, and where they are dark much
    more membrane has to be found. Published networks follow their authors' pipeline, which takes
    dark membranes.
    """
    if options.polarity != "auto":
        return options
    if stage.spec.size == "square":
        return replace(options, polarity="dark")
    if progress is not None:
        progress(0.0, "dark or bright membranes?")
    prompt = stage.spec.prompt or "grid_zero"
    run = StageRun(stage, as_seen(volume, stage), prompt, lead_in=LEAD_IN, tile=options.tile)
    dark, bright = membrane_evidence(run)
    skew = skewness(volume.slices)
    needed = np.log(CERTAIN if skew > 0 else CONTRARY)
    found = bright > LEAST and preference(dark, bright, skew) > needed
    return replace(options, polarity="bright" if found else "dark")


def is_seen_inverted(tomogram: SliceSource, labels: SliceSource, spec: FrameSpec) -> bool:
    """Whether a network has to see a labelled tomogram inverted, so that membranes are as it knows them.

    Published networks see every tomogram alike, as in `settle_polarity`.
    """
    if spec.size == "square":
        return spec.invert
    return bright_membranes(tomogram, labels) != spec.invert


def bright_membranes(tomogram: SliceSource, labels: SliceSource) -> bool:
    """Whether labelled membranes are brighter than what is labelled background close to them.

    Medians are compared, which gold does not move, in at most twelve slices spread over Z that hold
    both. Where they are about the same, as where walls ring, `skewness` decides. Without membrane it
    is False.
    """
    depth, weights, brighter = labels.shape[0], [], []
    step = max(1, depth // LABELLED)
    # every so-manieth slice from the middle of the first step on, then those beside them
    for z in (z for i in range(step) for z in range((step // 2 + i) % step, depth, step)):
        plane = labels.read_slice(z)
        membrane = plane == 1
        if not membrane.any():
            continue
        close = binary_dilation(membrane, iterations=CLOSE) & (plane == 0)
        if not close.any():
            continue
        grey = tomogram.read_slice(z).astype(np.float64)  # squares of large values too
        weights.append(np.count_nonzero(membrane))
        step_up = np.median(grey[membrane]) - np.median(grey[close])
        brighter.append(step_up / (grey.std() or 1.0))
        if len(weights) == LABELLED:
            break
    if not weights:
        return False
    apart = float(np.average(brighter, weights=weights))
    return (apart if abs(apart) > CLEARLY else skewness(tomogram)) > 0


def preference(dark: float, bright: float, skew: float) -> float:
    """How much speaks for bright membranes: the logarithm of a ratio of evidence, 0 undecided."""
    ratio = np.log((bright + 0.1 * LEAST) / (dark + 0.1 * LEAST))
    return float(ratio + TRUST * np.clip(skew, -MOST, MOST))


def skewness(source: SliceSource) -> float:
    """Skewness of band-passed slices: negative where dense things are dark.

    Returns
    -------
    skewness
        Median over the slices at a quarter, a half and three quarters of Z; 0 for constant ones.
    """
    found = []
    for z in _places(source):
        plane = source.read_slice(z).astype(np.float64)  # squares of large values too
        smooth = gaussian_filter(plane, FINE)
        detail = smooth - gaussian_filter(smooth, COARSE)
        detail -= detail.mean()
        spread = float(detail.std())
        found.append(float(((detail / spread) ** 3).mean()) if spread > 0 else 0.0)
    return float(np.median(found))


def membrane_evidence(run: StageRun) -> tuple[float, float]:
    """How much membrane a first stage is sure of, as seen and inverted.

    Returns
    -------
    seen, inverted
        Mean of the positive logits over four slices at a quarter, a half and three quarters of Z.
    """
    cropped = Volume(_middle(run.volume.slices), run.volume.voxel_spacing)
    starts = [max(0, z - SLICES // 2) for z in _places(run.volume.slices)]
    means = []
    for invert in (False, True):
        scaling = measure_intensity(run.volume.slices, run.stage.spec.normalisation, invert=invert)
        trial = replace(run, volume=cropped, scaling=scaling)
        found = [np.maximum(part, 0).mean() for start in starts for part in _answers(trial, start)]
        means.append(float(np.mean(found)))
    return means[0], means[1]


def _places(source: SliceSource) -> list[int]:
    """The slices at a quarter, a half and three quarters of Z."""
    return [number * source.shape[0] // (PLACES + 1) for number in range(1, PLACES + 1)]


def _answers(run: StageRun, start: int) -> Iterator[np.ndarray]:
    """Logits of a few slices from `start` on, with nothing remembered."""
    with closing(run_stage(run, start=start)) as slices:
        yield from islice(slices, SLICES)


def _middle(source: SliceSource) -> Cropped:
    """The middle of every slice."""
    _, *sides = source.shape
    low = [max(0, (side - SIDE) // 2) for side in sides]
    y, x = (min(side, start + SIDE) for side, start in zip(sides, low, strict=True))
    return Cropped(source, Region(low[0], y, low[1], x))

"""The two-stage pipeline: a volume in, logits out, slice by slice."""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace

import numpy as np

from etsam.frames import (
    FrameSource,
    Prefetched,
    blurred,
    frame_geometry,
    read_plane,
    to_slice,
)
from etsam.intensity import (
    UNSCALED,
    IntensityScaling,
    SliceSource,
    measure_intensity,
)
from etsam.logits import ScratchLogits, tracked_slices
from etsam.memory import give_back_freed
from etsam.options import MAX_TILE, Normalisation, PromptKind, SegmentOptions
from etsam.prompts import (
    INTERVAL,
    LEAD_IN,
    SPLIT_INTERVAL,
    ScheduledFrames,
    make_prompts,
    schedule,
)
from etsam.sam2 import MemoryBank
from etsam.stages import Stage
from etsam.tiling import (
    OVERLAP,
    Cropped,
    RecentSlices,
    Region,
    blend_weights,
    mirror_images,
    quadrants,
    tiles,
    whole,
)
from etsam.tracker import for_a_mean, track
from etsam.unfinished import Unfinished

Progress = Callable[[float, str], None]
Slices = Generator[np.ndarray, None, None]

DEFAULT_PROMPTS: tuple[PromptKind, PromptKind] = ("grid_zero", "zero")  # paper, 4.3
PLANE_BYTES = 1 << 29  # of planes kept, ready for the network, that the next frames are made of
RECENT_BYTES = 1 << 28  # of slices kept where those planes are too many
TIDY = 8  # slices between two times that freed memory is given back
RECENT = 4  # slices kept where they are not: all regions read the same ones at about the same time


@dataclass(frozen=True)
class Volume:
    """What the pipeline needs of a tomogram."""

    slices: SliceSource
    voxel_spacing: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class StageRun:
    """One stage on one volume, with everything decided.

    With a `step` it tracks every step-th slice and the last one.
    """

    stage: Stage
    volume: Volume
    prompt: PromptKind
    interval: int = INTERVAL
    lead_in: int = 0
    split: bool = False
    tile: int = MAX_TILE
    mirrors: int = 1
    scaling: IntensityScaling = UNSCALED
    feedback: ScratchLogits | None = None
    step: int = 1

    def slices(self, start: int = 0) -> list[int]:
        """The slices that are tracked, from `start` on."""
        slices = tracked_slices(self.volume.slices.shape[0], self.step)
        return slices[bisect_left(slices, start) :]


def segment_slices(
    volume: Volume,
    stages: Sequence[Stage],
    options: SegmentOptions,
    progress: Progress | None = None,
    unfinished: Unfinished | None = None,
) -> Slices:
    """Yield the last stage's logits, float32 (Y, X), of every slice in order.

    Memory does not grow with the number of slices, but by one memory for each slice with a prompt
    (``grid``, ``etsam_stage1_partial``): the volume is read two or three times, slice by slice, and
    the first stage's logits wait in a scratch file. Close the generator to stop early;
    an exception of `progress` stops it too. `unfinished` keeps all logits and the memory on disk, and
    slices that are there already are read rather than computed.

    Raises
    ------
    ValueError
        The volume is constant, or an option does not fit it.
    """
    report = progress or _silent
    depth = volume.slices.shape[0]
    scalings = _measure(volume, stages, options, report)
    with ExitStack() as stack:
        feedback: ScratchLogits | None = None
        for number, (stage, step) in enumerate(zip(stages, _steps(stages), strict=True)):
            last = number == len(stages) - 1
            run = plan_stage(stage, number, volume, options, step)
            run = replace(run, scaling=scalings[number], feedback=feedback)
            scratch = None
            banks: list[MemoryBank] = []
            start = 0
            if unfinished is not None:
                scratch = unfinished.logits(number, volume.slices.shape, run.step)
                start = unfinished.start(number, depth)
                banks = unfinished.banks(number, stage.model)
            elif not last:
                scratch = stack.enter_context(ScratchLogits(volume.slices.shape, step=run.step))
            if scratch is not None and last:
                yield from map(scratch.read_slice, range(start))
            slices = stack.enter_context(closing(run_stage(run, banks, start)))
            for z, logits in zip(run.slices(start), slices, strict=True):
                if scratch is not None:
                    scratch.write_slice(z, logits)
                if unfinished is not None:
                    unfinished.slice_done(number, z + 1, banks)
                if last:
                    yield logits
                done = (number * depth + z + 1) / (len(stages) * depth)
                report(done, f"stage {number + 1} of {len(stages)}: slice {z + 1} of {depth}")
            feedback = scratch


def _silent(fraction: float, message: str) -> None:
    """Report nothing."""


def _measure(
    volume: Volume, stages: Sequence[Stage], options: SegmentOptions, report: Progress
) -> list[IntensityScaling]:
    """Find the grey-value scaling of every stage; stages that want the same share one pass."""
    depth = volume.slices.shape[0]
    found: dict[tuple[Normalisation, bool, float], IntensityScaling] = {}
    methods = _normalisations(stages, options.normalize_method)
    keys = [
        (method, (options.polarity == "bright") != stage.spec.invert, stage.spec.blur)
        for method, stage in zip(methods, stages, strict=True)
    ]
    for key, stage in zip(keys, stages, strict=True):
        method, invert, _ = key
        if key not in found:
            found[key] = measure_intensity(
                as_seen(volume, stage).slices,
                method,
                invert=invert,
                tick=lambda z: report(0.0, f"grey values: slice {z + 1} of {depth}"),
            )
    return [found[key] for key in keys]


def as_seen(volume: Volume, stage: Stage) -> Volume:
    """The volume as a stage wants it before grey values are scaled."""
    return replace(volume, slices=blurred(volume.slices, stage.spec, volume.voxel_spacing))


def plan_stage(
    stage: Stage, number: int, volume: Volume, options: SegmentOptions, step: int = 1
) -> StageRun:
    """Decide what does not need the volume's grey values.

    `number` is 0 for stage 1; `step` is the next stage's `FrameSpec.feedback_step`, which counts
    slices as `FrameSpec.offsets` do.
    """
    interval = SPLIT_INTERVAL if options.split_processing else INTERVAL
    asked = options.stage2_prompt if number else options.stage1_prompt
    return StageRun(
        stage,
        as_seen(volume, stage),
        prompt=_prompt(stage, number, asked),
        interval=interval if options.interval is None else options.interval,
        lead_in=LEAD_IN if options.first_slice == "predict" else 0,
        split=options.split_processing,
        tile=options.tile,
        mirrors=options.mirrors,
        step=_step_in_slices(stage, volume, step),
    )


def _step_in_slices(stage: Stage, volume: Volume, step: int) -> int:
    """Every which slice of the volume is tracked, where a step counts slices as `FrameSpec.offsets` do."""
    shape = volume.slices.shape[1], volume.slices.shape[2]
    z_step = frame_geometry(stage.spec, shape, volume.voxel_spacing).z_step
    return step * z_step if step > 1 else 1


def missing_bytes(volume: Volume, stages: Sequence[Stage], unfinished: Unfinished) -> int:
    """Bytes that logits are yet to take on the disk: slices that a stage does not track are holes in its file."""
    shape, total = volume.slices.shape, 0
    for number, (stage, step) in enumerate(zip(stages, _steps(stages), strict=True)):
        tracked = tracked_slices(shape[0], _step_in_slices(stage, volume, step))
        total += unfinished.missing_bytes(number, shape) * len(tracked) // shape[0]
    return total


def _steps(stages: Sequence[Stage]) -> list[int]:
    """The step of each stage: what the next one wants of it, 1 of the last."""
    return [*(stage.spec.feedback_step for stage in stages[1:]), 1]


def largest_frame(volume: Volume, stages: Sequence[Stage], options: SegmentOptions) -> int:
    """Longest side, in pixels, of what the networks see at once; 0 where it cannot be tiled."""
    if options.split_processing or any(stage.spec.size == "square" for stage in stages):
        return 0
    shape = volume.slices.shape[1], volume.slices.shape[2]
    frames = [frame_geometry(stage.spec, shape, volume.voxel_spacing) for stage in stages]
    return max(max(frame.scaled_shape) for frame in frames)


def _normalisations(stages: Sequence[Stage], asked: Normalisation | None) -> list[Normalisation]:
    """Return each stage's grey-value scaling: that asked for, unless the network knows only robust."""
    own = [stage.spec.normalisation for stage in stages]
    if asked not in (None, "robust") and "robust" in own:
        warnings.warn(
            f"this model knows only grey values scaled by robust, not {asked}", stacklevel=3
        )
    return [method if method == "robust" or asked is None else asked for method in own]


def _prompt(stage: Stage, number: int, asked: PromptKind | None) -> PromptKind:
    """Return the prompt asked for, unless the network was trained to start without one."""
    own = stage.spec.prompt or DEFAULT_PROMPTS[number]
    if asked is None or asked == own:
        return own
    if own == "none":
        warnings.warn(f"this model starts without a prompt, not from {asked}", stacklevel=3)
        return own
    return asked


def run_stage(run: StageRun, banks: list[MemoryBank] | None = None, start: int = 0) -> Slices:
    """Yield one stage's logits, float32 (Y, X), of every tracked slice from `start` on.

    `banks` are the memories to go on with, one a region; an empty list is filled with new ones.
    """
    depth, *sides = run.volume.slices.shape
    if start >= depth:
        return
    shape = (sides[0], sides[1])
    regions, overlap = _regions(run, shape)
    regions = mirror_images(regions, run.mirrors)
    weights = blend_weights(regions, shape, overlap)
    averaged = run.step > 1 or any(weight.min() < 1 for weight in weights)
    keep = _keeps_planes(run, regions)
    recent = RECENT if keep else _slices_to_keep(run, shape)
    source = RecentSlices(run.volume.slices, recent)
    feedback = None if run.feedback is None else RecentSlices(run.feedback, recent)
    sources = [_frame_source(run, source, feedback, region, keep=keep) for region in regions]
    banks = [] if banks is None else banks
    banks += [MemoryBank.for_config(run.stage.model.config) for _ in regions[len(banks) :]]
    with ExitStack() as stack:
        trackers = [
            stack.enter_context(closing(_track_region(run, frames, bank, start, averaged)))
            for frames, bank in zip(sources, banks, strict=True)
        ]
        for count, z in enumerate(run.slices(start), 1):
            with run.stage.own_types():
                parts = [next(tracker) for tracker in trackers]
            if count % TIDY == 0:
                give_back_freed()
            logits = parts[0]
            if len(parts) > 1:
                logits = np.zeros(shape, np.float32)
                for region, weight, part in zip(regions, weights, parts, strict=True):
                    logits[region.box] += weight * region.mirror(part)
            if run.stage.spec.bias:
                logits = logits + np.float32(run.stage.spec.bias)
            if run.feedback is not None and run.stage.spec.doubt is not None:
                logits = np.maximum(logits, run.feedback.read_slice(z) - run.stage.spec.doubt)
            yield logits


def _regions(run: StageRun, shape: tuple[int, int]) -> tuple[list[Region], int]:
    """Regions tracked on their own, and how many voxels they share."""
    if run.split:
        return quadrants(shape), 0
    if run.stage.spec.size == "square":
        return whole(shape), 0
    scaled = frame_geometry(run.stage.spec, shape, run.volume.voxel_spacing).scaled_shape
    voxels = [side / length for side, length in zip(shape, scaled, strict=True)]
    overlap = round(OVERLAP * max(voxels))
    limits = (round(run.tile * voxels[0]), round(run.tile * voxels[1]))
    return tiles(shape, limits, overlap), overlap


def _window(run: StageRun, shape: tuple[int, int]) -> int:
    """Number of slices between the first and the last one of a frame, and one more."""
    geometry = frame_geometry(run.stage.spec, shape, run.volume.voxel_spacing)
    return 2 * run.stage.spec.offsets[-1] * geometry.z_step + 2


def _keeps_planes(run: StageRun, regions: list[Region]) -> bool:
    """Whether the planes of a frame's slices, of all regions, are few enough to be kept."""
    spec, spacing = run.stage.spec, run.volume.voxel_spacing
    kinds = 2 if run.feedback is not None and spec.fusion == "concat" else 1
    frames = [frame_geometry(spec, region.shape, spacing).frame_shape for region in regions]
    pixels = sum(height * width for height, width in frames)
    slices = kinds * _window(run, regions[0].shape)
    return spec.plane_dtype.itemsize * slices * pixels <= PLANE_BYTES


def _slices_to_keep(run: StageRun, shape: tuple[int, int]) -> int:
    """Slices that neighbouring frames and regions read again, within a bound of memory."""
    return max(2, min(_window(run, shape), RECENT_BYTES // (4 * shape[0] * shape[1])))


def _frame_source(
    run: StageRun, source: SliceSource, feedback: SliceSource | None, region: Region, *, keep: bool
) -> FrameSource:
    """Frames of one region."""
    return FrameSource(
        Cropped(source, region),
        run.stage.spec,
        run.scaling,
        frame_geometry(run.stage.spec, region.shape, run.volume.voxel_spacing),
        None if feedback is None else Cropped(feedback, region),
        None if run.feedback is None else run.feedback.clipped_range,
        keep,
        run.stage.frames_on,
    )


def _track_region(
    run: StageRun, frames: FrameSource, bank: MemoryBank, start: int, averaged: bool
) -> Slices:
    """Yield the logits (h, w) of one region of every tracked slice from `start` on.

    They may be averaged with those of other regions, or of other slices for those in between.
    """
    slices = run.slices()
    previous = frames.feedback
    prompts = make_prompts(
        run.prompt,
        slices[-1] + 1,
        frames.geometry,
        interval=run.interval,
        previous=None if previous is None else lambda z: read_plane(previous, z),
    )
    tracked = {bisect_left(slices, z): mask for z, mask in prompts.items()}
    plan = schedule(len(slices), tracked, run.lead_in)
    first = plan.step_after(bisect_left(slices, start) - 1)
    order = tuple(slices[i] for i in plan.slices)
    with Prefetched(ScheduledFrames(frames, order)) as ahead:
        for step, low in track(run.stage.model, ahead, plan.prompts, bank, first):
            if plan.real[step]:
                low = for_a_mean(low) if averaged else low
                yield to_slice(low, frames.geometry).cpu().numpy()

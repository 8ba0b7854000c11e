"""The two-stage pipeline: a volume in, logits out, slice by slice."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from etsam.frames import (
    REFERENCE_SPEC,
    FrameSource,
    FrameSpec,
    Prefetched,
    PromptKind,
    frame_geometry,
    read_plane,
    to_slice,
)
from etsam.intensity import IntensityScaling, Normalisation, SliceSource, measure_intensity
from etsam.logits import ScratchLogits
from etsam.options import SegmentOptions
from etsam.prompts import (
    INTERVAL,
    LEAD_IN,
    SPLIT_INTERVAL,
    ScheduledFrames,
    make_prompts,
    schedule,
)
from etsam.sam2 import SAM2, load_checkpoint
from etsam.tiling import (
    MAX_TILE,
    OVERLAP,
    Cropped,
    RecentSlices,
    Region,
    blend_weights,
    quadrants,
    tiles,
    whole,
)
from etsam.tracker import track
from etsam.weights import resolve_model, sha256_of

Progress = Callable[[float, str], None]

STAGE_PROMPTS: tuple[PromptKind, PromptKind] = ("grid_zero", "zero")  # published models
RECENT_BYTES = 1 << 28  # of slices kept for neighbouring channels and regions


@dataclass(frozen=True)
class Stage:
    """One trained network and how it wants its frames."""

    model: SAM2
    spec: FrameSpec
    sha256: str = ""
    path: Path | None = None


@dataclass(frozen=True)
class Volume:
    """What the pipeline needs of a tomogram."""

    slices: SliceSource
    voxel_spacing: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class StageRun:
    """One stage on one volume, with everything decided."""

    stage: Stage
    volume: Volume
    scaling: IntensityScaling
    prompt: PromptKind
    interval: int
    lead_in: int
    split: bool
    feedback: ScratchLogits | None = None


def choose_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` into a device that is there.

    Raises
    ------
    ValueError
        The name is unknown, or this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}: expected auto, cpu, cuda:N or mps") from None
    counts = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if (device.index or 0) >= counts.get(device.type, 0):
        raise ValueError(f"no device {name!r} on this machine: use --device auto")
    return device


def load_stages(options: SegmentOptions, progress: Progress | None = None) -> list[Stage]:
    """Load both networks of the chosen model, fetching published weights if need be.

    Raises
    ------
    FileNotFoundError, ValueError, OSError
        A checkpoint is missing, is not one, or cannot be fetched.
    """
    paths = [options.stage1_checkpoint, options.stage2_checkpoint]
    sums = ["", ""]
    if None in paths:
        files = resolve_model(options.model, progress=progress)
        found = (files.stage1, files.stage2)
        sums = ["" if given else known for given, known in zip(paths, files.sha256, strict=True)]
        paths = [given or known for given, known in zip(paths, found, strict=True)]
    device = choose_device(options.device)
    dtype = torch.bfloat16 if options.dtype == "bfloat16" else torch.float32
    stages = []
    for number, (path, known) in enumerate(zip(paths, sums, strict=True)):
        assert path is not None
        model, metadata = load_checkpoint(path, device=device, dtype=dtype)
        stage = Stage(model, stage_spec(model, metadata), known or sha256_of(path), path)
        check_channels(stage, number)
        stages.append(stage)
    return stages


def stage_spec(model: SAM2, metadata: dict[str, object]) -> FrameSpec:
    """Frame settings a checkpoint carries (``frame_spec``), or those of the published models."""
    saved = metadata.get("frame_spec")
    if isinstance(saved, dict):
        return FrameSpec.from_dict(saved)
    return replace(REFERENCE_SPEC, image_size=model.config.image_size)


def check_channels(stage: Stage, number: int) -> None:
    """Refuse a network that does not take the frames its settings make."""
    wanted, given = stage.model.config.in_channels, stage.spec.channels(feedback=number > 0)
    if wanted != given:
        raise ValueError(
            f"{stage.path} takes {wanted} channels but its frames have {given}: "
            f"is it a checkpoint of stage {number + 1}?"
        )


def segment_slices(
    volume: Volume,
    stages: Sequence[Stage],
    options: SegmentOptions,
    progress: Progress | None = None,
) -> Iterator[np.ndarray]:
    """Yield the last stage's logits, float32 (Y, X), of every slice in order.

    Memory does not grow with the number of slices: the volume is read twice or thrice, slice by
    slice, and the first stage's logits wait in a scratch file. Close the generator to stop early;
    an exception of `progress` stops it too.

    Raises
    ------
    ValueError
        The volume is constant, or an option does not fit it.
    """
    depth = volume.slices.shape[0]
    report = progress or (lambda fraction, message: None)
    prompts = (options.stage1_prompt, options.stage2_prompt)
    default = SPLIT_INTERVAL if options.split_processing else INTERVAL
    scalings: dict[tuple[Normalisation, bool], IntensityScaling] = {}
    with ExitStack() as stack:
        feedback: ScratchLogits | None = None
        for number, stage in enumerate(stages):
            key = _normalisation(stage, options), options.invert != stage.spec.invert
            if key not in scalings:
                scalings[key] = measure_intensity(
                    volume.slices,
                    key[0],
                    invert=key[1],
                    tick=lambda z: report(0.0, f"grey values: slice {z + 1} of {depth}"),
                )
            run = StageRun(
                stage,
                volume,
                scalings[key],
                _prompt(stage, number, prompts[number]),
                default if options.interval is None else options.interval,
                LEAD_IN if options.first_slice == "predict" else 0,
                options.split_processing,
                feedback,
            )
            slices = stack.enter_context(closing(run_stage(run)))
            last = number == len(stages) - 1
            scratch = None if last else stack.enter_context(ScratchLogits(volume.slices.shape))
            for z, logits in enumerate(slices):
                if scratch is None:
                    yield logits
                else:
                    scratch.write_slice(z, logits)
                done = (number * depth + z + 1) / (len(stages) * depth)
                where = f"stage {number + 1} of {len(stages)}: slice {z + 1} of {depth}"
                report(done, where)
            feedback = scratch


def _normalisation(stage: Stage, options: SegmentOptions) -> Normalisation:
    """Return the grey-value scaling asked for, unless the network was trained with another kind."""
    own, asked = stage.spec.normalisation, options.normalize_method
    if asked is None or asked == own:
        return own
    if own == "robust":
        warnings.warn(f"this model knows only grey values scaled by {own}, not {asked}", stacklevel=3)
        return own
    return asked


def _prompt(stage: Stage, number: int, asked: PromptKind | None) -> PromptKind:
    """Return the prompt asked for, unless the network was trained to start without one."""
    own = stage.spec.prompt or STAGE_PROMPTS[number]
    if asked is None or asked == own:
        return own
    if own == "none":
        warnings.warn(f"this model starts without a prompt, not from {asked}", stacklevel=3)
        return own
    return asked


def run_stage(run: StageRun) -> Iterator[np.ndarray]:
    """Yield one stage's logits, float32 (Y, X), of every slice in order."""
    depth, *sides = run.volume.slices.shape
    shape = (sides[0], sides[1])
    regions, overlap = _regions(run, shape)
    weights = blend_weights(regions, shape, overlap)
    keep = _slices_to_keep(run, shape)
    source = RecentSlices(run.volume.slices, keep)
    feedback = RecentSlices(run.feedback, keep) if run.feedback is not None else None
    with ExitStack() as stack:
        trackers = [
            stack.enter_context(closing(_track_region(run, source, feedback, region)))
            for region in regions
        ]
        for _ in range(depth):
            parts = [next(tracker) for tracker in trackers]
            if len(parts) == 1:
                yield parts[0]
                continue
            logits = np.zeros(shape, np.float32)
            for region, weight, part in zip(regions, weights, parts, strict=True):
                logits[region.box] += weight * part
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
    limits = (round(MAX_TILE * voxels[0]), round(MAX_TILE * voxels[1]))
    return tiles(shape, limits, overlap), overlap


def _slices_to_keep(run: StageRun, shape: tuple[int, int]) -> int:
    """Slices that neighbouring frames and regions read again, within a bound of memory."""
    geometry = frame_geometry(run.stage.spec, shape, run.volume.voxel_spacing)
    window = (run.stage.spec.slices - 1) * geometry.z_step + 2
    return max(2, min(window, RECENT_BYTES // (4 * shape[0] * shape[1])))


def _track_region(
    run: StageRun, source: SliceSource, feedback: SliceSource | None, region: Region
) -> Iterator[np.ndarray]:
    """Yield the logits (h, w) of one region of every slice in order."""
    geometry = frame_geometry(run.stage.spec, region.shape, run.volume.voxel_spacing)
    previous = None if feedback is None else Cropped(feedback, region)
    frames = FrameSource(
        Cropped(source, region),
        run.stage.spec,
        run.scaling,
        geometry,
        previous,
        None if run.feedback is None else run.feedback.clipped_range,
    )
    prompts = make_prompts(
        run.prompt,
        len(frames),
        geometry,
        interval=run.interval,
        previous=None if previous is None else lambda z: read_plane(previous, z),
    )
    plan = schedule(len(frames), prompts, run.lead_in)
    with Prefetched(ScheduledFrames(frames, plan.slices)) as ahead:
        for step, low in track(run.stage.model, ahead, plan.prompts):
            if plan.real[step]:
                yield to_slice(low.cpu(), geometry).numpy()

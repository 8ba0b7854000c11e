"""Logits of both stages of a model on one tomogram, kept as files: what the comparisons score.

Notes beside them say by checksum what they are of, so that no others are taken for them: the weights
in weights.json, the tomogram, with its polarity, in NAME_logits.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from etsam.intensity import measure_intensity
from etsam.logits import ScratchLogits, tracked_slices
from etsam.options import SegmentOptions
from etsam.pipeline import Volume, plan_stage, run_stage
from etsam.polarity import settle_polarity
from etsam.provenance import sha256
from etsam.stages import Stage
from etsam.storage import write_text
from etsam.volume import create_volume, open_tomogram, output_path, stem_of

WEIGHTS = "weights.json"
METHODS = ("stage1", "stage2", "ridge", "unet3d")


def logits_path(path: Path, method: str, folder: Path) -> Path:
    """Name of the logits of a method on a tomogram."""
    return output_path(path, f"_{method}_logits", folder)


def claim(path: Path, stages: list[Stage], polarity: str, folder: Path) -> None:
    """Note in a folder what its logits are of; refuse those that are there of something else.

    Raises
    ------
    ValueError
        The folder holds logits of other weights, or of another tomogram of this name or polarity.
    """
    weights = [stage.sha256 for stage in stages]
    _note(folder / WEIGHTS, weights, folder.glob("*_stage[12]_logits.mrc"), "other weights")
    note = folder / f"{stem_of(path)}_logits.json"
    kept = (logits_path(path, method, folder) for method in METHODS)
    seen = {"sha256": sha256(path), "polarity": polarity}
    _note(note, seen, kept, f"another {path.name} or polarity")


def _note(note: Path, mine: Any, kept: Iterable[Path], others: str) -> None:
    if note.is_file():
        theirs = json.loads(note.read_text(encoding="utf-8"))
    else:
        theirs = None if any(path.exists() for path in kept) else mine
    if theirs != mine:
        raise ValueError(f"{note.parent} holds logits of {others}: give another folder with -o")
    write_text(note, json.dumps(mine))


def polarity_of(path: Path, stages: list[Stage], options: SegmentOptions) -> SegmentOptions:
    """Options with the polarity that the first stage finds, where it is to be found."""
    with closing(open_tomogram(path)) as tomogram:
        return settle_polarity(Volume(tomogram, tomogram.voxel_spacing), stages[0], options)


def write_stage_logits(
    path: Path, stages: list[Stage], options: SegmentOptions, folder: Path
) -> list[Path]:
    """Write NAME_stage1_logits.mrc and NAME_stage2_logits.mrc; what is there is kept.

    `options` give the prompts and the polarity ("auto" counts as dark). Stage 1 is tracked through
    every slice, so that it can be scored, though stage 2 sees only those that it sees in use.

    Raises
    ------
    ValueError
        As `claim`.
    """
    claim(path, stages, "bright" if options.polarity == "bright" else "dark", folder)
    targets = [logits_path(path, f"stage{n}", folder) for n in range(1, len(stages) + 1)]
    if all(target.exists() for target in targets):
        return targets
    with ExitStack() as stack:
        tomogram = stack.enter_context(closing(open_tomogram(path)))
        volume = Volume(tomogram, tomogram.voxel_spacing)
        for number, (stage, target) in enumerate(zip(stages, targets, strict=True)):
            if target.exists():
                continue
            invert = (options.polarity == "bright") != stage.spec.invert
            run = plan_stage(stage, number, volume, options)
            grey = run.volume.slices
            scaling = measure_intensity(grey, stage.spec.normalisation, invert=invert)
            run = replace(run, scaling=scaling)
            if number:
                step = plan_stage(stages[0], 0, volume, options, stage.spec.feedback_step).step
                feedback = stack.enter_context(_scratch(targets[number - 1], step))
                run = replace(run, feedback=feedback)
            label = f"etsam {options.model} stage {number + 1}"
            with (
                create_volume(target, tomogram, dtype="float32", label=label) as writer,
                closing(run_stage(run)) as slices,
            ):
                for z, logits in enumerate(slices):
                    writer.write_slice(z, logits)
    return targets


@contextmanager
def _scratch(path: Path, step: int) -> Iterator[ScratchLogits]:
    """Stored logits as the next stage takes them: those between two tracked slices interpolated."""
    with closing(open_tomogram(path)) as stored, ScratchLogits(stored.shape, step=step) as scratch:
        for z in tracked_slices(stored.shape[0], step):
            scratch.write_slice(z, stored.read_slice(z))
        yield scratch

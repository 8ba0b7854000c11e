"""The clips of every step, drawn while the network learns."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from etsam.dataset import Pair, SliceStore, open_pairs
from etsam.feedback import has_logits
from etsam.predictions import UNCHANGED, unchanged_predictions
from etsam.training.clips import SMALLER, Clips, ClipSampler, ClipShape, Group, fits, own_random
from etsam.training.fresh import FreshPairs
from etsam.training.options import TrainOptions
from etsam.training.parallel import Team
from etsam.training.prompting import Plan, PromptMix
from etsam.training.validation import FRAMES


@dataclass(frozen=True)
class Task:
    """The clips of one step that this process trains on, and of how many in all."""

    clips: Clips
    plan: Plan
    batch: int


class Sampler(Protocol):
    """Draws training clips: from `Pair` files, or those a `ResidentSampler` keeps on its device."""

    def batch(self, step: int, indices: Sequence[int], shape: ClipShape) -> Clips:
        """Draw the clips with these indices in the batch of a step."""
        ...


def open_groups(options: TrainOptions, store: SliceStore) -> list[Group]:
    """The pairs of every folder that is learnt from, checked but not read.

    Raises
    ------
    ValueError, FileNotFoundError
        As `open_pairs`, nothing of a folder is annotated, or no volume is large enough for a clip.
    """
    groups = []
    for source in options.sources:
        pairs = _annotated_pairs(source.folder, options, store)
        groups.append(Group(pairs, len(pairs) if source.weight is None else source.weight))
    for shape in [ClipShape(options.frames, size) for size in options.sizes]:
        small = [[not fits(pair, shape) for pair in group.pairs] for group in groups]
        if options.fresh is None and all(map(all, small)):
            folders = ", ".join(str(source.folder) for source in options.sources)
            raise ValueError(f"{folders}: every volume is smaller than {shape}: {SMALLER}")
        for source, out in zip(options.sources, small, strict=True):
            if any(out):
                warnings.warn(
                    f"{source.folder}: {sum(out)} of {len(out)} volumes are smaller than {shape}, for "
                    "which they are left out",
                    stacklevel=2,
                )
    return groups


def _annotated_pairs(folder: Path, options: TrainOptions, store: SliceStore) -> list[Pair]:
    """The pairs of a folder, of whose masks not all may be -1."""
    pairs = open_pairs(folder, options.spec, store, with_logits=options.stage == 2)
    for odd, told in _oddities(pairs, options):
        if odd:
            warnings.warn(
                f"{folder}: {len(odd)} tomograms ({odd[0].name}, ...) {told}", stacklevel=3
            )
    if not any(pair.is_annotated for pair in pairs):
        raise ValueError(
            f"{folder}: not a voxel of {len(pairs)} masks is annotated, all are -1: "
            "expected 1 (membrane) and 0"
        )
    return pairs


def _oddities(pairs: Sequence[Pair], options: TrainOptions) -> Iterator[tuple[list[Pair], str]]:
    """What the user should know of pairs, and which of them it is true of."""
    if options.stage == 2:
        yield (
            [pair for pair in pairs if not has_logits(pair.tomogram)],
            "are newer than their stage-1 logits: give --stage1-checkpoint to make them anew",
        )
    made = set(unchanged_predictions(pair.mask for pair in pairs))
    yield [pair for pair in pairs if pair.mask in made], f"have masks {UNCHANGED}"
    misplaced = [pair for pair in pairs if pair.misplaced]
    if misplaced:
        told = f"have masks whose headers differ ({misplaced[0].misplaced}): laid voxel on voxel"
        yield misplaced, told
    if options.spec.size == "native":
        yield (
            [pair for pair in pairs if pair.voxel_spacing is None],
            f"do not tell their voxel size: taken for {options.spec.min_spacing:g} Å; if it is another, "
            "`etsam prepare` writes it (--voxel-spacing)",
        )
    other = "dark" if options.spec.invert else "bright"
    yield (
        [pair for pair in pairs if pair.is_inverted],
        f"are seen inverted: by their labels, membranes are {other}",
    )


def make_sampler(
    options: TrainOptions, groups: list[Group], store: SliceStore, team: Team, stack: ExitStack
) -> ClipSampler:
    """Draws the training clips, from folders (`open_groups`) and from what is simulated meanwhile."""
    fresh = options.fresh
    if fresh is None:
        return ClipSampler(lambda _: groups, options.spec, options.seed, options.augmentation)
    open_pair = partial(Pair, spec=options.spec, store=store, with_logits=options.stage == 2)
    fresh = replace(fresh, step=options.spec.feedback_step)
    simulated = FreshPairs(options.output / "simulated", fresh, options.seed, open_pair)
    stack.enter_context(simulated)
    if team.leads:
        simulated.start()
    team.wait()  # until those of another recipe are gone
    weight = 1.0
    if fresh.share < 1:
        weight = sum(group.weight for group in groups) * fresh.share / (1 - fresh.share)
    else:
        groups = []

    def mixed(step: int) -> list[Group]:
        return [*groups, Group(simulated.pairs(step), weight)]

    return ClipSampler(mixed, options.spec, options.seed, options.augmentation)


def held_out(
    options: TrainOptions, store: SliceStore, groups: Sequence[Group]
) -> ClipSampler | None:
    """Draws clips that are never trained on, unchanged; warns where they are of ``groups`` too.

    Raises
    ------
    ValueError, FileNotFoundError
        As `open_groups`.
    """
    if options.validation is None:
        return None
    pairs = _annotated_pairs(options.validation, options, store)
    trained = {pair.tomogram.resolve() for group in groups for pair in group.pairs}
    if known := sum(pair.tomogram.resolve() in trained for pair in pairs):
        warnings.warn(
            f"--validation {options.validation}: {known} of {len(pairs)} tomograms are trained on too: "
            "the Dice says nothing of other tomograms",
            stacklevel=2,
        )
    shape = ClipShape(min(FRAMES, *(pair.shape[0] for pair in pairs)), max(options.sizes))
    if not any(fits(pair, shape) for pair in pairs):
        raise ValueError(
            f"--validation {options.validation}: every volume is smaller than {shape}: {SMALLER}"
        )
    return ClipSampler(lambda _: [Group(pairs, 1.0)], options.spec, 0, "none")


def tasks(first: int, options: TrainOptions, sampler: Sampler, team: Team) -> Generator[Task]:
    """The clips of every step from ``first``; a thread makes the next while the network learns."""
    steps = options.schedule.steps
    with ThreadPoolExecutor(1, thread_name_prefix="etsam-clips") as pool:
        ahead: Future[Task] | None = None
        for step in range(first, steps):
            now = ahead or pool.submit(_task, step, options, sampler, team)
            if step + 1 < steps:
                ahead = pool.submit(_task, step + 1, options, sampler, team)
            yield now.result()


def _task(step: int, options: TrainOptions, sampler: Sampler, team: Team) -> Task:
    """Draw what one step trains on; size and prompts are the same in all processes."""
    random = own_random(options.seed, step, -1)
    size = int(random.choice(options.sizes))
    # about the same number of pixels in every step
    scale = (float(np.median(options.sizes)) / size) ** 2
    batch = max(team.size, round(options.schedule.batch * scale))
    shape = ClipShape(options.frames, size, options.anchored)
    mix = options.prompts or PromptMix(options.automatic)
    plan = mix.plan(options.frames + options.anchored, random)
    return Task(sampler.batch(step, team.share(batch), shape), plan, batch)

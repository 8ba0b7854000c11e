"""Stage-1 logits of training tomograms, made by the very pipeline that is used later."""

from __future__ import annotations

import errno
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np

from etsam.dataset import LOGIT_STEP, Pair, SliceStore, find_pairs, logits_path
from etsam.logits import LOGIT_LIMIT, NpyWriter, ScratchLogits
from etsam.options import SegmentOptions
from etsam.pipeline import StageRun, Volume, plan_stage, run_stage
from etsam.provenance import size_and_time
from etsam.stages import Stage, choose_device, load_stage
from etsam.storage import held_lock, write_text
from etsam.volume import open_tomogram

NOTE = "stage1_logits.json"
"""In a folder of pairs: which stage 1 made the logits there."""
LOCK = ".stage1_logits.lock"
"""Held beside it while logits are made."""
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


def write_stage1_logits(
    folder: Path,
    checkpoint: Path,
    *,
    step: int = 1,
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Segment every training tomogram with stage 1, leaving ``{stem}_stage1.npy`` beside it.

    Logits are clipped to [-5, 5] and kept as int8 of 5 / 127 each. Files that are there already and
    not older than their tomogram are left alone; ``stage1_logits.json`` says which checkpoint and
    step made them. `step` is what stage 2 will want (`FrameSpec.feedback_step`).

    Returns
    -------
    count
        Number of files written.

    Raises
    ------
    ValueError
        The checkpoint is not one of stage 1, a pair does not fit, or the logits there are another's.
    OSError
        Another process is making logits there, or nothing can be written there.
    """
    stage = load_stage(checkpoint, 0, choose_device(device))
    found = find_pairs(folder)
    maker = {"stage1": stage.sha256, "step": step}
    missing = [pair for pair in found if not has_logits(pair[0])]
    with _lock(folder) if missing else nullcontext():
        missing = [pair for pair in missing if not has_logits(pair[0])]  # some were made meanwhile
        pairs = [Pair(*files, stage.spec, SliceStore(0)) for files in missing]
        _claim(folder, maker, kept=len(found) - len(missing))
        for done, pair in enumerate(pairs):
            _write_logits(pair, stage, step)
            if progress is not None:
                progress(done + 1, len(missing))
    return len(missing)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keep other processes from making logits in a folder."""
    taken = f"another process is making stage-1 logits in {folder}: wait for it"
    with ExitStack() as stack:
        try:
            stack.enter_context(held_lock(folder / LOCK, taken))
        except OSError as wrong:
            if wrong.errno not in READ_ONLY:
                raise
            raise OSError(
                f"{folder} cannot be written ({wrong.strerror}), and stage-1 logits go beside the tomograms: "
                f"`etsam prepare {folder} -o mine/ --link` makes a folder that can"
            ) from None
        yield


def has_logits(tomogram: Path) -> bool:
    """Whether a tomogram has stage-1 logits that are not older than the tomogram."""
    target = logits_path(tomogram)
    return target.is_file() and target.stat().st_mtime_ns >= size_and_time(tomogram)[1]


def _claim(folder: Path, maker: dict[str, object], kept: int) -> None:
    """Note whose logits a folder is for; refuse those of another stage 1, warn of unknown ones."""
    note = folder / NOTE
    if kept and note.is_file():
        try:
            known = json.loads(note.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{note} is damaged ({error}): remove it and *_stage1.npy") from None
        if known != maker:
            raise ValueError(
                f"{kept} tomograms of {folder} have logits of another stage 1, or of other slices "
                "(*_stage1.npy): remove them to make new ones, or leave out --stage1-checkpoint to "
                "take them as they are"
            )
        return
    if kept:
        warnings.warn(
            f"{folder}: {kept} tomograms have logits of an unknown stage 1 (*_stage1.npy); they are "
            "taken as they are",
            stacklevel=3,
        )
        return
    write_text(note, json.dumps(maker))


def _write_logits(pair: Pair, stage: Stage, step: int) -> None:
    """Segment one tomogram, and fill the slices that are not tracked as stage 2 sees them in use."""
    with open_tomogram(pair.tomogram) as tomogram:
        volume = Volume(tomogram, tomogram.voxel_spacing)
        run = plan_stage(stage, 0, volume, SegmentOptions(), step)
        run = replace(run, scaling=pair.scaling)
        with NpyWriter(logits_path(pair.tomogram), pair.shape, "|i1") as writer:
            _fill(writer, run)


def _fill(writer: NpyWriter, run: StageRun) -> None:
    """Write the logits of a run."""
    shape = run.volume.slices.shape
    with ScratchLogits(shape, step=run.step) as scratch:
        with closing(run_stage(run)) as slices:
            for z, logits in zip(run.slices(), slices, strict=True):
                scratch.write_slice(z, logits)
        for z in range(shape[0]):
            logits = scratch.read_slice(z).clip(-LOGIT_LIMIT, LOGIT_LIMIT)
            writer.write_slice(z, np.rint(logits / LOGIT_STEP))

"""Train one stage on tomogram and mask pairs; stops and resumes at any step."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from etsam.clip_loss import ClipLoss
from etsam.dataset import SliceStore
from etsam.memory import memory_errors
from etsam.stages import choose_dtype
from etsam.storage import held_lock
from etsam.training.clips import Clips, ClipSampler
from etsam.training.fresh import Fresh
from etsam.training.journal import Journal, Log
from etsam.training.optimiser import Schedule, set_rate
from etsam.training.options import (
    COMPACT,
    COMPACT_LOSSES,
    COMPACT_SPEC,
    Source,
    TrainOptions,
    from_checkpoint,
)
from etsam.training.parallel import Team, join, said_once
from etsam.training.run import Run, refuse_foreign, save_run, start_run
from etsam.training.start import initialise, start_from
from etsam.training.stopping import Stops
from etsam.training.tasks import Sampler, Task, held_out, make_sampler, open_groups, tasks
from etsam.training.validation import clips_picture, validate

__all__ = [
    "COMPACT",
    "COMPACT_LOSSES",
    "COMPACT_SPEC",
    "Fresh",
    "Schedule",
    "Source",
    "TrainOptions",
    "from_checkpoint",
    "initialise",
    "start_from",
    "train",
]

LESS_MEMORY = "try a smaller --size, --frames or --batch, or --checkpointing"
LOG_EVERY = 50
"""Steps between two lines of the log."""
WORSE, WORST = 0.002, 0.02
"""How far the held-out Dice may end below its start, and below its best, without a word."""


def train(options: TrainOptions, log: Log | None = None, sampler: Sampler | None = None) -> Path:
    """Train until the schedule ends, resuming from ``output/state.pt`` when there is one.

    Clips come from ``options.data`` and ``options.fresh`` unless a sampler is given. Writes
    ``log.jsonl``, ``state.pt``, pictures, curves for TensorBoard and the averaged weights
    ``stage{n}.safetensors`` into ``options.output``; files are replaced atomically. Started by
    torchrun, several processes share each batch. Asked to stop, it finishes and saves the step.

    Returns
    -------
    weights
        Path of the averaged weights.

    Raises
    ------
    ValueError
        There are no pairs, a pair does not fit, the folder holds another run, the batch is smaller
        than the number of processes, or the loss is no longer a number.
    FileNotFoundError, FileExistsError, OSError
        A file is missing, weights or a log that are of no run are there, the simulating process
        stopped, or another run is at work in the folder.
    MemoryError
        The memory is used up, of the machine or of the card.
    """
    torch.manual_seed(options.seed)
    with ExitStack() as stack, memory_errors(LESS_MEMORY), said_once():
        store = SliceStore(options.memory_gb)
        stack.callback(store.close)
        groups = [] if sampler else open_groups(options, store)
        team = stack.enter_context(join(options.device))
        if options.schedule.batch < team.size:
            raise ValueError(
                f"a batch of {options.schedule.batch} cannot be shared by {team.size} processes"
            )
        held = held_out(options, store, groups) if team.leads else None
        options.output.mkdir(parents=True, exist_ok=True)  # nothing of the request was refused
        stack.enter_context(_sound_attention())
        stack.enter_context(_no_denormals())
        if team.leads:
            place = options.output
            taken = f"another run is at work in {place}: wait for it, or choose another --output"
            refuse_foreign(options)
            stack.enter_context(held_lock(options.lock, taken))
            options.sign.touch()  # the lock does not stay on every system
        clips = sampler or make_sampler(options, groups, store, team, stack)
        run = start_run(options, team.device)
        if run.step > options.schedule.steps and team.leads:
            warnings.warn(f"the run is at step {run.step} already: nothing to do", stacklevel=2)
        scribe = None
        if team.leads:
            journal = stack.enter_context(Journal(options.output, run.step, log))
            scribe = _Scribe(options, journal, held, team.device)
        drawn = stack.enter_context(closing(tasks(run.step, options, clips, team)))
        _loop(run, drawn, _Setting(options, team, scribe))
        if scribe is not None:
            scribe.judge()
        if team.leads and not options.weights.is_file():  # moved away since the run's end
            save_run(run, options)
        team.wait()
    return options.weights


@contextmanager
def _sound_attention() -> Iterator[None]:
    """Leave cuDNN's attention alone: its gradient in bfloat16 is NaN at times (PyTorch 2.11, H200)."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@contextmanager
def _no_denormals() -> Iterator[None]:
    """Count gradients below 1e-38 as 0: on some processors they make a step twice as long."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@dataclass(frozen=True)
class _Scribe:
    """What the leading process writes."""

    options: TrainOptions
    journal: Journal
    held: ClipSampler | None
    device: torch.device

    def begin(self, run: Run, clips: Clips) -> None:
        """A picture of the first clips, as the network sees them; figures of held-out clips before any step."""
        self.journal.show("clips", clips_picture(clips, len(self.options.spec.offsets)), 0)
        if self.held is not None:
            self.journal.write({"step": 0} | self._validate(run, self.held))

    def write(self, run: Run, entry: dict[str, Any], *, saves: bool) -> None:
        """A line of the log; where the run is to be saved also figures of held-out clips."""
        try:
            if saves and self.held is not None:
                entry = entry | self._validate(run, self.held)
            if entry:
                self.journal.write({"step": run.step} | entry)
        finally:  # whatever fails in figures costs no step
            if saves:
                save_run(run, self.options)

    def judge(self) -> None:
        """Warn where held-out clips were answered better at the start, or clearly so in between."""
        dice = self.journal.values("dice")
        if not dice:
            return
        first, best, last = min(dice), max(dice, key=lambda step: dice[step]), max(dice)
        if dice[last] < max(dice[first] - WORSE, dice[best] - WORST):
            shorter = f", or --steps {best} and another --output" if best else ""
            warnings.warn(
                f"held-out Dice was {dice[first]:.3f} at step {first}, best at step {best} ({dice[best]:.3f}) and "
                f"is {dice[last]:.3f} at the end: give a smaller --learning-rate{shorter}",
                stacklevel=3,
            )

    def _validate(self, run: Run, held: ClipSampler) -> dict[str, Any]:
        """Figures of the averaged network, and a picture."""
        options = self.options
        with _precision(options, self.device):
            figures, picture = validate(
                run.average, held, max(options.sizes), options.automatic, self.device
            )
        self.journal.show(f"validation_{options.stage}", picture, run.step)
        return figures


@dataclass(frozen=True)
class _Setting:
    """What stays the same while training."""

    options: TrainOptions
    team: Team
    scribe: _Scribe | None


def _loop(run: Run, drawn: Iterator[Task], setting: _Setting) -> None:
    """Train on every task; log, validate and save."""
    options, scribe = setting.options, setting.scribe
    module = ClipLoss(
        run.model, options.losses, anchored=options.anchored, checkpointing=options.checkpointing
    )
    shared = setting.team.wrap(module)
    began = time.perf_counter()
    with _saved_when_stopped(run, setting) as stops:
        for task in drawn:
            stops.begin()
            if scribe is not None and run.step == 0:
                scribe.begin(run, task.clips)
                began = time.perf_counter()
            run.losses.append(_step(run, shared, task, setting))
            run.step += 1
            ends = run.step == options.schedule.steps
            saves = run.step % options.every == 0 or ends
            entry: dict[str, Any] = {}
            if run.step % LOG_EVERY == 0 or ends:
                seconds = time.perf_counter() - began
                rate = options.schedule.rate(run.step - 1)
                entry = {"loss": float(np.mean(run.losses)), "rate": rate, "seconds": seconds}
                run.losses, began = [], began + seconds
            if scribe is not None and (entry or saves):
                paused = time.perf_counter()
                scribe.write(run, entry, saves=saves)
                began += time.perf_counter() - paused
            stops.end()


@contextmanager
def _saved_when_stopped(run: Run, setting: _Setting) -> Iterator[Stops]:
    """Save the run where a signal stops it between two steps, and let the error say so."""
    with Stops(setting.team) as stops:
        try:
            yield stops
        except KeyboardInterrupt as stop:
            if setting.scribe is not None and stops.whole and run.step > run.saved:
                save_run(run, setting.options)
            if setting.scribe is not None and run.saved:
                stop.args = (f"interrupted: step {run.saved} is saved, the same command goes on",)
            raise


def _step(run: Run, shared: torch.nn.Module, task: Task, setting: _Setting) -> float:
    """One optimiser step; returns the loss."""
    schedule, team = setting.options.schedule, setting.team
    set_rate(run.optimiser, schedule.rate(run.step))
    clips = task.clips.to(team.device)
    with _precision(setting.options, team.device):
        loss: Tensor = shared(clips, task.plan)
    # processes may have different numbers of clips
    loss = loss * (len(clips.labels) * team.size / task.batch)
    run.optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), schedule.clip_norm)
    figure = team.mean(loss.detach())
    if not math.isfinite(figure):
        raise ValueError(
            f"the loss is {figure} at step {run.step}: go on from the saved state with a smaller "
            "learning rate"
        )
    run.optimiser.step()
    weights: list[Tensor] = list(run.model.parameters())
    averages: list[Tensor] = list(run.average.parameters())
    with torch.no_grad():
        torch._foreach_lerp_(averages, weights, 1 - schedule.average_decay(run.step))
    return figure


def _precision(options: TrainOptions, device: torch.device) -> torch.autocast:
    lower = choose_dtype(options.dtype, device, is_own=True) == torch.bfloat16
    return torch.autocast(device.type, torch.bfloat16, enabled=lower)

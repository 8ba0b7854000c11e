"""Pairs simulated while training, by a process in the background."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

import torch

from etsam.dataset import Pair, find_pairs, logits_path
from etsam.feedback import write_stage1_logits
from etsam.provenance import sha256
from etsam.storage import write_text

FIRST_SEED = 2_000_000_000
"""Seeds from here on; the held-out suite and validation have smaller ones."""
SEEDS_A_RUN = 1_000_000
AHEAD = 2
"""Pairs made before they are needed."""
SPARE = 3
"""Pairs no longer drawn that are kept for a process that lags behind."""
PATIENCE = 0.05  # seconds between two looks
RECIPE = "recipe.txt"
"""In the folder of simulated pairs: how they are made."""


@dataclass(frozen=True)
class Fresh:
    """What is simulated while training.

    Attributes
    ----------
    make
        Writes the pair of a seed into a folder; must be picklable, such as a ``partial`` of
        `etsam.simulate.simulate_one`.
    share
        How often a clip comes from these pairs.
    pool, every
        That many pairs are drawn from, and after so many steps the oldest gives way to a new one.
    stage1, step
        For stage 2, the stage-1 checkpoint that is run over each pair, and which slices it tracks
        (`FrameSpec.feedback_step`; training takes it from its own frame settings).
    """

    make: Callable[[Path, int], object]
    share: float = 0.5
    pool: int = 8
    every: int = 25
    stage1: Path | None = None
    step: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.pool < 1 or self.every < 1:
            raise ValueError(
                f"cannot simulate a share of {self.share} in a pool of {self.pool}, renewed every "
                f"{self.every} steps: expected a share in (0, 1], the others from 1"
            )

    def recipe(self) -> str:
        """How pairs are made, as one text: what is called with what, which stage 1 is run over them."""
        call, words = self.make, ""
        if isinstance(call, partial):
            words = f" {call.args} {sorted(call.keywords.items())}"
            call = call.func
        name = getattr(call, "__qualname__", type(call).__qualname__)
        stage1 = "" if self.stage1 is None else f" {sha256(self.stage1)} {self.step}"
        return f"{name}{words}{stage1}\n"


class FreshPairs:
    """The simulated pairs of a step. Which they are depends on the step alone, not on speed."""

    def __init__(
        self, folder: Path, fresh: Fresh, seed: int, open_pair: Callable[[Path, Path], Pair]
    ) -> None:
        self._folder, self._fresh, self._open = folder, fresh, open_pair
        self._first = FIRST_SEED + seed * SEEDS_A_RUN
        self._pairs: dict[int, Pair] = {}
        self._asked = self._past = self._first
        self._outdated: list[int] = []
        self._pipe: Connection | None = None
        self._process: multiprocessing.process.BaseProcess | None = None

    def start(self) -> None:
        """Start simulating; only one of several training processes does.

        Pairs that an earlier run left of another recipe, or of another stage 1, are removed.
        """
        note, recipe = self._folder / RECIPE, self._fresh.recipe()
        stale = [path for path in self._folder.glob("*") if path.name.isdecimal()]
        if stale and not (note.is_file() and note.read_text("utf-8") == recipe):
            for path in stale:
                shutil.rmtree(path)
            warnings.warn(
                f"{self._folder}: pairs of another recipe, or of another stage 1, are made anew",
                stacklevel=2,
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        write_text(note, recipe)
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        arguments = (other, self._folder, self._fresh)
        self._process = context.Process(target=_work, args=arguments, daemon=True)
        self._process.start()
        other.close()

    def pairs(self, step: int) -> list[Pair]:
        """The pairs of a step, waiting for those that are not there yet.

        Raises
        ------
        ChildProcessError
            The simulating process has stopped.
        """
        oldest = self._first + step // self._fresh.every
        seeds = range(oldest, oldest + self._fresh.pool)
        if self._pipe is not None:
            with suppress(BrokenPipeError):  # said below, where a pair is missing
                for seed in range(max(self._asked, oldest), seeds.stop + AHEAD):
                    self._pipe.send(seed)
            self._asked = seeds.stop + AHEAD
        self._drop(oldest)
        for seed in seeds:
            if seed not in self._pairs:
                self._pairs[seed] = self._open(*self._wait(seed))
        return [self._pairs[seed] for seed in seeds]

    def _wait(self, seed: int) -> tuple[Path, Path]:
        while True:
            found = find_pairs(self._folder / str(seed))
            if found and (self._fresh.stage1 is None or logits_path(found[0][0]).is_file()):
                return found[0]
            if self._process is not None and not self._process.is_alive():
                raise ChildProcessError(f"the simulating process has stopped: {self._last_words()}")
            time.sleep(PATIENCE)

    def _last_words(self) -> str:
        """Why the simulating process stopped, as it said itself."""
        with suppress(EOFError, OSError):
            if self._pipe is not None and self._pipe.poll():
                return str(self._pipe.recv())
        return "see its message above, if it was not killed"

    def _drop(self, oldest: int) -> None:
        """Forget pairs that no step will draw again, and remove them: at once, or when that can be."""
        for seed in [seed for seed in self._pairs if seed < oldest]:
            self._pairs.pop(seed).close()
        if self._process is not None:
            self._outdated += range(self._past, oldest - SPARE)
            self._past = max(self._past, oldest - SPARE)
            places = {seed: self._folder / str(seed) for seed in self._outdated}
            for place in places.values():
                shutil.rmtree(place, ignore_errors=True)
            self._outdated = [seed for seed, place in places.items() if place.exists()]

    def __enter__(self) -> FreshPairs:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.join()


def _work(pipe: Connection, folder: Path, fresh: Fresh) -> None:
    """Make the pairs that are asked for, until the training process closes its end or dies.

    What is wrong with the request or with this machine is sent back in words.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training process ends this one
    if hasattr(os, "nice"):
        os.nice(10)
    while True:
        try:
            seed = pipe.recv()
        except EOFError:
            return
        try:
            _make(folder / str(seed), seed, fresh)
        except (ValueError, OSError, MemoryError) as error:
            pipe.send(str(error) or type(error).__name__)
            return


def _make(place: Path, seed: int, fresh: Fresh) -> None:
    """Make one pair, for stage 2 with its stage-1 logits."""
    place.mkdir(parents=True, exist_ok=True)
    fresh.make(place, seed)
    if fresh.stage1 is not None:
        write_stage1_logits(place, fresh.stage1, step=fresh.step, device="cpu")

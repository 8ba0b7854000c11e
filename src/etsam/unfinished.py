"""A run that another process can go on with: logits so far and memory banks, in a folder on disk."""

from __future__ import annotations

import errno
import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from etsam.logits import NO_LOGITS, LogitRange, ScratchLogits
from etsam.results import STATE_FILE
from etsam.sam2 import SAM2, MemoryBank
from etsam.sam2.checkpoint import written_whole
from etsam.storage import open_scratch

SAVE_SLICES = 16  # at most so many slices are done again after a kill,
SAVE_SECONDS = 10.0  # or those of so much time, where that is fewer

KINDS = ("spatial", "pointer", "choice")  # of what a bank keeps of the last slices
Recent = tuple[tuple[int, Tensor], ...]


@dataclass(frozen=True)
class Position:
    """How far a run is: `done` slices of stage number `stage`, and the memory after them.

    `recent` holds, for each region of the slices, what its bank keeps of the last slices.
    """

    stage: int = 0
    done: int = 0
    recent: tuple[tuple[Recent, ...], ...] = ()


@dataclass
class Unfinished:
    """Keeps the logits of every stage and, now and then, the memory banks in `folder`.

    `identity` says what is being computed from what: a state with another one is left aside.
    `settled` are choices that were found from the volume and are not to be found again.
    Prompted slices are not kept: they are remembered anew, with the same result.
    """

    folder: Path
    identity: Mapping[str, Any]
    position: Position = Position()
    settled: dict[str, Any] = field(default_factory=dict)
    _stages: dict[int, ScratchLogits] = field(default_factory=dict)
    _extremes: dict[int, LogitRange] = field(default_factory=dict)
    _saved: Position = Position()
    _saved_at: float = field(default_factory=time.monotonic)

    def load(self) -> bool:
        """Take up what is in the folder; False where that is nothing, damaged, or of another run.

        Raises
        ------
        OSError
            It cannot be read, as when a network disk is gone: it may be hours of work.
        """
        path = self.folder / STATE_FILE
        if not path.is_file():
            return False
        try:
            with safe_open(path, framework="pt") as file:
                state = json.loads(file.metadata()["etsam"])
                # copies: Windows replaces no file that is mapped into memory
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
            if state["identity"] != _plain(self.identity):
                return False
            recent = tuple(
                tuple(_recent(tensors, f"{n}.{kind}") for kind in KINDS)
                for n in range(state["regions"])
            )
            position = Position(state["stage"], state["done"], recent)
            extremes = {n: LogitRange(*pair) for n, pair in enumerate(state["extremes"])}
            settled = dict(state["settled"])
        except OSError as error:
            reason = f"what was left unfinished cannot be read ({error})"
            raise OSError(errno.EIO, reason, str(path)) from error
        except (SafetensorError, KeyError, TypeError, ValueError):
            return False
        self.position = self._saved = position
        self._extremes, self.settled = extremes, settled
        return True

    def logits(self, stage: int, shape: tuple[int, int, int], step: int = 1) -> ScratchLogits:
        """Logits of a stage: empty, or those of the slices that are done."""
        file = open_scratch(self.folder / _logits_name(stage), shape)
        extremes = self._extremes.get(stage, NO_LOGITS)
        scratch = ScratchLogits(shape, file, extremes, step, self.folder)
        self._stages[stage] = scratch
        return scratch

    def missing_bytes(self, stage: int, shape: tuple[int, int, int]) -> int:
        """Bytes by which the file of a stage's logits is yet to grow."""
        path = self.folder / _logits_name(stage)
        return 4 * math.prod(shape) - (path.stat().st_size if path.exists() else 0)

    def start(self, stage: int, depth: int) -> int:
        """How many slices of a stage are done."""
        if stage < self.position.stage:
            return depth
        return self.position.done if stage == self.position.stage else 0

    def banks(self, stage: int, model: SAM2) -> list[MemoryBank]:
        """Memory of each region to go on with; none where the stage has not begun."""
        if stage != self.position.stage:
            return []
        device = model.no_mem_embed.device
        banks = [MemoryBank.for_config(model.config) for _ in self.position.recent]
        for bank, (spatial, pointers, choice) in zip(banks, self.position.recent, strict=True):
            bank.spatial.extend((z, tensor.to(device)) for z, tensor in spatial)
            bank.pointers.extend((z, tensor.to(device)) for z, tensor in pointers)
            bank.choice = choice[0][1].to(device) if choice else None
        return banks

    def slice_done(self, stage: int, done: int, banks: Sequence[MemoryBank]) -> None:
        """Take note that `done` slices of a stage are on disk; save where it is time to."""
        recent = tuple(
            (
                tuple(bank.spatial),
                tuple(bank.pointers),
                () if bank.choice is None else ((done - 1, bank.choice),),
            )
            for bank in banks
        )
        self.position = Position(stage, done, recent)
        if (
            stage != self._saved.stage
            or done - self._saved.done >= SAVE_SLICES
            or time.monotonic() - self._saved_at >= SAVE_SECONDS
        ):
            self.save()

    def save(self) -> None:
        """Save the position, after all logits it speaks of are on the disk.

        Raises
        ------
        OSError
            It cannot be written; the one saved before is still there.
        """
        stage = self.position.stage
        if self.position is self._saved or stage not in self._stages:
            return
        for number in {self._saved.stage, stage} & set(self._stages):
            self._stages[number].sync()
        tensors = {
            f"{n}.{kind}.{place}.{z}": tensor.detach().cpu().contiguous()
            for n, kept in enumerate(self.position.recent)
            for kind, entries in zip(KINDS, kept, strict=True)
            for place, (z, tensor) in enumerate(entries)
        }
        extremes = [self._stages[n].extremes for n in sorted(self._stages)]
        state = {
            "identity": _plain(self.identity),
            "settled": self.settled,
            "stage": stage,
            "done": self.position.done,
            "regions": len(self.position.recent),
            "extremes": [(limits.low, limits.high) for limits in extremes],
        }
        with written_whole(self.folder / STATE_FILE) as partial:
            save_file(tensors, partial, {"etsam": json.dumps(state)})
        self._saved, self._saved_at = self.position, time.monotonic()

    def restart(self) -> None:
        """Forget what was loaded or done."""
        self._close()
        self.position = self._saved = Position()
        self.settled, self._extremes = {}, {}

    def _close(self) -> None:
        for scratch in self._stages.values():
            scratch.close()
        self._stages.clear()

    def files(self) -> tuple[str, ...]:
        """Names of the files that hold what is done."""
        stages = self.position.stage + bool(self.position.done)
        names = [_logits_name(stage) for stage in range(stages)]
        return (STATE_FILE, *names) if names else ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Save the position where something went wrong, and close the files; they stay there."""
        if error is not None:
            with suppress(OSError, RuntimeError):
                self.save()
        self._close()


def _logits_name(stage: int) -> str:
    return f"stage{stage + 1}.f32"


def _plain(identity: Mapping[str, Any]) -> Any:
    """Return what an identity is when it has been written as JSON."""
    return json.loads(json.dumps(identity, default=str))


def _recent(tensors: Mapping[str, Tensor], name: str) -> Recent:
    """Collect the tensors of one bank's queue in order."""
    keys = [key.split(".") for key in tensors if key.startswith(f"{name}.")]
    ordered = sorted((int(place), int(z)) for *_, place, z in keys)
    return tuple((z, tensors[f"{name}.{place}.{z}"]) for place, z in ordered)

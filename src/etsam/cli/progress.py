"""Progress on stderr: bars with rate and remaining time in a terminal, else a line per stage."""

from __future__ import annotations

import re
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

NARROW = 80  # columns; fewer hold no more than the stage, the count and the time left
SHORTEST = 0.1  # s; a rate over less says nothing, as of files that were there already
SLICE_MESSAGE = re.compile(r"(?P<stage>.+): slice (?P<done>\d+) of (?P<total>\d+)")


class StageProgress:
    """Shows how far each named stage has come; call it with (stage, done, total)."""

    def __init__(self, unit: str = "slices", stream: TextIO | None = None) -> None:
        self._unit = unit
        self._stream = sys.stderr if stream is None else stream
        self._started: dict[str, tuple[float, int]] = {}  # when, and what was done by then
        self._tasks: dict[str, TaskID] = {}
        self._bars: Progress | None = None
        self._line = ""

    def __enter__(self) -> Self:
        if self._stream.isatty():
            self._bars = _bars(self._stream)
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
        elif kind is None:
            self._write_line()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Say that ``done`` of ``total`` slices (or other units) of a stage are finished."""
        if stage not in self._started:
            self._write_line()
            self._started[stage] = time.perf_counter(), done
        start, before = self._started[stage]
        elapsed = time.perf_counter() - start
        speed = _speed(done - before, elapsed, self._unit)
        if self._bars is not None:
            if stage not in self._tasks:
                for earlier in self._bars.tasks:  # they are over, however far they said they were
                    self._bars.update(earlier.id, completed=earlier.total)
                self._tasks[stage] = self._bars.add_task(stage, rate="")
            self._bars.update(self._tasks[stage], completed=done, total=total, rate=speed)
        elif done == total:
            rate = f", {speed}" if speed and elapsed >= SHORTEST else ""
            self._line = f"{stage}: {total} {self._unit} in {elapsed:.1f} s{rate}\n"

    def _write_line(self) -> None:
        """Write the line of the stage before; the last one of a failure is left to its error."""
        self._stream.write(self._line)
        self._line = ""

    def message(self, fraction: float, message: str) -> None:
        """Say how far segmenting is; messages that name a slice are counted in slices."""
        if match := SLICE_MESSAGE.fullmatch(message):
            self(match["stage"], int(match["done"]), int(match["total"]))
        else:
            self.fraction(fraction, message)

    def fraction(self, fraction: float, message: str) -> None:
        """Say that ``fraction`` (0..1) of what ``message`` names is done."""
        self(message, round(100 * fraction), 100)


def _speed(done: int, seconds: float, unit: str) -> str:
    """Units a second, or seconds a unit where that is the larger number; nothing of nothing."""
    if done <= 0:
        return ""
    if done < seconds:
        return f"{seconds / done:.1f} s/{unit.removesuffix('s')}"
    return f"{done / seconds:.1f} {unit}/s"


def _bars(stream: TextIO) -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.table import Column

    console = Console(file=stream)
    is_narrow = console.width < NARROW
    stage = TextColumn("{task.description}", table_column=Column(no_wrap=not is_narrow))
    count = MofNCompleteColumn(table_column=Column(no_wrap=True))
    left = [TextColumn("left"), TimeRemainingColumn(table_column=Column(no_wrap=True))]
    if is_narrow:
        return Progress(stage, count, *left, console=console)
    spent = TimeElapsedColumn(table_column=Column(no_wrap=True))
    rate = TextColumn("{task.fields[rate]}")
    return Progress(stage, BarColumn(), count, rate, spent, *left, console=console)


def duration(seconds: float) -> str:
    """Return a time in words as short as they are certain: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"

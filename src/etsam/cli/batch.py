"""A batch on the command line: signals, progress over all tomograms, the exit code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from etsam.batch import BatchClock, BatchPlan, Outcome, run_batch
from etsam.cli.command import EXIT_FAILED, Stopped, report_failure
from etsam.cli.progress import StageProgress, duration

if TYPE_CHECKING:
    from etsam.results import SegmentResult

EXIT_SEVERAL_FAILED = 100  # and the number of failed tomograms, up to
EXIT_LARGEST = 125


class Signals:
    """Remembers the first SIGTERM or Ctrl-C, so that the slice at hand is finished."""

    def __init__(self) -> None:
        self._number: int | None = None

    def check(self) -> None:
        """Stop if a signal has come.

        Raises
        ------
        Stopped
            With the exit code: 143 after SIGTERM, 130 after Ctrl-C.
        """
        if self._number is not None:
            raise Stopped(self._number, "interrupted: give --resume to go on from here")

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._number is not None:
            raise Stopped(number, "interrupted at once: --resume goes on from the last saved slice")
        self._number = number
        click.echo("etsam: finishing the slice; once more stops at once", err=True)

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catch the signals, where this is the thread that gets them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(number, self._handle) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)


class BatchDisplay:
    """Says which tomogram is at work, how far it is, and how long the batch will take."""

    def __init__(self, total: int, signals: Signals) -> None:
        self._clock = BatchClock(total)
        self._signals = signals
        self._begun = 0
        self._bars = ExitStack()

    def begin(self, path: Path) -> Callable[[float, str], None]:
        """Begin a tomogram; returns what is called with its progress."""
        self._signals.check()
        self._begun += 1
        if self._clock.total > 1:
            left = self._clock.remaining()
            rest = "" if left is None else f", {duration(left)} left"
            click.echo(f"[{self._begun}/{self._clock.total}] {path}{rest}", err=True)
        bars = self._bars.enter_context(StageProgress())

        def progress(fraction: float, message: str) -> None:
            bars.message(fraction, message)
            self._signals.check()

        return progress

    def end(self, outcome: Outcome) -> None:
        """End a tomogram."""
        self._clock.count(outcome.entry)
        self._bars.__exit__(type(outcome.error) if outcome.error else None, outcome.error, None)

    def close(self) -> None:
        """Take the bars away."""
        self._bars.close()


def run_segment(
    plan: BatchPlan, params: dict[str, Any], show: Callable[[SegmentResult], None]
) -> int:
    """Segment tomograms as the options of the command say; returns the exit code.

    Raises
    ------
    click.UsageError
        Options of an engine are given without one.
    """
    if params["engine"] is None and (params["workers"] or params["engine_options"]):
        raise click.UsageError("--workers and --engine-options need --engine")
    if not plan.paths:
        click.echo("etsam: nothing to do: this shard has no tomogram", err=True)
        return 0
    signals = Signals()
    done = kept = failed = 0
    with signals.caught(), closing(_outcomes(plan, params, signals)) as stream:
        for outcome in stream:
            kept += outcome.entry.reused
            if outcome.result is not None:
                done += 1
                show(outcome.result)
            else:
                failed += 1
                assert outcome.error is not None
                report_failure(outcome.path, outcome.error)
    if len(plan.paths) > 1:
        text = f"{done} of {len(plan.paths)} done ({kept} before), {failed} failed"
        click.echo(f"etsam: {text}: {plan.manifest}", err=True)
    return exit_code(failed)


def _outcomes(
    plan: BatchPlan, params: dict[str, Any], signals: Signals
) -> Generator[Outcome, None, None]:
    """What becomes of each tomogram, in this process or in others."""
    if params["engine"] is None:
        with closing(BatchDisplay(len(plan.paths), signals)) as display:
            for outcome in run_batch(plan, display.begin):
                display.end(outcome)
                yield outcome
        return
    from etsam.engine import Engine, run_on_engine

    engine = Engine(params["engine"], params["workers"], params["engine_options"])
    with StageProgress("tomograms") as progress:
        progress("batch", 0, len(plan.paths))
        stream = run_on_engine(plan, engine, signals.check, lambda line: click.echo(line, err=True))
        for number, outcome in enumerate(stream, 1):
            progress("batch", number, len(plan.paths))
            yield outcome


def exit_code(failed: int) -> int:
    """0: all done; 1: one failed; 102 to 125: so many less 100 failed (125: or more)."""
    if failed < 2:
        return EXIT_FAILED if failed else 0
    return min(EXIT_SEVERAL_FAILED + failed, EXIT_LARGEST)

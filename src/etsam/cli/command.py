"""What every subcommand shares: options as one mapping, errors as one line."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click
from click.core import ParameterSource

from etsam import messages
from etsam.options import OTHER_FILES

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
EXPECTED_ERRORS = (ValueError, OSError, MemoryError, ImportError, click.ClickException)


class VerbCommand(click.Command):
    """A command whose function takes its options as one mapping, and that can be interrupted."""

    def invoke(self, ctx: click.Context) -> Any:
        assert self.callback is not None
        try:
            with sigterm_stops():
                return self.callback(ctx.params)
        except KeyboardInterrupt as stop:
            report_error(str(stop) or "interrupted")
            return stop.code if isinstance(stop, Stopped) else EXIT_INTERRUPTED


class Stopped(KeyboardInterrupt):
    """A signal asked the command to stop; ``code`` is what it exits with."""

    def __init__(self, number: int, message: str = "interrupted") -> None:
        super().__init__(message)
        self.code = 128 + number


@contextmanager
def sigterm_stops() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that nothing half-written is left.

    Where a program or the command itself has its own way with the signal, that stays.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    process = os.getpid()

    def stop(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != process:  # a worker forked meanwhile ends at once
            os._exit(128 + number)
        raise Stopped(number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def report_error(error: BaseException | str) -> None:
    """Write ``etsam: error: ...`` to stderr, as exactly one line."""
    click.echo(f"etsam: error: {one_line(error)}", err=True)


def report_failure(path: Path, error: BaseException) -> None:
    """Write why a file failed as one line that names it."""
    line = one_line(error)
    report_error(line if str(path) in line else f"{path}: {line}")


def report_warning(message: Warning | str) -> None:
    """Write ``etsam: warning: ...`` to stderr, as exactly one line."""
    click.echo(f"etsam: warning: {one_line(str(message))}", err=True)


def one_line(error: BaseException | str) -> str:
    """The message of an error, also click's, without line breaks and without error numbers."""
    if isinstance(error, click.ClickException):
        error = error.format_message()
    return messages.one_line(error)


def is_chosen(name: str) -> bool:
    """Whether an option of the command at work was given, with another value than its default."""
    context = click.get_current_context()
    given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    usual = {option.name: option.default for option in context.command.params}
    return given and bool(context.params[name] != usual[name])


def check_output_name(output: Path | None) -> None:
    """Refuse a name that is neither a mask's nor can be meant as a folder, before one of it is made.

    Raises
    ------
    click.UsageError
        It is that of a file of another kind.
    """
    if output is None or output.is_dir():
        return
    from etsam.results import names_mask  # takes a while, in which others may make the folder

    is_file = output.exists() and not output.is_dir()
    if output.suffix.lower() in OTHER_FILES or (is_file and not names_mask(output)):
        raise click.UsageError(
            f"--output {output}: give a folder, or a mask's name in .mrc or .zarr"
        )


def check_output(paths: Sequence[Path], output: Path | None) -> None:
    """Refuse to write the results of several files into one.

    Raises
    ------
    click.UsageError
        ``output`` names a file and there are several inputs.
    """
    if output is None or len(paths) < 2 or output.is_dir():
        return
    from etsam.results import names_mask

    if (output.exists() and not output.is_dir()) or names_mask(output):
        raise click.UsageError(f"--output {output} is not a folder: {len(paths)} inputs need one")


def refuse_same_targets(paths: Sequence[Path], target: Callable[[Path], Path]) -> None:
    """Refuse inputs whose results would have the same name; `target` says it of an input.

    Raises
    ------
    ValueError
        Two inputs share a result.
    """
    from etsam.places import folded
    from etsam.storage import with_own_name

    taken: dict[Path, Path] = {}
    for path in paths:
        place = with_own_name(target(path))
        first = taken.setdefault(folded(place), path)
        if first != path:
            raise ValueError(
                f"{first} and {path} would both become {place}: run them one by one, each with "
                "an --output of its own"
            )


def run_each(paths: Sequence[Path], run: Callable[[Path], None]) -> int:
    """Run on each path in order and return the exit code: 1 if any failed, each with its line."""
    failed = 0
    for path in paths:
        try:
            run(path)
        except EXPECTED_ERRORS as error:
            failed += 1
            report_failure(path, error)
    return EXIT_FAILED if failed else 0

"""What every subcommand shares: options as one mapping, errors as one line."""

from __future__ import annotations

from typing import Any

import click

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
EXPECTED_ERRORS = (ValueError, OSError, MemoryError, click.ClickException)


class VerbCommand(click.Command):
    """A command whose function takes its options as one mapping, and that can be interrupted."""

    def invoke(self, ctx: click.Context) -> Any:
        assert self.callback is not None
        try:
            return self.callback(ctx.params)
        except KeyboardInterrupt:
            report_error("interrupted")
            return EXIT_INTERRUPTED


def report_error(error: BaseException | str) -> None:
    """Write ``etsam: error: ...`` to stderr, as exactly one line."""
    click.echo(f"etsam: error: {one_line(error)}", err=True)


def report_warning(message: Warning | str) -> None:
    """Write ``etsam: warning: ...`` to stderr, as exactly one line."""
    click.echo(f"etsam: warning: {one_line(str(message))}", err=True)


def one_line(error: BaseException | str) -> str:
    """The message of an error, without line breaks and without error numbers."""
    if isinstance(error, click.ClickException):
        text = error.format_message()
    elif isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    elif isinstance(error, MemoryError):
        text = f"not enough memory: {error}" if str(error) else "not enough memory"
    else:
        text = str(error)
    return " ".join(text.split()) or type(error).__name__

"""How the scripts here end on bad input: as `etsam` does, with one line and exit code 1."""

from __future__ import annotations

from collections.abc import Callable

from etsam.cli.command import EXPECTED_ERRORS, one_line


def run_script(main: Callable[[], None]) -> None:
    """Run a script; an expected error becomes one line on stderr and exit code 1."""
    try:
        main()
    except EXPECTED_ERRORS as error:
        raise SystemExit(one_line(error)) from error

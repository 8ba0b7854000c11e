"""Where the command `etsam` and `python -m etsam` begin: before anything that takes time to load."""

from __future__ import annotations

import sys

INTERRUPTED = 130  # as `etsam.cli.command` has it, which is not loaded yet


def main() -> None:
    """Run the command line; a Ctrl-C while it is still being loaded ends it in one line too."""
    try:
        from etsam.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("etsam: error: interrupted\n")
        sys.exit(INTERRUPTED)


if __name__ == "__main__":  # processes that are started anew import this file too
    main()

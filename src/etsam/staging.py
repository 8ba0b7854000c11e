"""A hidden folder in which files are made that get their names together."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from etsam.storage import partial_name


@contextmanager
def hidden_folder(home: Path, stem: str) -> Iterator[Path]:
    """Make a folder of this call's own in `home`, which is made if need be; it is removed at the end.

    After a failure a `home` that was made for it goes too, if nothing else is in it.

    Raises
    ------
    OSError
        A folder cannot be made.
    """
    is_new = not home.exists()
    home.mkdir(parents=True, exist_ok=True)
    try:
        folder = partial_name(home / stem)
        folder.mkdir()
        try:
            yield folder
        finally:
            _remove(folder)
    except BaseException:
        if is_new:
            with suppress(OSError):
                home.rmdir()
        raise


def _remove(folder: Path) -> None:
    """Remove a folder, also where a signal asks the command to stop meanwhile."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except KeyboardInterrupt:
        shutil.rmtree(folder, ignore_errors=True)
        raise

"""A hidden folder in which files are made that get their names together."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from etsam.renaming import rename
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


def place_files(folder: Path, made: Sequence[Path], stale: Iterable[Path] = ()) -> None:
    """Give the files of a hidden folder their names; the first of `made` is the JSON of the others.

    What they replace goes first, into the folder, and with it what is `stale`. The old JSON goes last
    and the new one comes first, so that at no moment a JSON stands beside the files of another run:
    whoever is killed in between leaves a result with files missing. Who is asked to stop finishes first.
    """
    old = [*stale, *reversed(made)]
    moves = [(path, folder / f"replaced{number}") for number, path in enumerate(old)]
    moves += [(folder / path.name, path) for path in made]
    try:
        _move(moves, folder)
    except KeyboardInterrupt:
        _move(moves, folder)
        raise


def _move(moves: list[tuple[Path, Path]], folder: Path) -> None:
    """Move files, and strike off the list what is moved; those of the folder must be there or have been."""
    while moves:
        source, target = moves[0]
        try:
            rename(source, target)
        except FileNotFoundError:
            if source.parent == folder and not os.path.lexists(target):
                raise
        del moves[0]

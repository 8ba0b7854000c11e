"""Names that lead to one place: some disks ignore case, and how accents are written."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path


def meet(first: Iterable[Path], second: Iterable[Path]) -> bool:
    """Whether a place of the first is one of the second; all are absolute and without links.

    Names that differ in case or form only must be of one file, for on most disks of Linux they are not;
    a second link to it under another name is another place.
    """
    others = list(second)
    return any(_is_same(path, other) for path in first for other in others)


def folded(path: Path) -> Path:
    """Return what all names of a place have in common on the disks of macOS, there or not; elsewhere the path."""
    return Path(_fold(path)) if sys.platform == "darwin" else path


def _is_same(path: Path, other: Path) -> bool:
    if path == other:
        return True
    alike = _fold(path) == _fold(other)
    return alike and path.exists() and other.exists() and path.samefile(other)


def _fold(path: Path) -> str:
    return unicodedata.normalize("NFD", str(path)).casefold()

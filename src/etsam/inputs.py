"""What a user names as input, as a list of tomograms: files, folders, globs, lists."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from etsam.ngff_metadata import is_zarr
from etsam.volume import KNOWN_SUFFIXES

LIST_SUFFIXES = (".txt", ".lst")
RESULT_STEMS = ("_membrane", "_membrane_logits", "_membrane_postprocessed", "_components")


def find_tomograms(names: Iterable[str | Path]) -> list[Path]:
    """Turn names into tomograms, each once, in the order given.

    A folder stands for the MRC files and OME-Zarr folders right in it, without our own results; a
    name with ``*``, ``?`` or ``[`` for what it matches (``**`` for folders at any depth); a text
    file (.txt, .lst) for the names on its lines, relative to its folder, ``#`` starting a comment.
    Anything else stands for itself, there or not, so that each tomogram fails on its own.

    Raises
    ------
    FileNotFoundError
        A folder holds no tomogram, or a pattern matches none, or a list is empty.
    """
    found: dict[Path, None] = {}
    for name in names:
        found.update(dict.fromkeys(_one(Path(name))))
    return list(found)


def _one(path: Path) -> list[Path]:
    if path.is_file() and path.suffix.lower() in LIST_SUFFIXES:
        return _in_list(path)
    if path.is_dir() and path.suffix.lower() != ".zarr" and not is_zarr(path):
        return _in_folder(path)
    if not path.exists() and glob.has_magic(str(path)):
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        chosen = [match for match in matches if not _is_result(match)]
        if not chosen:
            raise FileNotFoundError(f"no tomogram matches {path}")
        return chosen
    return [path]


def _in_folder(folder: Path) -> list[Path]:
    found = [
        path
        for path in sorted(folder.iterdir())
        if KNOWN_SUFFIXES.search(path.name) and not _is_result(path)
    ]
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no tomogram: expected MRC files (.mrc, .rec, .map, ...) or OME-Zarr "
            "folders right in it"
        )
    return found


def _in_list(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a list of tomograms: it is no UTF-8 text") from error
    names = [line.strip() for line in lines]
    names = [name for name in names if name and not name.startswith("#")]
    if not names:
        raise FileNotFoundError(f"{path} names no tomogram: expected one on each line")
    nested = [name for name in names if Path(name).suffix.lower() in LIST_SUFFIXES]
    if nested:
        raise ValueError(f"{path} names {nested[0]}: a list holds tomograms, not lists")
    return [found for name in names for found in _one(path.parent / name)]


def _is_result(path: Path) -> bool:
    """Whether a file is one that we make, or hidden."""
    stem = KNOWN_SUFFIXES.sub("", path.name)
    return stem.endswith(RESULT_STEMS) or path.name.startswith(".")


def refuse_same_results(masks: dict[Path, Path]) -> None:
    """Refuse tomograms whose results would have the same name; `masks` by tomogram.

    Raises
    ------
    ValueError
        Two tomograms share a result.
    """
    mask, count = Counter(masks.values()).most_common(1)[0]
    if count > 1:
        first, second, *_ = (path for path, place in masks.items() if place == mask)
        raise ValueError(
            f"{first} and {second} would both become {mask}: segment them into two folders"
        )


def shard(paths: list[Path], text: str) -> list[Path]:
    """Return every N-th tomogram, from the i-th on, for ``i/N`` with i from 1 to N.

    Raises
    ------
    ValueError
        The text is not of that form.
    """
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(f"shard is {text!r}: expected i/N with i from 1 to N, e.g. 2/8")
    return paths[int(number) - 1 :: int(count)]

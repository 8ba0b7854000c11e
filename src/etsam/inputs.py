"""What a user names as input, as a list of tomograms: files, folders, globs, lists, projects."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from etsam.layout import fetched_tomograms, portal_tomograms
from etsam.ngff_metadata import is_zarr
from etsam.options import is_whole, quoted
from etsam.pairing import truth_name
from etsam.patterns import is_pattern, matching
from etsam.places import folded
from etsam.predictions import recognise
from etsam.projects import (
    Member,
    copick_tomograms,
    is_copick,
    mask_in_copick,
    mask_in_folder,
    member_of,
)
from etsam.provenance import record_path
from etsam.results import names_mask
from etsam.storage import each_once, with_own_name
from etsam.volume import KNOWN_SUFFIXES, stands_aside, stem_of

LIST_SUFFIXES = (".txt", ".lst")
LEFT_OUT = "results and tilt series (.st, .ali, .preali) are taken only where named themselves"
OTHER_RESULTS = ("_logits", "_postprocessed", "_instances", "_membranes", "_components")
"""What we write beside a mask of any name; of other endings `etsam.predictions` and `pairing` know."""


def find_tomograms(names: Iterable[str | Path]) -> dict[Path, Member | None]:
    """Turn names into tomograms, each once, in the order given, and say what they are in a project.

    A folder stands for the MRC files and OME-Zarr folders right in it, without results (masks,
    logits and labels, ours, other programs' or true ones) and tilt series, told by their names, or for the tomograms
    of the copick project or the runs of the CryoET Data Portal or of `etsam download` that it holds; the JSON
    config of a copick project for its tomograms; a name with ``*``, ``?`` or ``[`` for what it matches (``**``
    for folders at any depth), without these; a text file (.txt, .lst) for the names on its lines,
    relative to its folder, but for lines that start with ``#``. Anything else stands for itself, there or not,
    so that each tomogram fails on its own.

    Raises
    ------
    FileNotFoundError
        A folder or project holds no tomogram, or a pattern matches none, or a list is empty.
    ValueError
        A name is empty, a list or config is not one, or a project lies on a server.
    """
    found: dict[Path, Member | None] = {}
    for name in names:
        if name == "":  # Path("") would be the current folder
            raise ValueError("a tomogram's name is empty: is a variable of the shell not set?")
        for path, member in _one(Path(name)).items():
            found.setdefault(path, member)
    return {path: found[path] for path in each_once(found)}


def _one(path: Path) -> dict[Path, Member | None]:
    if path.is_file() and path.suffix.lower() in LIST_SUFFIXES:
        return _in_list(path)
    if (path.is_file() and path.suffix.lower() == ".json") or is_copick(path):
        found = copick_tomograms(path)
        return {path: member for path, member in found.items() if not _is_no_tomogram(path)}
    if path.is_dir() and path.suffix.lower() != ".zarr" and not is_zarr(path):
        return _in_folder(path)
    if is_pattern(path):
        chosen = [match for match in matching(path) if not _is_no_tomogram(match)]
        if not chosen:
            raise FileNotFoundError(f"no tomogram matches {path}: {LEFT_OUT}")
        return _with_members(chosen)
    return _with_members([path])


def _with_members(paths: Iterable[Path]) -> dict[Path, Member | None]:
    return {path: member_of(path) for path in paths}


def _in_folder(folder: Path) -> dict[Path, Member | None]:
    found = _with_members(
        path
        for path in sorted(folder.iterdir())
        if KNOWN_SUFFIXES.search(path.name) and not _is_no_tomogram(path)
    )
    if not found:
        runs = _with_members(portal_tomograms(folder))
        runs |= {path: Member(name, None, "") for path, name in fetched_tomograms(folder).items()}
        found = {path: member for path, member in runs.items() if not _is_no_tomogram(path)}
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no tomogram: expected MRC files (.mrc, .rec, .map, ...) or OME-Zarr "
            "folders right in it, or runs of a copick project, of the CryoET Data Portal or of `etsam "
            f"download`; {LEFT_OUT}"
        )
    return found


def _in_list(path: Path) -> dict[Path, Member | None]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows' mark or none
        if "\0" in text:  # as in UTF-16; no name holds it
            raise ValueError
    except ValueError:
        raise ValueError(f"{path} is not a list of tomograms: it is no UTF-8 text") from None
    names = [line.strip() for line in text.splitlines()]
    names = [name for name in names if name and not name.startswith("#")]
    if not names:
        raise FileNotFoundError(f"{path} names no tomogram: expected one on each line")
    nested = [name for name in names if Path(name).suffix.lower() in LIST_SUFFIXES]
    if nested:
        raise ValueError(f"{path} names {nested[0]}: a list holds tomograms, not lists")
    return find_tomograms(path.parent / name for name in names)


def _is_no_tomogram(path: Path) -> bool:
    """Whether a file is hidden, or called as a tilt series, as what is made of tomograms, or as truth."""
    name = stem_of(path)
    return (
        stands_aside(path)
        or name.endswith(OTHER_RESULTS)
        or recognise(path).kind is not None
        or truth_name(path) != name
    )


def choose_masks(
    tomograms: dict[Path, Member | None], output: Path | None, *, copick: bool
) -> dict[Path, Path]:
    """Say where the masks of tomograms of projects go; of the others nothing is said.

    With `copick` they become segmentations of their projects, otherwise files of the folder
    `output`, or beside the tomogram where that is None.

    Raises
    ------
    ValueError
        With `copick` for a tomogram outside of copick projects, and without it and without `output`
        for one inside or of a run that `etsam download` fetched, beside which a mask would count as a tomogram.
    """
    if copick:
        return {path: mask_in_copick(path, member) for path, member in tomograms.items()}
    members = {path: member for path, member in tomograms.items() if member is not None}
    if output is None:
        for path, member in members.items():
            if member.copick is not None:
                raise ValueError(
                    f"copick would take a mask beside {path} for a tomogram: give --copick to make it a "
                    "segmentation, or --output"
                )
            if member.spacing is None:
                raise ValueError(
                    f"`etsam prepare` and `etsam train` would take a mask beside {path} for a tomogram: "
                    "give --output"
                )
        return {}
    if names_mask(output):
        return {}
    return {path: mask_in_folder(path, member, output) for path, member in members.items()}


def refuse_same_results(masks: dict[Path, Path]) -> None:
    """Refuse tomograms whose results would have the same name; `masks` by tomogram.

    Masks that differ by their format only, TS_1_membrane.mrc and .zarr, would share JSON and preview.

    Raises
    ------
    ValueError
        Two tomograms share a result.
    """
    taken: dict[Path, Path] = {}
    for path, mask in masks.items():
        record = with_own_name(record_path(mask))
        first = taken.setdefault(folded(record), path)
        if first != path:
            shared = mask if mask == masks[first] else record
            raise ValueError(
                f"{first} and {path} would both become {shared}: segment them into two folders"
            )


def shard(paths: list[Path], text: str) -> list[Path]:
    """Return every N-th tomogram, from the i-th on, for ``i/N`` with i from 1 to N.

    Raises
    ------
    ValueError
        The text is not of that form.
    """
    number, _, count = text.partition("/")
    if not (is_whole(number) and is_whole(count) and 1 <= int(number) <= int(count)):
        raise ValueError(f"shard is {quoted(text)}: expected i/N with i from 1 to N, e.g. 2/8")
    return paths[int(number) - 1 :: int(count)]

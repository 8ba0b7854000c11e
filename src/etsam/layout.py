"""Where tomograms and their masks lie: side by side, as the portal lays them out, or as fetched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from etsam.volume import KNOWN_SUFFIXES, stands_aside, stem_of, whole_volume

MASK_ENDING = "_membrane"
RECORD_ENDING = "_prepared.json"  # how `etsam prepare` made a pair, beside it
ABOVE = ("", "*/", "*/*/")
"""A run, a dataset of runs, several datasets; no ``**``, which would look into every Zarr."""
PORTAL_TOMOGRAMS = "Reconstructions/VoxelSpacing*/Tomograms/*/*"
PORTAL_MASKS = ("*membrane*_segmentationmask.*", "*/*membrane*_segmentationmask.*")
FETCHED_TOMOGRAMS = "tomogram/*"
FETCHED_MASKS = "target_mask"


@dataclass(frozen=True)
class Annotated:
    """A tomogram and the masks that lie on it, with a name for both.

    ``dataset`` and ``run`` are what the folders are called, where they are laid out by these.
    """

    name: str
    tomogram: Path
    masks: tuple[Path, ...]
    dataset: str | None = None
    run: str | None = None


@dataclass(frozen=True)
class FetchedRun:
    """A run that `etsam download` fetched, and the names its results go by: ``{dataset}_{run}``, its tomogram's."""

    dataset: str
    run: str
    names: tuple[str, ...]


def find_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """List the tomograms of a folder that have a mask, sorted by name; see `find_annotated`.

    Raises
    ------
    ValueError
        A tomogram has several masks.
    """
    found = find_annotated(folder)
    for pair in found:
        _refuse_several(pair.tomogram, pair.masks)
    return [(pair.tomogram, mask) for pair in found for mask in pair.masks]


def find_annotated(folder: Path) -> list[Annotated]:
    """List the tomograms of a folder with their masks, sorted by name.

    Either NAME and NAME_membrane lie side by side, in any format that can be read (MRC, packed or not,
    and OME-Zarr); or the folder holds runs as the CryoET Data Portal lays them out,
    ``{dataset}/{run}/Reconstructions/VoxelSpacing*/Tomograms/*/`` and
    ``.../Annotations/*/*membrane*_segmentationmask``; or as the paper's data set and `etsam download` do,
    ``{dataset}/{run}/tomogram/`` and ``.../target_mask/``. Runs are called ``{dataset}_{run}``; they
    may have several masks or none.
    """
    return _side_by_side(folder) or [*_portal(folder), *_fetched(folder)]


def find_inputs(places: Iterable[Path], annotations: tuple[Path, ...] = ()) -> list[Annotated]:
    """Turn what a user names into tomograms with masks: folders, or one tomogram with annotations.

    Raises
    ------
    FileNotFoundError, ValueError
        A folder holds no tomogram with a mask, two would have one name, or masks are not given.
    """
    found: list[Annotated] = []
    for place in places:
        if annotations or not place.is_dir() or KNOWN_SUFFIXES.search(place.name):
            if not annotations and not place.exists():
                raise FileNotFoundError(f"{place} does not exist: give folders, or one tomogram")
            if not annotations:
                raise ValueError(
                    f"{place} is a volume: name its mask with --annotation, or a folder"
                )
            found.append(Annotated(stem_of(place), place, annotations))
            continue
        here = find_annotated(place)
        if not here:
            raise FileNotFoundError(
                f"{place} holds no tomogram with a mask: expected NAME and NAME_membrane, or "
                "DATASET/RUN as `etsam download` or the CryoET Data Portal lay them out"
            )
        found += here
    if annotations and len(found) != 1:
        raise ValueError(f"--annotation is of one tomogram, {len(found)} are given")
    names: dict[str, Path] = {}
    for pair in found:
        if names.setdefault(pair.name, pair.tomogram) != pair.tomogram:
            raise ValueError(
                f"{names[pair.name]} and {pair.tomogram} would both be called {pair.name}: prepare "
                "them into two folders"
            )
    return found


def portal_tomograms(folder: Path) -> list[Path]:
    """List the tomograms of a run, a dataset or several datasets of the portal, in order."""
    return by_stem(path for up in ABOVE for path in folder.glob(up + PORTAL_TOMOGRAMS))


def fetched_tomograms(folder: Path) -> dict[Path, str]:
    """List the tomograms of a run, a dataset or several datasets as `etsam download` lays them out.

    Their names, ``{dataset}_{run}``, are those that `etsam prepare` gives them.
    """
    return {found.tomogram: found.name for found in _fetched(folder)}


def fetched_masks(folder: Path) -> list[Path]:
    """List the masks of runs as `etsam download` lays them out, one a run, whether its tomogram is there or not.

    Raises
    ------
    ValueError
        A run has several masks.
    """
    runs: dict[Path, list[Path]] = {}
    for mask in by_stem(path for up in ABOVE for path in folder.glob(f"{up}{FETCHED_MASKS}/*")):
        runs.setdefault(mask.parent.parent, []).append(mask)
    for run, masks in runs.items():
        _refuse_several(run, masks)
    return [mask for masks in runs.values() for mask in masks]


def fetched_run(mask: Path) -> FetchedRun | None:
    """Return the run whose only mask this is, told by the folders of `etsam download`; None elsewhere."""
    mask = whole_volume(mask)
    if mask.parent.name != FETCHED_MASKS or len(by_stem(mask.parent.glob("*"))) > 1:
        return None
    run = mask.parent.resolve().parent
    tomograms = by_stem(run.glob(FETCHED_TOMOGRAMS))
    names = (f"{run.parent.name}_{run.name}", *map(stem_of, tomograms))
    return FetchedRun(run.parent.name, run.name, names)


def _refuse_several(place: Path, masks: Sequence[Path]) -> None:
    if len(masks) > 1:
        listed = ", ".join(path.name for path in masks)
        raise ValueError(
            f"{place} has {len(masks)} membrane annotations ({listed}): leave one, or merge them with "
            "`etsam prepare`"
        )


def _side_by_side(folder: Path) -> list[Annotated]:
    stems = {stem_of(path): path for path in by_stem(folder.glob("*"))}
    return [
        Annotated(stem, tomogram, (stems[stem + MASK_ENDING],))
        for stem, tomogram in sorted(stems.items())
        if stem + MASK_ENDING in stems
    ]


def _portal(folder: Path) -> list[Annotated]:
    found = []
    for tomogram in portal_tomograms(folder):
        annotations = tomogram.parents[2] / "Annotations"
        masks = by_stem(path for pattern in PORTAL_MASKS for path in annotations.glob(pattern))
        found.append(_of_run(tomogram.parents[4], tomogram, masks))
    return found


def _fetched(folder: Path) -> list[Annotated]:
    found = []
    for tomogram in by_stem(path for up in ABOVE for path in folder.glob(up + FETCHED_TOMOGRAMS)):
        run = tomogram.parents[1]
        found.append(_of_run(run, tomogram, by_stem((run / FETCHED_MASKS).glob("*"))))
    return found


def _of_run(run: Path, tomogram: Path, masks: list[Path]) -> Annotated:
    run = run.resolve()
    dataset = run.parent.name
    return Annotated(f"{dataset}_{run.name}", tomogram, tuple(masks), dataset, run.name)


def by_stem(paths: Iterable[Path]) -> list[Path]:
    """Volumes that do not stand aside, sorted; of one in several formats the MRC, which is read faster at random."""
    volumes: dict[Path, Path] = {}
    for path in sorted(paths, key=lambda p: (p.suffix == ".zarr", p.name)):
        if KNOWN_SUFFIXES.search(path.name) and not stands_aside(path):
            volumes.setdefault(path.parent / stem_of(path), path)
    return [volumes[stem] for stem in sorted(volumes)]

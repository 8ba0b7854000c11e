"""Where tomograms and their masks lie: side by side, as the portal lays them out, or as fetched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from etsam.predictions import run_of
from etsam.storage import each_once
from etsam.volume import KNOWN_SUFFIXES, stands_aside, stem_of, whole_volume

MASK_ENDING = "_membrane"
RECORD_ENDING = "_prepared.json"  # how `etsam prepare` made a pair, beside it
ABOVE = ("", "*/", "*/*/")
"""A run, a dataset of runs, several datasets; no ``**``, which would look into every Zarr."""
PORTAL_SPACINGS = "Reconstructions/VoxelSpacing*"
PORTAL_TOMOGRAMS = "Tomograms/*/*"
PORTAL_ANNOTATIONS = "Annotations"
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
class MaskedRun:
    """A run told by the folders of its mask, and its tomograms that the mask lies on."""

    dataset: str
    run: str
    tomograms: tuple[Path, ...]


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
    for place in each_once(places):
        if annotations or not place.is_dir() or KNOWN_SUFFIXES.search(place.name):
            if not annotations and not place.exists():
                raise FileNotFoundError(f"{place} does not exist: give folders, or one tomogram")
            if not annotations:
                raise ValueError(
                    f"{place} is a volume: name its mask with --annotation, or a folder"
                )
            found.append(Annotated(stem_of(place), place, annotations))
            continue
        here = [pair for pair in find_annotated(place) if pair not in found]
        if not here and not any(place in pair.tomogram.parents for pair in found):
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
    pattern = f"{PORTAL_SPACINGS}/{PORTAL_TOMOGRAMS}"
    return _inputs(path for up in ABOVE for path in folder.glob(up + pattern))


def fetched_tomograms(folder: Path) -> dict[Path, str]:
    """List the tomograms of a run, a dataset or several datasets as `etsam download` lays them out.

    Their names, ``{dataset}_{run}``, are those that `etsam prepare` gives them.
    """
    return {found.tomogram: found.name for found in _fetched(folder)}


def masks_of_runs(folder: Path) -> list[Path]:
    """List the masks of runs as `etsam download` or the portal lay them out, tomograms there or not.

    One a run, or of the portal's one a voxel spacing.

    Raises
    ------
    ValueError
        There are several.
    """
    found: list[Path] = []
    for pattern in (FETCHED_MASKS, f"{PORTAL_SPACINGS}/{PORTAL_ANNOTATIONS}"):
        for place in sorted(path for up in ABOVE for path in folder.glob(up + pattern)):
            masks = _masks_in(place)
            _refuse_several(place.parent, masks)
            found += masks
    return found


def run_of_mask(mask: Path) -> MaskedRun | None:
    """Return the run whose only mask this is, told by the folders of `etsam download` or the portal; None elsewhere."""
    mask = whole_volume(mask).absolute()
    place = next(
        (path for path in mask.parents[:2] if path.name == PORTAL_ANNOTATIONS), mask.parent
    )
    here = place.resolve().parent
    if place.name == FETCHED_MASKS:
        run, tomograms = here, here.glob(FETCHED_TOMOGRAMS)
    elif place.name == PORTAL_ANNOTATIONS and here.match(PORTAL_SPACINGS):
        run, tomograms = here.parents[1], here.glob(PORTAL_TOMOGRAMS)
    else:
        return None
    own = mask.parent, stem_of(mask)
    if any((path.parent, stem_of(path)) != own for path in _masks_in(place)):
        return None
    return MaskedRun(run.parent.name, run.name, tuple(by_stem(tomograms)))


def _masks_in(place: Path) -> list[Path]:
    """The masks in a folder `FETCHED_MASKS` or, of membranes, `PORTAL_ANNOTATIONS`."""
    patterns = ("*",) if place.name == FETCHED_MASKS else PORTAL_MASKS
    return by_stem(path for pattern in patterns for path in place.glob(pattern))


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
        masks = _masks_in(tomogram.parents[2] / PORTAL_ANNOTATIONS)
        found.append(_of_run(tomogram.parents[4], tomogram, masks))
    return found


def _fetched(folder: Path) -> list[Annotated]:
    found = []
    for tomogram in _inputs(path for up in ABOVE for path in folder.glob(up + FETCHED_TOMOGRAMS)):
        run = tomogram.parents[1]
        found.append(_of_run(run, tomogram, _masks_in(run / FETCHED_MASKS)))
    return found


def _of_run(run: Path, tomogram: Path, masks: list[Path]) -> Annotated:
    run = run.resolve()
    dataset = run.parent.name
    return Annotated(f"{dataset}_{run.name}", tomogram, tuple(masks), dataset, run.name)


def _inputs(paths: Iterable[Path]) -> list[Path]:
    """Volumes `by_stem`, without those that a segmentation program made of another one beside them."""
    found = by_stem(paths)
    known = {(path.parent, stem_of(path)) for path in found}
    return [path for path in found if (path.parent, run_of(path)) not in known]


def by_stem(paths: Iterable[Path]) -> list[Path]:
    """Volumes that do not stand aside, sorted; of one in several formats the MRC, which is read faster at random."""
    volumes: dict[Path, Path] = {}
    for path in sorted(paths, key=lambda p: (p.suffix == ".zarr", p.name)):
        if KNOWN_SUFFIXES.search(path.name) and not stands_aside(path):
            volumes.setdefault(path.parent / stem_of(path), path)
    return [volumes[stem] for stem in sorted(volumes)]

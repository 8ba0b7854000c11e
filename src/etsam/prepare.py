"""VERB prepare: tomograms and their annotations, cleaned, as the pairs that train and evaluate read."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from etsam.annotations import Cleaned, CleaningOptions, clean_annotation
from etsam.copying import copy, link
from etsam.layout import MASK_ENDING, RECORD_ENDING, Annotated
from etsam.ngff_metadata import is_zarr, refuse_folder
from etsam.options import Normalisation
from etsam.overlay import place_difference
from etsam.provenance import (
    Clock,
    earlier_record,
    input_record,
    is_as_written,
    outputs_record,
    plain,
    provenance,
    refuse_changed,
    refuse_edited,
    states_of,
    write_json,
)
from etsam.staging import hidden_folder, place_files
from etsam.storage import refuse_taken
from etsam.volume import (
    KNOWN_SUFFIXES,
    Tomogram,
    create_volume,
    open_tomogram,
    refuse_input,
    stem_of,
    whole_volume,
)

COMPONENTS_ENDING = "_components"
LIMIT_ENDING = "_limit"
MOST_LISTED = 1000  # components in the record

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PrepareOptions:
    """Choices for preparing a pair.

    Attributes
    ----------
    cleaning
        What is done to the annotation.
    limit
        A region: a volume, or a folder of ``NAME_limit`` volumes. It counts where it is above 0.
    normalise
        Write the tomogram as float32, scaled; None: as it is, byte for byte.
    voxel_spacing
        In Å, instead of the tomogram's header's; it is then written anew, as int8, int16 or float32.
    link
        Link to the tomogram instead of copying it.
    components
        Also write the number of each voxel's component, before any is dropped.
    resume, overwrite
        Keep what is done, and replace what an earlier run wrote and nobody changed; replace all.
    """

    cleaning: CleaningOptions = field(default_factory=CleaningOptions)
    limit: Path | None = None
    normalise: Normalisation | None = None
    voxel_spacing: float | None = None
    link: bool = False
    components: bool = False
    resume: bool = False
    overwrite: bool = False

    @property
    def writes(self) -> bool:
        """Whether tomograms are written anew, not copied."""
        return self.normalise is not None or self.voxel_spacing is not None

    def __post_init__(self) -> None:
        for given, name in (
            (self.normalise, "--normalise"),
            (self.voxel_spacing, "--voxel-spacing"),
        ):
            if self.link and given is not None:
                raise ValueError(f"a link shows the tomogram as it is: give --link or {name}")
        if self.resume and self.overwrite:
            raise ValueError("--resume keeps what is there, --overwrite replaces it: give one")


@dataclass(frozen=True)
class Prepared:
    """The files of a pair; ``mask`` and ``components`` are None where there is no annotation."""

    name: str
    tomogram: Path
    mask: Path | None
    components: Path | None
    record: Path
    details: dict[str, Any]
    reused: bool = False

    def paths(self) -> list[Path]:
        """All files."""
        return [path for path in vars(self).values() if isinstance(path, Path)]

    def volumes(self) -> list[Path]:
        """All files but the record."""
        return [path for path in self.paths() if path != self.record]

    def json(self) -> str:
        """One line of JSON with paths and details."""
        paths = {
            name: None if value is None else str(value)
            for name, value in vars(self).items()
            if name in ("tomogram", "mask", "components", "record")
        }
        return json.dumps({"name": self.name, **paths, "reused": self.reused, **self.details})


def prepare(
    pair: Annotated,
    folder: Path | str,
    options: PrepareOptions | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Put a tomogram and its cleaned annotation into a folder, as NAME and NAME_membrane.

    The mask is int8 (1 membrane, 0 not, -1 not annotated) with the tomogram's geometry, field by
    field. ``NAME_prepared.json`` says how it was made, of which dataset and run where that is
    known, and that all is there. A failure leaves what was there.

    Raises
    ------
    FileNotFoundError, ValueError
        A volume is not there, cannot be read, has another shape than the tomogram, or holds no labels;
        one has changed while it was read; a result would be in an input's place, or the folder is a Zarr.
    FileExistsError
        A result is there and neither ``resume`` nor ``overwrite`` is set, or with ``resume`` one is
        not as an earlier run wrote it.
    """
    options, folder = options or PrepareOptions(), Path(folder)
    clock = Clock()
    paths = [pair.tomogram, *pair.masks, *_limits(pair, options)]
    before = states_of(paths)
    with ExitStack() as stack:
        inputs = [stack.enter_context(closing(open_tomogram(path))) for path in paths]
        target = _names(pair, folder, options)
        task = _task(pair, [input_record(volume, before) for volume in inputs], options)
        earlier = earlier_record(target.record, "prepare")
        if options.resume and earlier is not None and _is_finished(target, earlier, task):
            return replace(target, details=earlier, reused=True)
        _refuse_existing(target, inputs, options, earlier)
        _check_place(inputs)
        place = stack.enter_context(hidden_folder(folder, target.name))
        staged = _names(pair, place, options)
        cleaned = _write(pair, inputs, staged, options, progress)
        refuse_changed(before)
        details = provenance(
            "prepare",
            parameters=task["request"],
            results=_results(cleaned),
            inputs=task["inputs"],
            clock=clock,
        )
        details |= task["origin"] | {"outputs": outputs_record(staged.volumes())}
        write_json(staged.record, details)
        stale = _stale(target, inputs, earlier or {})
        place_files(place, [target.record, *target.volumes()], stale)
    return replace(target, details=json.loads(target.record.read_bytes()))


def _names(pair: Annotated, folder: Path, options: PrepareOptions) -> Prepared:
    ending = KNOWN_SUFFIXES.search(pair.tomogram.name)
    written = ".zarr" if pair.tomogram.is_dir() else ".mrc"
    fits = ending is not None and ending[0].lower().endswith(".zarr") == (written == ".zarr")
    kept = ending[0] if ending is not None and fits else written
    masked = bool(pair.masks)
    return Prepared(
        pair.name,
        folder / f"{pair.name}{written if options.writes else kept}",
        folder / f"{pair.name}{MASK_ENDING}{written}" if masked else None,
        folder / f"{pair.name}{COMPONENTS_ENDING}{written}"
        if masked and options.components
        else None,
        folder / f"{pair.name}{RECORD_ENDING}",
        {},
    )


def _limits(pair: Annotated, options: PrepareOptions) -> list[Path]:
    """The region of a tomogram, if any: the volume given, or the one of its name in the folder given."""
    place = options.limit
    if place is None:
        return []
    if not place.is_dir() or KNOWN_SUFFIXES.search(place.name):
        return [place]
    wanted = pair.name + LIMIT_ENDING
    found = [path for path in sorted(place.iterdir()) if stem_of(path) == wanted]
    if not found:
        raise FileNotFoundError(f"{place} holds no region for {pair.name}: expected {wanted}.mrc")
    return found[:1]


def _task(pair: Annotated, inputs: list[dict[str, Any]], options: PrepareOptions) -> dict[str, Any]:
    """What decides the result."""
    asked = asdict(replace(options, resume=False, overwrite=False))
    box = options.cleaning.box
    asked["cleaning"]["box"] = box and [[side.start, side.stop] for side in box]
    del asked["resume"], asked["overwrite"]
    return {
        "request": json.loads(json.dumps(plain(asked), default=str)),
        "inputs": inputs,
        "origin": {} if pair.run is None else {"dataset": pair.dataset, "run": pair.run},
    }


def _is_finished(target: Prepared, earlier: dict[str, Any], task: dict[str, Any]) -> bool:
    """Whether an earlier run made all of the same."""
    same = earlier.get("parameters") == task["request"] and earlier.get("inputs") == task["inputs"]
    origin = {key: earlier[key] for key in ("dataset", "run") if key in earlier}
    return same and origin == task["origin"] and all(path.exists() for path in target.paths())


def _earlier_volumes(target: Prepared, earlier: dict[str, Any]) -> list[Path]:
    """The volumes that the record of an earlier run tells of, by names that this tomogram may have."""
    stems = [target.name + ending for ending in ("", MASK_ENDING, COMPONENTS_ENDING)]
    outputs = earlier.get("outputs")
    names = outputs if isinstance(outputs, dict) else {}
    return [target.record.parent / Path(name).name for name in names if stem_of(name) in stems]


def _stale(target: Prepared, inputs: list[Tomogram], earlier: dict[str, Any]) -> list[Path]:
    """What an earlier run wrote, nobody has changed since, and this run does not write."""
    found = [path for path in _earlier_volumes(target, earlier) if path not in target.paths()]
    sources = _sources(inputs)
    return [
        path for path in found if path.resolve() not in sources and is_as_written(path, earlier)
    ]


def _sources(inputs: list[Tomogram]) -> set[Path]:
    return {volume.path.resolve() for volume in inputs if volume.path is not None}


def _refuse_existing(
    target: Prepared,
    inputs: list[Tomogram],
    options: PrepareOptions,
    earlier: dict[str, Any] | None,
) -> None:
    """Keep inputs and folders of other things, and without `overwrite` what no earlier run wrote or
    somebody changed since.
    """
    folder = whole_volume(target.record.parent)
    if is_zarr(folder):
        raise ValueError(f"{folder} is a Zarr: give another --output, a folder for pairs")
    own = [path for path in target.paths() if not path.is_symlink()]  # a link may be replaced
    for number, volume in enumerate(inputs):
        assert volume.path is not None
        refuse_input(own, volume.path, "annotation" if number else "tomogram")
    for path in target.paths():
        refuse_folder(path)
        if not (options.overwrite or options.resume):
            refuse_taken(path, "--resume, --overwrite or another --output")
    if not options.overwrite:
        refuse_edited(target.paths() if earlier is None else target.volumes(), earlier or {})
        refuse_edited(_earlier_volumes(target, earlier or {}), earlier or {})


def _check_place(inputs: list[Tomogram]) -> None:
    """Refuse other grids; warn where headers place volumes elsewhere."""
    first = inputs[0]
    for volume in inputs[1:]:
        if volume.shape != first.shape:
            raise ValueError(
                f"{volume.path} has shape {volume.shape}, {first.path} has {first.shape}: they "
                "must lie on one grid"
            )
        if (other := place_difference(first, volume)) is not None:
            warnings.warn(
                f"{volume.path} and the tomogram have {other}: laid voxel on voxel", stacklevel=2
            )


def _write(
    pair: Annotated,
    inputs: list[Tomogram],
    staged: Prepared,
    options: PrepareOptions,
    progress: Progress | None,
) -> Cleaned | None:
    """Write the volumes: the cleaned annotation, where there is one, and the tomogram."""
    if options.link:
        link(pair.tomogram, staged.tomogram)
    masks, region = inputs[1 : len(pair.masks) + 1], [*inputs[len(pair.masks) + 1 :], None][0]
    cleaned = None
    if masks:
        cleaned = clean_annotation(masks, options.cleaning, limit=region, progress=progress)
    with closing(open_tomogram(pair.tomogram, voxel_spacing=options.voxel_spacing)) as tomogram:
        if not options.link:
            anew = options.voxel_spacing is not None
            copy(tomogram, staged.tomogram, options.normalise, anew=anew, progress=progress)
        if cleaned is not None:
            _write_masks(cleaned, tomogram, staged, progress)
    return cleaned


def _write_masks(
    cleaned: Cleaned, tomogram: Tomogram, target: Prepared, progress: Progress | None
) -> None:
    assert target.mask is not None
    depth = tomogram.shape[0]
    if target.components is not None:
        label = "etsam prepare: number of each component, 1 the largest"
        with create_volume(target.components, tomogram, dtype="int16", label=label) as numbers:
            for z, plane in cleaned.numbers():
                numbers.write_slice(z, plane)
    label = "etsam prepare: 1 membrane, 0 not, -1 not annotated"
    with create_volume(target.mask, tomogram, dtype="int8", label=label) as masks:
        for z, labels in cleaned.slices():
            masks.write_slice(z, labels)
            if progress is not None:
                progress("write", z + 1, depth)


def _results(cleaned: Cleaned | None) -> dict[str, Any]:
    if cleaned is None:
        return {}
    counts = ("voxels_before", "voxels_after", "left_out", "filled", "smoothed")
    return {
        **{name: getattr(cleaned, name) for name in counts},
        "components": [asdict(component) for component in cleaned.components[:MOST_LISTED]],
        "components_found": len(cleaned.components),
        "components_kept": sum(component.kept for component in cleaned.components),
    }

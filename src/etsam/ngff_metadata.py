"""NGFF metadata in and out: where the image of an OME-Zarr folder lies, its axes, spacing and origin.

Versions 0.1 to 0.5 are read, 0.4 and 0.5 written (https://ngff.openmicroscopy.org/0.4/ and /0.5/).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from etsam.storage import (
    SPACING_UNKNOWN,
    VolumeInfo,
    VoxelStatistics,
    Zyx,
    known_origin,
    noted_spacing,
)

METADATA_LIMIT = 16 << 20  # bytes
ANCESTORS = 3  # folders above an array in which its multiscales may lie
AXES_BEFORE_0_3 = ("t", "c", "z", "y", "x")
ANGSTROM = {
    "picometer": 0.01,
    "angstrom": 1.0,
    "nanometer": 10.0,
    "micrometer": 1e4,
    "millimeter": 1e7,
    "meter": 1e10,
}


@dataclass(frozen=True)
class NgffImage:
    """One resolution level of an image: its array folder, Zarr format (2 or 3) and place in space.

    `axes` are the names of the array's axes in storage order, empty where nothing names them;
    `spacing` and `origin` are zyx in Å, `spacing` None where it is unknown.
    """

    array: Path
    zarr_format: int
    axes: tuple[str, ...] = ()
    spacing: Zyx | None = None
    origin: Zyx = (0.0, 0.0, 0.0)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Node:
    """A group or array of a Zarr hierarchy; `axes` are a Zarr 3 array's own names, where it has them."""

    zarr_format: int
    kind: str
    attributes: dict[str, Any]
    axes: tuple[str, ...] = ()


def find_image(path: Path) -> NgffImage:
    """Find the finest level of the image at `path`, or the level that `path` itself is.

    Raises
    ------
    ValueError
        If the folder is not a Zarr image, or its metadata are damaged.
    """
    node = _read_node(path)
    if node is None:
        raise ValueError(
            f"{path} is a folder but not OME-Zarr: it has no .zgroup, .zarray or zarr.json"
        )
    if node.kind == "array":
        return _image_of_array(path, node)
    image = _multiscale(node)
    if image is None:
        raise ValueError(f"{path} {_why_no_image(node, path)}")
    datasets = _list(image.get("datasets"), f"datasets of {path}")
    return _level(path, node, image, _mapping(datasets[0], f"datasets of {path}"))


def group_attributes(
    info: VolumeInfo, name: str, label: str, statistics: VoxelStatistics
) -> dict[str, Any]:
    """Return the attributes of the group of an image with one level, stored in the array "0".

    An unknown spacing is written as scale 1 without a unit. `info.ngff_version` says which version.
    """
    unit = {"unit": "angstrom"} if info.voxel_spacing else {}
    multiscale = {
        "name": name,
        "axes": [{"name": axis, "type": "space", **unit} for axis in "zyx"],
        "datasets": [
            {
                "path": "0",
                "coordinateTransformations": [
                    {"type": "scale", "scale": list(info.voxel_spacing or (1.0, 1.0, 1.0))},
                    {"type": "translation", "translation": list(info.origin)},
                ],
            }
        ],
    }
    ours = {
        "etsam": {
            "label": label,
            "minimum": statistics.minimum,
            "maximum": statistics.maximum,
            "mean": statistics.mean,
            "rms": statistics.rms,
        }
    }
    if info.ngff_version == "0.5":
        return {"ome": {"version": "0.5", "multiscales": [multiscale]}, **ours}
    return {"multiscales": [{"version": "0.4", **multiscale}], **ours}


def is_zarr(path: Path) -> bool:
    """Say whether a folder is a Zarr group or array."""
    return any((path / name).is_file() for name in (".zgroup", ".zarray", ".zattrs", "zarr.json"))


def refuse_folder(path: Path) -> None:
    """Keep a folder that has a result's name and is not Zarr: what lies in it is no result's.

    Raises
    ------
    FileExistsError
        There is one.
    """
    is_folder = path.is_dir() and not path.is_symlink()
    if is_folder and not is_zarr(path) and any(path.iterdir()):
        raise FileExistsError(f"{path} is a folder and not Zarr: remove it or choose another name")


def _read_node(path: Path) -> _Node | None:
    if (path / "zarr.json").is_file():
        content = read_json(path / "zarr.json")
        attributes = _mapping(content.get("attributes", {}), f"attributes in {path}/zarr.json")
        kind = content.get("node_type")
        if content.get("zarr_format") != 3 or kind not in ("group", "array"):
            raise ValueError(f"{path}/zarr.json is neither a Zarr 3 group nor an array")
        return _Node(3, kind, attributes, _dimension_names(content))
    if not is_zarr(path):
        return None
    attributes = read_json(path / ".zattrs") if (path / ".zattrs").is_file() else {}
    return _Node(2, "array" if (path / ".zarray").is_file() else "group", attributes)


def _image_of_array(path: Path, node: _Node) -> NgffImage:
    """Return an array given by itself, with what a group above it says of it."""
    for group in list(path.resolve().parents)[:ANCESTORS]:
        above = _read_node(group)
        image = _multiscale(above) if above and above.kind == "group" else None
        if above and image:
            for dataset in _list(image.get("datasets"), f"datasets of {group}"):
                level = _level(group, above, image, _mapping(dataset, f"datasets of {group}"))
                if level.array == path.resolve():
                    return level
    note = f"no NGFF metadata: {SPACING_UNKNOWN}"
    return NgffImage(path, node.zarr_format, node.axes, notes=(note,))


def _dimension_names(content: dict[str, Any]) -> tuple[str, ...]:
    """Return the names a Zarr 3 array has for its axes, where they are those of a volume."""
    names = content.get("dimension_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    lower = tuple(name.lower() for name in names)
    return lower if len(set(lower)) == len(lower) and set("zyx") <= set(lower) else ()


def _described(node: _Node) -> dict[str, Any]:
    """Return the attributes that describe what a group is: version 0.5 has them under `ome`."""
    inner = node.attributes.get("ome")
    return {**node.attributes, **(inner if isinstance(inner, dict) else {})}


def _multiscale(node: _Node) -> dict[str, Any] | None:
    """Return the first image described in a group's attributes, with its version filled in."""
    attributes = _described(node)
    found = attributes.get("multiscales")
    if not isinstance(found, list) or not found or not isinstance(found[0], dict):
        return None
    version = str(found[0].get("version", attributes.get("version", "0.4")))
    return {**found[0], "version": version}


def _why_no_image(node: _Node, path: Path) -> str:
    attributes = _described(node)
    if "plate" in attributes:
        return "is a plate: give one of its images"
    if "bioformats2raw.layout" in attributes:
        return f"holds several images: give one of them, for example {path / '0'}"
    return "is a Zarr group without an image (no multiscales): give the image inside"


def _level(group: Path, node: _Node, image: dict[str, Any], dataset: dict[str, Any]) -> NgffImage:
    where = f"multiscales of {group}"
    name = dataset.get("path")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}: a dataset has no path")
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts:
        raise ValueError(f"{where}: dataset path {name!r} leads out of the folder")
    array = group / inside
    axes, units = _axes(image, where)
    notes: list[str] = []
    scale, translation = _transform(image, dataset, len(axes), where, notes)
    spacing: Zyx | None = None
    origin: Zyx = (0.0, 0.0, 0.0)
    if scale:
        spacing, origin = _in_angstrom(axes, units, scale, translation, notes)
    else:
        notes.append(f"no scale among the coordinateTransformations: {SPACING_UNKNOWN}")
    return NgffImage(array, node.zarr_format, axes, spacing, origin, tuple(notes))


def _axes(image: dict[str, Any], where: str) -> tuple[tuple[str, ...], dict[str, str | None]]:
    """Return axis names and units; versions before 0.3 name none, 0.3 names without units."""
    if "axes" not in image:
        return AXES_BEFORE_0_3, {}
    names: list[str] = []
    units: dict[str, str | None] = {}
    for axis in _list(image["axes"], f"axes in {where}"):
        entry = {"name": axis} if isinstance(axis, str) else _mapping(axis, f"axes in {where}")
        name = str(entry.get("name", "")).lower()
        names.append(name)
        unit = entry.get("unit")
        units[name] = unit.lower() if isinstance(unit, str) else None
    if len(set(names)) < len(names) or not set("zyx") <= set(names):
        raise ValueError(f"{where}: axes {', '.join(names)} are not those of a volume (z, y, x)")
    return tuple(names), units


def _transform(
    image: dict[str, Any], dataset: dict[str, Any], rank: int, where: str, notes: list[str]
) -> tuple[list[float], list[float]]:
    """Return scale and translation of a level, the image's own applied after the level's; note others."""
    scale, translation = [1.0] * rank, [0.0] * rank
    found = False
    for holder in (dataset, image):
        steps = holder.get("coordinateTransformations", [])
        if not isinstance(steps, list):
            raise ValueError(f"{where}: coordinateTransformations is not a list")
        for step in steps:
            entry = _mapping(step, f"coordinateTransformations in {where}")
            if entry.get("type") == "scale":
                factors = _numbers(entry.get("scale"), rank, f"scale in {where}")
                scale = [a * b for a, b in zip(scale, factors, strict=True)]
                translation = [a * b for a, b in zip(translation, factors, strict=True)]
                found = True
            elif entry.get("type") == "translation":
                shift = _numbers(entry.get("translation"), rank, f"translation in {where}")
                translation = [a + b for a, b in zip(translation, shift, strict=True)]
            elif entry.get("type") != "identity":
                kind = f"{entry.get('type')!r:.60}"
                notes.append(
                    f"a coordinate transformation of type {kind} is not known here and left out"
                )
    return (scale, translation) if found else ([], [])


def _in_angstrom(
    axes: tuple[str, ...],
    units: dict[str, str | None],
    scale: list[float],
    translation: list[float],
    notes: list[str],
) -> tuple[Zyx | None, Zyx]:
    places = [axes.index(axis) for axis in "zyx"]
    given = [units.get(axis) for axis in "zyx"]
    strange = [unit for unit in given if unit and unit not in ANGSTROM]
    if strange:
        notes.append(f"unit {strange[0]!r} is not a length known here: {SPACING_UNKNOWN}")
        return None, (0.0, 0.0, 0.0)
    factors = [ANGSTROM[unit or "angstrom"] for unit in given]
    steps = [scale[place] * factor for place, factor in zip(places, factors, strict=True)]
    shift = [translation[place] * factor for place, factor in zip(places, factors, strict=True)]
    origin = known_origin(shift)
    if None in given:
        notes.append(f"no unit of length: {SPACING_UNKNOWN}")
        return None, origin
    return noted_spacing((steps[0], steps[1], steps[2]), notes), origin


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file, which may be damaged or far too large.

    Raises
    ------
    ValueError
        It is not one.
    """
    if path.stat().st_size > METADATA_LIMIT:
        raise ValueError(f"{path} is larger than metadata ever are ({path.stat().st_size:,} bytes)")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from error
    return _mapping(content, str(path))


def _mapping(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(
            f"{where}: expected a list that is not empty, found {type(value).__name__}"
        )
    return value


def _numbers(value: object, count: int, where: str) -> list[float]:
    values = _list(value, where)
    if len(values) != count or not all(
        isinstance(item, int | float) and abs(item) < 1e30 for item in values
    ):
        raise ValueError(f"{where}: expected {count} finite numbers, found {values}")
    return [float(item) for item in values]

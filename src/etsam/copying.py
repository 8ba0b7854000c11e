"""A tomogram in another place: linked, copied, or written anew."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from etsam.intensity import measure_intensity
from etsam.ngff_metadata import is_zarr, read_json
from etsam.options import Normalisation
from etsam.storage import require_space
from etsam.volume import OutputType, Tomogram, create_volume

Progress = Callable[[str, int, int], None]


def link(source: Path, target: Path) -> None:
    """Link to a tomogram.

    Raises
    ------
    OSError
        Windows wants a right for it, and not every disk can.
    """
    try:
        target.symlink_to(source.resolve())
    except OSError as error:
        raise OSError(
            f"{target.name} cannot be a link here ({error.strerror}): leave --link out to copy it"
        ) from error


def copy(
    tomogram: Tomogram,
    target: Path,
    method: Normalisation | None = None,
    *,
    anew: bool = False,
    progress: Progress | None = None,
) -> None:
    """Copy a tomogram byte for byte, or write it: where it is scaled, where that is asked for, or where it
    is a level, which is no image without its group.
    """
    assert tomogram.path is not None
    source = tomogram.path
    if anew or method is not None or _is_level(source):
        _write(tomogram, target, method, progress)
    elif source.is_dir():
        shutil.copytree(source, target)
    else:
        require_space(target.parent, source.stat().st_size, f"copying {source.name}")
        shutil.copyfile(source, target)


def _is_level(source: Path) -> bool:
    """Whether a folder is a Zarr array in a group, which has the geometry."""
    if not is_zarr(source) or not is_zarr(source.resolve().parent):
        return False
    described = source / "zarr.json"
    if described.is_file():
        return read_json(described).get("node_type") == "array"
    return (source / ".zarray").is_file()


def _write(
    tomogram: Tomogram, target: Path, method: Normalisation | None, progress: Progress | None
) -> None:
    """Write a tomogram slice by slice, scaled or in the smallest type that holds its own."""
    scaling = None if method is None else measure_intensity(tomogram, method)
    kind: OutputType = "float32"
    if scaling is None and np.can_cast(tomogram.dtype, np.int16):
        kind = "int8" if np.can_cast(tomogram.dtype, np.int8) else "int16"
    label = "etsam prepare" if method is None else f"etsam prepare normalise={method}"
    with create_volume(target, tomogram, dtype=kind, label=label) as writer:
        for z in range(tomogram.shape[0]):
            plane = tomogram.read_slice(z)
            writer.write_slice(z, plane if scaling is None else scaling.apply_to_array(plane))
            if progress is not None:
                progress("scale" if scaling else "copy", z + 1, tomogram.shape[0])

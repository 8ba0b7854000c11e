"""Volumes as napari layers, scale and translate in Å, and layers as volumes with their geometry."""

from __future__ import annotations

import re
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from etsam.arrays import ArraySource
from etsam.mrc_header import HEADER_BYTES
from etsam.ngff_metadata import ANGSTROM
from etsam.options import OTHER_FILES
from etsam.storage import VolumeInfo, Zyx, known_spacing, naming
from etsam.volume import KNOWN_SUFFIXES, OutputType, Tomogram, create_volume, open_tomogram, stem_of

LayerData = tuple[Any, dict[str, Any], str]

LABEL_NAMES = re.compile(r"(membrane|mask|labels|instances|postprocessed|seg)$", re.IGNORECASE)
"""Ends of the names of volumes that open as labels where they hold integers."""

SOURCE = "etsam_source"
"""Key of a layer's metadata under which the path of its volume is kept."""


class LazyVolume:
    """A volume that looks like an array (Z, Y, X) and reads the slices that are asked for."""

    ndim = 3

    def __init__(self, volume: Tomogram) -> None:
        self._volume = volume
        self._told = False
        weakref.finalize(self, volume.close)
        self.shape = volume.shape
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, key: tuple[int | slice, ...]) -> np.ndarray:
        first, *rest = key if isinstance(key, tuple) else (key,)
        if not isinstance(first, slice):
            z = int(first) % self.shape[0]
            return self._read(z, z + 1)[(0, *rest)]
        start, stop, step = first.indices(self.shape[0])
        if step < 1:
            raise ValueError(f"slices come forwards, not by {step}")
        return self._read(start, max(start, stop))[(slice(None, None, step), *rest)]

    def _read(self, start: int, stop: int) -> np.ndarray:
        """Read slices; warns once if they were not all numbers."""
        slices = self._volume.read_slices(start, stop)
        if self._volume.replaced_voxels and not self._told:
            self._told = True
            warnings.warn(
                f"{self._volume.path}: NaN or infinite voxels are read as the mean of their slice",
                stacklevel=3,
            )
        return slices


def get_reader(path: str | list[str]) -> Callable[[str | list[str]], list[LayerData]] | None:
    """Return a reader for a volume, None for anything else."""
    first = path[0] if isinstance(path, list) else path
    return read_layers if KNOWN_SUFFIXES.search(str(first).rstrip("/\\")) else None


def read_layers(path: str | list[str]) -> list[LayerData]:
    """Open volumes as layers; tomograms are read slice by slice, as they are looked at.

    Raises
    ------
    FileNotFoundError, ValueError
        As `open_tomogram`.
    """
    return [_layer(Path(one)) for one in (path if isinstance(path, list) else [path])]


def _layer(path: Path) -> LayerData:
    volume = open_tomogram(path)
    metadata: dict[str, Any] = {
        "name": stem_of(path),
        "scale": volume.voxel_spacing or (1.0, 1.0, 1.0),
        "translate": volume.origin,
        "metadata": {SOURCE: str(path)},
    }
    if volume.voxel_spacing is not None:
        metadata["units"] = ("angstrom",) * 3
    if volume.dtype.kind in "iub" and LABEL_NAMES.search(stem_of(path)):
        byte = np.int8 if volume.dtype.kind == "i" else np.uint8
        with volume:
            data = np.empty(volume.shape, byte if volume.dtype.itemsize == 1 else np.int32)
            for z in range(volume.shape[0]):
                data[z] = volume.read_slice(z)
        return data, metadata, "labels"
    import dask.array

    chunks = (1, *volume.shape[1:])
    from_array: Callable[..., Any] = dask.array.from_array
    lazy = from_array(LazyVolume(volume), chunks=chunks, asarray=True)
    middle = volume.read_slice(volume.shape[0] // 2)
    low, high = np.percentile(middle, [0.5, 99.5])
    margin = max(1e-6, 1e-6 * abs(low))  # napari wants limits that differ
    metadata["contrast_limits"] = (float(low), float(max(high, low + margin)))
    return lazy, metadata, "image"


def write_labels(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Write a labels layer as MRC or OME-Zarr: int8 where the labels fit, otherwise int16.

    The header of the volume it came from is kept, otherwise scale and translate become spacing and origin.
    Axes of negative scale are flipped, so that voxels lie in the file where they lie in napari.

    Raises
    ------
    ValueError
        If it is not a volume, its labels do not fit 16 bits, or the name is not a volume's.
    OSError
        If it cannot be written there.
    """
    array = _finest(data)
    like = layer_volume(array, meta)
    ends = [(int(np.min(plane)), int(np.max(plane))) for plane in map(np.asarray, array)]
    lowest, highest = min(low for low, _ in ends), max(high for _, high in ends)
    if not -32768 <= lowest <= highest <= 32767:
        raise ValueError(
            f"labels run from {lowest} to {highest}: -32768 to 32767 fit, merge or drop some"
        )
    dtype: OutputType = "int8" if lowest >= -128 and highest <= 127 else "int16"
    return _write(path, array, meta, like, dtype)


def write_image(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Write an image layer as MRC or OME-Zarr, float32, with its geometry as `write_labels` does.

    Raises
    ------
    ValueError
        If it is not a volume, or the name is not a volume's.
    OSError
        If it cannot be written there.
    """
    array = _finest(data)
    return _write(path, array, meta, layer_volume(array, meta), "float32")


def _finest(data: Any) -> Any:
    """The array of a layer, the finest of several: napari holds these in a sequence of its own."""
    return data[0] if isinstance(data, Sequence) else data


def _write(
    path: str, array: Any, meta: dict[str, Any], like: Tomogram, dtype: OutputType
) -> list[str]:
    path = _volume_name(path)
    turned = [step < 0 for step in _triple(meta, "scale", 1.0)]
    order = range(like.shape[0])[:: -1 if turned[0] else 1]
    axes = tuple(axis for axis, is_turned in enumerate(turned[1:]) if is_turned)
    with (
        naming(Path(path)),
        like,
        create_volume(path, like, dtype=dtype, label="etsam napari") as writer,
    ):
        for z, at in enumerate(order):
            writer.write_slice(z, np.flip(np.asarray(array[at]), axes))
    return [path]


def _volume_name(path: str) -> str:
    """Return the name of a file to write: with .mrc where it has no suffix; 10.00Apx is none.

    Raises
    ------
    ValueError
        If it has the suffix of something else.
    """
    if KNOWN_SUFFIXES.search(Path(path).name):
        return path
    if Path(path).suffix.lower() in OTHER_FILES:
        raise ValueError(f"{path} is no name of a volume: let it end with .mrc or .zarr")
    return f"{path}.mrc"


def layer_volume(data: Any, meta: dict[str, Any]) -> Tomogram:
    """Return a layer's array (the finest of several) as a volume with spacing and origin in Å.

    Where the scale of an axis is negative its last voxel is at the origin.

    Warns where the file that it came from can no longer be read, whose header would be kept.

    Raises
    ------
    ValueError
        If it is not a (Z, Y, X) array of real numbers, or its scale or translate has too few.
    """
    source = ArraySource(data)
    scale, translate = _triple(meta, "scale", 1.0), _triple(meta, "translate", 0.0)
    places = zip(translate, scale, source.info.shape, strict=True)
    z, y, x = (at + step * (count - 1) if step < 0 else at for at, step, count in places)
    spacing = known_spacing((abs(scale[0]), abs(scale[1]), abs(scale[2])))
    info = replace(source.info, voxel_spacing=spacing, origin=(z, y, x))
    path = (meta.get("metadata") or {}).get(SOURCE)
    if path is not None and Path(path).exists():
        try:
            info = _with_header(info, Path(path))
        except (ValueError, OSError) as wrong:
            warnings.warn(
                f"the header of the layer's file is not kept, its scale and translate are: {wrong}",
                stacklevel=3,
            )
    return Tomogram(source, None, info)


def _with_header(info: VolumeInfo, path: Path) -> VolumeInfo:
    """Add the header of the MRC file that a layer came from, if that lies where the layer does."""
    with open_tomogram(path) as opened:
        same = opened.shape == info.shape and np.allclose(opened.origin, info.origin)
        header, order = opened.info.mrc_header, opened.info.header_order
    if not same or header is None or len(header) != HEADER_BYTES:
        return info
    return replace(info, mrc_header=header, header_order=order)


def _angstroms(unit: Any) -> float:
    """Å in a unit: a name, or one of pint's as layers have them; 1 of what is no length, such as a pixel."""
    if isinstance(unit, str):
        return ANGSTROM.get(unit, 1.0)
    return (
        float((1 * unit).to("angstrom").magnitude) if unit.is_compatible_with("angstrom") else 1.0
    )


def _triple(meta: dict[str, Any], key: str, default: float) -> Zyx:
    """Return the last three numbers of a layer's scale or translate, in Å."""
    values = meta.get(key)
    if values is None:
        values = (default,) * 3
    numbers = [float(value) for value in values][-3:]
    if len(numbers) < 3:
        raise ValueError(
            f"the layer's {key} has {len(numbers)} of z, y and x: only volumes are segmented and "
            "saved, no pictures"
        )
    units = [_angstroms(unit) for unit in meta.get("units") or ()][-3:] or (1.0,) * 3
    z, y, x = (number * unit for number, unit in zip(numbers, units, strict=True))
    return z, y, x

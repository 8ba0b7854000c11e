"""Tomograms read and written slice by slice: MRC, OME-Zarr and arrays behind one lazy (Z, Y, X) volume."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np

from etsam.arrays import ArraySource
from etsam.mrc import MrcSink, MrcSource
from etsam.mrc_header import with_spacing
from etsam.ngff import NgffSink, NgffSource
from etsam.places import meet
from etsam.storage import (
    SPACING_UNKNOWN,
    SliceSink,
    SliceSource,
    VolumeInfo,
    VoxelStatistics,
    Zyx,
    check_spacing,
    known_spacing,
    partial_name,
    with_own_name,
)

OutputType = Literal["int8", "int16", "float32"]
KNOWN_SUFFIXES = re.compile(
    r"(\.ome\.zarr|\.zarr|\.(mrc|mrcs|rec|map|st|ali|preali|ccp4)(\.gz|\.bz2)?)$", re.IGNORECASE
)
TILT_SERIES = re.compile(r"\.(st|ali|preali)(\.gz|\.bz2)?$", re.IGNORECASE)
"""What IMOD calls tilt series, raw and aligned, which lie beside their tomograms."""
TIFF_SUFFIXES = (".tif", ".tiff")
SPACING_FOLDER = re.compile(r"VoxelSpacing(\d+(?:\.\d+)?)")  # copick's and the CryoET Data Portal's
FOLDERS_ABOVE = 3  # the portal's lies so far above its tomograms


class Tomogram:
    """A lazy (Z, Y, X) volume: slices are read when asked for and nothing is kept.

    `voxel_spacing` (zyx, Å) is None where the file does not know it; `origin` is zyx in Å; `dtype` is the
    stored one; `notes` says what was odd in the file. Safe to read from several threads.
    """

    def __init__(self, source: SliceSource, path: Path | None, info: VolumeInfo) -> None:
        self._source = source
        self._fill: float | None = None
        self._replaced: dict[int, int] = {}
        self.path = path
        self.info = info
        self.shape = info.shape
        self.dtype = info.dtype
        self.voxel_spacing: Zyx | None = info.voxel_spacing
        self.origin: Zyx = info.origin
        self.notes = info.notes

    @property
    def stored(self) -> VolumeInfo:
        """What the file says of itself, whatever spacing was given or told by its folder."""
        return self._source.info

    @property
    def replaced_voxels(self) -> int:
        """Number of NaN and infinite voxels replaced in the slices read so far."""
        return sum(self._replaced.values())

    def require_finite(self) -> None:
        """Refuse a volume of scores or labels of which a slice read so far was not all numbers.

        Raises
        ------
        ValueError
            If a voxel was NaN or infinite.
        """
        if self._replaced:
            z, count = next(iter(self._replaced.items()))
            raise ValueError(
                f"{self.path or 'the volume'}: {count} voxels of slice {z} are NaN or infinite, which "
                "are neither scores nor labels: make it again, or set them to 0 (-1 in a truth)"
            )

    def read_slice(self, z: int) -> np.ndarray:
        """Return slice `z` as finite float32 (Y, X); see `read_slices`."""
        data: np.ndarray = self.read_slices(z, z + 1)[0]
        return data

    def read_slices(self, start: int, stop: int) -> np.ndarray:
        """Return slices `start` to `stop` as finite float32 (stop - start, Y, X).

        NaN and infinite voxels become the mean of the finite ones of their slice, or of the volume where
        a slice has none.

        Raises
        ------
        IndexError
            If the slices are not all in the volume.
        ValueError
            If the file cannot be read, or not one voxel of the volume is finite.
        """
        if not 0 <= start <= stop <= self.shape[0]:
            raise IndexError(f"slices {start} to {stop} are not in a volume of {self.shape[0]}")
        stored = self._source.read(start, stop)
        with np.errstate(over="ignore"):
            slices = stored.astype(np.float32, copy=False)
        if stored.dtype.kind != "f":
            return slices
        for z, data in enumerate(slices, start):
            finite = np.isfinite(data)
            if not finite.all():
                self._replaced[z] = int(data.size - np.count_nonzero(finite))
                data[~finite] = (
                    data[finite].mean(dtype=np.float64) if finite.any() else self._volume_mean()
                )
        return slices

    def close(self) -> None:
        """Close the file and remove what was unpacked of it."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _volume_mean(self) -> float:
        """Return the mean of all finite voxels, from one pass made once."""
        if self._fill is None:
            total, count = 0.0, 0
            for z in range(self.shape[0]):
                with np.errstate(over="ignore"):
                    data = self._source.read(z, z + 1).astype(np.float32, copy=False)
                finite = np.isfinite(data)
                total += float(data[finite].sum(dtype=np.float64))
                count += int(np.count_nonzero(finite))
            if not count:
                lost = ", or too large for float32: scale them" if self.dtype.itemsize > 4 else ""
                name = self.path or "the array"
                raise ValueError(f"{name} has no finite voxel: all are NaN or infinite{lost}")
            self._fill = total / count
        return self._fill


class VolumeWriter:
    """A volume being written under a `partial_name`: renamed when complete, removed on any error."""

    def __init__(
        self, sink: SliceSink, path: Path, shape: tuple[int, int, int], dtype: np.dtype
    ) -> None:
        self._sink = sink
        self._missing = set(range(shape[0]))
        self._statistics = VoxelStatistics()
        self.path = path
        self.shape = shape
        self.dtype = dtype

    def write_slice(self, z: int, data: np.ndarray) -> None:
        """Write slice `z` (Y, X), in any order and once each.

        Raises
        ------
        ValueError
            If the slice is not of the volume, was written before, has another shape, or has values that
            the data type cannot hold (NaN and infinity included).
        OSError
            If the disk is full or gone.
        """
        if z not in self._missing:
            state = (
                "was written before" if 0 <= z < self.shape[0] else f"is not among {self.shape[0]}"
            )
            raise ValueError(f"slice {z} {state}: write each slice of {self.path.name} once")
        if data.shape != self.shape[1:]:
            raise ValueError(
                f"slice {z} has shape {data.shape}, {self.path.name} needs {self.shape[1:]}"
            )
        stored = _exact(np.asarray(data), self.dtype, z)
        self._sink.write(z, stored)
        self._missing.remove(z)
        self._statistics = self._statistics.add(stored)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._sink.discard()
            return
        try:
            if self._missing:
                raise ValueError(
                    f"{self.path} is not complete: {len(self._missing)} slices were not written"
                )
            self._sink.finish(self._statistics)
        except BaseException:
            self._sink.discard()
            raise


def open_tomogram(path: Path | str, *, voxel_spacing: float | None = None) -> Tomogram:
    """Open an MRC file (plain, gzip, bzip2) or an OME-Zarr folder, whatever its name.

    `voxel_spacing` in Å takes the place of the header's, on all axes, also for start indices.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`.
    ValueError
        If it is not a volume that can be read, in one line that says why.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give an MRC file or an OME-Zarr folder")
    source: SliceSource = NgffSource(path) if path.is_dir() else MrcSource(path)
    return _tomogram(source, path, voxel_spacing)


def tomogram_from_array(array: np.ndarray, *, voxel_spacing: float | None = None) -> Tomogram:
    """Wrap a (Z, Y, X) array; a memory map is read from its file, so that it does not fill the memory.

    Raises
    ------
    ValueError
        If the array is not three-dimensional and real.
    """
    return _tomogram(ArraySource(array), None, voxel_spacing)


def create_volume(
    path: Path | str,
    like: Tomogram,
    *,
    dtype: OutputType,
    label: str,
    ngff_version: str | None = None,
) -> VolumeWriter:
    """Begin a volume with the shape and geometry of `like`; the suffix of `path` says MRC or OME-Zarr.

    `label` (80 ASCII characters at most) goes into the MRC header, or into the OME-Zarr attributes.
    `ngff_version` is "0.4" or "0.5" (default: that of `like`, else 0.4). An existing volume is replaced.

    Raises
    ------
    OSError
        If the folder does not exist, cannot be written, or its disk is too full.
    """
    path = Path(path)
    partial = partial_name(path)
    kind: np.dtype = np.dtype(dtype)
    info = replace(like.info, voxel_spacing=like.voxel_spacing)
    sink: SliceSink
    if path.suffix.lower() == ".zarr":
        version = ngff_version or info.ngff_version or "0.4"
        sink = NgffSink(path, partial, replace(info, ngff_version=version), kind, label)
    else:
        sink = MrcSink(path, partial, info, kind, label)
    return VolumeWriter(sink, path, info.shape, kind)


def output_path(source: Path | str, suffix: str, folder: Path | str | None = None) -> Path:
    """Return the name of a result: the source's whole stem, `suffix`, and .mrc (or .zarr for OME-Zarr).

    `TS_1_10.00Apx.mrc.gz` with `_membrane` gives `TS_1_10.00Apx_membrane.mrc`, beside the source or in `folder`.
    """
    source = whole_volume(Path(source))
    joined = suffix if suffix.startswith(("_", "-", ".")) else f"_{suffix}"
    kind = ".zarr" if source.suffix.lower() == ".zarr" else ".mrc"
    return Path(folder or source.parent) / f"{stem_of(source)}{joined}{kind}"


def whole_volume(path: Path) -> Path:
    """Return the OME-Zarr folder that a level inside of it is of; any other volume is whole itself.

    Results lie beside the whole volume, never inside of it, and are named after it.
    """
    if KNOWN_SUFFIXES.search(path.name):
        return path
    here = path.absolute()
    above = (*path.parents, here, *here.parents)
    return next((folder for folder in above if folder.suffix.lower() == ".zarr"), path)


def refuse_input(
    targets: Iterable[Path], source: Path, what: str, option: str = "--output"
) -> None:
    """Keep what is read: no result is it, lies inside of it or is a folder around it, with or without links.

    Of a level that is the whole OME-Zarr; names that the disk takes for one are one. `what` and `option`
    say in the message what the source is and what to give instead.

    Raises
    ------
    ValueError
        A target is in its place.
    """
    real = Path(os.path.realpath(source))
    kept = {whole_volume(real), Path(os.path.realpath(whole_volume(source)))}
    around = kept.union(*(volume.parents for volume in kept))
    for target in targets:
        places = {with_own_name(target), Path(os.path.realpath(target))}
        if meet(places, [real]):
            raise ValueError(f"{target} is the {what} itself: give another {option}")
        if meet(places, around):
            raise ValueError(f"{target} holds the {what} {source}: give another {option}")
        if any(meet(kept, place.parents) for place in places):
            whole = whole_volume(source)
            raise ValueError(f"{target} lies inside of the {what} {whole}: give another {option}")


def stem_of(path: str | Path) -> str:
    """Return a volume's name without the suffix of its format, also that of a TIFF; a level's is its Zarr's."""
    path = whole_volume(Path(path))
    if path.suffix.lower() in TIFF_SUFFIXES:
        return path.stem
    return KNOWN_SUFFIXES.sub("", path.name) or path.name


def stands_aside(path: Path) -> bool:
    """Whether a folder does not stand for a file in it, by its name: hidden, or called as a tilt series."""
    return stem_of(path).startswith(".") or TILT_SERIES.search(path.name) is not None


def folder_spacing(path: Path) -> float | None:
    """Return the voxel spacing in Å that a folder ``VoxelSpacing{Å}`` above a volume tells, or None."""
    if not KNOWN_SUFFIXES.search(path.name):
        return None  # a level inside of a Zarr has a spacing of its own
    for folder in path.absolute().parents[:FOLDERS_ABOVE]:
        if match := SPACING_FOLDER.fullmatch(folder.name):
            return float(match[1])
    return None


def _tomogram(source: SliceSource, path: Path | None, voxel_spacing: float | None) -> Tomogram:
    info = source.info
    named = None if path is None or info.voxel_spacing else folder_spacing(path)
    spacing = None if named is None else known_spacing((named,) * 3)
    others = tuple(text for text in info.notes if not text.endswith(SPACING_UNKNOWN))
    if voxel_spacing is None and spacing is not None:
        note = f"voxel spacing {named:g} Å taken from the folder's name"
        info = replace(with_spacing(info, spacing), notes=(*others, note))
    if voxel_spacing is not None:
        try:
            info = replace(with_spacing(info, check_spacing(voxel_spacing)), notes=others)
        except ValueError:
            source.close()
            raise
    return Tomogram(source, path, info)


def _exact(data: np.ndarray, dtype: np.dtype, z: int) -> np.ndarray:
    """Return a slice in the volume's data type, refusing values that would change."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            stored = data.astype(dtype, copy=False)
        if not np.isfinite(stored).all():
            raise ValueError(f"slice {z} holds NaN or infinite values")
        return stored
    if np.can_cast(data.dtype, dtype):
        return data.astype(dtype, copy=False)
    limits = np.iinfo(dtype)
    if data.size and not (limits.min <= data.min() and data.max() <= limits.max):
        raise ValueError(
            f"slice {z} holds {data.min()} to {data.max()}: {dtype.name} cannot hold that"
        )
    stored = data.astype(dtype)
    if not np.array_equal(stored, data):
        raise ValueError(f"slice {z} holds fractions: {dtype.name} cannot hold them")
    return stored

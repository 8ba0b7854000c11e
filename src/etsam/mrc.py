"""MRC files read and written slice by slice, plain or packed with gzip or bzip2."""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import math
import os
import shutil
import stat
import zlib
from pathlib import Path
from types import ModuleType
from typing import IO

import numpy as np

from etsam.mrc_header import HEADER_BYTES, output_header, read_header
from etsam.renaming import rename
from etsam.storage import (
    RawFile,
    VolumeInfo,
    VoxelStatistics,
    check_slice,
    naming,
    require_space,
    scratch_file,
    write_all,
)

COPY_BYTES = 1 << 20
DAMAGE_BYTES = 64 << 20  # unpacked of what is no MRC; a block of bzip2 holds 46 MB
DEFLATE_LIMIT = 1040  # deflate never shrinks by more than 1032
FOREIGN_MEMBER = "Not a gzipped file"  # as the codecs say of what follows an archive
COMPRESSIONS = {b"\x1f\x8b": ".gz", b"BZh": ".bz2"}
OTHER_COMPRESSIONS = {b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class MrcSource:
    """An open MRC volume (plain, gzip or bzip2): slices by position, nothing mapped, nothing kept."""

    def __init__(self, path: Path) -> None:
        """Open and check a file.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it is not an MRC volume, is cut short, or is of a kind without real voxels.
        """
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError(
                f"{path} is not a regular file: give an MRC file or an OME-Zarr folder"
            )
        file = io.FileIO(path)
        try:
            size: int | None = os.fstat(file.fileno()).st_size
            compression = _compression(file)
            if compression:
                file = _decompress(path, file, compression)
                size = os.fstat(file.fileno()).st_size
            header = _first_bytes(file, HEADER_BYTES)
            _refuse_other_kinds(header, path)
            self._layout, self.info = read_header(header, path, size)
            check_slice(self.info.shape[1:], path)
        except BaseException:
            file.close()
            raise
        self._file = RawFile(file, str(path))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return slices `start` to `stop` as stored, in native byte order: (n, Y, X)."""
        _, height, width = self.info.shape
        stored = np.empty((stop - start, height, width), self._layout.dtype)
        slice_bytes = height * width * stored.itemsize
        self._file.read_into(self._layout.data_offset + start * slice_bytes, stored)
        return stored.astype(self.info.dtype, copy=False)

    def close(self) -> None:
        self._file.close()


def _first_bytes(file: io.FileIO, count: int) -> bytes:
    file.seek(0)
    data = file.read(count)
    file.seek(0)
    return data


def _refuse_other_kinds(header: bytes, path: Path) -> None:
    """Refuse what would only be said to have a strange header: archives of other kinds, EM files.

    An EM header begins with the number of a machine and ends its first four bytes with that of a data
    type; one of the two is 0 in every MRC header.
    """
    for magic, program in OTHER_COMPRESSIONS.items():
        if header.startswith(magic):
            raise ValueError(f"{path} is packed with {program}: unpack it first, or use gzip")
    if path.suffix.lower() == ".em" and all(header[:4:3]):
        raise ValueError(f"{path} is an EM file, not an MRC volume: convert it first")


def _compression(file: io.FileIO) -> str | None:
    start = _first_bytes(file, 4)
    return next((name for magic, name in COMPRESSIONS.items() if start.startswith(magic)), None)


def _decompress(path: Path, packed: io.FileIO, compression: str) -> io.FileIO:
    """Unpack an archive into a nameless temporary file, no further than its header says.

    Raises
    ------
    ValueError
        If the archive is damaged, cut short, or does not hold an MRC volume.
    """
    with packed, _codec(compression).open(packed) as stream:
        header = _read_packed(stream, HEADER_BYTES, path)
        try:
            layout, info = read_header(header, path, None)
            voxels = math.prod(info.shape) * layout.dtype.itemsize
            total = layout.data_offset + voxels
            packed_size = os.fstat(packed.fileno()).st_size
            if compression == ".gz" and packed_size * DEFLATE_LIMIT < voxels:
                raise ValueError(
                    f"{path} cannot hold the {voxels:,} bytes its header says ({packed_size:,} packed): it is damaged"
                )
            check_slice(info.shape[1:], path)  # before anything is unpacked
        except ValueError:
            _refuse_damaged(stream, path)
            raise
        target = scratch_file(total, f"unpacking {path}")
        try:
            write_all(target, np.frombuffer(header, np.uint8))
            done = HEADER_BYTES
            while done < total and (
                block := _read_packed(stream, min(COPY_BYTES, total - done), path)
            ):
                write_all(target, np.frombuffer(block, np.uint8))
                done += len(block)
            if done == total:
                _read_packed(stream, 1, path)  # reaches the checksum at the end
        except BaseException:
            target.close()
            raise
        return target


def _refuse_damaged(stream: IO[bytes], path: Path) -> None:
    """Read on to the next checksum, which in bzip2 comes after what it vouches for.

    Raises
    ------
    ValueError
        The packed data are damaged or cut short.
    """
    for _ in range(DAMAGE_BYTES // COPY_BYTES):
        if not _read_packed(stream, COPY_BYTES, path):
            return


def _codec(compression: str) -> ModuleType:
    """Return the module that packs and unpacks; isal does gzip 10 times as fast where installed."""
    if compression == ".bz2":
        return bz2
    try:
        return importlib.import_module("isal.igzip")
    except ImportError:
        return gzip


def _damage_errors() -> tuple[type[Exception], ...]:
    """Return what the codecs raise on damaged data: zlib and bz2, and isal where installed."""
    known = (OSError, EOFError, ValueError, zlib.error)
    try:
        return (*known, importlib.import_module("isal.igzip_lib").IsalError)
    except ImportError:
        return known


def _read_packed(stream: IO[bytes], count: int, path: Path) -> bytes:
    try:
        return stream.read(count)
    except _damage_errors() as error:
        if str(error).startswith(FOREIGN_MEMBER):
            raise ValueError(
                f"{path} has bytes after the end of the archive: unpack it with gunzip, which leaves them out"
            ) from error
        raise ValueError(
            f"{path} is a damaged or incomplete archive ({error}): copy it again"
        ) from error


class MrcSink:
    """An MRC file under construction: header written last, slices in any order.

    A name ending in .gz or .bz2 is packed when all slices are there.
    """

    def __init__(
        self, path: Path, partial: Path, info: VolumeInfo, dtype: np.dtype, label: str
    ) -> None:
        """Open `partial` beside `path`, with the geometry of `info`.

        Raises
        ------
        OSError
            If the folder does not exist or lets nobody write, or the disk is too full.
        """
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder: choose another name for the result")
        self._path = path
        self._partial = partial
        self._fields = output_header(info, dtype, label)
        self._dtype = dtype.newbyteorder(info.header_order)
        self._slice_bytes = info.shape[1] * info.shape[2] * dtype.itemsize
        total = HEADER_BYTES + info.shape[0] * self._slice_bytes
        self._file = io.FileIO(partial, "w")
        try:
            require_space(partial.parent, total, f"writing {path.name}")
            with naming(path):
                self._file.truncate(total)
        except BaseException:
            self.discard()
            raise

    def write(self, z: int, data: np.ndarray) -> None:
        """Write one slice (Y, X)."""
        with naming(self._path):
            self._file.seek(HEADER_BYTES + z * self._slice_bytes)
            write_all(self._file, np.ascontiguousarray(data, dtype=self._dtype))

    def finish(self, statistics: VoxelStatistics) -> None:
        """Write the header, flush everything to the disk and move the file to its final name."""
        for name, value in (
            ("dmin", statistics.minimum),
            ("dmax", statistics.maximum),
            ("dmean", statistics.mean),
            ("rms", statistics.rms),
        ):
            self._fields[name] = value
        with naming(self._path):
            self._file.seek(0)
            write_all(self._file, self._fields)
            os.fsync(self._file.fileno())
            self._file.close()
            if self._path.suffix.lower() in COMPRESSIONS.values():
                _pack(self._partial, self._path.suffix.lower())
        rename(self._partial, self._path)

    def discard(self) -> None:
        """Close and remove the partial file."""
        self._file.close()
        self._partial.unlink(missing_ok=True)


def _pack(partial: Path, compression: str) -> None:
    """Compress a finished file under its own name."""
    unpacked = partial.with_name(f"{partial.name}.unpacked")
    rename(partial, unpacked)
    try:
        with (
            open(unpacked, "rb") as source,
            open(partial, "wb") as file,
            _packer(file, compression) as target,
        ):
            shutil.copyfileobj(source, target, COPY_BYTES)
    finally:
        unpacked.unlink()


def _packer(file: IO[bytes], compression: str) -> bz2.BZ2File | gzip.GzipFile:
    """Pack into a file, with gzip without a name and a time, so that the same voxels are the same bytes."""
    codec = _codec(compression)
    if codec is bz2:
        return bz2.BZ2File(file, "wb")
    kind: type[gzip.GzipFile] = getattr(codec, "IGzipFile", gzip.GzipFile)
    return kind("", "wb", fileobj=file, mtime=0)

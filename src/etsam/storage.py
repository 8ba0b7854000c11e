"""Files: a record of the volume, byte-wise reading, texts that are whole or not there, scratch space."""

from __future__ import annotations

import errno
import io
import math
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, Protocol

import numpy as np

from etsam.renaming import rename

MAX_SIDE = 65535  # voxels along one axis; larger numbers are a damaged or foreign header
SPACING_RANGE = (0.5, 200.0)  # Å; outside is a wrong header or a wrong unit, not a tomogram
MAX_SLICE = 1 << 28  # voxels; larger slices are a damaged header, and would not fit in memory
LAYER_IN_MEMORY = 64 << 20  # bytes of decoded chunks kept in memory, so that each is decoded once
SPACING_UNKNOWN = (  # how a note ends that says so
    "voxel spacing unknown: the bundled model needs it (segment --voxel-spacing)"
)
UNKNOWN_SPACING = 1.0  # Å; what most programs write when they do not know
ORIGIN_LIMIT = 1e12  # Å
PLACE_TOLERANCE = 0.01  # share of a voxel by which places may differ
SPACING_TOLERANCE = 0.01  # relative difference of voxel spacings that rounding explains
NAME_BYTES = 255  # of a file's name, on all usual file systems
ENTRY_BYTES = 1 << 30  # the largest single read the operating systems agree on

Zyx = tuple[float, float, float]
ByteOrder = Literal["<", ">"]
ByteFile = io.FileIO | io.BytesIO


@dataclass(frozen=True)
class VolumeInfo:
    """What a stored volume says of itself, apart from its voxels.

    `shape` is (Z, Y, X) in storage order; `voxel_spacing` and `origin` are zyx in Å, and `voxel_spacing`
    is None where the file does not know it. `mrc_header` holds the 1024 header bytes of an MRC source
    (`header_order` is their byte order, "<" or ">"), `ngff_version` the version of an OME-Zarr source.
    `notes` says in plain words what was odd in the file and how it was read nevertheless.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    voxel_spacing: Zyx | None
    origin: Zyx = (0.0, 0.0, 0.0)
    mrc_header: bytes | None = None
    header_order: ByteOrder = "<"
    ngff_version: str | None = None
    notes: tuple[str, ...] = ()


class SliceSource(Protocol):
    """A stored volume that hands out consecutive slices in its own data type."""

    @property
    def info(self) -> VolumeInfo: ...

    def read(self, start: int, stop: int) -> np.ndarray: ...  # (n, Y, X)

    def close(self) -> None: ...


class SliceSink(Protocol):
    """A volume being written under a partial name."""

    def write(self, z: int, data: np.ndarray) -> None: ...

    def finish(self, statistics: VoxelStatistics) -> None: ...

    def discard(self) -> None: ...


@dataclass(frozen=True)
class VoxelStatistics:
    """Running minimum, maximum, mean and sum of squared deviations over the slices seen so far."""

    count: int = 0
    minimum: float = math.inf
    maximum: float = -math.inf
    mean: float = 0.0
    squared_deviation: float = 0.0

    def add(self, data: np.ndarray) -> VoxelStatistics:
        """Return the statistics with one more slice, merged as in Chan, Golub and LeVeque (1983)."""
        count = self.count + data.size
        mean, squared, low, high = _moments(data)
        delta = mean - self.mean
        return VoxelStatistics(
            count,
            min(self.minimum, low),
            max(self.maximum, high),
            self.mean + delta * data.size / count,
            self.squared_deviation + squared + delta * delta * self.count * data.size / count,
        )

    @property
    def rms(self) -> float:
        """Root mean square deviation from the mean (the MRC header's `rms`)."""
        return math.sqrt(self.squared_deviation / self.count) if self.count else 0.0


def _moments(data: np.ndarray) -> tuple[float, float, float, float]:
    """Mean, sum of squared deviations, minimum and maximum; bytes are counted, which is faster."""
    if data.dtype.itemsize == 1 and data.dtype.kind in "iu":
        counts = np.bincount(data.reshape(-1).view(np.uint8), minlength=256)
        seen = np.flatnonzero(counts)
        values, weights = seen.astype(np.uint8).view(data.dtype).astype(np.float64), counts[seen]
        mean = float(values @ weights) / data.size
        squared = float(np.square(values - mean) @ weights)
        return mean, squared, float(values.min()), float(values.max())
    mean = float(data.mean(dtype=np.float64))
    squared = float(np.square(np.subtract(data, mean, dtype=np.float64)).sum())
    return mean, squared, float(data.min()), float(data.max())


class RawFile:
    """A file read at given byte offsets, from any thread, without a memory map."""

    def __init__(self, file: ByteFile, name: str) -> None:
        self._file = file
        self._name = name
        self._lock = threading.Lock()

    def read_into(self, offset: int, array: np.ndarray) -> None:
        """Fill a C-contiguous array with the bytes from `offset` on.

        Raises
        ------
        ValueError
            If the file ends before the array is full.
        """
        view = array.reshape(-1).view(np.uint8).data
        with self._lock:
            self._file.seek(offset)
            done = 0
            while done < len(view):
                count = self._file.readinto(view[done : done + ENTRY_BYTES])
                if not count:
                    raise ValueError(f"{self._name} ended while it was being read: copy it again")
                done += count

    def append(self, array: np.ndarray) -> None:
        """Write a C-contiguous array at the end."""
        with self._lock:
            self._file.seek(0, os.SEEK_END)
            write_all(self._file, array)

    def close(self) -> None:
        self._file.close()


def write_all(file: ByteFile | IO[bytes], array: np.ndarray) -> None:
    """Write all bytes of a C-contiguous array, however few the system takes at a time."""
    view = array.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        done += file.write(view[done : done + ENTRY_BYTES])


def refuse_taken(path: Path, ways: str = "--overwrite or another --output") -> None:
    """Keep what has a result's name already, be it a link that leads nowhere; `ways` say what to give instead.

    Raises
    ------
    FileExistsError
        There is something.
    """
    if os.path.lexists(path):
        raise FileExistsError(f"{path} is there already: give {ways}")


def partial_name(path: Path) -> Path:
    """Return a hidden name of a result while it is written, no other call's; a short one in a hidden folder."""
    hidden = any(at.name.startswith(".") and at.suffix == ".partial" for at in path.parents)
    ending = ".partial" if hidden else f".{secrets.token_hex(4)}.partial"
    return path.with_name(f".{beginning(path.name, NAME_BYTES - 1 - len(ending))}{ending}")


def beginning(name: str, nbytes: int) -> str:
    """Return a file's name, or as much of it as so many bytes hold."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= nbytes else encoded[:nbytes].decode(errors="ignore")


def write_text(path: Path, text: str, *, errors: str = "strict") -> None:
    """Write a UTF-8 text file that appears only when complete; line ends stay as they are."""
    with appearing(path, partial_name(path)) as partial, naming(path):
        partial.write_text(text, encoding="utf-8", errors=errors, newline="")


@contextmanager
def appearing(path: Path, partial: Path | None = None) -> Iterator[Path]:
    """A name to write a file under, ``NAME.partial`` if none is given: the file gets its own once complete.

    Where writing fails nothing is left, and a file that was there before stays.

    Raises
    ------
    OSError
        Of the name to write under, as if it were of the file's own.
    """
    partial = partial or path.with_name(path.name + ".partial")
    try:
        yield partial
        rename(partial, path)
    except OSError as wrong:
        if wrong.filename is None or os.fspath(wrong.filename) != str(partial):
            raise
        raise OSError(wrong.errno, wrong.strerror, str(path)) from None
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the system that names no file, or one that is being made, name what was to be written.

    Raises
    ------
    OSError
        With the same number and reason.
    """
    try:
        yield
    except OSError as wrong:
        at_work = wrong.filename is None or ".partial" in os.fsdecode(wrong.filename)
        if not at_work or wrong.errno is None:
            raise
        raise OSError(wrong.errno, wrong.strerror, str(path)) from None


@contextmanager
def held_lock(path: Path, taken: str) -> Iterator[None]:
    """Hold a lock file against other processes; the lock is the kernel's and goes with the process.

    Raises
    ------
    OSError
        Another one holds it: the message is `taken`.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OSError(taken) from None
    try:
        yield
    finally:
        lock.release()


def with_own_name(path: Path) -> Path:
    """Return where a file lies: its folder without links and ``..``, and its own name, link or not."""
    return Path(os.path.realpath(path.parent), path.name)


def each_once(paths: Iterable[Path]) -> list[Path]:
    """Return files in their order, each once by whatever path it is named; a link is a file of its own."""
    found: dict[Path, Path] = {}
    for path in paths:
        found.setdefault(with_own_name(path), path)
    return list(found.values())


def scratch_file(nbytes: int, purpose: str) -> io.FileIO:
    """Open a nameless temporary file that vanishes on close, with `nbytes` free on its disk.

    It lies where TMPDIR says; otherwise in /var/tmp, because /tmp is often kept in memory.
    """
    folder = Path(tempfile.gettempdir())
    if not os.environ.get("TMPDIR") and os.access("/var/tmp", os.W_OK | os.X_OK):
        folder = Path("/var/tmp")
    require_space(folder, nbytes, f"{purpose} (set TMPDIR to a larger disk)")
    return tempfile.TemporaryFile(prefix="etsam-", dir=folder, buffering=0)


def open_scratch(path: Path, shape: tuple[int, int, int]) -> io.FileIO:
    """Open float32 scratch space with a name, for reading and writing; what is in it stays.

    Raises
    ------
    OSError
        The disk is too full, or the folder lets nobody write.
    """
    missing = 4 * math.prod(shape) - (path.stat().st_size if path.exists() else 0)
    require_space(path.parent, missing, "keeping logits")
    return io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+")


@contextmanager
def mapping() -> Iterator[None]:
    """Let a memory map of more than a file holds be the ValueError everywhere that it is on Linux.

    Raises
    ------
    ValueError
        The file is cut short, which Windows calls a lack of memory.
    """
    try:
        yield
    except OSError as wrong:
        if wrong.errno != errno.ENOMEM:
            raise
        raise ValueError("the file is cut short") from wrong


def require_space(folder: Path, nbytes: int, purpose: str) -> None:
    """Raise OSError (ENOSPC) when fewer than `nbytes` are free on the disk of `folder`."""
    free = shutil.disk_usage(folder).free
    if free < nbytes:
        message = f"{purpose} needs {nbytes:,} bytes, {free:,} are free"
        shown = folder.parent if folder.name.startswith(".") else folder  # hidden while at work
        raise OSError(errno.ENOSPC, message, str(shown))


def check_slice(sides: Sequence[int], path: Path) -> None:
    """Refuse slices larger than any detector's.

    Raises
    ------
    ValueError
        They have more than 2^28 voxels.
    """
    if math.prod(sides) > MAX_SLICE:
        size = " x ".join(str(side) for side in sides)
        raise ValueError(f"{path} has slices of {size} voxels: is its header damaged?")


def known_spacing(spacing: Zyx) -> Zyx | None:
    """Return zyx spacings in Å, or None when they are unknown: 0, 1 Å, negative, NaN or absurd."""
    low, high = SPACING_RANGE
    if not all(low <= value <= high for value in spacing):  # false for NaN too
        return None
    if all(abs(value - UNKNOWN_SPACING) < 1e-4 for value in spacing):
        return None
    return spacing


def known_origin(values: Sequence[float]) -> Zyx:
    """Return a zyx origin in Å, 0 where it is no number or farther off than any sample is large."""
    z, y, x = (value if abs(value) <= ORIGIN_LIMIT else 0.0 for value in values)  # not so for NaN
    return z, y, x


def same_spacing(first: Zyx, second: Zyx) -> bool:
    """Whether two voxel spacings are one, but for what rounding explains."""
    return bool(np.allclose(first, second, rtol=SPACING_TOLERANCE, atol=0))


def noted_spacing(spacing: Zyx, notes: list[str]) -> Zyx | None:
    """Return what `known_spacing` does of what a file says, and note where that is unknown."""
    known = known_spacing(spacing)
    if known is None:
        sides = " x ".join(f"{side:g}" for side in spacing)
        notes.append(f"the file says voxels of {sides} Å (z, y, x): {SPACING_UNKNOWN}")
    return known


def check_spacing(value: float) -> Zyx:
    """Return a spacing given by the user, in Å, as zyx.

    Raises
    ------
    ValueError
        If it is not a positive, plausible number.
    """
    low, high = SPACING_RANGE
    if not low <= value <= high:
        raise ValueError(f"voxel spacing {value} is not plausible: give ångström, for example 10.0")
    return (float(value),) * 3


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

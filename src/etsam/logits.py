"""Logits on disk: scratch between the stages, and the .npy a program asked for."""

from __future__ import annotations

import io
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from etsam.storage import (
    RawFile,
    appearing,
    naming,
    partial_name,
    require_space,
    scratch_file,
    write_all,
)
from etsam.volume import refuse_input

SCRATCH = Path("scratch file of logits")  # as it is called, having no name
LOGIT_LIMIT = 5.0  # stage-1 logits are clipped to [-5, 5] before stage 2 (paper, 4.3)


@dataclass(frozen=True)
class LogitRange:
    """Smallest and largest logit of a volume."""

    low: float
    high: float


NO_LOGITS = LogitRange(math.inf, -math.inf)


def tracked_slices(depth: int, step: int) -> list[int]:
    """Every `step`-th slice, from the first one on, and the last one."""
    return sorted({*range(0, depth, step), depth - 1})


class ScratchLogits:
    """Float32 logits (Z, Y, X) on disk, by default in a nameless file that goes with the object.

    Plain reads and writes at an offset, so that resident memory does not grow with Z. With a `step`
    only `tracked_slices` are written; those between two of them are read as their linear mean.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        file: io.FileIO | None = None,
        extremes: LogitRange = NO_LOGITS,
        step: int = 1,
        name: Path = SCRATCH,
    ) -> None:
        """Open the scratch space; a `file` that holds logits already comes with their `extremes`.

        An error of the disk says the `name`.
        """
        self.shape = shape
        self.extremes = extremes
        self.step = step
        self._file = file or scratch_file(4 * math.prod(shape), "keeping the first stage's logits")
        self._name = name
        self._reader = RawFile(self._file, str(SCRATCH))

    @property
    def clipped_range(self) -> LogitRange:
        """Extremes of the logits written so far, clipped to [-5, 5]."""
        low, high = np.clip((self.extremes.low, self.extremes.high), -LOGIT_LIMIT, LOGIT_LIMIT)
        return LogitRange(float(low), float(high))

    def write_slice(self, z: int, logits: np.ndarray) -> None:
        """Store slice z (Y, X); not while another thread reads."""
        data = np.ascontiguousarray(logits, dtype=np.float32)
        low, high = float(data.min()), float(data.max())
        self.extremes = LogitRange(min(self.extremes.low, low), max(self.extremes.high, high))
        with naming(self._name):
            self._file.seek(z * data.nbytes)
            write_all(self._file, data)

    def read_slice(self, z: int) -> np.ndarray:
        """Read slice z (Y, X) back, float32, from any thread.

        Raises
        ------
        ValueError
            Neither this slice nor a later one was written.
        """
        below = z - z % self.step
        if z in (below, self.shape[0] - 1):
            return self._read(z)
        above = min(below + self.step, self.shape[0] - 1)
        part = np.float32((z - below) / (above - below))
        return (1 - part) * self._read(below) + part * self._read(above)

    def _read(self, z: int) -> np.ndarray:
        data = np.empty(self.shape[1:], dtype=np.float32)
        self._reader.read_into(z * data.nbytes, data)
        return data

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file, which removes a nameless one."""
        self._file.close()

    def __enter__(self) -> ScratchLogits:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def check_npy(path: Path, source: Path | None) -> None:
    """Refuse before the work what `NpyWriter` could not write after it, or would replace the volume.

    `source` is the file that the volume is read from; None for an array in memory.

    Raises
    ------
    ValueError
        It is one of these.
    OSError
        A file is there that a program has open, so that Windows would not replace it.
    """
    if path.suffix.lower() != ".npy" or path.is_dir():
        raise ValueError(f"output_path is {path}: give the name of a .npy file for the logits")
    if not path.parent.is_dir():
        raise ValueError(f"output_path is {path}: make the folder first")
    if source is not None:
        refuse_input([path], source, "volume", "output_path")
    if sys.platform == "win32" and path.exists():
        try:
            path.replace(path)  # a file that is open or mapped there gets no name, not even its own
        except OSError:
            raise OSError(
                f"output_path is {path}, which a program has open, perhaps as an earlier result: delete "
                "that array (del) or close the program first, or give another name"
            ) from None


class NpyWriter:
    """.npy of shape (Z, Y, X), by default float32, written slice by slice in order.

    Written under `partial_name` and renamed on a clean exit; an error leaves nothing behind.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: str = "<f4") -> None:
        self.path = path
        self._shape = shape
        self._dtype = np.dtype(dtype)
        self._partial = partial_name(path)
        self._written = 0
        require_space(path.parent, self._dtype.itemsize * math.prod(shape), f"writing {path.name}")
        with naming(path):
            self._file = self._partial.open("wb", buffering=0)
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        try:
            np.lib.format.write_array_header_1_0(self._file, header)
        except BaseException:
            self._discard()
            raise

    def write_slice(self, z: int, logits: np.ndarray) -> None:
        """Append slice z (Y, X).

        Raises
        ------
        ValueError
            Slices come out of order or in another shape.
        """
        if z != self._written or logits.shape != self._shape[1:]:
            raise ValueError(
                f"slice {z} of shape {logits.shape}: expected slice {self._written} of shape "
                f"{self._shape[1:]}"
            )
        with naming(self.path):
            write_all(self._file, np.ascontiguousarray(logits, dtype=self._dtype))
        self._written += 1

    def _discard(self) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def restart(self) -> None:
        """Begin with slice 0 again."""
        slice_bytes = self._dtype.itemsize * math.prod(self._shape[1:])
        self._file.seek(-self._written * slice_bytes, os.SEEK_CUR)
        self._written = 0

    def __enter__(self) -> NpyWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if kind is not None:
            self._discard()
        elif self._written < self._shape[0]:
            self._discard()
            raise ValueError(f"{self._written} of {self._shape[0]} slices written to {self.path}")
        else:
            with appearing(self.path, self._partial):
                pass  # it is complete

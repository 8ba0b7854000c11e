"""What made a result: a JSON beside it with versions, parameters, inputs, weights, time and memory.

The keys are described in docs/provenance.md. They are always all there; unknown ones are null.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any, Self

import numpy as np

from etsam import __version__
from etsam.storage import write_text
from etsam.volume import Tomogram, stem_of, whole_volume

SCHEMA = 1
"""Version of the keys; it grows when a key changes its meaning or goes."""

CHUNK = 1 << 20  # bytes hashed at once
State = tuple[int, int]  # bytes, time of the last change [ns]


class Clock:
    """When a run started, and how long it and its stages took."""

    def __init__(self) -> None:
        self.started = datetime.now(UTC)
        self.stage_seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage; entering the same stage again adds to it."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.stage_seconds[name] = self.stage_seconds.get(name, 0.0) + spent


def provenance(
    command: str,
    *,
    parameters: Mapping[str, Any],
    results: Mapping[str, Any] | None = None,
    inputs: Sequence[Mapping[str, Any]] = (),
    compute: Mapping[str, Any] | None = None,
    clock: Clock | None = None,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Collect what a reader needs to know, or to make the result again.

    Parameters
    ----------
    command
        Name of the verb.
    parameters
        All options, defaults included.
    results
        What came out, in numbers.
    inputs
        Records from `input_record`.
    compute
        Of "device", "dtype" and "weights" what is known; weights as `weights_record` gives them.
    clock
        Started with the run; without it the times are null.
    warnings
        What the user was told.

    Raises
    ------
    ValueError
        If `compute` has another key.
    """
    known = {"device": None, "dtype": None, "weights": None}
    unknown = set(compute or {}) - set(known)
    if unknown:
        raise ValueError(f"compute has {sorted(unknown)}: expected some of {sorted(known)}")
    torch = sys.modules.get("torch")
    return {
        "schema": SCHEMA,
        "etsam": __version__,
        "command": command,
        "parameters": dict(parameters),
        "results": dict(results or {}),
        "inputs": [dict(record) for record in inputs],
        **known,
        **(compute or {}),
        "torch": None if torch is None else str(getattr(torch, "__version__", None)),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "started": None if clock is None else clock.started.isoformat(timespec="seconds"),
        "seconds": None if clock is None else round(clock.seconds, 3),
        "stage_seconds": _rounded(clock.stage_seconds) if clock is not None else {},
        "peak_rss_mb": peak_rss_mb(),
        "peak_vram_mb": peak_vram_mb(),
        "warnings": list(warnings),
    }


def input_record(
    volume: Tomogram, before: Mapping[Path, State] | None = None, *, checksum: bool = False
) -> dict[str, Any]:
    """Describe an input volume, as `states_of` found it; `checksum` reads the whole file for its SHA-256."""
    path = volume.path
    known = None if path is None else (before or {}).get(path) or size_and_time(path)
    size, modified = known or (None, None)
    return {
        "path": None if path is None else str(path.resolve()),
        "bytes": size,
        "modified_ns": modified,
        "sha256": sha256(path) if path is not None and checksum else None,
        "shape_zyx": list(volume.shape),
        "dtype": str(volume.dtype),
        "voxel_spacing_zyx_angstrom": None
        if volume.voxel_spacing is None
        else [round(float(step), 6) for step in volume.voxel_spacing],
        "origin_zyx_angstrom": [float(place) for place in volume.origin],
    }


def states_of(paths: Iterable[Path]) -> dict[Path, State]:
    """Bytes and times of volumes that are about to be opened, for `refuse_changed`; of those that are there."""
    return {path: size_and_time(path) for path in paths if path.exists()}


def refuse_changed(before: Mapping[Path, State]) -> None:
    """Refuse a result whose inputs were written while they were being read.

    Raises
    ------
    ValueError
        One is not as `states_of` found it.
    """
    for path, state in before.items():
        if states_of([path]) != {path: state}:
            raise ValueError(f"{path} has changed while it was being read: do it again")


def weights_record(name: str, path: Path) -> dict[str, Any]:
    """Describe a file of weights by name, path and SHA-256."""
    return {"name": name, "path": str(path), "sha256": sha256(path)}


def record_path(volume: Path) -> Path:
    """Return where the JSON of a volume lies: beside it, with the same stem."""
    return whole_volume(volume).with_name(f"{stem_of(volume)}.json")


def earlier_record(path: Path, command: str) -> dict[str, Any] | None:
    """Return what a JSON says that an earlier run of a verb wrote; None where there is none."""
    try:
        details = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(details, dict) and details.get("command") == command
    return details if ours else None


def outputs_record(paths: Iterable[Path]) -> dict[str, Any]:
    """Return bytes and time of the last change [ns] of the files of a result, by name."""
    return {path.name: _state(path) for path in paths}


def is_as_written(path: Path, earlier: Mapping[str, Any]) -> bool:
    """Whether a file is there as the run that an earlier JSON is of has written it."""
    outputs = earlier.get("outputs")
    known = outputs.get(path.name) if isinstance(outputs, dict) else None
    return os.path.lexists(path) and known == _state(path)


def refuse_edited(paths: Iterable[Path], earlier: Mapping[str, Any]) -> None:
    """Keep files that are not as the run that an earlier JSON is of has written them.

    Raises
    ------
    FileExistsError
        One has been changed or put there since.
    """
    for path in paths:
        if os.path.lexists(path) and not is_as_written(path, earlier):
            raise FileExistsError(
                f"{path} is not as etsam wrote it: give --overwrite to replace it, or another "
                "--output"
            )


def _state(path: Path) -> dict[str, int]:
    """Bytes and time of a file, of all in a folder, or of a link itself."""
    link = path.lstat() if path.is_symlink() else None
    size, modified = size_and_time(path) if link is None else (link.st_size, link.st_mtime_ns)
    return {"bytes": size, "modified_ns": modified}


def write_json(path: Path | str, details: Mapping[str, Any]) -> None:
    """Write a JSON file that appears only when complete.

    Paths, NumPy numbers and arrays are written as strings, numbers and lists; NaN and infinities,
    which JSON does not have, as null.

    Raises
    ------
    TypeError
        If something in it cannot be written.
    """
    path = Path(path)
    text = json.dumps(plain(details), indent=2, ensure_ascii=False, allow_nan=False)
    # a file's name that is no Unicode becomes \udcXX, as JSON has it
    write_text(path, text + "\n", errors="backslashreplace")


def size_and_time(path: Path) -> State:
    """Bytes and time of the last change [ns] of a file, or of all files in a folder."""
    found = [file.stat() for file in _files(path)]
    return sum(one.st_size for one in found), max((one.st_mtime_ns for one in found), default=0)


def sha256(path: Path | str, stop: Event | None = None) -> str:
    """Return the SHA-256 of a file, or of names and contents of a folder, as hexadecimal digits.

    Setting `stop` ends the reading; what is returned then is of no use.
    """
    path = Path(path)
    digest = hashlib.sha256()
    for place in _files(path):
        if place != path:
            name = place.relative_to(path).as_posix()
            digest.update(f"{name}\0{place.stat().st_size}\0".encode())
        with place.open("rb") as file:
            while (chunk := file.read(CHUNK)) and not (stop and stop.is_set()):
                digest.update(chunk)
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    """A file, or those of a folder, without what macOS's Finder adds when it shows or copies one."""
    if not path.is_dir():
        return [path]
    added = (".DS_Store", "._")
    return sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith(added))


class HashInBackground:
    """SHA-256 of a file or folder, made by a thread while something else is done."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stop = Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="etsam-hash")
        self._sum = self._pool.submit(sha256, path, self._stop)

    def result(self) -> str:
        """Wait for the sum."""
        return self._sum.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._pool.shutdown()


def peak_rss_mb() -> float | None:
    """Return the most memory this process has held [MB]; None where the system does not tell.

    Linux' ``ru_maxrss`` starts at the size of the program that started this one, however large;
    the kernel's own high-water mark does not, and is asked first.
    """
    if sys.platform == "win32":
        return None
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        marks = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
        if marks:
            return round(marks[0] * 1024 / 1e6, 1)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kibibytes
    return round(peak * unit / 1e6, 1)


def peak_vram_mb() -> float | None:
    """Return the most GPU memory torch has held for this process [MB]; None without a CUDA device."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    held = int(torch.cuda.max_memory_reserved())
    return round(held / 1e6, 1)


def reset_peaks() -> None:
    """Let `peak_rss_mb` (where the system can: Linux) and `peak_vram_mb` count from now on."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}


def plain(value: Any) -> Any:
    """Turn a value into what JSON has."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, Path | np.dtype):
        return str(value)
    return value

"""What has become of each tomogram of a batch: one JSON line each, in a file beside the results."""

from __future__ import annotations

import json
import os
import socket
import warnings
from collections.abc import Iterable
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from etsam.messages import one_line
from etsam.storage import held_lock, with_own_name, write_text

MANIFEST_NAME = "etsam_manifest"
SUFFIX = ".jsonl"

State = Literal["queued", "running", "done", "failed", "interrupted"]
STATES: tuple[State, ...] = ("done", "running", "queued", "interrupted", "failed")


@dataclass(frozen=True)
class Entry:
    """One tomogram: a line of the manifest.

    ``seconds`` and ``peak_rss_mb`` are those of the last attempt; ``reused`` says that its result
    was there already; ``host`` and ``pid`` are those of the process that worked on it.
    """

    input: str
    mask: str
    state: State = "queued"
    attempts: int = 0
    sha256: str | None = None
    weights: list[str] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    started: str | None = None
    ended: str | None = None
    seconds: float | None = None
    peak_rss_mb: float | None = None
    membrane_fraction: float | None = None
    error: str | None = None
    reused: bool = False
    host: str | None = None
    pid: int | None = None


def now() -> str:
    """Return the time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Manifest:
    """The entries of a batch, by mask; written anew, atomically, at every change.

    While it is open no other batch can open it. Without a path the entries stay in memory. A change
    that cannot be written is told, and goes into the file with the next one or at the end.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        self._done: dict[str, Entry] = {}  # by batches before this one
        self._replacing = False
        self._lines: dict[str, tuple[Entry, str]] = {}  # as they were last written
        self._lock = ExitStack()
        self._behind = self._told = False  # of changes that could not be written

    def __enter__(self) -> Self:
        """Take the lock and read what is there; a file that is no manifest is refused before a lock is made.

        Raises
        ------
        OSError
            Another batch has it open, or the folder cannot be written.
        ValueError
            The file is not a manifest.
        """
        if self.path is not None:
            # a device would be replaced by a file
            if self.path.exists() and not self.path.is_file():
                raise ValueError(f"{self.path} is no regular file: name another for the record")
            read_manifest(self.path)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _lock_path(self.path).touch()
            taken = f"another batch is at work on {self.path}: wait for it"
            with ExitStack() as lock:
                lock.enter_context(held_lock(_lock_path(self.path), taken))
                self.entries = {entry.mask: entry for entry in read_manifest(self.path)}
                self._lock = lock.pop_all()
        self._done = {mask: known for mask, known in self.entries.items() if known.state == "done"}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock, suppress(OSError) if error is not None else nullcontext():
            if self._behind:
                self._write()

    def begin(self, pairs: Iterable[tuple[Path, Path]], *, replacing: bool = False) -> list[Entry]:
        """Queue tomograms, each with its mask; earlier attempts are counted on.

        What is done stays on record as done until its turn comes, but where all is to be replaced.
        """
        self._replacing = replacing
        queued = []
        for source, mask in pairs:
            key = os.path.realpath(mask)
            known = self.entries.get(key)
            attempts = known.attempts if known else 0
            entry = Entry(str(with_own_name(source)), key, attempts=attempts)
            self.entries[key] = entry
            queued.append(entry)
        self._write()
        return queued

    def put(self, entry: Entry) -> Entry:
        """Replace an entry, and write the file if that can be done."""
        self.entries[entry.mask] = entry
        self._try_to_write()
        return entry

    def ended(self, entry: Entry, error: BaseException | None) -> None:
        """Note what became of a tomogram; what was done stays done where it was left since it is there."""
        if isinstance(error, FileExistsError):
            entry = self._done.get(entry.mask, entry)
        self.put(entry)

    def started(self, entry: Entry) -> Entry:
        """Note that work on a tomogram begins."""
        attempts = entry.attempts + 1
        return self.put(replace(entry, state="running", attempts=attempts, started=now()))

    def interrupted(self) -> None:
        """Note that nothing is being worked on any more."""
        for entry in list(self.entries.values()):
            if entry.state == "running":
                self.entries[entry.mask] = replace(entry, state="interrupted", ended=now())
        self._try_to_write()

    def _try_to_write(self) -> None:
        """Write the file, or warn, once, that it could not be written."""
        try:
            self._write()
            self._behind = False
        except OSError as wrong:
            self._behind = True
            if not self._told:
                note = f"{one_line(wrong)}: trying again while the batch goes on"
                warnings.warn(note, stacklevel=4)
            self._told = True

    def _write(self) -> None:
        """Write all lines, of which only those of entries that changed are made anew."""
        if self.path is None:
            return
        for mask, current in self.entries.items():
            waits = current.state == "queued" and not self._replacing
            entry = self._done.get(mask, current) if waits else current
            if mask not in self._lines or self._lines[mask][0] is not entry:
                self._lines[mask] = entry, json.dumps(asdict(entry), default=str)
        write_text(self.path, "".join(f"{self._lines[mask][1]}\n" for mask in self.entries))


def read_manifest(path: Path) -> list[Entry]:
    """Read the entries of a manifest; none where there is no file.

    Raises
    ------
    ValueError
        A line is not an entry.
    """
    if not path.exists():
        return []
    known = {item.name for item in fields(Entry)}
    entries = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            values = json.loads(line)
            entry = Entry(**{key: values[key] for key in known & set(values)})
            if not _is_sound(entry):
                raise ValueError("a value of another kind")
            entries.append(entry)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(
                f"{path}, line {number} is not what etsam wrote ({error}): expected a manifest; name "
                "another file, or move this one away"
            ) from None
    return entries


def _is_sound(entry: Entry) -> bool:
    """Whether an entry holds the kinds of values that are shown and counted."""
    texts = (entry.input, entry.mask, entry.error or "")
    numbers = (entry.attempts, entry.pid or 0, entry.seconds or 0, entry.peak_rss_mb or 0)
    return (
        entry.state in STATES
        and all(isinstance(text, str) for text in texts)
        and all(isinstance(number, int | float) for number in numbers)
    )


def find_manifests(place: Path) -> list[Path]:
    """Find the manifests of a folder, those of all shards, or return the one that is named.

    Raises
    ------
    FileNotFoundError
        There is none.
    """
    if place.is_file():
        return [place]
    found = sorted(place.glob(f"{MANIFEST_NAME}*{SUFFIX}")) if place.is_dir() else []
    if not found:
        raise FileNotFoundError(
            f"no manifest in {place}: expected {MANIFEST_NAME}{SUFFIX}, which a batch writes into "
            "the folder of its results"
        )
    return found


def current_entries(paths: Iterable[Path]) -> list[Entry]:
    """Read manifests as they are now: what no living process works on is interrupted."""
    entries: dict[str, Entry] = {}
    for path in paths:
        idle = _is_idle(path)
        for entry in read_manifest(path):
            stopped = idle and entry.state == "running"
            entries[entry.mask] = replace(entry, state="interrupted") if stopped else entry
    return list(entries.values())


def counts(entries: Iterable[Entry]) -> dict[str, int]:
    """How many tomograms are in each state."""
    states = [entry.state for entry in entries]
    return {state: states.count(state) for state in STATES}


def here() -> dict[str, Any]:
    """Host and process, for an entry."""
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _is_idle(path: Path) -> bool:
    """Whether no batch has a manifest open; not known, and so False, where others' files lie."""
    if not _lock_path(path).exists():  # copied without hidden files: no batch was ever here
        return os.access(path.parent, os.W_OK)
    if not os.access(_lock_path(path), os.W_OK):
        return False
    try:
        with held_lock(_lock_path(path), "a batch is at work"):
            return True
    except OSError:
        return False

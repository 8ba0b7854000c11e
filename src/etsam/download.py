"""VERB download: the paper's tomograms and masks, or any by run or DOI, fetched and checked."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from typing import Literal

from etsam.fetch import RemoteFile, Stopping, damage, fetch, partial_path
from etsam.listing import Item, Selection, list_items
from etsam.renaming import rename
from etsam.storage import held_lock, refuse_taken, require_space

State = Literal["here", "part", "absent"]
Progress = Callable[[int, int], None]

LOCK_NAME = ".etsam_download.lock"
TICK_SECONDS = 0.5


@dataclass(frozen=True)
class DownloadOptions:
    """Choices for downloading.

    Attributes
    ----------
    selection
        What to take, and which servers to ask.
    workers
        Connections at once.
    resume, overwrite
        Keep what is complete and go on with parts; replace what is there.
    """

    selection: Selection = field(default_factory=Selection)
    workers: int = 4
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise ValueError("--resume keeps what is there, --overwrite replaces it: give one")


@dataclass(frozen=True)
class Outcome:
    """What has become of an item; ``kept`` says that it was there, complete.

    ``checked`` is False where nobody stated a size or a checksum, so that it may be cut short.
    """

    item: Item
    path: Path
    kept: bool = False
    checked: bool = True
    error: OSError | ValueError | None = None


def download(
    sources: Sequence[str],
    folder: Path | str,
    options: DownloadOptions | None = None,
    progress: Progress | None = None,
) -> Iterator[Outcome]:
    """Fetch data into a folder and yield what has become of each file, as they end.

    Parameters
    ----------
    sources
        Names of the paper's sets (`etsam.published.SETS`), runs of the CryoET Data Portal
        (``10000/245``), DOIs of Zenodo or Dataverse.
    folder
        Runs lie in it as ``{dataset}/{run}/tomogram`` and ``.../target_mask``, as in the paper's
        own data set; other files as their record names them.
    progress
        Called with (bytes there, bytes in all as far as known).

    Raises
    ------
    ValueError
        A source is not known, or a server gives a name that leads out of the folder.
    FileExistsError
        A file is there and neither ``resume`` nor ``overwrite`` is set.
    OSError
        A server does not answer, the disk is too full, or another download works on the folder.
    """
    options, folder = options or DownloadOptions(), Path(folder)
    items = list_items(sources, options.selection)
    folder.mkdir(parents=True, exist_ok=True)
    taken = f"another download is at work on {folder}: wait for it"
    with held_lock(folder / LOCK_NAME, taken):
        work = _Work(folder, items, options, progress)
        work.refuse_existing()
        work.require_space()
        yield from work.run()


def state_of(item: Item, folder: Path) -> State:
    """Whether an item is there, in part, or not at all, by names and sizes."""
    target = folder / item.name
    if item.parts and all(
        (target / part.name).is_file() and part.size in (None, (target / part.name).stat().st_size)
        for part in item.parts
    ):
        return "here"
    return "part" if partial_path(target).exists() else "absent"


def _as_they_end(jobs: Collection[Future[None]]) -> Iterator[Future[None]]:
    """Yield jobs as they end, in short waits: one without end lets no Ctrl-C through on Windows before Python 3.14."""
    ended: Queue[Future[None]] = Queue()
    for job in jobs:
        job.add_done_callback(ended.put)
    left = len(jobs)
    while left:
        try:
            job = ended.get(timeout=TICK_SECONDS)
        except Empty:
            continue
        left -= 1
        yield job


class _Work:
    """The fetching of some items into a folder."""

    def __init__(
        self, folder: Path, items: list[Item], options: DownloadOptions, progress: Progress | None
    ) -> None:
        self._folder = folder
        self._items = items
        self._options = options
        self._progress = progress
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._done: dict[tuple[str, str], int] = {}
        self._there = 0  # bytes, of all that is done
        self._failed: set[str] = set()
        self._unchecked: set[str] = set()
        self._total = sum(part.size or 0 for item in items for part in item.parts)

    def refuse_existing(self) -> None:
        """Refuse to touch what is there, unless told what to do; refuse links that lead out."""
        home = self._folder.resolve()
        for item in self._items:
            target = self._folder / item.name
            if not target.resolve().is_relative_to(home):
                raise ValueError(f"{target} leads out of {self._folder} by a link: refused")
            if item.problem:
                continue
            if not (self._options.resume or self._options.overwrite):
                refuse_taken(target, "--resume, --overwrite or another --output")

    def require_space(self) -> None:
        """Check that what is missing fits on the disk."""
        missing = 0
        for item in self._items:
            if not (self._options.resume and state_of(item, self._folder) == "here"):
                missing += sum(max(p.size or 0, 0) - self._kept(item, p) for p in item.parts)
        require_space(self._folder, missing, "downloading")

    def run(self) -> Iterator[Outcome]:
        """Fetch all, several at once."""
        left = {item.name: len(item.parts) for item in self._items}
        errors: dict[str, OSError | ValueError] = {}
        with ThreadPoolExecutor(self._options.workers) as pool:
            try:
                jobs: dict[Future[None], Item] = {}
                for item in self._items:
                    if item.problem:
                        missing = FileNotFoundError(item.problem)
                        yield Outcome(item, self._folder / item.name, error=missing)
                        continue
                    if self._complete(item):
                        stated = all(part.is_stated for part in item.parts)
                        yield Outcome(item, self._folder / item.name, kept=True, checked=stated)
                        continue
                    self._begin(item)
                    for part in item.parts:
                        jobs[pool.submit(self._fetch, item, part)] = item
                for job in _as_they_end(jobs):
                    item = jobs[job]
                    left[item.name] -= 1
                    error = job.exception()
                    if isinstance(error, OSError | ValueError):
                        errors.setdefault(item.name, error)
                    elif error is not None and not isinstance(error, Stopping):
                        raise error
                    if not left[item.name]:
                        yield self._end(item, errors.get(item.name))
            except BaseException:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _complete(self, item: Item) -> bool:
        """Whether an item is there to the last byte; reads it where there are checksums."""
        if not self._options.resume or state_of(item, self._folder) != "here":
            return False
        target = self._folder / item.name
        if any(damage(part, target / part.name) for part in item.parts):
            return False
        for part in item.parts:
            self._report(item, part, (target / part.name).stat().st_size)
        return True

    def _begin(self, item: Item) -> None:
        """Make the folders, and take up what an earlier run left."""
        target = self._folder / item.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not item.is_folder:
            return
        work = partial_path(target)
        if not self._options.resume:
            shutil.rmtree(work, ignore_errors=True)
        elif target.is_dir() and not work.exists():
            rename(target, work)  # complete in name only: some of it has changed or is missing
        work.mkdir(exist_ok=True)

    def _fetch(self, item: Item, part: RemoteFile) -> None:
        if self._stop.is_set() or item.name in self._failed:
            return
        place = self._place(item, part)
        try:
            if item.is_folder:
                place.parent.mkdir(parents=True, exist_ok=True)
                if place.is_file() and damage(part, place) is None:
                    self._report(item, part, place.stat().st_size)
                    return
            is_whole = fetch(
                part,
                place,
                resume=self._options.resume,
                patience=self._options.selection.patience,
                stop=self._stop,
                report=lambda done, _total: self._report(item, part, done),
            )
            if not is_whole:
                self._unchecked.add(item.name)
        except (OSError, ValueError):
            self._failed.add(item.name)
            raise

    def _end(self, item: Item, error: OSError | ValueError | None) -> Outcome:
        target = self._folder / item.name
        if error is None and item.is_folder:
            if target.exists():
                shutil.rmtree(target)
            rename(partial_path(target), target)
        return Outcome(item, target, checked=item.name not in self._unchecked, error=error)

    def _place(self, item: Item, part: RemoteFile) -> Path:
        target = self._folder / item.name
        return partial_path(target) / part.name if item.is_folder else target

    def _kept(self, item: Item, part: RemoteFile) -> int:
        """Bytes of a part that need not be fetched again."""
        if not self._options.resume:
            return 0
        place = self._place(item, part)
        places = (place, partial_path(place)) if item.is_folder else (partial_path(place),)
        sizes = [path.stat().st_size for path in places if path.is_file()]
        return min(max(sizes, default=0), part.size or 0)

    def _report(self, item: Item, part: RemoteFile, done: int) -> None:
        if self._progress is not None:
            with self._lock:
                key = item.name, part.name
                self._there += done - self._done.get(key, 0)
                self._done[key] = done
                self._progress(self._there, max(self._there, self._total))

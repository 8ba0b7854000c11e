"""What there is to fetch: the files of sets, runs and DOIs, with their addresses, sizes and names."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from etsam.fetch import Patience, RemoteFile, size_on_server
from etsam.places import folded
from etsam.portal import Format, PortalFile, PortalServers, portal_runs
from etsam.published import PublishedRun, find_runs
from etsam.repositories import DATAVERSE, ETSAM_DATA, ZENODO, doi_of, record_files

Masks = Literal["auto", "portal", "dataverse", "none"]

ASKED_AT_ONCE = 8
UNSAFE = re.compile(r"[\\\x00-\x1f\x7f]|^[A-Za-z]:|^/|(^|/)(\.{0,2})(/|$)")
NOT_ON_WINDOWS = re.compile(
    r'[:*?"<>|]|[. ](/|$)|(^|/)(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[1-9¹²³]) *(\.|/|$)', re.I
)
"""Characters, endings and names of devices that Windows keeps for itself."""
PARTIAL = re.compile(r"\.partial(/|$)")
"""How files and folders are called while they are fetched."""


@dataclass(frozen=True)
class Selection:
    """What to take, and which servers to ask.

    Attributes
    ----------
    format
        Of what the portal has in both.
    masks
        Where the masks of runs come from; ``auto``: from where the set says, else the portal.
    match
        Only files whose names fit one of these patterns (``*`` also matches ``/``).
    """

    format: Format = "mrc"
    masks: Masks = "auto"
    match: tuple[str, ...] = ()
    zenodo: str = ZENODO
    dataverse: str = DATAVERSE
    portal: PortalServers = field(default_factory=PortalServers)
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True)
class Item:
    """What appears as one: a file, or a Zarr of many; ``name`` is its path below the folder.

    ``problem`` says why what was asked for is not there; ``name`` is then that of the run.
    """

    name: str
    parts: tuple[RemoteFile, ...]
    problem: str = ""

    @property
    def is_folder(self) -> bool:
        """Whether it is a Zarr."""
        return any(part.name for part in self.parts)

    @property
    def size(self) -> int | None:
        """Bytes in all; None where a part does not say."""
        if self.problem:
            return None
        sizes = [part.size for part in self.parts if part.size is not None]
        return sum(sizes) if len(sizes) == len(self.parts) else None


def list_items(sources: Iterable[str], choice: Selection) -> list[Item]:
    """What `download` would fetch, by name; asks the servers, writes nothing.

    Raises
    ------
    ValueError, OSError
        As `download`; also if nothing is left to fetch.
    """
    runs: dict[str, PublishedRun] = {}
    items: list[Item] = []
    for source in dict.fromkeys(sources):
        if doi := doi_of(source):
            items += [_item(file) for file in _record(doi, choice)]
        else:
            runs.update((run.name, run) for run in find_runs(source))
    items += _run_items(list(runs.values()), choice)
    if choice.match:
        items = [
            item
            for item in items
            if item.problem or any(fnmatch(item.name, pattern) for pattern in choice.match)
        ]
    if not items:
        raise ValueError(f"no file to fetch of {', '.join(sources)}: see the names with --dry-run")
    items = list(dict.fromkeys(items))
    check_names(items)
    return sorted(_with_sizes(items, choice), key=lambda item: item.name)


def check_names(items: Sequence[Item]) -> None:
    """Refuse names that lead elsewhere, that the system or we use ourselves, or that come twice.

    Raises
    ------
    ValueError
        There is such a name.
    """
    for item in items:
        for name in (item.name, *(part.name for part in item.parts if item.is_folder)):
            if UNSAFE.search(name) or not name:
                raise ValueError(
                    f"a server names a file {name!r}, which could lead out of the folder: refused"
                )
            if sys.platform == "win32" and NOT_ON_WINDOWS.search(name):
                raise ValueError(
                    f"a server names a file {name!r}, which Windows does not allow: leave it out with --match"
                )
            if PARTIAL.search(name):
                raise ValueError(
                    f"a server names a file {name!r}, as files are named while they are fetched: leave it "
                    "out with --match"
                )
    most, count = Counter(folded(Path(item.name)) for item in items).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{count} files would become {most}: fetch them into two folders")


def _run_items(runs: list[PublishedRun], choice: Selection) -> list[Item]:
    """Tomograms and masks of runs, each from where it is."""
    truth = {run.name: run.truth if choice.masks == "auto" else choice.masks for run in runs}
    portal = [run for run in runs if run.source == "cdp"]
    items = []
    for with_masks in (True, False):
        asked = [run for run in portal if (truth[run.name] == "portal") == with_masks]
        if asked:
            found = portal_runs(
                asked, format=choice.format, with_masks=with_masks, servers=choice.portal
            )
            for name, run in found.items():
                if isinstance(run, FileNotFoundError):
                    items.append(Item(name, (), str(run)))
                    continue
                items.append(_portal_item(f"{name}/tomogram", run.tomogram))
                items += [_portal_item(f"{name}/target_mask", mask) for mask in run.masks]
    elsewhere = [run for run in runs if run.source != "cdp"]
    masked = [
        run
        for run in runs
        if truth[run.name] == "dataverse" or (run in elsewhere and truth[run.name] != "none")
    ]
    wanted = [f"{run.name}/tomogram" for run in elsewhere]
    wanted += [f"{run.name}/target_mask" for run in masked]
    return items + (_folders(wanted, choice) if wanted else [])


def _folders(wanted: Iterable[str], choice: Selection) -> list[Item]:
    """Files in these folders of the paper's data set."""
    found: dict[str, list[Item]] = {name: [] for name in wanted}
    for file in _record(ETSAM_DATA, choice):
        place = file.name.rpartition("/")[0]
        if place in found:
            found[place].append(_item(file))
    for name, items in found.items():
        if not items:
            problem = f"doi:{ETSAM_DATA} has no folder {name}: give --masks portal or none"
            items.append(Item(name, (), problem))
    return [item for items in found.values() for item in items]


def _record(doi: str, choice: Selection) -> list[RemoteFile]:
    return record_files(
        doi, zenodo=choice.zenodo, dataverse=choice.dataverse, patience=choice.patience
    )


def _item(file: RemoteFile) -> Item:
    return Item(file.name, (replace(file, name=""),))


def _portal_item(place: str, file: PortalFile) -> Item:
    return Item(f"{place}/{file.name}", file.parts)


def _with_sizes(items: list[Item], choice: Selection) -> list[Item]:
    """Ask the servers for sizes that the listing does not give."""

    def ask(item: Item) -> Item:
        if item.size is not None or item.is_folder or item.problem:
            return item
        try:
            size = size_on_server(item.parts[0].url, choice.patience)
        except OSError:
            size = None  # where more than the question is refused, it is said when it is fetched
        return Item(item.name, (replace(item.parts[0], size=size),))

    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        return list(pool.map(ask, items))

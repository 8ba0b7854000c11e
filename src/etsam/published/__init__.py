"""The sets of tomograms that the paper names, as tables that travel with the package.

Sources: training runs and annotations, the paper's supplement; test sets, Table 1 and the test table
of the released code (jianlin-cheng/ETSAM); unseen organisms, Figure 3.
"""

from __future__ import annotations

import csv
import importlib.resources
import re
from dataclasses import dataclass
from typing import Literal, get_args

Source = Literal["cdp", "emdb", "empiar"]
Truth = Literal["portal", "dataverse", "none"]

RUN_NAME = re.compile(r"^(?:cdp:)?(\d+)/(\d+)$")


@dataclass(frozen=True)
class PublishedRun:
    """A tomogram of a set.

    ``dataset`` and ``run`` are the numbers of the CryoET Data Portal (source ``cdp``), or the
    folders of the paper's Dataverse data set, which holds the tomogram too where the source is
    another. ``truth`` says where the masks of the paper are; ``annotations`` are the portal's
    numbers of them. ``voxel_spacing`` is in Å, ``shape`` (Z, Y, X); None: the paper does not say.
    """

    source: Source
    dataset: str
    run: str
    truth: Truth = "portal"
    annotations: tuple[int, ...] = ()
    organism: str = ""
    voxel_spacing: float | None = None
    shape: tuple[int, int, int] | None = None

    @property
    def name(self) -> str:
        """``dataset/run``, as tables of scores and folders have it."""
        return f"{self.dataset}/{self.run}"


@dataclass(frozen=True)
class PublishedSet:
    """A set of the paper: the tables that it is made of."""

    name: str
    about: str
    tables: tuple[str, ...]

    def runs(self) -> list[PublishedRun]:
        """The tomograms of the set."""
        return [run for table in self.tables for run in _read(table)]


SETS = {
    item.name: item
    for item in (
        PublishedSet("train", "the real tomograms that ETSAM was trained on", ("train",)),
        PublishedSet("test", "the real tomograms of Table 1", ("test",)),
        PublishedSet("test-17", "these and what the released code adds", ("test", "released")),
        PublishedSet("unseen", "organisms that training never saw; no masks", ("unseen",)),
    )
}


def find_runs(name: str) -> list[PublishedRun]:
    """The tomograms of a set, or the one run of the CryoET Data Portal that ``10000/245`` names.

    A run that a set holds is taken with what the set says of it.

    Raises
    ------
    ValueError
        The name is neither.
    """
    if name in SETS:
        return SETS[name].runs()
    found = RUN_NAME.match(name)
    if found is None:
        raise ValueError(
            f"{name!r} is no data: expected {', '.join(SETS)}, DATASET/RUN of the CryoET Data "
            "Portal by numbers (10000/245), or a DOI of Zenodo or Dataverse"
        )
    wanted = "/".join(found.groups())
    known = (run for item in SETS.values() for run in item.runs() if run.name == wanted)
    return [next(known, PublishedRun("cdp", found[1], found[2]))]


def _read(table: str) -> list[PublishedRun]:
    path = importlib.resources.files(__package__) / f"{table}.csv"
    return [_run(record) for record in csv.DictReader(path.read_text("utf-8").splitlines())]


def _run(record: dict[str, str]) -> PublishedRun:
    source = next(kind for kind in get_args(Source) if kind == record["source"])
    truth = next(kind for kind in get_args(Truth) if kind == record["truth"])
    sides = [record[f"shape_{axis}"] for axis in "zyx"]
    z, y, x = (int(side or 0) for side in sides)
    return PublishedRun(
        source,
        record["dataset"],
        record["run"],
        truth,
        tuple(int(number) for number in record["annotations"].split()),
        record["organism"],
        float(record["voxel_spacing"]) if record["voxel_spacing"] else None,
        (z, y, x) if all(sides) else None,
    )

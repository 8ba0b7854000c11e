"""What methods cost: time and memory from the JSON files beside their results, as rows of a table."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from etsam.predictions import recognise
from etsam.tables import Score, read_table
from etsam.volume import stem_of, whole_volume

COSTS = {"seconds": "seconds", "ram_mb": "peak_rss_mb", "vram_mb": "peak_vram_mb"}
"""Metrics in tables, and their keys in the JSON files (docs/provenance.md)."""

VERBS = ("segment", "baseline")


def read_costs(places: Sequence[Path]) -> list[Score]:
    """Read costs from folders of results, from their JSON files, or from CSV tables of scores.

    The method is told by the name of the result, the run is the tomogram's name, the dataset its folder.
    Where several folders (or tables) have the same method and tomogram, as after two runs of etsam, their
    names become part of the method's name.

    Raises
    ------
    FileNotFoundError
        If a place is not there.
    ValueError
        If nothing in them says what a segmentation cost, or a table or a record is unfit.
    """
    found: dict[Path, list[Score]] = {}  # by folder, or table
    for place in places:
        if place.suffix.lower() == ".csv":
            kept = [row for row in read_table(place) if row.metric in COSTS]
            found.setdefault(place.resolve(), []).extend(kept)
            continue
        if not place.exists():
            raise FileNotFoundError(f"{place} does not exist: give results of `etsam segment`")
        for path in sorted(place.glob("*.json")) if place.is_dir() else [place]:
            found.setdefault(path.resolve().parent, []).extend(_costs_of(path))
    rows = _told_apart(found)
    if not rows:
        listed = ", ".join(map(str, places))
        raise ValueError(
            f"{listed}: no costs there; expected the JSON files that `etsam segment` and "
            f"`etsam baseline` write, or a table with metrics {', '.join(COSTS)}"
        )
    return rows


def _told_apart(found: dict[Path, list[Score]]) -> list[Score]:
    """Name methods after their folder too, where another folder has the same of one tomogram."""
    homes: dict[Score, set[Path]] = {}
    for home, rows in found.items():
        for row in rows:
            homes.setdefault(replace(row, value=0.0), set()).add(home)
    shared: dict[tuple[str, str], set[Path]] = {}
    for row, several in homes.items():
        if len(several) > 1:
            shared.setdefault((row.method, row.stage), set()).update(several)
    named = []
    for home, rows in found.items():
        for row in rows:
            others = shared.get((row.method, row.stage), set())
            names = [other.name for other in others]
            word = home.name if names.count(home.name) == 1 else str(home)
            named.append(replace(row, method=f"{row.method} {word}") if home in others else row)
    return named


def _costs_of(path: Path) -> list[Score]:
    try:
        record: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(record, dict) or record.get("command") not in VERBS:
        return []
    seen = recognise(path.with_suffix(".mrc"))
    given = {metric: record[key] for metric, key in COSTS.items() if record.get(key) is not None}
    try:
        inputs = record.get("inputs") or [{}]
        source = Path(inputs[0].get("path") or path)
        costs = {metric: _cost(value) for metric, value in given.items()}
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no record that etsam wrote ({error}): make it again, or take it away"
        ) from error
    dataset, run = whole_volume(source).parent.name, stem_of(source)
    return [
        Score(dataset, run, seen.method, "final", None, metric, value)
        for metric, value in costs.items()
    ]


def _cost(value: Any) -> float:
    cost = float(value)
    if not 0 <= cost < math.inf:
        raise ValueError(f"a cost of {cost:g}")
    return cost

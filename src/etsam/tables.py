"""Tables as CSV or JSON: the tidy one of scores, one row a number; that of components to keep."""

from __future__ import annotations

import csv
import io
import json
import math
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from etsam.options import quoted
from etsam.predictions import CONVENTIONS
from etsam.staging import hidden_folder
from etsam.storage import refuse_taken, write_text

CURVE = "precision_at_recall"
"""Metric of the rows that make up curves; their threshold is the recall."""
OTHER_NAMES = {"dataset_id": "dataset", "run_id": "run"}
"""Column names that other tables use, the paper's among them."""


@dataclass(frozen=True)
class Score:
    """One number: `metric` of a method's stage on one run of a dataset, at a threshold or at none."""

    dataset: str
    run: str
    method: str
    stage: str
    threshold: float | None
    metric: str
    value: float

    @property
    def tomogram(self) -> tuple[str, str]:
        """Dataset and run."""
        return self.dataset, self.run


COLUMNS = tuple(field.name for field in fields(Score))

Series = dict[tuple[str, str], float]
"""One metric of one method, by (dataset, run)."""

Column = TypeVar("Column", bound=Hashable)


def read_table(path: Path | str) -> list[Score]:
    """Read a table of scores from a CSV file with a header, or from a JSON list of objects.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a column is missing, a number cannot be read, or the table is empty.
    """
    path = Path(path)
    if path.is_dir() or not path.exists():  # a pipe is a table too
        what = "is no file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {what}: give a table made by `etsam evaluate`")
    records = _json_records(path) if path.suffix.lower() == ".json" else csv_records(path)
    rows = [_score(record, f"{path}, row {number}") for number, record in enumerate(records, 1)]
    if not rows:
        raise ValueError(f"{path} holds no scores: expected rows of {', '.join(COLUMNS)}")
    return rows


def read_scores(path: Path | str) -> list[Score]:
    """Read a table as `read_table` does, but not one of curves.

    Raises
    ------
    FileNotFoundError, ValueError
        As `read_table`, or the table holds curves.
    """
    rows = read_table(path)
    if all(row.metric == CURVE for row in rows):
        raise ValueError(
            f"{path} holds curves: give it to `etsam figures scores --curves`, and here the table of "
            "`etsam evaluate --output`"
        )
    return rows


def check_table_path(
    path: Path | str | None, inputs: Iterable[Path | None] = (), *, overwrite: bool = False
) -> None:
    """Refuse a place where no table can be written, before anything is computed for it.

    Raises
    ------
    ValueError
        If the name ends in neither .csv nor .json, its folder does not exist, or it is an input.
    FileExistsError
        If something is there already, without `overwrite`.
    OSError
        If nothing can be written into its folder.
    """
    if path is None:
        return
    path = Path(path)
    if path.suffix.lower() not in (".csv", ".json"):
        raise ValueError(f"{path} is no name for a table: expected one that ends in .csv or .json")
    if not path.parent.is_dir():
        if path.parent.exists():
            raise ValueError(f"{path.parent} is a file, not a folder: give the table another name")
        raise ValueError(f"{path.parent} does not exist: make the folder first")
    if path.exists() and any(other and other.exists() and path.samefile(other) for other in inputs):
        raise ValueError(f"{path} is read as well: give the new table another name")
    if not overwrite:
        refuse_taken(path, "--overwrite or another name")
    with hidden_folder(path.parent, path.name):
        pass  # it can be made, so files can


def write_table(path: Path | str, rows: Iterable[Score]) -> None:
    """Write a table as CSV, or as JSON where `path` ends so; it appears only when complete."""
    write_records(path, COLUMNS, [asdict(row) for row in rows])


def write_records(
    path: Path | str, columns: Sequence[str], records: Sequence[dict[str, Any]]
) -> None:
    """Write records as CSV, or as JSON where `path` ends so; the file appears only when complete.

    None and NaN are empty fields in CSV and null in JSON.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        text = json.dumps([_without_nan(record) for record in records], indent=1) + "\n"
    else:
        text = csv_text(columns, records)
    write_text(path, text)


def csv_text(columns: Sequence[str], records: Iterable[dict[str, Any]]) -> str:
    """Return records as CSV; numbers keep 6 digits."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for record in records:
        writer.writerow([_cell(record[name]) for name in columns])
    return buffer.getvalue()


def variant_names(rows: Iterable[Score]) -> dict[tuple[str, str], str]:
    """Return how each (method, stage) is called: by the method, or by both where it has several."""
    keys = list(dict.fromkeys((row.method, row.stage) for row in rows))
    methods = [method for method, _ in keys]
    return {key: key[0] if methods.count(key[0]) == 1 else f"{key[0]} {key[1]}" for key in keys}


def variants(
    rows: Iterable[Score], thresholds: dict[str, float] | None = None
) -> dict[str, dict[str, Series]]:
    """Sort scores by method and metric, one threshold a method.

    Methods are called as by `variant_names`. Where there are several thresholds, `thresholds` says
    which counts; without a word of it the program's own does, which is known
    (`etsam.predictions.CONVENTIONS`) or the one at which most was measured.

    Returns
    -------
    dict
        method -> metric -> (dataset, run) -> value.

    Raises
    ------
    ValueError
        If the threshold to use is not clear, a method is unknown, or a score comes twice.
    """
    rows = list(rows)
    wanted = dict(thresholds or {})
    names = variant_names(rows)
    result: dict[str, dict[str, Series]] = {}
    grouped: dict[str, list[Score]] = {}
    for row in rows:
        grouped.setdefault(names[row.method, row.stage], []).append(row)
    unknown = set(wanted) - set(grouped)
    if unknown:
        raise ValueError(f"no method {sorted(unknown)[0]!r}: the table has {', '.join(grouped)}")
    for name, members in grouped.items():
        chosen = _threshold(name, members, wanted.get(name))
        result[name] = _by_metric(row for row in members if row.threshold in (None, chosen))
    return result


def columns_of(table: Mapping[str, Mapping[str, Series]], metric: str) -> dict[str, Series]:
    """Return one metric of the methods of a table (`variants`) that have it."""
    return {name: series[metric] for name, series in table.items() if metric in series}


def evened(columns: Mapping[Column, Series]) -> tuple[dict[Column, Series], str]:
    """Keep of one metric the tomograms that every column (a method, a threshold) has a finite score of.

    Columns without any do not count. Where the others share no tomogram each keeps its own.

    Returns
    -------
    dict, str
        The finite scores that are left, and "4 of 8" where there were more tomograms, else "".
    """
    known = {
        name: {key: value for key, value in series.items() if math.isfinite(value)}
        for name, series in columns.items()
    }
    having = [set(series) for series in known.values() if series]
    every = set().union(*having)
    common = set.intersection(*having) if having else every
    if not common:
        return known, f"none of {len(every)}, so each has its own" if every else ""
    left = {
        name: {key: value for key, value in series.items() if key in common}
        for name, series in known.items()
    }
    return left, f"{len(common)} of {len(every)}" if len(common) < len(every) else ""


def warn_of_uneven(notes: Mapping[str, str], columns: str) -> None:
    """Say over how many tomograms means are taken; `notes` of `evened` by metric, `columns` what they are."""
    told = ", ".join(f"{metric} {note}" for metric, note in notes.items() if note)
    if told:
        warnings.warn(
            f"means are over the tomograms that all {columns} have a score of: {told}", stacklevel=3
        )


def _threshold(name: str, rows: list[Score], wanted: float | None) -> float | None:
    found = sorted({row.threshold for row in rows if row.threshold is not None})
    if wanted is None and len(found) > 1:
        own = _own_threshold(rows, found)
        if own is not None:
            return own
        listed = ", ".join(f"{value:g}" for value in found)
        raise ValueError(
            f"{name} has thresholds {listed}: say which, as in --at {name}={found[0]:g}"
        )
    if wanted is not None and wanted not in found:
        listed = ", ".join(f"{value:g}" for value in found) or "none"
        raise ValueError(f"{name} has no threshold {wanted:g}: the table has {listed}")
    return wanted if wanted is not None else (found[0] if found else None)


def _own_threshold(rows: list[Score], found: list[float]) -> float | None:
    """The threshold a known program uses, or the only one with surfaces or details; else None."""
    for rule in CONVENTIONS:
        if rule.method == rows[0].method and rule.kind != "mask" and rule.threshold in found:
            return rule.threshold
    measured = {level: {row.metric for row in rows if row.threshold == level} for level in found}
    most = max(len(metrics) for metrics in measured.values())
    richest = [level for level, metrics in measured.items() if len(metrics) == most]
    return richest[0] if len(richest) == 1 else None


def _by_metric(rows: Iterable[Score]) -> dict[str, Series]:
    result: dict[str, Series] = {}
    for row in rows:
        series = result.setdefault(row.metric, {})
        if row.tomogram in series:
            place = f"{row.method} {row.stage} on {row.dataset}/{row.run}".replace("  ", " ")
            raise ValueError(f"{row.metric} of {place} is in the table twice: keep one")
        series[row.tomogram] = row.value
    return result


def csv_records(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a CSV file with a header.

    Raises
    ------
    ValueError
        If it is not UTF-8 text, or a row has more or fewer fields than the header.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            records = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV table ({error}): save it as CSV in UTF-8") from error
    for number, record in enumerate(records, 1):
        if None in record or None in record.values():
            raise ValueError(
                f"{path}, row {number}: other fields than the header names; is it cut short, or a "
                "quote not closed?"
            )
    return records


def read_choices(path: Path) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Read which components to keep or drop: a CSV with columns name, keep, drop.

    Returns
    -------
    dict
        name -> (keep, drop); the fields hold numbers with blanks between.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no such table, it reads otherwise, or names none or a tomogram twice.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give a CSV with columns name, keep, drop")
    records = csv_records(path)
    if not records:
        raise ValueError(f"{path} names no tomogram: expected rows of name, keep, drop")
    choices: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    for number, record in enumerate(records, 1):
        if record.get("name") in choices:
            raise ValueError(
                f"{path}, row {number}: {record['name']} is named twice: expected once"
            )
        wanted = "expected columns name, keep, drop, with numbers as in '1 4 7'"
        if "name" not in record or not {"keep", "drop"} & set(record):
            raise ValueError(f"{path}, row {number}: {wanted}")
        if unknown := sorted(set(record) - {"name", "keep", "drop", ""}):
            raise ValueError(f"{path} has a column {quoted(unknown[0])}: {wanted}")
        try:
            lists = [
                tuple(int(word) for word in (record.get(column) or "").split())
                for column in ("keep", "drop")
            ]
        except ValueError:
            raise ValueError(f"{path}, row {number}: {wanted}") from None
        choices[record["name"]] = (lists[0], lists[1])
    return choices


def _json_records(path: Path) -> list[dict[str, Any]]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a JSON table: {error}") from error
    if not isinstance(records, list) or not all(isinstance(item, dict) for item in records):
        raise ValueError(f"{path} is not a table: expected a list of objects, one per score")
    return records


def _score(record: dict[str, Any], place: str) -> Score:
    named = {OTHER_NAMES.get(name, name): value for name, value in record.items()}
    missing = [name for name in COLUMNS if name not in named]
    if missing:
        raise ValueError(f"{place}: no column {missing[0]!r}; expected {', '.join(COLUMNS)}")
    texts = {name: str(named[name] if named[name] is not None else "") for name in COLUMNS}
    value = _number(texts.pop("value"), f"{place}, value")
    threshold = _number(texts.pop("threshold"), f"{place}, threshold")
    return Score(**texts, threshold=threshold, value=math.nan if value is None else value)


def _number(text: str, place: str) -> float | None:
    """Read a number; an empty field and NaN, as other programs write it, are None."""
    text = text.strip()
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{place}: {quoted(text)} is not a number") from None
    return None if math.isnan(number) else number


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def _without_nan(record: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in record.items()
    }

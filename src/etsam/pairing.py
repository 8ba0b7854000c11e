"""Which prediction is scored against which ground truth: from names, folders or a table."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from etsam.layout import RECORD_ENDING, masks_of_runs, run_of_mask
from etsam.predictions import Prediction, recognise, run_of
from etsam.projects import mask_in_folder, member_of
from etsam.storage import each_once
from etsam.tables import csv_records
from etsam.volume import KNOWN_SUFFIXES, TIFF_SUFFIXES, stands_aside, stem_of, whole_volume

TRUTH_SUFFIX = re.compile(
    r"_(target_mask|partial_labels|ground_truth|membrane|labels?|mask|gt|truth)$", re.IGNORECASE
)


@dataclass(frozen=True)
class Pairing:
    """A prediction, the truth it is scored against, and what the table calls them."""

    prediction: Prediction
    truth: Path
    dataset: str
    run: str


def find_pairings(
    predictions: Sequence[Path],
    truths: Sequence[Path],
    *,
    dataset: str | None = None,
    method: str | None = None,
    stage: str | None = None,
) -> list[Pairing]:
    """Pair files or folders of predictions with files or folders of truths, by name, each file once.

    In a folder of predictions only names that a program is known to give are taken, unless a
    `method` is given, and no tilt series; where there are scores, the mask of the same run is left out. The dataset
    is the folder of the truth unless it is given; of pairs that `etsam prepare` made, dataset and run
    are those in its record, of runs as `etsam download` or the CryoET Data Portal lay them out those of their folders.

    Raises
    ------
    FileNotFoundError, ValueError
        Nothing is there, names do not tell what belongs together, or one truth has two predictions
        of one method and stage in a folder.
    """
    truth_files = each_once(path for place in truths for path in _truths_in(place))
    files = each_once(
        path for place in predictions for path in _predictions_in(place, truth_files, bool(method))
    )
    pairings: list[Pairing] = []
    taken: dict[tuple[str, str, Path, Path], Path] = {}
    matched = match(files, truth_files)
    for path, truth in sorted(matched, key=lambda pair: recognise(pair[0]).kind == "mask"):
        seen = recognise(path)
        seen = replace(seen, method=method or seen.method, stage=stage or seen.stage)
        key = seen.method, seen.stage, truth, whole_volume(path).parent
        if key in taken:
            if seen.kind == "mask" and _made_from(path, taken[key]):
                continue
            raise ValueError(
                f"{taken[key]} and {path} are both of {seen.method} for {truth}: leave one out, or "
                "use --pairs"
            )
        taken[key] = path
        recorded = _recorded(truth)
        named = dataset or recorded.get("dataset") or _folder_name(truth)
        pairings.append(Pairing(seen, truth, named, recorded.get("run") or truth_name(truth)))
    return sorted(pairings, key=lambda pairing: (pairing.dataset, pairing.run))


def _made_from(mask: Path, scores: Path) -> bool:
    """Whether a mask is of the run whose scores these are; of a mask that tells no run its name decides."""
    run = run_of(scores)
    if run is None or recognise(scores).kind == "mask":
        return False
    own = run_of(mask)
    return own == run or (own is None and _belongs(stem_of(mask), run))


def _recorded(truth: Path) -> dict[str, str]:
    """Dataset and run of a truth: as `etsam prepare` noted them beside it, or as the folders of runs are called."""
    laid_out = run_of_mask(truth)
    if laid_out is not None:
        return {"dataset": laid_out.dataset, "run": laid_out.run}
    path = whole_volume(truth).parent / f"{truth_name(truth)}{RECORD_ENDING}"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    noted = record if isinstance(record, dict) else {}
    return {key: noted[key] for key in ("dataset", "run") if isinstance(noted.get(key), str)}


def _folder_name(truth: Path) -> str:
    return whole_volume(truth.resolve()).parent.name


def read_pairings(path: Path) -> list[Pairing]:
    """Read pairings from a CSV table: prediction, truth and, if wanted, dataset, run, method, stage.

    Paths are relative to the table.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no such table, or it lacks a column.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give a CSV with columns prediction, truth")
    pairings = []
    for number, record in enumerate(csv_records(path), 1):
        missing = [name for name in ("prediction", "truth") if not record.get(name)]
        if missing:
            raise ValueError(f"{path}, row {number}: no {missing[0]}; expected prediction, truth")
        truth = path.parent / record["truth"]
        found = recognise(path.parent / record["prediction"])
        found = replace(
            found,
            method=record.get("method") or found.method,
            stage=record.get("stage") or found.stage,
        )
        known = _recorded(truth)
        dataset = record.get("dataset") or known.get("dataset") or _folder_name(truth)
        run = record.get("run") or known.get("run") or truth_name(truth)
        pairings.append(Pairing(found, truth, dataset, run))
    if not pairings:
        raise ValueError(f"{path} names no pairs: expected rows of prediction, truth")
    return pairings


def truth_name(path: Path) -> str:
    """Return the run's name from that of its ground truth: `TS_1_membrane.mrc` is of run `TS_1`."""
    name = stem_of(path)
    shortened = TRUTH_SUFFIX.sub("", name)
    return shortened or name


def match(predictions: Sequence[Path], truths: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Find the ground truth of each prediction: the one whose run's name begins the prediction's (`run_names`).

    One prediction and one truth belong together whatever their names. Where the name goes on before
    the program's own ending, a warning says so: the run may be another one, without a truth.

    Raises
    ------
    ValueError
        If a prediction has no truth, or several.
    """
    if len(predictions) == 1 and len(truths) == 1:
        return [(predictions[0], truths[0])]
    names = {truth: run_names(truth) for truth in truths}
    called: dict[str, list[Path]] = {}
    for truth, own in names.items():
        for name in dict.fromkeys(own):
            called.setdefault(name, []).append(truth)
    pairs = []
    for path in predictions:
        stem = stem_of(path)
        starts = (stem[:length] for length in range(len(stem), 0, -1))  # the longest first
        best = next(
            (called[name] for name in starts if name in called and _belongs(stem, name)), []
        )
        if len(best) != 1:
            what = "several truths" if best else "no truth"
            listed = ", ".join(sorted(names[truth][0] for truth in (best or truths))[:5])
            raise ValueError(
                f"{path}: {what} for it (runs: {listed}); name it RUN_..., or use --pairs"
            )
        known, told = names[best[0]], run_of(path)
        if told is not None and told not in known:
            warnings.warn(f"{path} is scored against run {known[0]}, not {told}", stacklevel=2)
        pairs.append((path, best[0]))
    return pairs


def run_names(truth: Path) -> tuple[str, ...]:
    """Return what the run of a truth is called in names of predictions: as the truth is.

    A run told by its folders also as these, ``{dataset}_{run}``, and as its tomograms; one of the portal also as
    its own folder, and as `etsam segment` calls its masks in a folder of many.
    """
    laid_out = run_of_mask(truth)
    if laid_out is None:
        return (truth_name(truth),)
    names = [f"{laid_out.dataset}_{laid_out.run}", *map(stem_of, laid_out.tomograms)]
    for tomogram in laid_out.tomograms:
        member = member_of(tomogram)
        if member is not None:
            names += [member.run, truth_name(mask_in_folder(tomogram, member, Path()))]
    return (*dict.fromkeys(names), truth_name(truth))


def _belongs(name: str, run: str) -> bool:
    return name == run or (name.startswith(run) and not name[len(run)].isalnum())


def _truths_in(place: Path) -> list[Path]:
    if not _is_folder(place):
        if not place.exists():
            raise FileNotFoundError(
                f"{place} does not exist: give ground truth, a file or a folder"
            )
        return [place]
    named = [path for path in _volumes_in(place) if truth_name(path) != stem_of(path)]
    found = named or masks_of_runs(place)
    if not found:
        raise FileNotFoundError(
            f"{place} holds no ground truth: expected names such as RUN_membrane.mrc, or "
            "DATASET/RUN as `etsam download` or the CryoET Data Portal lay runs out"
        )
    return found


def _predictions_in(place: Path, truths: Sequence[Path], any_name: bool) -> list[Path]:
    if not _is_folder(place):
        if not place.exists():
            raise FileNotFoundError(f"{place} does not exist: give predictions, files or folders")
        return [place]
    others = {path.resolve() for path in truths}
    volumes = [path for path in _volumes_in(place) if path.resolve() not in others]
    if any_name and not volumes:
        raise FileNotFoundError(
            f"{place} holds no prediction: expected MRC, OME-Zarr or TIFF; tilt series (.st, .ali, "
            ".preali) are taken only where named themselves"
        )
    known = [path for path in volumes if any_name or recognise(path).kind is not None]
    if not known:
        raise FileNotFoundError(f"{place} holds no prediction of a known name: give --method NAME")
    return known


def _volumes_in(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if (KNOWN_SUFFIXES.search(path.name) or path.suffix.lower() in TIFF_SUFFIXES)
        and not stands_aside(path)
    )


def _is_folder(path: Path) -> bool:
    return path.is_dir() and whole_volume(path).suffix.lower() != ".zarr"

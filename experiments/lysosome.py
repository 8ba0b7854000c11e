"""Score a segmentation of the real lysosome tomogram against its partial annotation.

    python experiments/lysosome.py                              # segments it first, bundled model
    python experiments/lysosome.py --prediction LOGITS.mrc      # or a mask, or one made before

Only annotated voxels count (labels 0 and 1; -1 is not annotated): one vesicle and the shell of 16
voxels round it. So these scores say how well a found membrane is followed, and say nothing of
membranes or noise elsewhere.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from script import run_script

from etsam.metrics import Confusion, ScoreHistogram, confusion
from etsam.options import LOGIT_THRESHOLD
from etsam.volume import Tomogram, open_tomogram

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "real" / "lysosome"
RUN = "from etsam.cli import main; main()"
SWEEP = (-4.0, -2.0, -1.0, -0.5, -0.25, 0.0, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Scores:
    """What was counted; the curve only where the prediction is logits."""

    counts: Confusion
    average_precision: float | None
    sweep: dict[float, Confusion]


def score(prediction: Tomogram, labels: Tomogram, threshold: float) -> Scores:
    """Count a prediction slice by slice; float volumes are logits, integer ones are masks.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if prediction.shape != labels.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, labels {labels.shape}")
    logits = prediction.dtype.kind == "f"
    histogram = ScoreHistogram()
    counts = Confusion()
    for z in range(labels.shape[0]):
        truth = labels.read_slice(z)
        if not (truth >= 0).any():
            continue
        plane = prediction.read_slice(z)
        counts += confusion(plane > (threshold if logits else 0), truth)
        if logits:
            histogram.add(plane, truth)
    if not logits:
        return Scores(counts, None, {})
    area = histogram.curve(clip=True).average_precision
    return Scores(counts, area, dict(zip(SWEEP, histogram.confusions(SWEEP), strict=True)))


def segment(tomogram: Path, folder: Path, extra: list[str]) -> Path:
    """Run `etsam segment` and return the logits it stores."""
    command = [sys.executable, "-c", RUN, "segment", str(tomogram)]
    subprocess.run([*command, "--store-logits", "-o", str(folder), *extra], check=True)
    return next(folder.glob("*_logits.mrc"))


def report(scores: Scores, name: str, threshold: float) -> None:
    """Print a table for people and a JSON line for programs."""
    rows = [(f"{threshold:g}" if scores.sweep else "mask", scores.counts)]
    rows += [(f"{value:g}", counts) for value, counts in scores.sweep.items() if value != threshold]
    print(f"{'threshold':>10}{'Dice':>9}{'IoU':>9}{'precision':>11}{'recall':>9}")
    for label, counts in rows:
        numbers = counts.dice, counts.iou, counts.precision, counts.recall
        print(f"{label:>10}" + "{:9.4f}{:9.4f}{:11.4f}{:9.4f}".format(*numbers))
    if scores.average_precision is not None:
        print(f"AUPRC {scores.average_precision:.4f}")
    best = max(rows, key=lambda row: row[1].dice)
    record = {
        "prediction": name,
        "threshold": threshold if scores.sweep else None,
        "dice": scores.counts.dice,
        "iou": scores.counts.iou,
        "precision": scores.counts.precision,
        "recall": scores.counts.recall,
        "auprc": scores.average_precision,
        "best_threshold": best[0],
        "best_dice": best[1].dice,
        "voxels": scores.counts.voxels,
    }
    print(json.dumps(record))


def main() -> None:
    """Read the options, segment if asked, score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prediction", type=Path, help="mask or logits (default: segment now)")
    parser.add_argument("--tomogram", type=Path, default=FOLDER / "tomogram.mrc")
    parser.add_argument("--labels", type=Path, default=FOLDER / "partial_labels.mrc")
    parser.add_argument("--threshold", type=float, default=LOGIT_THRESHOLD)
    options, extra = parser.parse_known_args()
    if extra and options.prediction is not None:
        parser.error(f"{extra[0]}: options of `etsam segment` do not go with --prediction")
    with tempfile.TemporaryDirectory() as folder:
        path = options.prediction or segment(options.tomogram, Path(folder), extra)
        with open_tomogram(path) as prediction, open_tomogram(options.labels) as labels:
            scores = score(prediction, labels, options.threshold)
    report(scores, str(options.prediction or "etsam segment"), options.threshold)


if __name__ == "__main__":
    run_script(main)

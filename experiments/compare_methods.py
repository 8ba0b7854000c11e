"""One table of all methods on the held-out suite and on the real lysosome.

    python experiments/compare_methods.py suite/ -o comparison/ [--unet unet3d.safetensors]

Both stages of a model, the ridge filter and, where its weights are given, a plain 3-D U-Net. Writes
scores.csv, curves.csv, tests.csv, figures, and table.md, which it prints. Predictions that are there
are kept, so that the command goes on where it stopped. All methods are told the same polarity: the
one that stage 1 finds, or --polarity.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from script import run_script
from stage_logits import logits_path, polarity_of, write_stage_logits

from etsam.baselines.ridge import RidgeOptions, ridge_slices
from etsam.compare import compare
from etsam.drawing import Saving, mean_of
from etsam.evaluate import Evaluation, curve_rows, evaluate
from etsam.figures import figures
from etsam.options import LOGIT_THRESHOLD, SegmentOptions
from etsam.pairing import Pairing
from etsam.predictions import Prediction
from etsam.stages import Stage, load_stages
from etsam.storage import write_text
from etsam.tables import (
    Score,
    columns_of,
    evened,
    read_table,
    variants,
    warn_of_uneven,
    write_records,
    write_table,
)
from etsam.volume import create_volume, open_tomogram

LYSOSOME = Path(__file__).resolve().parents[2] / "shared" / "real" / "lysosome"
SUITE = "suite"
THRESHOLDS = {"stage1": LOGIT_THRESHOLD, "stage2": LOGIT_THRESHOLD, "ridge": 0.0, "unet3d": 0.0}
COLUMNS = (
    "dice",
    "iou",
    "precision",
    "recall",
    "auprc",
    "surface_dice_2nm",
    "surface_distance_mean_nm",
)


def pairs_in(suite: Path, lysosome: Path) -> list[tuple[str, str, Path, Path]]:
    """Dataset, run, tomogram and truth of everything to score."""
    found = []
    for mask in sorted(suite.glob("*_membrane.mrc")):
        name = mask.name.removesuffix("_membrane.mrc")
        found.append((SUITE, name, mask.with_name(f"{name}.mrc"), mask))
    if (lysosome / "tomogram.mrc").is_file():
        found.append(
            ("lysosome", "lysosome", lysosome / "tomogram.mrc", lysosome / "partial_labels.mrc")
        )
    if not found:
        raise SystemExit(f"{suite} holds no NAME_membrane.mrc")
    return found


def predict(
    path: Path, method: str, options: SegmentOptions, folder: Path, unet: Path | None
) -> Path:
    """Write the logits of the ridge filter or the U-Net, unless they are there."""
    target = logits_path(path, method, folder)
    if target.exists():
        return target
    invert = options.polarity == "bright"
    with open_tomogram(path) as tomogram:
        if method == "ridge":
            slices: Iterator[np.ndarray] = iter(ridge_slices(tomogram, RidgeOptions(invert=invert)))
        else:
            from unet3d import load_network, predict_slices

            assert unet is not None
            slices = predict_slices(load_network(unet), path, invert=invert)
        with create_volume(target, tomogram, dtype="float32", label=f"{method}") as writer:
            for z, logits in enumerate(slices):
                writer.write_slice(z, logits)
    return target


def score(given: argparse.Namespace, methods: list[str], stages: list[Stage]) -> list[Evaluation]:
    """Predict and score one tomogram after the other; scores appear as they come."""
    found: list[Evaluation] = []
    for dataset, run, path, truth in pairs_in(given.suite, given.lysosome):
        folder = given.output / dataset
        folder.mkdir(parents=True, exist_ok=True)
        options = SegmentOptions(model=given.model, polarity=given.polarity)
        options = polarity_of(path, stages, options)
        files = dict(
            zip(
                ("stage1", "stage2"), write_stage_logits(path, stages, options, folder), strict=True
            )
        )
        for method in methods:
            if method not in files:
                files[method] = predict(path, method, options, folder, given.unet)
        for method in methods:
            what = Prediction(
                files[method], method, "final", "logits", THRESHOLDS[method], clip=True
            )
            found += evaluate([Pairing(what, truth, dataset, run)])
            dice = next(row.value for row in found[-1].rows if row.metric == "dice")
            print(f"{run:<24}{options.polarity:<8}{method:<8}Dice {dice:.3f}", flush=True)
    return found


def table(rows: list[Score], methods: list[str]) -> str:
    """Means over the suite, then the lysosome, as Markdown."""
    head = ["method", *(f"{name.replace('_', ' ')}" for name in COLUMNS)]
    lines = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        scores = variants(row for row in rows if row.dataset == dataset)
        runs = len({row.run for row in rows if row.dataset == dataset})
        lines += [
            f"\n**{dataset}** ({runs})\n",
            f"| {' | '.join(head)} |",
            "|---" * len(head) + "|",
        ]
        shared, notes = {}, {}
        for name in COLUMNS:
            shared[name], notes[name] = evened(columns_of(scores, name))
        warn_of_uneven(notes, "methods")
        for method in methods:
            values = [mean_of([*shared[name][method].values()]) for name in COLUMNS]
            lines.append(f"| {method} | {' | '.join(f'{value:.3f}' for value in values)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the options and make the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suite", type=Path, help="pairs NAME.mrc, NAME_membrane.mrc")
    parser.add_argument("--lysosome", type=Path, default=LYSOSOME)
    parser.add_argument("-o", "--output", type=Path, default=Path("comparison"))
    parser.add_argument("--model", default="compact", help="name or folder")
    parser.add_argument("--unet", type=Path, help="weights from experiments/unet3d.py")
    parser.add_argument("--polarity", choices=["auto", "dark", "bright"], default="auto")
    given = parser.parse_args()
    methods = ["stage1", "stage2", "ridge", *(["unet3d"] if given.unet else [])]
    stages = load_stages(SegmentOptions(model=given.model))
    found = score(given, methods, stages)
    write_table(given.output / "scores.csv", [row for item in found for row in item.rows])
    write_table(given.output / "curves.csv", [row for item in found for row in curve_rows(item)])
    rows = read_table(given.output / "scores.csv")
    text = table(rows, methods)
    suite = [row for row in rows if row.dataset == SUITE]
    if len({row.run for row in suite}) > 2:
        records = compare(suite).test_records()
        write_records(given.output / "tests.csv", list(records[0]), records)
        curves = [row for row in read_table(given.output / "curves.csv") if row.dataset == SUITE]
        figures(suite, given.output / "figures", curves=curves, saving=Saving(overwrite=True))
    write_text(given.output / "table.md", text)
    print(text)


if __name__ == "__main__":
    run_script(main)

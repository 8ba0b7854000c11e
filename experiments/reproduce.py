"""The paper's tables and figures, one command each.

    python experiments/reproduce.py table1 SCORES.csv -o out/          # Table 1, Fig. 1a-c
    python experiments/reproduce.py postprocess MASKS/ TRUTH/ -o out/  # Fig. 4, before and after
    python experiments/reproduce.py surfaces MASKS/ TRUTH/ -o out/     # Fig. 2, in 3-D
    python experiments/reproduce.py runtime MASKS/... -o out/          # Fig. 1d, from the JSON files
    python experiments/reproduce.py ablation PAIRS/ -o out/            # prompt x threshold x stage

SCORES.csv is made by `etsam evaluate`; the paper's own numbers are such a table too. PAIRS holds
NAME.mrc and NAME_membrane.mrc. The robustness set is compare_methods.py on the held-out suite.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from script import run_script

from etsam.compare import compare
from etsam.costs import read_costs
from etsam.drawing import Saving
from etsam.evaluate import SWEEP, EvaluateOptions, evaluate
from etsam.figures import ablation_figure, change_figure, cost_figure, figures, surface_figure
from etsam.options import LOGIT_THRESHOLD, SegmentOptions
from etsam.pairing import Pairing, find_pairings, truth_name
from etsam.postprocess import CleaningOptions, postprocess
from etsam.predictions import Prediction, recognise
from etsam.statistics import summarise
from etsam.tables import Score, csv_text, read_table, variants, write_records, write_table

AGAIN = Saving(overwrite=True)  # as tables
METRICS = ("dice", "iou", "precision", "recall")
STAGE1_PROMPTS = ("zero", "grid_zero", "grid")  # paper, section 4.4
STAGE2_PROMPTS = (*STAGE1_PROMPTS, "etsam_stage1_partial")


def table1(given: argparse.Namespace) -> None:
    """Means, tests and figures of a table of scores."""
    rows = read_table(given.scores)
    found = compare(rows)
    records = found.summary_records()
    given.output.mkdir(parents=True, exist_ok=True)
    write_records(given.output / "means.csv", list(records[0]), records)
    tests = found.test_records()
    if tests:
        write_records(given.output / "tests.csv", list(tests[0]), tests)
        print(csv_text(("metric", "first", "second", "p", "mark"), tests))
    print(csv_text(("method", "metric", "n", "mean", "sd"), records))
    figures(rows, given.output / "figures", saving=AGAIN)


def masks_in(place: Path, truth: Path) -> list[Path]:
    """Masks of a folder as segmented: no scores, and none that were post-processed."""
    if place.exists() and place.resolve() == truth.resolve():
        raise ValueError(f"{place} is given as masks and as truth: expected two places")
    if not place.is_dir():
        return [place]
    seen = [recognise(path) for path in sorted(place.iterdir())]
    found = [what.path for what in seen if what.kind == "mask" and what.stage != "postprocessed"]
    if not found:
        raise FileNotFoundError(f"{place} holds no mask of a known name, as NAME_membrane.mrc")
    return found


def clean(given: argparse.Namespace) -> None:
    """Scores of masks before and after post-processing, and the mean differences."""
    rows = []
    pairings = find_pairings(masks_in(given.masks, given.truth), [given.truth])
    given.output.mkdir(parents=True, exist_ok=True)
    for pairing in pairings:
        before = pairing.prediction
        cleaned = given.output / f"{before.path.stem}_postprocessed.mrc"
        postprocess(before.path, cleaned, CleaningOptions(given.min_slices), overwrite=True)
        for name, path in (("before", before.path), ("after", cleaned)):
            what = Prediction(path, name, "final", "mask")
            rows += evaluate([replace(pairing, prediction=what)])[0].rows
    write_table(given.output / "postprocess.csv", rows)
    table = variants(rows)
    for metric in METRICS:
        first, last = (np.mean(list(table[name][metric].values())) for name in ("before", "after"))
        print(f"{metric:<10}{first:8.4f}{last:8.4f}{100 * (last - first):+8.2f} %")
    change_figure(rows, ("before", "after"), given.output / "postprocess", saving=AGAIN)


def runtime(given: argparse.Namespace) -> None:
    """Time and memory from the JSON files that `etsam segment` and `etsam baseline` write."""
    rows = read_costs(given.masks)
    given.output.mkdir(parents=True, exist_ok=True)
    write_table(given.output / "runtime.csv", rows)
    for name, series in variants(rows).items():
        for metric, values in series.items():
            found = summarise(list(values.values()))
            print(f"{name:<14}{metric:<10}{found.mean:10.1f} ± {found.sd:.1f} (n = {found.n})")
    cost_figure(given.masks, given.output / "runtime", saving=AGAIN)


def ablation(given: argparse.Namespace) -> None:
    """Every prompt of either stage at nine thresholds, on every pair of a folder.

    Prompts a network was not trained with are asked for all the same: that is the question. All
    are told the same polarity: the one that stage 1 finds, or --polarity.
    """
    from stage_logits import polarity_of, write_stage_logits

    from etsam.stages import load_stages

    masks = sorted(given.pairs.glob("*_membrane.mrc"))[: given.limit]
    if not masks:
        raise FileNotFoundError(f"{given.pairs} holds no NAME_membrane.mrc beside NAME.mrc")
    basic = SegmentOptions(model=given.model, polarity=given.polarity)
    stages = load_stages(basic)
    rows: list[Score] = []
    thresholds = EvaluateOptions(thresholds=SWEEP, surface=False)
    plans = [("grid_zero", second) for second in STAGE2_PROMPTS]
    plans += [(first, "zero") for first in STAGE1_PROMPTS if first != "grid_zero"]
    tomograms = [mask.with_name(mask.name.replace("_membrane.mrc", ".mrc")) for mask in masks]
    settled = [polarity_of(path, stages, basic) for path in tomograms]
    found = zip(masks, tomograms, settled, strict=True)
    for (mask, path, chosen), (first, second) in product(found, plans):
        folder = given.output / f"{first}-{second}"
        folder.mkdir(parents=True, exist_ok=True)
        options = replace(chosen, stage1_prompt=first, stage2_prompt=second)
        files = write_stage_logits(path, stages, options, folder)
        wanted = [(files[1], f"{first} > {second}", "stage2")]
        if second == "zero":
            wanted.append((files[0], first, "stage1"))
        for logits, method, stage in wanted:
            what = Prediction(logits, method, stage, "logits", LOGIT_THRESHOLD, clip=True)
            pairing = Pairing(what, mask, given.pairs.name, truth_name(mask))
            rows += evaluate([pairing], thresholds)[0].rows
    write_table(given.output / "ablation.csv", rows)
    ablation_figure(rows, given.output / "ablation", saving=AGAIN)
    print((given.output / "ablation.md").read_text(encoding="utf-8"))


def surfaces(given: argparse.Namespace) -> None:
    """Truth and each method's mask in 3-D (Fig. 2), for every tomogram with a truth."""
    grouped: dict[Path, list[tuple[str, Path]]] = {}
    for pairing in find_pairings([given.masks], [given.truth]):
        seen = pairing.prediction
        grouped.setdefault(pairing.truth, []).append((seen.method, seen.path))
    for truth, masks in grouped.items():
        target = given.output / truth_name(truth)
        print(*surface_figure(truth, masks, target, saving=AGAIN), sep="\n")


def main() -> None:
    """Read the options and make one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True)
    for name, run, places in (
        ("table1", table1, ("scores",)),
        ("postprocess", clean, ("masks", "truth")),
        ("surfaces", surfaces, ("masks", "truth")),
        ("runtime", runtime, ("masks",)),
        ("ablation", ablation, ("pairs",)),
    ):
        verb = verbs.add_parser(name, help=run.__doc__)
        for place in places:
            verb.add_argument(place, type=Path, nargs="+" if name == "runtime" else None)
        verb.add_argument("-o", "--output", type=Path, default=Path(name))
        verb.set_defaults(run=run)
        if name == "postprocess":
            verb.add_argument("--min-slices", type=int, default=10)
        if name == "ablation":
            verb.add_argument("--model", default="compact")
            verb.add_argument("--polarity", choices=["auto", "dark", "bright"], default="auto")
            verb.add_argument("--limit", type=int, help="first pairs only")
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    run_script(main)

"""``etsam evaluate``: score predictions against ground truth."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from etsam.cli.command import VerbCommand
from etsam.cli.options import finite
from etsam.cli.progress import StageProgress

if TYPE_CHECKING:
    from etsam.pairing import Pairing


@click.command(cls=VerbCommand, short_help="Score predictions against ground truth.")
@click.argument("predictions", nargs=-1, type=click.Path(path_type=Path), metavar="PREDICTION...")
@click.option(
    "-t",
    "--truth",
    "truths",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Ground truth: a volume, or a folder of RUN_membrane.mrc, RUN_target_mask.mrc, ...",
)
@click.option(
    "--pairs",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Instead: CSV of prediction, truth[, dataset, run, method, stage].",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Table, .csv or .json.  [default: CSV on stdout]",
)
@click.option("--curves", type=click.Path(path_type=Path), help="Table of precision over recall.")
@click.option("--threshold", "thresholds", type=float, multiple=True, help="Several may be given.")
@click.option("--sweep", is_flag=True, help="The paper's nine thresholds, -2 to 2, as well.")
@click.option(
    "--scores",
    "kind",
    type=click.Choice(["mask", "logits", "probability"]),
    help="What the volumes hold.  [default: from name and type]",
)
@click.option("--method", help="Name in the table.  [default: from the file's name]")
@click.option("--stage", help="Name in the table.  [default: from the file's name]")
@click.option("--dataset", help="Name in the table.  [default: folder of the truth]")
@click.option("--surface/--no-surface", default=True, show_default=True, help="Measure distances.")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=2.0,
    show_default=True,
    metavar="NM",
    help="Surfaces this close agree (surface Dice).",
)
@click.option(
    "--details/--no-details",
    default=True,
    show_default=True,
    help="Also by plane, by lean to the beam, and by component.",
)
@click.option(
    "--min-component",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="VOXELS",
    help="Smaller components of the truth are not asked for.",
)
@click.option(
    "--resample", is_flag=True, help="Bring predictions with other voxels onto the truth's grid."
)
@click.option(
    "--voxel-spacing", type=float, callback=finite, metavar="Å", help="Instead of the headers'."
)
def evaluate(params: dict[str, Any]) -> None:
    """Score each PREDICTION (volume or folder; masks, logits, probabilities) against ground truth.

    Truth holds 1 membrane, 0 not, -1 not annotated (never counted). Names of ETSAM, MemBrain-seg and
    TARDIS are known; a prediction belongs to the truth whose run its name begins with.

    \b
    etsam evaluate masks/ -t truth/ -o scores.csv
    etsam evaluate TS_1_scores.mrc -t TS_1_membrane.mrc --sweep
    """
    pairings = _pairings(params)

    from etsam.evaluate import SWEEP, EvaluateOptions, curve_rows
    from etsam.evaluate import evaluate as run_evaluation
    from etsam.tables import COLUMNS, csv_text, write_table

    sweep = SWEEP if params["sweep"] else ()
    options = EvaluateOptions(
        thresholds=tuple(dict.fromkeys((*params["thresholds"], *sweep))),
        kind=params["kind"],
        surface=params["surface"],
        tolerance=params["tolerance"],
        details=params["details"],
        min_component=params["min_component"],
        voxel_spacing=params["voxel_spacing"],
        resample=params["resample"],
    )
    with StageProgress() as progress:
        found = run_evaluation(pairings, options, progress)
    rows = [row for evaluation in found for row in evaluation.rows]
    if params["curves"] is not None:
        write_table(params["curves"], [row for item in found for row in curve_rows(item)])
    if params["output"] is None:
        click.echo(csv_text(COLUMNS, map(asdict, rows)), nl=False)
    else:
        write_table(params["output"], rows)
        click.echo(params["output"])


def _pairings(params: dict[str, Any]) -> list[Pairing]:
    given = bool(params["predictions"]) and bool(params["truths"])
    if given == (params["pairs"] is not None):
        raise click.UsageError("give predictions and --truth, or --pairs")

    from etsam.pairing import find_pairings, read_pairings

    if params["pairs"] is not None:
        return read_pairings(params["pairs"])
    return find_pairings(
        params["predictions"],
        params["truths"],
        dataset=params["dataset"],
        method=params["method"],
        stage=params["stage"],
    )

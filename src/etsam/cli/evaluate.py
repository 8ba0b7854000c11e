"""``etsam evaluate``: score predictions against ground truth."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from etsam.cli.command import (
    EXIT_FAILED,
    EXPECTED_ERRORS,
    VerbCommand,
    one_line,
    report_error,
    report_warning,
)
from etsam.cli.options import files_argument, overwrite_option, spacing_option
from etsam.cli.paths import FilePath
from etsam.cli.progress import StageProgress

if TYPE_CHECKING:
    from etsam.evaluate import EvaluateOptions
    from etsam.pairing import Pairing
    from etsam.tables import Score


@click.command(cls=VerbCommand, short_help="Score predictions against ground truth.")
@files_argument("predictions", "PREDICTION...", required=False)
@click.option(
    "-t",
    "--truth",
    "truths",
    multiple=True,
    type=FilePath(),
    help="Ground truth: a volume, or a folder of RUN_membrane.mrc, ... or of runs, fetched or the portal's.",
)
@click.option(
    "--pairs",
    type=FilePath(dir_okay=False),
    help="Instead: CSV of prediction, truth[, dataset, run, method, stage].",
)
@click.option(
    "-o",
    "--output",
    type=FilePath(dir_okay=False),
    help="Table, .csv or .json.  [default: CSV on stdout]",
)
@click.option("--curves", type=FilePath(), help="Table of precision over recall.")
@overwrite_option
@click.option("--threshold", "thresholds", type=float, multiple=True, help="Several may be given.")
@click.option(
    "--sweep",
    is_flag=True,
    help="The paper's nine logit thresholds, -2 to 2, and the program's own, as well.",
)
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
    help="Also by plane, by angle to the beam, and by component.",
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
@spacing_option("Instead of the headers'.")
def evaluate(params: dict[str, Any]) -> int:
    """Score each PREDICTION (volume or folder; masks, logits, probabilities) against ground truth.

    Truth holds 1 membrane, 0 not, -1 not annotated (never counted). Names of ETSAM, MemBrain-seg and
    TARDIS are known; a prediction belongs to the truth whose run its name begins with.

    \b
    etsam evaluate masks/ -t truth/ -o scores.csv
    etsam evaluate TS_1_scores.mrc -t TS_1_membrane.mrc --sweep
    """
    from etsam.evaluate import EvaluateOptions
    from etsam.storage import with_own_name
    from etsam.tables import COLUMNS, check_table_path, csv_text, write_table

    pairings = _pairings(params)
    options = EvaluateOptions(
        thresholds=params["thresholds"],
        sweep=params["sweep"],
        kind=params["kind"],
        surface=params["surface"],
        tolerance=params["tolerance"],
        details=params["details"],
        min_component=params["min_component"],
        voxel_spacing=params["voxel_spacing"],
        resample=params["resample"],
    )
    output, curves = params["output"], params["curves"]
    if None not in (output, curves) and with_own_name(output) == with_own_name(curves):
        raise click.UsageError("--output and --curves are the same file")
    for path in (output, curves):
        check_table_path(path, [params["pairs"]], overwrite=params["overwrite"])
    rows, points, masks, failed = _evaluated(pairings, options)
    for option, given in (
        ("threshold", options.thresholds),
        ("sweep", options.sweep),
        ("curves", curves),
    ):
        if masks and given:
            report_warning(f"--{option} is for scores: {masks} of {len(pairings)} are masks")
    if rows and curves is not None:
        write_table(curves, points)
    if rows and output is None:
        click.echo(csv_text(COLUMNS, map(asdict, rows)), nl=False)
    elif rows:
        write_table(output, rows)
        click.echo(output)
    return EXIT_FAILED if failed else 0


def _evaluated(
    pairings: list[Pairing], options: EvaluateOptions
) -> tuple[list[Score], list[Score], int, int]:
    """Score what can be scored, a line for each that cannot.

    Returns rows of scores and of curves, how many predictions are masks, and how many failed.

    Nothing else is kept: a curve may have a million points, an error all that was read until then.
    """
    from etsam.evaluate import curve_rows
    from etsam.evaluate import evaluate as run_evaluation

    rows: list[Score] = []
    points: list[Score] = []
    failures: list[str] = []
    masks = 0
    for pairing in pairings:
        try:
            # a display of its own: bars of thousands would not fit a terminal
            with StageProgress() as progress:
                (found,) = run_evaluation([pairing], options, progress)
        except EXPECTED_ERRORS as error:
            failures.append(one_line(error))
            continue
        rows += found.rows
        points += curve_rows(found)
        masks += found.curve is None
        del found
    for failure in failures:
        report_error(failure)
    return rows, points, masks, len(failures)


def _pairings(params: dict[str, Any]) -> list[Pairing]:
    given = bool(params["predictions"]) and bool(params["truths"])
    if given == (params["pairs"] is not None):
        raise click.UsageError("give predictions and --truth, or --pairs")
    named = [name for name in ("dataset", "method", "stage") if params[name] is not None]
    if params["pairs"] is not None and named:
        raise click.UsageError(f"--{named[0]} and --pairs: make it a column of the table instead")

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

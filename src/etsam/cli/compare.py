"""``etsam compare``: means and paired tests of a table of scores."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from etsam.cli.command import VerbCommand, report_warning
from etsam.cli.options import files_argument, overwrite_option
from etsam.cli.paths import FilePath

if TYPE_CHECKING:
    from etsam.compare import Comparisons

at_option = click.option(
    "--at",
    multiple=True,
    metavar="METHOD=THRESHOLD",
    help="Threshold of a method that has several.  [default: the program's own]",
)


@click.command(cls=VerbCommand, short_help="Compare methods by their scores.")
@files_argument("tables", "TABLE...")
@click.option("--metric", "metrics", multiple=True, help="[default: dice, iou, precision, recall]")
@click.option("--method", "methods", multiple=True, help="[default: all, in the table's order]")
@at_option
@click.option(
    "-o",
    "--output",
    type=FilePath(dir_okay=False),
    help="Write the tests too, .csv or .json.",
)
@overwrite_option
def compare(params: dict[str, Any]) -> None:
    """Compare the methods in each TABLE of `etsam evaluate`: means, and a paired test of each pair.

    Paired t-test where the differences pass for normal (Shapiro-Wilk), else Wilcoxon's; * marks p
    below 0.05 over the number of pairs (Bonferroni), ** below 0.01, *** below 0.001.
    """
    from etsam.compare import TEST_COLUMNS
    from etsam.compare import compare as run_comparison
    from etsam.tables import check_table_path, read_scores, write_records

    check_table_path(params["output"], params["tables"], overwrite=params["overwrite"])
    rows = [row for path in params["tables"] for row in read_scores(path)]
    found = run_comparison(
        rows,
        metrics=params["metrics"],
        methods=params["methods"],
        thresholds=parse_thresholds(params["at"]),
    )
    _show(found)
    if params["output"] is not None:
        records = found.test_records()
        write_records(params["output"], list(TEST_COLUMNS), records)
        if not records:
            report_warning(
                f"{params['output']} holds no test: there is no pair of methods to compare"
            )


def parse_thresholds(texts: tuple[str, ...]) -> dict[str, float]:
    """Read METHOD=THRESHOLD options.

    Raises
    ------
    ValueError
        One of them reads otherwise.
    """
    result = {}
    for text in texts:
        method, equals, number = text.rpartition("=")
        try:
            result[method] = float(number)
        except ValueError:
            equals = ""
        if not equals or not method:
            raise ValueError(f"--at {text!r}: expected METHOD=THRESHOLD, as in ETSAM=-0.25")
    return result


def _show(found: Comparisons) -> None:
    width = max(len(name) for name in (*found.methods, "method"))
    for metric in found.metrics:
        click.echo(f"{metric}\n  {'method':<{width}}    n    mean      SD   95 % interval")
        for method in found.methods:
            s = found.summaries[method, metric]
            mean = f"{s.mean:8.4f}" if s.n else f"{'-':>8}"
            spread = f"{s.sd:8.4f}   {s.low:.4f} to {s.high:.4f}" if s.n > 1 else f"{'-':>8}   -"
            line = f"{s.n:5d}{mean}{spread}"
            click.echo(f"  {method:<{width}}{line}")
        for item in found.tests:
            if item.metric == metric:
                test = item.test
                name = f"{item.first} - {item.second}"
                effect = f", d = {test.effect:.2f}" if math.isfinite(test.effect) else ""
                click.echo(
                    f"  {name:<{2 * width + 3}}{test.difference.mean:+8.4f}  {test.test}, "
                    f"n = {test.n}, p = {test.p:.2g} {test.mark}{effect}"
                )
    if found.tests:
        click.echo(f"p is held against {found.tests[0].test.alpha:.4f} (Bonferroni)")

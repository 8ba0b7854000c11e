"""``etsam report``: a page to look at for each segmented tomogram, and an index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from etsam.cli.command import (
    EXPECTED_ERRORS,
    VerbCommand,
    one_line,
    refuse_same_targets,
    run_each,
)
from etsam.cli.options import files_argument, finite, overwrite_option, spacing_option
from etsam.cli.paths import FilePath
from etsam.cli.progress import StageProgress


@click.command(cls=VerbCommand, short_help="A page to look at, for one tomogram or many.")
@files_argument("tomograms", "TOMOGRAM...")
@click.option(
    "--results",
    type=FilePath(file_okay=False),
    help="Folder of the masks and logits.  [default: beside the tomogram]",
)
@click.option("--mask", type=FilePath(), help="A mask of another name.")
@click.option("--logits", type=FilePath(), help="Logits of another name.")
@click.option(
    "-o",
    "--output",
    type=FilePath(file_okay=False),
    help="Folder for the pages.  [default: beside the tomogram]",
)
@click.option(
    "--logit-threshold",
    "threshold",
    type=float,
    callback=finite,
    help="For logits.  [default: the one recorded beside the mask, else -0.25]",
)
@spacing_option()
@overwrite_option
def report(params: dict[str, Any]) -> int:
    """Write TS_001_report.html for each segmented TOMOGRAM, and index.html for several.

    A page is one file that needs no network: slices with the mask and a threshold to move, sections, surface,
    numbers, what to look at twice, and how it was made.
    """
    from etsam.storage import each_once

    tomograms = each_once(params["tomograms"])
    if len(tomograms) > 1 and (params["mask"] or params["logits"]):
        raise ValueError("--mask and --logits go with one tomogram: use --results for several")

    from etsam.report import (
        ReportOptions,
        check_index,
        failed_row,
        kept_row,
        page_path,
        report_file,
        write_index,
    )
    from etsam.report.page import IndexRow
    from etsam.volume import whole_volume

    options = ReportOptions(**{key: params[key] for key in params if key != "tomograms"})
    refuse_same_targets(tomograms, lambda path: page_path(path, options.output))
    index_folder = options.output or whole_volume(tomograms[0]).parent
    if len(tomograms) > 1:
        check_index(index_folder, overwrite=options.overwrite)
    rows: list[IndexRow] = []
    failed: list[IndexRow] = []

    def run(path: Path) -> None:
        try:
            with StageProgress(unit="steps") as progress:
                rows.append(report_file(path, options, progress))
        except FileExistsError:
            rows.append(kept_row(path, options))
            raise
        except EXPECTED_ERRORS as error:
            failed.append(failed_row(path, options, one_line(error)))
            raise
        click.echo(page_path(path, options.output))

    code = run_each(tomograms, run)
    if len(tomograms) > 1 and rows:
        rows += failed
        click.echo(write_index(rows, index_folder, overwrite=options.overwrite))
    return code

"""``etsam postprocess``: clean membrane masks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from etsam.cli.command import (
    VerbCommand,
    check_output,
    check_output_name,
    refuse_same_targets,
    run_each,
)
from etsam.cli.options import cleaning_options, files_argument, overwrite_option
from etsam.cli.paths import FilePath
from etsam.cli.progress import StageProgress


@click.command(cls=VerbCommand, short_help="Clean membrane masks.")
@files_argument("masks", "MASK...")
@click.option(
    "-o",
    "--output",
    type=FilePath(),
    help="Folder for the results, or the result's file.  [default: beside the mask]",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=min(4, os.cpu_count() or 1),
    show_default="one a core, at most 4",
    help="Processes for large masks.",
)
@overwrite_option
@cleaning_options
def postprocess(params: dict[str, Any]) -> int:
    """Clean each membrane MASK: cut rungs between parallel membranes, drop small blobs.

    TS_001_membrane.mrc gives TS_001_membrane_postprocessed.mrc with the same geometry.
    """
    from etsam.postprocess import SUFFIX, CleaningOptions
    from etsam.postprocess import postprocess as clean
    from etsam.provenance import record_path
    from etsam.storage import each_once
    from etsam.volume import output_path

    masks, output = each_once(params["masks"]), params["output"]
    check_output_name(output)
    refuse_same_targets(masks, lambda mask: record_path(output_path(mask, SUFFIX, output)))
    check_output(masks, output)

    options = CleaningOptions(params["min_slices"], params["max_rung"], params["max_spur"])

    def run(path: Path) -> None:
        with StageProgress() as progress:
            result = clean(
                path,
                output,
                options,
                overwrite=params["overwrite"],
                workers=params["workers"],
                progress=progress,
            )
        click.echo(result.path)

    return run_each(masks, run)

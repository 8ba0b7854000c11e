"""``etsam baseline``: segment without a network, to compare with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from etsam.cli.command import VerbCommand, check_output, run_each
from etsam.cli.options import finite, overwrite_option
from etsam.cli.progress import StageProgress


@click.command(cls=VerbCommand, short_help="Segment with a classical ridge filter.")
@click.argument(
    "tomograms", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="TOMOGRAM..."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the results.  [default: beside the tomogram]",
)
@overwrite_option
@click.option("--store-logits", is_flag=True, help="Keep the scores too, as float32.")
@click.option("--logit-threshold", type=float, default=0.0, show_default=True, callback=finite)
@click.option("--invert", is_flag=True, help="Membranes are bright in this tomogram.")
@click.option(
    "--voxel-spacing", type=float, callback=finite, metavar="Å", help="Instead of the header's."
)
def baseline(params: dict[str, Any]) -> int:
    """Find membranes as sheets of extreme curvature whose neighbours agree (after TomoSegMemTV).

    TS_001.mrc gives TS_001_ridge.mrc and a JSON. A baseline to hold other methods against; it knows
    nothing but three numbers fitted on simulated tomograms.
    """
    check_output(params["tomograms"], params["output"])

    from etsam.baseline import baseline as run_baseline
    from etsam.baselines.ridge import RidgeOptions

    options = RidgeOptions(invert=params["invert"], voxel_spacing=params["voxel_spacing"])

    def run(path: Path) -> None:
        with StageProgress() as progress:
            result = run_baseline(
                path,
                params["output"],
                options=options,
                threshold=params["logit_threshold"],
                store_logits=params["store_logits"],
                overwrite=params["overwrite"],
                progress=progress,
            )
        click.echo(result.mask)

    return run_each(params["tomograms"], run)

"""``etsam baseline``: segment with another method, to compare with."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from etsam.cli.command import VerbCommand, check_output, refuse_same_targets, run_each
from etsam.cli.options import files_argument, finite, overwrite_option, spacing_option
from etsam.cli.paths import FilePath
from etsam.cli.progress import StageProgress

if TYPE_CHECKING:
    from etsam.baselines.programs import ProgramOptions
    from etsam.baselines.ridge import RidgeOptions


METHODS = ("ridge", "membrain-seg", "tardis")


@click.command(cls=VerbCommand, short_help="Segment with another method, to compare with.")
@files_argument("tomograms", "TOMOGRAM...")
@click.option(
    "-o",
    "--output",
    type=FilePath(file_okay=False),
    help="Folder for the results.  [default: beside the tomogram]",
)
@click.option("--method", type=click.Choice(METHODS), default=METHODS[0], show_default=True)
@click.option(
    "--weights",
    type=FilePath(dir_okay=False),
    help="Checkpoint of MemBrain-seg (needed) or TARDIS (else it fetches its own).",
)
@click.option(
    "--program",
    type=FilePath(dir_okay=False),
    help="Command of the other program, as ENV/bin/membrain.  [default: from PATH]",
)
@click.option(
    "--extra", default="", metavar="'ARGUMENTS'", help="More arguments for the other program."
)
@overwrite_option
@click.option("--store-logits", "--store-scores", is_flag=True, help="Keep the scores too.")
@click.option(
    "--logit-threshold",
    "--threshold",
    "threshold",
    type=float,
    callback=finite,
    help="Larger scores are membrane.  [default: 0; TARDIS 0.25]",
)
@click.option("--invert", is_flag=True, help="Membranes are bright in this tomogram.")
@spacing_option()
def baseline(params: dict[str, Any]) -> int:
    """Find membranes with another method: a ridge filter, or MemBrain-seg or TARDIS if installed.

    The ridge filter (after TomoSegMemTV) needs nothing. The other two are run by their own command
    lines, in environments of their own. Names and geometry of the results are such that `etsam
    evaluate` and `etsam figures` take them.

    \b
    etsam baseline TS_001.mrc
    etsam baseline TS_001.mrc --method membrain-seg --weights MemBrain_seg_v10_alpha.ckpt
    etsam baseline TS_001.mrc --method tardis --program tardis/bin/tardis_mem --extra '--device cpu'
    """
    from etsam.baseline import baseline as run_baseline
    from etsam.baseline import result_names
    from etsam.storage import each_once

    tomograms = each_once(params["tomograms"])
    options, output, scores = _options(params), params["output"], params["store_logits"]
    refuse_same_targets(
        tomograms, lambda path: result_names(path, output, options, scores).provenance
    )
    check_output(tomograms, output)

    def run(path: Path) -> None:
        with StageProgress() as progress:
            result = run_baseline(
                path,
                output,
                options=options,
                threshold=params["threshold"],
                store_scores=scores,
                overwrite=params["overwrite"],
                progress=progress,
            )
        click.echo(result.mask)

    return run_each(tomograms, run)


def _options(params: dict[str, Any]) -> RidgeOptions | ProgramOptions:
    """What the chosen method is told."""
    from etsam.baselines.programs import MEMBRAIN, TARDIS, ProgramOptions
    from etsam.baselines.ridge import RidgeOptions

    method, spacing = params["method"], params["voxel_spacing"]
    if method == METHODS[0]:
        for name in ("weights", "program", "extra"):
            if params[name]:
                raise click.UsageError(f"--{name} is for --method membrain-seg or tardis")
        return RidgeOptions(invert=params["invert"], voxel_spacing=spacing)
    return ProgramOptions(
        MEMBRAIN if method == MEMBRAIN.name else TARDIS,
        weights=params["weights"],
        executable=params["program"],
        extra=_words(params["extra"]),
        invert=params["invert"],
        voxel_spacing=spacing,
    )


def _words(text: str) -> tuple[str, ...]:
    """Arguments as a shell would part them."""
    try:
        return tuple(shlex.split(text))
    except ValueError as wrong:
        reason = str(wrong).lower()
        raise click.UsageError(f"--extra {text!r} cannot be read as arguments: {reason}") from None

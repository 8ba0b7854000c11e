"""``etsam simulate``: tomograms with exact membrane masks."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from etsam.cli.command import VerbCommand
from etsam.cli.options import finite, overwrite_option, parse_triple, spacing_option
from etsam.cli.paths import FilePath
from etsam.options import is_whole, quoted

MAX_SEEDS = 1_000_000
PRESETS = ["any", "vesicles", "organelle", "cell", "virus", "polnet", "empty"]


@click.command(cls=VerbCommand, short_help="Make tomograms with exact masks.")
@click.argument("folder", type=FilePath(file_okay=False))
@click.option("--seeds", default="0", show_default=True, help="One, or FIRST:LAST without LAST.")
@click.option("--shape", default="64,256,256", show_default=True, help="Z,Y,X in voxels.")
@click.option("--preset", type=click.Choice(PRESETS), default="any", show_default=True)
@spacing_option("[default: drawn]")
@click.option(
    "--contrast-to-noise",
    type=float,
    callback=finite,
    help="Membrane over noise, per voxel.  [default: drawn]",
)
@click.option("--bright/--dark", "bright_membranes", default=None, help="[default: drawn]")
@click.option("--views", type=click.IntRange(2, 1000), help="In the tilt series.  [default: drawn]")
@click.option("--suite", is_flag=True, help="The held-out suite instead; never train on it.")
@click.option(
    "--shapes",
    type=FilePath(file_okay=False, exists=True),
    help="Folder of segmentations (.npz) for the suite's real shapes.",
)
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True)
@overwrite_option
def simulate(params: dict[str, Any]) -> None:
    """Write simulated tomograms with their membrane masks into FOLDER.

    Seed 7 gives sim_000007.mrc, sim_000007_membrane.mrc (1 membrane, 0 not, -1 hidden by the missing
    wedge) and sim_000007.json; the same seed gives the same tomogram. What is there already is kept if
    shape and options are the same, and refused if they are not.
    """
    if params["suite"]:
        _refuse_beside_suite(params)
    elif params["shapes"] is not None:
        raise click.UsageError("--shapes are the suite's: give --suite too, or leave them out")
    seeds = _seeds(params["seeds"])
    shape = parse_triple(params["shape"], "--shape")

    from etsam.simulate import simulate_many, simulate_suite
    from etsam.simulation.recipe import SimulationOptions

    if params["suite"]:
        for path in simulate_suite(params["folder"], params["shapes"], params["overwrite"]):
            click.echo(path)
        return
    options = SimulationOptions(
        preset=params["preset"],
        voxel_spacing=params["voxel_spacing"],
        contrast_to_noise=params["contrast_to_noise"],
        bright_membranes=params["bright_membranes"],
        views=params["views"],
    )
    workers, overwrite = params["workers"], params["overwrite"]
    for path in simulate_many(params["folder"], seeds, shape, workers, options, overwrite):
        click.echo(path)


def _refuse_beside_suite(params: dict[str, Any]) -> None:
    """Refuse options that the suite, always the same, would not heed."""
    context = click.get_current_context()
    heeded = ("folder", "suite", "shapes", "overwrite")
    for name in sorted(set(params) - set(heeded)):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = next(p.opts[0] for p in context.command.params if p.name == name)
            raise click.UsageError(f"--suite is always the same: leave {option} out")


def _seeds(text: str) -> range:
    first, colon, last = text.partition(":")
    if not is_whole(first) or (colon and not is_whole(last)):
        raise ValueError(
            f"--seeds is {quoted(text)}: expected a number, or FIRST:LAST such as 0:10"
        )
    seeds = range(int(first), int(last) if colon else int(first) + 1)
    if not 0 < seeds.stop - seeds.start <= MAX_SEEDS:
        raise ValueError(f"--seeds is {text!r}: expected 1 to {MAX_SEEDS:,} seeds, such as 0:10")
    return seeds

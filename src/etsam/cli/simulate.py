"""``etsam simulate``: tomograms with exact membrane masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from etsam.cli.command import VerbCommand
from etsam.cli.options import parse_triple

PRESETS = ["any", "vesicles", "organelle", "cell", "virus", "polnet", "empty"]


@click.command(cls=VerbCommand, short_help="Make tomograms with exact masks.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--seeds", default="0", show_default=True, help="One, or FIRST:LAST without LAST.")
@click.option("--shape", default="64,256,256", show_default=True, help="Z,Y,X in voxels.")
@click.option("--preset", type=click.Choice(PRESETS), default="any", show_default=True)
@click.option("--voxel-spacing", type=float, metavar="Å", help="[default: drawn]")
@click.option(
    "--contrast-to-noise", type=float, help="Membrane over noise, per voxel.  [default: drawn]"
)
@click.option("--bright/--dark", "bright_membranes", default=None, help="[default: drawn]")
@click.option("--views", type=click.IntRange(min=2), help="In the tilt series.  [default: drawn]")
@click.option("--suite", is_flag=True, help="The held-out suite instead; never train on it.")
@click.option(
    "--shapes",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of segmentations (.npz) for the suite's real shapes.",
)
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True)
def simulate(params: dict[str, Any]) -> None:
    """Write simulated tomograms with their membrane masks into FOLDER.

    Each seed gives sim_SEED.mrc, sim_SEED_membrane.mrc (1 membrane, 0 not, -1 hidden by the missing
    wedge) and sim_SEED.json; the same seed gives the same tomogram. What is there already is kept.
    """
    seeds = _seeds(params["seeds"])
    shape = parse_triple(params["shape"], "--shape")

    from etsam.simulate import simulate_many, simulate_suite
    from etsam.simulation.recipe import SimulationOptions

    if params["suite"]:
        for path in simulate_suite(params["folder"], params["shapes"]):
            click.echo(path)
        return
    options = SimulationOptions(
        preset=params["preset"],
        voxel_spacing=params["voxel_spacing"],
        contrast_to_noise=params["contrast_to_noise"],
        bright_membranes=params["bright_membranes"],
        views=params["views"],
    )
    for path in simulate_many(params["folder"], seeds, shape, params["workers"], options):
        click.echo(path)


def _seeds(text: str) -> range:
    first, colon, last = text.partition(":")
    if not first.isdigit() or (colon and not last.isdigit()):
        raise ValueError(f"--seeds is {text!r}: expected a number, or FIRST:LAST such as 0:10")
    return range(int(first), int(last) if colon else int(first) + 1)

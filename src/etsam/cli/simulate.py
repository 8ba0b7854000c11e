"""``etsam simulate``: tomograms with exact membrane masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from etsam.cli.command import VerbCommand, report_warning
from etsam.cli.options import (
    Command,
    finite,
    overwrite_option,
    parse_triple,
    plausible,
    spacing_option,
    with_options,
)
from etsam.cli.paths import FilePath
from etsam.options import is_whole, quoted

if TYPE_CHECKING:
    from etsam.simulation.segmentations import RealShape

MAX_SEEDS = 1_000_000
PRESETS = ["any", "vesicles", "organelle", "cell", "virus", "polnet", "empty"]


def map_option(name: str, told: str) -> Callable[[Command], Command]:
    """Density maps of proteins."""
    kind = FilePath(exists=True, dir_okay=False)
    return click.option(name, type=kind, multiple=True, metavar="MAP", help=told)


def sample_options(command: Command) -> Command:
    """Add what a user supplies to the sample."""
    options = (
        map_option("--proteins", "Density map (MRC) in place of made-up soluble proteins; repeat."),
        map_option("--membrane-proteins", "Map along z, the membrane in its middle; repeat."),
        click.option(
            "--spikes",
            type=float,
            callback=finite,
            help="Ectodomains on membranes, 0 none, 1 dense.  [default: drawn]",
        ),
        click.option(
            "--segmentation",
            type=FilePath(exists=True),
            help="One whose membranes are added (MRC, or .npz with `labels`); see --preset empty.",
        ),
        click.option(
            "--segmentation-spacing",
            type=float,
            callback=plausible,
            metavar="Å",
            help="Instead of the header's; .npz has none.",
        ),
        click.option(
            "--segmentation-labels",
            default="1",
            show_default=True,
            metavar="N,...",
            help="Numbers that are membrane in it.",
        ),
    )
    return with_options(command, options)


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
@sample_options
@click.option("--dtype", type=click.Choice(["int8", "float32"]), default="int8", show_default=True)
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
    simple = ("preset", "voxel_spacing", "contrast_to_noise", "bright_membranes", "views")
    given = {name: params[name] for name in (*simple, "spikes", "dtype")}
    options = SimulationOptions(
        **given,
        proteins=tuple(str(path.resolve()) for path in params["proteins"]),
        membrane_proteins=tuple(str(path.resolve()) for path in params["membrane_proteins"]),
        shapes=_shapes(params),
    )
    if options.preset == "empty" and not options.shapes:
        for name in ("spikes", "membrane_proteins"):
            if getattr(options, name):
                idle = f"--{name.replace('_', '-')}"
                report_warning(f"{idle} plays no role: --preset empty has no membranes")
    workers, overwrite = params["workers"], params["overwrite"]
    for path in simulate_many(params["folder"], seeds, shape, workers, options, overwrite):
        click.echo(path)


def _shapes(params: dict[str, Any]) -> tuple[RealShape, ...]:
    """The segmentation that is given, read once so that a bad one is refused early."""
    if params["segmentation"] is None:
        context = click.get_current_context()
        for name in ("segmentation_spacing", "segmentation_labels"):
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise click.UsageError(
                    f"--{name.replace('_', '-')} is of a --segmentation: give it too"
                )
        return ()

    from etsam.simulation.segmentations import real_shape

    labels = params["segmentation_labels"].split(",")
    if not all(is_whole(label) for label in labels):
        raise ValueError(
            f"--segmentation-labels is {quoted(params['segmentation_labels'])}: expected whole "
            "numbers, such as 1 or 1,2"
        )
    numbers = tuple(int(label) for label in labels)
    return (real_shape(params["segmentation"], params["segmentation_spacing"], numbers),)


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

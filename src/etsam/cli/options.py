"""Options that several subcommands take."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from etsam.cli.paths import FilePath
from etsam.options import LARGEST, is_whole, quoted
from etsam.patterns import is_pattern, matching

Command = Callable[..., Any]
Numbers = TypeVar("Numbers", float, tuple[float, ...], None)

overwrite_option = click.option(
    "--overwrite", is_flag=True, help="Replace results that are there already."
)

min_slices_option = click.option(
    "--min-slices",
    "--post-process-min-slices",
    "min_slices",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Post-processing drops blobs that span fewer slices; 0 keeps all.",
)


def files_argument(
    name: str, metavar: str | None = None, *, kind: click.Path | None = None, required: bool = True
) -> Callable[[Command], Command]:
    """Files or folders, as many as are given, by their names or by patterns."""
    return click.argument(
        name,
        nargs=-1,
        required=required,
        type=kind or FilePath(),
        metavar=metavar,
        callback=_matched,
    )


def _matched(
    ctx: click.Context, param: click.Parameter, value: tuple[Path, ...]
) -> tuple[Path, ...]:
    """Put what they match in the place of patterns; refuse one that matches nothing."""
    found: list[Path] = []
    for path in value:
        if not is_pattern(path):
            found.append(path)
        elif matches := matching(path):
            found += [param.type(str(match), param, ctx) for match in matches]
        else:
            raise click.BadParameter(f"no file matches {path}", ctx, param)
    return tuple(found)


def finite(ctx: click.Context, param: click.Parameter, value: Numbers) -> Numbers:
    """Refuse nan and inf, which click takes for numbers, and what float32 has no room to compute with."""
    for number in value if isinstance(value, tuple) else (value,):
        if number is not None and not math.isfinite(number):
            raise click.BadParameter(f"{number} is not a finite number", ctx, param)
        if number is not None and abs(number) > LARGEST:
            text = f"{number:g} is out of range: expected {-LARGEST:g} to {LARGEST:g}"
            raise click.BadParameter(text, ctx, param)
    return value


def plausible(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    """Refuse a voxel spacing that no tomogram has, before anything is begun."""
    if value is None:
        return None

    from etsam.storage import check_spacing

    try:
        check_spacing(finite(ctx, param, value))
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None
    return value


def with_options(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    """Add options, listed in its help in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def spacing_option(told: str = "Instead of the header's.") -> Callable[[Command], Command]:
    """A voxel size in Å, with what its help says."""
    return click.option("--voxel-spacing", type=float, callback=plausible, metavar="Å", help=told)


def _known_part(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Refuse a part that there is not, before anything is looked for."""
    if value is not None:
        from etsam.inputs import shard

        try:
            shard([], value)
        except ValueError as error:
            raise click.BadParameter(str(error), ctx, param) from None
    return value


def batch_options(command: Command) -> Command:
    """Add what matters for many tomograms."""
    options = (
        click.option(
            "--select",
            metavar="TYPE@SPACING",
            help="Only such tomograms of a copick project or of portal runs, e.g. wbp@10.012.",
        ),
        click.option(
            "--copick",
            is_flag=True,
            help="Write masks into their copick project, as segmentations.",
        ),
        click.option(
            "--resume",
            is_flag=True,
            help="Keep what is done, redo what changed, go on where a run was stopped.",
        ),
        click.option("--fail-fast", is_flag=True, help="Stop at the first tomogram that fails."),
        click.option(
            "--shard",
            metavar="i/N",
            callback=_known_part,
            help="Only the i-th of N parts, for job arrays.",
        ),
        click.option(
            "--manifest",
            type=FilePath(dir_okay=False),
            help="Record of the batch.  [default: etsam_manifest.jsonl in the results' folder]",
        ),
        click.option(
            "--engine",
            type=click.Choice(["local", "slurm", "pbs", "sge", "lsf"]),
            help="Work with several processes here, or with jobs on a cluster.",
        ),
        click.option(
            "--workers",
            type=click.IntRange(min=1),
            help="How many of them.  [default: one a GPU, else one]",
        ),
        click.option(
            "--engine-options",
            type=FilePath(dir_okay=False),
            metavar="TOML",
            help="Queue, memory, walltime and so on of the jobs.",
        ),
    )
    return with_options(command, options)


def cleaning_options(command: Command) -> Command:
    """Add the sizes that post-processing works with, under ETSAM's names too."""
    options = (
        min_slices_option,
        click.option(
            "--max-rung",
            "--post-process-max-bridge-len",
            "max_rung",
            type=click.IntRange(min=0),
            default=5,
            show_default=True,
            help="Cut rungs between parallel membranes up to this many pixels; 0 cuts none.",
        ),
        click.option(
            "--max-spur",
            "--post-process-max-spur-len",
            "max_spur",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="Cut free ends up to this many pixels; 0 cuts none.",
        ),
    )
    return with_options(command, options)


def parse_triple(text: str, name: str) -> tuple[int, int, int]:
    """Three whole numbers ``Z,Y,X``.

    Raises
    ------
    ValueError
        Anything else.
    """
    parts = text.split(",")
    if len(parts) != 3 or not all(is_whole(part.strip()) for part in parts):
        raise ValueError(
            f"{name} is {quoted(text)}: expected three whole numbers Z,Y,X, e.g. 64,256,256"
        )
    z, y, x = (int(part) for part in parts)
    return z, y, x

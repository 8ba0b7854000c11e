"""``etsam prepare``: pairs that train and evaluate read, from downloads and annotations."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import click

from etsam.cli.command import (
    EXIT_FAILED,
    EXPECTED_ERRORS,
    VerbCommand,
    one_line,
    report_error,
    report_warning,
)
from etsam.cli.options import files_argument, finite, overwrite_option, spacing_option
from etsam.cli.paths import FilePath
from etsam.cli.progress import StageProgress
from etsam.options import SIGNED_BYTES, Normalisation, is_whole, quoted

if TYPE_CHECKING:
    from etsam.annotations import Box, CleaningOptions
    from etsam.prepare import Prepared, PrepareOptions

SHOWN = 10  # components listed on stderr


@click.command(cls=VerbCommand, short_help="Make pairs to train on and to score against.")
@files_argument("inputs")
@click.option(
    "-o",
    "--output",
    required=True,
    type=FilePath(file_okay=False),
    help="Folder for NAME and NAME_membrane.",
)
@click.option(
    "--annotation", "annotations", multiple=True, type=FilePath(),
    help="Mask of the one tomogram that is given; several are joined.",
)  # fmt: skip
@click.option(
    "--values", default="", metavar="1,3", help="Labels that are membrane.  [default: all]"
)
@click.option(
    "--limit", type=FilePath(),
    help="Region where annotations count: a volume, or a folder of NAME_limit.",
)  # fmt: skip
@click.option("--box", metavar="Z:Z,Y:Y,X:X", help="The same as a box, in voxels, ends left out.")
@click.option(
    "--outside", type=click.Choice(["background", "ignore"]), default="background",
    show_default=True, help="What is outside the region: 0, or -1 (not annotated).",
)  # fmt: skip
@click.option(
    "--fill", type=click.IntRange(min=0), default=0, metavar="VOXELS", help="Fill holes up to this."
)
@click.option(
    "--smooth", type=click.FloatRange(0, 20), default=0.0, metavar="VOXELS", callback=finite,
    help="Standard deviation of a Gaussian.",
)  # fmt: skip
@click.option(
    "--min-voxels", type=click.IntRange(min=0), default=0, help="Drop smaller components."
)
@click.option("--keep", default="", metavar="1,2", help="Only these components; 1 the largest.")
@click.option("--drop", default="", metavar="4,7", help="Not these components.")
@click.option(
    "--choices", type=FilePath(dir_okay=False),
    help="CSV with columns name, keep, drop, for several tomograms.",
)  # fmt: skip
@click.option("--components", is_flag=True, help="Write their numbers too: NAME_components.")
@click.option(
    "--normalise", type=click.Choice(get_args(Normalisation)),
    help="Write tomograms as float32, scaled.  [default: as they are]",
)  # fmt: skip
@spacing_option("Of the tomograms, instead of their headers'.")
@click.option("--link", is_flag=True, help="Link to the tomograms instead of copying them.")
@click.option("--resume", is_flag=True, help="Keep pairs that are done as asked.")
@overwrite_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each pair.")
def prepare(params: dict[str, Any]) -> int:
    """Clean annotations and lay out tomograms as `etsam train` and `etsam evaluate` read them.

    INPUTS are folders: of NAME with NAME_membrane, of DATASET/RUN as `etsam download` or the
    CryoET Data Portal lay them out; or one tomogram with --annotation. Runs become DATASET_RUN.

    \b
    etsam prepare data/ -o pairs/ --min-voxels 200
    etsam prepare TS_1.mrc --annotation traced.mrc -o pairs/ --components
    etsam prepare TS_1.mrc --annotation traced.mrc -o pairs/ --drop 3,5 --overwrite
    """
    cleaning, choices = _cleaning(params), params["choices"]
    if choices is not None and (cleaning.keep or cleaning.drop):
        raise click.UsageError("--choices names the components: leave out --keep and --drop")

    from etsam.layout import find_inputs
    from etsam.predictions import UNCHANGED, unchanged_predictions
    from etsam.prepare import PrepareOptions
    from etsam.prepare import prepare as run_prepare
    from etsam.tables import read_choices

    pairs = find_inputs(params["inputs"], params["annotations"])
    if len(pairs) > 1 and (cleaning.keep or cleaning.drop):
        raise click.UsageError(
            f"--keep and --drop are of one tomogram, not {len(pairs)}: --choices"
        )
    table = {} if choices is None else read_choices(choices)
    unknown = sorted(set(table) - {pair.name for pair in pairs})
    if unknown:
        raise ValueError(f"{choices} names {unknown[0]}, which is not among the tomograms")
    asked = ("limit", "normalise", "voxel_spacing", "link", "components", "resume", "overwrite")
    if made := unchanged_predictions(mask for pair in pairs for mask in pair.masks):
        report_warning(f"{len(made)} masks ({made[0]}, ...) are {UNCHANGED}")
    options = PrepareOptions(cleaning, **{name: params[name] for name in asked})
    failed = 0
    for pair in pairs:
        keep, drop = table.get(pair.name, (cleaning.keep, cleaning.drop))
        try:
            with StageProgress() as progress:
                done = run_prepare(pair, params["output"], _with(options, keep, drop), progress)
        except EXPECTED_ERRORS as error:
            failed += 1
            report_error(f"{pair.name}: {one_line(error)}")
        else:
            _show(done, params["as_json"])
    return EXIT_FAILED if failed else 0


def _cleaning(params: dict[str, Any]) -> CleaningOptions:
    from etsam.annotations import CleaningOptions

    return CleaningOptions(
        values=_numbers(params["values"], "--values"),
        box=None if params["box"] is None else _box(params["box"]),
        outside=params["outside"],
        fill=params["fill"],
        smooth=params["smooth"],
        min_voxels=params["min_voxels"],
        keep=_numbers(params["keep"], "--keep"),
        drop=_numbers(params["drop"], "--drop"),
    )


def _with(options: PrepareOptions, keep: tuple[int, ...], drop: tuple[int, ...]) -> PrepareOptions:
    return replace(options, cleaning=replace(options.cleaning, keep=keep, drop=drop))


def _numbers(text: str, name: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")] if text else []
    if not all(is_whole(word) and int(word) for word in words):
        raise ValueError(f"{name} is {quoted(text)}: expected numbers from 1 on, such as 1,4,7")
    return tuple(int(word) for word in words)


def _box(text: str) -> Box:
    sides = [side.split(":") for side in text.split(",")]
    good = len(sides) == 3 and all(
        len(side) == 2 and all(not end or is_whole(end) for end in side) for side in sides
    )
    if not good:
        raise ValueError(
            f"--box is {quoted(text)}: expected Z:Z,Y:Y,X:X in voxels, as in 20:180,:,100:900"
        )
    z, y, x = (slice(*(int(end) if end else None for end in side)) for side in sides)
    return z, y, x


def _show(done: Prepared, as_json: bool) -> None:
    if as_json:
        click.echo(done.json())
        return
    for path in (done.tomogram, done.mask, done.components):
        if path is not None:
            click.echo(path)
    found = done.details["results"]
    if done.reused:
        click.echo(f"etsam: {done.name} was done before", err=True)
    elif found:
        click.echo(
            f"etsam: {done.name}: {found['voxels_before']:,} voxels of membrane, "
            f"{found['voxels_after']:,} after; {found['components_kept']} of "
            f"{found['components_found']} components kept",
            err=True,
        )
        if not found["voxels_before"] and not done.details["parameters"]["cleaning"]["values"]:
            report_warning(
                f"{done.name}: no voxel of the annotation is membrane (1): {SIGNED_BYTES}, not annotated"
            )
        if done.components is not None:
            _list_components(found)


def _list_components(found: dict[str, Any]) -> None:
    for item in found["components"][:SHOWN]:
        first, last = item["slices"]
        note = "" if item["kept"] else "  dropped"
        line = f"{item['number']:6d}  {item['voxels']:>12,} voxels  z {first} to {last}{note}"
        click.echo(line, err=True)
    more = found["components_found"] - SHOWN
    if more > 0:
        click.echo(f"etsam: and {more} smaller ones: see the JSON", err=True)

"""``etsam figures``: draw scores, costs, slices and surfaces."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from etsam.cli.command import VerbCommand
from etsam.cli.compare import at_option, parse_thresholds
from etsam.cli.options import files_argument, finite, overwrite_option, spacing_option
from etsam.cli.paths import FilePath

if TYPE_CHECKING:
    from etsam.drawing import Saving

FORMATS = ("pdf", "png", "svg")
OTHER_FORMATS = ("tif", "tiff", "jpg", "jpeg", "eps", "ps", "gif", "bmp", "webp")
USUAL_FORMATS = ("pdf", "png")

format_option = click.option(
    "--format",
    "formats",
    type=click.Choice(FORMATS),
    multiple=True,
    help="[default: pdf and png, or what the output's name ends with]",
)

masks_option = click.option(
    "-m",
    "--mask",
    "masks",
    multiple=True,
    metavar="[NAME=]FILE",
    help="Mask or scores of a method.",
)
slices_option = click.option(
    "-z", "--slice", "slices", type=int, multiple=True, help="[default: three]"
)


def output_option(name: str) -> Callable[..., Any]:
    """Where a single figure goes: under a name, or under its own one in a folder that is there."""

    def named(_context: click.Context, _parameter: click.Parameter, given: Path) -> Path:
        return given / name if given.is_dir() else given

    return click.option(
        "-o",
        "--output",
        type=FilePath(),
        default=Path("figures") / name,
        show_default=True,
        callback=named,
        help="Name with or without file type, or a folder that is there.",
    )


@click.group()
def figures() -> None:
    """Draw figures of print size from tables of scores and from volumes."""


@figures.command(cls=VerbCommand)
@files_argument("tables", "TABLE...")
@click.option("--curves", multiple=True, type=FilePath(), help="Also PR curves.")
@click.option("--metric", "metrics", multiple=True, help="[default: what the table has]")
@click.option("--method", "methods", multiple=True, help="[default: all, in the table's order]")
@at_option
@click.option(
    "-o", "--output", type=FilePath(file_okay=False), default=Path("figures"),
    show_default=True, help="Folder.",
)  # fmt: skip
@format_option
@overwrite_option
def scores(params: dict[str, Any]) -> None:
    """Draw boxes with significance brackets, bars per tomogram, threshold sweeps and PR curves."""
    _require_matplotlib()
    from etsam.drawing import Saving
    from etsam.figures import figures as draw
    from etsam.tables import read_scores, read_table

    files = draw(
        [row for path in params["tables"] for row in read_scores(path)],
        params["output"],
        curves=[row for path in params["curves"] for row in read_table(path)],
        metrics=params["metrics"],
        methods=params["methods"],
        thresholds=parse_thresholds(params["at"]),
        saving=Saving(params["formats"] or USUAL_FORMATS, params["overwrite"]),
    )
    _show(files)


@figures.command(cls=VerbCommand)
@click.argument("tomogram", type=FilePath())
@click.option("-t", "--truth", type=FilePath())
@masks_option
@slices_option
@spacing_option("Instead of the headers'.")
@output_option("slices")
@format_option
@overwrite_option
def slices(params: dict[str, Any]) -> None:
    """Draw slices of TOMOGRAM beside ground truth and masks, right and wrong in colour."""
    _require_matplotlib()
    from etsam.figures import slice_figure

    output, saving = _output(params)
    files = slice_figure(
        params["tomogram"],
        [_named(text) for text in params["masks"]],
        output,
        truth=params["truth"],
        slices=params["slices"],
        voxel_spacing=params["voxel_spacing"],
        saving=saving,
    )
    _show(files)


@figures.command(cls=VerbCommand)
@click.argument("tomogram", type=FilePath())
@click.argument("before", type=FilePath())
@click.argument("after", type=FilePath())
@slices_option
@spacing_option("Instead of the headers'.")
@output_option("cleaning")
@format_option
@overwrite_option
def cleaning(params: dict[str, Any]) -> None:
    """Draw slices of TOMOGRAM with what post-processing kept, removed and added between two masks."""
    _require_matplotlib()
    from etsam.figures import cleaning_figure

    output, saving = _output(params)
    files = cleaning_figure(
        params["tomogram"],
        (params["before"], params["after"]),
        output,
        slices=params["slices"],
        voxel_spacing=params["voxel_spacing"],
        saving=saving,
    )
    _show(files)


@figures.command(cls=VerbCommand)
@click.argument("truth", type=FilePath())
@masks_option
@click.option("--elevation", type=float, default=30.0, show_default=True, callback=finite)
@click.option("--azimuth", type=float, default=-60.0, show_default=True, callback=finite)
@click.option("--cutaway", is_flag=True, help="Leave out what lies in front of the middle.")
@spacing_option("Instead of the headers'.")
@output_option("surfaces")
@format_option
@overwrite_option
def surfaces(params: dict[str, Any]) -> None:
    """Draw the surface of TRUTH beside that of each mask in 3-D, right and wrong in colour."""
    _require_matplotlib()
    from etsam.figures import surface_figure
    from etsam.scenes import View

    output, saving = _output(params)
    files = surface_figure(
        params["truth"],
        [_named(text) for text in params["masks"]],
        output,
        view=View(params["elevation"], params["azimuth"], params["cutaway"]),
        voxel_spacing=params["voxel_spacing"],
        saving=saving,
    )
    _show(files)


@figures.command(cls=VerbCommand)
@files_argument("places", "FOLDER|TABLE...")
@click.option("--method", "methods", multiple=True, help="[default: all, in the order found]")
@output_option("costs")
@format_option
@overwrite_option
def costs(params: dict[str, Any]) -> None:
    """Draw time, memory and GPU memory of each method, from the JSON files beside results or a table."""
    _require_matplotlib()
    from etsam.figures import cost_figure

    output, saving = _output(params)
    _show(cost_figure(params["places"], output, methods=params["methods"], saving=saving))


@figures.command(cls=VerbCommand)
@click.argument("table", type=FilePath())
@click.option("--before", required=True, metavar="METHOD[@THRESHOLD]")
@click.option("--after", required=True, metavar="METHOD[@THRESHOLD]")
@click.option("--metric", "metrics", multiple=True, help="[default: Dice, IoU, precision, recall]")
@output_option("change")
@format_option
@overwrite_option
def change(params: dict[str, Any]) -> None:
    """Draw the scores of a method before and after, as of post-processing, and the change."""
    _require_matplotlib()
    from etsam.figures import change_figure
    from etsam.tables import read_scores

    output, saving = _output(params)
    names, metrics = (params["before"], params["after"]), params["metrics"]
    rows = read_scores(params["table"])
    _show(change_figure(rows, names, output, metrics=metrics, saving=saving))


@figures.command(cls=VerbCommand)
@click.argument("table", type=FilePath())
@click.option("--metric", "metrics", multiple=True, default=("dice",), show_default=True)
@output_option("ablation")
@format_option
@overwrite_option
def ablation(params: dict[str, Any]) -> None:
    """Draw a table of means: every method and stage of TABLE at every threshold; also as Markdown."""
    _require_matplotlib()
    from etsam.figures import ablation_figure
    from etsam.tables import read_scores

    output, saving = _output(params)
    rows = read_scores(params["table"])
    _show(ablation_figure(rows, output, metrics=params["metrics"], saving=saving))


def _show(files: Sequence[Path]) -> None:
    for path in files:
        click.echo(path)


def _output(params: dict[str, Any]) -> tuple[Path, Saving]:
    """Return the name without its file type, and how to save what is drawn.

    Raises
    ------
    ValueError
        The name ends with another type than --format says, or one that is not written.
    """
    from etsam.drawing import Saving

    output, formats, overwrite = params["output"], params["formats"], params["overwrite"]
    kind = output.suffix[1:].lower()
    if kind in OTHER_FORMATS:
        raise ValueError(f"-o {output}: figures are written as {', '.join(FORMATS)}, not as {kind}")
    if kind not in FORMATS:
        return output, Saving(formats or USUAL_FORMATS, overwrite)
    if formats and set(formats) != {kind}:
        listed = " and ".join(formats)
        raise ValueError(f"-o {output} ends with {kind}, --format says {listed}: leave one out")
    return output.with_suffix(""), Saving((kind,), overwrite)


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if Path(text).exists():  # its name has an =
        return Path(text).stem, Path(text)
    return (name, Path(path)) if equals and name else (Path(text).stem, Path(text))


def _require_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError('figures need matplotlib: pip install "etsam[figures]"')

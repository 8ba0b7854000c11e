"""``etsam figures``: draw scores and slices."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import click

from etsam.cli.command import VerbCommand
from etsam.cli.compare import at_option, parse_thresholds

format_option = click.option(
    "--format",
    "formats",
    type=click.Choice(["pdf", "png", "svg"]),
    multiple=True,
    default=("pdf", "png"),
    show_default=True,
)


@click.group()
def figures() -> None:
    """Draw figures of print size from tables of scores and from volumes."""


@figures.command(cls=VerbCommand)
@click.argument(
    "tables", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="TABLE..."
)
@click.option("--curves", multiple=True, type=click.Path(path_type=Path), help="Also PR curves.")
@click.option("--metric", "metrics", multiple=True, help="[default: what the table has]")
@click.option("--method", "methods", multiple=True, help="[default: all, in the table's order]")
@at_option
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, file_okay=False), default=Path("figures"),
    show_default=True, help="Folder.",
)  # fmt: skip
@format_option
def scores(params: dict[str, Any]) -> None:
    """Draw boxes with significance brackets, bars per tomogram, threshold sweeps and PR curves."""
    _require_matplotlib()
    from etsam.figures import figures as draw
    from etsam.tables import read_table

    files = draw(
        [row for path in params["tables"] for row in read_table(path)],
        params["output"],
        curves=[row for path in params["curves"] for row in read_table(path)],
        metrics=params["metrics"],
        methods=params["methods"],
        thresholds=parse_thresholds(params["at"]),
        formats=params["formats"],
    )
    for path in files:
        click.echo(path)


@figures.command(cls=VerbCommand)
@click.argument("tomogram", type=click.Path(path_type=Path))
@click.option("-t", "--truth", type=click.Path(path_type=Path))
@click.option(
    "-m",
    "--mask",
    "masks",
    multiple=True,
    metavar="[NAME=]FILE",
    help="Mask or scores of a method.",
)
@click.option("-z", "--slice", "slices", type=int, multiple=True, help="[default: three]")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("slices"), show_default=True,
    help="Name without file type.",
)  # fmt: skip
@format_option
def slices(params: dict[str, Any]) -> None:
    """Draw slices of TOMOGRAM beside ground truth and masks, right and wrong in colour."""
    _require_matplotlib()
    from etsam.figures import slice_figure

    files = slice_figure(
        params["tomogram"],
        [_named(text) for text in params["masks"]],
        params["output"],
        truth=params["truth"],
        slices=params["slices"],
        formats=params["formats"],
    )
    for path in files:
        click.echo(path)


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    return (name, Path(path)) if equals and name else (Path(text).stem, Path(text))


def _require_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("figures need matplotlib: pip install 'etsam[figures]'")

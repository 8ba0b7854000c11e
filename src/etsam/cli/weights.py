"""``etsam weights``: which models there are, where they lie, and fetching them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from etsam.cli.command import VerbCommand
from etsam.cli.progress import StageProgress


@click.group()
def weights() -> None:
    """List, fetch and locate model weights."""


@weights.command("list")
def list_models() -> None:
    """List the weights by name, and whether they are on this machine."""
    from etsam.weights import DEFAULT_MODEL, MODELS, START_WEIGHTS, is_installed

    for name, model in MODELS.items():
        state = "here" if is_installed(model) else "not here"
        default = ", default" if name == DEFAULT_MODEL else ""
        click.echo(f"{name}  ({state}{default})  {model.about}")
    for name, start in START_WEIGHTS.items():
        state = "here" if start.path.is_file() else "not here"
        click.echo(f"{name}  ({state})  to start training from")


@weights.command(cls=VerbCommand)
@click.argument("name")
def fetch(params: dict[str, Any]) -> None:
    """Fetch the weights NAME into the cache, check them, and print where they are.

    Without a network, the message says which files to get and where to put them.
    """
    from etsam.weights import MODELS, START_WEIGHTS, fetch_start_weights, resolve_checkpoints

    name = params["name"]
    with StageProgress(unit="%") as progress:
        if name in START_WEIGHTS:
            paths = [fetch_start_weights(name, progress=progress.fraction)]
        elif name in MODELS:
            files = resolve_checkpoints(name, progress=progress.fraction)
            paths = [file.path for file in files]
            _check(paths)
        else:
            raise _unknown(name)
    for path in paths:
        click.echo(path)


def _check(paths: list[Path]) -> None:
    """Open checkpoints as `etsam segment` does: of those put there by hand there is no sum."""
    from etsam.sam2 import load_checkpoint

    for path in paths:
        load_checkpoint(path)


def _unknown(name: str) -> ValueError:
    from etsam.weights import MODELS, START_WEIGHTS

    known = ", ".join([*MODELS, *START_WEIGHTS])
    return ValueError(f"no weights {name!r}: expected one of {known}")


@weights.command()
@click.argument("name", required=False)
def where(name: str | None) -> None:
    """Print the folder that the weights NAME are in or go to, or that of the cache."""
    from etsam.weights import MODELS, START_WEIGHTS, cache_folder

    if name is None:
        click.echo(cache_folder())
    elif name in MODELS:
        click.echo(MODELS[name].folder)
    elif name in START_WEIGHTS:
        click.echo(START_WEIGHTS[name].path.parent)
    else:
        raise _unknown(name)

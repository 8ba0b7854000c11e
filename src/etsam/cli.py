"""The command ``etsam``."""

from __future__ import annotations

import click


@click.group()
@click.version_option(package_name="etsam")
def main() -> None:
    """Membranes in cryo-electron tomograms."""

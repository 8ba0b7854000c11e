"""``etsam export``: meshes, labels, points and other programs' folders from masks or logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from etsam.cli.command import (
    VerbCommand,
    check_output,
    is_chosen,
    refuse_same_targets,
    report_warning,
    run_each,
)
from etsam.cli.options import files_argument, finite, overwrite_option, spacing_option
from etsam.cli.paths import FilePath
from etsam.cli.progress import StageProgress
from etsam.options import LOGIT_THRESHOLD

FORMATS = [
    "ply",
    "stl",
    "obj",
    "glb",
    "vtp",
    "labels",
    "points",
    "midsurface",
    "membrain-pick",
    "morphometrics",
    "copick",
    "chimerax",
]
LABELLED = ("labels", "points", "midsurface", "membrain-pick", "morphometrics", "copick")
USED_BY = {
    "point_spacing": ("points",),
    "max_faces": ("ply", "stl", "obj", "glb", "vtp", "copick"),
    "min_voxels": LABELLED,
    "labelling": LABELLED,
}
"""Formats for which an option plays a role."""


@click.command(cls=VerbCommand, short_help="Meshes, labels and points for other programs.")
@files_argument("masks", "MASK...")
@click.option(
    "--as",
    "formats",
    type=click.Choice([*FORMATS, "all"]),
    multiple=True,
    default=("ply", "labels", "chimerax"),
    show_default=True,
    help="What to write; give it several times.",
)
@click.option("-o", "--output", type=FilePath(file_okay=False), help="Folder.")
@click.option(
    "--logit-threshold",
    "threshold",
    type=float,
    default=LOGIT_THRESHOLD,
    show_default=True,
    callback=finite,
    help="For logits: a voxel above is membrane.",
)
@click.option(
    "--separate",
    "labelling",
    flag_value="separate",
    default="separate",
    help="Tell touching membranes apart.  [default]",
)
@click.option(
    "--components",
    "labelling",
    flag_value="components",
    help="Take what hangs together as one membrane.",
)
@click.option(
    "--keep-labels",
    "labelling",
    flag_value="keep",
    help="Take the numbers that the mask holds, up to 32767.",
)
@click.option(
    "--min-voxels",
    type=click.IntRange(min=0),
    help="Of a label.  [default: 500, with --keep-labels 0]",
)
@click.option(
    "--max-faces", type=click.IntRange(min=100), default=500_000, show_default=True, help="A mesh."
)
@click.option(
    "--point-spacing",
    type=float,
    callback=finite,
    default=100.0,
    show_default=True,
    metavar="Å",
    help="Side of the cubes that get an oriented point each.",
)
@click.option(
    "--tomogram",
    type=FilePath(exists=True),
    help="The tomogram itself, for the ChimeraX script and surface_morphometrics.",
)
@spacing_option()
@overwrite_option
def export(params: dict[str, Any]) -> int:
    """Write meshes, labels, points or other programs' folders for each MASK (or logits).

    TS_001_membrane.mrc gives TS_001_membrane.ply in Å at the tomogram's place, TS_001_membrane_labels.mrc
    with one number per membrane and a table of sizes, and a ChimeraX script that opens them.
    """
    from etsam.storage import each_once

    masks = each_once(params["masks"])
    if params["tomogram"] is not None and len(masks) > 1:
        raise ValueError("--tomogram goes with one mask: run `etsam export` once for each")

    from etsam.export import ExportOptions, export_file, result_paths

    formats = FORMATS if "all" in params["formats"] else dict.fromkeys(params["formats"])
    _tell_of_idle(set(formats))
    values = {key: value for key, value in params.items() if key not in ("masks", "formats")}
    options = ExportOptions(formats=tuple(formats), **values)
    refuse_same_targets(masks, lambda mask: result_paths(mask, options)[0])
    check_output(masks, options.output)

    def run(path: Path) -> None:
        with StageProgress(unit="formats") as progress:
            for made in export_file(path, options, progress):
                click.echo(made)

    return run_each(masks, run)


def _tell_of_idle(formats: set[str]) -> None:
    """Say which options play no role for the formats that were chosen."""
    for name, users in USED_BY.items():
        if is_chosen(name) and not formats & set(users):
            option = name.replace("_", "-")
            if name == "labelling":
                option = click.get_current_context().params[name].replace("keep", "keep-labels")
            report_warning(f"--{option} is for --as {', '.join(users)}")

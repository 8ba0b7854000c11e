"""``etsam inspect`` and ``etsam verify``: before segmenting, and after."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from etsam.cli.command import VerbCommand, is_chosen, report_warning, run_each
from etsam.cli.paths import FilePath
from etsam.cli.progress import duration

if TYPE_CHECKING:
    from etsam.inspect import Inspection


@click.command(cls=VerbCommand, short_help="Look at tomograms before segmenting them.")
@click.argument("tomograms", nargs=-1, required=True, metavar="TOMOGRAM...")
@click.option(
    "--timing/--no-timing",
    default=True,
    show_default=True,
    help="Try the network on a few slices: polarity, time and memory.",
)
@click.option("--model", default="compact", show_default=True, metavar="NAME|FOLDER")
@click.option("--device", default="auto", show_default=True, metavar="DEVICE")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per tomogram.")
def inspect(params: dict[str, Any]) -> int:
    """Say what each TOMOGRAM is, what is odd about it, and what segmenting it will take here.

    The exit code is 1 if one cannot be read.
    """
    from etsam.batch import ModelOnce
    from etsam.inputs import find_tomograms
    from etsam.inspect import forecaster, summary
    from etsam.inspect import inspect as look
    from etsam.options import SegmentOptions

    if not params["timing"] and (is_chosen("model") or is_chosen("device")):
        report_warning("--model and --device play no role with --no-timing")
    options = SegmentOptions(model=params["model"], device=params["device"])
    forecast = forecaster(options, ModelOnce(options)) if params["timing"] else None

    times: list[float] = []

    def run(path: Path) -> None:
        found = look(path, forecast)
        times.extend([] if found.seconds is None else [found.seconds])
        click.echo(json.dumps(summary(found)) if params["as_json"] else _page(found))

    code = run_each(list(find_tomograms(params["tomograms"])), run)
    if len(times) > 1 and not params["as_json"]:
        click.echo(f"{len(times)} tomograms take about {duration(sum(times))} here, one by one")
    return code


def _page(found: Inspection) -> str:
    z, y, x = found.shape_zyx
    spacing = found.voxel_spacing_zyx_angstrom
    steps = "unknown" if spacing is None else " x ".join(f"{step:g}" for step in spacing) + " Å"
    values = ", ".join(f"{value:.4g}" for value in found.grey_values)
    lines = [
        f"{found.path}",
        f"  {z} x {y} x {x} voxels (z, y, x) of {found.dtype}, spacing {steps}",
        f"  grey values {values} (smallest, 0.1 %, median, 99.9 %, largest)",
    ]
    lines.append(f"  {_thickness(found)}")
    if found.seconds is not None:
        memory = "" if found.memory_mb is None else f", {found.memory_mb:.0f} MB of memory"
        lines.append(
            f"  segmenting takes about {duration(found.seconds)} here{memory}, "
            f"{found.scratch_mb:.0f} MB of disk while it runs; membranes look {found.polarity}"
        )
    lines += [f"  ! {remark}" for remark in found.remarks]
    if found.flags:
        lines.append(f"  try: etsam segment {found.path} {' '.join(found.flags)}")
    return "\n".join(lines)


def _thickness(found: Inspection) -> str:
    """How thick the sample is, as far as that can be told."""
    slab = found.lamella
    if slab is None:
        return "sample: its faces are not seen along z (it fills the volume, or noise hides them)"
    sizes = [found.in_nm(n) or n for n in (slab.thickness, slab.least, slab.most)]
    unit = "slices" if found.voxel_spacing_zyx_angstrom is None else "nm"
    likeliest, least, most = (f"{size:.0f}" for size in sizes)
    ends = slab.start == 0 or slab.stop == found.shape_zyx[0]
    return (
        f"sample: {'at least' if ends else 'about'} {likeliest} {unit} thick ({least} to {most}), z {slab.start} to "
        f"{slab.stop - 1}, by its texture"
    )


@click.command(cls=VerbCommand, short_help="Check that two volumes lie in the same place.")
@click.argument("first", type=FilePath())
@click.argument("second", type=FilePath())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(params: dict[str, Any]) -> int:
    """Compare the geometry of FIRST and SECOND, such as a tomogram and its mask, field by field.

    The exit code is 1 if they do not overlay.
    """
    from etsam.provenance import plain
    from etsam.verify import overlays
    from etsam.verify import verify as compare

    found = compare(params["first"], params["second"])
    good = overlays(found)
    if params["as_json"]:
        fields = [plain(asdict(item)) for item in found]
        click.echo(json.dumps({"overlay": good, "fields": fields}))
        return 0 if good else 1
    for item in found:
        mark = "same" if item.same else ("DIFFERS" if item.decisive else "differs")
        shown = f"{item.first}" if item.same else f"{item.first} | {item.second}"
        click.echo(f"{mark:<8} {item.field:<28} {shown}")
    click.echo("they overlay" if good else "they do not overlay")
    return 0 if good else 1

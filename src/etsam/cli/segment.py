"""``etsam segment``: from tomograms to membrane masks."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from etsam.cli.command import (
    VerbCommand,
    check_output,
    check_output_name,
    is_chosen,
    report_warning,
)
from etsam.cli.options import (
    batch_options,
    finite,
    min_slices_option,
    overwrite_option,
    spacing_option,
)
from etsam.cli.paths import FilePath
from etsam.options import LOGIT_THRESHOLD, MAX_TILE, MIN_TILE, Normalisation, PromptKind

if TYPE_CHECKING:
    from etsam.batch import BatchPlan
    from etsam.options import SegmentOptions
    from etsam.results import SegmentResult

PROMPTS = get_args(PromptKind)[:4]  # the last one, none, is only a network's own


@click.command(cls=VerbCommand, short_help="Find the membranes of tomograms.")
@click.argument("tomograms", nargs=-1, metavar="TOMOGRAM...")
@batch_options
@click.option("--sample", is_flag=True, help="Segment a small tomogram simulated on the spot.")
@click.option(
    "-o",
    "--output",
    "--output-dir",
    "output",
    type=FilePath(),
    help="Folder for the results, or the mask's file.  [default: beside the tomogram]",
)
@overwrite_option
@click.option("--store-logits", is_flag=True, help="Keep the logits too, as float32.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per tomogram.")
@click.option("--preview/--no-preview", default=True, show_default=True, help="Write a picture.")
@click.option("--show", is_flag=True, help="Open the picture when done.")
@click.option(
    "--model",
    default="compact",
    show_default=True,
    metavar="NAME|FOLDER",
    help="compact, etsam-v1, or a folder with a stage1 and a stage2 checkpoint.",
)
@click.option("--stage1-checkpoint", type=FilePath(), help="Instead of the model's stage 1.")
@click.option("--stage2-checkpoint", type=FilePath(), help="Instead of the model's stage 2.")
@click.option(
    "--device", default="auto", show_default=True, metavar="DEVICE", help="auto, cpu, cuda:N, mps."
)
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True
)
@click.option(
    "--logit-threshold",
    type=float,
    default=LOGIT_THRESHOLD,
    show_default=True,
    callback=finite,
    help="A voxel with a larger logit is membrane; lower finds more, higher is stricter.",
)
@spacing_option()
@click.option(
    "--polarity",
    type=click.Choice(["auto", "dark", "bright"]),
    default="auto",
    show_default=True,
    help="How membranes look in this tomogram.",
)
@click.option(
    "--normalize-method",
    type=click.Choice(get_args(Normalisation)),
    help="Scaling of the grey values.  [default: the model's]",
)
@click.option(
    "--stage1-prompt",
    type=click.Choice(PROMPTS[:3]),
    help="Where stage 1 starts from.  [default: the model's]",
)
@click.option(
    "--stage2-prompt",
    type=click.Choice(PROMPTS),
    help="Where stage 2 starts from.  [default: the model's]",
)
@click.option(
    "--interval",
    "--grid-interval",
    "--prompt-interval",
    "interval",
    type=click.IntRange(min=1),
    help="Distance of a grid prompt's dots and of its slices.  [default: 50, split 10]",
)
@click.option(
    "--first-slice",
    type=click.Choice(["predict", "prompt"]),
    default="predict",
    show_default=True,
    help="Predict prompted slices too, or return their prompt as ETSAM does.",
)
@click.option(
    "--split-processing",
    is_flag=True,
    help="Segment the four quadrants one by one, for closely packed membranes.",
)
@click.option(
    "--tile",
    type=click.IntRange(min=MIN_TILE),
    default=MAX_TILE,
    show_default=True,
    help="Longest side of a tile in pixels of the network; halved when memory runs out.",
)
@click.option(
    "--test-time-augmentation",
    "--tta",
    "mirrors",
    type=click.Choice([1, 2, 4]),
    default=1,
    show_default=True,
    help="Average over mirror images: a little better, in two or four times the time.",
)
@click.option("--post-process", is_flag=True, help="Write a cleaned mask too.")
@click.option("--instances", is_flag=True, help="Write int16 labels too, one per membrane.")
@min_slices_option
def segment(params: dict[str, Any]) -> int:
    """Find the membranes of each TOMOGRAM (MRC, also .gz or .bz2, or OME-Zarr).

    TS_001.mrc gives TS_001_membrane.mrc with the same geometry (1 membrane, 0 not), a preview and a
    JSON with weights, parameters, time and memory. No option is needed.

    TOMOGRAM may be a folder, a pattern in quotes, a text file with a name on each line, the config
    of a copick project, or a folder of runs as the CryoET Data Portal lays them out. Several
    are done in order and recorded in etsam_manifest.jsonl, see `etsam status`; the exit code is not
    0 if any of them failed.
    """
    paths, masks = _inputs(params)
    check_output(paths, params["output"])
    _tell_of_idle(params)

    from etsam.cli.batch import run_segment

    def show(result: SegmentResult) -> None:
        _show(result, as_json=params["as_json"], open_preview=params["show"])

    plan = _plan(params, paths, masks)
    return run_segment(plan, params, show)


def _tell_of_idle(params: dict[str, Any]) -> None:
    """Say which options play no role beside the others."""
    published = params["model"] == "etsam-v1"
    given = params["stage1_checkpoint"] or params["stage2_checkpoint"]
    for name, beside, is_idle in (
        ("tile", "with --split-processing", params["split_processing"]),
        ("tile", "with etsam-v1, whose frames are squares", published and not given),
        ("min_slices", "without --post-process", not params["post_process"]),
        ("show", "with --no-preview", not params["preview"]),
    ):
        if is_idle and is_chosen(name):
            report_warning(f"--{name.replace('_', '-')} plays no role {beside}")


def _plan(params: dict[str, Any], paths: list[Path], masks: dict[Path, Path]) -> BatchPlan:
    """What is to be done, and where it is recorded; of all tomograms, or of one part of them.

    Two tomograms with one mask are refused whichever part they are in.
    """
    from etsam.batch import BatchPlan, default_manifest
    from etsam.inputs import shard

    recorded = params["manifest"] or params["shard"] or params["engine"] or len(paths) > 1
    options = _options(params)
    manifest = params["manifest"]
    if manifest is None and recorded:
        manifest = default_manifest(paths, options.output, params["shard"], masks)
    plan = BatchPlan(
        paths,
        options,
        resume=params["resume"],
        fail_fast=params["fail_fast"],
        manifest=manifest,
        masks=masks,
    )
    plan.masks_by_path()
    part = params["shard"]
    return dataclasses.replace(plan, paths=shard(paths, part)) if part else plan


def _inputs(params: dict[str, Any]) -> tuple[list[Path], dict[Path, Path]]:
    """Tomograms, and the names of the masks of those that lie in projects."""
    names = list(params["tomograms"])
    if params["sample"] == bool(names):
        raise click.UsageError("give tomograms or --sample, see `etsam segment --help`")
    check_output_name(params["output"])
    if params["sample"]:
        return [_sample(params["output"])], {}
    if params["copick"] and params["output"] is not None:
        raise click.UsageError("give --copick or --output, not both")

    from etsam.inputs import choose_masks, find_tomograms
    from etsam.projects import select

    found = find_tomograms(names)
    paths = select(found, params["select"]) if params["select"] else list(found)
    chosen = {path: found[path] for path in paths}
    return paths, choose_masks(chosen, params["output"], copick=params["copick"])


def _sample(output: Path | None) -> Path:
    """Write the sample into the folder for its mask.

    Raises
    ------
    click.UsageError
        The name is that of a mask.
    """
    from etsam.cli.sample import write_sample
    from etsam.results import names_mask

    if output is not None and not output.is_dir() and names_mask(output):
        raise click.UsageError(f"--output {output} is no folder: the sample and its mask need one")
    return write_sample(output or Path.cwd())


def _options(params: dict[str, Any]) -> SegmentOptions:
    from etsam.options import SegmentOptions

    fields = dataclasses.fields(SegmentOptions)
    return SegmentOptions(**{field.name: params[field.name] for field in fields})


def _show(result: SegmentResult, *, as_json: bool, open_preview: bool) -> None:
    """Print where the results are, and open the picture where that is wanted."""
    if as_json:
        click.echo(result.json())
    else:
        click.echo(os.fsencode(result.mask))  # names need not be Unicode
    if open_preview and result.preview is not None:
        click.echo(f"preview: {result.preview}", err=True)
        if _has_screen():
            click.launch(str(result.preview))


def _has_screen() -> bool:
    """Whether a picture can be opened here."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))

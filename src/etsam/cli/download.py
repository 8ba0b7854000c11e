"""``etsam download``: the paper's data, runs of the CryoET Data Portal, records by DOI."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from etsam.cli.command import (
    EXIT_FAILED,
    VerbCommand,
    is_chosen,
    one_line,
    report_error,
    report_warning,
)
from etsam.cli.options import finite, overwrite_option
from etsam.cli.paths import FilePath
from etsam.cli.progress import StageProgress

if TYPE_CHECKING:
    from etsam.download import DownloadOptions, Outcome
    from etsam.listing import Item

UNITS = ("B", "kB", "MB", "GB", "TB")


@click.command(cls=VerbCommand, short_help="Fetch the paper's data, portal runs, DOIs.")
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option("-o", "--output", type=FilePath(file_okay=False), help="Folder for the files.")
@click.option("--list", "list_only", is_flag=True, help="List the sets, or the runs of SOURCES.")
@click.option("--dry-run", is_flag=True, help="Say which files there are and how large; no more.")
@click.option(
    "--format", type=click.Choice(["mrc", "zarr"]), default="mrc", show_default=True,
    help="Of what the portal has in both.",
)  # fmt: skip
@click.option(
    "--masks", type=click.Choice(["auto", "portal", "dataverse", "none"]), default="auto",
    show_default=True, help="Where masks of runs come from; auto: where the set says.",
)  # fmt: skip
@click.option("--match", multiple=True, metavar="PATTERN", help="Only files with such names.")
@click.option("--workers", type=click.IntRange(1, 32), default=4, show_default=True)
@click.option("--resume", is_flag=True, help="Keep what is complete, go on with parts.")
@overwrite_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=30.0,
    show_default=True,
    callback=finite,
    metavar="S",
)
@click.option("--attempts", type=click.IntRange(min=1), default=6, show_default=True)
@click.option("--zenodo", envvar="ETSAM_ZENODO", metavar="URL", help="A mirror of Zenodo.")
@click.option("--dataverse", envvar="ETSAM_DATAVERSE", metavar="URL", help="[default: Harvard's]")
@click.option("--portal", envvar="ETSAM_PORTAL", metavar="URL", help="A mirror of its GraphQL API.")
@click.option(
    "--portal-files", envvar="ETSAM_PORTAL_FILES", metavar="URL", help="... of its files."
)
@click.option(
    "--portal-s3", envvar="ETSAM_PORTAL_S3", metavar="URL", help="... of its S3 endpoint."
)
def download(params: dict[str, Any]) -> int:
    """Fetch tomograms and membrane masks.

    SOURCE is a set of the paper (train, test, test-17, unseen), DATASET/RUN of the CryoET Data
    Portal by numbers, or a DOI of Zenodo or of the Dataverse.

    \b
    etsam download test --dry-run
    etsam download test -o data/ --resume
    etsam download 10000/245 -o data/ --format zarr
    etsam download 10.7910/DVN/K4JKCW -o data/ --match '*/245/*'
    """
    if params["list_only"]:
        for name in sorted(params.keys() - {"sources", "list_only", "as_json"}):
            if is_chosen(name):
                report_warning(f"--{name.replace('_', '-')} plays no role with --list")
        _list(params["sources"], params["as_json"])
        return 0
    if not params["sources"]:
        raise click.UsageError("name a SOURCE, or see --list")
    if params["output"] is None and not params["dry_run"]:
        raise click.UsageError("give --output FOLDER, or --dry-run")
    options = _options(params)
    if params["dry_run"]:
        return _show_plan(params, options)
    return _fetch(params, options)


def _options(params: dict[str, Any]) -> DownloadOptions:
    from etsam.download import DownloadOptions
    from etsam.fetch import Patience
    from etsam.listing import Selection
    from etsam.portal import PortalServers
    from etsam.repositories import DATAVERSE, ZENODO

    selection = Selection(
        format=params["format"],
        masks=params["masks"],
        match=params["match"],
        zenodo=(params["zenodo"] or ZENODO).rstrip("/"),
        dataverse=(params["dataverse"] or DATAVERSE).rstrip("/"),
        portal=PortalServers(params["portal"], params["portal_files"], params["portal_s3"]),
        patience=Patience(timeout=params["timeout"], attempts=params["attempts"]),
    )
    return DownloadOptions(
        selection,
        workers=params["workers"],
        resume=params["resume"],
        overwrite=params["overwrite"],
    )


def _fetch(params: dict[str, Any], options: DownloadOptions) -> int:
    from etsam.download import download as run_download

    outcomes: list[Outcome] = []
    with StageProgress("MB") as bar:

        def progress(done: int, total: int) -> None:
            bar("fetch", round(done / 1e6), max(round(total / 1e6), 1))

        for outcome in run_download(params["sources"], params["output"], options, progress):
            outcomes.append(outcome)
            if outcome.error is not None:
                report_error(outcome.error)
                continue
            if not outcome.checked:
                report_warning(f"{outcome.path}: size and checksum unknown: not checked")
            if not params["as_json"]:
                click.echo(outcome.path)
    failed = sum(outcome.error is not None for outcome in outcomes)
    kept = sum(outcome.kept for outcome in outcomes)
    if params["as_json"]:
        click.echo(json.dumps({"files": [_outcome_record(outcome) for outcome in outcomes]}))
    click.echo(
        f"etsam: {len(outcomes) - failed} of {len(outcomes)} files are in {params['output']} "
        f"({kept} before), {failed} failed{': give --resume to go on' if failed else ''}",
        err=True,
    )
    return EXIT_FAILED if failed else 0


def _list(sources: Sequence[str], as_json: bool) -> None:
    from dataclasses import asdict

    from etsam.published import SETS, find_runs

    runs = [run for source in sources for run in find_runs(source)]
    if as_json:
        sets = {name: [asdict(run) for run in item.runs()] for name, item in SETS.items()}
        click.echo(json.dumps([asdict(run) for run in runs] if sources else sets))
        return
    if not sources:
        for name, item in SETS.items():
            click.echo(f"{name:<8}  {len(item.runs()):3d} tomograms  {item.about}")
    for run in runs:
        size = "" if run.shape is None else " x ".join(map(str, run.shape))
        spacing = "" if run.voxel_spacing is None else f"{run.voxel_spacing:g} Å"
        line = f"{run.name:<26}  masks: {run.truth:<9}  {spacing:>8}  {size:<18}  {run.organism}"
        click.echo(line.rstrip())


def _show_plan(params: dict[str, Any], options: DownloadOptions) -> int:
    from etsam.download import state_of
    from etsam.listing import list_items

    listed = list_items(params["sources"], options.selection)
    items = [item for item in listed if not item.problem]
    for item in listed:
        if item.problem:
            report_error(item.problem)
    code = EXIT_FAILED if len(items) < len(listed) else 0
    folder = params["output"] or Path()
    states = {item.name: state_of(item, folder) if params["output"] else "absent" for item in items}
    missing = [item for item in items if states[item.name] != "here"]
    known = sum(item.size or 0 for item in missing)
    if params["as_json"]:
        records = [_item_record(item) | {"state": states[item.name]} for item in items]
        problems = [item.problem for item in listed if item.problem]
        click.echo(json.dumps({"files": records, "bytes_to_fetch": known, "problems": problems}))
        return code
    for item in items:
        note = {"here": "  (is there)", "part": "  (begun)", "absent": ""}[states[item.name]]
        many = f"  ({len(item.parts)} files)" if item.is_folder else ""
        click.echo(f"{_bytes(item.size):>10}  {item.name}{many}{note}")
    unknown = sum(item.size is None for item in missing)
    more = f" and {unknown} of unknown size" if unknown else ""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = f"; {_bytes(shutil.disk_usage(there).free)} are free" if params["output"] else ""
    click.echo(f"{len(missing)} of {len(items)} files to fetch: {_bytes(known)}{more}{free}")
    return code


def _item_record(item: Item) -> dict[str, Any]:
    single = None if item.is_folder or item.problem else item.parts[0]
    return {
        "name": item.name,
        "bytes": item.size,
        "parts": len(item.parts),
        "url": single and single.url,
        "checksum": single and single.checksum,
    }


def _outcome_record(outcome: Outcome) -> dict[str, Any]:
    state = "failed" if outcome.error is not None else "kept" if outcome.kept else "fetched"
    error = None if outcome.error is None else one_line(outcome.error)
    return _item_record(outcome.item) | {
        "path": str(outcome.path),
        "state": state,
        "checked": outcome.checked and outcome.error is None,
        "error": error,
    }


def _bytes(count: int | None) -> str:
    """A size in words: ``1.8 GB``; ``?`` where it is not known."""
    if count is None:
        return "?"
    size, unit = float(count), UNITS[0]
    for unit in UNITS:
        if size < 1000 or unit == UNITS[-1]:
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"

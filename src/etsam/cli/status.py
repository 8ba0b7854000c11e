"""``etsam status``: what has become of the tomograms of a batch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from etsam.cli.command import VerbCommand
from etsam.cli.paths import FilePath
from etsam.cli.progress import duration

if TYPE_CHECKING:
    from etsam.manifest import Entry


@click.command(cls=VerbCommand, short_help="Say what a batch has done.")
@click.argument("place", default=".", type=FilePath(), metavar="[FOLDER|MANIFEST]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--failed", is_flag=True, help="Only tomograms that failed or were interrupted.")
def status(params: dict[str, Any]) -> int:
    """Say which tomograms of a batch are done, running, queued, interrupted or failed, and why.

    FOLDER is where the results are; the manifests of all its shards are read together.
    """
    from etsam.manifest import counts, current_entries, find_manifests

    entries = current_entries(find_manifests(params["place"]))
    shown = [e for e in entries if not params["failed"] or e.state in ("failed", "interrupted")]
    totals = counts(entries)
    if params["as_json"]:
        tomograms = [asdict(entry) | _position(entry) for entry in shown]
        click.echo(json.dumps({"counts": totals, "tomograms": tomograms}))
        return 0
    for entry in shown:
        click.echo(_line(entry))
    words = [f"{number} {state}" for state, number in totals.items() if number]
    click.echo(f"{len(entries)} tomograms: {', '.join(words) or 'none'}")
    return 0


def _position(entry: Entry) -> dict[str, int | None]:
    """Stage and slice that an unfinished tomogram has come to."""
    from etsam.results import how_far

    found = None if entry.state in ("done", "queued") else how_far(Path(entry.mask))
    return {"stage": found and found[0], "slices": found and found[1]}


def _line(entry: Entry) -> str:
    at = _position(entry)
    notes = []
    if entry.seconds is not None:
        notes.append("was done before" if entry.reused else duration(entry.seconds))
    if entry.peak_rss_mb is not None and not entry.reused:
        notes.append(f"{entry.peak_rss_mb:.0f} MB")
    if at["stage"]:
        notes.append(f"stage {at['stage']}, {at['slices']} slices saved")
    if entry.attempts > 1:
        notes.append(f"attempt {entry.attempts}")
    if entry.error:
        notes.append(entry.error)
    name = " ".join(Path(entry.input).name.splitlines())
    return f"{entry.state:<11}  {name}  {', '.join(notes)}".rstrip()

"""One self-contained HTML page per tomogram, and an index of many."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from etsam import __version__
from etsam.frame import Frame
from etsam.membrane import LOGIT_STEP
from etsam.report.numbers import Flag, Measured
from etsam.report.pack import LEVEL_STEP, PackedVolume
from etsam.report.recorded import recorded_parameters, recorded_weights

LABELS = {
    "membrane_volume_um3": ("membrane volume", "µm³"),
    "membrane_area_um2": ("membrane area", "µm²"),
    "share_of_volume": ("share of the volume", "%"),
    "membranes": ("membranes of 500 voxels or more", ""),
    "connected_components": ("connected components", ""),
    "thickness_nm": ("thickness of the mask, median", "nm"),
    "thickness_p5_p95_nm": ("thickness, 5th to 95th percentile", "nm"),
}


INDEX_MARK = '<meta name="generator" content="etsam report">'
"""Stands in an index of ours, and tells it from another page of the same name."""


@dataclass(frozen=True)
class PageSource:
    """What a page is made of besides its pictures: names, place, threshold, and the recorded JSON."""

    title: str
    frame: Frame
    threshold: float
    logits: bool
    recorded: Mapping[str, Any] | None


@dataclass(frozen=True)
class IndexRow:
    """A tomogram in the index: where its page lies if there is one, a picture as data URI, numbers and flags."""

    name: str
    page: Path | None
    picture: str | None
    numbers: Mapping[str, Any]
    flags: Sequence[Flag]


def page_html(
    source: PageSource, measured: Measured, volume: PackedVolume, mesh: Mapping[str, Any] | None
) -> str:
    """Return the page of a tomogram."""
    start = _start(measured, volume)
    size = " x ".join(str(side) for side in source.frame.shape)
    spacing = " x ".join(f"{step:g}" for step in source.frame.spacing)
    slices = [
        f'<script type="text/plain" id="s{z}">{grey}|{level}</script>'
        for z, (grey, level) in enumerate(zip(volume.grey, volume.level, strict=True))
    ]
    parts = {
        "title": escape(source.title),
        "subtitle": escape(f"{size} voxels (z, y, x) of {spacing} Å"),
        "style": _asset("page.css"),
        "flags": _flags(measured.flags),
        "numbers": _numbers(measured.rows),
        "membranes": _membranes(measured.membranes),
        "threshold": f"{source.threshold:g}" if source.logits else "of the mask",
        "parameters": _parameters(source),
        "provenance": escape(_recorded(source.recorded)),
        "version": __version__,
        "meta": _json(_meta(source, volume, start)),
        "first": slices[start],
        "viewer": _asset("viewer.js"),
        "rest": "\n".join(slices[:start] + slices[start + 1 :]),
        "mesh": _json(mesh),
        "surface": _asset("surface.js"),
    }
    return _filled("page.html", parts)


def index_html(rows: Sequence[IndexRow], title: str, folder: Path) -> str:
    """Return the index of several pages, as it lies in a folder."""
    shown = ("membrane_area_um2", "membrane_volume_um3", "membranes", "thickness_nm")
    names = ["tomogram", "area µm²", "volume µm³", "membranes", "thickness nm"]
    heads = "".join(
        f'<th scope="col"><button type="button">{escape(n)}</button></th>' for n in names
    )
    flagged = sum(any(flag.level == "warn" for flag in row.flags) for row in rows)
    parts = {
        "title": escape(title),
        "subtitle": escape(f"{len(rows)} tomograms, {flagged} with something to look at"),
        "style": _asset("page.css"),
        "heads": heads,
        "rows": "\n".join(_index_row(row, shown, folder) for row in rows),
        "mark": INDEX_MARK,
        "version": __version__,
        "script": _asset("index.js"),
    }
    return _filled("index.html", parts)


def _index_row(row: IndexRow, shown: Sequence[str], folder: Path) -> str:
    alt = f"Slice of {escape(row.name)} with its mask"
    picture = f'<img class="thumb" src="{row.picture}" alt="{alt}">' if row.picture else ""
    name = escape(row.name)
    if row.page is not None:
        name = f'<a href="{_link(row.page, folder)}">{name}</a>'
    cells = [f"<td>{picture}</td>", f"<td>{name}</td>"]
    for key in shown:
        value = row.numbers.get(key)
        raw = "" if value is None else repr(float(value))
        cells.append(f'<td data-value="{raw}">{escape(_figure(key, value))}</td>')
    flags = "".join(
        f'<span class="flag {flag.level}" title="{escape(flag.text)}">{escape(flag.name)}</span>'
        for flag in row.flags
    )
    return f"<tr>{''.join(cells)}<td>{flags}</td></tr>"


def _link(page: Path, folder: Path) -> str:
    """Return the address of a page as seen from a folder; the whole one where it is on another drive."""
    target = page.resolve()
    try:
        place = Path(os.path.relpath(target, folder.resolve()))
    except ValueError:
        return target.as_uri()
    return quote(place.as_posix())


def _meta(source: PageSource, volume: PackedVolume, start: int) -> dict[str, Any]:
    """Return what the viewer needs to know."""
    frame = source.frame
    ends = np.array([[0, 0, 0], [side - 1 for side in frame.shape]])
    return {
        "shape": volume.shape,
        "fullShape": frame.shape,
        "binning": volume.binning,
        "spacing": [s * b for s, b in zip(frame.spacing, volume.binning, strict=True)],
        "voxelVolume": frame.voxel_volume,
        "box": frame.to_angstrom(ends).tolist(),
        "start": start,
        "logits": source.logits,
        "threshold": source.threshold,
        "levelStep": LOGIT_STEP * LEVEL_STEP,
        "above": volume.above,
    }


def _start(measured: Measured, volume: PackedVolume) -> int:
    """Return the slice shown first: the middle of the membranes."""
    area = np.array([np.count_nonzero(plane) for plane in measured.instances.labels], float)
    if not area.any():
        return volume.shape[0] // 2
    z = int(np.searchsorted(np.cumsum(area), area.sum() / 2))
    return min(z // volume.binning[0], volume.shape[0] - 1)


def _flags(flags: Sequence[Flag]) -> str:
    if not flags:
        return '<li class="info">Nothing stands out.</li>'
    return "".join(
        f'<li class="{flag.level}"><strong>{escape(flag.name)}</strong>: {escape(flag.text)}</li>'
        for flag in flags
    )


def _numbers(rows: Mapping[str, Any]) -> str:
    cells = []
    for key, value in rows.items():
        name, unit = LABELS[key]
        text = _figure(key, value) if value is None else f"{_figure(key, value)} {unit}".strip()
        cells.append(f'<tr><th scope="row">{escape(name)}</th><td>{escape(text)}</td></tr>')
    return "".join(cells)


def _figure(key: str, value: Any) -> str:
    """Return a number to three figures."""
    if value is None:
        return "unknown"
    if isinstance(value, list):
        return " to ".join(_figure(key, one) for one in value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{100 * value if key == 'share_of_volume' else value:.3g}"


def _membranes(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(
        f'<tr><th scope="row">{row["label"]}</th><td>{_figure("", row["area_um2"])}</td>'
        f"<td>{_figure('', row['thickness_nm'])}</td><td>{row['voxels']:,}</td>"
        f"<td>{row['slices'][0]} to {row['slices'][1]}</td></tr>"
        for row in rows
    )


def _parameters(source: PageSource) -> str:
    """Return rows of what made the segmentation, as far as it was recorded."""
    recorded = source.recorded or {}
    parameters = recorded_parameters(recorded)
    rows = {
        "program": f"etsam {recorded['etsam']}" if "etsam" in recorded else None,
        "made": recorded.get("started"),
        "model": parameters.get("model"),
        "weights": ", ".join(recorded_weights(recorded)) or None,
        "threshold": f"{source.threshold:g}" if source.logits else None,
        "membranes": parameters.get("polarity"),
        "seconds": recorded.get("seconds"),
        "device": recorded.get("device"),
        "origin (z, y, x)": " ".join(f"{o:g}" for o in source.frame.origin) + " Å",
    }
    rows = {name: value for name, value in rows.items() if value is not None}
    return "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(value))}</td></tr>'
        for name, value in rows.items()
    )


def _recorded(recorded: Mapping[str, Any] | None) -> str:
    if recorded is None:
        return "There was no JSON beside the mask."
    return json.dumps(recorded, indent=2, ensure_ascii=False)


def _json(value: object) -> str:
    """Return JSON that may stand in a script element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _asset(name: str) -> str:
    return files("etsam.report").joinpath("assets", name).read_text(encoding="utf-8")


def _filled(name: str, parts: Mapping[str, str]) -> str:
    """Return a template with its {{names}} filled in, in one pass."""
    template = _asset(name)
    pieces = template.split("{{")
    result = [pieces[0]]
    for piece in pieces[1:]:
        key, _, rest = piece.partition("}}")
        result += [parts[key], rest]
    return "".join(result)

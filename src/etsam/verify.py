"""VERB verify: whether two volumes lie in the same place, field by field."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from etsam.mrc_header import parse_header
from etsam.overlay import other_origins
from etsam.volume import Tomogram, open_tomogram

SPACING_TOLERANCE = 1e-4  # relative; float32 headers and rounded metadata differ by less
MRC_FIELDS = (
    *("nxstart", "nystart", "nzstart", "mx", "my", "mz", "cella", "cellb"),
    *("mapc", "mapr", "maps", "ispg", "origin"),
)
DECISIVE = ("nxstart", "nystart", "nzstart", "mapc", "mapr", "maps", "cellb")
RIGHT_ANGLE = 90.0  # degrees; what a cell angle of 0 is read as


@dataclass(frozen=True)
class Comparison:
    """One property of two volumes.

    ``decisive`` ones must agree for the volumes to overlay in every program; the others are told
    because some program may read them.
    """

    field: str
    first: Any
    second: Any
    same: bool
    decisive: bool


def verify(first: str | Path, second: str | Path) -> list[Comparison]:
    """Compare shape, spacing, origin and, of two MRC files, every geometric header field.

    Where both spacings are unknown, what the two headers say nevertheless decides.

    Raises
    ------
    FileNotFoundError, ValueError
        A volume is not there or cannot be read.
    """
    with closing(open_tomogram(first)) as a, closing(open_tomogram(second)) as b:
        return [*_geometry(a, b), *_headers(a, b)]


def overlays(comparisons: Sequence[Comparison]) -> bool:
    """Whether all that is decisive agrees."""
    return all(item.same for item in comparisons if item.decisive)


def _geometry(a: Tomogram, b: Tomogram) -> Iterator[Comparison]:
    yield Comparison("shape_zyx", list(a.shape), list(b.shape), a.shape == b.shape, True)
    known = a.voxel_spacing is not None and b.voxel_spacing is not None
    same = a.voxel_spacing == b.voxel_spacing
    if known:
        same = bool(
            np.allclose(_array(a.voxel_spacing), _array(b.voxel_spacing), SPACING_TOLERANCE, 0)
        )
    yield Comparison(
        "voxel_spacing_zyx_angstrom", _list(a.voxel_spacing), _list(b.voxel_spacing), same, True
    )
    near = not other_origins(a, b)
    yield Comparison("origin_zyx_angstrom", list(a.origin), list(b.origin), near, True)


def _headers(a: Tomogram, b: Tomogram) -> Iterator[Comparison]:
    if a.info.mrc_header is None or b.info.mrc_header is None:
        return
    one, two = (
        parse_header(tomogram.info.mrc_header or b"", tomogram.path or Path())[1]
        for tomogram in (a, b)
    )
    for name in MRC_FIELDS:
        first, second = _plain(one[name]), _plain(two[name])
        read = [_angles(value) if name == "cellb" else value for value in (first, second)]
        yield Comparison(f"MRC {name}", first, second, _equal(*read), name in DECISIVE)
    if a.voxel_spacing is None and b.voxel_spacing is None:
        mine, theirs = _steps(one), _steps(two)
        same = bool(np.allclose(mine, theirs, SPACING_TOLERANCE, 0, equal_nan=True))
        yield Comparison("MRC cella/m", mine, theirs, same, True)


def _equal(first: Any, second: Any) -> bool:
    """Whether header values agree; what is no number in both does."""
    return bool(np.array_equal(np.asarray(first), np.asarray(second), equal_nan=True))


def _angles(cell: list[float]) -> list[float]:
    """Return cell angles [degrees] as programs read them."""
    return [angle or RIGHT_ANGLE for angle in cell]


def _steps(fields: np.ndarray) -> list[float]:
    """Return Å per voxel, xyz, as programs read them that believe any header; 1 where it says nothing."""
    cells = [int(fields[name]) for name in ("mx", "my", "mz")]
    lengths = _plain(fields["cella"])
    return [
        length / count if count > 0 and length != 0 else 1.0
        for length, count in zip(lengths, cells, strict=True)
    ]


def _plain(value: Any) -> Any:
    item = value.item()
    return list(item) if isinstance(item, tuple) else item


def _list(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else [float(value) for value in values]


def _array(values: Sequence[float] | None) -> np.ndarray:
    return np.asarray(values, np.float64)

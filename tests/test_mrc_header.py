"""Headers of results lie where a volume lies: voxels that are no cubes, swapped axes, start indices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mrcfile.dtypes import HEADER_DTYPE

from etsam.mrc_header import output_header, read_header, with_spacing
from etsam.storage import VolumeInfo, Zyx
from etsam.volume import open_tomogram
from test_mrc import anisotropic, isotropic, permuted, save, shifted, voxels

Change = Callable[[np.ndarray], None]


def started(header: np.ndarray) -> None:
    """Part of a larger cell, placed by start indices alone."""
    header["mx"], header["my"], header["mz"] = 14, 18, 5
    header["cella"] = (140.0, 360.0, 150.0)
    header["nxstart"], header["nystart"], header["nzstart"] = 1, -2, 3


def turned(header: np.ndarray) -> None:
    started(header)
    header["mapc"], header["mapr"], header["maps"] = 3, 1, 2


def source(folder: Path, change: Change) -> VolumeInfo:
    with open_tomogram(save(folder / "a.mrc", voxels("i1"), change=change)) as tomogram:
        return tomogram.info


def test_start_indices_count_voxels_of_their_axis(tmp_path: Path) -> None:
    info = source(tmp_path, started)
    assert info.voxel_spacing == (30.0, 20.0, 10.0)
    assert info.origin == (90.0, -40.0, 10.0)


@pytest.mark.parametrize("change", [isotropic, anisotropic, shifted, permuted, started, turned])
@pytest.mark.parametrize("spacing", [None, (8.0, 9.0, 11.0)])
@pytest.mark.parametrize("origin", [None, (0.0, 0.0, 0.0), (15.0, -25.0, 40.0)])
def test_a_moved_header_tells_what_it_was_moved_to(
    tmp_path: Path, change: Change, spacing: Zyx | None, origin: Zyx | None
) -> None:
    before = source(tmp_path, change)
    info = before if spacing is None else with_spacing(before, spacing)
    info = info if origin is None else replace(info, origin=origin)
    fields = output_header(info, np.dtype("int8"), "test")
    _, found = read_header(fields.tobytes(), tmp_path / "b.mrc", None)
    assert found.voxel_spacing == pytest.approx(info.voxel_spacing)
    assert found.origin == pytest.approx(info.origin, abs=0.01)
    given = np.frombuffer(before.mrc_header or b"", HEADER_DTYPE)[0]
    for name in ("mx", "my", "mz", "mapc", "mapr", "maps"):
        assert fields[name] == given[name]

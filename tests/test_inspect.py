"""Before segmenting and after: what inspect finds, and what verify tells apart."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from etsam.inspect import Forecast, forecaster, inspect
from etsam.options import SegmentOptions
from etsam.verify import overlays, verify
from etsam.volume import create_volume, open_tomogram
from test_cli import Run, write_mrc
from tiny_model import tiny_stages

SHAPE = (8, 40, 48)


def smooth(seed: int = 0) -> np.ndarray:
    """Slow waves between -1 and 1 with a little noise."""
    z, y, x = np.meshgrid(*(np.linspace(0, 6, side) for side in SHAPE), indexing="ij")
    noise = np.random.default_rng(seed).normal(scale=0.02, size=SHAPE)
    return (np.sin(x) * np.cos(y + z) + noise).astype(np.float32)


def remarks(path: Path) -> str:
    return "; ".join(inspect(path).remarks)


def test_an_ordinary_tomogram_has_no_remarks(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a.mrc", smooth())
    found = inspect(path)
    assert found.remarks == [] and found.flags == []
    assert found.shape_zyx == SHAPE and found.voxel_spacing_zyx_angstrom == (10.0,) * 3
    assert list(found.grey_values) == sorted(found.grey_values)
    assert found.slices_looked_at == 8 and found.seconds is None
    assert found.scratch_mb == pytest.approx(8 * np.prod(SHAPE) / 1e6, abs=0.1)


@pytest.mark.filterwarnings("always:.*sections run along")
def test_sections_along_another_axis_are_told(run: Run, tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a.mrc", smooth())
    for sections, told in ((3, False), (1, True), (2, True)):
        with mrcfile.mmap(path, "r+") as stored:
            order = [sections, *({1, 2, 3} - {sections})]
            stored.header.maps, stored.header.mapr, stored.header.mapc = order
        note = f"sections run along {'xyz'[sections - 1]} (axis map): read and tracked along it"
        assert (note in remarks(path)) == told
        err = run("baseline", path, "--overwrite")[2]
        assert err.count(f"warning: {path}: {note}") == told


def test_oddities_are_found(tmp_path: Path) -> None:
    unknown = inspect(write_mrc(tmp_path / "unknown.mrc", smooth(), 1.0))
    assert unknown.remarks == [
        "the file says voxels of 1 x 1 x 1 Å (z, y, x): voxel spacing unknown: "
        "the bundled model needs it (segment --voxel-spacing)"
    ]
    assert unknown.flags == ["--voxel-spacing Å"]
    flat = inspect(write_mrc(tmp_path / "flat.mrc", np.ones(SHAPE, np.float32)))
    assert "constant" in flat.remarks[0] and flat.constant_slices == 8
    padded = smooth()
    padded[:2] = 0
    assert "2 of 8 slices looked at are constant" in remarks(write_mrc(tmp_path / "p.mrc", padded))
    clipped = np.clip(smooth(), -0.3, 0.3)
    assert "smallest or the largest" in remarks(write_mrc(tmp_path / "clipped.mrc", clipped))
    hot = smooth()
    hot[4, 5, 6] = 1000
    assert "far from all others" in remarks(write_mrc(tmp_path / "hot.mrc", hot))
    broken = write_mrc(tmp_path / "nan.mrc", smooth())
    with mrcfile.open(broken, "r+") as mrc:
        mrc.data[3, 2, :5] = np.nan
    assert "5 voxels looked at are NaN" in remarks(broken)
    flatter = write_mrc(tmp_path / "flatter.mrc", smooth())
    with mrcfile.open(flatter, "r+") as mrc:
        mrc.voxel_size = (10.0, 10.0, 20.0)
    assert "not cubes: 20 x 10 x 10" in remarks(flatter)


@pytest.mark.parametrize("wrong", [False, True])
def test_the_sign_of_bytes_is_judged_by_smoothness(tmp_path: Path, wrong: bool) -> None:
    unsigned = np.round(128 + 60 * smooth()).astype(np.uint8)
    stored = unsigned.view(np.int8) if wrong else (unsigned.astype(np.int16) - 128).astype(np.int8)
    path = write_mrc(tmp_path / "bytes.mrc", stored)
    with mrcfile.open(path, "r+") as mrc:
        mrc.header.dmin, mrc.header.dmax = -128, 127
    assert ("unsigned" in remarks(path)) == wrong


def test_a_forecast_counts_all_slices_of_both_stages(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a.mrc", smooth())
    options = SegmentOptions(device="cpu", polarity="dark")
    expected = forecaster(options, tiny_stages)
    with open_tomogram(path) as tomogram:
        found = expected(tomogram)
    assert 0 < found.seconds < 600 and found.polarity == "dark"
    bright = inspect(path, lambda tomogram: Forecast("bright", 60.04, 100.0))
    assert bright.flags == ["--polarity bright"] and bright.seconds == 60.0


def test_inspect_on_the_command_line(run: Run, tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a.mrc", smooth(), 1.0)
    (tmp_path / "b.mrc").write_text("no tomogram")
    code, out, err = run("inspect", tmp_path, "--no-timing")
    assert code == 1
    assert "8 x 40 x 48 voxels" in out and "--voxel-spacing" in out
    assert err.count("\n") == 1
    code, out, _ = run("inspect", path, "--no-timing", "--json")
    assert code == 0 and json.loads(out)["shape_zyx"] == list(SHAPE)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A tomogram with a shifted origin, and a mask made from it."""
    path = write_mrc(tmp_path / "a.mrc", smooth())
    with mrcfile.open(path, "r+") as mrc:
        mrc.header.origin = (5.0, -6.0, 7.0)
        mrc.header.nzstart = 3
    mask = tmp_path / "a_membrane.mrc"
    with (
        open_tomogram(path) as tomogram,
        create_volume(mask, tomogram, dtype="int8", label="x") as writer,
    ):
        for z in range(SHAPE[0]):
            writer.write_slice(z, np.zeros(SHAPE[1:], np.int8))
    return path, mask


def test_a_mask_overlays_its_tomogram_also_as_zarr(run: Run, pair: tuple[Path, Path]) -> None:
    assert all(item.same for item in verify(*pair))
    zarr = pair[0].with_suffix(".zarr")
    with (
        open_tomogram(pair[0]) as tomogram,
        create_volume(zarr, tomogram, dtype="int8", label="x") as writer,
    ):
        for z in range(SHAPE[0]):
            writer.write_slice(z, np.zeros(SHAPE[1:], np.int8))
    assert overlays(verify(pair[0], zarr))
    code, out, _ = run("verify", *pair)
    assert code == 0 and out.endswith("they overlay\n") and "DIFFERS" not in out
    assert json.loads(run("verify", *pair, "--json")[1])["overlay"] is True


@pytest.mark.parametrize(
    ("name", "value", "decisive"),
    [
        ("origin", (5.0, -6.0, 7.5), True),
        ("nzstart", 4, True),
        ("cella", (480.0, 400.0, 88.0), True),
        ("mapc", 2, True),
        ("cellb", (90.0, 90.0, 120.0), True),
        ("origin", (5.0, -6.0, 7.001), False),
    ],
)
def test_each_field_that_matters_is_told(
    run: Run, pair: tuple[Path, Path], name: str, value: object, decisive: bool
) -> None:
    with mrcfile.open(pair[1], "r+", permissive=True) as mrc:
        mrc.header[name] = value
        if name == "mapc":
            mrc.header["mapr"] = 1
    code, out, _ = run("verify", *pair)
    assert code == int(decisive)
    assert ("DIFFERS" in out) == decisive
    assert "differs" in out.lower()


def test_cell_angles_of_zero_are_right_angles(pair: tuple[Path, Path]) -> None:
    with mrcfile.open(pair[1], "r+") as mrc:
        mrc.header.cellb = (0.0, 0.0, 0.0)
    assert overlays(verify(*pair))


@pytest.mark.parametrize(("spacing", "same"), [(300.0, False), (1.0, True), (0.0, True)])
def test_unknown_spacings_that_differ_do_not_overlay(
    run: Run, tmp_path: Path, spacing: float, same: bool
) -> None:
    one = write_mrc(tmp_path / "a.mrc", smooth(), 1.0)
    two = write_mrc(tmp_path / "b.mrc", smooth(), spacing)
    code, out, _ = run("verify", one, two)
    assert code == int(not same)
    assert ("DIFFERS  MRC cella/m" in out) != same


def test_what_is_no_number_agrees_with_itself(run: Run, tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a.mrc", smooth())
    with mrcfile.open(path, "r+") as mrc:
        mrc.header.origin = (np.nan, np.inf, 0.0)
    assert all(item.same for item in verify(path, path))
    code, out, _ = run("verify", path, path, "--json")
    assert code == 0 and not {"NaN", "Infinity"} & set(re.findall(r"\w+", out))
    told = {item["field"]: item["first"] for item in json.loads(out)["fields"]}
    assert told["MRC origin"] == [None, None, 0.0]


def test_volumes_of_another_size_do_not_overlay(tmp_path: Path) -> None:
    one = write_mrc(tmp_path / "a.mrc", smooth())
    two = write_mrc(tmp_path / "b.mrc", smooth()[1:])
    wrong = {item.field for item in verify(one, two) if item.decisive and not item.same}
    assert wrong == {"shape_zyx"}

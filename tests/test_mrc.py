"""MRC files: every header kind read right or refused in one line, every result where its source lies."""

from __future__ import annotations

import bz2
import gzip
import io
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mrcfile.dtypes import HEADER_DTYPE

from etsam.volume import create_volume, open_tomogram
from file_limit import file_limit

SHAPE = (5, 6, 7)
GEOMETRY = (
    *("nx", "ny", "nz", "nxstart", "nystart", "nzstart", "mx", "my", "mz", "cella", "cellb"),
    *("mapc", "mapr", "maps", "ispg", "origin", "nversion", "extra1"),
)
MODE_TYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}


def voxels(dtype: str, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Random voxels, reproducible, over most of the range of a type."""
    random = np.random.default_rng(3)
    if np.dtype(dtype).kind == "f":
        return random.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def save(
    path: Path,
    data: np.ndarray,
    *,
    order: str = "<",
    extended: bytes = b"",
    change: Callable[[np.ndarray], None] | None = None,
) -> Path:
    """Write an MRC file by hand: header fields set by `change`, voxels in byte order `order`."""
    header = np.zeros((), HEADER_DTYPE.newbyteorder(order))
    header["nz"], header["ny"], header["nx"] = data.shape
    header["mz"], header["my"], header["mx"] = data.shape
    header["mode"] = {value: key for key, value in MODE_TYPES.items()}.get(data.dtype.str[1:], 0)
    header["cella"] = tuple(10.0 * side for side in data.shape[::-1])
    header["cellb"] = (90.0, 90.0, 90.0)
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["dmin"], header["dmax"], header["dmean"] = data.min(), data.max(), data.mean()
    header["ispg"], header["nversion"] = 1, 20141
    header["nsymbt"] = len(extended)
    header["map"] = b"MAP "
    header["machst"] = (0x44, 0x44, 0, 0) if order == "<" else (0x11, 0x11, 0, 0)
    if change:
        change(header)
    path.write_bytes(
        header.tobytes() + extended + data.astype(data.dtype.newbyteorder(order)).tobytes()
    )
    return path


def fields_of(path: Path, order: str = "<") -> np.ndarray:
    return np.frombuffer(path.read_bytes()[:1024], HEADER_DTYPE.newbyteorder(order))[0]


def stamp(header: np.ndarray, flags: int) -> None:
    """Put IMOD's stamp and flags where it keeps them."""
    extra = bytearray(header["extra2"].tobytes())
    struct.pack_into("<ii", extra, 40, 1146047817, flags)
    header["extra2"] = bytes(extra)


def isotropic(header: np.ndarray) -> None:
    """Leave the header as it is."""


def anisotropic(header: np.ndarray) -> None:
    header["cella"] = (70.7, 61.1, 104.0)
    header["cellb"] = (90.0, 91.5, 120.25)


def shifted(header: np.ndarray) -> None:
    header["origin"] = (-7995.9463, 10648.699, 0.1)
    header["nxstart"], header["nystart"], header["nzstart"] = -3, 2, 1000


def permuted(header: np.ndarray) -> None:
    header["mapc"], header["mapr"], header["maps"] = 3, 1, 2
    header["mx"], header["my"], header["mz"] = 6, 5, 7
    header["cella"] = (60.0, 100.0, 210.0)
    header["origin"] = (1.0, 2.0, 3.0)


def image_stack(header: np.ndarray) -> None:
    header["ispg"], header["mz"] = 0, 1
    header["cella"]["z"] = 10.0
    header["nversion"] = 0
    stamp(header, 2 | 4)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("change", [isotropic, anisotropic, shifted, permuted, image_stack])
@pytest.mark.parametrize("dtype", ["int8", "int16", "float32"])
def test_result_has_every_geometry_field_of_its_source(tmp_path, order, change, dtype):
    source = save(tmp_path / "a.mrc", voxels("f4"), order=order, change=change)
    with open_tomogram(source) as tomogram:
        with create_volume(tmp_path / "b.mrc", tomogram, dtype=dtype, label="etsam 1") as writer:
            for z in (4, 0, 2, 1, 3):
                writer.write_slice(z, np.round(tomogram.read_slice(z)))
        with open_tomogram(tmp_path / "b.mrc") as result:
            assert result.voxel_spacing == tomogram.voxel_spacing
            assert result.origin == tomogram.origin
            expected = np.round(voxels("f4"))
            np.testing.assert_array_equal(result.read_slices(0, 5), expected)
    before, after = fields_of(source, order), fields_of(tmp_path / "b.mrc", order)
    for name in GEOMETRY:
        assert before[name].tobytes() == after[name].tobytes(), name
    assert after["mode"] == {"int8": 0, "int16": 1, "float32": 2}[dtype]
    assert after["dmin"] == expected.min()
    assert after["dmax"] == expected.max()
    assert after["dmean"] == pytest.approx(expected.mean(), abs=1e-6)
    assert after["rms"] == pytest.approx(expected.std(), rel=1e-5)
    assert after["label"][0] == b"etsam 1"


def test_mrcfile_finds_results_valid(tmp_path):
    source = save(tmp_path / "a.mrc", voxels("i1"), extended=b"x" * 160)
    with (
        open_tomogram(source) as tomogram,
        create_volume(tmp_path / "b.mrc", tomogram, dtype="int8", label="etsam") as writer,
    ):
        for z in range(5):
            writer.write_slice(z, tomogram.read_slice(z) > 0)
    assert mrcfile.validate(tmp_path / "b.mrc", print_file=io.StringIO())
    with mrcfile.open(tmp_path / "b.mrc") as result:
        assert result.data.dtype == np.int8
        np.testing.assert_array_equal(result.data, voxels("i1") > 0)
        assert result.header.nsymbt == 0
        assert len(result.extended_header) == 0


def test_imod_flags_say_that_our_bytes_are_signed(tmp_path):
    source = save(tmp_path / "a.mrc", voxels("i1"), change=lambda h: stamp(h, 2 | 4))
    with open_tomogram(source) as tomogram:
        assert tomogram.dtype == np.uint8
        with create_volume(tmp_path / "b.mrc", tomogram, dtype="int8", label="etsam") as writer:
            for z in range(5):
                writer.write_slice(z, np.full((6, 7), -1))
    stored = struct.unpack_from("<ii", (tmp_path / "b.mrc").read_bytes(), 152)
    assert stored == (1146047817, 1 | 2 | 4)
    with open_tomogram(tmp_path / "b.mrc") as result:
        assert result.read_slice(0).max() == -1


@pytest.mark.parametrize("mode", MODE_TYPES)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packing", ["", ".gz", ".bz2"])
def test_every_mode_order_and_packing_reads_the_same(tmp_path, mode, order, packing):
    data = voxels(MODE_TYPES[mode])
    path = save(tmp_path / "a.MRC", data, order=order, extended=b"e" * 100)
    if packing:
        packed = {".gz": gzip, ".bz2": bz2}[packing].compress(path.read_bytes())
        path = tmp_path / f"a.mrc{packing}"
        path.write_bytes(packed)
    with open_tomogram(path) as tomogram:
        assert tomogram.shape == SHAPE
        assert tomogram.dtype == data.dtype
        for z in (3, 0, 4):
            assert tomogram.read_slice(z).dtype == np.float32
            np.testing.assert_array_equal(tomogram.read_slice(z), data[z].astype(np.float32))
        np.testing.assert_array_equal(tomogram.read_slices(1, 4), data[1:4].astype(np.float32))


@pytest.mark.parametrize("packing", [".gz", ".bz2"])
def test_packed_results_hold_the_same_bytes(tmp_path, packing):
    tomogram = open_tomogram(save(tmp_path / "a.mrc", voxels("i2")))
    for name in ("b.mrc", f"b.mrc{packing}"):
        with create_volume(tmp_path / name, tomogram, dtype="int16", label="etsam") as writer:
            for z in range(5):
                writer.write_slice(z, tomogram.read_slice(z))
    tomogram.close()
    unpack = {".gz": gzip, ".bz2": bz2}[packing].decompress
    assert unpack((tmp_path / f"b.mrc{packing}").read_bytes()) == (tmp_path / "b.mrc").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a.mrc", "b.mrc", f"b.mrc{packing}"}


@pytest.mark.parametrize("stamped", [(0, 0, 0, 0), (0x11, 0x11, 0, 0), (1, 2, 3, 4)])
@pytest.mark.parametrize("shape", [(5, 6, 7), (256, 2, 512)])
@pytest.mark.parametrize("dtype", ["i1", "i2"])
def test_byte_order_is_found_without_the_machine_stamp(tmp_path, stamped, shape, dtype):
    def change(header: np.ndarray) -> None:
        header["machst"] = stamped
        header["map"] = b"\0\0\0\0"

    data = voxels(dtype, shape)
    with open_tomogram(save(tmp_path / "a.mrc", data, change=change)) as tomogram:
        np.testing.assert_array_equal(tomogram.read_slices(0, shape[0]), data)
        assert any("machine stamp" in note for note in tomogram.notes)
        assert any("MAP" in note for note in tomogram.notes)


@pytest.mark.parametrize(
    ("flags", "low", "high", "unsigned"),
    [
        (0, -128, 127, True),  # IMOD's stamp without flag 1
        (1, 0, 255, False),
        (None, 0, 255, True),  # no stamp, but signed bytes do not reach 255
        (None, 0, 127, False),
        (None, -128, 127, False),
        (None, 0, 0, False),
    ],
)
def test_unsigned_bytes_are_recognised_as_imod_does(tmp_path, flags, low, high, unsigned):
    def change(header: np.ndarray) -> None:
        header["dmin"], header["dmax"] = low, high
        if flags is not None:
            stamp(header, flags)

    data = voxels("i1")
    with open_tomogram(save(tmp_path / "a.mrc", data, change=change)) as tomogram:
        assert tomogram.dtype == (np.uint8 if unsigned else np.int8)
        expected = data.view(np.uint8) if unsigned else data
        np.testing.assert_array_equal(tomogram.read_slices(0, 5), expected)


@pytest.mark.parametrize(
    ("cell", "intervals", "spacing"),
    [
        ((70.0, 60.0, 50.0), (7, 6, 5), (10.0, 10.0, 10.0)),
        ((70.0, 120.0, 150.0), (7, 6, 5), (30.0, 20.0, 10.0)),
        ((140.0, 60.0, 10.0), (14, 6, 1), (10.0, 10.0, 10.0)),
        ((0.0, 0.0, 0.0), (7, 6, 5), None),
        ((7.0, 6.0, 5.0), (7, 6, 5), None),
        ((-70.0, 60.0, 50.0), (7, 6, 5), None),
        ((np.nan, 60.0, 50.0), (7, 6, 5), None),
        ((np.inf, 60.0, 50.0), (7, 6, 5), None),
        ((70.0, 60.0, 1e-30), (7, 6, 5), None),
        ((70.0, 60.0, 50.0), (0, 6, 5), None),
        ((70.0, 60.0, 50.0), (-7, 6, 5), None),
    ],
)
def test_spacing_is_cell_over_intervals_or_unknown(tmp_path, cell, intervals, spacing):
    def change(header: np.ndarray) -> None:
        header["cella"] = cell
        header["mx"], header["my"], header["mz"] = intervals

    with open_tomogram(save(tmp_path / "a.mrc", voxels("i1"), change=change)) as tomogram:
        assert tomogram.voxel_spacing == spacing


def test_permuted_axes_keep_storage_order(tmp_path):
    with open_tomogram(save(tmp_path / "a.mrc", voxels("i1"), change=permuted)) as tomogram:
        np.testing.assert_array_equal(tomogram.read_slice(2), voxels("i1")[2])
        # sections run along y, rows along x, columns along z
        assert tomogram.voxel_spacing == (20.0, 10.0, 30.0)
        assert tomogram.origin == (2.0, 1.0, 3.0)


def test_illegal_axis_map_is_read_as_xyz(tmp_path):
    def change(header: np.ndarray) -> None:
        header["mapc"], header["mapr"], header["maps"] = 1, 1, 7

    with open_tomogram(save(tmp_path / "a.mrc", voxels("i1"), change=change)) as tomogram:
        assert tomogram.voxel_spacing == (10.0, 10.0, 10.0)
        assert any("axis map" in note for note in tomogram.notes)


@pytest.mark.parametrize(
    ("cell", "given", "used"),
    [(10.0, None, 10.0), (1.0, None, None), (0.0, 8.0, 8.0), (1.0, 8.0, 8.0), (10.0, 8.0, 8.0)],
)
def test_spacing_used_places_start_indices_and_every_result(tmp_path, cell, given, used):
    def change(header: np.ndarray) -> None:
        header["cella"] = (7 * cell, 6 * cell, 5 * cell)
        header["nxstart"], header["nystart"], header["nzstart"] = 1, -2, 3

    source = save(tmp_path / "a.mrc", voxels("i1"), change=change)
    step = used or 1.0
    with open_tomogram(source, voxel_spacing=given) as tomogram:
        assert tomogram.voxel_spacing == (used and (used,) * 3)
        assert tomogram.origin == (3 * step, -2 * step, step)
        for name in ("b.mrc", "b.zarr"):
            with create_volume(tmp_path / name, tomogram, dtype="int8", label="etsam") as writer:
                for z in range(5):
                    writer.write_slice(z, np.ones((6, 7)))
            with open_tomogram(tmp_path / name) as result:
                assert result.voxel_spacing == tomogram.voxel_spacing
                assert result.origin == tomogram.origin
    assert fields_of(tmp_path / "b.mrc")["cella"].tolist() == (7 * step, 6 * step, 5 * step)
    assert fields_of(tmp_path / "b.mrc")["nystart"] == -2


@pytest.mark.parametrize(("claimed", "kept"), [(0, 0), (3, 3), (10, 9), (-5, 0), (99, 9)])
@pytest.mark.parametrize("there", [10, 2])
def test_labels_are_kept_and_ours_comes_last(tmp_path, claimed, kept, there):
    def change(header: np.ndarray) -> None:
        header["nlabl"] = claimed
        header["label"] = [f"label {i}".encode() if i < there else b"" for i in range(10)]

    kept = min(kept, there)

    source = save(tmp_path / "a.mrc", voxels("i1"), change=change)
    with open_tomogram(source) as tomogram:
        label = "étsam 0.1 " + "x" * 100
        with create_volume(tmp_path / "b.mrc", tomogram, dtype="int8", label=label) as writer:
            for z in range(5):
                writer.write_slice(z, np.zeros((6, 7)))
    header = fields_of(tmp_path / "b.mrc")
    assert header["nlabl"] == kept + 1
    first = 1 if kept == 9 else 0
    assert list(header["label"][:kept]) == [f"label {first + i}".encode() for i in range(kept)]
    assert header["label"][kept] == (b"?tsam 0.1 " + b"x" * 100)[:80]
    assert not any(header["label"][kept + 1 :])


def test_many_threads_read_what_one_reads(tmp_path):
    data = voxels("i2", (40, 30, 20))
    with (
        open_tomogram(save(tmp_path / "a.mrc", data)) as tomogram,
        ThreadPoolExecutor(4) as pool,
    ):
        for z, found in zip(
            list(range(40)) * 5, pool.map(tomogram.read_slice, list(range(40)) * 5), strict=True
        ):
            np.testing.assert_array_equal(found, data[z])


def test_reading_maps_no_file(tmp_path):
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc")
    with open_tomogram(save(tmp_path / "unmapped.mrc", voxels("f4"))) as tomogram:
        tomogram.read_slice(3)
        assert "unmapped.mrc" not in maps.read_text()


def test_a_full_disk_leaves_nothing(tmp_path):
    source = save(tmp_path / "a.mrc", voxels("f4", (8, 64, 64)))
    with (
        open_tomogram(source) as tomogram,
        file_limit(4096),
        pytest.raises(OSError, match="File too large"),
    ):
        create_volume(tmp_path / "b.mrc", tomogram, dtype="float32", label="etsam")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mrc"]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(0, 1023 + 160 + 210), st.sampled_from(["", ".gz", ".bz2"]), st.integers(0, 2**32)
)
def test_a_file_cut_short_anywhere_is_refused(tmp_path, length, packing, place):
    whole = save(tmp_path / "whole.mrc", voxels("i1"), extended=b"e" * 160).read_bytes()
    if packing:
        packed = {".gz": gzip, ".bz2": bz2}[packing].compress(whole)
        cut = packed[: place % len(packed)]
    else:
        cut = whole[:length]
    path = tmp_path / f"cut.mrc{packing}"
    path.write_bytes(cut)
    with pytest.raises(ValueError) as caught:
        open_tomogram(path)
    assert "\n" not in str(caught.value)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(0, 255), st.binary(min_size=4, max_size=4))
def test_a_damaged_header_word_gives_a_volume_or_one_line(tmp_path, word, value):
    content = bytearray(save(tmp_path / "whole.mrc", voxels("f4")).read_bytes())
    content[4 * word : 4 * word + 4] = value
    path = tmp_path / "damaged.mrc"
    path.write_bytes(content)
    try:
        tomogram = open_tomogram(path)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    with tomogram:
        assert np.isfinite(tomogram.read_slices(0, tomogram.shape[0])).all()
        with create_volume(tmp_path / "o.mrc", tomogram, dtype="int8", label="etsam") as writer:
            for z in range(tomogram.shape[0]):
                writer.write_slice(z, np.zeros(tomogram.shape[1:], bool))
    with open_tomogram(tmp_path / "o.mrc") as result:
        assert result.shape == tomogram.shape

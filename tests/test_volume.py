"""Volumes of any kind: finite slices out, whole results or nothing in, one clear line for everything else."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import tensorstore
import torch
from mrcfile.dtypes import HEADER_DTYPE
from mrcfile.utils import mode_from_dtype
from PIL import Image

from etsam.storage import partial_name
from etsam.volume import Tomogram, create_volume, open_tomogram, output_path, tomogram_from_array

SHAPE = (5, 6, 7)


def voxels(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def mrc(data: np.ndarray | None = None, **fields: object) -> bytes:
    """Bytes of an MRC file of 10 Å voxels, header fields set as given."""
    data = voxels() if data is None else data
    header = np.zeros((), HEADER_DTYPE)
    header["nx"], header["ny"], header["nz"] = data.shape[::-1]
    header["mx"], header["my"], header["mz"] = data.shape[::-1]
    header["cella"] = tuple(10.0 * side for side in data.shape[::-1])
    header["mode"] = mode_from_dtype(data.dtype)
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["ispg"] = 1
    header["map"] = b"MAP "
    header["machst"] = (0x44, 0x44, 0, 0)
    for name, value in fields.items():
        header[name] = value
    return header.tobytes() + data.tobytes()


def png() -> bytes:
    file = io.BytesIO()
    Image.new("L", (64, 64)).save(file, "png")
    return file.getvalue()


def npy() -> bytes:
    file = io.BytesIO()
    np.save(file, voxels())
    return file.getvalue()


def with_imod_flags(flags: int) -> bytes:
    content = bytearray(mrc(np.ones(SHAPE, np.int8)))
    struct.pack_into("<ii", content, 152, 1146047817, flags)
    return bytes(content)


HUGE = {"nx": 60_000, "ny": 60_000, "nz": 60_000}
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too short"),
    "one byte": (b"x", "too short"),
    "half a header": (mrc()[:600], "too short"),
    "header only": (mrc()[:1024], "cut short"),
    "one voxel missing": (mrc()[:-1], "cut short"),
    "text": (b"Dear tomogram, " * 200, "not an MRC volume"),
    "zeros": (bytes(5000), "not an MRC volume"),
    "ones": (b"\xff" * 5000, "not an MRC volume"),
    "xz": (lzma.compress(mrc()), "packed with xz: unpack"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(50), "packed with zstd: unpack"),
    "png": (png() + bytes(2000), "PNG"),
    "tiff": (b"II*\0" + bytes(2000), "TIFF"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(2000), "HDF5"),
    "numpy": (npy() + bytes(2000), "NumPy"),
    "zip": (b"PK\x03\x04" + bytes(2000), "zip"),
    "nx = 0": (mrc(nx=0), "not an MRC volume"),
    "ny < 0": (mrc(ny=-6), "not an MRC volume"),
    "nz too large": (mrc(nz=1 << 20), "not an MRC volume"),
    "more voxels than bytes": (mrc(**HUGE), "cut short"),
    "mode 3": (mrc(mode=3), "complex"),
    "mode 4": (mrc(mode=4), "complex"),
    "mode 16": (mrc(mode=16), "RGB"),
    "mode 101": (mrc(mode=101), "4-bit"),
    "mode 7": (mrc(mode=7), "not an MRC volume"),
    "mode -1": (mrc(mode=-1), "not an MRC volume"),
    "imod 4-bit": (with_imod_flags(17), "4-bit"),
    "2-D image": (mrc(voxels((1, 6, 7)), ispg=0), "2-D image"),
    "volume stack": (mrc(ispg=401), "stack of volumes"),
    "extended header beyond the end": (mrc(nsymbt=1 << 30) + b"x", "cut short"),
    "gzip of text": (gzip.compress(b"hello " * 1000), "not an MRC volume"),
    "gzip of nothing": (gzip.compress(b""), "too short"),
    "gzip cut short": (gzip.compress(mrc())[:300], "archive|cut short"),
    "gzip without its checksum": (gzip.compress(mrc())[:-8], "archive"),
    "gzip with a wrong checksum": (gzip.compress(mrc())[:-8] + bytes(8), "archive"),
    "gzip that promises 800 TB": (gzip.compress(mrc(**HUGE)), "cannot hold"),
    "gzip of gzip": (gzip.compress(gzip.compress(mrc())), "not an MRC volume|too short"),
    "gzip header only": (b"\x1f\x8b\x08", "archive"),
    "bzip2 cut short": (bz2.compress(mrc())[:300], "archive|cut short"),
    "bzip2 damaged": (b"BZh9" + bytes(500), "archive"),
    "bzip2 shorter than its header says": (bz2.compress(mrc()[:-100]), "cut short"),
}


@pytest.mark.parametrize("machine", [3, 6])
def test_em_files_are_recognised(tmp_path, machine):
    path = tmp_path / "a.em"
    path.write_bytes(struct.pack("<4b3i", machine, 0, 0, 5, 48, 40, 8) + bytes(4000))
    with pytest.raises(ValueError, match=r"a\.em is an EM file.*convert"):
        open_tomogram(path)
    path.write_bytes(mrc())
    open_tomogram(path).close()


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", ["a.mrc", "a b.ünï.1.2.rec.gz"])
def test_what_is_no_volume_is_refused_in_one_line(tmp_path, kind, name):
    content, reason = REFUSED[kind]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        open_tomogram(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (mrc(nsymbt=-5), "extended header"),
        (mrc(nsymbt=77), "extended header"),
        (mrc(map=b"\0\0\0\0"), "MAP"),
        (mrc(machst=(9, 9, 9, 9)), "machine stamp"),
        (mrc(mapc=0, mapr=0, maps=0), "axis map"),
        (mrc() + b"more than the header says", ""),
        (mrc(ispg=0, mz=1), ""),
        (mrc(dmin=np.nan, dmax=-np.inf, dmean=np.nan, rms=np.nan), ""),
        (mrc(nlabl=2**31 - 1), ""),
        (gzip.compress(mrc() + b"more"), ""),
        (gzip.compress(mrc()[:700]) + gzip.compress(mrc()[700:]), ""),
        (bz2.compress(mrc()), ""),
    ],
)
@pytest.mark.parametrize("name", ["a.mrc", "no suffix", "a.tar.GZ"])
def test_odd_files_are_read_right_whatever_their_name(tmp_path, content, note, name):
    path = tmp_path / name
    path.write_bytes(content)
    with open_tomogram(path) as tomogram:
        np.testing.assert_array_equal(tomogram.read_slices(0, 5), voxels())
        assert any(note in found for found in tomogram.notes) or not note


def test_what_is_not_there_is_said(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling.mrc").symlink_to(tmp_path / "gone.mrc")
    (tmp_path / "loop.mrc").symlink_to(tmp_path / "loop.mrc")
    os.mkfifo(tmp_path / "pipe.mrc")
    for name in ("none.mrc", "dangling.mrc", "loop.mrc"):
        with pytest.raises(FileNotFoundError, match=name):
            open_tomogram(tmp_path / name)
    with pytest.raises(ValueError, match="not OME-Zarr"):
        open_tomogram(tmp_path / "folder")
    with pytest.raises(ValueError, match="regular file"):
        open_tomogram(tmp_path / "pipe.mrc")
    (tmp_path / "a.mrc").write_bytes(mrc())
    (tmp_path / "link.mrc").symlink_to("a.mrc")
    with open_tomogram(tmp_path / "link.mrc") as tomogram:
        assert tomogram.shape == SHAPE


@pytest.mark.parametrize("spacing", [0.0, -1.0, float("nan"), float("inf"), 0.1, 1e3])
def test_an_implausible_spacing_is_refused(tmp_path, spacing):
    (tmp_path / "a.mrc").write_bytes(mrc())
    with pytest.raises(ValueError, match="voxel spacing"):
        open_tomogram(tmp_path / "a.mrc", voxel_spacing=spacing)


def save_as(kind: str, data: np.ndarray, folder: Path) -> Tomogram:
    if kind == "array":
        return tomogram_from_array(data)
    (folder / "a.mrc").write_bytes(mrc(data))
    return open_tomogram(folder / "a.mrc")


@pytest.mark.parametrize("kind", ["array", "file"])
def test_nan_and_infinity_become_the_mean_of_their_slice(tmp_path, kind):
    data = voxels()
    data[1, 2, 3], data[1, 0, 0], data[4, 5, 6] = np.nan, np.inf, -np.inf
    data[3] = np.nan
    before = data.copy()
    with save_as(kind, data, tmp_path) as tomogram:
        for z in (3, 1, 0, 4, 2, 3):  # the same answer in any order, and twice
            found = tomogram.read_slice(z)
            finite = np.isfinite(data[z])
            fill = data[z][finite].mean() if finite.any() else data[np.isfinite(data)].mean()
            np.testing.assert_allclose(found, np.where(finite, data[z], fill), rtol=1e-5)
        assert tomogram.replaced_voxels == 3 + 42
    np.testing.assert_array_equal(data, before)


@pytest.mark.parametrize("kind", ["array", "file"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_volume_without_a_finite_voxel_is_refused(tmp_path, kind, value):
    with (
        save_as(kind, np.full(SHAPE, value, np.float32), tmp_path) as tomogram,
        pytest.raises(ValueError, match="no finite voxel"),
    ):
        tomogram.read_slice(2)


def test_a_file_that_shrinks_is_noticed(tmp_path):
    (tmp_path / "a.mrc").write_bytes(mrc())
    with open_tomogram(tmp_path / "a.mrc") as tomogram:
        os.truncate(tmp_path / "a.mrc", 1100)
        with pytest.raises(ValueError, match="ended while"):
            tomogram.read_slice(3)


def test_slices_outside_are_refused():
    with tomogram_from_array(voxels()) as tomogram:
        for start, stop in ((-1, 2), (3, 6), (4, 3)):
            with pytest.raises(IndexError):
                tomogram.read_slices(start, stop)
        assert tomogram.read_slices(5, 5).shape == (0, 6, 7)


@pytest.mark.parametrize("dtype", ["u1", "i4", ">i2", "f8", "f2", "?", "u8"])
def test_arrays_of_any_real_type_become_float32(dtype):
    data = (voxels() * 3).astype(dtype) if dtype not in "u1u8" else np.abs(voxels()).astype(dtype)
    with tomogram_from_array(data, voxel_spacing=7.5) as tomogram:
        assert tomogram.voxel_spacing == (7.5,) * 3
        found = tomogram.read_slices(0, 5)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, data.astype(np.float32))
        found[:] = 0
        np.testing.assert_array_equal(tomogram.read_slices(0, 5), data.astype(np.float32))


@pytest.mark.parametrize(
    "array", [np.ones((5, 6)), np.ones((1, 5, 6, 7)), np.ones((0, 6, 7)), np.ones(SHAPE, complex)]
)
def test_arrays_of_another_kind_are_refused(array):
    with pytest.raises(ValueError, match="a tomogram"):
        tomogram_from_array(array)


def test_arrays_of_other_libraries_are_read(tmp_path):
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{tmp_path}/a/"}}
    lazy = tensorstore.open(spec, create=True, dtype="float32", shape=SHAPE).result()
    lazy.write(voxels()).result()
    for array in (torch.from_numpy(voxels()), lazy, voxels().tolist()):
        with tomogram_from_array(array) as tomogram:
            np.testing.assert_allclose(tomogram.read_slices(0, 5), voxels(), rtol=1e-6)
    for odd in (torch.zeros(SHAPE, dtype=torch.bfloat16), torch.zeros(SHAPE, requires_grad=True)):
        with pytest.raises(ValueError, match="no array for NumPy"):
            tomogram_from_array(odd)


VIEWS: dict[str, Callable[[np.memmap], np.ndarray]] = {
    "whole": lambda mapped: mapped,
    "later slices": lambda mapped: mapped[3:],
    "plain view": lambda mapped: np.asarray(mapped)[2:9],
    "scattered": lambda mapped: mapped[::2, 1:, ::-1],
    "other type": lambda mapped: mapped.view("i4"),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_memory_maps_and_their_views_read_right(tmp_path, view, mode):
    data = voxels((10, 6, 7))
    np.save(tmp_path / "a.npy", data)
    mapped = VIEWS[view](np.load(tmp_path / "a.npy", mmap_mode=mode))
    if mode != "r":
        mapped[4] = 5  # "c" keeps this to itself, "r+" passes it on
    with tomogram_from_array(mapped) as tomogram:
        for z in (4, 0, len(mapped) - 1):
            np.testing.assert_array_equal(tomogram.read_slice(z), mapped[z].astype(np.float32))


def test_a_memory_map_does_not_fill_the_memory(tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc")
    np.save(tmp_path / "a.npy", np.zeros((100, 512, 512), np.float32))
    code = (
        "import sys, numpy as np; from etsam.volume import tomogram_from_array\n"
        "def rss(): return int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
        "t = tomogram_from_array(np.load(sys.argv[1], mmap_mode='r')); t.read_slice(0); a = rss()\n"
        "for z in range(100): t.read_slice(z)\n"
        "t.close(); print(rss() - a)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.npy")]
    grown = int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert grown < 8_000  # kB; the map is 102,400


@pytest.mark.parametrize("name", ["b.mrc", "b.mrc.gz", "b.zarr"])
def test_a_failed_or_unfinished_result_leaves_nothing(tmp_path, name):
    with tomogram_from_array(voxels()) as tomogram:
        with pytest.raises(KeyboardInterrupt):  # noqa: SIM117
            with create_volume(tmp_path / name, tomogram, dtype="int8", label="x") as writer:
                writer.write_slice(0, np.ones((6, 7)))
                (hidden,) = (path.name for path in tmp_path.iterdir())
                assert re.fullmatch(rf"\.{re.escape(name)}\.[0-9a-f]{{8}}\.partial", hidden)
                assert hidden != partial_name(tmp_path / name).name  # another writer's
                raise KeyboardInterrupt
        assert not list(tmp_path.iterdir())
        with pytest.raises(ValueError, match="4 slices were not written"):  # noqa: SIM117
            with create_volume(tmp_path / name, tomogram, dtype="int8", label="x") as writer:
                writer.write_slice(0, np.ones((6, 7)))
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["b.mrc", "b.zarr"])
def test_results_replace_older_ones_only_when_complete(tmp_path, name):
    with tomogram_from_array(voxels()) as tomogram:
        for value in (1, 2):
            with create_volume(tmp_path / name, tomogram, dtype="int8", label="x") as writer:
                for z in range(5):
                    writer.write_slice(z, np.full((6, 7), value))
                if value == 2:
                    with open_tomogram(tmp_path / name) as old:
                        assert old.read_slice(0).max() == 1
    with open_tomogram(tmp_path / name) as result:
        assert result.read_slice(0).max() == 2
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_the_type_cannot_hold_is_refused(tmp_path):
    good = np.zeros((6, 7))
    with tomogram_from_array(voxels()) as tomogram:
        with pytest.raises(OSError, match="holds 0.0 to 200"):  # noqa: SIM117
            with create_volume(tmp_path / "b.mrc", tomogram, dtype="int8", label="x") as writer:
                for bad, reason in (
                    (good + 0.5, "fractions"),
                    (good + np.nan, "cannot hold|fractions"),
                    (np.zeros((7, 6)), "shape"),
                ):
                    with pytest.raises(ValueError, match=reason):
                        writer.write_slice(0, bad)
                writer.write_slice(0, good)
                for z in (0, -1, 5):
                    with pytest.raises(ValueError, match="once"):
                        writer.write_slice(z, good)
                try:
                    writer.write_slice(1, np.linspace(0, 200, 42).reshape(6, 7))
                except ValueError as error:
                    raise OSError(str(error)) from error
        with pytest.raises(ValueError, match="NaN"):  # noqa: SIM117
            with create_volume(tmp_path / "b.mrc", tomogram, dtype="float32", label="x") as writer:
                writer.write_slice(0, good * np.nan)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["none/b.mrc", "none/b.zarr", "taken.mrc"])
def test_a_place_where_nothing_can_be_written_is_said_at_once(tmp_path, name):
    (tmp_path / "taken.mrc").mkdir()
    with tomogram_from_array(voxels()) as tomogram, pytest.raises(OSError):
        create_volume(tmp_path / name, tomogram, dtype="int8", label="x")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.mrc"]


@pytest.mark.parametrize(
    ("source", "folder", "expected"),
    [
        ("d/TS_1_10.00Apx.mrc", None, "d/TS_1_10.00Apx_membrane.mrc"),
        ("d/TS_1_10.00Apx.mrc.gz", None, "d/TS_1_10.00Apx_membrane.mrc"),
        ("d/TS.1.REC.BZ2", "out", "out/TS.1_membrane.mrc"),
        ("TS_1_10.00Apx", None, "TS_1_10.00Apx_membrane.mrc"),
        ("a.map", None, "a_membrane.mrc"),
        ("a.b.st", None, "a.b_membrane.mrc"),
        ("d/a.1.zarr", None, "d/a.1_membrane.zarr"),
        ("d/a.ome.zarr", None, "d/a_membrane.zarr"),
        ("d/a.zarr/0", None, "d/a_membrane.zarr"),
        ("d/a.zarr/b.mrc", None, "d/a.zarr/b_membrane.mrc"),
        ("d/a.zarr/0", "out", "out/a_membrane.zarr"),
    ],
)
def test_results_keep_the_whole_stem(source, folder, expected):
    assert output_path(Path(source), "_membrane", folder and Path(folder)) == Path(expected)
    assert output_path(source, "membrane", folder) == Path(expected)


def test_a_real_tomogram_and_its_mask(shared, tmp_path):
    path = shared / "real/lysosome/tomogram.mrc"
    with open_tomogram(path) as tomogram, mrcfile.mmap(path) as expected:
        assert (tomogram.shape, tomogram.dtype, tomogram.notes) == ((256, 512, 512), "int8", ())
        assert tomogram.voxel_spacing == pytest.approx((13.6,) * 3)
        np.testing.assert_array_equal(tomogram.read_slices(100, 102), expected.data[100:102])

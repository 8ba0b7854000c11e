"""OME-Zarr: metadata as the specification wants them, voxels where MRC has them, damage refused."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import etsam.ngff
from etsam.storage import SPACING_UNKNOWN
from etsam.volume import create_volume, open_tomogram, tomogram_from_array

SHAPE = (37, 40, 300)
UNITS = {"axes": [{"name": axis, "type": "space", "unit": "angstrom"} for axis in "zyx"]}
FACTORS = {"picometer": 0.01, "angstrom": 1, "nanometer": 10, "micrometer": 1e4}
FACTORS |= {"millimeter": 1e7, "meter": 1e10, "ANGSTROM": 1}


def voxels(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(5).normal(size=shape).astype(np.float32)


def store_array(
    folder: Path, data: np.ndarray, chunks: tuple[int, ...], zarr_format: int = 2, **codecs: Any
) -> None:
    """Write a plain Zarr array without any of our code."""
    if zarr_format == 2:
        metadata = {"chunks": chunks, "dtype": data.dtype.str, "shape": data.shape, **codecs}
    else:
        grid = {"name": "regular", "configuration": {"chunk_shape": chunks}}
        metadata = {"chunk_grid": grid, "data_type": data.dtype.name, "shape": data.shape, **codecs}
    spec = {
        "driver": "zarr" if zarr_format == 2 else "zarr3",
        "kvstore": {"driver": "file", "path": f"{folder}/"},
        "metadata": metadata,
    }
    tensorstore.open(spec, create=True).result().write(data).result()


def image(folder: Path, data: np.ndarray, multiscale: dict[str, Any], **given: Any) -> Path:
    """Write an OME-Zarr 0.4 image by hand: `multiscale` is its metadata, level "0" is `data`."""
    store_array(folder / "0", data, given.get("chunks", data.shape))
    (folder / ".zgroup").write_text('{"zarr_format": 2}')
    content = {"version": "0.4", "datasets": [{"path": "0"}], **multiscale}
    (folder / ".zattrs").write_text(json.dumps({"multiscales": [content]}))
    return folder


def level(scale: list[float], translation: list[float] | None = None) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
    if translation:
        steps.append({"type": "translation", "translation": translation})
    return [{"path": "0", "coordinateTransformations": steps}]


def write(path: Path, data: np.ndarray, order: list[int], version: str, dtype: Any) -> None:
    with (
        tomogram_from_array(data, voxel_spacing=7.84) as tomogram,
        create_volume(path, tomogram, dtype=dtype, label="etsam 1", ngff_version=version) as writer,
    ):
        for z in order:
            writer.write_slice(z, data[z])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_written_metadata_follow_the_specification(tmp_path, version):
    data = voxels()
    write(tmp_path / "a.zarr", data, list(range(37)), version, "float32")
    if version == "0.4":
        assert json.loads((tmp_path / "a.zarr/.zgroup").read_text()) == {"zarr_format": 2}
        attributes = json.loads((tmp_path / "a.zarr/.zattrs").read_text())
        (multiscale,) = attributes["multiscales"]
        assert multiscale["version"] == "0.4"
        array = json.loads((tmp_path / "a.zarr/0/.zarray").read_text())
        assert array["dtype"] == "<f4"
        assert array["dimension_separator"] == "/"
        assert array["chunks"] == [16, 40, 256]
        assert (tmp_path / "a.zarr/0/2/0/1").is_file()
    else:
        group = json.loads((tmp_path / "a.zarr/zarr.json").read_text())
        assert (group["zarr_format"], group["node_type"]) == (3, "group")
        attributes = group["attributes"]
        assert attributes["ome"]["version"] == "0.5"
        (multiscale,) = attributes["ome"]["multiscales"]
        assert "version" not in multiscale
        array = json.loads((tmp_path / "a.zarr/0/zarr.json").read_text())
        assert array["dimension_names"] == ["z", "y", "x"]
        assert (tmp_path / "a.zarr/0/c/2/0/1").is_file()
    assert array["shape"] == list(SHAPE)
    assert multiscale["axes"] == UNITS["axes"]
    assert multiscale["datasets"] == level([7.84] * 3, [0.0] * 3)
    assert attributes["etsam"]["label"] == "etsam 1"
    assert attributes["etsam"]["mean"] == pytest.approx(data.mean(dtype=float))
    assert attributes["etsam"]["rms"] == pytest.approx(data.std(dtype=float))
    with open_tomogram(tmp_path / "a.zarr") as result:
        assert result.voxel_spacing == (7.84,) * 3
        assert result.info.ngff_version == version
        np.testing.assert_array_equal(result.read_slices(0, 37), data)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(
    ("order", "dtype"), [("forward", "int8"), ("backward", "int16"), ("shuffled", "float32")]
)
def test_slices_may_come_in_any_order(tmp_path, version, dtype, order):
    data = np.round(voxels((100, 9, 8)) * 30)
    places = {
        "forward": list(range(100)),
        "backward": list(range(99, -1, -1)),
        "shuffled": np.random.default_rng(0).permutation(100).tolist(),
    }[order]
    write(tmp_path / "a.zarr", data, places, version, dtype)
    with open_tomogram(tmp_path / "a.zarr") as result:
        assert result.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(result.read_slices(0, 100), data)


def test_mrc_to_zarr_and_back_keeps_every_voxel_and_place(tmp_path):
    data = voxels((6, 7, 8))
    source = tomogram_from_array(data, voxel_spacing=13.6)
    for name in ("a.mrc", "b.zarr", "c.mrc", "d.zarr"):
        with (
            source,
            create_volume(tmp_path / name, source, dtype="float32", label="etsam") as writer,
        ):
            for z in range(6):
                writer.write_slice(z, source.read_slice(z))
        source = open_tomogram(tmp_path / name)
        np.testing.assert_array_equal(source.read_slices(0, 6), data)
        assert source.read_slice(0)[0, 5] == data[0, 0, 5]  # the first row stays the first
        assert source.voxel_spacing == pytest.approx((13.6,) * 3, rel=1e-7)
    source.close()
    assert (tmp_path / "a.mrc").read_bytes()[1024:] == (tmp_path / "c.mrc").read_bytes()[1024:]
    header, again = ((tmp_path / name).read_bytes()[:220] for name in ("a.mrc", "c.mrc"))
    assert header == again


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_paths_may_lead_up_and_down(tmp_path, monkeypatch, version):
    data = voxels((6, 7, 8))
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    write(Path("../a.zarr"), data, list(range(6)), version, "float32")
    for name in ("../a.zarr", "../sub/../a.zarr/0", "../a.zarr/../a.zarr"):
        with open_tomogram(name) as tomogram:
            np.testing.assert_array_equal(tomogram.read_slices(0, 6), data)


def test_a_name_that_is_no_unicode_is_refused_in_one_line(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff.zarr")
    data = voxels((6, 7, 8))
    with pytest.raises(ValueError, match="no Unicode"):
        write(path, data, [], "0.4", "float32")
    write(tmp_path / "a.zarr", data, list(range(6)), "0.4", "float32")
    (tmp_path / "a.zarr").rename(path)
    with pytest.raises(ValueError, match="no Unicode"):
        open_tomogram(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("limit", [0, 1 << 30])
@pytest.mark.parametrize("chunks", [(1, 40, 300), (37, 40, 300), (8, 16, 128), (64, 64, 512)])
def test_chunks_of_any_shape_read_the_same(tmp_path, monkeypatch, zarr_format, limit, chunks):
    monkeypatch.setattr(etsam.ngff, "LAYER_IN_MEMORY", limit)  # 0: through a temporary file
    data = voxels()
    store_array(tmp_path / "a.zarr", data, chunks, zarr_format)
    with open_tomogram(tmp_path / "a.zarr", voxel_spacing=10.0) as tomogram:
        for z in (0, 36, 17, 16):
            np.testing.assert_array_equal(tomogram.read_slice(z), data[z])
        np.testing.assert_array_equal(tomogram.read_slices(5, 30), data[5:30])
        assert tomogram.voxel_spacing == (10.0,) * 3


def test_sharded_fortran_and_big_endian_arrays(tmp_path):
    data = voxels()
    inner = {"chunk_shape": [4, 20, 100], "codecs": [{"name": "bytes"}, {"name": "gzip"}]}
    shards = [{"name": "sharding_indexed", "configuration": inner}]
    store_array(tmp_path / "s.zarr", data, (16, 40, 300), 3, codecs=shards)
    store_array(tmp_path / "f.zarr", data, (16, 40, 300), 2, order="F")
    store_array(tmp_path / "b.zarr", data.astype(">f4"), (16, 40, 300))
    for name in ("s.zarr", "f.zarr", "b.zarr"):
        with open_tomogram(tmp_path / name) as tomogram:
            np.testing.assert_array_equal(tomogram.read_slices(0, 37), data)
            assert not [note for note in tomogram.notes if "chunks" in note]


@pytest.mark.parametrize(
    "units", [*([unit] * 3 for unit in FACTORS), ["nanometer", "angstrom", "picometer"]]
)
def test_units_become_angstrom(tmp_path, units):
    pairs = list(zip("zyx", units, strict=True))
    axes = [{"name": axis, "type": "space", "unit": unit} for axis, unit in pairs]
    factors = np.array([FACTORS[unit] for unit in units])
    scale, shift = ((np.array(row) / factors).tolist() for row in ((2, 3, 4), (5, 6, -7)))
    content = {"axes": axes, "datasets": level(scale, shift)}
    with open_tomogram(image(tmp_path / "a", voxels(), content)) as tomogram:
        assert tomogram.voxel_spacing == pytest.approx((2, 3, 4))
        assert tomogram.origin == pytest.approx((5, 6, -7))


@pytest.mark.parametrize(
    "content",
    [
        {"axes": list("zyx"), "version": "0.3"},
        {"axes": UNITS["axes"], "datasets": [{"path": "0"}]},
        {"axes": [{"name": axis, "type": "space"} for axis in "zyx"], "datasets": level([8.0] * 3)},
        {"axes": [*UNITS["axes"][:2], {"name": "x"}], "datasets": level([8.0] * 3)},
        {"axes": UNITS["axes"], "datasets": level([1.0] * 3)},
        {"axes": UNITS["axes"], "datasets": level([0.0] * 3)},
        {"axes": UNITS["axes"], "datasets": level([8.0, -8.0, 8.0])},
        {"axes": [{"name": a, "unit": "furlong"} for a in "zyx"], "datasets": level([8.0] * 3)},
    ],
)
def test_spacing_without_length_or_sense_is_unknown(tmp_path, content):
    with open_tomogram(image(tmp_path / "a", voxels(), content)) as tomogram:
        assert tomogram.voxel_spacing is None
        assert any(note.endswith(SPACING_UNKNOWN) for note in tomogram.notes)
        np.testing.assert_array_equal(tomogram.read_slice(1), voxels()[1])


def test_transformations_of_level_and_image_combine(tmp_path):
    whole = [{"type": "scale", "scale": [2.0, 2.0, 2.0]}]
    content = {**UNITS, "datasets": level([4.0] * 3, [1.0, 2.0, 3.0])}
    content["coordinateTransformations"] = whole
    with open_tomogram(image(tmp_path / "a", voxels(), content)) as tomogram:
        assert tomogram.voxel_spacing == (8.0,) * 3
        assert tomogram.origin == (2.0, 4.0, 6.0)


@pytest.mark.parametrize("axes", ["czyx", "tczyx", "xyz", "tzyx", "yxz"])
def test_axes_are_brought_to_zyx(tmp_path, axes):
    data = voxels((3, 4, 5))
    sides = {"z": 3, "y": 4, "x": 5}
    kept = [axis for axis in axes if axis in sides]
    stored = data.transpose(["zyx".index(axis) for axis in kept])
    stored = np.ascontiguousarray(stored).reshape([sides.get(axis, 1) for axis in axes])
    scale = [{"z": 2.0, "y": 3.0, "x": 4.0}.get(axis, 1.0) for axis in axes]
    content = {
        "axes": [{"name": axis, "unit": "angstrom"} for axis in axes],
        "datasets": level(scale),
    }
    with open_tomogram(image(tmp_path / "a", stored, content)) as tomogram:
        assert tomogram.shape == (3, 4, 5)
        assert tomogram.voxel_spacing == (2.0, 3.0, 4.0)
        np.testing.assert_array_equal(tomogram.read_slices(0, 3), data)


@pytest.mark.parametrize(
    ("names", "taken"),
    [(["x", "y", "z"], "xyz"), (["Z", "Y", "X"], "zyx"), (["a", "b", "c"], "zyx"), (None, "zyx")],
)
def test_a_plain_zarr_3_array_may_name_its_axes(tmp_path, names, taken):
    data = voxels((3, 4, 5))
    stored = np.ascontiguousarray(data.transpose(["zyx".index(axis) for axis in taken]))
    given = {} if names is None else {"dimension_names": names}
    store_array(tmp_path / "a", stored, stored.shape, 3, **given)
    with open_tomogram(tmp_path / "a") as tomogram:
        assert tomogram.voxel_spacing is None
        np.testing.assert_array_equal(tomogram.read_slices(0, 3), data)


def test_first_level_is_read_and_others_by_their_own_path(tmp_path):
    content = {**UNITS, "datasets": level([8.0] * 3)}
    content["datasets"].append(
        {
            "path": "small",
            "coordinateTransformations": [{"type": "scale", "scale": [16.0] * 3}],
        }
    )
    folder = image(tmp_path / "a.zarr", voxels(), content)
    store_array(folder / "small", voxels()[::2, ::2, ::2], (8, 8, 8))
    with open_tomogram(folder) as fine, open_tomogram(folder / "small") as coarse:
        assert (fine.shape, fine.voxel_spacing) == (SHAPE, (8.0,) * 3)
        assert (coarse.shape, coarse.voxel_spacing) == ((19, 20, 150), (16.0,) * 3)


def test_missing_chunks_are_the_fill_value_and_said(tmp_path):
    data = voxels()
    write(tmp_path / "a.zarr", data, list(range(37)), "0.4", "float32")
    (tmp_path / "a.zarr/0/1/0/0").unlink()
    with open_tomogram(tmp_path / "a.zarr") as tomogram:
        assert any("1 of 6 chunks" in note for note in tomogram.notes)
        assert not tomogram.read_slice(20)[:, :256].any()
        np.testing.assert_array_equal(tomogram.read_slice(20)[:, 256:], data[20][:, 256:])


def test_a_damaged_chunk_is_refused_when_read(tmp_path):
    write(tmp_path / "a.zarr", voxels(), list(range(37)), "0.5", "float32")
    chunk = tmp_path / "a.zarr/0/c/1/0/0"
    chunk.write_bytes(chunk.read_bytes()[:50])
    with open_tomogram(tmp_path / "a.zarr") as tomogram:
        np.testing.assert_array_equal(tomogram.read_slice(3), voxels()[3])
        with pytest.raises(ValueError, match="damaged"):
            tomogram.read_slice(20)


def test_an_existing_image_is_replaced_and_another_folder_is_not(tmp_path):
    for value in (1, 2):
        data = np.full(SHAPE, value, np.float32)
        write(tmp_path / "a.zarr", data, list(range(37)), "0.4", "int8")
        with open_tomogram(tmp_path / "a.zarr") as result:
            assert result.read_slice(36).max() == value
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "b.zarr/thesis.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="not Zarr"):
        write(tmp_path / "b.zarr", voxels(), [], "0.4", "int8")
    assert {path.name for path in tmp_path.iterdir()} == {"a.zarr", "b.zarr"}


BAD_METADATA: list[Any] = [
    "not json {",
    "[1, 2]",
    "null",
    '{"multiscales": 7}',
    '{"multiscales": []}',
    '{"multiscales": [5]}',
    '{"multiscales": [{}]}',
    '{"multiscales": [{"datasets": []}]}',
    '{"multiscales": [{"datasets": [{}]}]}',
    '{"multiscales": [{"datasets": [{"path": 5}]}]}',
    '{"multiscales": [{"datasets": [{"path": "gone"}]}]}',
    '{"multiscales": [{"datasets": [{"path": "../other/0"}]}]}',
    '{"multiscales": [{"datasets": [{"path": "/etc"}]}]}',
    '{"multiscales": [{"axes": ["z", "y"], "datasets": [{"path": "0"}]}]}',
    '{"multiscales": [{"axes": ["z", "z", "x"], "datasets": [{"path": "0"}]}]}',
    '{"multiscales": [{"axes": "zyx", "datasets": [{"path": "0"}]}]}',
    '{"multiscales": [{"axes": [1, 2, 3], "datasets": [{"path": "0"}]}]}',
    '{"multiscales": [{"axes": ["c", "z", "y", "x"], "datasets": [{"path": "0"}]}]}',
    '{"multiscales": [{"datasets": [{"path": "0"}]}]}',  # version 0.1 means five axes
    '{"plate": {}}',
    '{"bioformats2raw.layout": 3}',
    '{"ome": [1]}',
    '{"ome": {"multiscales": 7}}',
    "[" * 100_000,
    '{"multiscales": [{"axes": ["z", "y", "x"], "datasets": [{"path": "0", '
    '"coordinateTransformations": [{"type": "scale", "scale": [1, 2]}]}]}]}',
    '{"multiscales": [{"axes": ["z", "y", "x"], "datasets": [{"path": "0", '
    '"coordinateTransformations": [{"type": "scale", "scale": [1, 2, NaN]}]}]}]}',
    '{"multiscales": [{"axes": ["z", "y", "x"], "datasets": [{"path": "0", '
    '"coordinateTransformations": {"type": "scale"}}]}]}',
]


@pytest.mark.parametrize("content", BAD_METADATA, ids=range(len(BAD_METADATA)))
def test_bad_metadata_are_refused_in_one_line(tmp_path, content):
    folder = image(tmp_path / "a.zarr", voxels((3, 4, 5)), UNITS)
    image(tmp_path / "other", voxels((3, 4, 5)), UNITS)
    (folder / ".zattrs").write_text(content)
    with pytest.raises(ValueError) as caught:
        open_tomogram(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("chunks", [[1 << 40, 1, 1], [1, 1 << 40, 1], [1 << 20, 1 << 12, 1 << 12]])
def test_chunks_far_larger_than_the_array_are_refused(tmp_path, chunks):
    """They are decoded whole, which ends the process where memory does not suffice."""
    folder = image(tmp_path / "a.zarr", voxels((3, 4, 5)), UNITS)
    metadata = json.loads((folder / "0/.zarray").read_text())
    (folder / "0/.zarray").write_text(json.dumps({**metadata, "chunks": chunks}))
    with pytest.raises(ValueError, match="too large to decode") as caught:
        open_tomogram(folder)
    assert "\n" not in str(caught.value)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(["shape", "chunks", "dtype", "order", "compressor", "zarr_format", "filters"]),
    st.one_of(
        st.none(),
        st.integers(-5, 5),
        st.lists(st.integers(-3, 1 << 40), max_size=5),
        st.sampled_from(["<c8", "|O", "|S5", "<f2", ">i4", "<M8[s]", "C", "F", {}, {"id": "none"}]),
    ),
)
def test_bad_array_metadata_give_a_volume_or_one_line(tmp_path, key, value):
    folder = tmp_path / "a.zarr"
    if not folder.exists():
        image(folder, voxels((3, 4, 5)), UNITS)
        (folder / "good").write_bytes((folder / "0/.zarray").read_bytes())
    metadata = json.loads((folder / "good").read_text())
    (folder / "0/.zarray").write_text(json.dumps({**metadata, key: value}))
    try:
        with open_tomogram(folder) as tomogram:
            if math.prod(tomogram.shape) < 1000:
                tomogram.read_slices(0, tomogram.shape[0])
    except ValueError as error:
        assert "\n" not in str(error)

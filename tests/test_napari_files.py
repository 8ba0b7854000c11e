"""Layers as files: what the napari plugin writes, without napari."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest

from etsam.napari import files
from etsam.napari.files import SOURCE, read_layers, write_image, write_labels
from etsam.volume import open_tomogram

SPACING = 10.0
ORIGIN = (100.0, 200.0, 300.0)
SHAPE = (12, 64, 64)


@pytest.mark.parametrize("suffix", [".mrc", ".zarr"])
def test_labels_are_saved_in_place(tmp_path: Path, suffix: str) -> None:
    tomogram = tmp_path / "TS_1.mrc"
    with mrcfile.new(tomogram) as mrc:
        mrc.set_data(np.ones(SHAPE, np.float32))
        mrc.voxel_size = SPACING
        mrc.header.origin = tuple(reversed(ORIGIN))
    labels = np.random.default_rng(1).integers(0, 300, SHAPE)
    meta = {"scale": (SPACING,) * 3, "translate": ORIGIN, "metadata": {SOURCE: str(tomogram)}}
    (path,) = write_labels(str(tmp_path / f"out{suffix}"), labels, meta)
    with open_tomogram(path) as back:
        assert back.dtype == np.int16 and back.origin == ORIGIN
        assert back.voxel_spacing == pytest.approx((SPACING,) * 3)
        np.testing.assert_array_equal(back.read_slices(0, SHAPE[0]), labels)
    for many in (labels * 200, labels - 40_000):
        with pytest.raises(ValueError, match="32767"):
            write_labels(str(tmp_path / "many.mrc"), many, meta)
    (path,) = write_labels(str(tmp_path / f"ignored{suffix}"), labels - 200, meta)
    with open_tomogram(path) as back:
        assert back.dtype == np.int16
        np.testing.assert_array_equal(back.read_slices(0, SHAPE[0]), labels - 200)


def test_labels_stay_where_their_layer_lies(tmp_path: Path) -> None:
    """Scale set by hand, over a header of unknown spacing whose start indices place it."""
    tomogram = tmp_path / "TS_1.mrc"
    with mrcfile.new(tomogram) as mrc:
        mrc.set_data(np.ones(SHAPE, np.float32))
        mrc.header.nxstart, mrc.header.nystart, mrc.header.nzstart = 1, -2, 3
    places = {"scale": (SPACING,) * 3, "translate": (3.0, -2.0, 1.0)}
    meta = {**places, "metadata": {SOURCE: str(tomogram)}}
    (path,) = write_labels(str(tmp_path / "out.mrc"), np.ones(SHAPE, np.int8), meta)
    with open_tomogram(path) as back:
        assert back.voxel_spacing == pytest.approx((SPACING,) * 3)
        assert back.origin == (3.0, -2.0, 1.0)


def pint_units(name: str) -> tuple[Any, ...]:
    return (pytest.importorskip("pint").Unit(name),) * 3


@pytest.mark.parametrize(
    ("name", "factor"), [("nanometer", 10.0), ("angstrom", 1.0), ("pixel", 1.0), ("second", 1.0)]
)
@pytest.mark.parametrize("kind", [lambda name: (name,) * 3, pint_units], ids=["named", "pint"])
def test_layers_say_their_units(
    tmp_path: Path, kind: Callable[[str], tuple[Any, ...]], name: str, factor: float
) -> None:
    meta = {"scale": (1.36,) * 3, "translate": (3.0, 2.0, 1.0), "units": kind(name)}
    (path,) = write_labels(str(tmp_path / "out.mrc"), np.ones(SHAPE, np.int8), meta)
    with open_tomogram(path) as back:
        assert back.voxel_spacing == pytest.approx((1.36 * factor,) * 3)
        assert back.origin == pytest.approx((3 * factor, 2 * factor, factor))


def test_volumes_open_in_angstrom_where_their_spacing_is_known(tmp_path: Path) -> None:
    name, labels = str(tmp_path / "a_mask.mrc"), np.ones(SHAPE, np.int8)
    write_labels(name, labels, {})
    assert "units" not in read_layers(name)[0][1]
    write_labels(name, labels, {"scale": (SPACING,) * 3})
    assert read_layers(name)[0][1]["units"] == ("angstrom",) * 3


@pytest.mark.parametrize("suffix", [".mrc", ".zarr"])
@pytest.mark.parametrize("scale", [(10, -10, 10), (-10, 10, -20)])
def test_axes_of_negative_scale_lie_in_the_file_as_in_napari(
    tmp_path: Path, scale: tuple[int, int, int], suffix: str
) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    marked = (2, 5, 60)
    labels[marked] = 3
    meta = {"scale": scale, "translate": (0, 640, 50)}
    with files.layer_volume(labels, meta) as volume:
        assert volume.voxel_spacing == pytest.approx(np.abs(scale))
        np.testing.assert_array_equal(volume.read_slice(2), labels[2])
    (path,) = write_labels(str(tmp_path / f"out{suffix}"), labels, meta)
    with open_tomogram(path) as back:
        found = np.argwhere(back.read_slices(0, SHAPE[0]) == 3)
        assert back.voxel_spacing is not None and len(found) == 1
        place = np.array(back.origin) + np.array(back.voxel_spacing) * found[0]
    np.testing.assert_allclose(place, np.add((0, 640, 50), np.multiply(scale, marked)))


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint16])
def test_labels_come_back_as_they_were(tmp_path: Path, dtype: type) -> None:
    """Also -1, not annotated."""
    labels = np.random.default_rng(1).integers(max(-1, np.iinfo(dtype).min), 3, SHAPE, dtype)
    before, after = tmp_path / "a_membrane.mrc", tmp_path / "b_membrane.mrc"
    with mrcfile.new(before) as mrc:
        mrc.set_data(labels)
    ((data, meta, layer),) = read_layers(str(before))
    assert layer == "labels"
    write_labels(str(after), data, meta)
    with open_tomogram(after) as back:
        np.testing.assert_array_equal(back.read_slices(0, SHAPE[0]), labels)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float64])
def test_images_are_saved_as_float32(tmp_path: Path, dtype: type) -> None:
    """Whatever napari holds them as: integers are no labels there."""
    info = np.iinfo(dtype) if np.dtype(dtype).kind in "iu" else np.iinfo(np.int8)
    image = np.random.default_rng(1).integers(info.min, info.max, SHAPE).astype(dtype)
    (path,) = write_image(str(tmp_path / "out.mrc"), [image, image[:, ::2, ::2]], {})
    with open_tomogram(path) as back:
        assert back.dtype == np.float32
        np.testing.assert_array_equal(back.read_slices(0, SHAPE[0]), image)


class Levels(Sequence[np.ndarray]):
    """As napari's MultiScaleData: indexed by level, with the shape and type of the first."""

    def __init__(self, *levels: np.ndarray) -> None:
        self.levels = levels
        self.shape, self.dtype = levels[0].shape, levels[0].dtype

    def __getitem__(self, key: Any) -> Any:
        return self.levels[key]

    def __len__(self) -> int:
        return len(self.levels)


def test_multiscale_layers_are_saved_at_full_resolution(tmp_path: Path) -> None:
    finest = np.random.default_rng(1).integers(0, 9, SHAPE)
    for write in (write_labels, write_image):
        for levels in (Levels(finest, finest[::2, ::2, ::2]), [finest, finest[::2, ::2, ::2]]):
            (path,) = write(str(tmp_path / "out.mrc"), levels, {"scale": (SPACING,) * 3})
            with open_tomogram(path) as back:
                np.testing.assert_array_equal(back.read_slices(0, SHAPE[0]), finest)


@pytest.mark.parametrize("name", ["s.tif", "s.png", "s.mrc.png", "10.00Apx.HDF"])
def test_other_kinds_of_files_are_refused(tmp_path: Path, name: str) -> None:
    for write in (write_labels, write_image):
        with pytest.raises(ValueError, match=r"end with \.mrc or \.zarr"):
            write(str(tmp_path / name), np.ones(SHAPE, np.uint8), {})
    assert not list(tmp_path.iterdir())


def test_a_name_without_suffix_becomes_an_mrc(tmp_path: Path) -> None:
    for write, name in ((write_labels, "mask"), (write_image, "image")):
        assert write(str(tmp_path / name), np.ones(SHAPE, np.uint8), {}) == [
            str(tmp_path / f"{name}.mrc")
        ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.mrc", "mask.mrc"]
    dotted = str(tmp_path / "TS_1_10.00Apx_membrane2")
    assert write_labels(dotted, np.ones(SHAPE, np.uint8), {}) == [f"{dotted}.mrc"]


@pytest.mark.parametrize("damage", [lambda data: data[:2000], lambda data: b"other"])
def test_work_by_hand_is_saved_when_its_file_is_damaged(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    tomogram = tmp_path / "TS_1.mrc"
    with mrcfile.new(tomogram) as mrc:
        mrc.set_data(np.ones(SHAPE, np.float32))
    tomogram.write_bytes(damage(tomogram.read_bytes()))
    meta = {"scale": (SPACING,) * 3, "translate": ORIGIN, "metadata": {SOURCE: str(tomogram)}}
    labels = np.random.default_rng(1).integers(0, 2, SHAPE)
    with pytest.warns(
        UserWarning, match=r"header .* not kept, its scale and translate .*TS_1\.mrc"
    ):
        (path,) = write_labels(str(tmp_path / "out.mrc"), labels, meta)
    with open_tomogram(path) as back:
        assert back.voxel_spacing == pytest.approx((SPACING,) * 3) and back.origin == ORIGIN
        np.testing.assert_array_equal(back.read_slices(0, SHAPE[0]), labels)


def test_what_cannot_be_written_has_its_own_name(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "s.mrc"
    with pytest.raises(OSError) as caught:
        write_labels(str(path), np.ones(SHAPE, np.uint8), {})
    assert caught.value.filename == str(path)


@pytest.mark.parametrize("value", [0.0, 5.0, 1e12, -1e12, 1e15])
def test_constant_volumes_have_contrast(tmp_path: Path, value: float) -> None:
    pytest.importorskip("dask.array")
    path = tmp_path / "flat.mrc"
    with mrcfile.new(path) as mrc:
        mrc.set_data(np.full((2, 3, 4), value, np.float32))
    low, high = read_layers(str(path))[0][1]["contrast_limits"]
    assert low == np.float32(value) and np.float32(high) > np.float32(low)


def test_pictures_are_told_from_volumes() -> None:
    """Colours as a third axis, as napari's rgb layers have it, come with a scale of two numbers."""
    picture = np.zeros((32, 32, 3), np.uint8)
    for key in ("scale", "translate"):
        with pytest.raises(ValueError, match=f"{key} has 2 of z, y and x"):
            files.layer_volume(picture, {key: (1.0, 1.0)})


def test_voxels_that_are_no_numbers_are_told_once(tmp_path: Path) -> None:
    pytest.importorskip("dask.array")
    path, data = tmp_path / "TS_1.mrc", np.ones((3, 4, 5), np.float32)
    data[2, 1, 1] = np.nan
    with mrcfile.new(path) as mrc, pytest.warns(RuntimeWarning):  # mrcfile's own
        mrc.set_data(data)
    ((lazy, _, _),) = read_layers(str(path))
    np.asarray(lazy[0])
    with pytest.warns(UserWarning, match="TS_1.mrc: NaN or infinite voxels"):
        assert np.isfinite(np.asarray(lazy)).all()
    np.asarray(lazy)


def test_each_kind_of_layer_has_its_writer() -> None:
    yaml = pytest.importorskip("yaml")
    text = Path(files.__file__).with_name("napari.yaml").read_text(encoding="utf-8")
    manifest = yaml.safe_load(text)["contributions"]
    places = {command["id"]: command["python_name"] for command in manifest["commands"]}
    writers = {w["layer_types"][0]: places[w["command"]] for w in manifest["writers"]}
    (reader,) = manifest["readers"]
    kinds = ("mrc", "rec", "map", "mrcs", "ccp4", "st", "ali", "preali")
    files_known = {f"*.{kind}{packed}" for kind in kinds for packed in ("", ".gz", ".bz2")}
    assert set(reader["filename_patterns"]) == files_known | {"*.zarr"}
    assert all(files.get_reader(f"a{pattern[1:]}") for pattern in files_known)
    assert writers == {
        "labels": f"{files.__name__}:{write_labels.__name__}",
        "image": f"{files.__name__}:{write_image.__name__}",
    }

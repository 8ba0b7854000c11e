"""Layers as files: what the napari plugin writes, without napari."""

from __future__ import annotations

from collections.abc import Sequence
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

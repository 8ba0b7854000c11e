"""The napari plugin: files as layers and back, and the panel from a layer to a saved mask."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("napari.layers")
    pytest.importorskip("qtpy.QtWidgets")
pytestmark = pytest.mark.filterwarnings("default")  # napari and Qt warn of themselves

SPACING = 10.0
ORIGIN = (100.0, 200.0, 300.0)
SHAPE = (12, 64, 64)


def write(path: Path, data: np.ndarray) -> Path:
    with mrcfile.new(path) as mrc:
        mrc.set_data(data)
        mrc.voxel_size = SPACING
        mrc.header.origin = tuple(reversed(ORIGIN))
        mrc.add_label("kept")
    return path


@pytest.fixture
def tomogram(tmp_path: Path) -> Path:
    z, y, x = np.meshgrid(*(np.arange(side) - side / 2 for side in SHAPE), indexing="ij")
    wall = np.abs(np.sqrt((2 * z) ** 2 + y**2 + x**2) - 20) < 2.5
    noise = np.random.default_rng(0).normal(0, 0.4, SHAPE)
    return write(tmp_path / "TS_1.mrc", (noise - 2 * wall).astype(np.float32))


@pytest.fixture
def panel(tomogram: Path) -> Any:
    from napari.components import ViewerModel
    from napari.layers import Layer
    from qtpy.QtWidgets import QApplication

    app = QApplication.instance() or QApplication([])
    assert app is not None
    from etsam.napari.files import read_layers
    from etsam.napari.panel import SegmentPanel

    viewer = ViewerModel()
    viewer.add_layer(Layer.create(*read_layers(str(tomogram))[0]))
    made = SegmentPanel(viewer)
    yield made
    made.close()


def wait(panel: Any, act: Callable[[], None]) -> bool:
    """Do something and run the event loop until the panel has finished."""
    from qtpy.QtCore import QEventLoop, QTimer

    loop, results = QEventLoop(), []
    panel.finished.connect(lambda good: (results.append(good), loop.quit()))
    QTimer.singleShot(240_000, loop.quit)
    act()
    loop.exec()
    assert results, panel.message.text()
    return bool(results[-1])


def test_manifest_names_what_is_there() -> None:
    npe2 = pytest.importorskip("npe2")
    import etsam.napari

    manifest = npe2.PluginManifest.from_file(Path(etsam.napari.__file__).with_name("napari.yaml"))
    assert manifest.contributions.commands
    for command in manifest.contributions.commands:
        assert command.id.startswith("etsam.")
        assert callable(_named(command.python_name))


def test_napari_hands_its_viewer_to_the_panel() -> None:
    import inspect

    from etsam.napari.panel import SegmentPanel

    # napari goes by this name where the annotation is a string
    assert "napari_viewer" in inspect.signature(SegmentPanel.__init__).parameters


def _named(python_name: str) -> Any:
    import importlib

    module, _, name = python_name.partition(":")
    return getattr(importlib.import_module(module), name)


def test_volumes_open_in_place_and_lazily(tomogram: Path, tmp_path: Path) -> None:
    from etsam.napari.files import get_reader, read_layers

    assert get_reader(str(tmp_path / "notes.txt")) is None
    reader = get_reader(str(tomogram))
    assert reader is not None
    ((data, meta, kind),) = reader(str(tomogram))
    assert kind == "image" and data.shape == SHAPE and not isinstance(data, np.ndarray)
    assert meta["scale"] == (SPACING,) * 3 and meta["translate"] == ORIGIN
    with mrcfile.open(tomogram) as mrc:
        np.testing.assert_array_equal(np.asarray(data[5]), mrc.data[5])
    for name in ("TS_1_membrane.mrc", "TS_1_membrane_instances.mrc"):
        mask = write(tmp_path / name, np.ones(SHAPE, np.int8))
        assert read_layers(str(mask))[0][2] == "labels"


def test_segment_threshold_save_and_cancel(panel: Any, tmp_path: Path) -> None:
    assert panel.layer_box.currentText() == "TS_1"
    assert wait(panel, panel.start), panel.message.text()
    assert len(panel.viewer.layers) == 2
    assert panel.mask.data.any(), "a clear circle is found"
    assert tuple(panel.mask.translate) == ORIGIN
    before = int(panel.mask.data.sum())
    panel.threshold.setValue(1.0)
    assert 0 < panel.mask.data.sum() < before
    np.testing.assert_array_equal(panel.mask.data, panel.logits > 1.0)
    assert panel.message.text() == f"{panel.mask.data.sum():,} membrane voxels."
    panel.split()
    assert panel.viewer.layers[-1].data.max() >= 1
    panel.save(str(tmp_path / "saved.mrc"))
    with mrcfile.open(tmp_path / "saved.mrc") as mrc:
        np.testing.assert_array_equal(mrc.data, panel.mask.data)
        assert mrc.header.origin.tolist() == tuple(reversed(ORIGIN))
    picture = os.environ.get("ETSAM_TEST_PICTURES")
    if picture:
        panel.grab().save(str(Path(picture) / "panel.png"))
    panel.viewer.layers.pop()

    def start_and_cancel() -> None:
        panel.start()
        panel.cancel()

    assert not wait(panel, start_and_cancel)
    assert panel.message.text() == "Cancelled."
    assert [layer.name for layer in panel.viewer.layers] == ["TS_1"]


def test_errors_have_a_remedy(panel: Any) -> None:
    panel.viewer.layers.clear()
    panel.start()
    assert "open a tomogram" in panel.message.text()
    panel.viewer.add_image(np.zeros(SHAPE, np.float32), name="flat")
    assert not wait(panel, panel.start)
    assert "layer" in panel.message.text()
    assert [layer.name for layer in panel.viewer.layers] == ["flat"]

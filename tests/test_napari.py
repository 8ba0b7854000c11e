"""The napari plugin: files as layers and back, and the panel from a layer to a saved mask."""

from __future__ import annotations

import os
import subprocess
import sys
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


@pytest.fixture(scope="module")
def app() -> Any:
    """One for all tests: what it leaves goes with it, workers that are about to end as well."""
    from qtpy.QtWidgets import QApplication

    return QApplication.instance() or QApplication([])


@pytest.fixture
def panel(tomogram: Path, app: Any) -> Any:
    from napari.components import ViewerModel
    from napari.layers import Layer
    from napari.qt.threading import GeneratorWorker

    from etsam.napari.files import read_layers
    from etsam.napari.panel import SegmentPanel

    viewer = ViewerModel()
    viewer.add_layer(Layer.create(*read_layers(str(tomogram))[0]))
    made = SegmentPanel(viewer)
    yield made
    made.close()
    GeneratorWorker.await_workers(100_000)


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


def names(panel: Any) -> list[str]:
    return [layer.name for layer in panel.viewer.layers]


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
    np.testing.assert_array_equal(panel.mask.data, panel.painted.logits > 1.0)
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
    assert names(panel) == ["TS_1", "TS_1_membrane"], "what was finished stays"
    assert panel.mask is panel.viewer.layers[1]


def test_errors_have_a_remedy(panel: Any) -> None:
    panel.viewer.layers.clear()
    panel.start()
    assert "open a tomogram" in panel.message.text()
    panel.viewer.add_image(np.zeros(SHAPE, np.float32), name="flat")
    assert not wait(panel, panel.start)
    assert panel.message.text().endswith("nothing to segment. Choose another layer.")
    assert "scale" not in panel.message.text()
    assert names(panel) == ["flat"]


def test_pictures_are_no_tomograms(panel: Any) -> None:
    panel.viewer.layers.clear()
    panel.viewer.add_image(np.zeros((32, 32, 3), np.uint8), name="photo", rgb=True)
    panel.viewer.add_image(np.zeros((32, 32), np.uint8), name="plane")
    for index, text in enumerate(("photo is a colour picture", "plane has 2 axes")):
        panel.layer_box.setCurrentIndex(index)
        panel.start()
        assert panel.message.text().startswith(text) and panel.run is None
    assert names(panel) == ["photo", "plane"]


def test_finished_masks_stay_with_their_changes(panel: Any, tomogram: Path) -> None:
    image = panel.viewer.layers[0]
    image.name = "T0"
    image.rotate = (0, 0, 20)
    image.affine = np.diag([1.0, 2.0, 2.0, 1.0])
    assert panel.layer_box.currentText() == "T0"
    assert wait(panel, panel.start), panel.message.text()
    first = panel.mask
    np.testing.assert_allclose(first.rotate, image.rotate)
    np.testing.assert_allclose(first.affine.affine_matrix, image.affine.affine_matrix)
    first.data_setitem((np.array([2]), np.array([0]), np.array([0])), 1)
    panel.threshold.setValue(1.0)
    assert first.data[2, 0, 0] == 1, "painted by hand"
    before = first.data.copy()
    panel.viewer.add_image(np.asarray(image.data), name="T1", scale=image.scale)
    panel.layer_box.setCurrentIndex(1)
    assert wait(panel, panel.start), panel.message.text()
    assert names(panel) == ["T0", "T0_membrane", "T1", "T1_membrane"]
    panel.threshold.setValue(0.0)
    np.testing.assert_array_equal(first.data, before)
    panel.viewer.layers.remove(panel.mask)
    assert panel.mask is None and not panel.save_button.isEnabled()


def test_masks_have_their_layers_units(panel: Any, tmp_path: Path) -> None:
    """And the sign of its scale."""
    from etsam.napari.files import read_layers

    data = np.asarray(panel.viewer.layers[0].data)
    panel.viewer.layers.clear()
    place = {"scale": (1.0, -1.0, 1.0), "translate": (0.0, 64.0, 0.0), "units": ("nm",) * 3}
    image = panel.viewer.add_image(data, **place)
    assert wait(panel, panel.start), panel.message.text()
    panel.split()
    assert len(panel.viewer.layers) == 3
    assert all(layer.units == image.units for layer in panel.viewer.layers)
    units = getattr(panel.viewer.layers.extent, "units", image.units)  # older ones say none
    assert units == image.units
    panel.save(str(tmp_path / "saved_mask.mrc"))
    ((saved, meta, _),) = read_layers(str(tmp_path / "saved_mask.mrc"))
    assert meta["scale"] == (SPACING,) * 3 and meta["translate"] == (0, 10, 0)
    assert saved.any()
    np.testing.assert_array_equal(saved, panel.mask.data[:, ::-1])


def test_a_mask_that_is_removed_ends_its_run(panel: Any) -> None:
    def start_and_remove() -> None:
        panel.start()
        panel.viewer.layers.pop()

    assert not wait(panel, start_and_remove)
    assert panel.message.text() == "Cancelled." and panel.mask is None
    assert names(panel) == ["TS_1"] and not panel.save_button.isEnabled()


def test_warnings_of_a_run_are_told(panel: Any) -> None:
    data = np.asarray(panel.viewer.layers[0].data).copy()
    data[3, 4, 5] = np.nan
    panel.viewer.layers.clear()
    panel.viewer.add_image(data, scale=(SPACING,) * 3)
    assert wait(panel, panel.start), panel.message.text()
    assert "1 NaN or infinite voxels were read as the mean of their slice." in panel.message.text()


def test_masks_are_saved_as_volumes_only(panel: Any, tmp_path: Path) -> None:
    panel.start()  # whatever is painted by then
    dialog = panel._save_dialog(panel.painted)
    assert dialog.defaultSuffix() == "mrc"
    for name in ("s.png", "nowhere/s.mrc"):
        panel.save(str(tmp_path / name))
        text = panel.message.text()
        assert text.startswith("Not saved: ") and str(tmp_path / name) in text
        assert "Errno" not in text and "partial" not in text
    panel.save(str(tmp_path / "s"))
    assert panel.message.text() == f"Saved {tmp_path / 's.mrc'}"
    assert (tmp_path / "s.mrc").exists()
    assert not wait(panel, panel.worker.quit), "as napari does at its end"


CLOSE_WHILE_RUNNING = """
import sys
import numpy as np
from napari.components import ViewerModel
from napari.qt.threading import GeneratorWorker
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QApplication, QDockWidget, QMainWindow
from etsam.napari.panel import SegmentPanel

app = QApplication([])
viewer = ViewerModel()
noise = np.random.default_rng(0).normal(size=(24, 96, 96)).astype("f4")
viewer.add_image(noise, name="T0", scale=(10, 10, 10))
window, dock = QMainWindow(), QDockWidget()
dock.setWidget(SegmentPanel(viewer))
window.addDockWidget(Qt.DockWidgetArea.RightDockWidgetArea, dock)
window.show()
dock.widget().start()

def close():
    global dock
    if sys.argv[1] == "taken out":
        dock.widget().setParent(None)
    if sys.argv[1] == "window":
        app.quit()
    dock.deleteLater()
    dock = None
    clock.timeout.connect(look)
    clock.start(50)

def look():
    if not GeneratorWorker._worker_set:
        app.quit()

clock = QTimer()
QTimer.singleShot(300, close)
QTimer.singleShot(100_000, lambda: sys.exit("the run has not stopped"))
app.exec()
GeneratorWorker.await_workers(100_000)
viewer.add_image(noise, name="T1")
print([layer.name for layer in viewer.layers])
"""


@pytest.mark.parametrize("how", ["taken out", "deleted", "window"])
def test_closing_the_panel_stops_its_run(how: str) -> None:
    """As napari's ``remove_dock_widget`` does it, and at the end of a program."""
    done = subprocess.run(
        [sys.executable, "-c", CLOSE_WHILE_RUNNING, how], capture_output=True, text=True
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    if how != "window":
        assert done.stdout.strip() == "['T0', 'T1']"

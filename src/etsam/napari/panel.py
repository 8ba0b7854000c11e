"""The panel "Segment membranes": a layer in, painted slice by slice; threshold, clean-up, membranes, save."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Labels
from napari.qt.threading import create_worker
from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QVBoxLayout,
    QWidget,
)

from etsam.frame import Frame
from etsam.instances import MIN_VOXELS, separate_membranes
from etsam.membrane import Membrane, quantised
from etsam.napari.files import SOURCE, layer_volume, write_labels
from etsam.napari.work import CancelledError, Run, logit_slices
from etsam.options import LOGIT_THRESHOLD, SegmentOptions
from etsam.postprocess import clean_mask
from etsam.volume import whole_volume

if TYPE_CHECKING:
    import napari

REMEDY = "Check the layer's scale (Å per voxel), or choose another layer."
UNSEEN = np.float32(-1e4)  # logit of slices that are still to come


class SegmentPanel(QWidget):  # type: ignore[misc]
    """Segments the chosen image layer with the bundled model, in a thread."""

    told = Signal(float, str)
    finished = Signal(bool)

    def __init__(self, napari_viewer: napari.Viewer) -> None:  # napari fills in what has this name
        super().__init__()
        self.viewer = viewer = napari_viewer
        self.logits: np.ndarray | None = None
        self.mask: Labels | None = None
        self.run: Run | None = None
        self.meta: dict[str, Any] = {}
        self._build()
        self.told.connect(self._show_progress)
        viewer.layers.events.inserted.connect(self._list_layers)
        viewer.layers.events.removed.connect(self._list_layers)
        self._list_layers()

    def _build(self) -> None:
        self.layer_box = QComboBox()
        self.membranes_box = QComboBox()
        self.membranes_box.addItems(["auto", "dark", "bright"])
        self.threshold = QDoubleSpinBox()
        self.threshold.setRange(-8, 8)
        self.threshold.setSingleStep(0.25)
        self.threshold.setValue(LOGIT_THRESHOLD)
        self.threshold.valueChanged.connect(self._apply_threshold)
        form = QFormLayout()
        form.addRow("Layer", self.layer_box)
        form.addRow("Membranes are", self.membranes_box)
        form.addRow("Threshold", self.threshold)
        self.start_button = _button("Segment", self.start)
        self.cancel_button = _button("Cancel", self.cancel)
        self.clean_button = _button("Clean up", self.clean)
        self.split_button = _button("Split into membranes", self.split)
        self.save_button = _button("Save mask ...", self.ask_and_save)
        self.bar = QProgressBar()
        self.bar.setRange(0, 1000)
        self.message = QLabel("Choose a tomogram and press Segment.")
        self.message.setWordWrap(True)
        self.message.setTextFormat(Qt.TextFormat.PlainText)
        layout = QVBoxLayout(self)
        layout.addLayout(form)
        layout.addLayout(_row(self.start_button, self.cancel_button))
        layout.addWidget(self.bar)
        layout.addWidget(self.message)
        layout.addLayout(_row(self.clean_button, self.split_button))
        layout.addWidget(self.save_button)
        layout.addStretch()
        self._enable(running=False)

    def start(self) -> None:
        """Segment the chosen layer in a thread; slices are painted as they come."""
        layer = self._chosen()
        if layer is None:
            self.message.setText("There is no image layer: open a tomogram first.")
            return
        data = layer.data[0] if layer.multiscale else layer.data
        self.meta = {
            "scale": tuple(layer.scale),
            "translate": tuple(layer.translate),
            "metadata": dict(layer.metadata),
        }
        if data.ndim != 3:
            self.message.setText(f"The layer has {data.ndim} axes: a tomogram has z, y and x.")
            return
        self._drop_mask()
        self.logits = np.full(data.shape, UNSEEN, np.float32)
        self.mask = self.viewer.add_labels(
            np.zeros(data.shape, np.uint8),
            name=f"{layer.name}_membrane",
            scale=self.meta["scale"],
            translate=self.meta["translate"],
            metadata=self.meta["metadata"],
            opacity=0.6,
        )
        options = SegmentOptions(polarity=self.membranes_box.currentText())
        self.run = Run(self.told.emit)
        worker = create_worker(
            _logits,
            data,
            self.meta,
            options,
            self.run,
            _connect={
                "yielded": self._paint,
                "returned": self._done,
                "errored": self._failed,
            },
        )
        self._enable(running=True)
        self.worker = worker

    def cancel(self) -> None:
        """Stop the run; nothing stays behind."""
        if self.run is not None:
            self.run.stop.set()
            self.message.setText("Stopping ...")

    def clean(self) -> None:
        """Drop small blobs and cut rungs, in the mask shown."""
        if self.mask is None:
            return
        cleaned, summary = clean_mask((np.asarray(self.mask.data) > 0).astype(np.uint8))
        self.mask.data = cleaned
        self.message.setText(
            f"Dropped {summary.blobs_dropped} blobs, cut {summary.rungs_cut} rungs."
        )

    def split(self) -> None:
        """Add a layer with a number for each membrane."""
        if self.mask is None or self.logits is None:
            return
        mask = np.asarray(self.mask.data) > 0
        with layer_volume(self.mask.data, self.meta) as volume:
            frame = Frame(volume.shape, volume.voxel_spacing or (1.0, 1.0, 1.0), volume.origin)
        field = quantised(self.logits, self.threshold.value())
        found = separate_membranes(Membrane(mask, field, frame), min_voxels=MIN_VOXELS)
        self.viewer.add_labels(
            found.labels.astype(np.int32),
            name=self.mask.name.replace("_membrane", "_membranes"),
            scale=self.meta["scale"],
            translate=self.meta["translate"],
            metadata=self.meta["metadata"],
        )
        self.message.setText(f"{len(found)} membranes.")

    def ask_and_save(self) -> None:
        """Ask for a name and save the mask."""
        if self.mask is None:
            return
        source = self.meta.get("metadata", {}).get(SOURCE)
        folder = whole_volume(Path(source)).parent if source else Path.cwd()
        name, _ = QFileDialog.getSaveFileName(
            self, "Save mask", str(folder / f"{self.mask.name}.mrc"), "Volumes (*.mrc *.zarr)"
        )
        if name:
            self.save(name)

    def save(self, path: str) -> None:
        """Save the mask with the tomogram's geometry."""
        assert self.mask is not None
        try:
            write_labels(path, self.mask.data, self.meta)
        except (ValueError, OSError) as error:
            self.message.setText(f"Not saved: {error}")
        else:
            self.message.setText(f"Saved {path}")

    def _chosen(self) -> Image | None:
        name = self.layer_box.currentText()
        images = (layer for layer in self.viewer.layers if isinstance(layer, Image))
        return next((layer for layer in images if layer.name == name), None)

    def _list_layers(self, _event: object = None) -> None:
        before = self.layer_box.currentText()
        names = [layer.name for layer in self.viewer.layers if isinstance(layer, Image)]
        self.layer_box.clear()
        self.layer_box.addItems(names)
        if before in names:
            self.layer_box.setCurrentText(before)

    def _paint(self, result: tuple[int, np.ndarray]) -> None:
        z, plane = result
        if self.logits is None or self.mask is None:
            return
        self.logits[z] = plane
        self.mask.data[z] = plane > self.threshold.value()
        self.mask.refresh()

    def _apply_threshold(self, value: float) -> None:
        if self.logits is not None and self.mask is not None:
            self.mask.data = (self.logits > value).astype(np.uint8)
            if self.run is None:
                self.message.setText(f"{np.count_nonzero(self.mask.data):,} membrane voxels.")

    def _show_progress(self, fraction: float, message: str) -> None:
        self.bar.setValue(round(1000 * fraction))
        self.message.setText(message)

    def _done(self, complete: bool) -> None:
        if not complete or self.mask is None:
            self._drop_mask()
            self.bar.setValue(0)
            self.message.setText("Cancelled.")
            self._end(good=False)
            return
        voxels = int(np.count_nonzero(self.mask.data))
        text = "" if voxels else " Nothing found: lower the threshold, or try bright membranes."
        self.bar.setValue(1000)
        self.message.setText(f"{voxels:,} membrane voxels.{text}")
        self._end(good=True)

    def _failed(self, error: BaseException) -> None:
        self._drop_mask()
        self.bar.setValue(0)
        self.message.setText(f"{error} {REMEDY}")
        self._end(good=False)

    def _end(self, *, good: bool) -> None:
        self.run = None
        self._enable(running=False)
        self.finished.emit(good)

    def _drop_mask(self) -> None:
        if self.mask is not None and self.mask in self.viewer.layers:
            self.viewer.layers.remove(self.mask)
        self.mask, self.logits = None, None

    def _enable(self, *, running: bool) -> None:
        self.start_button.setEnabled(not running)
        self.cancel_button.setEnabled(running)
        for button in (self.clean_button, self.split_button, self.save_button):
            button.setEnabled(not running and self.mask is not None)


def _logits(
    data: Any, meta: dict[str, Any], options: SegmentOptions, run: Run
) -> Generator[tuple[int, np.ndarray], None, bool]:
    """Yield slices; returns whether all came."""
    try:
        yield from logit_slices(data, meta, options, run)
    except CancelledError:
        return False
    return True


def _button(text: str, action: Callable[[], None]) -> QPushButton:
    button = QPushButton(text)
    button.clicked.connect(lambda _checked=False: action())
    return button


def _row(*widgets: QWidget) -> QHBoxLayout:
    row = QHBoxLayout()
    for widget in widgets:
        row.addWidget(widget)
    return row

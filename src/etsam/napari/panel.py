"""The panel "Segment membranes": a layer in, painted slice by slice; threshold, clean-up, membranes, save."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Labels
from napari.qt.threading import create_worker
from qtpy.QtCore import QEvent, Qt, QTimer, Signal
from qtpy.QtGui import QCloseEvent
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

from etsam.messages import one_line
from etsam.napari.files import SOURCE, write_labels
from etsam.napari.painting import PaintedMask
from etsam.napari.work import Run, logits_or_stop
from etsam.options import LOGIT_THRESHOLD, SegmentOptions
from etsam.volume import whole_volume

if TYPE_CHECKING:
    import napari

TICK = 100  # ms between two looks at how far the run is

_at_work: set[SegmentPanel] = set()
"""Panels whose runs go on: Python must not delete widgets while their thread collects garbage."""


class SegmentPanel(QWidget):  # type: ignore[misc]
    """Segments the chosen image layer with the bundled model, in a thread.

    The thread knows nothing of the panel, which may be gone before it ends.
    """

    finished = Signal(bool)

    def __init__(self, napari_viewer: napari.Viewer) -> None:  # napari fills in what has this name
        super().__init__()
        self.viewer = viewer = napari_viewer
        self.images: list[Image] = []  # as `layer_box` lists them
        self.painted: PaintedMask | None = None
        self.before: PaintedMask | None = None  # comes back if the run does not end well
        self.run: Run | None = None
        self.notes: list[str] = []
        self._build()
        self.clock = QTimer(self)
        self.clock.timeout.connect(self._show_progress)
        viewer.layers.events.inserted.connect(self._list_layers)
        viewer.layers.events.removed.connect(self._list_layers)
        self.destroyed.connect(lambda: self._gone())
        self._list_layers()

    @property
    def mask(self) -> Labels | None:
        """The mask layer that the buttons act on."""
        return None if self.painted is None else self.painted.layer

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
        if layer.rgb or data.ndim != 3:
            what = "is a colour picture" if layer.rgb else f"has {data.ndim} axes"
            self.message.setText(f"{layer.name} {what}: a tomogram has z, y, x and grey values.")
            return
        self.before = self.painted
        self.painted = PaintedMask(self.viewer, layer, data.shape, self.threshold.value())
        self.run, self.notes = Run(), []
        self.worker = create_worker(
            logits_or_stop,
            data,
            self.painted.place,
            SegmentOptions(polarity=self.membranes_box.currentText()),
            self.run,
            _connect={
                "yielded": self._paint,
                "warned": self._note,
                "returned": self._done,
                "errored": self._failed,
            },
        )
        self.worker.quit = self.run.stop.set  # so napari's end need not wait for the next slice
        _at_work.add(self)
        self.clock.start(TICK)
        self._enable(running=True)

    def cancel(self) -> None:
        """Stop the run; nothing stays behind."""
        if self.run is not None:
            self.run.stop.set()
            self.message.setText("Stopping ...")

    def changeEvent(self, event: QEvent) -> None:
        """Stop when the panel is taken out of its dock, as napari does to close it."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.ParentChange and self.parent() is None:
            self._abandon()

    def closeEvent(self, event: QCloseEvent) -> None:
        """Stop when a panel that is a window is closed."""
        self._abandon()
        super().closeEvent(event)

    def clean(self) -> None:
        """Drop small blobs and cut rungs, in the mask shown."""
        if self.painted is None:
            return
        summary = self.painted.clean()
        self.message.setText(
            f"Dropped {summary.blobs_dropped} blobs, cut {summary.rungs_cut} rungs."
        )

    def split(self) -> None:
        """Add a layer with a number for each membrane."""
        if self.painted is not None:
            self.message.setText(f"{self.painted.split()} membranes.")

    def ask_and_save(self) -> None:
        """Ask for a name and save the mask."""
        if self.painted is None:
            return
        dialog = self._save_dialog(self.painted)
        if dialog.exec():
            self.save(dialog.selectedFiles()[0])
        dialog.deleteLater()

    def save(self, path: str) -> None:
        """Save the mask with the tomogram's geometry."""
        assert self.painted is not None
        try:
            (saved,) = write_labels(path, self.painted.layer.data, self.painted.place)
        except (ValueError, OSError) as error:
            self.message.setText(f"Not saved: {one_line(error)}")
        else:
            self.message.setText(f"Saved {saved}")

    def _save_dialog(self, painted: PaintedMask) -> QFileDialog:
        source = painted.place["metadata"].get(SOURCE)
        folder = whole_volume(Path(source)).parent if source else Path.cwd()
        name = str(folder / f"{painted.layer.name}.mrc")
        dialog = QFileDialog(self, "Save mask", name, "Volumes (*.mrc *.zarr)")
        dialog.setAcceptMode(QFileDialog.AcceptMode.AcceptSave)
        dialog.setDefaultSuffix("mrc")
        return dialog

    def _chosen(self) -> Image | None:
        index = self.layer_box.currentIndex()
        return self.images[index] if index >= 0 else None

    def _list_layers(self, _event: object = None) -> None:
        before = self._chosen()
        self.images = [layer for layer in self.viewer.layers if isinstance(layer, Image)]
        self.layer_box.clear()
        for layer in self.images:
            layer.events.name.connect(self._list_layers)  # once, however often it is asked for
            self.layer_box.addItem(layer.name)
        if before in self.images:
            self.layer_box.setCurrentIndex(self.images.index(before))
        if self.painted is not None and not self.painted.is_shown:
            self._forget_removed()

    def _forget_removed(self) -> None:
        """Without its layer a mask is of no use, nor is a run that paints it."""
        if self.run is not None:
            self.cancel()
        else:
            self.painted = None
            self._enable(running=False)

    def _paint(self, result: tuple[int, np.ndarray]) -> None:
        if self.painted is not None:
            self.painted.paint(*result)

    def _note(self, warned: tuple[Any, ...]) -> None:
        """Keep a warning's text; `warned` is what ``warnings.showwarning`` takes."""
        message, category, *_ = warned
        if issubclass(category, UserWarning | RuntimeWarning):
            self.notes.append(str(message))

    def _apply_threshold(self, value: float) -> None:
        if self.painted is not None and value != self.painted.threshold:
            self.painted.set_threshold(value)
            if self.run is None:
                self.message.setText(f"{self.painted.voxels():,} membrane voxels.")

    def _show_progress(self) -> None:
        if self.run is not None and not self.run.stop.is_set():
            fraction, message = self.run.state
            self.bar.setValue(round(1000 * fraction))
            self.message.setText(message)

    def _done(self, complete: bool) -> None:
        if not complete or self.painted is None or not self.painted.is_shown:
            self._give_up("Cancelled.")
            return
        voxels = self.painted.voxels()
        text = [f"{voxels:,} membrane voxels.", *(f"{note}." for note in self.notes)]
        if not voxels:
            text.append("Nothing found: lower the threshold, or try bright membranes.")
        self.bar.setValue(1000)
        self.message.setText(" ".join(text))
        self._end(good=True)

    def _failed(self, error: BaseException) -> None:
        remedy = " Choose another layer." if isinstance(error, ValueError) else ""
        self._give_up(f"{one_line(error).rstrip('.')}.{remedy}")

    def _give_up(self, why: str) -> None:
        """Go back to the mask of the run before, if there is one."""
        self._drop_unfinished()
        self.painted = self.before if self.before is not None and self.before.is_shown else None
        if self.painted is not None:
            self.threshold.setValue(self.painted.threshold)
        self.bar.setValue(0)
        self.message.setText(why)
        self._end(good=False)

    def _end(self, *, good: bool) -> None:
        self.run = self.before = None
        self.clock.stop()
        self._enable(running=False)
        self.finished.emit(good)
        _at_work.discard(self)

    def _abandon(self) -> None:
        """Stop the run of a panel that nobody sees any more."""
        self.cancel()
        self._drop_unfinished()

    def _gone(self) -> None:
        """Let go of the layers; of the panel only Python's part is left, which is told of nothing."""
        events = self.viewer.layers.events
        names = (layer.events.name for layer in self.images)
        for event in (events.inserted, events.removed, *names):
            event.disconnect(self._list_layers)
        if self.run is not None:
            self.run.stop.set()
        self._drop_unfinished()
        _at_work.discard(self)

    def _drop_unfinished(self) -> None:
        if self.run is not None and self.painted is not None:
            self.painted.drop()

    def _enable(self, *, running: bool) -> None:
        self.start_button.setEnabled(not running)
        self.cancel_button.setEnabled(running)
        for button in (self.clean_button, self.split_button, self.save_button):
            button.setEnabled(not running and self.painted is not None)


def _button(text: str, action: Callable[[], None]) -> QPushButton:
    button = QPushButton(text)
    button.clicked.connect(lambda _checked=False: action())
    return button


def _row(*widgets: QWidget) -> QHBoxLayout:
    row = QHBoxLayout()
    for widget in widgets:
        row.addWidget(widget)
    return row

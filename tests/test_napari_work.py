"""What the napari panel does beside its widgets, without napari: the run, and the mask that it paints."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from etsam.napari import work
from etsam.napari.painting import PaintedMask
from etsam.napari.work import CancelledError, FailedError, Run, logit_slices, logits_or_stop
from etsam.options import SegmentOptions

SHAPE = (6, 32, 32)
TURNED = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])


class Viewer:
    """As much of napari's as a mask needs."""

    def __init__(self) -> None:
        self.layers: list[Any] = []

    def add_labels(self, data: np.ndarray, **place: Any) -> Any:
        layer = SimpleNamespace(data=data, refresh=lambda: None, **place)
        self.layers.append(layer)
        return layer


@pytest.fixture
def painted() -> PaintedMask:
    """A mask of which all slices have come: logits are 2 within a ball, -2 around, 0.5 in between."""
    image = SimpleNamespace(
        name="TS_1",
        scale=(10.0,) * 3,
        translate=(1.0, 2.0, 3.0),
        rotate=TURNED,
        shear=np.zeros(3),
        affine=np.eye(4),
        units=("angstrom",) * 3,
        metadata={"etsam_source": "TS_1.mrc"},
    )
    made: Any = PaintedMask
    mask: PaintedMask = made(Viewer(), image, SHAPE, 0.0)
    for z in range(SHAPE[0]):
        mask.paint(z, slice_logits())
    return mask


def slice_logits() -> np.ndarray:
    y, x = np.mgrid[:32, :32] - 16
    radius = np.hypot(y, x)
    return np.where(radius < 6, 2.0, np.where(radius < 10, 0.5, -2.0)).astype(np.float32)


def test_the_mask_lies_where_its_layer_lies(painted: PaintedMask) -> None:
    layer = painted.layer
    assert layer.name == "TS_1_membrane" and layer.metadata == {"etsam_source": "TS_1.mrc"}
    assert layer.scale == (10.0,) * 3 and layer.translate == (1.0, 2.0, 3.0)
    np.testing.assert_array_equal(layer.rotate, TURNED)
    assert layer.affine.shape == (4, 4) and layer.units == ("angstrom",) * 3


def test_a_moved_threshold_keeps_what_was_changed_by_hand(painted: PaintedMask) -> None:
    mask = painted.layer.data
    np.testing.assert_array_equal(mask, painted.logits > 0)
    mask[2, 0, 0] = 1  # painted far away
    mask[3, 16, 16] = 0  # a hole in the ball
    mask[4, 16, 24] = 0  # an erased voxel that a higher threshold erases too
    for threshold in (1.0, -1.0, 0.0):
        painted.set_threshold(threshold)
        shown = painted.layer.data
        expected = (painted.logits > threshold).astype(np.uint8)
        expected[2, 0, 0], expected[3, 16, 16], expected[4, 16, 24] = 1, 0, 0
        np.testing.assert_array_equal(shown, expected)
    assert painted.voxels() == int(np.count_nonzero(expected))


def test_slices_that_come_late_keep_what_was_changed_by_hand(painted: PaintedMask) -> None:
    painted.layer.data[1, 0, 0] = 1
    painted.paint(1, slice_logits())
    assert painted.layer.data[1, 0, 0] == 1


def test_cleaning_is_no_change_by_hand(painted: PaintedMask) -> None:
    logits = slice_logits()
    logits[0, 0] = 2
    painted.paint(2, logits)
    before = painted.layer.data.copy()
    assert painted.clean().blobs_dropped == 1
    assert painted.layer.data[2, 0, 0] == 0
    painted.set_threshold(0.25)
    np.testing.assert_array_equal(painted.layer.data, before)


def test_a_removed_mask_is_not_shown(painted: PaintedMask) -> None:
    assert painted.is_shown
    painted.drop()
    assert not painted.is_shown and not painted.viewer.layers
    painted.drop()


def test_a_run_is_looked_at_and_stopped() -> None:
    run = Run()
    run.progress(0.5, "slice 1")
    fraction, message = run.state
    assert fraction == 0.5 and message.startswith("slice 1, ") and message.endswith(" left")
    run.stop.set()
    with pytest.raises(CancelledError):
        run.progress(0.6, "slice 2")
    assert run.state == (fraction, message)


@pytest.mark.parametrize(
    ("error", "told", "text"),
    [
        (RuntimeError("no kernel image"), FailedError, "no kernel image"),
        (RuntimeError("CUDA out of memory."), MemoryError, "check the layer's scale"),
        (ValueError("constant"), ValueError, "constant"),
    ],
)
def test_what_torch_raises_ends_a_run(
    monkeypatch: pytest.MonkeyPatch, error: Exception, told: type[Exception], text: str
) -> None:
    """A RuntimeError would end napari's worker without a word."""

    def fail(*_: object) -> Iterator[tuple[int, np.ndarray]]:
        yield 0, np.zeros((4, 4), np.float32)
        raise error

    monkeypatch.setattr(work, "logit_slices", fail)
    slices = logits_or_stop(None, {}, SegmentOptions(), Run())
    next(slices)
    with pytest.raises(told, match=text):
        next(slices)


def test_a_stopped_run_says_that_not_all_came() -> None:
    run = Run()
    run.stop.set()
    with pytest.raises(StopIteration) as caught:
        next(logits_or_stop(np.zeros(SHAPE), {}, SegmentOptions(), run))
    assert caught.value.value is False


def test_voxels_that_are_no_numbers_are_told() -> None:
    data = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    data[3, 4, 5] = np.nan
    with pytest.warns(UserWarning, match="1 NaN or infinite voxels"):
        slices = list(logit_slices(data, {"scale": (10.0,) * 3}, SegmentOptions(), Run()))
    assert [z for z, _ in slices] == list(range(SHAPE[0]))


def test_a_layer_is_segmented_at_the_size_that_its_units_say() -> None:
    data = np.random.default_rng(5).normal(size=SHAPE).astype(np.float32)
    options = SegmentOptions(polarity="dark")
    nanometres = {"scale": (0.5, -0.5, 0.5), "units": ("nanometer",) * 3}
    angstroms, unsaid = {"scale": (5.0,) * 3}, {"scale": (10.0,) * 3}
    found = [
        np.stack([plane for _, plane in logit_slices(data, meta, options, Run())])
        for meta in (nanometres, angstroms, unsaid)
    ]
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])


def test_a_layer_that_says_no_size_is_told() -> None:
    data = np.random.default_rng(5).normal(size=SHAPE).astype(np.float32)
    with pytest.warns(UserWarning, match="a layer of scale 1 does not say .* set its scale"):
        list(logit_slices(data, {"scale": (1.0,) * 3}, SegmentOptions(), Run()))

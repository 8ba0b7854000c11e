"""Scores against hand counts and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score

from etsam.metrics import Confusion, ScoreHistogram, confusion


def brute_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Sum precision times gain in recall over every distinct score, one by one."""
    area, before = 0.0, 0.0
    for threshold in np.unique(scores)[::-1]:
        chosen = scores >= threshold
        hits = np.sum(labels[chosen] == 1)
        recall = hits / np.sum(labels == 1)
        area += (recall - before) * hits / np.sum(chosen)
        before = recall
    return float(area)


def sorted_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Do the same by sorting, for many scores."""
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    hits = np.cumsum(labels[order] == 1)[ends]
    recall = hits / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * hits / (ends + 1)))


def test_hand_counted_case_with_ignored_voxels() -> None:
    prediction = np.array([[1, 1, 1, 0], [0, 0, 1, 1]])
    labels = np.array([[1, 1, 0, 1], [0, 0, -1, -1]])
    counts = confusion(prediction, labels)
    assert counts == Confusion(2, 1, 1, 2)
    assert counts.voxels == 6
    assert counts.precision == pytest.approx(2 / 3)
    assert counts.recall == pytest.approx(2 / 3)
    assert counts.dice == pytest.approx(2 / 3)
    assert counts.iou == pytest.approx(2 / 4)


def test_only_undefined_scores_are_nan() -> None:
    empty = confusion(np.zeros(4), np.zeros(4, np.int8))
    assert all(math.isnan(x) for x in (empty.precision, empty.recall, empty.dice, empty.iou))
    missed = confusion(np.zeros(4), np.ones(4, np.int8))
    assert (missed.precision, missed.recall, missed.dice, missed.iou) == (0.0, 0.0, 0.0, 0.0)
    extra = confusion(np.ones(4), np.zeros(4, np.int8))
    assert (extra.precision, extra.dice, extra.iou) == (0.0, 0.0, 0.0)
    assert math.isnan(extra.recall)
    assert confusion(np.zeros((0, 3)), np.zeros((0, 3))).voxels == 0


@settings(max_examples=50, deadline=None)
@given(arrays(bool, (4, 5, 6)), arrays(np.int8, (4, 5, 6), elements=st.integers(-1, 1)))
def test_slices_add_up_and_scores_are_related(prediction: np.ndarray, labels: np.ndarray) -> None:
    whole = confusion(prediction, labels)
    assert sum(map(confusion, prediction, labels), Confusion()) == whole
    assert whole.voxels == np.sum(labels >= 0)
    if not math.isnan(whole.dice):
        assert whole.dice == pytest.approx(2 * whole.iou / (1 + whole.iou))
    if whole.true_positives:
        harmonic = 2 / (1 / whole.precision + 1 / whole.recall)
        assert whole.dice == pytest.approx(harmonic)


def test_refuses_other_labels_shapes_and_nan() -> None:
    with pytest.raises(ValueError, match="shape"):
        confusion(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="labels reach from 0 to 2"):
        confusion(np.zeros(3), np.array([0, 1, 2]))
    with pytest.raises(ValueError, match="labels reach from -2"):
        confusion(np.zeros(2), np.array([0, -2]))
    histogram = ScoreHistogram()
    with pytest.raises(ValueError, match="NaN"):
        histogram.add(np.array([1, np.nan]), np.array([1, 0]))
    histogram.add(np.array([1, np.nan]), np.array([1, -1]))
    with pytest.raises(ValueError, match="bits is 30"):
        ScoreHistogram(30)
    with pytest.raises(ValueError, match="do not add up"):
        histogram.merge(ScoreHistogram(17))


def test_hand_counted_curve() -> None:
    histogram = ScoreHistogram()
    histogram.add(np.array([3.0, 2.0, 2.0, 1.0, -1.0, 9.0]), np.array([1, 0, 1, 0, 1, -1]))
    curve = histogram.curve()
    assert curve.thresholds.tolist() == [3, 2, 1, -1]
    assert curve.precision.tolist() == pytest.approx([1, 2 / 3, 2 / 4, 3 / 5])
    assert curve.recall.tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1])
    assert curve.average_precision == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert histogram.maximum == 3


@settings(max_examples=40, deadline=None)
@example(485, 25, False)
@given(st.integers(0, 10_000), st.integers(2, 60), st.booleans())
def test_average_precision_with_ties_is_exact(seed: int, count: int, rounded: bool) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(-1, 2, count)
    labels[0] = 1
    scores = random.normal(size=count).astype(np.float32) * 5
    steps = 1 if rounded else 256  # closer scores share one of 2^24 bins now and then
    scores = np.round(scores * steps) / steps
    histogram = ScoreHistogram(24)
    histogram.add(scores, labels)
    wanted = brute_average_precision(scores[labels >= 0], labels[labels >= 0])
    assert histogram.curve().average_precision == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("low_precision", [False, True])
def test_many_scores_streamed_in_parts_are_within_1e_6_of_sorting(low_precision: bool) -> None:
    random = np.random.default_rng(5)
    labels = (random.random(300_000) < 0.05).astype(np.int8)
    scores = (random.normal(size=labels.size) * 3 - 4 + labels * 5).astype(np.float32)
    if low_precision:  # bfloat16 logits are full of ties
        scores = (scores.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    parts = [ScoreHistogram(), ScoreHistogram()]
    for number, rows in enumerate(np.array_split(np.arange(labels.size), 7)):
        parts[number % 2].add(scores[rows], labels[rows])
    parts[0].merge(parts[1])
    area = parts[0].curve().average_precision
    assert area == pytest.approx(sorted_average_precision(scores, labels), abs=1e-6)


@pytest.mark.parametrize(("step", "close"), [(0.0, 1e-6), (0.25, 1e-4), (0.0004, 1e-6)])
def test_parts_in_any_order_and_merged_give_one_histogram(step: float, close: float) -> None:
    """Continuous scores, and half of them tied: many at few scores, few at many scores."""
    random = np.random.default_rng(7)
    labels = random.integers(-1, 2, 200_000)
    scores = random.normal(size=labels.size).astype(np.float32)
    if step:
        scores[::2] = np.round(scores[::2] / step) * step
    whole, parts, turned = ScoreHistogram(), ScoreHistogram(), ScoreHistogram()
    whole.add(scores, labels)
    turned.add(scores[::-1], labels[::-1])
    for rows in np.array_split(random.permutation(labels.size), 5):
        part = ScoreHistogram()
        part.add(scores[rows], labels[rows])
        parts.merge(part)
    for other in (parts, turned):
        assert np.array_equal(whole.curve().thresholds, other.curve().thresholds)
        assert np.array_equal(whole.curve().mean_precision, other.curve().mean_precision)
    wanted = average_precision_score(labels[labels >= 0] == 1, scores[labels >= 0])
    assert whole.curve().average_precision == pytest.approx(wanted, abs=close)


def test_merged_histograms_are_clipped_at_the_largest_score_of_all() -> None:
    low, high, whole = ScoreHistogram(), ScoreHistogram(), ScoreHistogram()
    scores, labels = np.array([-5.0, -4.0, 1.0, -3.0, 3.0], np.float32), np.array([1, 0, 1, 0, 1])
    low.add(scores[:3], labels[:3])
    high.add(scores[3:], labels[3:])
    whole.add(scores, labels)
    low.merge(high)
    assert low.maximum == 3
    wanted = whole.curve(clip=True).average_precision
    assert low.curve(clip=True).average_precision == wanted


def test_saturated_probabilities_are_told_apart() -> None:
    """Most of a sure network's probabilities lie within 1e-4 of 0 or 1, and many are just 1."""
    random = np.random.default_rng(9)
    labels = (random.random(200_000) < 0.2).astype(np.int8)
    logits = random.normal(size=labels.size) * 8 + labels * 4
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
    assert (scores == 1).sum() > 100
    histogram = ScoreHistogram(probabilities=True)
    histogram.add(scores, labels)
    curve = histogram.curve()
    wanted = average_precision_score(labels == 1, scores)
    assert curve.average_precision == pytest.approx(wanted, abs=1e-5)
    assert curve.thresholds.max() == 1
    assert np.all(np.diff(curve.thresholds) <= 0)
    assert histogram.confusions([0.25, 0.9]) == [confusion(scores > t, labels) for t in (0.25, 0.9)]
    with pytest.raises(ValueError, match="do not add up"):
        histogram.merge(ScoreHistogram())


def test_fractions_are_no_labels() -> None:
    with pytest.raises(ValueError, match=r"a label is 0\.7: expected 1, 0 and -1"):
        confusion(np.ones(3), np.array([0, 0.7, -1]))


def test_clipping_as_in_the_paper() -> None:
    random = np.random.default_rng(6)
    labels = (random.random(50_000) < 0.1).astype(np.int8)
    scores = (random.normal(size=labels.size) * 2 - 3 + labels * 2).astype(np.float32)
    scores = np.minimum(scores, 1)
    scores[::5] = -1024
    histogram = ScoreHistogram()
    histogram.add(scores, labels)
    clipped = np.maximum(scores, -scores.max())
    probability = 1 / (1 + np.exp(-clipped.astype(np.float64)))
    curve = histogram.curve(clip=True)
    assert 0 < curve.thresholds.min() < curve.thresholds.max() < 1
    assert curve.thresholds.min() == pytest.approx(1 / (1 + math.exp(scores.max())), rel=1e-3)
    wanted = sorted_average_precision(probability, labels)
    assert curve.average_precision == pytest.approx(wanted, abs=1e-6)
    assert histogram.curve().average_precision != pytest.approx(wanted, abs=1e-4)


def test_thresholds_from_the_histogram_agree_with_counting() -> None:
    random = np.random.default_rng(8)
    labels = random.integers(-1, 2, 5000)
    scores = np.round(random.normal(size=5000) * 8).astype(np.float32) / 4
    histogram = ScoreHistogram()
    histogram.add(scores, labels)
    thresholds = [-0.25, 0.0, -1024.0, 3.5, 1e6]
    assert histogram.confusions(thresholds) == [confusion(scores > t, labels) for t in thresholds]


def test_no_true_voxel_gives_nan() -> None:
    histogram = ScoreHistogram()
    assert math.isnan(histogram.curve(clip=True).average_precision)
    histogram.add(np.array([1.0, -2.0]), np.array([0, 0]))
    assert math.isnan(histogram.curve().average_precision)

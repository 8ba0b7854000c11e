"""Dice, IoU, precision, recall and the precision-recall curve, slice by slice.

Everything is counted, so that a volume of any size takes constant memory, and counts of slices,
slabs or tomograms add up. Voxels labelled `IGNORE` (not annotated) are never counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

IGNORE = -1
"""Label of a voxel that nobody annotated."""

OTHER_VALUES = "`etsam prepare` makes masks of 0 and 255, and numbered ones, into 1, 0 and -1"

KEY_BITS = 22
"""Leading bits of a float32 that tell logits apart: sign, 8 of exponent, 13 of mantissa (1e-4)."""

PART = 1 << 16  # scores counted at once: what they need stays in the processor's cache
EMPTY = np.uint32(0xFFFFFFFF)  # of a key that no score had yet
SINGLE = np.uint32(0xFFFF0000)  # of a key whose scores are all equal; their trailing bits follow
MIXED = np.uint32(0)  # of a key with several scores


@dataclass(frozen=True)
class Confusion:
    """Counts of voxels by prediction and truth; they add up with `+`.

    Scores are NaN where they are not defined: recall without a true voxel; precision, Dice and IoU
    without a true and a predicted one. Precision is 0 where there is membrane and none is found.
    """

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0
    true_negatives: int = 0

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
            self.false_negatives + other.false_negatives,
            self.true_negatives + other.true_negatives,
        )

    @property
    def voxels(self) -> int:
        """Number of voxels counted."""
        wrong = self.false_positives + self.false_negatives
        return self.true_positives + self.true_negatives + wrong

    @property
    def precision(self) -> float:
        """Share of the predicted voxels that are true; 0 where all that is true is missed."""
        predicted = self.true_positives + self.false_positives
        return _ratio(self.true_positives, predicted or self.false_negatives)

    @property
    def recall(self) -> float:
        """Share of the true voxels that are predicted."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def dice(self) -> float:
        """Harmonic mean of precision and recall (F1)."""
        wrong = self.false_positives + self.false_negatives
        return _ratio(2 * self.true_positives, 2 * self.true_positives + wrong)

    @property
    def iou(self) -> float:
        """Intersection over union (Jaccard index)."""
        wrong = self.false_positives + self.false_negatives
        return _ratio(self.true_positives, self.true_positives + wrong)


@dataclass(frozen=True)
class Truth:
    """Checked labels: where they are 1, and where there is an annotation (None: everywhere)."""

    true: NDArray[np.bool_]
    annotated: NDArray[np.bool_] | None


def read_labels(labels: ArrayLike) -> Truth:
    """Check labels of any shape: 1 membrane, 0 background, -1 not annotated.

    Raises
    ------
    ValueError
        If there are others.
    """
    given = np.asarray(labels)
    if given.dtype == np.bool_ or not given.size:
        return Truth(given.astype(bool, copy=False), None)
    low, high = given.min(), given.max()
    if low < IGNORE or high > 1 or np.isnan(low):
        way_out = f"; {OTHER_VALUES}" if low >= IGNORE else ""
        raise ValueError(
            f"labels reach from {low:g} to {high:g}: expected 1, 0 and -1 (ignored){way_out}"
        )
    true = given == 1
    annotated = None if low >= 0 else given != IGNORE
    known = np.count_nonzero(true) + given.size - np.count_nonzero(given)
    if annotated is not None:
        known += given.size - np.count_nonzero(annotated)
    if known < given.size:
        odd = given[~true & (given != 0) & (given != IGNORE)][0]
        raise ValueError(f"a label is {odd:g}: expected 1, 0 and -1 (ignored); threshold it first")
    return Truth(true, annotated)


def confusion(prediction: ArrayLike, labels: ArrayLike | Truth) -> Confusion:
    """Count predictions against labels.

    Parameters
    ----------
    prediction
        Mask of any shape: bool, or numbers of which all but 0 count as membrane.
    labels
        Same shape: 1 membrane, 0 background, -1 not annotated; or these, checked.

    Raises
    ------
    ValueError
        If the shapes differ or there are other labels.
    """
    given = np.asarray(prediction)
    predicted = given if given.dtype == np.bool_ else given != 0
    truth = _matched(predicted, labels)
    positives = int(np.count_nonzero(truth.true))
    counted = predicted if truth.annotated is None else predicted & truth.annotated
    hits = int(np.count_nonzero(counted & truth.true))
    false = int(np.count_nonzero(counted)) - hits
    annotated = truth.annotated
    voxels = truth.true.size if annotated is None else int(np.count_nonzero(annotated))
    return Confusion(hits, false, positives - hits, voxels - positives - false)


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall at descending score thresholds (a voxel counts at `>= threshold`)."""

    thresholds: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    mean_precision: NDArray[np.float64]  # over the true voxels that a threshold adds

    @property
    def average_precision(self) -> float:
        """Area under the curve as the sum of precision times gain in recall (AUPRC).

        The same as `sklearn.metrics.average_precision_score` (to about 1e-7): scores that fall
        together in one threshold, though different, count as if evenly mixed. NaN without a true
        voxel.
        """
        if not self.recall.size or np.isnan(self.recall[-1]):
            return float("nan")
        return float(np.sum(np.diff(self.recall, prepend=0.0) * self.mean_precision))


@dataclass
class ScoreHistogram:
    """Counts of scores of true and of other voxels, from which come all curves.

    Scores are told apart by the leading bits of their float32, whatever their range, so that logits
    need not be kept, sorted, or known in advance. It grows by `add`, and histograms merge by `merge`.
    Probabilities crowd below 1, where their leading bits are all alike: said to be `probabilities`,
    they are told apart by their logits.
    """

    bits: int = KEY_BITS
    probabilities: bool = False
    _counts: NDArray[np.int64] = field(init=False, repr=False)
    _seen: NDArray[np.uint32] = field(init=False, repr=False)
    _maximum: float = field(init=False, default=-np.inf)

    def __post_init__(self) -> None:
        if not 17 <= self.bits <= 24:
            raise ValueError(f"bits is {self.bits}: expected 17 (coarse) to 24 (300 MB)")
        self._counts = np.zeros(2 << self.bits, np.int64)  # of each key, others and true ones
        self._seen = np.full(1 << self.bits, EMPTY)

    def add(self, scores: NDArray[np.floating], labels: ArrayLike | Truth) -> None:
        """Count scores (logits or probabilities, any shape) by their labels (1, 0 or -1).

        Raises
        ------
        ValueError
            If the shapes differ, a label is not one of these, or a counted score is NaN.
        """
        values = np.asarray(scores, np.float32)
        truth = _matched(values, labels)
        if self.probabilities:
            with np.errstate(divide="ignore"):  # 0 and 1 are infinitely sure
                values = logit(values.astype(np.float64)).astype(np.float32)
        values, true = values.ravel(), truth.true.ravel()
        if truth.annotated is not None:
            annotated = truth.annotated.ravel()
            values, true = values[annotated], true[annotated]
        if not values.size:
            return
        maximum = float(values.max())
        if np.isnan(maximum):
            raise ValueError("scores hold NaN: predict again, or label these voxels -1")
        self._maximum = max(self._maximum, maximum)
        for start in range(0, values.size, PART):
            self._count(values[start : start + PART], true[start : start + PART])

    def _count(self, values: NDArray[np.float32], true: NDArray[np.bool_]) -> None:
        ordered = _ordered(values)
        keys = (ordered >> np.uint32(32 - self.bits)).astype(np.intp)
        rest = ordered & np.uint32((1 << (32 - self.bits)) - 1)
        odd = np.flatnonzero(_differ(self._seen[keys], rest))
        if odd.size:
            self._note(keys[odd], rest[odd])
        np.add.at(self._counts, 2 * keys + true, 1)

    def _note(self, keys: NDArray[np.intp], rest: NDArray[np.uint32]) -> None:
        """Keep the trailing bits of the first score of each key, and which keys have several."""
        new = self._seen[keys] == EMPTY
        self._seen[keys[new]] = SINGLE | rest[new]
        self._seen[keys[_differ(self._seen[keys], rest)]] = MIXED

    def merge(self, other: ScoreHistogram) -> None:
        """Add the counts of another histogram of as many bits, of the same kind of scores.

        Raises
        ------
        ValueError
            It is of others.
        """
        if (other.bits, other.probabilities) != (self.bits, self.probabilities):
            raise ValueError(
                f"histograms of {self.bits} and {other.bits} bits, or of logits and probabilities, "
                "do not add up"
            )
        both = np.where(self._seen == other._seen, self._seen, MIXED)
        both = np.where(other._seen == EMPTY, self._seen, both)
        self._seen = np.where(self._seen == EMPTY, other._seen, both)
        self._counts += other._counts
        self._maximum = max(self._maximum, other._maximum)

    @property
    def maximum(self) -> float:
        """Largest score so far (-inf without any; of probabilities, the logit)."""
        return self._maximum

    def curve(self, *, clip: bool = False) -> PrecisionRecall:
        """Return the curve over all distinct scores (to `bits`), thresholds descending.

        With `clip`, scores are logits and treated as in the paper (section 4.5): those below minus
        the largest logit are raised to it, then the sigmoid is taken; thresholds are probabilities.
        """
        used = np.flatnonzero(self._seen != EMPTY)[::-1]
        values, mixed = _values(used, self.bits), self._seen[used] == MIXED
        others, true = self._counts.reshape(-1, 2)[used].T
        if clip and used.size and self._maximum > 0:
            values = np.maximum(values, -self._maximum)
            starts = np.flatnonzero(np.diff(values, prepend=np.inf))
            values, mixed = values[starts], mixed[starts] & (values[starts] > -self._maximum)
            true, others = np.add.reduceat(true, starts), np.add.reduceat(others, starts)
        if clip or self.probabilities:
            values = expit(values)
        hits, predicted = np.cumsum(true), np.cumsum(true + others)
        # The middle one of the true voxels that a threshold adds, or the last where all are equal.
        middle = np.where(mixed, hits - true + (true + 1) / 2, hits)
        ahead = np.where(mixed, predicted - hits - others / 2, predicted - hits)
        recall = hits / hits[-1] if hits.size and hits[-1] else np.full(hits.shape, np.nan)
        return PrecisionRecall(values, hits / predicted, recall, middle / (middle + ahead))

    def confusions(self, thresholds: Iterable[float]) -> list[Confusion]:
        """Count at `score > threshold` for each threshold, exact to the bits kept."""
        given = np.asarray(list(thresholds), np.float64)
        rows = self._counts.reshape(-1, 2).T
        others, true = (np.append(np.cumsum(row[::-1])[::-1], 0) for row in rows)
        result = []
        for threshold in logit(given) if self.probabilities else given:
            key = _ordered(np.array([threshold], np.float32)) >> np.uint32(32 - self.bits)
            cut = int(key[0]) + 1
            hits, false = int(true[cut]), int(others[cut])
            result.append(Confusion(hits, false, int(true[0]) - hits, int(others[0]) - false))
        return result


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _matched(values: np.ndarray, labels: ArrayLike | Truth) -> Truth:
    """Return checked labels of the shape of `values`."""
    shape = labels.true.shape if isinstance(labels, Truth) else np.shape(labels)
    if shape != values.shape:
        raise ValueError(f"prediction has shape {values.shape}, labels have {shape}")
    return labels if isinstance(labels, Truth) else read_labels(labels)


def _differ(seen: NDArray[np.uint32], rest: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Say which scores are news: their key is empty, or holds a single other score."""
    return np.not_equal((seen ^ rest) & (seen >> np.uint32(16)), 0)


def _ordered(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Map float32 to integers in the same order."""
    raw = (values + np.float32(0)).view(np.int32)  # -0 becomes 0
    flipped: NDArray[np.int32] = raw ^ ((raw >> 31) & np.int32(0x7FFFFFFF))
    return flipped.view(np.uint32) ^ np.uint32(1 << 31)


def _values(keys: NDArray[np.intp], bits: int) -> NDArray[np.float64]:
    """Return the float32 nearest to zero of each key."""
    sign = np.uint32(1 << 31)
    ordered = keys.astype(np.uint32) << np.uint32(32 - bits)
    trailing = np.uint32((1 << (32 - bits)) - 1)
    raw = np.where(ordered & sign, ordered & ~sign, ~(ordered | trailing))
    return raw.astype(np.uint32).view(np.float32).astype(np.float64)

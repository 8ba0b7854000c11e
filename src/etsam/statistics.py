"""Paired tests on scores of the same tomograms, as in the paper (sections 2.1 and 4.5)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

ALPHA = 0.05
"""Significance level before Bonferroni's correction (paper, section 2.1)."""

LEVELS = ((0.001, "***"), (0.01, "**"))
"""Marks of smaller p-values (paper, section 2.1); "*" is below the corrected level."""

NOT_SIGNIFICANT = "ns"
RESAMPLES = 9999
FEWEST = 3  # pairs that Shapiro and Wilk's test needs
DIGITS = 12  # of differences, the largest score counted as below 10; what is beyond is rounding
ROUNDING = 1e-12  # spread of values (relative, where they are above 1) that only rounding makes

Test = Literal["paired t", "Wilcoxon", "sign", "none"]


class TooFewPairsError(ValueError):
    """Two methods were scored on too few of the same tomograms for a test."""


@dataclass(frozen=True)
class Summary:
    """Mean, standard deviation (n - 1), and bootstrap interval of the mean at 95 %."""

    n: int
    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """A paired comparison of two methods.

    `difference` is the mean of first minus second with its bootstrap interval (95 %); `normality`
    is Shapiro and Wilk's p of the differences; `effect` is Cohen's d of the differences (mean over
    SD); `rank_effect` the matched-pairs rank-biserial correlation, -1 to 1; `p` is not corrected:
    it is held against `alpha`, which is. Where all differences are equal, normality and effect are
    NaN; the statistic of the sign test is the number of positive differences.
    """

    n: int
    difference: Summary
    normality: float
    test: Test
    statistic: float
    p: float
    alpha: float
    effect: float
    rank_effect: float

    @property
    def significant(self) -> bool:
        """Whether p is below the corrected level."""
        return self.p < self.alpha

    @property
    def mark(self) -> str:
        """ "***", "**", "*" or "ns", as in the paper's Fig. 1b."""
        if not self.significant:
            return NOT_SIGNIFICANT
        return next((mark for level, mark in LEVELS if self.p < level), "*")


def bonferroni(comparisons: int, alpha: float = ALPHA) -> float:
    """Level each of several comparisons is held to: 0.05 / 3 = 0.0167 for three methods."""
    return alpha / max(comparisons, 1)


def summarise(values: ArrayLike, *, seed: int = 0) -> Summary:
    """Return mean, SD and the bias-corrected bootstrap interval of the mean, of the finite values."""
    data = np.asarray(values, np.float64)
    data = data[np.isfinite(data)]
    if not data.size:
        return Summary(0, *[float("nan")] * 4)
    mean = float(data.mean())
    if data.size == 1:
        return Summary(1, mean, float("nan"), float("nan"), float("nan"))
    if _constant(data):
        return Summary(data.size, mean, 0.0, mean, mean)
    found = stats.bootstrap(
        (data,), np.mean, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(seed)
    ).confidence_interval
    return Summary(data.size, mean, float(data.std(ddof=1)), float(found.low), float(found.high))


def paired_test(first: ArrayLike, second: ArrayLike, *, comparisons: int = 1) -> PairedTest:
    """Compare two methods on the same tomograms.

    The paired t-test where the differences pass for normal (Shapiro and Wilk, p >= 0.05), Wilcoxon's
    signed-rank test where they do not. Where all differences are equal neither is defined: the exact
    sign test (two-sided), and none where they are 0.

    Parameters
    ----------
    first, second
        Scores of both methods, in the same order.
    comparisons
        Number of comparisons made (Bonferroni).

    Raises
    ------
    TooFewPairsError, ValueError
        If there are fewer than 3 pairs, or a score is not finite.
    """
    differences = _differences(np.asarray(first, np.float64), np.asarray(second, np.float64))
    if differences.size < FEWEST:
        raise TooFewPairsError(
            f"{differences.size} pairs: a paired test needs {FEWEST} tomograms or more"
        )
    if not np.isfinite(differences).all():
        raise ValueError("scores hold NaN or infinity: leave those tomograms out")
    alpha = bonferroni(comparisons)
    size, difference = differences.size, summarise(differences)
    if _constant(differences):
        return _sign_test(difference, alpha)
    rank = _rank_biserial(differences)
    normality = float(stats.shapiro(differences).pvalue)
    test: Test = "paired t" if normality >= ALPHA else "Wilcoxon"
    found = stats.ttest_1samp(differences, 0) if test == "paired t" else stats.wilcoxon(differences)
    statistic, p = float(found.statistic), float(found.pvalue)
    effect = difference.mean / difference.sd
    return PairedTest(size, difference, normality, test, statistic, p, alpha, effect, rank)


def _differences(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Subtract without what is rounded off the last digits: 0.72 - 0.70 ties with 0.70 - 0.68."""
    difference: NDArray[np.float64] = first - second
    if not difference.size or not np.isfinite(difference).all():
        return difference
    largest = max(float(np.abs(first).max()), float(np.abs(second).max()), 1e-300)
    return np.round(difference, max(0, DIGITS - math.ceil(math.log10(largest))))


def _sign_test(difference: Summary, alpha: float) -> PairedTest:
    """Compare two methods that differ by the same on each tomogram."""
    nothing, size = float("nan"), difference.n
    if abs(difference.mean) <= ROUNDING:
        return PairedTest(size, difference, nothing, "none", nothing, 1.0, alpha, nothing, 0.0)
    positive = size if difference.mean > 0 else 0
    p = float(stats.binomtest(positive, size).pvalue)
    side = float(np.sign(difference.mean))
    return PairedTest(size, difference, nothing, "sign", positive, p, alpha, nothing, side)


def _constant(values: NDArray[np.float64]) -> bool:
    return bool(np.ptp(values) <= ROUNDING * max(1.0, float(np.abs(values).max())))


def _rank_biserial(differences: NDArray[np.float64]) -> float:
    """Share of the rank sum in favour of the first, minus that in favour of the second."""
    nonzero = differences[differences != 0]
    if not nonzero.size:
        return 0.0
    ranks = stats.rankdata(np.abs(nonzero))
    return float(np.sum(np.sign(nonzero) * ranks) / np.sum(ranks))

"""Compare methods by a table of scores: means with intervals, paired tests, significance marks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from operator import attrgetter
from typing import Any

from etsam.statistics import PairedTest, Summary, TooFewPairsError, paired_test, summarise
from etsam.tables import Score, Series, columns_of, evened, variants, warn_of_uneven

METRICS = ("dice", "iou", "precision", "recall")
"""What the paper tests (section 2.1)."""
TEST_COLUMNS = {
    "metric": "metric",
    "first": "first",
    "second": "second",
    "n": "test.n",
    "difference": "test.difference.mean",
    "low": "test.difference.low",
    "high": "test.difference.high",
    "normality_p": "test.normality",
    "test": "test.test",
    "statistic": "test.statistic",
    "p": "test.p",
    "alpha": "test.alpha",
    "mark": "test.mark",
    "cohen_d": "test.effect",
    "rank_biserial": "test.rank_effect",
}
"""Columns of a table of tests, and what of a `Comparison` stands in each."""


@dataclass(frozen=True)
class Comparison:
    """One metric of two methods on the tomograms both were scored on."""

    metric: str
    first: str
    second: str
    test: PairedTest


@dataclass(frozen=True)
class Comparisons:
    """All methods of a table: a summary of each metric, and a test of each pair that has one.

    Summaries of a metric are over the tomograms that all methods have a score of (`evened`).
    """

    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    summaries: dict[tuple[str, str], Summary]  # (method, metric), where it has scores of it
    tests: list[Comparison]

    def summary_records(self) -> list[dict[str, Any]]:
        """Rows of means."""
        return [
            {"method": method, "metric": metric, **vars(summary)}
            for (method, metric), summary in self.summaries.items()
        ]

    def test_records(self) -> list[dict[str, Any]]:
        """Rows of tests, with `TEST_COLUMNS`."""
        return [
            {name: attrgetter(place)(item) for name, place in TEST_COLUMNS.items()}
            for item in self.tests
        ]

    def mark(self, metric: str, first: str, second: str) -> str | None:
        """Significance mark of a pair in any order; None where it was not tested."""
        for item in self.tests:
            if item.metric == metric and {item.first, item.second} == {first, second}:
                return item.test.mark
        return None


def compare(
    rows: Sequence[Score],
    *,
    metrics: Sequence[str] = (),
    methods: Sequence[str] = (),
    thresholds: dict[str, float] | None = None,
    skip_few: bool = False,
) -> Comparisons:
    """Compare the methods of a table, each pair on the tomograms that both have a score for.

    The level of significance is 0.05 over the number of pairs of methods (Bonferroni), as in the
    paper, for each metric on its own.

    Parameters
    ----------
    rows
        Scores; see `variants` for how methods are named and thresholds chosen.
    metrics, methods
        Which (default: Dice, IoU, precision and recall; all methods in the table's order).
    thresholds
        method -> threshold, where a method has several.
    skip_few
        Methods are left out of metrics they have no score of, and there may be no test at all; a
        warning says so, instead of both being refused.

    Pairs with fewer than three tomograms in common are not tested, as a warning says.

    Raises
    ------
    ValueError
        If a method or metric is not in the table, a method lacks a metric, or no pair has three tomograms
        in common.
    """
    table = variants(rows, thresholds)
    chosen = tuple(dict.fromkeys(methods)) or tuple(table)
    for name in chosen:
        if name not in table:
            raise ValueError(f"no method {name!r}: the table has {', '.join(table)}")
    available = [name for name in METRICS if any(name in table[method] for method in chosen)]
    wanted = tuple(dict.fromkeys(metrics)) or tuple(available)
    if not wanted:
        have = ", ".join(dict.fromkeys(name for method in chosen for name in table[method]))
        raise ValueError(f"the table has none of {', '.join(METRICS)}: give --metric, of {have}")
    lacking = [pair for pair in product(wanted, chosen) if pair[0] not in table[pair[1]]]
    if lacking:
        metric, method = lacking[0]
        have = ", ".join(table[method])
        text = f"{method} has no {metric!r} in the table: it has {have}"
        if not skip_few:
            raise ValueError(text)
        others = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
        warnings.warn(f"left out{others}: {text}", stacklevel=2)
    summaries, notes = {}, {}
    for metric in wanted:
        scores, notes[metric] = evened(columns_of({name: table[name] for name in chosen}, metric))
        for name, series in scores.items():
            summaries[name, metric] = summarise(list(series.values()))
    warn_of_uneven(notes, "methods")
    return Comparisons(chosen, wanted, summaries, _tests(table, wanted, chosen, skip_few))


def _tests(
    table: dict[str, dict[str, Series]],
    metrics: Sequence[str],
    methods: Sequence[str],
    skip_few: bool,
) -> list[Comparison]:
    """Test each pair of the methods that have a metric by it."""
    having = {metric: [name for name in methods if metric in table[name]] for metric in metrics}
    pairs = {metric: list(combinations(names, 2)) for metric, names in having.items()}
    tests, untested = [], []
    for metric, (first, second) in [(name, pair) for name in metrics for pair in pairs[name]]:
        try:
            test = _test(table, metric, first, second, len(pairs[metric]))
        except TooFewPairsError as error:
            untested.append(str(error))
        else:
            tests.append(Comparison(metric, first, second, test))
    if untested and not tests and not skip_few:
        raise TooFewPairsError(untested[0])
    if untested:
        others = f" (and {len(untested) - 1} more)" if len(untested) > 1 else ""
        warnings.warn(f"not tested{others}: {untested[0]}", stacklevel=3)
    return tests


def _test(
    table: dict[str, dict[str, Series]], metric: str, first: str, second: str, comparisons: int
) -> PairedTest:
    ours, theirs = table[first][metric], table[second][metric]
    both = [
        key
        for key in ours
        if key in theirs and math.isfinite(ours[key]) and math.isfinite(theirs[key])
    ]
    try:
        return paired_test(
            [ours[key] for key in both], [theirs[key] for key in both], comparisons=comparisons
        )
    except ValueError as error:
        raise type(error)(f"{metric}, {first} and {second}: {error}") from error

"""Statistics: the paper's own numbers, textbook cases, and bad tables."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from etsam.compare import compare
from etsam.statistics import bonferroni, paired_test, summarise
from etsam.tables import COLUMNS, Score, read_table, variants, write_table

Run = Callable[..., tuple[int, str, str]]

PAPER_MEANS = {  # Table 1
    ("ETSAM", "dice"): 0.7867,
    ("ETSAM", "iou"): 0.6751,
    ("ETSAM", "precision"): 0.8016,
    ("ETSAM", "recall"): 0.8025,
    ("MemBrain-seg", "precision"): 0.4741,
    ("MemBrain-seg", "recall"): 0.7362,
    ("TARDIS", "precision"): 0.6202,
    ("TARDIS", "recall"): 0.5742,
}
PAPER_SIGNIFICANT = {  # section 2.1
    ("dice", "MemBrain-seg"): True,
    ("dice", "TARDIS"): True,
    ("iou", "MemBrain-seg"): True,
    ("iou", "TARDIS"): True,
    ("precision", "MemBrain-seg"): True,
    ("precision", "TARDIS"): True,
    ("recall", "MemBrain-seg"): False,
    ("recall", "TARDIS"): True,
}


def table(values: dict[str, list[float]], metric: str = "dice") -> list[Score]:
    return [
        Score("d", f"r{number}", method, "final", None, metric, value)
        for method, row in values.items()
        for number, value in enumerate(row)
    ]


def test_the_papers_means_and_significance(shared: Path) -> None:
    found = compare(read_table(shared / "paper" / "published_scores.csv"))
    for key, mean in PAPER_MEANS.items():
        assert round(found.summaries[key].mean, 4) == mean, key
    for (metric, other), significant in PAPER_SIGNIFICANT.items():
        item = next(
            t.test
            for t in found.tests
            if t.metric == metric and {t.first, t.second} == {"ETSAM", other}
        )
        assert item.significant is significant, (metric, other)
        assert item.test == "paired t"  # "the normality assumption is satisfied for every test"
        assert item.alpha == pytest.approx(0.0167, abs=5e-5)
    assert found.mark("recall", "MemBrain-seg", "ETSAM") == "ns"
    assert found.mark("precision", "ETSAM", "TARDIS") == "*"
    assert found.mark("dice", "ETSAM", "TARDIS") == "***"


def test_other_thresholds_of_the_paper(shared: Path) -> None:
    rows = read_table(shared / "paper" / "published_scores.csv")
    means = {}
    for threshold in (-2.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0):
        dice = variants(rows, {"ETSAM": threshold})["ETSAM"]["dice"]
        means[threshold] = np.mean(list(dice.values()))
    assert max(means, key=lambda threshold: means[threshold]) == -0.25  # section 4.4


def test_a_paired_test_is_scipys() -> None:
    first = [0.8, 0.7, 0.9, 0.65, 0.85, 0.77]
    second = [0.6, 0.65, 0.7, 0.62, 0.71, 0.7]
    found = paired_test(first, second, comparisons=3)
    assert found.p == pytest.approx(stats.ttest_rel(first, second).pvalue)
    assert found.alpha == bonferroni(3)
    assert found.rank_effect == 1
    assert found.difference.low < found.difference.mean < found.difference.high
    back = paired_test(second, first, comparisons=3)
    assert (back.p, back.effect) == (pytest.approx(found.p), pytest.approx(-found.effect))


def test_outliers_call_for_wilcoxon() -> None:
    differences = np.array([0.01, 0.012, 0.011, 0.013, 0.0125, 0.009, 0.0105, 0.9])
    found = paired_test(differences, np.zeros(8), comparisons=3)
    assert found.test == "Wilcoxon"
    assert found.p == pytest.approx(2 / 2**8)
    assert found.mark == "**"


def test_equal_differences_need_no_test() -> None:
    same = paired_test([0.5, 0.6, 0.7], [0.5, 0.6, 0.7])
    assert (same.test, same.p, same.mark, same.rank_effect) == ("none", 1.0, "ns", 0.0)
    assert paired_test(np.arange(10) + 0.5, np.arange(10)).p == pytest.approx(2 * 0.5**10)


def test_differences_that_only_rounding_tells_apart_are_held_against_their_sign() -> None:
    base = np.array([0.1, 0.2, 0.3, 0.35, 0.4, 0.55, 0.6, 0.7])
    assert np.ptp(base + 0.1 - base) > 0
    found = paired_test(base, base + 0.1)
    assert (found.test, found.statistic, found.rank_effect, found.mark) == ("sign", 0, -1, "**")
    assert found.p == pytest.approx(stats.binomtest(0, 8).pvalue)
    assert found.difference.low == found.difference.high == pytest.approx(-0.1)
    assert summarise([0.5, math.inf, 0.7]).mean == pytest.approx(0.6)


def test_summaries_and_effects_follow_their_definitions() -> None:
    skewed = np.array([0.1, 0.11, 0.12, 0.13, 0.9, 0.14])
    found = summarise(skewed)
    expected = stats.bootstrap(
        (skewed,), np.mean, n_resamples=9999, method="BCa", rng=np.random.default_rng(0)
    ).confidence_interval
    assert (found.low, found.high) == (expected.low, expected.high)
    assert found.sd == pytest.approx(np.std(skewed, ddof=1))
    first, second = np.array([0.8, 0.7, 0.9, 0.65]), np.array([0.6, 0.65, 0.7, 0.62])
    difference = first - second
    effect = paired_test(first, second).effect
    assert effect == pytest.approx(difference.mean() / difference.std(ddof=1))


def test_a_bootstrap_interval_covers_the_mean() -> None:
    random = np.random.default_rng(0)
    hits = [
        found.low <= 0.5 <= found.high
        for found in (summarise(random.normal(0.5, 0.1, 12)) for _ in range(40))
    ]
    assert 33 <= sum(hits) <= 40
    assert summarise([]).n == 0
    assert math.isnan(summarise([0.4, math.nan]).sd)


def test_only_shared_tomograms_are_compared() -> None:
    rows = table({"a": [0.1, 0.3, 0.2, 0.9], "b": [0.2, 0.3, 0.6, math.nan]})
    with pytest.warns(UserWarning, match="all methods have a score of: dice 3 of 4$"):
        found = compare(rows)
    assert found.tests[0].test.n == 3
    assert found.summaries["a", "dice"].n == 3
    assert found.summaries["a", "dice"].mean == pytest.approx(0.2)
    difference = found.summaries["a", "dice"].mean - found.summaries["b", "dice"].mean
    assert found.tests[0].test.difference.mean == pytest.approx(difference)
    apart = [*rows[:4], *(replace(row, run=f"other{row.run}", method="b") for row in rows[:4])]
    with pytest.warns(UserWarning, match="dice none of 8, so each has its own|not tested"):
        found = compare(apart, skip_few=True)
    assert found.summaries["b", "dice"].n == 4


def test_each_metric_is_held_to_the_level_of_its_own_pairs() -> None:
    both = {"a": [0.1, 0.3, 0.2, 0.9], "b": [0.2, 0.35, 0.6, 0.8]}
    rows = table({**both, "c": [0.3, 0.3, 0.65, 0.85]}) + table(both, "iou")
    with pytest.warns(UserWarning, match="c has no 'iou'"):
        found = compare(rows, skip_few=True)
    levels = {test.metric: test.test.alpha for test in found.tests}
    assert levels == {"dice": bonferroni(3), "iou": bonferroni(1)}
    for record, item in zip(found.test_records(), found.tests, strict=True):
        test = item.test
        assert (record["low"], record["high"]) == (test.difference.low, test.difference.high)
        assert (record["cohen_d"], record["rank_biserial"]) == (test.effect, test.rank_effect)
        assert record["low"] < record["difference"] < record["high"]


@pytest.mark.filterwarnings("default:means are over|not tested")
def test_a_metric_that_cannot_be_tested_does_not_keep_the_others_from_it(
    tmp_path: Path, run: Run
) -> None:
    rows = table({"a": [0.1, 0.3, 0.2, 0.9], "b": [0.2, 0.3, 0.6, 0.5]})
    nm = "surface_distance_mean_nm"
    far = table({"a": [1.0, 2.0, 3.0, 4.0], "b": [2.0, 3.0, math.nan, math.nan]}, nm)
    write_table(tmp_path / "t.csv", [*rows, *far])
    both = ("compare", tmp_path / "t.csv", "--metric", "dice", "--metric", nm)
    code, out, err = run(*both)
    assert code == 0
    assert out.count("n = 4") == 1
    assert f"warning: not tested: {nm}, a and b: 2 pairs" in err
    assert f"all methods have a score of: {nm} 2 of 4" in err
    assert err.count("warning") == 2
    code, out, err = run("compare", tmp_path / "t.csv", "--metric", nm)
    assert (code, out) == (1, "")
    assert "2 pairs: a paired test needs 3" in err


def test_tables_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [
        Score("10000", "245", "ETSAM", "stage2", -0.25, "dice", 0.726147),
        Score("10000", "245", "ETSAM", "stage2", None, "auprc", 0.5),
        Score("", "a,b", "M", "", None, "precision", math.nan),
    ]
    for name in ("t.csv", "t.json"):
        write_table(tmp_path / name, rows)
        again = read_table(tmp_path / name)
        assert again[:2] == rows[:2]
        assert math.isnan(again[2].value)
        assert again[2].run == "a,b"
    assert not list(tmp_path.glob("*.partial"))


def test_stages_become_methods() -> None:
    rows = [Score("d", "r", "E", stage, None, "dice", 0.5) for stage in ("stage1", "stage2")]
    assert list(variants(rows)) == ["E stage1", "E stage2"]


def test_a_programs_own_threshold_is_for_its_own_rows() -> None:
    levels = ((-0.25, 0.1), (0.0, 0.2), (0.5, 0.3))
    for method, dice in (("ridge", 0.2), ("ETSAM", 0.1)):
        rows = [Score("d", "r", method, "final", level, "dice", value) for level, value in levels]
        assert variants(rows)[method]["dice"] == {("d", "r"): dice}


def test_bad_tables_are_refused_in_one_line(tmp_path: Path, run: Run) -> None:
    header = ",".join(COLUMNS)
    tables = {
        "empty.csv": (header + "\n", "holds no scores"),
        "columns.csv": ("method,value\na,1\n", "no column 'dataset'"),
        "cut.csv": (header + "\nd,r,m,s\n", "row 1: other fields than the header names"),
        "quote.csv": (header + '\nd,r,"m,s,,dice,1\nd,r,m,s,,dice,1\n', "a quote not closed?"),
        "number.csv": (header + "\nd,r,m,s,,dice,high\n", "row 1, value: 'high' is not a number"),
        "bad.json": ("{", "not a JSON table"),
        "twice.csv": (header + "\n" + 2 * "d,r,m,s,,dice,1\n", "in the table twice"),
        "few.csv": (header + "\nd,r,m,s,,dice,1\nd,r,n,s,,dice,1\n", "3 tomograms or more"),
        "levels.csv": (header + "\nd,r,m,s,1,dice,1\nd,r,m,s,2,dice,1\n", "--at m=1"),
    }
    for name, (text, part) in tables.items():
        path = tmp_path / name
        path.write_text(text)
        code, _, err = run("compare", path)
        assert code == 1, name
        assert err.count("\n") == 1
        assert part in err, err
    assert "does not exist" in run("compare", tmp_path / "none.csv")[2]
    assert run("compare", tmp_path / "few.csv", "--at", "m")[0] == 1


def test_the_command_prints_and_writes(tmp_path: Path, run: Run) -> None:
    random = np.random.default_rng(1)
    base = random.random(9) / 2
    rows = table({"good": list(base + 0.3 + random.random(9) / 50), "poor": list(base)})
    write_table(tmp_path / "t.csv", rows)
    code, out, err = run("compare", tmp_path / "t.csv", "-o", tmp_path / "tests.json")
    assert (code, err) == (0, "")
    assert "***" in out
    records = json.loads((tmp_path / "tests.json").read_text())
    assert [record["mark"] for record in records] == ["***"]
    before = (tmp_path / "t.csv").read_bytes()
    code, _, err = run("compare", tmp_path / "t.csv", "-o", tmp_path / "." / "t.csv")
    assert code == 1 and "t.csv is read as well: give the new table another name" in err
    assert (tmp_path / "t.csv").read_bytes() == before
    again = ("compare", tmp_path / "t.csv", "-o", tmp_path / "tests.json")
    code, _, err = run(*again)
    assert code == 1 and "is there already: give --overwrite or another name" in err
    assert run(*again, "--overwrite")[0] == 0
    assert "is no file" in run("compare", tmp_path)[2]
    with pytest.raises(ValueError, match="no method 'x'"):
        compare(rows, methods=["x"])
    with pytest.raises(ValueError, match="good has no 'iou'"):
        compare(rows, metrics=["iou"])


def test_one_tomogram_has_no_spread(tmp_path: Path, run: Run) -> None:
    write_table(tmp_path / "t.csv", table({"only": [0.75]}))
    code, out, err = run("compare", tmp_path / "t.csv")
    assert (code, err) == (0, "")
    assert out.splitlines()[2].split() == ["only", "1", "0.7500", "-", "-"]
    assert "nan" not in out

"""What `etsam figures` draws of a table with gaps, and that it replaces nothing unasked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from etsam.charts import ablation
from etsam.compare import compare
from etsam.costs import read_costs
from etsam.plots import box_plots, precision_recall, threshold_sweep, tomogram_bars
from etsam.tables import Score, variants, write_table
from test_cli import Run, assert_one_line
from test_figures import legend_of, scores, write_volume


@pytest.mark.filterwarnings("default:left out")
def test_a_method_without_a_metric_is_left_out_of_it(tmp_path: Path, run: Run) -> None:
    rows = scores()
    rows += [replace(row, metric="recall") for row in rows if row.method != "theirs"]
    write_table(tmp_path / "t.csv", rows)
    draw = ("figures", "scores", tmp_path / "t.csv", "--format", "svg", "-o", tmp_path)
    code, out, err = run(*draw)
    names = [Path(line).stem for line in out.splitlines()]
    assert (code, names) == (0, ["boxes", "bars_dice", "bars_recall"])
    assert "warning: left out: theirs has no 'recall' in the table: it has dice" in err
    with pytest.raises(ValueError, match="theirs has no 'recall'"):  # `etsam compare` says it
        compare(rows)
    with pytest.warns(UserWarning, match="left out: theirs"):
        found = compare(rows, skip_few=True)
    levels = {(item.metric, item.first, item.second): item.test.alpha for item in found.tests}
    assert len(levels) == 4  # three pairs by Dice, of which each is one of three; one by recall
    assert levels["dice", "ours", "same"] == pytest.approx(0.05 / 3)
    assert levels["recall", "ours", "same"] == pytest.approx(0.05)
    axes = box_plots(variants(rows), found).axes[0]
    assert [text.get_text() for text in axes.texts].count("***") == 3
    bars = [tomogram_bars(variants(rows), metric) for metric in ("dice", "recall")]
    colours = [[bar[0].get_facecolor() for bar in figure.axes[0].containers] for figure in bars]
    assert colours[1] == [colours[0][0], colours[0][2]]
    assert legend_of(bars[1]) == ["ours", "same"]


@pytest.mark.filterwarnings("default:means are over")
def test_means_are_over_the_tomograms_that_all_have(tmp_path: Path, run: Run) -> None:
    nm = "surface_distance_mean_nm"
    rows = [replace(row, metric=name) for row in scores()[:16] for name in ("dice", nm)]
    found = ("r0", "r1", "r2")  # where `theirs` has a surface
    for place, row in enumerate(rows):
        if row.metric == nm:
            lost = row.method == "theirs" and row.run not in found
            rows[place] = replace(row, value=np.nan if lost else 10 * row.value)
    table = variants(rows)
    mean = np.mean([table["ours"][nm]["d", name] for name in found])
    ours = tomogram_bars(table, nm).axes[0].containers[0]
    assert len(ours) == 9  # eight tomograms and the mean of three
    assert [bar.get_height() for bar in ours][-1] == pytest.approx(mean)
    with pytest.warns(UserWarning, match=f"score of: {nm} 3 of 8$"):
        compared = compare(rows, metrics=["dice", nm])
    right = box_plots(table, compared).axes[1]
    spots = [len(line.get_xdata()) for line in right.lines if line.get_marker() == "."]
    assert spots == [3, 3]
    assert compared.summaries["ours", nm].mean == pytest.approx(mean)
    write_table(tmp_path / "t.csv", rows)
    draw = ("figures", "scores", tmp_path / "t.csv", "-o", tmp_path / "f", "--format", "svg")
    code, _, err = run(*draw)
    assert (code, err.count("\n")) == (0, 1)
    assert (
        f"etsam: warning: means are over the tomograms that all methods have a score of: {nm} 3 of 8"
        in err
    )


def test_sweeps_tables_and_curves_have_the_same_tomograms_throughout() -> None:
    values = {-1.0: (0.4, 0.2), 0.0: (0.5, 0.3), 1.0: (0.6, np.nan)}
    rows = [
        Score("d", name, "m", "s", level, "recall", value)
        for level, both in values.items()
        for name, value in zip("ab", both, strict=True)
    ]
    with pytest.warns(UserWarning, match="rows and thresholds have a score of: recall 1 of 2"):
        assert ablation(rows, ["recall"]).means[0] == pytest.approx([0.4, 0.5, 0.6])
    with pytest.warns(UserWarning, match="all thresholds have a score of: recall 1 of 2"):
        axes = threshold_sweep(rows, "m", ("recall",)).axes[0]
    assert axes.lines[0].get_ydata() == pytest.approx([0.4, 0.5, 0.6])
    curves = [
        Score("d", name, method, "s", recall, "precision_at_recall", value)
        for name, method, value in (("a", "m", 0.4), ("b", "m", 0.8), ("a", "n", 0.6))
        for recall in (0.0, 1.0)
    ]
    with pytest.warns(UserWarning, match="precision_at_recall 1 of 2"):
        axes = precision_recall(curves, {}).axes[0]
    assert [line.get_ydata() for line in axes.lines] == [
        pytest.approx([0.4] * 2),
        pytest.approx([0.6] * 2),
    ]


def test_a_curve_that_lacks_a_recall_is_left_out_of_the_means() -> None:
    curves = [
        Score("d", name, "m", "s", recall, "precision_at_recall", value)
        for name, value in (("a", 0.4), ("b", 0.8))
        for recall in (0.0, 0.5, 1.0)
    ]
    for missing in (3, 4):  # of b, its first and another one
        with pytest.warns(UserWarning, match="precision_at_recall 1 of 2"):
            axes = precision_recall(curves[:missing] + curves[missing + 1 :], {}).axes[0]
        assert axes.lines[0].get_ydata() == pytest.approx([0.4] * 3)


def test_two_runs_of_one_method_are_told_apart_by_their_folders(tmp_path: Path, run: Run) -> None:
    record = {"command": "segment", "seconds": 60.0, "inputs": [{"path": "/d/a.mrc"}]}
    for folder in ("cpu", "gpu", "more/gpu"):
        home = tmp_path / folder
        home.mkdir(parents=True)
        (home / "a_membrane.json").write_text(json.dumps(record))
        (home / "a_ridge.json").write_text(json.dumps(record))
    (tmp_path / "gpu" / "a_ridge.json").unlink()
    cpu, gpu, other = tmp_path / "cpu", tmp_path / "gpu", tmp_path / "more" / "gpu"
    assert [row.method for row in read_costs([cpu])] == ["ETSAM", "ridge"]
    both = [row.method for row in read_costs([cpu, gpu])]
    assert both == ["ETSAM cpu", "ridge", "ETSAM gpu"]
    alike = {row.method for row in read_costs([gpu, other / "a_membrane.json"])}
    assert alike == {f"ETSAM {gpu}", f"ETSAM {other}"}
    draw = ("figures", "costs", cpu, gpu, "-o", tmp_path / "c.svg")
    assert run(*draw)[0] == 0
    assert "ETSAM gpu" in (tmp_path / "c.svg").read_text()
    assert (
        "no method 'ETSAM': the table has ETSAM cpu"
        in run(*draw, "--method", "ETSAM", "--overwrite")[2]
    )
    code, _, err = run("figures", "costs", cpu, cpu, "-o", tmp_path / "d.svg")
    assert code == 1
    assert "is in the table twice" in err


def test_figures_that_are_there_are_replaced_only_when_asked(tmp_path: Path, run: Run) -> None:
    data = np.random.default_rng(0).random((4, 20, 24)).astype(np.float32)
    tomogram = write_volume(tmp_path / "a.mrc", data)
    mask = write_volume(tmp_path / "a_membrane.mrc", (data > 0.9).astype(np.int8))
    table, levels, costs = (tmp_path / name for name in ("t.csv", "levels.csv", "costs.csv"))
    write_table(table, scores())
    write_table(levels, [replace(row, threshold=1.0) for row in scores()])
    write_table(costs, [replace(row, metric="seconds") for row in scores()])
    verbs = {
        "slices": (tomogram, "-m", mask, "-z", 1),
        "cleaning": (tomogram, mask, mask, "-z", 1),
        "surfaces": (mask,),
        "costs": (costs,),
        "change": (table, "--before", "theirs", "--after", "ours", "--metric", "dice"),
        "ablation": (levels,),
        "boxes": (table,),
    }
    for name, given in verbs.items():
        verb = "scores" if name == "boxes" else name
        draw = ("figures", verb, *given, "-o", tmp_path, "--format", "svg")
        there = tmp_path / f"{name}.{'md' if name == 'ablation' else 'svg'}"
        there.write_text("mine")
        files = sorted(tmp_path.iterdir())
        code, out, err = run(*draw)
        assert (code, out) == (1, ""), name
        assert_one_line(err, f"{there} is there already: give --overwrite or another --output")
        assert (there.read_text(), sorted(tmp_path.iterdir())) == ("mine", files)
        code, out, err = run(*draw, "--overwrite")
        assert code == 0, err
        assert str(there) in out.splitlines() and there.read_text() != "mine"

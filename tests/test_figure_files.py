"""What `etsam figures` draws of a table with gaps, and that it replaces nothing unasked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from etsam.compare import compare
from etsam.plots import box_plots, tomogram_bars
from etsam.tables import variants, write_table
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

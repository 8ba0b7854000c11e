"""What `etsam figures` draws of a table with gaps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from etsam.compare import compare
from etsam.plots import box_plots, tomogram_bars
from etsam.tables import variants, write_table
from test_cli import Run
from test_figures import legend_of, scores


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

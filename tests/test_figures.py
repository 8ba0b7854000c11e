"""Figures: what is drawn, in which colours, and that files are whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import mrcfile
import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.colors import to_rgb

from etsam.charts import ablation, change_plot, cost_bars
from etsam.compare import compare
from etsam.costs import read_costs
from etsam.overlay import Reference
from etsam.panels import EXTRA, FOUND, MISSED, coloured
from etsam.plots import box_plots, precision_recall, threshold_sweep, tomogram_bars
from etsam.tables import Score, variants, write_table
from etsam.volume import tomogram_from_array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Run = Callable[..., tuple[int, str, str]]


def scores() -> list[Score]:
    random = np.random.default_rng(0)
    base = random.random(8) / 3
    methods = {"ours": base + 0.5 + random.random(8) / 50, "theirs": base, "same": base}
    return [
        Score("d", f"r{number}", method, "final", None, "dice", float(value))
        for method, values in methods.items()
        for number, value in enumerate(values)
    ]


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def write_volume(path: Path, data: np.ndarray, spacing: float = 10.0) -> Path:
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(data)
        mrc.voxel_size = spacing
    return path


def test_boxes_carry_the_marks_of_the_tests() -> None:
    rows = scores()
    figure = box_plots(variants(rows), compare(rows))
    axes = figure.axes[0]
    marks = [text.get_text() for text in axes.texts]
    assert sorted(marks) == ["***", "***", "ns"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["Dice"]
    assert legend_of(figure) == ["ours", "theirs", "same"]


@pytest.mark.filterwarnings("default:means are over|not tested")
def test_pairs_with_too_few_tomograms_go_without_a_bracket(tmp_path: Path, run: Run) -> None:
    rows = [row for row in scores() if row.method != "same" or row.run in ("r0", "r1")]
    write_table(tmp_path / "t.csv", rows)
    draw = ("figures", "scores", tmp_path / "t.csv", "--format", "svg", "-o", tmp_path)
    code, out, err = run(*draw)
    assert [Path(line).name for line in out.splitlines()] == ["boxes.svg", "bars_dice.svg"]
    assert (code, err.count("not tested")) == (0, 1)
    assert "warning: not tested (and 1 more): dice, ours and same: 2 pairs" in err
    with pytest.warns(UserWarning, match="not tested"):
        comparisons = compare(rows, skip_few=True)
    axes = box_plots(variants(rows), comparisons).axes[0]
    assert [text.get_text() for text in axes.texts] == ["***"]
    few = [row for row in rows if row.method != "theirs"]
    with pytest.warns(UserWarning, match="left out|not tested"):
        untested = box_plots(variants(few), compare(few, skip_few=True))
        with pytest.raises(ValueError, match="ours and same: 2 pairs: a paired test needs 3"):
            compare(few)
    assert not untested.axes[0].texts
    assert untested.get_figheight() < box_plots(variants(rows), comparisons).get_figheight()


def test_bars_end_with_the_mean() -> None:
    rows = scores()
    axes = tomogram_bars(variants(rows), "dice").axes[0]
    assert axes.get_xticklabels()[-1].get_text() == "mean"
    bars = axes.containers[0]
    heights = [bar.get_height() for bar in bars]
    assert heights[-1] == pytest.approx(np.mean(heights[:-1]))
    assert len(heights) == 9


def test_curves_are_averaged_over_tomograms() -> None:
    rows = [
        Score("d", run, "m", "final", recall, "precision_at_recall", value)
        for run, value in (("a", 0.8), ("b", 0.6))
        for recall in (0.0, 0.5, 1.0)
    ]
    figure = precision_recall(rows, {("m", "final"): 0.7})
    assert figure.axes[0].lines[0].get_ydata() == pytest.approx([0.7, 0.7, 0.7])
    assert legend_of(figure) == ["m (0.700)"]


def test_a_sweep_marks_the_best_dice() -> None:
    rows = [
        Score("d", "r", "m", "s", level, "dice", value)
        for level, value in ((-1.0, 0.5), (0.0, 0.9), (1.0, 0.6))
    ]
    axes = threshold_sweep(rows, "m", ("dice",)).axes[0]
    assert "0.900\nat 0" in axes.texts[0].get_text()


def test_colours_tell_right_from_wrong() -> None:
    labels = np.array([[1, 1, 0, 0, -1, -1]], np.float32)
    mask = np.array([[True, False, True, False, True, False]])
    picture = coloured(mask, labels)[0]
    for place, colour in ((0, FOUND), (1, MISSED), (2, EXTRA), (4, "white")):
        assert picture[place, :3] == pytest.approx(to_rgb(colour))
    assert picture[[3, 5], 3].tolist() == [0, 0]
    assert np.array_equal(coloured(mask, None)[0, :, 3] > 0, mask[0])


def test_costs_are_read_from_what_stands_beside_results(tmp_path: Path, run: Run) -> None:
    for name, command, seconds, vram in (
        ("a_membrane", "segment", 60.0, 900.0),
        ("b_membrane", "segment", 180.0, 1100.0),
        ("a_ridge", "baseline", 30.0, None),
        ("a_other", "simulate", 5.0, None),
    ):
        record = {"command": command, "seconds": seconds, "peak_rss_mb": 5000.0}
        record |= {"peak_vram_mb": vram, "inputs": [{"path": f"/d/{name[0]}.mrc"}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    rows = read_costs([tmp_path])
    assert {(row.dataset, row.run, row.method) for row in rows} == {
        ("d", "a", "ETSAM"), ("d", "b", "ETSAM"), ("d", "a", "ridge"),
    }  # fmt: skip
    time, memory, gpu = cost_bars(variants(rows)).axes
    assert time.get_xlabel() == "Time [min]"
    assert [bar.get_width() for bar in time.patches] == pytest.approx([2.0, 0.5])
    assert memory.get_xlabel() == "Memory [GB]"
    assert [bar.get_width() for bar in gpu.patches] == pytest.approx([1000.0])
    assert time.texts[0].get_text() == "2 ± 1.4"
    write_table(tmp_path / "c.csv", rows)
    assert read_costs([tmp_path / "c.csv"]) == rows
    code, out, _ = run("figures", "costs", tmp_path, "-o", tmp_path / "n" / "c", "--format", "png")
    assert (code, out.strip()) == (0, str(tmp_path / "n" / "c.png"))
    code, out, _ = run("figures", "costs", tmp_path, "-o", tmp_path / "n", "--format", "png")
    assert (code, out.strip()) == (0, str(tmp_path / "n" / "costs.png"))
    for odd in (
        {"inputs": [5]},
        {"inputs": {"path": "/d/a.mrc"}},
        {"inputs": [{"path": 3}]},
        {"seconds": [1]},
        {"peak_rss_mb": float("nan")},
    ):
        (tmp_path / "a_ridge.json").write_text(json.dumps({"command": "baseline"} | odd))
        with pytest.raises(ValueError, match="a_ridge.json is no record that etsam wrote"):
            read_costs([tmp_path])
    (tmp_path / "empty").mkdir()
    code, _, err = run("figures", "costs", tmp_path / "empty")
    assert code == 1
    assert "no costs there" in err


def test_change_pairs_tomograms(tmp_path: Path, run: Run) -> None:
    rows = [row for row in scores() if row.method != "same"][:-1]  # one tomogram lacks its partner
    left, right = change_plot(variants(rows), "theirs", "ours", ("dice",)).axes
    before = {row.run: row.value for row in rows if row.method == "theirs"}
    change = np.mean([row.value - before[row.run] for row in rows[:8] if row.run in before])
    bars = [bar.get_height() for bar in left.patches]
    assert bars[1] - bars[0] == pytest.approx(change)
    assert right.texts[0].get_text() == f"{100 * change:+.2f}"
    write_table(tmp_path / "t.csv", rows)
    err = run("figures", "change", tmp_path / "t.csv", "--before", "theirs", "--after", "x")[2]
    assert "no method 'x'" in err
    levels = [replace(row, threshold=level) for row in rows for level in (-1.0, 1.0)]
    write_table(tmp_path / "u.csv", levels)
    change = ("figures", "change", tmp_path / "u.csv", "--before", "ours@-1", "--after")
    code, _, err = run(*change, "theirs")
    assert code == 1
    assert "theirs has thresholds -1, 1: say which, as in theirs@-1" in err
    assert "expected METHOD@THRESHOLD" in run(*change, "ours@high")[2]
    code, out, _ = run(*change, "ours@1", "-o", tmp_path / "c.png")
    assert (code, out.split()) == (0, [str(tmp_path / "c.png")])
    code, _, err = run(*change, "ours@1", "-o", tmp_path / "d.png", "--format", "pdf")
    assert (code, list(tmp_path.glob("d*"))) == (1, [])
    assert "leave one out" in err
    code, _, err = run(*change, "ours@1", "-o", tmp_path / "e.tif")
    assert (code, list(tmp_path.glob("e*"))) == (1, [])
    assert "figures are written as pdf, png, svg, not as tif" in err


def test_distances_are_drawn_in_their_unit_and_the_smallest_is_best() -> None:
    nm = "surface_distance_mean_nm"
    far = [replace(row, metric=nm, value=30 * row.value) for row in scores()]
    table = variants([*scores(), *far])
    left, right = box_plots(table, compare([*scores(), *far], metrics=["dice", nm])).axes
    assert (left.get_ylabel(), right.get_ylabel()) == ("Score", "[nm]")
    assert max(left.get_yticks()) == 1
    assert 10 < max(right.get_yticks()) <= max(row.value for row in far)
    means, changes = change_plot(table, "theirs", "ours", (nm,)).axes
    heights = [bar.get_height() for bar in means.patches]
    assert means.get_ylim()[1] > max(heights) > 1
    assert changes.get_ylabel() == "Change [nm]"
    assert changes.texts[0].get_text() == f"{heights[1] - heights[0]:+.2f}"
    levels = [replace(row, run="r", threshold=row.value) for row in far[:2]]
    assert [bool(best) for best in ablation(levels, [nm]).best[0]] == [
        row.value == min(far[0].value, far[1].value)
        for row in sorted(levels, key=lambda row: row.value)
    ]


def test_curves_and_sweeps_follow_the_methods_asked_for(tmp_path: Path, run: Run) -> None:
    base = [replace(row, method="ours", stage="stage2") for row in scores()[:8]]
    rows = [replace(row, threshold=level) for row in base for level in (-1.0, -0.25, 1.0)]
    rows += [replace(row, metric="auprc", value=0.75) for row in base]
    rows += [replace(row, stage="postprocessed") for row in base]
    rows += [replace(row, method="theirs", threshold=1.0) for row in base]
    curves = [
        replace(row, method=method, metric="precision_at_recall", threshold=0.5)
        for row in base
        for method in ("ours", "theirs")
    ]
    write_table(tmp_path / "t.csv", rows)
    write_table(tmp_path / "c.csv", curves)
    draw = ("figures", "scores", tmp_path / "t.csv", "--format", "svg", "-o", tmp_path / "f")
    draw += ("--at", "ours stage2=-0.25", "--overwrite")
    both = (*draw, "--curves", tmp_path / "c.csv")
    assert run(*both)[0] == 0
    picture = (tmp_path / "f" / "precision_recall.svg").read_text()
    assert "ours (0.750)" in picture  # the scores hold two stages of it, the curves one
    assert "theirs" in picture
    assert run(*both, "--method", "ours stage2")[0] == 0
    assert "theirs" not in (tmp_path / "f" / "precision_recall.svg").read_text()
    assert "sweep_ours" not in run(*draw, "--method", "theirs")[1]
    assert "no curve of ours postprocessed" in run(*both, "--method", "ours postprocessed")[2]
    code, _, err = run(*draw, "--curves", tmp_path / "t.csv")
    assert (code, err.count("\n")) == (1, 1)
    assert "expected only 'precision_at_recall'" in err


def test_tables_with_odd_names_and_numbers(tmp_path: Path, run: Run) -> None:
    rows = [replace(row, metric="../../x") for row in scores()]
    rows += [replace(row, metric="y", value=value) for row in rows[:2] for value in (np.nan,)]
    rows += [replace(rows[2], metric="y", value=np.inf)]
    write_table(tmp_path / "t.csv", rows)
    inside = tmp_path / "a" / "b" / "c"
    draw = ("figures", "scores", tmp_path / "t.csv", "-o", inside, "--format", "pdf")
    code, _, err = run(*draw)
    assert (code, err) == (0, "")
    assert {path.name for path in inside.iterdir()} == {"bars_____x.pdf", "bars_y.pdf"}
    assert set(tmp_path.rglob("*.pdf")) == set(inside.iterdir())
    code, _, err = run(*draw, "--metric", "foo")
    assert code == 1
    assert "no metric 'foo': the table has ../../x, y" in err


def test_an_ablation_is_a_table_of_means(tmp_path: Path, run: Run) -> None:
    rows = [
        Score("d", name, method, "stage2", level, "dice", value + gain)
        for name, gain in (("a", 0.0), ("b", 0.2))
        for method, level, value in (("zero", -1.0, 0.5), ("zero", 1.0, 0.3), ("grid", 1.0, 0.6))
    ]
    found = ablation(rows)
    assert found.thresholds == [-1.0, 1.0]
    assert found.means[0] == pytest.approx([0.6, 0.4])
    assert np.isnan(found.means[1, 0])
    assert found.markdown().splitlines()[2:] == [
        "| stage2: zero | **0.600** | 0.400 |", "| stage2: grid |  | **0.700** |",
    ]  # fmt: skip
    write_table(tmp_path / "t.csv", rows)
    code, out, _ = run("figures", "ablation", tmp_path / "t.csv", "-o", tmp_path / "a")
    assert code == 0
    assert [Path(line).suffix for line in out.split()] == [".pdf", ".png", ".md"]
    write_table(tmp_path / "u.csv", scores())
    assert "at any threshold" in run("figures", "ablation", tmp_path / "u.csv")[2]


def test_cleaning_shows_what_was_removed(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    before = random.random((4, 12, 16)) > 0.5
    logits = np.where(before, 3.0, -3.0).astype(np.float32)
    tomogram = write_volume(tmp_path / "t.mrc", random.random(before.shape).astype(np.float32))
    mask = write_volume(tmp_path / "b.mrc", before.astype(np.int8))
    after = write_volume(tmp_path / "a_membrane_logits.mrc", logits)
    drawn = []
    monkeypatch.setattr("etsam.figures.save", lambda figure, *_: drawn.append(figure) or [])
    code, _, err = run("figures", "cleaning", tomogram, mask, after, "-z", 1)
    assert code == 0, err
    kept = drawn[0].axes[1].images[1].get_array()  # a mask and scores above their threshold: equal
    assert np.array_equal(kept[..., 3] > 0, before[1])
    assert np.allclose(kept[before[1]][:, :3], to_rgb(FOUND))
    monkeypatch.undo()
    paths = (tomogram, mask, after)
    code, _, err = run("figures", "cleaning", *paths, "-o", tmp_path / "c", "--format", "png")
    assert code == 0, err
    assert (tmp_path / "c.png").stat().st_size > 1000
    assert "expected some of 0 to 3" in run("figures", "cleaning", *paths, "-z", 4)[2]


@pytest.mark.parametrize(
    ("depth", "shown"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (8, [2, 4, 6])]
)
def test_thin_volumes_show_the_slices_they_have(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, depth: int, shown: list[int]
) -> None:
    data = np.random.default_rng(0).random((depth, 12, 16)).astype(np.float32)
    tomogram = write_volume(tmp_path / "t.mrc", data)
    mask = write_volume(tmp_path / "m.mrc", (data > 0.5).astype(np.int8))
    drawn = []
    monkeypatch.setattr("etsam.figures.save", lambda figure, *_: drawn.append(figure) or [])
    for args in (("slices", tomogram, "-m", mask), ("cleaning", tomogram, mask, mask)):
        code, _, err = run("figures", *args)
        assert code == 0, err
        texts = [text.get_text() for axes in drawn.pop().axes for text in axes.texts]
        assert [text for text in texts if "=" in text] == [f"z = {z}" for z in shown]


def test_volumes_that_do_not_fit_are_refused(tmp_path: Path, run: Run) -> None:
    random = np.random.default_rng(0)
    data = (random.random((4, 12, 16)) > 0.5).astype(np.int8)
    tomogram = write_volume(tmp_path / "t.mrc", random.random(data.shape).astype(np.float32))
    good = write_volume(tmp_path / "good.mrc", data)
    coarse = write_volume(tmp_path / "coarse.mrc", data, 13.0)
    for name, truth, part in (
        ("two", 2 * data, "labels reach from"),
        ("logits", (9 * data - 4.5).astype(np.float32), "labels reach from"),
        ("half", (data / 2).astype(np.float32), "a label is 0.5"),
        ("coarse", None, "voxels of"),
    ):
        path = coarse if truth is None else write_volume(tmp_path / f"{name}.mrc", truth)
        for verb in (("slices", tomogram, "-t"), ("surfaces",)):
            code, _, err = run("figures", *verb, path, "-m", good, "-o", tmp_path / "s.png")
            assert (code, err.count("\n")) == (1, 1), (name, verb)
            assert part in err
    assert "voxels of" in run("figures", "cleaning", tomogram, good, coarse)[2]
    assert not list(tmp_path.glob("*.png"))
    args = ("slices", tomogram, "-t", coarse, "-m", good, "--voxel-spacing", 10)
    assert run("figures", *args, "-o", tmp_path / "s.png")[0] == 0
    with pytest.raises(ValueError, match="NaN or infinite"):
        Reference(tomogram_from_array(np.full((1, 2, 2), np.nan, np.float32))).labels(0)


def test_the_commands_write_whole_files(tmp_path: Path, run: Run) -> None:
    write_table(tmp_path / "t.csv", scores())
    code, out, err = run(
        "figures", "scores", tmp_path / "t.csv", "-o", tmp_path / "f", "--format", "pdf"
    )
    assert code == 0, err
    assert {path.name for path in (tmp_path / "f").iterdir()} == {"boxes.pdf", "bars_dice.pdf"}
    assert (tmp_path / "f" / "boxes.pdf").read_bytes()[-6:].strip() == b"%%EOF"
    assert len(out.splitlines()) == 2
    volume = np.random.default_rng(0).normal(size=(4, 20, 30)).astype(np.float32)
    for name, data in (
        ("a", volume),
        ("a_membrane", (volume > 0).astype(np.int8)),
        ("b", volume[:2]),
    ):
        write_volume(tmp_path / f"{name}.mrc", data)
    both = (tmp_path / "a.mrc", "-t", tmp_path / "a_membrane.mrc", "-o", tmp_path / "s")
    mask = f"guess={tmp_path / 'a_membrane.mrc'}"
    code, out, err = run("figures", "slices", *both, "-m", mask, "-z", 1, "--format", "png")
    assert code == 0, err
    assert Path(out.strip()).read_bytes().startswith(b"\x89PNG")
    for args, part in (
        ((*both, "-z", 9), "expected some of 0 to 3"),
        ((*both, "-m", tmp_path / "b.mrc"), "has shape (2, 20, 30)"),
    ):
        code, _, err = run("figures", "slices", *args, "--overwrite")
        assert code == 1
        assert part in err
    assert "no method 'x'" in run("figures", "scores", tmp_path / "t.csv", "--method", "x")[2]

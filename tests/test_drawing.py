"""Room for words in figures, and cues besides colour."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from etsam import drawing
from etsam.compare import compare
from etsam.plots import box_plots, threshold_sweep, tomogram_bars
from etsam.scenes import surface_panels
from etsam.tables import Score, variants
from etsam.volume import tomogram_from_array

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def scores(methods: Sequence[str], runs: Sequence[str], datasets: int = 1) -> list[Score]:
    random = np.random.default_rng(0)
    return [
        Score(f"EMPIAR-11718_long_name_{number % datasets}", run, method, "final", None, "dice", value)
        for method in methods
        for (number, run), value in zip(enumerate(runs), random.random(len(runs)), strict=True)
    ]  # fmt: skip


def check_room(figure: Figure, least: float) -> None:
    """Check that all words stand on the figure, and that values have `least` of its height."""
    figure.canvas.draw()
    axes = figure.axes[0]
    texts = [*axes.texts, *axes.get_xticklabels(), axes.yaxis.label]
    for one in (*texts, *figure.legends):
        box = one.get_window_extent()
        assert figure.bbox.x0 <= box.x0 + 1, one
        assert box.x1 <= figure.bbox.x1 + 1, one
        assert figure.bbox.y0 <= box.y0 + 1, one
        assert box.y1 <= figure.bbox.y1 + 1, one
    low, high = axes.transData.transform([(0, 0), (0, 1)])[:, 1]
    assert (high - low) / figure.bbox.height > least


def test_long_names_and_many_methods_leave_room() -> None:
    runs = [f"tomo_{number}_rec_bin4_10.00Apx_dose-weighted_denoised" for number in range(8)]
    names = [f"method number {number} with a name" for number in range(12)]
    rows = scores(names, runs, datasets=2)
    check_room(tomogram_bars(variants(rows), "dice"), 0.25)
    with pytest.warns(UserWarning, match="12 methods: boxes without brackets"):
        boxes = box_plots(variants(rows), compare(rows))
    check_room(boxes, 0.5)
    bars = tomogram_bars(variants(rows), "dice")
    ticks = [tick.get_text() for tick in bars.axes[0].get_xticklabels()]
    assert len(set(ticks)) == len(runs) + 1
    assert max(map(len, ticks)) < 30


def test_names_of_many_tomograms_do_not_overlap() -> None:
    figure = tomogram_bars(variants(scores(["a", "b"], [f"run{n}" for n in range(100)])), "dice")
    check_room(figure, 0.4)
    boxes = [tick.get_window_extent() for tick in figure.axes[0].get_xticklabels()]
    assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))


def test_marks_of_six_methods_are_clear_of_brackets() -> None:
    rows = scores([f"m{number}" for number in range(6)], [f"r{number}" for number in range(6)])
    figure = box_plots(variants(rows), compare(rows))
    check_room(figure, 0.4)
    axes = figure.axes[0]
    assert len(axes.texts) == 15
    brackets = [line for line in axes.lines if len(line.get_xdata()) == 4 and line.get_ls() == "-"]
    spans = [axes.transData.transform(line.get_xydata()) for line in brackets]
    spans = [span for span in spans if span[0, 0] == span[1, 0] and span[1, 1] > span[0, 1]]
    assert len(spans) == 15
    for mark in (text.get_window_extent() for text in axes.texts):
        for span in spans:
            apart = mark.x1 < span[0, 0] or span[3, 0] < mark.x0
            assert apart or not mark.y0 + 1 < span[1, 1] < mark.y1 - 1


def test_a_sweep_does_not_cut_or_cover_what_it_shows() -> None:
    rows = [Score("d", "r", "m", "s", level, "recall", float(level < 0)) for level in (-1.0, 1.0)]
    figure = threshold_sweep(rows, "m", ("recall",))
    figure.canvas.draw()
    assert not any(line.get_clip_on() for line in figure.axes[0].lines)
    legend = figure.legends[0].get_window_extent()
    assert legend.y0 >= figure.axes[0].get_window_extent().y1


def test_a_surface_alone_has_no_legend_of_differences() -> None:
    data = np.zeros((16, 16, 16), np.int8)
    data[4:12, 4:12, 4:12] = 1
    assert not surface_panels(tomogram_from_array(data, voxel_spacing=10.0), []).legends


def test_colour_is_never_the_only_cue() -> None:
    for cue in (drawing.hatch_of, drawing.dash_of):
        looks = [(drawing.colour_of(number), cue(number)) for number in range(40)]
        assert len(set(looks)) == len(looks)
        assert len({cue(number) for number in range(7)}) == 7
    rows = scores(["a", "b", "c"], ["x", "y", "z"])
    boxes = box_plots(variants(rows), compare(rows)).axes[0].patches
    assert len({box.get_hatch() for box in boxes}) == 3


def test_shortened_names_stay_distinct() -> None:
    assert drawing.shortened(["short", "x" * 50], 9) == ["short", "xxxx…xxxx"]
    middle = [f"{'a' * 20}{number}{'b' * 20}" for number in range(3)]
    cut = drawing.shortened([*middle, middle[0]], 12)
    assert len(set(cut)) == 3
    assert cut[0] == cut[3]
    assert all(len(name) <= 12 for name in cut)
    assert drawing.shortened([f"{'a' * 30}{number}" for number in range(3)], 12)[1][-1] == "1"

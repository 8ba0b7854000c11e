"""The scripts that make the paper's tables, on small data."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from etsam.tables import Score, read_table, write_table
from tiny_model import write_tiny_model

pytest.importorskip("matplotlib")

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "reproduce.py"


def run(*arguments: object, script: Path = SCRIPT) -> str:
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def refusal(*arguments: object, script: Path = SCRIPT) -> str:
    """The one line that a script ends with."""
    with pytest.raises(subprocess.CalledProcessError) as error:
        run(*arguments, script=script)
    assert error.value.returncode == 1
    (line,) = error.value.stderr.strip().split("\n")
    return str(line)


def write(path: Path, data: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    with mrcfile.new(path) as mrc:
        mrc.set_data(data.astype(np.int8))
        mrc.voxel_size = 10.0


def test_table_1_and_its_figures(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = [
        Score("d", f"r{number}", method, "final", None, "dice", gain + random.random() / 5)
        for method, gain in (("a", 0.7), ("b", 0.2))
        for number in range(6)
    ]
    write_table(tmp_path / "t.csv", rows)
    out = run("table1", tmp_path / "t.csv", "-o", tmp_path / "out")
    assert "dice,a,b" in out
    with (tmp_path / "out" / "tests.csv").open() as file:
        assert [row["mark"] for row in csv.DictReader(file)] == ["***"]
    assert (tmp_path / "out" / "figures" / "boxes.pdf").stat().st_size > 1000


def test_post_processing_and_runtime(tmp_path: Path) -> None:
    truth = np.zeros((14, 24, 24))
    truth[:, 10:12] = 1
    noisy = truth.copy()
    noisy[3:5, 2:4, 2:9] = 1  # a blob of two slices
    write(tmp_path / "truth" / "a_membrane.mrc", truth)
    write(tmp_path / "masks" / "a_membrane.mrc", noisy)
    write(tmp_path / "masks" / "a_membrane_logits.mrc", 4 * noisy - 2)
    write(tmp_path / "masks" / "a_membrane_postprocessed.mrc", noisy)
    record = {"command": "segment", "seconds": 12.5, "peak_rss_mb": 300.0}
    (tmp_path / "masks" / "a_membrane.json").write_text(json.dumps(record))
    places = (tmp_path / "masks", tmp_path / "truth", "-o", tmp_path / "p")
    lines = {line.split()[0]: line.split()[1:] for line in run("postprocess", *places).splitlines()}
    assert float(lines["precision"][1]) == float(lines["dice"][1]) == 1
    assert float(lines["precision"][0]) < 0.97
    assert (tmp_path / "p" / "postprocess.pdf").stat().st_size > 1000
    out = run("runtime", tmp_path / "masks", "-o", tmp_path / "r")
    assert "ETSAM         seconds         12.5" in out
    assert "vram" not in out
    for extra in ("_logits", "_postprocessed"):
        (tmp_path / "masks" / f"a_membrane{extra}.mrc").unlink()
    assert (tmp_path / "r" / "runtime.png").stat().st_size > 1000
    out = run("surfaces", tmp_path / "masks", tmp_path / "truth", "-o", tmp_path / "s")
    assert out.split() == [str(tmp_path / "s" / f"a.{kind}") for kind in ("pdf", "png")]


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "bare.csv").write_text("dataset,run\nd,r\n")
    (tmp_path / "empty").mkdir()
    for place, words in (
        (("table1", "none.csv"), "none.csv does not exist"),
        (("table1", "bare.csv"), "no column 'method'"),
        (("runtime", "empty"), "no costs there"),
        (("postprocess", "empty", "none"), "holds no mask of a known name"),
        (("postprocess", "empty", "empty"), "given as masks and as truth"),
        (("surfaces", "none", "empty"), "holds no ground truth"),
        (("ablation", "empty"), "holds no NAME_membrane.mrc"),
    ):
        places = (tmp_path / name for name in place[1:])
        assert words in refusal(place[0], *places, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def simulated(folder: Path, count: int) -> Path:
    """Small tomograms of a dark cylinder in noise, and their masks."""
    folder.mkdir()
    y, x = np.mgrid[:32, :36]
    for number in range(count):
        random = np.random.default_rng(number)
        mask = np.broadcast_to(np.abs(np.hypot(y - 16, x - 16 - number) - 10) < 2, (12, 32, 36))
        write(folder / f"t{number}_membrane.mrc", mask)
        with mrcfile.new(folder / f"t{number}.mrc") as mrc:
            mrc.set_data((random.normal(size=mask.shape) - 2 * mask).astype(np.float32))
            mrc.voxel_size = 10.0
    return folder


def test_all_methods_on_a_tiny_suite(tmp_path: Path) -> None:
    suite, model, out = (
        simulated(tmp_path / "suite", 3),
        write_tiny_model(tmp_path / "m"),
        tmp_path / "o",
    )
    options = ("--model", model, "--polarity", "dark", "--lysosome", tmp_path / "none", "-o", out)
    said = run(suite, *options, script=SCRIPT.with_name("compare_methods.py"))
    assert "**suite** (3)" in said
    rows = read_table(out / "scores.csv")
    assert {row.method for row in rows} == {"stage1", "stage2", "ridge"}
    assert len({row.run for row in rows if row.method == "ridge"}) == 3
    assert (out / "table.md").read_text() in said
    assert (out / "tests.csv").is_file()
    figures = {path.name for path in (out / "figures").glob("*.pdf")}
    assert {"boxes.pdf", "bars_dice.pdf", "precision_recall.pdf"} <= figures
    ridge = {row.metric: row.value for row in rows if (row.method, row.run) == ("ridge", "t0")}
    assert ridge["auprc"] > 0.5  # a cylinder this plain is found
    (out / "suite" / "weights.json").write_text('["of another", "model"]')
    assert refusal(suite, *options, script=SCRIPT.with_name("compare_methods.py")) == (
        f"{out / 'suite'} holds logits of other weights: give another folder with -o"
    )


def test_every_prompt_at_every_threshold(tmp_path: Path) -> None:
    pairs, model, out = (
        simulated(tmp_path / "pairs", 1),
        write_tiny_model(tmp_path / "m"),
        tmp_path / "o",
    )
    options = ("--model", model, "--polarity", "dark", "-o", out)
    said = run("ablation", pairs, *options)
    rows = read_table(out / "ablation.csv")
    variants = {(row.stage, row.method) for row in rows}
    assert ("stage1", "grid") in variants
    assert ("stage2", "grid_zero > etsam_stage1_partial") in variants
    assert len(variants) == 9
    assert (out / "ablation.md").read_text().count("\n") == 2 + len(variants)
    assert "| stage2: grid_zero > zero |" in said
    assert (out / "ablation.pdf").stat().st_size > 1000
    words = "zero holds logits of another t0.mrc or polarity: give another folder with -o"
    assert words in refusal("ablation", pairs, *options, "--polarity", "bright")
    with mrcfile.open(pairs / "t0.mrc", "r+") as mrc:
        mrc.data[0, 0, 0] += 1
    assert words in refusal("ablation", pairs, *options)

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

from etsam.tables import Score, write_table

pytest.importorskip("matplotlib")

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "reproduce.py"


def run(*arguments: object) -> str:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


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
    record = {"command": "segment", "seconds": 12.5, "peak_rss_mb": 300.0}
    (tmp_path / "masks" / "a_membrane.json").write_text(json.dumps(record))
    places = (tmp_path / "masks", tmp_path / "truth", "-o", tmp_path / "p")
    lines = {line.split()[0]: line.split()[1:] for line in run("postprocess", *places).splitlines()}
    assert float(lines["precision"][1]) == float(lines["dice"][1]) == 1
    assert float(lines["precision"][0]) < 0.97
    out = run("runtime", tmp_path / "masks", "-o", tmp_path / "r")
    assert "seconds" in out
    assert "12.5" in out

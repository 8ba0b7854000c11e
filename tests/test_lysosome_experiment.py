"""The scripts that score the real lysosome, on small stand-ins."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from etsam.volume import create_volume, tomogram_from_array

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


def write(path: Path, data: np.ndarray, dtype: str) -> Path:
    like = tomogram_from_array(data, voxel_spacing=13.6)
    with create_volume(path, like, dtype=dtype, label="test") as writer:  # type: ignore[arg-type]
        for z, plane in enumerate(data):
            writer.write_slice(z, plane)
    return path


def run(*arguments: str | Path, script: str = "lysosome.py") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXPERIMENTS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_scores_only_what_is_annotated(tmp_path: Path) -> None:
    labels = np.full((4, 6, 8), -1, np.int8)
    labels[1:3, 2:4] = 0
    labels[1:3, 2, :4] = 1  # 8 of 32 annotated voxels
    logits = np.full(labels.shape, 5.0, np.float32)  # wrong everywhere else
    logits[1:3, 2:4] = -3
    logits[1:3, 2, 2:6] = 0  # half of the membrane, and as many others
    truth = write(tmp_path / "labels.mrc", labels, "int8")
    done = run("--prediction", write(tmp_path / "l.mrc", logits, "float32"), "--labels", truth)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert record["voxels"] == 32
    assert record["dice"] == record["precision"] == record["recall"] == 0.5
    assert record["iou"] == pytest.approx(1 / 3)
    assert record["auprc"] == pytest.approx(0.5 * 0.5 + 0.5 * 0.25)
    mask = write(tmp_path / "m.mrc", (logits > -0.25).astype(np.int8), "int8")
    done = run("--prediction", mask, "--labels", truth)
    assert json.loads(done.stdout.splitlines()[-1])["dice"] == 0.5
    assert run("--prediction", mask, "--labels", truth, "--model", "x").returncode == 2


def test_annotation_tells_its_own_slices_where_it_does_not_jump(tmp_path: Path) -> None:
    y, x = np.indices((72, 80))
    radius = np.hypot(y - 35, x - 41)
    radii = np.where(np.arange(256) % 2, 22, 22 + 6 * (np.arange(256) >= 130))  # then every other
    labels = (abs(radius - radii[:, None, None]) < 3).astype(np.int8)
    labels[:, y + x > 130] = -1
    labels[:40] = labels[200:] = 0
    truth = write(tmp_path / "labels.mrc", labels, "int8")
    done = run("--labels", truth, "--prediction", truth, script="annotation.py")
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    dice = {row[:22].strip(): [float(number) for number in row[22:].split()] for row in rows}
    steady, jumping, whole = (head[22:].split().index(s) for s in ("72-95", "168-191", "24-219"))
    assert dice["prediction"] == [1.0] * 7
    for apart in (0, 1, 2, 3, 4):
        assert dice[f"annotation, k = {apart}"][steady] > 0.93
    assert dice["annotation, k = 1"][jumping] < 0.2 < 0.93 < dice["annotation, k = 2"][jumping]
    assert dice["annotation, k = 1"][whole] < dice["annotation, k = 2"][whole]

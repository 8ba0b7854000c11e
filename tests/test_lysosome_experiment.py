"""The script that scores the real lysosome, on a small stand-in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from etsam.volume import create_volume, tomogram_from_array

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "lysosome.py"


def write(path: Path, data: np.ndarray, dtype: str) -> Path:
    like = tomogram_from_array(data, voxel_spacing=13.6)
    with create_volume(path, like, dtype=dtype, label="test") as writer:  # type: ignore[arg-type]
        for z, plane in enumerate(data):
            writer.write_slice(z, plane)
    return path


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
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

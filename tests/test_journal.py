"""The log of a run: lines, pictures, curves, and what a resumed run forgets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from etsam.training.journal import Journal


def test_a_resumed_run_forgets_what_came_later(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 50, "loss": 2}\n{"step": 100, "loss": 1}\n{"step": 15')
    told = []
    with Journal(tmp_path, 50, told.append) as journal:
        journal.write({"step": 100, "loss": 3.0})
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines == [{"step": 50, "loss": 2}, {"step": 100, "loss": 3.0}]
    assert told == [{"step": 100, "loss": 3.0}]


def test_curves_and_pictures_reach_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    picture = np.random.default_rng(0).integers(0, 255, (8, 12, 3)).astype(np.uint8)
    with Journal(tmp_path, 0) as journal:
        for step in (50, 100):
            journal.write({"step": step, "loss": 1 / step})
        journal.show("clips", picture, 100)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "clips.png")), picture)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (50, pytest.approx(1 / 50)),
        (100, pytest.approx(1 / 100)),
    ]
    assert [e.step for e in events.Images("clips")] == [100]

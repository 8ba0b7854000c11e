"""A network that goes on: small steps from the first one, and a word where it got worse."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import Run
from etsam import train as module
from etsam.sam2 import load_checkpoint
from etsam.train import COMPACT_LOSSES, Schedule, TrainOptions, from_checkpoint, train
from etsam.training.journal import Journal
from tiny_model import write_tiny_model
from tiny_training import options, read_log, write_pairs

COMMON = ("--batch", 1, "--frames", 2, "--size", 64, "--device", "cpu", "--float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def test_warm_up_takes_at_most_a_tenth_of_the_steps() -> None:
    for steps, warmup in ((10_000, 200), (1000, 100), (100, 10), (5, 0)):
        schedule = Schedule(steps=steps)
        rates = [schedule.rate(step) for step in range(steps)]
        assert rates[max(0, warmup - 1)] == max(rates) == 1e-3
        assert rates == sorted(rates[:warmup]) + sorted(rates[warmup:], reverse=True)


def test_a_compact_network_goes_on_with_small_steps(run: Run, folder: Path, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    first, second = (model / f"stage{number}.safetensors" for number in (1, 2))
    plain = TrainOptions(folder, tmp_path / "r")
    for stage, start, smooth in ((1, first, 1.0), (2, second, 300.0)):
        given = from_checkpoint(replace(plain, stage=stage), start)  # type: ignore[arg-type]
        assert given.schedule.learning_rate == 1e-4
        assert given.losses == replace(COMPACT_LOSSES, object_score=0.0, smooth=smooth)
    new = from_checkpoint(replace(plain, stage=2), first)  # stage 2 from stage 1 has much to learn
    assert (new.schedule, new.losses) == (plain.schedule, plain.losses)
    args = ("train", folder, "-o", tmp_path / "r", "--start", first, "--steps", 1, *COMMON)
    assert run(*args, "--learning-rate", 3e-4)[0] == 0
    saved = torch.load(tmp_path / "r" / "state.pt", weights_only=True)["choices"]
    assert (saved["schedule"]["learning_rate"], saved["losses"]["object_score"]) == (3e-4, 0.0)


def test_held_out_clips_are_looked_at_before_the_first_step_and_change_nothing(
    folder: Path, tmp_path: Path
) -> None:
    held = write_pairs(tmp_path / "held")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # four steps may be a loss
        seen = train(options(folder, tmp_path / "seen", validation=held))
    unseen = train(options(folder, tmp_path / "unseen"))
    before = read_log(tmp_path / "seen")[0]
    assert before["step"] == 0 and 0 <= before["dice"] <= 1 and "loss" not in before
    one, other = (load_checkpoint(path)[0].state_dict() for path in (seen, unseen))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("dice", "said"),
    [
        ((0.9, 0.95, 0.85), "give a smaller --learning-rate, or --steps 2 and another --output"),
        ((0.9, 0.88, 0.89), "give a smaller --learning-rate$"),
        ((0.5, 0.95, 0.9), "was 0.500 at step 0, best at step 2 .0.950. and is 0.900 at the end"),
        ((0.5, 0.95, 0.94), None),
    ],
)
def test_a_run_that_ends_worse_says_so(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dice: tuple[float, ...],
    said: str | None,
) -> None:
    given = options(folder, tmp_path / "r", validation=write_pairs(tmp_path / "held"))
    left = list(dice)

    def figures(*_given: Any) -> tuple[dict[str, float], np.ndarray]:
        return {"dice": left.pop(0)}, np.zeros((2, 2, 3), np.uint8)

    monkeypatch.setattr(module, "validate", figures)
    stopped = replace(given, schedule=replace(given.schedule, steps=2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(stopped)  # what was found before a run is taken up counts too
    if said is None:
        train(given)
        return
    with pytest.warns(UserWarning, match=said):
        train(given)


def test_figures_before_the_first_step_stand_once(tmp_path: Path) -> None:
    for _ in range(2):  # the first run was killed before it saved anything
        with Journal(tmp_path, 0) as journal:
            journal.write({"step": 0, "dice": 0.5})
            journal.write({"step": 50, "loss": 1.0})
    assert [entry["step"] for entry in read_log(tmp_path)] == [0, 50]
    with Journal(tmp_path, 50) as journal:
        assert journal.values("dice") == {0: 0.5}

"""Training that is asked to stop: the step is finished and saved, and the run goes on from there."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

from conftest import Run
from etsam import train as module
from etsam.train import Schedule, TrainOptions, train
from etsam.training.parallel import Team
from etsam.training.stopping import Stops
from test_train_resume import free_port, same, train_as
from tiny_training import options, read_log, write_pairs

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there signals end a process at once")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(autouse=True)
def usual_way_with_ctrl_c() -> Iterator[None]:
    """As in a fresh process; libraries that other tests import have ways of their own."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let these signals come in the middle of a step with this number; steps consume random numbers."""
    step, coming = module._step, dict[int, tuple[int, ...]]()

    def stopped(run: Any, *others: Any) -> float:
        with torch.no_grad():
            for parameter in run.model.parameters():
                parameter += 1e-3 * torch.randn(parameter.shape)
        for number in coming.pop(run.step, ()):
            os.kill(os.getpid(), number)
        return step(run, *others)

    def come(at: int, *numbers: int) -> None:
        coming[at] = numbers

    monkeypatch.setattr(module, "_step", stopped)
    return come


def state(given: TrainOptions) -> Any:
    return torch.load(given.state, weights_only=True)


def test_a_run_asked_to_stop_finishes_its_step_and_goes_on_as_if_it_had_not(
    folder: Path, tmp_path: Path, signals: Callable[..., None]
) -> None:
    whole, halves = (
        options(folder, tmp_path / name, steps=3, every=3) for name in ("whole", "halves")
    )
    train(whole)
    signals(1, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="step 2 is saved, the same command goes on"):
        train(halves)
    assert state(halves)["step"] == 2
    train(halves)
    assert same(state(whole), state(halves))
    assert read_log(whole.output) == read_log(halves.output)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_signal_stops_at_once_and_saves_no_half_step(
    folder: Path, tmp_path: Path, signals: Callable[..., None]
) -> None:
    given = options(folder, tmp_path, steps=5, every=2)
    signals(3, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="step 2 is saved"):
        train(given)
    assert state(given)["step"] == 2


def test_a_run_that_waits_for_clips_stops_at_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = module.tasks

    def late(*given: Any) -> Iterator[Any]:
        for number, task in enumerate(drawn(*given)):
            if number == 3:
                os.kill(os.getpid(), signal.SIGINT)
                pytest.fail("it went on")
            yield task

    monkeypatch.setattr(module, "tasks", late)
    given = options(folder, tmp_path, steps=5, every=2)
    with pytest.raises(KeyboardInterrupt, match="step 3 is saved"):
        train(given)
    assert state(given)["step"] == 3


def test_sigterm_of_the_command_says_what_is_saved(
    run: Run, folder: Path, tmp_path: Path, signals: Callable[..., None]
) -> None:
    signals(1, signal.SIGTERM)
    asked = ["train", folder, "-o", tmp_path / "run", "--steps", 3, "--batch", 1, "--frames", 2]
    code, _, err = run(*asked, "--size", 64, "--device", "cpu")
    assert code == 143
    said = "etsam: error: interrupted: step 2 is saved, the same command goes on"
    assert err.splitlines()[-1] == said
    assert torch.load(tmp_path / "run/state.pt", weights_only=True)["step"] == 2


def test_one_of_several_processes_waits_until_all_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also between steps, where the others may be in the next one already."""
    said: list[bool] = []
    others = [False, False, True]

    def any_of(_team: Team, asked: bool) -> bool:
        said.append(asked)
        return asked or others[len(said) - 1]

    monkeypatch.setattr(Team, "any", any_of)
    team = Team(torch.device("cpu"), rank=1, size=2)
    with Stops(team) as stops:
        stops.begin()
        stops.end()
        os.kill(os.getpid(), signal.SIGINT)
        stops.begin()
        with pytest.raises(KeyboardInterrupt):
            stops.end()
        stops.begin()
        with pytest.raises(KeyboardInterrupt):  # another was asked
            stops.end()
    assert said == [False, True, False]


def train_until_asked(rank: int, size: int, port: int, given: TrainOptions) -> None:
    """One of the processes torchrun would start, of which the last is asked to stop in its second step."""
    step = module._step

    def asked(run: Any, *others: Any) -> float:
        if rank == size - 1 and run.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(run, *others)

    module._step = asked
    train_as(rank, size, port, given)


@pytest.mark.slow
def test_processes_stop_after_the_same_step(folder: Path, tmp_path: Path) -> None:
    given = options(folder, tmp_path, schedule=Schedule(steps=9, batch=2, warmup=2), every=9)
    multiprocessing.spawn(train_until_asked, (2, free_port(), given), nprocs=2)
    assert state(given)["step"] == 2

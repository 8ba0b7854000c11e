"""Training that is interrupted, resumed and shared: the same result as in one go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

from conftest import Run
from etsam import train as module
from etsam.frames import FrameSpec
from etsam.sam2 import load_checkpoint, save_checkpoint
from etsam.train import Schedule, Source, TrainOptions, train
from etsam.training.run import read_state, save_run, start_run
from file_limit import file_limit
from tiny_training import TINY, network, options, read_log, write_pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def same(one: Any, other: Any) -> bool:
    """Whether nested states are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def weights(path: Path) -> list[Any]:
    """Weights and what the file says of itself; the bytes also depend on the order of its header."""
    model, metadata = load_checkpoint(path)
    return [dict(model.state_dict()), metadata]


def test_resumed_training_equals_an_uninterrupted_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor, torch's own random numbers and the log; here each step consumes such numbers."""
    step, left = module._step, [100]

    class Killed(Exception):
        pass

    def noisy(run: Any, *others: Any) -> float:
        if not left[0]:
            raise Killed
        left[0] -= 1
        loss = step(run, *others)
        with torch.no_grad():
            for parameter in run.model.parameters():
                parameter += 1e-3 * torch.randn(parameter.shape)
        return loss

    monkeypatch.setattr(module, "_step", noisy)
    monkeypatch.setattr(module, "LOG_EVERY", 3)
    whole, halves = (options(folder, tmp_path / name, steps=7) for name in ("whole", "halves"))
    train(whole)
    left[0] = 3  # one step after the last saved state, none after the last line of the log
    with pytest.raises(Killed):
        train(halves)
    left[0] = 100
    train(halves)
    one, other = (torch.load(run.output / "state.pt", weights_only=True) for run in (whole, halves))
    assert one["step"] == 7
    assert same(one, other)
    assert same(weights(whole.weights), weights(halves.weights))
    assert read_log(whole.output) == read_log(halves.output)


def test_a_run_of_another_network_is_not_taken_up(folder: Path, tmp_path: Path) -> None:
    given = options(folder, tmp_path, steps=1)
    train(given)
    with pytest.raises(ValueError, match="another network, stage or seed"):
        train(replace(given, config=replace(TINY, d_model=64)))
    for content, reason in (
        (b"PK\x03\x04 nothing", "not a ZIP archive"),
        (b"", "is empty"),
        (b"P", "damaged, .*"),
    ):
        (tmp_path / "state.pt").write_bytes(content)
        with pytest.raises(ValueError, match=rf"state\.pt cannot be read \(.*{reason}\)"):
            train(given)


@pytest.fixture(scope="module")
def saved(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainOptions:
    """A run of one step."""
    given = options(folder, tmp_path_factory.mktemp("saved"), steps=1)
    train(given)
    return given


def state_refusal(given: TrainOptions, state: Any = None) -> str:
    """The one line with which a state is refused, that of `given` or another in its place."""
    if state is not None:
        torch.save(state, given.state)
    with pytest.raises(ValueError) as caught:
        read_state(given)
    message = str(caught.value)
    assert message.startswith(f"{given.state} cannot be read (") and "\n" not in message
    assert message.endswith("): remove it to begin anew")
    return message


@pytest.mark.parametrize("name", ["losses", "model", "optimiser", "random", "random_cuda"])
def test_a_state_that_lacks_an_entry_is_refused(
    saved: TrainOptions, tmp_path: Path, name: str
) -> None:
    state = torch.load(saved.state, weights_only=True)
    del state[name]
    assert "(an entry is missing" in state_refusal(replace(saved, output=tmp_path), state)


@pytest.mark.parametrize(
    "change",
    [
        {"choices": None},
        {"step": "3"},
        {"losses": ["3"]},
        {"model": {"no_mem_embed": torch.zeros(3)}},
        {"average": torch.zeros(3)},
        {"optimiser": {}},
        {"random": torch.zeros(3)},
        {"random_cuda": 3},
    ],
    ids=str,
)
def test_a_state_with_an_odd_entry_is_refused(
    saved: TrainOptions, tmp_path: Path, change: dict[str, Any]
) -> None:
    state = torch.load(saved.state, weights_only=True) | change
    assert "not that of such a run)" in state_refusal(replace(saved, output=tmp_path), state)


@pytest.mark.parametrize("part", ["model", "average"])
def test_a_damaged_state_is_refused(saved: TrainOptions, tmp_path: Path, part: str) -> None:
    """torch.load checks no sum: such weights were gone on with, and written."""
    given = replace(saved, output=tmp_path)
    state = torch.load(saved.state, weights_only=True)
    assert same(read_state(saved), state)
    tensor = max(
        (value for value in state[part].values() if value.ndim == 2), key=torch.Tensor.numel
    )
    data = saved.state.read_bytes()
    place = data.index(tensor.numpy().tobytes())
    given.state.write_bytes(data[:place] + b"\xff" * 400 + data[place + 400 :])
    assert "(it is damaged" in state_refusal(given)
    tensor.view(-1)[0] = float("nan")
    assert "(its weights are NaN" in state_refusal(given, state)


def test_a_run_that_goes_on_otherwise_says_so(folder: Path, tmp_path: Path) -> None:
    given = options(folder, tmp_path, steps=1)
    train(given)
    longer = replace(given, schedule=replace(given.schedule, steps=2))
    train(longer)
    batch = given.schedule.batch + 1
    other = replace(
        longer, frames=given.frames + 1, schedule=replace(longer.schedule, steps=3, batch=batch)
    )
    with pytest.warns(UserWarning) as caught:
        train(other)
    (warning,) = caught
    assert str(warning.message) == (
        f"the run in {tmp_path} was at work with batch {batch - 1}, now {batch}; frames "
        f"{given.frames}, now {other.frames}: it goes on as is said now"
    )


@pytest.mark.parametrize(("share", "name"), [(0.5, "stage1.safetensors"), (1.5, "state.pt")])
def test_what_cannot_be_saved_is_named_and_the_last_state_stays(
    folder: Path, tmp_path: Path, share: float, name: str
) -> None:
    given = options(folder, tmp_path, steps=2)
    train(given)
    size, state = given.weights.stat().st_size, given.state.read_bytes()
    run = start_run(given, torch.device("cpu"))
    full = file_limit(int(share * size))
    with full, pytest.raises(OSError, match="too large") as caught:
        save_run(run, given)
    assert caught.value.filename == str(tmp_path / name)
    assert given.state.read_bytes() == state
    assert not list(tmp_path.glob("*.partial"))


COMMAND = "from etsam.cli import main; main()"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many as the process that is killed has: sums depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_goes_on_to_the_same_weights(run: Run, folder: Path, tmp_path: Path) -> None:
    """SIGKILL at any moment, then the same command."""
    start = tmp_path / "start.safetensors"
    save_checkpoint(start, network(TINY), {"frame_spec": FrameSpec().to_dict()}, half=False)
    given = ["train", folder, "--start", start, "--steps", 30, "--batch", 1, "--frames", 2]
    given += ["--size", 64, "--save-every", 10, "--device", "cpu", "--float32"]
    killed = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, given), "-o", str(tmp_path / "killed")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    while not (tmp_path / "killed/state.pt").is_file():
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() != 0
    for name in ("whole", "killed"):
        code, _, err = run(*given, "-o", tmp_path / name)
        assert code == 0, err
    one, other = (tmp_path / name / "stage1.safetensors" for name in ("whole", "killed"))
    assert same(weights(one), weights(other))
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "killed")


def test_weights_that_were_moved_away_are_written_again(folder: Path, tmp_path: Path) -> None:
    given = options(folder, tmp_path, steps=1)
    moved = train(given).rename(tmp_path / "mine.safetensors")
    assert same(weights(train(given)), weights(moved))


def test_two_runs_do_not_share_a_folder(run: Run, folder: Path, tmp_path: Path) -> None:
    """As when a job is submitted twice: each would go on with the other's state."""
    given = options(folder, tmp_path, steps=1)
    asked = ["train", folder, "-o", tmp_path, "--steps", 1, "--batch", 1, "--device", "cpu"]
    asked += ["--size", 64]
    said: list[tuple[int, str, str]] = []
    train(given, lambda _: said.append(run(*asked)))
    ((code, _, err),) = said
    assert code == 1 and err.count("\n") == 1
    assert f"another run is at work in {tmp_path}: wait for it" in err
    assert train(replace(given, schedule=replace(given.schedule, steps=2))).is_file()


def train_as(rank: int, size: int, port: int, given: TrainOptions) -> None:
    """One of the processes torchrun would start."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    train(given)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_processes_equal_one(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same global batches of 3 clips, shared as 2 and 1: losses to 1e-5, weights to 1e-5.

    AdamW divides a gradient by its size, so where it is all but 0 its rounding makes a step: such
    weights may differ by more, and there are few.
    """
    schedule = Schedule(steps=3, batch=3, warmup=2)
    sources = [Source(folder), Source(write_pairs(tmp_path / "small", 1, (16, 40, 40)))]
    one, two = (
        options(sources, tmp_path / name, schedule=schedule, every=1, start=None)
        for name in ("one", "two")
    )
    with pytest.warns(UserWarning, match="1 of 1 volumes are smaller"):
        train(one)
    multiprocessing.spawn(train_as, (2, free_port(), two), nprocs=2)
    said = capfd.readouterr().err
    assert "strides" not in said
    assert said.count("1 of 1 volumes are smaller") == 1  # though each process opens all pairs
    first, second = (read_log(given.output)[-1]["loss"] for given in (one, two))
    assert second == pytest.approx(first, rel=1e-5)
    before, after = (load_checkpoint(given.weights)[0].state_dict() for given in (one, two))
    apart = torch.cat([(before[name] - after[name]).abs().flatten() for name in before])
    assert (apart > 1e-5).float().mean() < 1e-3
    assert apart.max() < 2 * 3 * 1e-3

"""Warnings where several threads are at work: their filters and what shows them are of all."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from etsam.record import told_of
from etsam.sam2 import load_checkpoint

PATIENCE = 10.0  # seconds


@pytest.fixture
def shown() -> Iterator[list[str]]:
    """What is shown to the user; filters and what shows must be the same at the end."""
    texts: list[str] = []

    def show(message: Warning | str, *_: object) -> None:
        texts.append(str(message))

    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("default")
        warnings.showwarning = show  # type: ignore[assignment]
        before = list(warnings.filters)
        yield texts
        assert warnings.showwarning is show
        assert warnings.filters == before


def together(*works: Callable[[], None]) -> None:
    """Run each in a thread of its own."""
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_each_thread_is_told_of_its_own_tomogram(shown: list[str]) -> None:
    """The first one ends while the second is at work."""
    steps = [threading.Event() for _ in range(4)]
    told: dict[str, list[str]] = {}

    def first() -> None:
        with told_of(Path("a.mrc")) as told["a"]:
            steps[0].set()
            assert steps[1].wait(PATIENCE)
            warnings.warn("of a", stacklevel=1)
            warnings.warn("of both", stacklevel=1)
        steps[2].set()

    def second() -> None:
        assert steps[0].wait(PATIENCE)
        with told_of(Path("b.mrc")) as told["b"]:
            warnings.warn("of both", stacklevel=1)
            steps[1].set()
            assert steps[2].wait(PATIENCE)
            warnings.warn("of b", stacklevel=1)

    together(first, second)
    assert told == {"a": ["of a", "of both"], "b": ["of both", "of b"]}
    assert shown == ["b.mrc: of both", "a.mrc: of a", "a.mrc: of both", "b.mrc: of b"]


def test_a_place_warns_again_for_the_next_tomogram(shown: list[str]) -> None:
    """And a thread that makes frames has no tomogram of its own."""

    def warn() -> None:
        warnings.warn("voxels are odd", stacklevel=1)

    for name in ("a.mrc", "b.mrc"):
        with told_of(Path(name)) as told:
            warn()
            together(warn)
        assert told == ["voxels are odd"]
        with told_of(Path(name)) as told:
            together(warn)
        assert told == ["voxels are odd"]
    assert shown == [f"{name}.mrc: voxels are odd" for name in "aabb"]


def test_checkpoints_are_read_by_several_threads(
    shown: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The filter that silences torch meanwhile does not stay."""
    path = tmp_path / "a.pt"
    torch.save({}, path)
    inside, done = [threading.Event() for _ in range(2)], threading.Event()

    def load(*_: object, **__: object) -> dict[str, object]:
        if not inside[0].is_set():
            inside[0].set()
            inside[1].wait(0.2)
        else:
            inside[1].set()
            done.wait(PATIENCE)
        return {}

    def read() -> None:
        with suppress(ValueError):
            load_checkpoint(path)
        done.set()

    monkeypatch.setattr(torch, "load", load)
    together(read, read)
    assert shown == []

"""Pairs simulated while training: which, when they go, and what happens when simulating fails."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest

from etsam.dataset import Pair, SliceStore
from etsam.frames import FrameSpec
from etsam.training.fresh import FIRST_SEED, SEEDS_A_RUN, SPARE, Fresh, FreshPairs
from tiny_training import write_seed


def folders(pairs: list[Pair]) -> list[int]:
    return [int(pair.tomogram.parent.name) for pair in pairs]


def test_pairs_depend_on_the_step_alone_and_failure_is_told(tmp_path: Path) -> None:
    fresh = Fresh(write_seed, pool=2, every=2)
    store = SliceStore(1)
    open_pair = partial(Pair, spec=FrameSpec(), store=store)
    first = FIRST_SEED + 3 * SEEDS_A_RUN
    with FreshPairs(tmp_path, fresh, 3, open_pair) as simulated:
        simulated.start()
        assert folders(simulated.pairs(0)) == [first, first + 1]
        assert folders(simulated.pairs(1)) == [first, first + 1]
        kept = simulated.pairs(2)
        assert folders(kept) == [first + 1, first + 2]
        assert simulated.pairs(3)[0] is kept[0]
        assert folders(simulated.pairs(10)) == [first + 5, first + 6]
        assert not (tmp_path / str(first + 5 - SPARE - 1)).exists()
        with pytest.raises(ChildProcessError, match="has stopped"):
            simulated.pairs(14)  # seed 7 fails
    again = FreshPairs(tmp_path, fresh, 3, open_pair)  # as another process sees it
    assert folders(again.pairs(10)) == [first + 5, first + 6]


def test_pairs_that_go_are_closed_and_those_that_stay_are_tried_again(
    tmp_path: Path, store: SliceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows removes no file that is open, here or in another process."""
    places = [tmp_path / str(FIRST_SEED + number) for number in range(3)]
    open_pair = partial(Pair, spec=FrameSpec(), store=store)
    whole = (slice(None), slice(None))
    with FreshPairs(tmp_path, Fresh(write_seed, pool=1, every=1), 0, open_pair) as simulated:
        simulated.start()
        for step in range(SPARE + 2):
            (pair,) = simulated.pairs(step)
            pair.read_grey(0, whole)
            pair.read_labels(0, whole)
        assert not places[0].exists() and places[1].exists()
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", lambda *_args, **_named: None)
            simulated.pairs(SPARE + 2)
        assert places[1].exists() and places[2].exists()
        simulated.pairs(SPARE + 3)
        assert not any(place.exists() for place in places)


def test_an_expected_failure_is_told_in_its_own_words(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fresh = Fresh(write_seed, pool=1, every=1)
    open_pair = partial(Pair, spec=FrameSpec(), store=SliceStore(1))
    with FreshPairs(tmp_path, fresh, 0, open_pair) as simulated:
        simulated.start()
        with pytest.raises(ChildProcessError, match=f"stopped: seed {FIRST_SEED + 9} is nonsense"):
            simulated.pairs(9)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.5}, {"pool": 0}, {"every": 0}])
def test_impossible_wishes_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="cannot simulate"):
        Fresh(write_seed, **wrong)  # type: ignore[arg-type]

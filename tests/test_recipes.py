"""What the bundled weights were trained on shares nothing with what they are judged by."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from etsam.simulation import suite
from etsam.simulation.recipe import SimulationOptions
from etsam.training.fresh import FIRST_SEED

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
HELD_OUT = range(900_000, 900_010)


def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, SimulationOptions]]:
    """Seeds and options of every tomogram that either recipe simulates for training."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    try:
        import train_compact
        import train_further

        kinds = [
            *train_compact.training_kinds(),
            *train_further.training_kinds(1, Path("shapes")),
            *train_further.training_kinds(2, Path("shapes")),
        ]
        plain = [job for kind in kinds for job in kind.jobs]
        unseen = train_compact._unseen(
            [job for kind in train_compact.training_kinds() for job in kind.jobs]
        )
    finally:
        for name in ("train_compact", "train_further"):
            sys.modules.pop(name, None)
    return plain + unseen


def test_no_seed_is_used_twice_or_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = [seed for seed, _ in trained_on(monkeypatch)]
    assert len(seeds) > 1200 and len(set(seeds)) == len(seeds)
    assert not set(seeds) & set(HELD_OUT)
    assert max(seeds) < suite.FIRST_HELD_OUT_SEED < FIRST_SEED


def test_shapes_of_the_suite_are_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    used = {Path(shape.path).name for _, o in trained_on(monkeypatch) for shape in o.shapes}
    assert len(used) == 4
    assert not used & {row[2] for row in suite._REAL}


def test_kinds_are_drawn_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    further = [o for seed, o in trained_on(monkeypatch) if 600_000 <= seed < 630_000]
    assert len(further) == 700 and all(o.bright_membranes is False for o in further)
    assert 0.2 < sum(o.gold is not None for o in further) / len(further) < 0.8
    plain = sum(o.actin is None and o.microtubules is None for o in further) / len(further)
    assert 0.4 < plain < 0.8, "four in ten are left as they are, a quarter of the others by chance"

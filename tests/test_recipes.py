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
    """Seeds and options of every tomogram that the recipes simulate for training."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    try:
        import tomograms
        import train_compact

        plain = [job for kind in train_compact.training_kinds() for job in kind.jobs]
        unseen = train_compact._unseen(plain)
        listed = [
            (seed, options)
            for stage in (1, 2)
            for _, seed, options, *_ in tomograms.jobs(Path(), stage, Path("shapes"), 2500)
        ]
        spiked = tomograms.jobs(Path(), 2, Path("shapes"), 2750, {"spiked": 0.9})[2500:]
        listed += [(seed, options) for _, seed, options, *_ in spiked]
    finally:
        for name in ("train_compact", "tomograms"):
            sys.modules.pop(name, None)
    return plain + unseen + listed


def test_no_seed_is_used_twice_or_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = [seed for seed, _ in trained_on(monkeypatch)]
    assert len(seeds) > 5000 and len(set(seeds)) == len(seeds)
    assert not set(seeds) & set(HELD_OUT)
    assert max(seeds) < suite.FIRST_HELD_OUT_SEED < FIRST_SEED


def test_shapes_of_the_suite_are_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    used = {Path(shape.path).name for _, o in trained_on(monkeypatch) for shape in o.shapes}
    assert len(used) == 4
    assert not used & {row[2] for row in suite._REAL}


def test_kinds_are_drawn_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    every = [o for seed, o in trained_on(monkeypatch) if seed >= 3_000_000]
    drawn, asked = every[:5000], every[5000:]
    spiked = [o for o in asked if o.spikes is not None]
    assert 0.3 < len(spiked) / len(asked) < 0.5 and not any(o.spikes for o in drawn)
    assert 0.35 < sum(bool(o.shapes) for o in spiked) / len(spiked) < 0.65
    assert len(drawn) == 5000 and all(o.bright_membranes is False for o in drawn)
    assert all(8 <= (o.voxel_spacing or 0) <= 16 for o in drawn), "frames are slices"
    assert 0.2 < sum(o.gold is not None for o in drawn) / len(drawn) < 0.8
    plain = sum(o.actin is None and o.microtubules is None for o in drawn) / len(drawn)
    assert 0.4 < plain < 0.8, "four in ten are left as they are, a quarter of the others by chance"
    whole = [o for o in drawn if o.whole]
    assert 0.15 < len(whole) / len(drawn) < 0.25 and all(55 <= o.lean <= 80 for o in whole)
    assert 0.75 < sum(o.depth_fading > 0 for o in whole) / len(whole) < 0.95
    flat = [o for o in drawn if not o.whole]
    faded = sum(o.fading > 0 for o in flat) / len(flat)
    assert 0.3 < faded < 0.55 and all(37 <= o.lean <= 60 for o in flat)

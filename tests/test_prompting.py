"""Prompts while training: shares, places, corrections."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from etsam.prompts import INTERVAL
from etsam.training.prompting import (
    PromptMix,
    prompt_mask,
    sample_boxes,
    sample_clicks,
)


def randoms(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(n) for n in range(count)]


def test_first_prompts_lie_where_they_should() -> None:
    labels = torch.zeros(2, 70, 90, dtype=torch.int8)
    labels[0, 10:20, 30:60] = 1
    points, signs = sample_clicks(labels, None, randoms(2))
    x, y = points[0, 0].int().tolist()
    assert labels[0, y, x] == 1
    assert signs[:, 0].tolist() == [1, 0]
    corners, kinds = sample_boxes(labels, randoms(2))
    assert kinds.tolist() == [[2, 3], [2, 3]]
    low, high = corners[0]
    assert (low - torch.tensor([30.0, 10.0])).abs().max() <= 3
    assert (high - torch.tensor([59.0, 19.0])).abs().max() <= 3
    assert (corners >= 0).all() and (corners[..., 0] < 90).all() and (corners[..., 1] < 70).all()


def test_mask_prompts() -> None:
    assert INTERVAL == 50
    labels = torch.tensor([[[1, 0], [-1, 1]]], dtype=torch.int8)
    assert prompt_mask("mask", labels, (0, 0))[0, 0].tolist() == [[1, 0], [0, 1]]
    assert prompt_mask("zero", labels, (0, 0)).sum() == 0
    dots = prompt_mask("grid", torch.zeros(2, 120, 120), (10, 30))
    assert dots[0, 0].nonzero().tolist() == [[y, x] for y in (10, 60, 110) for x in (30, 80)]


def test_clicks_fall_on_errors_and_say_what_is_true() -> None:
    """Missed membrane: positive; found where there is none: negative; not annotated: never."""
    labels = torch.zeros(1, 20, 20, dtype=torch.int8)
    labels[0, 5] = 1
    labels[0, 15:] = -1
    found = torch.zeros(1, 20, 20, dtype=torch.bool)
    found[0, 5, :18] = True  # two pixels are missed
    found[0, 9, 3] = True  # one is too much
    found[0, 17] = True  # nobody knows
    drawn = set()
    for n in range(60):
        points, signs = sample_clicks(labels, found, [np.random.default_rng(n)])
        x, y = points[0, 0].int().tolist()
        drawn.add((y, x, int(signs)))
    assert drawn == {(5, 18, 1), (5, 19, 1), (9, 3, 0)}


def test_a_perfect_answer_gets_a_click_on_the_background() -> None:
    labels = torch.ones(1, 8, 8, dtype=torch.int8)
    labels[0, 2] = 0
    points, signs = sample_clicks(labels, labels == 1, randoms(1))
    assert points[0, 0, 1] == 2
    assert int(signs) == 0


def test_prompt_mix_follows_its_shares() -> None:
    random = np.random.default_rng(0)
    mix = PromptMix("zero", share=0.5)
    drawn = [mix.draw(random) for _ in range(4000)]
    assert drawn.count("zero") / 4000 == pytest.approx(0.5, abs=0.03)
    assert drawn.count("points") / 4000 == pytest.approx(0.25, abs=0.03)
    assert drawn.count("box") / 4000 == pytest.approx(0.125, abs=0.03)


def test_plans_of_the_papers_mix() -> None:
    """One or two conditioned frames, the first always; one or two corrected, never after a mask."""
    from etsam.training.paper import PAPER_PROMPTS

    random = np.random.default_rng(0)
    plans = [PAPER_PROMPTS.plan(22, random) for _ in range(2000)]
    kinds = [plan.kind for plan in plans]
    for kind, share in (("points", 0.5), ("box", 0.25), ("mask", 0.25)):
        assert kinds.count(kind) / 2000 == pytest.approx(share, abs=0.04)
    assert {len(plan.conditioning) for plan in plans} == {1, 2}
    assert all(plan.conditioning[0] == 0 for plan in plans)
    clicked = [plan for plan in plans if plan.kind != "mask"]
    assert {len(plan.corrected) for plan in clicked} == {1, 2}
    assert all(set(plan.conditioning) <= plan.corrected for plan in clicked)
    assert not any(plan.corrected for plan in plans if plan.kind == "mask")
    assert {len(plan.from_truth) for plan in plans} == {7}
    truths = [click for plan in plans for click in plan.from_truth]
    assert np.mean(truths) == pytest.approx(0.1, abs=0.01)

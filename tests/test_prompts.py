"""Prompts: where they stand, what they hold, and when the tracker sees them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etsam.frames import FrameSpec, frame_geometry
from etsam.prompts import (
    ScheduledFrames,
    fit_mask,
    grid_mask,
    make_prompts,
    prompted_slices,
    schedule,
)

SQUARE = frame_geometry(FrameSpec(size="square", image_size=128), (120, 130))
NATIVE = frame_geometry(FrameSpec(), (120, 130))


def test_prompts_stand_where_the_reference_puts_them() -> None:
    assert prompted_slices("zero", 120) == prompted_slices("grid_zero", 120) == [0]
    assert prompted_slices("none", 120) == []
    assert prompted_slices("grid", 120) == [0, 50, 100]
    assert prompted_slices("grid", 24, 10) == [0, 10, 20]
    assert prompted_slices("etsam_stage1_partial", 25, 10) == [0, 10, 20]


def test_grid_starts_at_the_corner() -> None:
    mask = grid_mask((120, 130), 50)
    assert mask.nonzero().tolist() == [[y, x] for y in (0, 50, 100) for x in (0, 50, 100)]


@pytest.mark.parametrize("geometry", [SQUARE, NATIVE])
def test_zero_prompt_is_empty_and_grid_is_not(geometry) -> None:
    for kind, dots in (("zero", 0), ("grid_zero", 9), ("grid", 9)):
        prompts = make_prompts(kind, 60, geometry)
        assert {mask.shape for mask in prompts.values()} == {torch.Size(geometry.frame_shape)}
        for mask in prompts.values():  # squeezing makes some dots 0 or 2 pixels
            assert dots * 0.6 <= int(mask.sum()) <= dots * (2 if geometry.is_square else 1)


def test_partial_prompt_is_the_thresholded_stage_before() -> None:
    logits = torch.linspace(-1, 1, 120 * 130).reshape(120, 130)
    prompts = make_prompts("etsam_stage1_partial", 60, SQUARE, previous=lambda z: logits + z)
    rows = prompts[0].any(dim=1).float()
    assert prompts[0].shape == (128, 128) and abs(rows.mean() - 0.625) < 0.01
    assert rows.argmax() == 128 - rows.sum() and bool(prompts[50].all())
    padded = make_prompts("etsam_stage1_partial", 1, NATIVE, previous=lambda z: logits)[0]
    assert torch.equal(padded[:120, :130], logits > -0.25) and not padded[120:].any()
    with pytest.raises(ValueError, match="stage 1"):
        make_prompts("etsam_stage1_partial", 60, SQUARE)


def test_mask_follows_the_scale_of_native_frames() -> None:
    geometry = frame_geometry(FrameSpec(), (100, 100), (4.0, 4.0, 4.0))
    mask = torch.zeros(100, 100, dtype=torch.bool)
    mask[20:60, 40:80] = True
    scaled = fit_mask(mask, geometry)
    ys, xs = scaled.nonzero(as_tuple=True)
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (10, 29, 20, 39)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="circle"):
        prompted_slices("circle", 10)
    with pytest.raises(ValueError, match="interval"):
        prompted_slices("grid", 10, 0)


def test_without_lead_in_the_schedule_is_the_volume() -> None:
    plan = schedule(5, {0: torch.ones(1, 1)}, lead_in=0)
    assert plan.slices == (0, 1, 2, 3, 4) and all(plan.real) and set(plan.prompts) == {0}


@given(
    depth=st.integers(1, 40),
    prompted=st.sets(st.integers(0, 39), min_size=1),
    lead_in=st.integers(1, 8),
)
def test_every_slice_is_predicted_once_and_no_prompt_is_an_answer(
    depth: int, prompted: set[int], lead_in: int
) -> None:
    prompts = {z: torch.full((1, 1), float(z)) for z in prompted if z < depth} | {
        0: torch.zeros(1, 1)
    }
    plan = schedule(depth, prompts, lead_in)
    answers = [z for z, real in zip(plan.slices, plan.real, strict=True) if real]
    assert answers == list(range(depth))
    assert len(plan.prompts) == len(prompts)
    for step, mask in plan.prompts.items():
        assert not plan.real[step]
        if mask.item():
            assert plan.slices[step] == plan.slices[step + 1] == mask.item()


def test_lead_in_is_the_mirrored_volume() -> None:
    plan = schedule(9, {0: torch.ones(1, 1)}, lead_in=3)
    assert plan.slices[:6] == (2, 1, 0, 0, 1, 2)
    frames = ScheduledFrames(torch.arange(9)[:, None], plan.slices)
    assert len(frames) == 12 and np.array_equal(frames[1], [1])


def test_dots_as_far_apart_as_numbers_go_are_one() -> None:
    for interval in (9, 2**31, 2**63 - 1):
        assert grid_mask((7, 9), interval).nonzero().tolist() == [[0, 0]]

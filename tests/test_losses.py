"""Losses: known values, ignored voxels, gradients that point the right way."""

from __future__ import annotations

import math

import pytest
import torch

from etsam.losses import (
    LossWeights,
    candidate_iou,
    dice_loss,
    focal_loss,
    frame_loss,
)
from etsam.metrics import IGNORE
from etsam.sam2.mask_decoder import Decoded


def decoded(masks: torch.Tensor, score: float = 3.0) -> Decoded:
    batch, count = masks.shape[:2]
    return Decoded(
        masks,
        torch.full((batch, count), 0.5),
        torch.zeros(batch, count, 8),
        torch.full((batch, 1), score),
    )


def test_focal_loss_without_focus_is_half_the_cross_entropy() -> None:
    logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 2, (2, 3, 8, 8)).float()
    found = focal_loss(logits, target, torch.ones_like(target), alpha=0.5, gamma=0.0)
    cross = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, target, reduction="none"
    ).mean((-2, -1))
    torch.testing.assert_close(found, 0.5 * cross)


@pytest.mark.parametrize(("membrane", "share"), [(1.0, 0.25), (0.0, 0.75)])
def test_focal_loss_at_zero_logits_is_its_closed_form(membrane: float, share: float) -> None:
    target = torch.full((1, 1, 4, 4), membrane)
    valid = torch.ones_like(target)
    valid[..., :2] = 0  # averaged over the others
    found = focal_loss(torch.zeros_like(target), target, valid, alpha=0.25, gamma=2.0)
    assert found.item() == pytest.approx(share * 0.25 * math.log(2), rel=1e-6)


def test_perfect_and_opposite_masks_bound_the_dice_loss() -> None:
    target = torch.zeros(1, 1, 16, 16)
    target[..., 4:12, 4:12] = 1
    valid = torch.ones_like(target)
    sure = (target * 2 - 1) * 50
    assert dice_loss(sure, target, valid).item() == pytest.approx(0, abs=1e-3)
    assert dice_loss(-sure, target, valid).item() == pytest.approx(1, abs=1e-2)


def test_dice_loss_leaves_out_what_is_not_valid() -> None:
    target = torch.zeros(1, 1, 8, 8)
    target[..., :4] = 1
    valid = torch.ones_like(target)
    valid[..., :2] = 0
    logits = torch.linspace(-3, 3, 64).reshape(1, 1, 8, 8)
    elsewhere = target.clone()
    elsewhere[..., :2] = 0
    assert dice_loss(logits, target, valid) == dice_loss(logits, elsewhere, valid)


def test_an_empty_frame_costs_what_is_claimed_on_it() -> None:
    empty = torch.zeros(1, 1, 64, 64)
    valid = torch.ones_like(empty)
    claims = torch.full_like(empty, -50)
    claims[..., :10, :10] = 50  # 100 pixels
    assert dice_loss(claims, empty, valid).item() == pytest.approx(100 / 101)
    assert dice_loss(claims, empty, valid, smooth=300).item() == pytest.approx(100 / 400)
    faint = torch.full_like(empty, -6.0).requires_grad_()  # about ten pixels in all
    pushes = []
    for smooth in (1.0, 300.0):
        (push,) = torch.autograd.grad(dice_loss(faint, empty, valid, smooth).sum(), faint)
        pushes.append(push.sum().item())
        assert push.min() > 0
    assert pushes[0] > 2 * pushes[1]  # one pixel: down, however little is claimed


def test_ignored_voxels_change_nothing() -> None:
    labels = torch.zeros(1, 16, 16, dtype=torch.int8)
    labels[:, :8, :4] = 1
    labels[:, 8:] = IGNORE
    masks = torch.randn(1, 3, 16, 16)
    elsewhere = masks.clone()
    elsewhere[..., 8:, :] = 30
    weights = LossWeights(spread=0.3)
    first = frame_loss(decoded(masks), labels, weights)
    assert first == frame_loss(decoded(elsewhere), labels, weights)
    elsewhere[..., :8, :] = 30
    assert first != frame_loss(decoded(elsewhere), labels, weights)


def test_candidate_iou_counts_by_hand() -> None:
    logits = torch.tensor([[[[1.0, 1.0], [-1.0, -1.0]]]])
    target = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
    assert candidate_iou(logits, target, torch.ones_like(target)).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("present", [True, False])
def test_the_loss_of_a_frame_is_the_weighted_sum_of_its_terms(present: bool) -> None:
    labels = torch.zeros(1, 8, 8, dtype=torch.int8)
    labels[:, 2:5] = int(present)
    masks = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    weights = LossWeights(2.0, 3.0, 0.7, 0.3, spread=0.4, absent=0.6, focal_alpha=0.4, smooth=50.0)
    target = labels[:, None].float().expand_as(masks)
    valid = torch.ones_like(masks)
    mask = 2 * focal_loss(masks, target, valid, 0.4, 2.0) + 3 * dice_loss(masks, target, valid, 50)
    quality = (0.5 - candidate_iou(masks, target, valid)).abs().mean()
    shown = 1.0 if present else 0.6
    score = math.log1p(math.exp(-3.0 if present else 3.0))  # of an object score of 3
    wanted = shown * (0.6 * mask.min() + 0.4 * mask.mean() + 0.7 * quality) + 0.3 * score
    torch.testing.assert_close(frame_loss(decoded(masks), labels, weights), wanted)


def test_only_the_best_candidate_is_taught_without_spread() -> None:
    labels = torch.zeros(1, 8, 8, dtype=torch.int8)
    labels[:, 2:5] = 1
    masks = torch.zeros(1, 3, 8, 8)
    masks[:, 1] = labels.float() * 4 - 2
    masks.requires_grad_()
    frame_loss(decoded(masks), labels, LossWeights(spread=0.0)).backward()
    taught = masks.grad.abs().sum((-2, -1))[0] > 0
    assert taught.tolist() == [False, True, False]


@pytest.mark.parametrize(("absent", "silent"), [(0.0, True), (1.0, False)])
def test_frames_without_membrane_teach_the_mask_only_when_asked(
    absent: float, silent: bool
) -> None:
    labels = torch.zeros(1, 8, 8, dtype=torch.int8)
    masks = torch.randn(1, 3, 8, 8, requires_grad=True)
    frame_loss(decoded(masks), labels, LossWeights(absent=absent)).backward()
    assert (masks.grad.abs().sum() == 0).item() is silent


def test_a_frame_whose_membranes_nobody_drew_is_not_called_empty() -> None:
    """All -1, or 0 and -1: membrane may be there. Only the voxels called background teach."""
    masks = torch.randn(1, 3, 16, 16)
    for part in (slice(None), slice(8, None)):
        labels = torch.zeros(1, 16, 16, dtype=torch.int8)
        labels[:, part] = IGNORE
        answer = decoded(masks)
        answer.object_score.requires_grad_()
        answer.quality.requires_grad_()
        answer.masks.requires_grad_()
        frame_loss(answer, labels, LossWeights(absent=1.0)).backward()
        assert not answer.object_score.grad.any()
        assert not answer.quality.grad.any()
        taught = answer.masks.grad.abs().sum((0, 1, 3)) > 0
        assert taught.tolist() == [part == slice(8, None)] * 8 + [False] * 8
    empty = decoded(masks)
    empty.object_score.requires_grad_()
    frame_loss(empty, torch.zeros(1, 16, 16, dtype=torch.int8), LossWeights()).backward()
    assert (empty.object_score.grad > 0).all()

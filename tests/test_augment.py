"""Augmentation: what a fading clip hides, and what it leaves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from etsam.training.augment import augment, fade


@pytest.mark.parametrize("seed", range(8))
def test_fading_hides_one_side_of_later_frames(seed: int) -> None:
    frames = torch.zeros(5, 6, 96, 96)
    frames[:, 3:] = 1.0  # logits: sure of membrane
    faded = fade(frames, 3, np.random.default_rng(seed))
    assert torch.equal(faded[:2], frames[:2])
    grey, logits = faded[-1, :3], faded[-1, 3:]
    assert 0.1 < grey.std() < 1.2
    assert logits.min() < 0.5 and logits.max() <= 1.0
    spread = grey.unfold(1, 16, 16).unfold(2, 16, 16).std((0, 3, 4))
    assert spread.min() < 0.5 * spread.max()
    assert torch.equal(faded, fade(frames, 3, np.random.default_rng(seed)))


def test_short_clips_do_not_fade() -> None:
    frames = torch.randn(2, 3, 32, 32)
    assert torch.equal(fade(frames, 3, np.random.default_rng(0)), frames)


def test_labels_turn_with_frames() -> None:
    labels = torch.zeros(4, 64, 64, dtype=torch.int8)
    labels[:, 10:30, 20:50] = 1
    frames = 100.0 * labels[:, None].float()
    sizes = []
    for seed in range(12):
        turned, marks = augment(frames, labels, 1, "strong", np.random.default_rng(seed))
        bright = turned[1, 0] > (turned[1, 0].min() + turned[1, 0].max()) / 2  # 1 never fades
        assert (bright == (marks[1] == 1)).float().mean() > 0.95
        sizes.append(int((marks[1] == 1).sum()))
    assert min(sizes) < 570 and max(sizes) > 630, "turned by quarters only, never zoomed"
    assert 600 in sizes, "every clip is zoomed"

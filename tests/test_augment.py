"""Augmentation: what a fading clip hides, what it leaves, and labels that move with frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from etsam.training import augment as module
from etsam.training.augment import augment, augment_batch

CHANGES = ("SPECTRAL", "SCRAMBLED", "TONED", "NOISY", "EDGED", "COVERED", "FADED", "WARPED")


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No change but contrast, brightness, quarter turns and mirrors; tests switch on what they are about."""
    for name in CHANGES:
        monkeypatch.setattr(module, name, 0.0)
    return monkeypatch


@pytest.mark.parametrize("seed", range(8))
def test_fading_hides_one_side_of_later_frames(only: pytest.MonkeyPatch, seed: int) -> None:
    only.setattr(module, "FADED", 1.0)
    frames = torch.zeros(1, 5, 6, 96, 96)
    frames[:, :, 3:] = 1.0  # logits: sure of membrane
    labels = torch.zeros(1, 5, 96, 96, dtype=torch.int8)
    faded, again = (
        augment_batch(frames.clone(), labels, 3, [np.random.default_rng(seed)])[0][0]
        for _ in range(2)
    )
    assert torch.equal(faded, again)
    assert (faded[:2, :3].std((-2, -1)) < 1e-5).all() and (faded[:2, 3:] > 0.999).all()
    grey, logits = faded[-1, :3], faded[-1, 3:]
    assert 0.1 < grey.std() < 1.2
    assert logits.min() < 0.5 and logits.max() <= 1.0
    spread = grey.unfold(1, 16, 16).unfold(2, 16, 16).std((0, 3, 4))
    assert spread.min() < 0.5 * spread.max()


def test_short_clips_do_not_fade(only: pytest.MonkeyPatch) -> None:
    only.setattr(module, "FADED", 1.0)
    frames, labels = torch.zeros(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.int8)
    faded, _ = augment(frames, labels, 3, "strong", np.random.default_rng(0))
    assert (faded.std((-2, -1)) < 1e-5).all()


def test_labels_turn_with_frames(only: pytest.MonkeyPatch) -> None:
    only.setattr(module, "WARPED", 0.5)
    labels = torch.zeros(4, 64, 64, dtype=torch.int8)
    labels[:, 10:30, 20:50] = 1
    frames = 100.0 * labels[:, None].float()
    sizes = []
    for seed in range(12):
        turned, marks = augment(frames, labels, 1, "strong", np.random.default_rng(seed))
        bright = turned[1, 0] > (turned[1, 0].min() + turned[1, 0].max()) / 2
        assert (bright == (marks[1] == 1)).float().mean() > 0.95
        sizes.append(int((marks[1] == 1).sum()))
    assert min(sizes) < 570 and max(sizes) > 630, "turned by quarters only, never zoomed"
    assert 600 in sizes, "every clip is zoomed"


def test_scrambled_detail_has_the_spectrum_it_had_and_is_gone(only: pytest.MonkeyPatch) -> None:
    """What is coarse stays, what is fine becomes noise as strong as it was, in all slices the same way."""
    only.setattr(module, "SCRAMBLED", 1.0)
    only.setattr(module, "FINEST", (0.15, 0.15))
    side = 64
    wave = 2 * np.pi * torch.arange(side) / side
    coarse, fine = (
        torch.cos(2 * wave),
        torch.cos(26 * wave)[:, None],
    )  # .03 and .41 cycles per pixel
    frames = (coarse + fine).expand(1, 2, 3, side, side).clone()
    labels = torch.zeros(1, 2, side, side, dtype=torch.int8)
    changed, again = (
        augment_batch(frames.clone(), labels, 3, [np.random.default_rng(4)])[0] for _ in range(2)
    )
    assert torch.equal(changed, again)
    assert torch.allclose(changed, changed[:, :1, :1].expand_as(changed), atol=1e-5)
    before, after = (torch.fft.fft2(x[0, 0, 0]) / side**2 for x in (frames, changed))
    gain = 2 * max(float(after.abs()[i, j]) for i, j in ((0, 2), (0, -2), (2, 0), (-2, 0)))
    fines = [after[i, j].abs() for i, j in ((0, 26), (26, 0), (0, -26), (-26, 0))]
    assert 0.7 < gain < 1.3  # of the clip's contrast, which is drawn from exp(-.25) to exp(.25)
    assert 2 * float(max(fines)) == pytest.approx(gain, rel=0.25)
    assert before.abs().max() == pytest.approx(0.5, abs=1e-3)


def test_scrambling_leaves_no_more_than_chance_of_the_finest_detail(
    only: pytest.MonkeyPatch,
) -> None:
    only.setattr(module, "SCRAMBLED", 1.0)
    only.setattr(module, "FINEST", (0.1, 0.1))
    white = torch.randn(1, 1, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    seen = module._scramble(
        white, [np.random.default_rng(0)], torch.Generator().manual_seed(1)
    ).squeeze()
    assert float(seen.std()) == pytest.approx(1.0, abs=0.05)
    a, b = torch.fft.rfft2(white.squeeze()), torch.fft.rfft2(seen)
    fine = module._radius(white) > 0.3
    coarse = module._radius(white) < 0.02

    def likeness(where: torch.Tensor) -> float:
        common = (a[where] * b[where].conj()).real.sum()
        return float(common / (a[where].abs() * b[where].abs()).sum())

    assert likeness(coarse) > 0.95 and abs(likeness(fine)) < 0.08

"""A run of the published code decides where SAM 2's implementations differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import etsam.tracker
from etsam.sam2 import SAM2, Features, Memory, Output, SAM2Config, load_checkpoint
from etsam.tracker import track

GOLDEN = SAM2Config(
    image_size=256,
    embed_dim=16,
    num_heads=1,
    stages=(1, 2, 3, 1),
    global_blocks=(4,),
    window_spec=(8, 4, 8, 4),
    pos_embed_size=(7, 7),
    d_model=64,
    memory_dim=16,
    memory_layers=2,
    memory_feed_forward=128,
)
GRID = 10
KEY = f"min_max_positive_values__grid__etsam_stage1_partial__{GRID}__stage1"


def golden_prompt() -> Tensor:
    """Dots drawn on the slice and squeezed to the frame, as the reference does."""
    dots = torch.zeros(1, 1, 150, 180)
    dots[..., ::GRID, ::GRID] = 1
    return (F.interpolate(dots, (256, 256), mode="bilinear", antialias=True)[0, 0] >= 0.5).float()


def published_run(shared: Path) -> tuple[SAM2, list[Tensor], Tensor]:
    """Network, frames and logits (24, 150, 180) of a run of the published code."""
    folder = shared / "golden"
    model, _ = load_checkpoint(folder / "stage1.pt", GOLDEN)
    tomogram = torch.from_numpy(np.load(folder / "tomogram.npy")).clamp(min=0)
    grey = (tomogram / tomogram.max())[None].double()
    grey = F.interpolate(grey, (256, 256), mode="bicubic", antialias=True)[0].float()
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    with np.load(folder / "expected.npz") as expected:
        logits = torch.from_numpy(expected[KEY])
    return model, [(plane[None] - mean) / std for plane in grey], logits


def golden_run(model: SAM2, frames: list[Tensor]) -> Tensor:
    prompts = {z: golden_prompt() for z in range(0, len(frames), GRID)}
    low = torch.stack([logits for _, logits in track(model, frames, prompts)])
    return F.interpolate(low[None], (150, 180), mode="bilinear")[0]


def unrounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep memories as they are, unlike both references."""
    monkeypatch.setattr(etsam.tracker, "_rounded", lambda memory: memory)


def full_resolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remember a mask prompt as it came, as transformers does, not by way of its logits."""
    original = SAM2.remember
    logits = 20 * golden_prompt()[None, None] - 10

    def remember(self: SAM2, features: Features, output: Output, *, binary: bool = False) -> Memory:
        sharp = output._replace(logits=logits) if binary else output
        return original(self, features, sharp, binary=binary)

    monkeypatch.setattr(SAM2, "remember", remember)


@pytest.mark.parametrize("variant", [unrounded, full_resolution])
def test_published_run_decides_where_references_differ(
    shared: Path, variant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our reading reproduces the published code's own run, the other readings do not.

    ``share`` is the part of the step from ours to the variant that the published run has taken.
    Which mask token a mask prompt's pointer comes from moves this run by no more than rounding
    does; there the oracle follows the published source (``SAM2Base._use_mask_as_output``).
    """
    model, frames, expected = published_run(shared)
    ours = golden_run(model, frames)
    assert (ours - expected).abs().max() < 1e-4
    variant(monkeypatch)
    step = golden_run(model, frames) - ours
    share = ((expected - ours) * step).sum() / step.square().sum()
    assert step.abs().max() > 1e-4
    assert abs(share) < 0.1

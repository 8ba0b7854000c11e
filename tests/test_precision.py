"""What the network computes in bfloat16 and what in float32."""

from __future__ import annotations

import pytest
import torch

from etsam.sam2 import Features, MemoryBank, SAM2Config
from test_sam2 import CONFIGS, DEVICES, network, random_frames


@CONFIGS
@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_is_close(config: SAM2Config, device: str) -> None:
    exact = network(config).to(device)
    coarse = network(config).to(device)
    coarse.compute_in(torch.bfloat16)
    frames = random_frames(config, 64, 64, 2).to(device)
    masks = []
    for model, dtype in ((exact, torch.float32), (coarse, torch.bfloat16)):
        bank = MemoryBank.for_config(config)
        first, second = (model.encode(f[None].to(dtype)) for f in frames)
        assert first.image.dtype == dtype
        mask = torch.zeros(1, 1, 64, 64, device=device)
        mask[..., 20:40, 8:50] = 1
        bank.conditioning[0] = model.remember(first, model.answer_with_mask(first, mask))
        output = model.decode(model.condition(second.image, bank, 1, 2), second)
        assert output.decoded is not None
        assert output.logits.dtype == torch.float32
        masks.append(output.decoded.masks.float())
    error = (masks[0] - masks[1]).square().mean().sqrt() / masks[0].std()
    assert 0 < error < 0.1


@CONFIGS
def test_in_bfloat16_candidates_are_told_apart_in_float32(config: SAM2Config) -> None:
    exact, coarse = network(config), network(config)
    coarse.compute_in(torch.bfloat16)
    frame = random_frames(config, 64, 64).bfloat16()
    points = torch.tensor([[[9.0, 30.0], [50.0, 12.0]]]), torch.tensor([[1, 0]])
    features = coarse.encode(frame)
    assert {x.dtype for x in (features.image, *features.high_res)} == {torch.bfloat16}
    given = Features(features.image.float(), [x.float() for x in features.high_res])
    masks = torch.randn(1, 1, 64, 64)
    for prompt in ({"points": points}, {"mask": masks}, {}):
        here = coarse.decode(features.image, features, **prompt)  # type: ignore[arg-type]
        there = exact.decode(given.image, given, **prompt)  # type: ignore[arg-type]
        assert here.decoded is not None and there.decoded is not None
        for ours, wanted in zip(here.decoded, there.decoded, strict=True):
            assert torch.equal(ours, wanted)
        assert here.pointer.dtype == torch.bfloat16
        assert coarse.remember(features, here).spatial.dtype == torch.bfloat16

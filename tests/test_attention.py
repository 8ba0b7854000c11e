"""Attention block by block, and functions applied in parts, against PyTorch in double precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from etsam.sam2 import attention
from etsam.sam2.attention import attend, in_blocks, in_parts
from etsam.sam2.config import SAM2Config
from etsam.sam2.linear import packs
from etsam.sam2.mask_decoder import KEY_GAP, ImageAttention
from etsam.sam2.memory import RotaryAttention, Rotations
from etsam.sam2.positions import axial_rotation

SHAPES = [
    (1, 1, 50, 300, 32, 8),  # memory attention: many keys, narrow values
    (3, 2, 16, 16, 8, 8),  # windows
    (1, 4, 64, 64, 8, 8),
]


def tokens(batch: int, count: int, heads: int, width: int) -> Tensor:
    """As a projection gives them: heads side by side in memory."""
    return torch.randn(batch, count, heads, width).bfloat16().transpose(1, 2)


@pytest.mark.parametrize("room", [1, 1400, 6000, 1 << 24])
@pytest.mark.parametrize(("batch", "heads", "n", "m", "width", "values"), SHAPES)
def test_blocks_give_what_whole_attention_gives(
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    heads: int,
    n: int,
    m: int,
    width: int,
    values: int,
    room: int,
) -> None:
    monkeypatch.setattr(attention, "ROOM", room)
    torch.manual_seed(0)
    q, k, v = (
        tokens(batch, n, heads, width),
        tokens(batch, m, heads, width),
        tokens(batch, m, heads, values),
    )
    with torch.inference_mode():
        assert in_blocks(q, narrow=False)
        found = attend(q, k, v)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert found.shape == exact.shape and found.dtype == torch.bfloat16
    error = (found.double() - exact).abs().mean() / exact.abs().mean()
    assert error < 0.01


def test_blocks_only_where_they_pay() -> None:
    """Not in float32, which PyTorch's kernel does at full speed if values are wide, nor where gradients flow."""
    q = tokens(1, 4, 1, 8)
    with torch.no_grad():
        assert in_blocks(q, narrow=False) and not in_blocks(q.float(), narrow=False)
        assert in_blocks(q.float(), narrow=True) == packs(q.float())
    assert not in_blocks(q, narrow=True)
    k, v = (tokens(1, 6, 1, 8).requires_grad_() for _ in range(2))
    attend(q, k, v).sum().backward()
    assert k.grad is not None and v.grad is not None


def test_values_may_be_projected_after_they_were_averaged() -> None:
    """Reading narrow memories in bfloat16 is what projecting them first gives in float32."""
    torch.manual_seed(0)
    config = SAM2Config(d_model=64, memory_dim=16)
    layer = RotaryAttention(config, config.memory_dim)
    place = axial_rotation(64, 4, 4, 1, torch.device("cpu"))
    rotations = Rotations(place, place, plain=4)
    q, memory = torch.randn(1, 16, 64), torch.randn(1, 3 * 16 + 4, 16)
    with torch.inference_mode():
        exact = layer.attend(q, memory, memory + 1, rotations)
        coarse = layer.bfloat16().attend(
            q.bfloat16(), memory.bfloat16(), memory.bfloat16() + 1, rotations
        )
    assert (coarse.float() - exact).square().mean().sqrt() < 0.02 * exact.std()


def test_narrow_values_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row, in parts and at once, as exactly as PyTorch's own attention."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, count, width) for count, width in ((50, 32), (301, 32), (301, 8)))
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    for room in (1, 6000, 1 << 24):
        monkeypatch.setattr(attention, "ROOM", room)
        with torch.no_grad():
            assert (attend(q, k, v) - exact).abs().max() < 1e-6


def test_blocks_under_autocast() -> None:
    """As validation runs while training: operations that autocast knows must not change type."""
    q, k, v = (tokens(1, 6, 2, 8) for _ in range(3))
    with torch.no_grad():
        plain = attend(q, k, v)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(attend(q, k, v), plain)
            # memories that are not projected first are float32 still
            assert torch.equal(attend(q, k, v.float()), plain)


def test_parts_are_put_together_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "ROOM", 40)
    sizes = []

    def double(part: Tensor) -> Tensor:
        sizes.append(len(part))
        return 2 * part

    x = torch.arange(23.0)[:, None]
    with torch.no_grad():
        assert torch.equal(in_parts(double, x, 3), 2 * x)
    assert sizes == [3] * 7 + [2]
    in_parts(double, x, 3)  # gradients are on: all at once
    assert sizes[-1] == 23


def weight_of_one(learnt: int, keys: int) -> float:
    """What one key gets of the attention, whose score exceeds those of all the others by `KEY_GAP`."""
    attend_to = ImageAttention(
        SAM2Config(d_model=32, memory_dim=16, decoder_heads=2, decoder_tokens=learnt)
    )
    with torch.no_grad():
        for layer in (attend_to.k_proj, attend_to.v_proj, attend_to.out_proj):
            layer.weight.copy_(torch.eye(*layer.weight.shape))
            layer.bias.zero_()
        attend_to.q_proj.weight.zero_()
        attend_to.q_proj.bias.fill_(KEY_GAP / 8**0.5)  # eight channels a head
        image = torch.zeros(1, keys, 32)
        image[0, 0] = 1
        out: Tensor = attend_to(torch.zeros(1, 1, 32), image, image)
    return float(out[0, 0, 0])


def test_over_large_frames_the_decoder_attends_as_sharply_as_it_learnt() -> None:
    learnt = weight_of_one(1024, 1024)
    for keys in (4096, 9216):
        assert weight_of_one(1024, keys) == pytest.approx(learnt, rel=1e-3)
        assert weight_of_one(0, keys) < 0.5 * learnt  # SAM 2.1 spreads it
    for keys in (64, 1024):
        assert weight_of_one(1024, keys) == weight_of_one(0, keys)

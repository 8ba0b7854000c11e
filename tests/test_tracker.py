"""Tracking: lazy, causal, in memory that does not grow, with the semantics of SAM 2."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from etsam.sam2 import SAM2, Memory, MemoryBank, SAM2Config
from etsam.tracker import encode, track, track_slice

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SIZE = 32
CONFIG = SAM2Config(
    image_size=SIZE,
    trunk="conv",
    widths=(8, 8, 8, 8),
    stages=(1, 1, 1, 1),
    global_blocks=(),
    d_model=32,
    memory_dim=16,
    memory_layers=1,
    memory_feed_forward=32,
    decoder_feed_forward=32,
    decoder_heads=2,
    num_maskmem=4,
    max_pointers=6,
)


class Reel:
    """Frames that note when they are read, and which of them are still alive."""

    def __init__(self, frames: Tensor) -> None:
        self.frames = frames
        self.read: list[int] = []
        self.given: dict[int, weakref.ref[Tensor]] = {}

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, z: int) -> Tensor:
        frame = self.frames[z].clone()
        self.read.append(z)
        self.given[z] = weakref.ref(frame)
        return frame

    def alive(self) -> list[int]:
        return [z for z, frame in self.given.items() if frame() is not None]


@pytest.fixture(scope="module")
def model() -> SAM2:
    torch.manual_seed(0)
    model = SAM2(CONFIG).eval().requires_grad_(False)
    for name, value in model.state_dict().items():
        if "embed" in name or "tpos" in name or "no_obj" in name:
            value.copy_(0.3 * torch.randn(value.shape))
    for layer in model.memory_attention.layers:
        layer.cross_attn_image.out_proj.weight.mul_(10)  # type: ignore[union-attr, operator]
    model.sam_mask_decoder.pred_obj_score_head.layers[2].bias.fill_(5.0)
    return model


def video(length: int) -> Tensor:
    return torch.randn(length, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def square() -> Tensor:
    mask = torch.zeros(SIZE, SIZE)
    mask[8:24, 4:20] = 1
    return mask


def answers(model: SAM2, frames: Tensor, prompts: dict[int, Tensor]) -> list[Tensor]:
    return [logits for _, logits in track(model, frames, prompts)]


def changed(one: list[Tensor], other: list[Tensor]) -> list[int]:
    """Slices whose answers differ."""
    return [z for z, (a, b) in enumerate(zip(one, other, strict=True)) if not torch.equal(a, b)]


def test_slices_come_in_order_at_the_patch_stride(model: SAM2) -> None:
    found = list(track(model, video(5), {0: square()}))
    assert [z for z, _ in found] == list(range(5))
    for _, logits in found:
        assert logits.shape == (SIZE // 4, SIZE // 4)
        assert logits.dtype == torch.float32 and not logits.requires_grad
        assert torch.isfinite(logits).all()


def test_frames_are_read_one_at_a_time(model: SAM2) -> None:
    """Prompted slices first, then each slice when it is asked for, and never twice."""
    reel = Reel(video(6))
    steps = track(model, reel, {4: square(), 0: square()})
    assert reel.read == []
    assert next(steps)[0] == 0 and reel.read == [0, 4]
    assert next(steps)[0] == 1 and reel.read == [0, 4, 1]
    assert next(steps)[0] == 2 and reel.read == [0, 4, 1, 2]
    assert [z for z, _ in steps] == [3, 4, 5]
    assert reel.read == [0, 4, 1, 2, 3, 5]


def test_frames_are_let_go(model: SAM2) -> None:
    reel = Reel(video(8))
    for _ in track(model, reel, {0: square(), 3: square()}):
        assert len(reel.alive()) <= 1
    assert reel.alive() == []


def test_bank_does_not_grow(model: SAM2) -> None:
    bank = MemoryBank.for_config(CONFIG)
    sizes = []
    for _ in track(model, video(30), {0: square(), 20: square()}, bank):
        sizes.append((len(bank.conditioning), len(bank.spatial), len(bank.pointers)))
    assert sizes[0] == (2, 0, 0)
    assert sizes[10] == sizes[-1] == (2, CONFIG.num_maskmem - 1, CONFIG.max_pointers - 1)
    assert [z for z, _ in bank.spatial] == [27, 28, 29]
    assert [z for z, _ in bank.pointers] == [25, 26, 27, 28, 29]
    stored = [m.spatial for m in bank.conditioning.values()] + [s for _, s in bank.spatial]
    assert all(tokens.shape == (1, 4, CONFIG.memory_dim) for tokens in stored)


def test_later_slices_do_not_change_earlier_answers(model: SAM2) -> None:
    frames, other = video(8), video(8)
    other[5] += 1
    plain = answers(model, frames, {0: square()})
    assert changed(plain, answers(model, other, {0: square()})) == [5, 6, 7]


def test_prompted_slices_are_known_to_all(model: SAM2) -> None:
    """A later prompt reaches earlier slices through memory, as in the reference."""
    frames, other = video(8), video(8)
    other[5] += 1
    prompts = {0: square(), 5: square()}
    plain = answers(model, frames, prompts)
    assert changed(plain, answers(model, other, prompts)) == [1, 2, 3, 4, 6, 7]
    assert changed(plain, answers(model, frames, {0: square()})) == list(range(1, 8))


def test_earlier_slices_are_remembered(model: SAM2) -> None:
    """For six slices by their pointers here, then only through what followed."""
    frames, other = video(4), video(4)
    other[1] += 1
    plain = answers(model, frames, {0: square()})
    assert changed(plain, answers(model, other, {0: square()})) == [1, 2, 3]


def test_prompt_is_the_answer_of_its_slice(model: SAM2) -> None:
    mask = square()
    found = answers(model, video(3), {1: mask.bool()})
    assert torch.equal(found[1] > 0, mask[::4, ::4] > 0)
    assert torch.allclose(found[1].max(), torch.tensor(10.0))
    empty = answers(model, video(3), {1: torch.zeros(SIZE, SIZE)})
    assert torch.allclose(empty[1], torch.tensor(-10.0))


def test_prompts_make_a_difference(model: SAM2) -> None:
    frames = video(4)
    runs = [
        answers(model, frames, prompts)
        for prompts in ({}, {0: square()}, {0: torch.zeros(SIZE, SIZE)})
    ]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert changed(runs[a], runs[b]) == [0, 1, 2, 3]


def test_tracking_step_by_step(model: SAM2) -> None:
    """The public steps add up to `track`, so that a viewer may show one slice at a time."""
    frames, bank = video(4), MemoryBank.for_config(CONFIG)
    whole = answers(model, frames, {})
    for z in range(4):
        logits = track_slice(model, encode(model, frames[z]), bank, z, 4)
        assert torch.equal(logits[0], whole[z])


def test_volumes_side_by_side_are_tracked_as_each_alone(model: SAM2) -> None:
    both = [torch.stack(pair) for pair in zip(video(4), reversed(video(4)), strict=True)]
    prompts = {0: square()}
    together = list(track(model, both, prompts))  # type: ignore[arg-type]
    assert together[0][1].shape[0] == 2
    for number in range(2):
        alone = track(model, [frames[number] for frames in both], prompts)  # type: ignore[arg-type]
        for (_, many), (_, one) in zip(together, alone, strict=True):
            torch.testing.assert_close(many[number], one, rtol=1e-4, atol=1e-4)


def test_bank_is_gone_on_with(model: SAM2) -> None:
    """A bank with a memory before slice 0 conditions a volume without prompts of its own."""
    frames = video(3)
    before = encode(model, frames[0])
    with torch.inference_mode():
        output = model.answer_with_mask(before, square()[None, None])
        memory = model.remember(before, output, binary=True)
    bank = MemoryBank.for_config(CONFIG)
    bank.conditioning[-1] = memory
    going_on = [logits for _, logits in track(model, frames, {}, bank)]
    assert changed(going_on, answers(model, frames, {})) == [0, 1, 2]
    assert list(bank.conditioning) == [-1]


def test_memories_are_rounded(model: SAM2) -> None:
    """To bfloat16, as SAM 2's video predictor keeps them: the published run needs it."""
    bank = MemoryBank.for_config(CONFIG)
    list(track(model, video(3), {0: square()}, bank))
    kept = [bank.conditioning[0].spatial, *(tokens for _, tokens in bank.spatial)]
    for tokens in kept:
        assert tokens.dtype == torch.float32
        assert torch.equal(tokens, tokens.bfloat16().float())
    pointers = [bank.conditioning[0].pointer, *(pointer for _, pointer in bank.pointers)]
    assert not any(torch.equal(p, p.bfloat16().float()) for p in pointers)


def clone(model: SAM2) -> SAM2:
    copy = SAM2(CONFIG).eval().requires_grad_(False)
    copy.load_state_dict(model.state_dict())
    return copy


@pytest.mark.parametrize("device", DEVICES)
def test_frames_are_brought_to_the_network(model: SAM2, device: str) -> None:
    """float32 frames and prompts on the CPU, whatever the network's precision and device."""
    moved = clone(model).to(device, torch.bfloat16)
    bank = MemoryBank.for_config(CONFIG)
    found = dict(track(moved, video(3), {0: square()}, bank))
    assert all(logits.dtype == torch.float32 for logits in found.values())
    assert all(logits.device.type == device for logits in found.values())
    assert bank.conditioning[0].spatial.dtype == torch.bfloat16
    exact = answers(model, video(3), {0: square()})
    assert (found[2].cpu() - exact[2]).abs().max() < 0.2 * exact[2].abs().max()


def test_nothing_stays_behind_on_the_cpu(model: SAM2) -> None:
    """On the meta device any tensor made on another one would raise."""
    found = list(track(clone(model).to("meta"), video(3), {0: square()}))
    assert {logits.device.type for _, logits in found} == {"meta"}


def tensors(bank: MemoryBank) -> Iterator[Tensor]:
    for memory in bank.conditioning.values():
        assert isinstance(memory, Memory)
        yield from (memory.spatial, memory.pointer)
    for _, tensor in (*bank.spatial, *bank.pointers):
        yield tensor


def test_bank_holds_no_views_of_larger_tensors(model: SAM2) -> None:
    """A view would keep the whole of what it shows part of."""
    bank = MemoryBank.for_config(CONFIG)
    list(track(model, video(8), {0: square()}, bank))
    held = list(tensors(bank))
    assert len(held) == 2 + CONFIG.num_maskmem - 1 + CONFIG.max_pointers - 1
    for tensor in held:
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()

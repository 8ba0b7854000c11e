"""The network: published sizes, any frame shape, gradients, memory."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from etsam.sam2 import PRESETS, SAM2, Features, Memory, MemoryBank, Output, SAM2Config
from etsam.sam2.hiera import partition, unpartition
from etsam.sam2.positions import axial_rotation, rotate, sine_map
from etsam.tracker import track

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SMALL = SAM2Config(
    image_size=64,
    embed_dim=8,
    num_heads=1,
    stages=(1, 1, 2, 1),
    global_blocks=(3,),
    window_spec=(4, 2, 4, 2),
    pos_embed_size=(4, 4),
    d_model=32,
    memory_dim=16,
    memory_layers=1,
    memory_feed_forward=32,
    decoder_feed_forward=32,
    decoder_heads=2,
)
COMPACT = replace(SMALL, in_channels=5, trunk="conv", widths=(8, 8, 16, 16), global_blocks=())
CONFIGS = pytest.mark.parametrize("config", [SMALL, COMPACT], ids=["hiera", "conv"])
NO_MEMORY = MemoryBank()


def network(config: SAM2Config, object_bias: float = 5.0) -> SAM2:
    torch.manual_seed(0)
    model = SAM2(config).eval().requires_grad_(False)
    for name, value in model.state_dict().items():
        if "embed" in name or "tpos" in name or "no_obj" in name:
            value.copy_(0.3 * torch.randn(value.shape))
    model.sam_mask_decoder.pred_obj_score_head.layers[2].bias.fill_(object_bias)
    return model


def random_frames(config: SAM2Config, height: int, width: int, count: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, config.in_channels, height, width, generator=generator)


def first_answer(model: SAM2, features: Features, **prompt: Tensor | bool) -> Output:
    points = prompt.get("points")
    labels = prompt.get("labels")
    mask = prompt.get("mask")
    return model.decode(
        model.condition(features.image, NO_MEMORY, 0, 1),
        features,
        points=(points, labels) if isinstance(points, Tensor) else None,  # type: ignore[arg-type]
        mask=mask if isinstance(mask, Tensor) else None,
        multimask=bool(prompt.get("multimask", True)),
    )


@pytest.mark.parametrize(
    ("name", "millions"), [("tiny", 38.9), ("small", 46.0), ("base_plus", 80.8), ("large", 224.4)]
)
def test_published_sizes(name: str, millions: float) -> None:
    """Parameters as in the model zoo of SAM 2.1, which cuts off after one decimal."""
    with torch.device("meta"):
        model = SAM2(PRESETS[name])
    count = sum(p.numel() for p in model.parameters())
    assert millions <= count / 1e6 < millions + 0.1
    assert {p.device.type for p in model.parameters()} == {"meta"}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_answer_at_their_size(name: str) -> None:
    """Shapes only: nothing is computed on the meta device."""
    with torch.device("meta"):
        model = SAM2(PRESETS[name])
        features = model.encode(torch.empty(1, 3, 1024, 1024))
        output = first_answer(model, features)
        memory = model.remember(features, output)
    assert [tuple(f.shape[1:]) for f in features.high_res] == [(32, 256, 256), (64, 128, 128)]
    assert features.image.shape == (1, 256, 64, 64)
    assert output.logits.shape == (1, 1, 256, 256)
    assert memory.spatial.shape == (1, 64 * 64, 64)
    assert memory.pointer.shape == (1, 256)


@pytest.mark.parametrize(
    "change",
    [
        {"trunk": "vit"},
        {"stages": (1, 1, 1)},
        {"stages": (1, 0, 1, 1)},
        {"widths": (8, 8, 8, 8)},
        {"trunk": "conv"},
        {"image_size": 100},
        {"d_model": 30},
        {"memory_dim": 24},
        {"memory_pool": 0},
        {"num_maskmem": 1},
        {"decoder_tokens": -1},
        {"settling": 0},
        {"embed_dim": 9, "num_heads": 2},
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(change)) + "|widths"):
        replace(SMALL, **change)  # type: ignore[arg-type]


@CONFIGS
def test_config_survives_json(config: SAM2Config) -> None:
    assert SAM2Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@CONFIGS
@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 96), (128, 64)])
def test_any_frame_shape(config: SAM2Config, height: int, width: int) -> None:
    model = network(config)
    features = model.encode(random_frames(config, height, width))
    bank = MemoryBank.for_config(config)
    output = first_answer(model, features)
    bank.remember(0, model.remember(features, output))
    conditioned = model.condition(features.image, bank, 1, 2)
    again = model.decode(conditioned, features)
    assert conditioned.shape == features.image.shape == (1, 32, height // 16, width // 16)
    assert again.logits.shape == (1, 1, height // 4, width // 4)
    assert torch.isfinite(again.logits).all() and again.logits.std() > 0
    mask = torch.zeros(1, 1, height, width)
    mask[..., :16, :] = 1
    prompted = model.answer_with_mask(features, mask)
    assert torch.equal(prompted.logits[0, 0] > 0, mask[0, 0, ::4, ::4] > 0)


def test_transposed_prompts_and_frames_are_told_apart() -> None:
    """(x, y) of a point is (column, row): the same point on a transposed grid is another one."""
    model = network(SMALL)
    features = model.encode(random_frames(SMALL, 32, 96))
    label = torch.ones(1, 1, dtype=torch.long)
    sparse = model.sam_prompt_encoder.sparse
    position = model.sam_prompt_encoder.pe_layer.grid(32, 96)[0]
    token = sparse(torch.tensor([[[70.0, 9.0]]]), label, (32, 96))[0, 0]
    place = token - model.sam_prompt_encoder.point_embeddings[1].weight[0]
    assert torch.allclose(place, position[:, 9, 70], atol=1e-4)
    assert features.image.shape[-2:] == (2, 6)


def test_conv_trunk_moves_with_its_frame() -> None:
    """No absolute position: inside, features of a shifted frame are the shifted features."""
    trunk = network(COMPACT).image_encoder.trunk
    frames = random_frames(COMPACT, 448, 448)
    shifted = trunk(frames.roll((32, 32), (2, 3)))
    for level, (still, moved) in enumerate(zip(trunk(frames), shifted, strict=True)):
        stride, rim = 4 * 2**level, 192 // (4 * 2**level)
        expected = still.roll((32 // stride, 32 // stride), (2, 3))
        inner = (..., slice(rim, -rim), slice(rim, -rim))
        assert torch.allclose(moved[inner], expected[inner], atol=1e-5)


def test_windows_are_put_back() -> None:
    x = torch.randn(2, 9, 10, 3)
    windows = partition(x, 4)
    assert windows.shape == (2 * 3 * 3, 4, 4, 3)
    assert torch.equal(unpartition(windows, 9, 10), x)


def test_global_block_sees_beyond_its_window() -> None:
    """One changed corner reaches the far corner only through a block without windows."""
    changed = random_frames(SMALL, 64, 64)
    changed[..., :4, :4] += 3
    reached = []
    for blocks in [(), (3,)]:
        trunk = network(replace(SMALL, global_blocks=blocks, window_spec=(2, 2, 2, 2)))
        levels = [trunk.image_encoder.trunk(f)[2] for f in (random_frames(SMALL, 64, 64), changed)]
        reached.append(bool((levels[0] - levels[1])[..., -1, -1].abs().max() > 0))
    assert reached == [False, True]


def test_frames_of_a_batch_do_not_mix() -> None:
    model = network(SMALL)
    frames = random_frames(SMALL, 64, 64, 2)
    points = torch.tensor([[[5.0, 9.0], [50.0, 40.0]], [[30.0, 30.0], [2.0, 60.0]]])
    labels = torch.tensor([[1, 0], [1, 1]])
    both = first_answer(model, model.encode(frames), points=points, labels=labels)
    for i in range(2):
        own = slice(i, i + 1)
        one = first_answer(model, model.encode(frames[own]), points=points[own], labels=labels[own])
        assert torch.allclose(both.logits[own], one.logits, atol=1e-4)
        assert torch.allclose(both.pointer[own], one.pointer, atol=1e-4)


def test_points_and_boxes() -> None:
    model = network(SMALL)
    features = model.encode(random_frames(SMALL, 64, 64))
    points = torch.tensor([[[5.0, 9.0], [50.0, 40.0], [10.0, 10.0], [60.0, 50.0]]])
    labels = torch.tensor([[1, 0, 2, 3]])  # two points, then the corners of a box
    both = first_answer(model, features, points=points, labels=labels).logits
    order = torch.tensor([2, 3, 1, 0])
    shuffled = first_answer(model, features, points=points[:, order], labels=labels[:, order])
    assert torch.allclose(both, shuffled.logits, atol=1e-4)  # a set of prompts has no order
    for other in (labels.flip(1), torch.tensor([[1, 1, 2, 3]]), torch.tensor([[1, 0, 2, 2]])):
        changed = first_answer(model, features, points=points, labels=other).logits
        assert (changed - both).abs().max() > 1e-3
    alone = first_answer(model, features, points=points[:, 2:], labels=labels[:, 2:]).logits
    assert (alone - both).abs().max() > 1e-3
    nowhere = torch.full((1, 1), -1)
    padded = first_answer(model, features, points=points[:, :1], labels=nowhere).logits
    assert torch.allclose(padded, first_answer(model, features).logits, atol=1e-4)


def test_best_candidate_answers() -> None:
    model = network(SMALL)
    features = model.encode(random_frames(SMALL, 64, 64, 3))
    output = first_answer(model, features)
    assert output.decoded is not None
    best = output.decoded.quality.argmax(dim=1)
    for i, choice in enumerate(best):
        assert torch.equal(output.logits[i, 0], output.decoded.masks[i, choice])
    single = first_answer(model, features, multimask=False)
    assert single.decoded is not None and single.decoded.masks.shape[1] == 1


def test_a_change_of_candidate_settles() -> None:
    """One part in `settling` of the way from what answered before to the best, each volume by itself."""
    model = network(replace(SMALL, settling=4))
    features = model.encode(random_frames(SMALL, 64, 64, 2))
    conditioned = model.condition(features.image, NO_MEMORY, 0, 1)
    first = model.decode(conditioned, features)
    assert first.decoded is not None and first.choice is not None
    masks, best = first.decoded.masks, first.decoded.quality.argmax(dim=1)
    assert torch.equal(first.choice.argmax(dim=1), best) and first.choice.max(dim=1)[0].eq(1).all()
    assert torch.equal(first.logits, masks[range(2), best][:, None])
    before = torch.tensor([[1.0, 0, 0], [0, 0.5, 0.5]])
    later = model.decode(conditioned, features, before=before)
    wanted = 0.75 * before + 0.25 * first.choice
    assert later.choice is not None and torch.allclose(later.choice, wanted)
    mean = (wanted[..., None, None] * masks).sum(dim=1, keepdim=True)
    assert torch.allclose(later.logits, mean, atol=1e-5)
    assert model.decode(conditioned, features, multimask=False).choice is None
    assert network(SMALL).decode(conditioned, features, before=before).choice is None


UNUSED = {"no_mem_pos_enc"}
"""In published checkpoints, but not read by SAM 2.1 (the embedding is added to the image)."""


@CONFIGS
def test_gradients_reach_every_parameter(config: SAM2Config) -> None:
    """Two frames in a batch of two, one without an object, so that absence is learned as well."""
    model = network(config).train().requires_grad_(True)
    frames = random_frames(config, 64, 64, 4)
    first, second = model.encode(frames[:2]), model.encode(frames[2:])
    points = torch.tensor([[[5.0, 9.0], [50.0, 40.0], [10.0, 10.0], [60.0, 50.0]]]).expand(
        2, -1, -1
    )
    labels = torch.tensor([[1, 0, 2, 3]]).expand(2, -1)
    clicked = first_answer(model, first, points=points, labels=labels, multimask=False)
    mask = torch.zeros(2, 1, 64, 64)
    mask[0, :, 20:40, 8:50] = 1
    bank = MemoryBank.for_config(config)
    bank.conditioning[0] = model.remember(first, model.answer_with_mask(first, mask))
    tracked = model.decode(model.condition(second.image, bank, 1, 2), second)
    loss = torch.zeros(())
    for output in (clicked, tracked):
        assert output.decoded is not None
        loss = loss + output.decoded.masks.square().mean() + output.decoded.quality.mean()
        loss = loss + output.object_score.mean()
    loss.backward()
    silent = set()
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            silent.add(name)
        else:
            assert torch.isfinite(parameter.grad).all(), name
            if not name.endswith("k_proj.bias"):  # softmax does not see a shift of all keys
                assert parameter.grad.abs().max() > 0, name
    assert silent == UNUSED


@pytest.mark.parametrize(("config", "tokens"), [(SMALL, 6), (COMPACT, 2)], ids=["hiera", "conv"])
def test_pointers_of_later_conditioning_slices_count_in_training(
    config: SAM2Config, tokens: int
) -> None:
    """As in SAM 2; networks of ours learn as they track."""
    model = network(config)
    bank = MemoryBank.for_config(config)
    for z in (0, 5, 9):
        bank.conditioning[z] = Memory(torch.randn(1, 4, 16), torch.randn(1, 32))
    assert model._pointers(bank, 2, 10)[0].shape[1] == 2
    assert model.train()._pointers(bank, 2, 10)[0].shape[1] == tokens


def test_training_after_tracking() -> None:
    """Position maps cached in inference mode must not leak into training."""
    config = replace(SMALL, image_size=96)  # a size no other test has cached
    model = network(config)
    frames = random_frames(config, 96, 96, 3)
    list(track(model, frames, {0: torch.zeros(96, 96)}))
    model.requires_grad_(True)
    features = model.encode(frames[:1])
    bank = MemoryBank.for_config(config)
    bank.remember(0, model.remember(features, first_answer(model, features)))
    model.condition(features.image, bank, 1, 2).sum().backward()
    assert model.maskmem_tpos_enc.grad is not None


@pytest.mark.parametrize("pool", [1, 2])
def test_rotation_depends_on_distance_only(pool: int) -> None:
    """Query and key score by their displacement, in pixels of the unpooled map."""
    side, d = 8, 16
    q, k = torch.randn(2, d)
    queries = rotate(q.expand(1, side * side, d), axial_rotation(d, side, side, 1, q.device))
    small = side // pool
    keys = rotate(k.expand(1, small * small, d), axial_rotation(d, small, small, pool, q.device))
    score = (queries[0] @ keys[0].T).view(side, side, small, small)
    for y, x in [(0, 0), (2, 1), (1, 2)]:
        moved = score[pool * y :, pool * x :, y:, x:]
        still = score[: side - pool * y, : side - pool * x, : small - y, : small - x]
        assert torch.allclose(moved, still, atol=1e-4)
    assert score[0, 0].std() > 0.1


def test_rotation_turns_every_map_alike_and_leaves_plain_tokens() -> None:
    turns = axial_rotation(16, 3, 4, 1, torch.device("cpu"))
    x = torch.randn(2, 2 * 12 + 5, 16)
    turned = rotate(x, turns, plain=5)
    assert torch.equal(turned[:, -5:], x[:, -5:])
    for first in (0, 12):
        assert torch.allclose(
            turned[:, first : first + 12], rotate(x[:, first : first + 12], turns)
        )
    lengths = turned[:, :24].unflatten(-1, (-1, 2)).norm(dim=-1)
    assert torch.allclose(lengths, x[:, :24].unflatten(-1, (-1, 2)).norm(dim=-1), atol=1e-5)


def test_position_maps_are_normalised() -> None:
    """The last row and column stand at a full turn whatever the size."""
    device = torch.device("cpu")
    small, large = sine_map(16, 4, 6, device), sine_map(16, 8, 12, device)
    assert small.shape == (1, 16, 4, 6) and small.abs().max() <= 1
    assert torch.allclose(small[..., -1, -1], large[..., -1, -1], atol=1e-5)
    assert torch.allclose(small[..., 1, 2], large[..., 3, 5], atol=1e-5)


@pytest.mark.parametrize("pool", [1, 2, 4])
def test_memory_pooling(pool: int) -> None:
    config = replace(COMPACT, memory_pool=pool)
    model = network(config)
    features = model.encode(random_frames(config, 64, 128))
    bank = MemoryBank.for_config(config)
    memory = model.remember(features, first_answer(model, features))
    full = network(COMPACT).remember(features, first_answer(model, features)).spatial
    assert memory.spatial.shape == (1, 4 * 8 // pool**2, config.memory_dim)
    grid = full.view(1, 4 // pool, pool, 8 // pool, pool, -1).mean(dim=(2, 4))
    assert torch.allclose(memory.spatial, grid.flatten(1, 2), atol=1e-5)
    bank.remember(0, memory)
    bank.conditioning[-1] = memory
    assert model.condition(features.image, bank, 1, 2).shape == features.image.shape


def test_pooled_attention_changes_squares_of_tokens_alike() -> None:
    """A frame keeps its own detail: what memory adds is the same within each square."""
    model = network(replace(COMPACT, memory_pool=2))
    attention = model.memory_attention
    attention.norm = torch.nn.Identity()  # type: ignore[assignment]
    image = model.encode(random_frames(COMPACT, 64, 128)).image
    bank = MemoryBank(conditioning={5: Memory(torch.randn(1, 8, 16), torch.zeros(1, 32))})
    placed = image + 0.1 * sine_map(COMPACT.d_model, 4, 8, image.device)
    added = model.condition(image, bank, 0, 9) - placed
    squares = added.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
    assert squares.std() > 0.01
    assert torch.allclose(squares, squares[..., :1].expand_as(squares), atol=1e-5)


def test_coarse_maps_flow_back_into_fine_ones() -> None:
    """With a way back down, a far pixel moves the finest map; without, only near ones do."""
    frames = random_frames(COMPACT, 128, 128)
    other = frames.clone()
    other[..., 112:, 112:] += 1.0
    reach = []
    for blocks in (0, 1):
        config = replace(COMPACT, top_down_blocks=blocks)
        trunk = network(config).image_encoder.trunk
        change = trunk(other)[0] - trunk(frames)[0]
        reach.append(float(change[..., :8, :8].abs().max()))
    assert reach[0] == 0 and reach[1] > 0

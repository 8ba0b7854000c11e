"""The network against transformers, part by part, with the same random weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import etsam.tracker
from etsam.sam2 import (
    BASE_PLUS,
    NO_OBJECT_LOGIT,
    SAM2,
    Features,
    Memory,
    MemoryBank,
    Output,
    SAM2Config,
)
from etsam.tracker import track
from sam2_oracle import Oracle, difference, lively, make_oracle, new_session, propagate, translate

TOLERANCE = 1e-4
"""Largest difference allowed, in units of the largest value of the oracle."""
SIZE = 128
CONFIG = SAM2Config(
    image_size=SIZE,
    embed_dim=16,
    num_heads=1,
    stages=(1, 2, 2, 1),
    global_blocks=(4,),
    window_spec=(8, 4, 6, 4),  # 6 does not divide its level of 8 tokens: windows are padded
    pos_embed_size=(7, 7),
    d_model=128,
    memory_dim=64,  # fixed in transformers; half of d_model, so that pointers are cut in two
    memory_layers=2,
    memory_feed_forward=128,
    decoder_feed_forward=128,
    decoder_heads=4,
)


@pytest.fixture(scope="module", autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model() -> SAM2:
    return lively(CONFIG)


@pytest.fixture(scope="module")
def oracle(model: SAM2) -> Oracle:
    return make_oracle(model)


def video(length: int, size: int = SIZE) -> Tensor:
    return torch.randn(length, 3, size, size, generator=torch.Generator().manual_seed(1))


def two_blobs() -> Tensor:
    mask = torch.zeros(SIZE, SIZE)
    mask[20:77, 30:101] = 1
    mask[90:97, 5:60] = 1
    return mask


def dots() -> Tensor:
    """Dots so small that they vanish in the low-resolution logits."""
    mask = torch.zeros(SIZE, SIZE)
    mask[::9, ::7] = 1
    return mask


def to_map(tokens: Tensor, side: int) -> Tensor:
    """transformers' (h * w, b, c) as (b, c, h, w)."""
    return torch.unflatten(tokens.permute(1, 2, 0), 2, (side, side))


def test_parameters_correspond_one_to_one(model: SAM2, oracle: Oracle) -> None:
    names = translate(model.state_dict())
    assert set(names) == set(oracle.state_dict())
    counted = sum(p.numel() for p in model.parameters())
    assert counted == sum(p.numel() for p in oracle.parameters())
    assert all(p.abs().max() > 0 for p in model.parameters())


def test_trunk_and_pyramid(model: SAM2, oracle: Oracle) -> None:
    frames = video(2)
    trunk = model.image_encoder.trunk(frames)
    expected = oracle.vision_encoder.backbone(frames).intermediate_hidden_states
    assert [len(trunk), len(expected)] == [4, 4]
    for ours, theirs in zip(trunk, expected, strict=True):
        assert difference(ours, theirs.permute(0, 3, 1, 2)) < TOLERANCE
    pyramid = [model.image_encoder.neck(trunk, level) for level in range(3)]
    for ours, theirs in zip(pyramid, oracle.vision_encoder(frames).fpn_hidden_states, strict=True):
        assert difference(ours, theirs) < TOLERANCE
        assert difference(ours[:1], ours[1:]) > 0.1  # the frames are told apart


def test_image_features(model: SAM2, oracle: Oracle) -> None:
    frames = video(1)
    features = model.encode(frames)
    expected = oracle.get_image_features(frames).fpn_hidden_states
    for ours, theirs in zip([*features.high_res, features.image], expected, strict=True):
        assert difference(ours, to_map(theirs, ours.shape[-1])) < TOLERANCE


POINTS = torch.tensor([[[20.0, 33.0], [100.0, 5.5], [64.0, 90.0]]])
SIGNS = torch.tensor([[1, 0, 1]])
BOX = torch.tensor([[[10.0, 12.0], [90.0, 70.0]]])
CORNERS = torch.tensor([[2, 3]])
PROMPTS: dict[str, dict[str, Any]] = {
    "none": {},
    "point": {"points": (POINTS[:, :1], SIGNS[:, :1])},
    "points": {"points": (POINTS, SIGNS)},
    "box": {"box": BOX},
    "box and points": {"points": (POINTS, SIGNS), "box": BOX},
    "mask": {"mask": 8 * torch.sin(torch.arange(32 * 32.0)).view(1, 1, 32, 32)},
    "large mask": {"mask": 20 * two_blobs()[None, None] - 10},
    "mask and points": {"points": (POINTS, SIGNS), "mask": 20 * two_blobs()[None, None] - 10},
}


def our_decode(model: SAM2, features: Features, multimask: bool, **prompt: Any) -> Output:
    points, box = prompt.get("points"), prompt.get("box")
    if box is not None:  # corners are points with labels of their own
        first = (BOX[:, :0], CORNERS[:, :0]) if points is None else points
        points = (torch.cat((first[0], box), dim=1), torch.cat((first[1], CORNERS), dim=1))
    conditioned = features.image + model.no_mem_embed.view(1, -1, 1, 1)
    return model.decode(
        conditioned, features, points=points, mask=prompt.get("mask"), multimask=multimask
    )


def their_decode(
    oracle: Oracle, features: Features, multimask: bool, **prompt: Any
) -> tuple[Any, tuple[Tensor, ...]]:
    """The oracle's answer, and masks, IoU, tokens and score of all candidates."""
    candidates: list[tuple[Tensor, ...]] = []
    hook = oracle.mask_decoder.register_forward_hook(lambda m, i, out: candidates.append(out))
    points, box = prompt.get("points"), prompt.get("box")
    if points and box is not None:  # transformers cannot take both, but corners are points too
        points, box = (torch.cat((points[0], box), 1), torch.cat((points[1], CORNERS), 1)), None
    conditioned = features.image + oracle.no_memory_embedding.view(1, -1, 1, 1)
    answer = oracle._single_frame_forward(
        input_points=None if points is None else points[0][:, None],
        input_labels=None if points is None else points[1][:, None],
        input_boxes=None if box is None else box.flatten(1)[:, None],
        input_masks=prompt.get("mask"),
        image_embeddings=[*features.high_res, conditioned],
        multimask_output=multimask,
    )
    hook.remove()
    return answer, candidates[0]


@pytest.mark.parametrize("multimask", [True, False], ids=["three", "single"])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_decoding(model: SAM2, oracle: Oracle, prompt: dict[str, Any], multimask: bool) -> None:
    features = model.encode(video(1))
    output = our_decode(model, features, multimask, **prompt)
    answer, (masks, quality, tokens, score) = their_decode(oracle, features, multimask, **prompt)
    decoded = output.decoded
    assert decoded is not None
    assert decoded.masks.shape[1] == (3 if multimask else 1)
    assert difference(decoded.masks, masks) < TOLERANCE
    assert difference(decoded.quality, quality) < TOLERANCE
    assert difference(decoded.tokens, tokens) < TOLERANCE
    assert difference(decoded.object_score, score) < TOLERANCE
    assert difference(output.logits, answer.pred_masks) < TOLERANCE
    assert difference(output.pointer, answer.object_pointer) < TOLERANCE
    assert difference(output.object_score, answer.object_score_logits) < TOLERANCE
    assert output.object_score > 1  # lively: an object, edges, and three opinions
    assert 0.05 < (output.logits > 0).float().mean() < 0.95
    assert not multimask or decoded.masks.std(dim=1).mean() > 0.5


def test_every_prompt_has_its_own_answer(model: SAM2) -> None:
    features = model.encode(video(1))
    answers = [our_decode(model, features, True, **p).logits for p in PROMPTS.values()]
    for index, one in enumerate(answers):
        assert all(difference(one, other) > 1e-2 for other in answers[:index])


def test_absent_object() -> None:
    silent = lively(CONFIG, object_bias=-20.0)
    features = silent.encode(video(1))
    output = our_decode(silent, features, True)
    answer, _ = their_decode(make_oracle(silent), features, True)
    assert (output.logits == NO_OBJECT_LOGIT).all()
    assert (answer.pred_masks == NO_OBJECT_LOGIT).all()
    assert torch.equal(output.pointer, silent.no_obj_ptr)
    assert difference(output.pointer, answer.object_pointer) == 0


@pytest.mark.parametrize("seen_by_decoder", [True, False])
@pytest.mark.parametrize("mask", [two_blobs(), dots(), torch.zeros(SIZE, SIZE)])
def test_mask_prompt(mask: Tensor, seen_by_decoder: bool) -> None:
    model = lively(CONFIG, object_bias=5.0 if seen_by_decoder else -20.0)
    oracle = make_oracle(model)
    features, prompt = model.encode(video(1)), mask[None, None]
    output = model.answer_with_mask(features, prompt)
    answer = oracle._use_mask_as_output(features.image, features.high_res, prompt)
    assert difference(output.logits, answer.pred_masks) < TOLERANCE
    assert difference(output.pointer, answer.object_pointer) < TOLERANCE
    assert difference(output.object_score, answer.object_score_logits) < TOLERANCE
    pointed = not torch.equal(output.pointer, model.no_obj_ptr)
    assert pointed == (seen_by_decoder and bool(mask.any()))


@pytest.mark.parametrize("present", [True, False], ids=["present", "absent"])
@pytest.mark.parametrize("binary", [True, False], ids=["prompted", "tracked"])
def test_memory_features(model: SAM2, oracle: Oracle, binary: bool, present: bool) -> None:
    features = model.encode(video(1))
    output = our_decode(model, features, True)
    output = output._replace(object_score=torch.tensor([[3.0 if present else -3.0]]))
    memory = model.remember(features, output, binary=binary)
    encoded: list[Tensor] = []  # the embedding of absence is added to it in place
    hook = oracle.memory_encoder.register_forward_hook(lambda m, i, out: encoded.append(out[0]))
    rounded, position = oracle._encode_new_memory(
        current_vision_feats=features.image.flatten(2).permute(2, 0, 1),
        pred_masks_high_res=F.interpolate(output.logits, (SIZE, SIZE), mode="bilinear"),
        object_score_logits=output.object_score[None],
        is_mask_from_pts=binary,
    )
    hook.remove()
    assert difference(memory.spatial, encoded[0].flatten(2).transpose(1, 2)) < TOLERANCE
    assert difference(model._memory_position(features.image), position.transpose(0, 1)) < TOLERANCE
    kept = etsam.tracker._rounded(memory).spatial
    assert difference(kept, rounded.transpose(0, 1)) < 2**-8  # a last bit may fall the other way
    assert difference(kept, memory.spatial) > 1e-4
    other = output._replace(logits=output.logits.flip(-1))
    assert difference(model.remember(features, other, binary=binary).spatial, memory.spatial) > 0.01
    if not present:
        there = output._replace(object_score=-output.object_score)
        added = memory.spatial - model.remember(features, there, binary=binary).spatial
        assert torch.allclose(added, model.no_obj_embed_spatial, atol=1e-5)


@pytest.mark.parametrize(
    ("z", "length"), [(0, 3), (1, 3), (2, 3), (1, 40), (9, 10), (9, 40), (26, 40)]
)
@pytest.mark.parametrize("training", [False, True])
def test_conditioned_features(
    model: SAM2,
    oracle: Oracle,
    monkeypatch: pytest.MonkeyPatch,
    z: int,
    length: int,
    training: bool,
) -> None:
    """Prompts on slices 0, 5 and 30 and memories of the other slices before z, in both banks."""
    for network in (model, oracle):  # not its parts, which drop at random there
        monkeypatch.setattr(network, "training", training)
    random = torch.Generator().manual_seed(2)
    side, d = SIZE // CONFIG.token_stride, CONFIG.d_model
    frames = video(1)
    session = new_session(frames.expand(length, -1, -1, -1))
    bank = MemoryBank.for_config(CONFIG)
    maps = torch.zeros(1, CONFIG.memory_dim, side, side)
    position = oracle.memory_encoder.position_encoding(maps.shape, maps.device, maps.dtype)
    prompted = (0, 5, 30)
    for past in sorted({*prompted, *range(z)}):
        spatial = torch.randn(1, side * side, CONFIG.memory_dim, generator=random)
        memory = Memory(spatial, torch.randn(1, d, generator=random))
        if past in prompted:
            bank.conditioning[past] = memory
        else:
            bank.remember(past, memory)
        key = "cond_frame_outputs" if past in prompted else "non_cond_frame_outputs"
        session.output_dict_per_obj[0][key][past] = {
            "maskmem_features": spatial.transpose(0, 1),
            "maskmem_pos_enc": position.flatten(2).permute(2, 0, 1),
            "object_pointer": memory.pointer[None],
        }
    seen = oracle.get_image_features(frames)
    theirs = oracle._prepare_memory_conditioned_features(
        session, z, 0, False, seen.fpn_hidden_states[-1], seen.fpn_position_encoding[-1], length
    )
    image = model.encode(frames).image
    ours = model.condition(image, bank, z, length)
    assert difference(ours, theirs) < TOLERANCE
    assert difference(ours, model.condition(image, bank, z + 1, length)) > 1e-3
    empty = model.condition(image, MemoryBank.for_config(CONFIG), z, length)
    assert difference(empty, image + oracle.no_memory_embedding.view(1, -1, 1, 1)) < TOLERANCE


def test_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten slices with prompts on 0 and 4; from slice 8 on the oldest memories are forgotten.

    A random network amplifies: 1e-6 on its input becomes 1e-4 after six slices. Hence double
    precision, and no rounding of memories to bfloat16 on either side.
    """
    monkeypatch.setattr(torch, "bfloat16", torch.float64)
    model = lively(CONFIG).double()
    oracle = make_oracle(model).double()
    frames, prompts = video(10).double(), {0: two_blobs(), 4: dots()}
    expected, session = propagate(oracle, frames, prompts)
    bank = MemoryBank.for_config(CONFIG)
    answers = [logits for _, logits in track(model, frames, prompts, bank)]
    for ours, theirs in zip(answers, expected, strict=True):
        assert difference(ours, theirs) < TOLERANCE
    stored = session.output_dict_per_obj[0]
    memories = {**stored["cond_frame_outputs"], **stored["non_cond_frame_outputs"]}
    for z, memory in bank.conditioning.items():
        assert difference(memory.spatial, memories[z]["maskmem_features"].transpose(0, 1)) < (
            TOLERANCE
        )
        assert difference(memory.pointer, memories[z]["object_pointer"]) < TOLERANCE
    for z, spatial in bank.spatial:
        assert difference(spatial, memories[z]["maskmem_features"].transpose(0, 1)) < TOLERANCE
    for z, pointer in bank.pointers:
        assert difference(pointer, memories[z]["object_pointer"]) < TOLERANCE
    tracked = [answers[z] for z in range(10) if z not in prompts]
    assert all(0.05 < (logits > 0).float().mean() < 0.95 for logits in tracked)
    forgetful = [logits for _, logits in track(model, frames, {4: dots()})]
    assert difference(forgetful[9], answers[9]) > 1e-3


def test_tracking_with_rounded_memories(model: SAM2, oracle: Oracle) -> None:
    frames, prompts = video(3), {0: two_blobs()}
    expected, _ = propagate(oracle, frames, prompts)
    for (_, ours), theirs in zip(track(model, frames, prompts), expected, strict=True):
        assert difference(ours, theirs) < 1e-3


@pytest.mark.slow
def test_base_plus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published size once: two frames of 1024 x 1024, memories not rounded on either side."""
    monkeypatch.setattr(torch, "bfloat16", torch.float32)
    model = lively(BASE_PLUS)
    oracle = make_oracle(model)
    frames = video(2, 1024)
    mask = F.interpolate(two_blobs()[None, None], scale_factor=8.0)[0, 0]
    seen: list[list[Tensor]] = []
    for encoder in (oracle.vision_encoder, model.image_encoder):
        encoder.register_forward_hook(
            lambda m, i, out: seen.append(out if isinstance(out, list) else out.fpn_hidden_states)
        )
    conditioned: list[Tensor] = []
    for decoder in (oracle.mask_decoder, model.sam_mask_decoder):
        decoder.register_forward_pre_hook(
            lambda m, args, named: conditioned.append(named.get("image_embeddings", *args[:1])),
            with_kwargs=True,
        )
    expected, session = propagate(oracle, frames, {0: mask})
    bank = MemoryBank.for_config(BASE_PLUS)
    answers = [logits for _, logits in track(model, frames, {0: mask}, bank)]
    assert len(seen) == 4  # each frame once by each network, the oracle first
    heads = (oracle.mask_decoder.conv_s0, oracle.mask_decoder.conv_s1, torch.nn.Identity())
    for theirs, ours in zip(seen[:2], seen[2:], strict=True):
        for one, other, head in zip(ours, theirs, heads, strict=True):
            assert difference(one, head(other)) < TOLERANCE
    assert difference(conditioned[-1], conditioned[-3]) < TOLERANCE
    assert difference(conditioned[-1], seen[-1][-1]) > 0.01  # memory did something
    for one, other in zip(answers, expected, strict=True):
        assert difference(one, other) < TOLERANCE
    stored = session.output_dict_per_obj[0]
    tracked = Memory(bank.spatial[0][1], bank.pointers[0][1])
    pairs = (
        (bank.conditioning[0], stored["cond_frame_outputs"][0]),
        (tracked, stored["non_cond_frame_outputs"][1]),
    )
    for memory, other in pairs:
        assert difference(memory.spatial, other["maskmem_features"].transpose(0, 1)) < TOLERANCE
        assert difference(memory.pointer, other["object_pointer"]) < TOLERANCE
    assert 0.01 < (answers[1] > 0).float().mean() < 0.99

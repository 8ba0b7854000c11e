"""Training: data, clips, prompts, both stages for a few steps, and resuming."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import torch

from etsam import train as module
from etsam.clip_loss import (
    GRID_STEP,
    PromptMix,
    clip_loss,
    grid_mask,
    run_clips,
    sample_box,
    sample_point,
)
from etsam.dataset import Clips, ClipSampler, ClipShape, find_pairs, load_pair
from etsam.feedback import write_stage1_logits
from etsam.frames import FrameSpec
from etsam.losses import LossWeights
from etsam.sam2 import SAM2, load_checkpoint, save_checkpoint
from etsam.simulate import simulate_many
from etsam.tracker import track
from etsam.train import COMPACT, Schedule, TrainOptions, initialise, start_from, train

TINY = replace(
    COMPACT,
    widths=(8, 8, 16, 16),
    stages=(1, 1, 1, 1),
    d_model=32,
    memory_dim=16,
    memory_feed_forward=32,
    decoder_feed_forward=32,
    decoder_heads=2,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("pairs")
    simulate_many(data, [1, 2], (16, 80, 80), 1)
    return data


def options(data: Path, output: Path, steps: int = 4) -> TrainOptions:
    return TrainOptions(
        data,
        output,
        config=TINY,
        frames=2,
        sizes=(64,),
        every=2,
        bfloat16=False,
        schedule=Schedule(steps=steps, batch=2, warmup=2),
    )


def sampler(folder: Path, seed: int = 0) -> ClipSampler:
    spec = FrameSpec()
    return ClipSampler(
        [load_pair(*pair, spec, with_logits=False) for pair in find_pairs(folder)], spec, seed
    )


def test_clips_are_reproducible_and_shaped(folder: Path) -> None:
    shape = ClipShape(frames=3, size=64)
    first, again, other = (sampler(folder, seed).batch(4, shape) for seed in (0, 0, 1))
    assert first.frames.shape == (4, 4, 5, 64, 64)
    assert first.labels.shape == (4, 4, 64, 64)
    assert torch.equal(first.frames, again.frames)
    assert not torch.equal(first.frames, other.frames)
    assert set(first.labels.unique().tolist()) <= {-1, 0, 1}


def test_labels_turn_with_the_frames(tmp_path: Path) -> None:
    """A tomogram that shows its own mask keeps doing so through every augmentation."""
    mask = np.zeros((8, 96, 96), np.int8)
    mask[:, 10:40, 20:30] = 1
    for name, data in (("a.mrc", mask * 50), ("a_membrane.mrc", mask)):
        with mrcfile.new(tmp_path / name) as file:
            file.set_data(data)
    clips = sampler(tmp_path).batch(12, ClipShape(frames=2, size=64))
    centre = clips.frames[:, :, 2]
    for grey, label in zip(centre.flatten(0, 1), clips.labels.flatten(0, 1), strict=True):
        if 0 < label.sum() < label.numel():
            difference = grey[label == 1].mean() - grey[label == 0].mean()
            assert difference.abs() > 0.8


def test_mismatched_pairs_are_refused(tmp_path: Path) -> None:
    for name, shape in (("a.mrc", (4, 8, 8)), ("a_membrane.mrc", (4, 8, 9))):
        with mrcfile.new(tmp_path / name) as file:
            file.set_data(np.random.default_rng(0).integers(0, 2, shape).astype(np.int8))
    with pytest.raises(ValueError, match=r"\(4, 8, 9\)"):
        sampler(tmp_path)


def test_masks_of_other_values_are_refused(tmp_path: Path) -> None:
    for name in ("a.mrc", "a_membrane.mrc"):
        with mrcfile.new(tmp_path / name) as file:
            file.set_data(np.arange(64, dtype=np.int8).reshape(4, 4, 4))
    with pytest.raises(ValueError, match="not annotated"):
        sampler(tmp_path)


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no pairs"):
        train(options(tmp_path, tmp_path / "run"))


def test_prompts_lie_where_they_should() -> None:
    random = np.random.default_rng(0)
    labels = torch.zeros(2, 70, 90, dtype=torch.int8)
    labels[0, 10:20, 30:60] = 1
    points, signs = sample_point(labels, random)
    x, y = points[0, 0].int().tolist()
    assert labels[0, y, x] == 1
    assert signs[:, 0].tolist() == [1, 0]
    corners, kinds = sample_box(labels, random)
    assert kinds.tolist() == [[2, 3], [2, 3]]
    low, high = corners[0]
    assert (low - torch.tensor([30.0, 10.0])).abs().max() <= 3
    assert (high - torch.tensor([59.0, 19.0])).abs().max() <= 3
    dots = grid_mask((2, 1, 120, 120), random)
    assert GRID_STEP == 50
    assert dots.sum(dim=(1, 2, 3)).tolist() in ([4.0] * 2, [6.0] * 2, [9.0] * 2)


def test_prompt_mix_follows_its_shares() -> None:
    random = np.random.default_rng(0)
    mix = PromptMix("zero", share=0.5)
    drawn = [mix.draw(random) for _ in range(4000)]
    assert drawn.count("zero") / 4000 == pytest.approx(0.5, abs=0.03)
    assert drawn.count("points") / 4000 == pytest.approx(0.25, abs=0.03)
    assert drawn.count("box") / 4000 == pytest.approx(0.125, abs=0.03)


@pytest.mark.parametrize("kind", ["grid", "zero", "mask", "points", "box"])
def test_gradient_reaches_encoder_and_memory(kind: str) -> None:
    torch.manual_seed(0)
    model = SAM2(TINY)
    initialise(model)
    with torch.no_grad():
        model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(5)
    labels = torch.zeros(2, 3, 64, 64, dtype=torch.int8)
    labels[..., 20:30, :] = 1
    clips = Clips(torch.randn(2, 3, 5, 64, 64), labels)
    random = np.random.default_rng(0)
    loss = clip_loss(model, clips, kind, LossWeights(spread=0.3), random)  # type: ignore[arg-type]
    loss.backward()
    for part in (
        model.image_encoder.trunk.stem.weight,
        model.memory_encoder.out_proj.weight,
        model.memory_attention.layers[0].cross_attn_image.v_proj.weight,
        model.obj_ptr_proj.layers[0].weight,
    ):
        assert part.grad is not None
        assert part.grad.abs().sum() > 0


def test_training_answers_what_tracking_answers() -> None:
    """A clip conditioned on a mask gives the logits `track` gives for the same slices."""
    torch.manual_seed(0)
    model = SAM2(TINY).eval()
    initialise(model)
    frames = torch.randn(1, 4, 5, 64, 64)
    labels = torch.zeros(1, 4, 64, 64, dtype=torch.int8)
    labels[..., 20:40, 8:50] = 1

    class Near(np.random.Generator):
        """The conditioning slice is the neighbour, as for `track`."""

        def random(self) -> float:  # type: ignore[override]
            return 0.0

    with torch.no_grad():
        answers = list(run_clips(model, Clips(frames, labels), "mask", Near(np.random.PCG64(0))))
    tracked = dict(track(model, list(frames[0]), {0: labels[0, 0] == 1}))  # type: ignore[arg-type]
    for index, output in answers:
        torch.testing.assert_close(output.logits[0, 0], tracked[index], rtol=2e-2, atol=2e-2)


def test_both_stages_train_and_segment(folder: Path, tmp_path: Path) -> None:
    """Stage 1, its logits, stage 2 from stage 1's weights: files load and describe themselves."""
    stage1 = train(options(folder, tmp_path / "one"))
    assert write_stage1_logits(folder, stage1, device="cpu") == 2
    assert write_stage1_logits(folder, stage1, device="cpu") == 0
    second = replace(options(folder, tmp_path / "two"), stage=2, start=stage1, validation=folder)
    stage2 = train(second)
    model, metadata = load_checkpoint(stage2)
    assert model.config.in_channels == 10
    assert metadata["provenance"]["stage"] == 2
    entries = [json.loads(line) for line in (tmp_path / "two/log.jsonl").read_text().splitlines()]
    assert entries[-1]["step"] == 4
    assert 0 <= entries[-1]["dice"] <= 1


def test_resumed_training_equals_an_uninterrupted_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(options(folder, tmp_path / "whole"))
    halves = options(folder, tmp_path / "halves")
    step, done = module._step, []

    class Killed(Exception):
        pass

    def stopping(*arguments: Any) -> float:
        if len(done) == 3:  # one step after the last saved state
            raise Killed
        done.append(step(*arguments))
        return done[-1]

    with monkeypatch.context() as patch:
        patch.setattr(module, "_step", stopping)
        with pytest.raises(Killed):
            train(halves)
    resumed = train(halves)
    first, second = (load_checkpoint(path)[0].state_dict() for path in (whole, resumed))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_network_that_starts_from_a_narrower_one_gives_its_answers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    near, wide = FrameSpec(offsets=(-1, 0, 1)), FrameSpec(offsets=(-4, -1, 0, 1, 4))
    old = SAM2(replace(COMPACT, in_channels=3)).eval()
    path = tmp_path / "old.safetensors"
    save_checkpoint(path, old, {"frame_spec": near.to_dict()}, half=False)
    new = SAM2(replace(COMPACT, in_channels=10, context_width=8)).eval()
    start_from(new, path, wide)
    frame = torch.randn(1, 10, 64, 64)
    with torch.no_grad():
        before, after = old.encode(frame[:, 1:4]), new.encode(frame)
    assert torch.allclose(before.image, after.image, atol=1e-6)
    assert after.image.std() > 0.1

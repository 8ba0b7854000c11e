"""Pairs kept on the device: clips drawn from them, and stage 1 run over many at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from etsam.dataset import LOGIT_STEP
from etsam.feedback import write_stage1_logits
from etsam.frames import FrameSpec
from etsam.intensity import UNSCALED, IntensityScaling, measure_intensity
from etsam.sam2 import NO_OBJECT_LOGIT, save_checkpoint
from etsam.train import train
from etsam.training import resident
from etsam.training.augment import augment_batch
from etsam.training.clips import ClipShape, own_random
from etsam.training.resident import ResidentPairs, ResidentSampler
from etsam.volume import open_tomogram
from tiny_training import TINY, network, options, write_pairs

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SPEC = FrameSpec(offsets=(-2, -1, 0, 1, 2), feedback_step=3)
CLEAR = IntensityScaling(-127, 127, 0.0, 50.0)


def filled(
    device: str, shape: tuple[int, int, int] = (16, 80, 80), count: int = 2
) -> ResidentPairs:
    """Pairs of a dark sheet."""
    store = ResidentPairs(count * shape[0], (shape[1], shape[2]), torch.device(device))
    for number in range(count):
        labels = np.zeros(shape, np.int8)
        labels[:, 10 + 20 * number : 18 + 20 * number] = 1
        assert store.add(-100 * labels, labels, CLEAR, 1.0)
    return store


def sampler(store: ResidentPairs, seed: int = 0) -> ResidentSampler:
    return ResidentSampler(store, lambda _: store.pairs(), SPEC, seed)


@pytest.mark.parametrize("device", DEVICES)
def test_grey_values_and_labels_of_a_clip_belong_together(device: str) -> None:
    draw = sampler(filled(device))
    dark, light = [], []
    for step in range(12):
        clips = draw.batch(step, range(4), ClipShape(3, 48))
        assert clips.frames.shape == (4, 4, 5, 48, 48) and clips.labels.shape == (4, 4, 48, 48)
        assert torch.isfinite(clips.frames).all()
        middle, marks = clips.frames[:, :, 2], clips.labels
        dark.append(middle[marks == 1])
        light.append(middle[marks == 0])
    assert torch.cat(dark).mean() < torch.cat(light).mean() - 1


def test_a_clip_depends_on_seed_and_step_alone() -> None:
    store = filled("cpu")
    one, same = (sampler(store).batch(3, range(2), ClipShape(2, 32)) for _ in range(2))
    torch.testing.assert_close(one.frames, same.frames, rtol=0, atol=0)
    assert not torch.equal(one.frames, sampler(store).batch(4, range(2), ClipShape(2, 32)).frames)
    assert not torch.equal(
        one.frames, sampler(store, 1).batch(3, range(2), ClipShape(2, 32)).frames
    )


def test_a_full_store_takes_no_more() -> None:
    store = filled("cpu")
    pair = np.zeros((16, 80, 80), np.int8)
    assert not store.add(pair, pair, UNSCALED, 1.0) and len(store) == 2
    assert len(store.pairs(1)) == 1


def test_what_does_not_fit_is_refused_and_thin_volumes_are_taken() -> None:
    store = filled("cpu", (2, 64, 64))
    clips = [sampler(store).batch(step, range(2), ClipShape(4, 64)) for step in range(20)]
    assert all(clip.labels.shape == (2, 5, 64, 64) for clip in clips)
    with pytest.raises(ValueError, match=r"no clip of 96\^2"):
        sampler(store).batch(0, [0], ClipShape(4, 96))
    with pytest.raises(ValueError, match="0 pairs"):
        sampler(ResidentPairs(4, (64, 64), torch.device("cpu"))).batch(0, [0], ClipShape(2, 32))
    small = np.zeros((2, 32, 64), np.int8)
    with pytest.raises(ValueError, match=r"expected \(2, 64, 64\)"):
        ResidentPairs(4, (64, 64), torch.device("cpu")).add(small, small, UNSCALED, 1.0)


def test_clips_are_drawn_by_weight_and_often_over_a_membrane() -> None:
    shape = (16, 320, 320)
    labels = np.zeros(shape, np.int8)
    labels[:, 100:104, 100:104] = 1
    store = ResidentPairs(32, shape[1:], torch.device("cpu"))
    store.add(labels, labels, UNSCALED, 1.0)
    store.add(np.zeros(shape, np.int8), np.zeros(shape, np.int8), UNSCALED, 0.0)
    shown = [
        bool((sampler(store).batch(step, [0], ClipShape(2, 32)).labels == 1).any())
        for step in range(80)
    ]
    assert sum(shown) > 0.2 * len(shown), "at random it would be one in a hundred"


@pytest.mark.parametrize("device", DEVICES)
def test_stage_1_tracks_many_pairs_as_it_does_one_by_one(tmp_path: Path, device: str) -> None:
    data = write_pairs(tmp_path / "data", 2, (11, 96, 96))
    model = network(TINY)
    save_checkpoint(tmp_path / "s.safetensors", model, {"frame_spec": SPEC.to_dict()}, half=False)
    write_stage1_logits(data, tmp_path / "s.safetensors", step=3, device="cpu")
    store = ResidentPairs(22, (96, 96), torch.device(device))
    for number in range(2):
        path = data / f"t{number}.mrc"
        with open_tomogram(path) as tomogram:
            scaling = measure_intensity(tomogram, "robust")
        store.add(mrcfile.read(path), mrcfile.read(data / f"t{number}_membrane.mrc"), scaling, 1.0)
    store.track(model.to(device), SPEC, store.pairs())
    assert store.logits is not None
    expected = np.concatenate([np.load(data / f"t{n}_stage1.npy") for n in range(2)])
    away = np.abs(store.logits.cpu().numpy().astype(int) - expected) * LOGIT_STEP
    assert expected.std() > 0 and away.mean() < 0.005 and np.quantile(away, 0.99) < 0.1
    again = ResidentPairs(22, (96, 96), torch.device(device))
    for pair, logits in zip(store.pairs(), np.split(expected, 2), strict=True):
        part = store.grey[pair.first : pair.first + 11].cpu().numpy()
        again.add(part, part, pair.scaling, 1.0, logits)
    assert again.logits is not None and np.array_equal(again.logits.cpu().numpy(), expected)
    with pytest.raises(ValueError, match=r"blurred by 0.8 pixels, those here are by 0"):
        store.track(model, replace(SPEC, blur=0.8), store.pairs())


def test_no_object_is_no_veto_on_slices_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `write_stage1_logits` has it from the pipeline."""

    def track(model: object, frames: object, _: object) -> Iterator[tuple[int, torch.Tensor]]:
        for step in range(3):
            yield step, torch.full((1, 20, 20), 5.0 if step < 2 else NO_OBJECT_LOGIT)

    monkeypatch.setattr(resident, "track", track)
    store = filled("cpu", (4, 80, 80), count=1)
    store.track(network(TINY), SPEC, store.pairs())
    assert store.logits is not None
    found = store.logits.float().mean(dim=(1, 2)) * LOGIT_STEP
    assert found.tolist() == pytest.approx([5, 0, -5, -5], abs=LOGIT_STEP)


def test_training_takes_a_sampler_and_leaves_attention_as_it_was(tmp_path: Path) -> None:
    store = filled("cpu")
    before = torch.backends.cuda.cudnn_sdp_enabled()
    given = options(tmp_path / "none", tmp_path / "run", steps=2, spec=SPEC)
    assert train(given, None, sampler(store)).is_file()
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_augmentation_turns_frames_and_labels_alike_and_keeps_their_size() -> None:
    labels = torch.zeros(6, 3, 64, 64, dtype=torch.int8)
    labels[:, :, 8:20, 30:50] = 1
    labels[:, :, 50:60, 5:15] = -1
    frames = torch.stack((3.0 * labels.float(), labels.float()), dim=2)
    randoms = [own_random(0, 0, index) for index in range(6)]
    changed, marks = augment_batch(frames.clone(), labels, 1, randoms)
    assert changed.shape == frames.shape and marks.shape == labels.shape
    assert set(marks.unique().tolist()) <= {-1, 0, 1}
    # the second channel is no grey value: it is moved, and covered in some clips
    checked = 0
    for clip in range(6):
        first = changed[clip, 0, 1]
        if (first.min() >= -1) and (first - marks[clip, 0]).abs().median() < 0.01:
            checked += 1
            inside = (marks[clip, 0] == 1) & (first > 0.9)
            assert inside.sum() > 0.6 * (marks[clip, 0] == 1).sum()
    assert checked >= 3

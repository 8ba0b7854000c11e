"""Training: gradients, learning rates, both stages and SAM 2.1 through the command line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import torch

from conftest import Run
from etsam import train as module
from etsam.clip_loss import ClipLoss, run_clips
from etsam.dataset import LOGIT_STEP, logits_path
from etsam.feedback import write_stage1_logits
from etsam.frames import FrameSpec
from etsam.losses import LossWeights
from etsam.options import SegmentOptions
from etsam.pipeline import Volume, segment_slices
from etsam.sam2 import SAM2, load_checkpoint, save_checkpoint
from etsam.stages import load_stage
from etsam.tracker import track
from etsam.train import Schedule, TrainOptions, from_checkpoint, start_from, train
from etsam.training.clips import Clips
from etsam.training.optimiser import make_optimiser, rate_scales, set_rate
from etsam.training.paper import PAPER_SCHEDULE
from etsam.training.prompting import Plan
from etsam.volume import open_tomogram
from test_sam2_published import GOLDEN
from tiny_training import TINY, TINY_SAM2, network, options, read_log, write_pairs

CORRECTED = Plan("points", (0, 2), frozenset({0, 2}), (False, True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def clips(channels: int = 5, frames: int = 3, size: int = 64) -> Clips:
    labels = torch.zeros(2, frames, size, size, dtype=torch.int8)
    labels[..., 20:30, :] = 1
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, frames, channels, size, size, generator=generator)
    return Clips(values, labels, [np.random.default_rng(n) for n in range(2)])


@pytest.mark.parametrize("kind", ["grid", "zero", "mask", "points", "box"])
def test_gradient_reaches_encoder_and_memory(kind: Any) -> None:
    model = network(TINY)
    ClipLoss(model, LossWeights(spread=0.3))(clips(), Plan(kind)).backward()
    for part in (
        model.image_encoder.trunk.stem.weight,
        model.memory_encoder.out_proj.weight,
        model.memory_attention.layers[0].cross_attn_image.v_proj.weight,
        model.obj_ptr_proj.layers[0].weight,
    ):
        assert part.grad is not None
        assert part.grad.abs().sum() > 0


def test_corrected_frames_are_answered_after_each_click() -> None:
    """SAM 2's order: conditioned frames first, an answer and one for each click; then the others."""
    model = network(TINY).eval()
    with torch.no_grad():
        answers = list(run_clips(model, clips(frames=4), CORRECTED, anchored=False))
    assert [index for index, _ in answers] == [0, 0, 0, 2, 2, 2, 1, 3]
    counts = [output.decoded.masks.shape[1] for _, output in answers if output.decoded]
    assert counts == [3, 1, 1, 3, 1, 1, 3, 3]  # several candidates for at most one point
    first, second = answers[0][1].logits, answers[1][1].logits
    assert not torch.equal(first, second)


@pytest.mark.parametrize("plan", [Plan("mask", (0, 1)), CORRECTED], ids=["mask", "clicks"])
def test_gradients_are_the_same_without_kept_values(plan: Plan) -> None:
    found = []
    for checkpointing in (False, True):
        model = network(TINY_SAM2, 3).double()
        loss = ClipLoss(model, LossWeights(), anchored=False, checkpointing=checkpointing)
        given = clips(3, 4)
        value = loss(replace(given, frames=given.frames.double()), plan)
        value.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((value.detach(), gradients))
    (one, first), (other, second) = found
    torch.testing.assert_close(one, other, rtol=1e-12, atol=0)
    assert set(first) == set(second)
    for name, gradient in first.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(gradient, second[name], rtol=1e-9, atol=1e-9 * scale + 1e-15)


def test_training_answers_what_tracking_answers() -> None:
    """A clip conditioned on a mask gives the logits `track` gives for the same slices."""
    model = network(TINY).eval()
    given = clips(frames=4)
    with torch.no_grad():
        answers = list(run_clips(model, given, Plan("mask", away=1)))
    tracked = dict(track(model, list(given.frames[0]), {0: given.labels[0, 0] == 1}))  # type: ignore[arg-type]
    assert [index for index, _ in answers] == [1, 2, 3]
    for index, output in answers:
        torch.testing.assert_close(output.logits[0, 0], tracked[index], rtol=2e-2, atol=2e-2)


def test_training_in_half_precision_is_validated(folder: Path, tmp_path: Path) -> None:
    """The averaged weights stay in float32 while autocast computes in bfloat16."""
    held = shutil.copytree(folder, tmp_path / "held")
    given = options(folder, tmp_path / "run", steps=2, dtype="bfloat16", validation=held)
    train(given)
    entry = read_log(given.output)[-1]
    assert 0 < entry["loss"] < 50 and 0 <= entry["dice"] <= 1


def test_layers_learn_at_decaying_rates() -> None:
    """SAM 2's: 5e-6 outside the image encoder, 3e-6 in it, 0.9 per block of the trunk downwards."""
    model = network(TINY_SAM2, 3)
    scales = rate_scales(model, PAPER_SCHEDULE)
    rates = {name: 5e-6 * scale for name, scale in scales.items()}
    trunk = "image_encoder.trunk"
    blocks = sum(TINY_SAM2.stages)
    assert rates["memory_encoder.out_proj.weight"] == 5e-6
    assert rates["image_encoder.neck.convs.0.conv.weight"] == pytest.approx(3e-6)
    assert rates[f"{trunk}.blocks.{blocks - 1}.norm1.weight"] == pytest.approx(3e-6 * 0.9)
    assert rates[f"{trunk}.blocks.0.norm1.weight"] == pytest.approx(3e-6 * 0.9**blocks)
    assert rates[f"{trunk}.patch_embed.proj.weight"] == pytest.approx(3e-6 * 0.9 ** (blocks + 1))
    assert rates[f"{trunk}.pos_embed"] == pytest.approx(3e-6)
    optimiser = make_optimiser(model, PAPER_SCHEDULE)
    set_rate(optimiser, 1.0)
    listed = {id(p): group for group in optimiser.param_groups for p in group["params"]}
    assert len(listed) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert listed[id(parameter)]["lr"] == pytest.approx(scales[name])
        assert listed[id(parameter)]["weight_decay"] == (0.1 if parameter.ndim > 1 else 0)


def test_schedule_is_a_cosine() -> None:
    schedule = replace(PAPER_SCHEDULE, steps=1000)
    assert schedule.rate(0) == 5e-6
    assert schedule.rate(500) == pytest.approx(2.75e-6)
    assert schedule.rate(1000) == pytest.approx(5e-7)


def test_wrong_options_are_refused_at_once(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        options(folder, tmp_path, sizes=(50,))
    with pytest.raises(ValueError, match="no pairs"):
        train(options(tmp_path, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("channels", [3, 6])
def test_a_network_that_starts_from_a_narrower_one_gives_its_answers(
    tmp_path: Path, channels: int
) -> None:
    torch.manual_seed(0)
    near, wide = FrameSpec(offsets=(-1, 0, 1)), FrameSpec(offsets=(-4, -1, 0, 1, 4))
    old = SAM2(replace(TINY, in_channels=channels)).eval()
    path = tmp_path / "old.safetensors"
    save_checkpoint(path, old, {"frame_spec": near.to_dict()}, half=False)
    deep = tuple(count + 1 for count in TINY.stages)
    wider = replace(TINY, in_channels=10, context_width=8, top_down_blocks=1, stages=deep)
    new = SAM2(wider).eval()
    start_from(new, path, wide)
    frame = torch.randn(1, 10, 64, 64)
    with torch.no_grad():
        known = [1, 2, 3, 6, 7, 8][:channels]
        before, after = old.encode(frame[:, known]), new.encode(frame)
    assert torch.allclose(before.image, after.image, atol=1e-6)
    with pytest.raises(ValueError, match="does not fit the network"):
        start_from(SAM2(replace(TINY, in_channels=3, d_model=64)), path, near)


def published(path: Path) -> Path:
    """A small random checkpoint in the format of SAM 2.1's, with its sizes beside it."""
    torch.save({"model": network(TINY_SAM2, 3).state_dict()}, path)
    path.with_suffix(".json").write_text(json.dumps(TINY_SAM2.to_dict()))
    return path


def test_a_published_checkpoint_is_trained_as_in_the_paper(tmp_path: Path) -> None:
    start = published(tmp_path / "sam2.1_small.pt")
    given = from_checkpoint(TrainOptions(tmp_path, tmp_path / "run"), start)
    assert (given.frames, given.anchored, given.sizes) == (22, False, (64,))
    assert given.spec.imagenet and given.spec.size == "square"
    assert (given.losses.focal, given.losses.dice, given.losses.quality) == (20, 1, 1)
    assert (given.schedule.batch, given.schedule.clip_norm, given.schedule.last) == (1, 0.1, 0.1)


def test_both_stages_of_sam2_train_and_segment(run: Run, folder: Path, tmp_path: Path) -> None:
    """The command line, from a published checkpoint to a mask, both stages."""
    start = published(tmp_path / "sam2.1_small.pt")
    data = shutil.copytree(folder, tmp_path / "data")
    common = ("--start", start, "--steps", 2, "--frames", 4, "--float32", "--device", "cpu")
    code, out, err = run("train", data, "-o", tmp_path / "one", *common)
    assert code == 0, err
    stage1 = Path(out.strip())
    model, metadata = load_checkpoint(stage1)
    assert metadata["frame_spec"]["imagenet"] and model.config == TINY_SAM2
    before = network(TINY_SAM2, 3).state_dict()
    moved = [name for name, value in model.state_dict().items() if not value.equal(before[name])]
    assert "image_encoder.trunk.blocks.0.attn.qkv.weight" in moved
    steps = max((value - before[n]).abs().max().item() for n, value in model.state_dict().items())
    assert 0 < steps < 2.1 * 5e-6  # AdamW's steps are at most the learning rate
    held = shutil.copytree(data, tmp_path / "held")
    second = ("--stage", 2, "--stage1-checkpoint", stage1, "--validation", held)
    code, out, err = run("train", data, "-o", tmp_path / "two", *common, *second)
    assert code == 0, err
    assert "dice" in read_log(tmp_path / "two")[-1]
    assert (tmp_path / "two/validation_2.png").is_file()
    checkpoints = ("--stage1-checkpoint", stage1, "--stage2-checkpoint", out.strip())
    made = ("--device", "cpu", "-o", tmp_path / "mask.mrc")
    code, out, err = run("segment", data / "t0.mrc", *checkpoints, *made)
    assert code == 0, err
    assert (tmp_path / "mask.mrc").is_file()


def test_the_reference_networks_train(shared: Path, tmp_path: Path) -> None:
    """The published pipeline's own checkpoint and tomogram, in bfloat16, as in the paper."""
    start = Path(shutil.copy(shared / "golden/stage1.pt", tmp_path))
    start.with_suffix(".json").write_text(json.dumps(GOLDEN.to_dict()))
    tomogram = np.load(shared / "golden/tomogram.npy").astype(np.float32)
    for name, volume in (("t", tomogram), ("t_membrane", (tomogram < 0).astype(np.int8))):
        with mrcfile.new(tmp_path / f"{name}.mrc") as file:
            file.set_data(volume)
    given = from_checkpoint(TrainOptions(tmp_path, tmp_path / "run"), start)
    given = replace(given, frames=3, schedule=replace(given.schedule, steps=1))
    after = load_checkpoint(train(given))[0].state_dict()
    before = load_checkpoint(start, GOLDEN)[0].state_dict()
    steps = {name: (after[name] - before[name]).abs().max().item() for name in before}
    assert max(steps.values()) < 1.5 * 5e-6  # and some rounding of large weights
    for part in (
        "trunk.patch_embed.proj",
        "trunk.blocks.0.attn.qkv",
        "trunk.blocks.6.mlp.layers.0",
    ):
        assert steps[f"image_encoder.{part}.weight"] > 0
    assert steps["memory_attention.layers.0.cross_attn_image.v_proj.weight"] > 0


def test_training_learns(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sheet in noise: the loss falls by a third within some seconds."""
    monkeypatch.setattr(module, "LOG_EVERY", 10)
    schedule = Schedule(steps=60, batch=2, warmup=5, learning_rate=5e-3)
    train(options(folder, tmp_path, schedule=schedule, every=100))
    entries = read_log(tmp_path)
    assert entries[-1]["loss"] < 0.67 * entries[0]["loss"]


def test_denormal_numbers_are_zero_while_training_only(folder: Path, tmp_path: Path) -> None:
    tiny: list[float] = []

    def log(_: dict[str, Any]) -> None:
        tiny.append(float(torch.full((8,), 1e-39).mul(0.5).sum()))

    train(options(folder, tmp_path / "run", schedule=Schedule(steps=2, batch=2)), log)
    assert tiny and not any(tiny)
    log({})
    assert tiny[-1] > 0


def test_both_stages_of_the_compact_model_train_while_simulating(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    """The command line: a small checkpoint goes on, then stage 2 with tomograms simulated meanwhile."""
    start = tmp_path / "start.safetensors"
    save_checkpoint(start, network(TINY), {"frame_spec": FrameSpec().to_dict()}, half=False)
    common = ("--steps", 2, "--batch", 1, "--frames", 2, "--size", 64, "--float32")
    common += ("--device", "cpu")
    code, out, err = run("train", folder, "-o", tmp_path / "one", "--start", start, *common)
    assert code == 0, err
    stage1 = out.strip()
    common += ("--simulate", 1, "--simulate-preset", "vesicles", "--simulate-shape", "16,64,64")
    more = ("--stage", 2, "--start", stage1, "--stage1-checkpoint", stage1)
    code, out, err = run("train", "-o", tmp_path / "two", *more, *common)
    assert code == 0, err
    model, metadata = load_checkpoint(out.strip())
    assert model.config.in_channels == 10
    assert metadata["provenance"]["stage"] == 2
    made = sorted((tmp_path / "two/simulated").glob("*/*_stage1.npy"))
    assert len(made) >= 8
    assert np.load(made[0]).shape == (16, 64, 64)


def test_command_line_refuses_what_does_not_fit(run: Run, folder: Path, tmp_path: Path) -> None:
    blank = write_pairs(tmp_path / "blank", count=1)
    with mrcfile.mmap(blank / "t0_membrane.mrc", "r+") as mrc:
        mrc.data[:] = -1
    for given, said in (
        ((), "nothing to train on as it stands"),
        (("--simulate", 0.5), "nothing to train on with --simulate 0.5 alone"),
        ((folder, "--weight", 1, "--weight", 2), "2 --weight for 1 folders"),
        ((blank,), "not a voxel of 1 masks is annotated"),
        ((folder, "--start", "nonesuch"), "no model 'nonesuch'"),
        ((folder, "--start", tmp_path / "no.pt"), "no checkpoint at"),
        ((folder, "--weight", "nan"), "nan is not a finite number"),
        ((folder, "--memory-gb", "nan"), "nan is not a finite number"),
        ((folder, "--size", 100), "multiples of 32"),
        ((folder, "--stage", 2, "--simulate", 0.5), "needs --stage1-checkpoint"),
        ((folder, "--size", 64, "--validation", tmp_path), "no pairs"),
        ((folder,), f"{folder}: every volume is smaller than a clip of 4 slices of 128^2 pixels"),
    ):
        code, _, err = run("train", *given, "-o", tmp_path / "run", "--device", "cpu")
        assert code == (2 if "finite" in said else 1)
        assert said in err and err.count("\n") == 1
        assert not (tmp_path / "run").exists()


def test_stage1_logits_are_those_of_the_pipeline(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shutil.copytree(folder, tmp_path / "data")
    stage1 = tmp_path / "stage1.safetensors"
    save_checkpoint(stage1, network(TINY), {"frame_spec": FrameSpec().to_dict()}, half=False)
    assert write_stage1_logits(data, stage1, device="cpu") == 2
    assert write_stage1_logits(data, stage1, device="cpu") == 0
    kept = np.load(logits_path(data / "t0.mrc"))
    assert kept.dtype == np.int8 and kept.shape == (16, 80, 80)
    np.save(tmp_path / "numpy.npy", kept)
    assert logits_path(data / "t0.mrc").read_bytes() == (tmp_path / "numpy.npy").read_bytes()
    assert not list(data.glob("*.partial"))
    with open_tomogram(data / "t0.mrc") as tomogram:
        volume = Volume(tomogram, tomogram.voxel_spacing)
        stage = load_stage(stage1, 0, torch.device("cpu"))
        logits = np.stack(list(segment_slices(volume, [stage], SegmentOptions())))
    np.testing.assert_allclose(kept * LOGIT_STEP, logits.clip(-5, 5), atol=0.51 * LOGIT_STEP)

    usage = shutil.disk_usage(data)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=16 * 80 * 80 - 1))
        logits_path(data / "t1.mrc").unlink()
        with pytest.raises(OSError, match=r"t1_stage1\.npy needs 102,400 bytes"):
            write_stage1_logits(data, stage1, device="cpu")
    assert write_stage1_logits(data, stage1, device="cpu") == 1
    assert not list(data.glob("*.partial"))
    with pytest.raises(ValueError, match="2 tomograms of .* have logits of another stage 1"):
        write_stage1_logits(data, stage1, step=5, device="cpu")
    (data / "stage1_logits.json").unlink()
    with pytest.warns(UserWarning, match="logits of an unknown stage 1"):
        assert write_stage1_logits(data, stage1, step=5, device="cpu") == 0
    for path in data.glob("*_stage1.npy"):
        path.unlink()
    write_stage1_logits(data, stage1, step=5, device="cpu")
    sparse = np.load(logits_path(data / "t0.mrc")).astype(float)
    between = 0.6 * sparse[5] + 0.4 * sparse[10]
    np.testing.assert_allclose(sparse[7], between, atol=1.01)
    assert np.abs(sparse - kept).max() > 2, "the slices between were tracked too"

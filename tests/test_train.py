"""Training: gradients, resuming, several processes, both stages and SAM 2.1 through the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import multiprocessing

from conftest import Run
from etsam import train as module
from etsam.clip_loss import ClipLoss, run_clips
from etsam.dataset import logits_path
from etsam.feedback import write_stage1_logits
from etsam.frames import FrameSpec
from etsam.losses import LossWeights
from etsam.sam2 import SAM2, load_checkpoint, save_checkpoint
from etsam.tracker import track
from etsam.train import Schedule, TrainOptions, from_checkpoint, start_from, train
from etsam.training.clips import Clips
from etsam.training.optimiser import make_optimiser, rate_scales, set_rate
from etsam.training.paper import PAPER_SCHEDULE
from etsam.training.prompting import Plan
from tiny_training import TINY, TINY_SAM2, network, options, write_pairs

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
    for thrifty in (False, True):
        model = network(TINY_SAM2, 3)
        loss = ClipLoss(model, LossWeights(), anchored=False, thrifty=thrifty)
        value = loss(clips(3, 4), plan)
        value.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((value.detach(), gradients))
    (one, first), (other, second) = found
    torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
    assert set(first) == set(second)
    for name, gradient in first.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(gradient, second[name], rtol=1e-4, atol=1e-5 * scale + 1e-9)


def test_training_answers_what_tracking_answers() -> None:
    """A clip conditioned on a mask gives the logits `track` gives for the same slices."""
    model = network(TINY).eval()
    given = clips(frames=4)
    with torch.no_grad():
        answers = list(run_clips(model, given, Plan("mask", away=1)))
    tracked = dict(track(model, list(given.frames[0]), {0: given.labels[0, 0] == 1}))  # type: ignore[arg-type]
    for index, output in answers:
        torch.testing.assert_close(output.logits[0, 0], tracked[index], rtol=2e-2, atol=2e-2)


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


def same(one: Any, other: Any) -> bool:
    """Whether nested states are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def read_log(run: Path) -> list[dict[str, Any]]:
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in entries]


def test_resumed_training_equals_an_uninterrupted_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor, torch's own random numbers and the log; here each step consumes such numbers."""
    step, left = module._step, [100]

    class Killed(Exception):
        pass

    def noisy(run: Any, *others: Any) -> float:
        if not left[0]:
            raise Killed
        left[0] -= 1
        loss = step(run, *others)
        with torch.no_grad():
            for parameter in run.model.parameters():
                parameter += 1e-3 * torch.randn(parameter.shape)
        return loss

    monkeypatch.setattr(module, "_step", noisy)
    monkeypatch.setattr(module, "LOG_EVERY", 3)
    whole, halves = (options(folder, tmp_path / name, steps=7) for name in ("whole", "halves"))
    train(whole)
    left[0] = 3  # one step after the last saved state, none after the last line of the log
    with pytest.raises(Killed):
        train(halves)
    left[0] = 100
    train(halves)
    one, other = (torch.load(run.output / "state.pt", weights_only=True) for run in (whole, halves))
    assert one["step"] == 7
    assert same(one, other)
    assert whole.weights.read_bytes() == halves.weights.read_bytes()
    assert read_log(whole.output) == read_log(halves.output)


def test_a_run_of_another_network_is_not_taken_up(folder: Path, tmp_path: Path) -> None:
    given = options(folder, tmp_path, steps=1)
    train(given)
    with pytest.raises(ValueError, match="another network, stage or seed"):
        train(replace(given, config=replace(TINY, d_model=64)))
    (tmp_path / "state.pt").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ValueError, match=r"state\.pt cannot be read"):
        train(given)


def test_wrong_options_are_refused_at_once(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        options(folder, tmp_path, sizes=(50,))
    with pytest.raises(ValueError, match="no pairs"):
        train(options(tmp_path, tmp_path / "run"))


def test_a_network_that_starts_from_a_narrower_one_gives_its_answers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    near, wide = FrameSpec(offsets=(-1, 0, 1)), FrameSpec(offsets=(-4, -1, 0, 1, 4))
    old = SAM2(replace(TINY, in_channels=3)).eval()
    path = tmp_path / "old.safetensors"
    save_checkpoint(path, old, {"frame_spec": near.to_dict()}, half=False)
    new = SAM2(replace(TINY, in_channels=10, context_width=8)).eval()
    start_from(new, path, wide)
    frame = torch.randn(1, 10, 64, 64)
    with torch.no_grad():
        before, after = old.encode(frame[:, 1:4]), new.encode(frame)
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
    second = ("--stage", 2, "--stage1-checkpoint", stage1, "--validation", data)
    code, out, err = run("train", data, "-o", tmp_path / "two", *common, *second)
    assert code == 0, err
    assert "dice" in read_log(tmp_path / "two")[-1]
    assert (tmp_path / "two/validation_2.png").is_file()
    checkpoints = ("--stage1-checkpoint", stage1, "--stage2-checkpoint", out.strip())
    made = ("--device", "cpu", "-o", tmp_path / "mask.mrc")
    code, out, err = run("segment", data / "t0.mrc", *checkpoints, *made)
    assert code == 0, err
    assert (tmp_path / "mask.mrc").is_file()


def test_both_stages_of_the_compact_model_train_while_simulating(run: Run, tmp_path: Path) -> None:
    """The command line: a small checkpoint goes on with simulated tomograms only, then stage 2."""
    start = tmp_path / "start.safetensors"
    save_checkpoint(start, network(TINY), {"frame_spec": FrameSpec().to_dict()}, half=False)
    common = ("--simulate", 1, "--simulate-preset", "vesicles", "--simulate-shape", "16,64,64")
    common += ("--steps", 2, "--batch", 1, "--frames", 2, "--size", 64, "--float32")
    common += ("--device", "cpu")
    code, out, err = run("train", "-o", tmp_path / "one", "--start", start, *common)
    assert code == 0, err
    stage1 = out.strip()
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
    for given, said in (
        ((), "nothing to train on"),
        ((folder, "--weight", 1, "--weight", 2), "2 --weight for 1 folders"),
        ((folder, "--start", "nonesuch"), "no model 'nonesuch'"),
        ((folder, "--start", tmp_path / "no.pt"), "no checkpoint at"),
        ((folder, "--size", 100), "multiples of 32"),
        ((folder, "--stage", 2, "--simulate", 0.5), "needs --stage1-checkpoint"),
    ):
        code, _, err = run("train", *given, "-o", tmp_path / "run", "--device", "cpu")
        assert code == 1
        assert said in err and err.count("\n") == 1


def test_stage1_logits_are_those_of_the_pipeline(folder: Path, tmp_path: Path) -> None:
    data = shutil.copytree(folder, tmp_path / "data")
    stage1 = tmp_path / "stage1.safetensors"
    save_checkpoint(stage1, network(TINY), {"frame_spec": FrameSpec().to_dict()}, half=False)
    assert write_stage1_logits(data, stage1, device="cpu") == 2
    assert write_stage1_logits(data, stage1, device="cpu") == 0
    kept = np.load(logits_path(data / "t0.mrc"))
    assert kept.dtype == np.int8 and kept.shape == (16, 80, 80)
    assert not list(data.glob("*.partial"))


COMMAND = "from etsam.cli import main; main()"


def test_a_killed_run_goes_on_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """SIGKILL at any moment, then the same command."""
    start = tmp_path / "start.safetensors"
    save_checkpoint(start, network(TINY), {"frame_spec": FrameSpec().to_dict()}, half=False)
    given = ["train", folder, "--start", start, "--steps", 30, "--batch", 1, "--frames", 2]
    given += ["--size", 64, "--save-every", 10, "--device", "cpu", "--float32"]

    def start_process(name: str) -> subprocess.Popen[bytes]:
        arguments = [str(part) for part in [*given, "-o", tmp_path / name]]
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    whole, killed = start_process("whole"), start_process("killed")
    while not (tmp_path / "killed/state.pt").is_file():
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() != 0
    assert whole.wait() == 0
    assert start_process("killed").wait() == 0
    one, other = (tmp_path / name / "stage1.safetensors" for name in ("whole", "killed"))
    assert one.read_bytes() == other.read_bytes()


def train_as(rank: int, size: int, port: int, given: TrainOptions) -> None:
    """One of the processes torchrun would start."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    train(given)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_processes_equal_one(folder: Path, tmp_path: Path) -> None:
    """The same global batches of 3 clips, shared as 2 and 1: losses to 1e-5, weights to 1e-5.

    AdamW divides a gradient by its size, so where it is all but 0 its rounding makes a step: such
    weights may differ by more, and there are few.
    """
    schedule = Schedule(steps=3, batch=3, warmup=2)
    one, two = (
        options(folder, tmp_path / name, schedule=schedule, every=1, start=None)
        for name in ("one", "two")
    )
    train(one)
    multiprocessing.spawn(train_as, (2, free_port(), two), nprocs=2)
    first, second = (read_log(given.output)[-1]["loss"] for given in (one, two))
    assert second == pytest.approx(first, rel=1e-5)
    before, after = (load_checkpoint(given.weights)[0].state_dict() for given in (one, two))
    apart = torch.cat([(before[name] - after[name]).abs().flatten() for name in before])
    assert (apart > 1e-5).float().mean() < 1e-3
    assert apart.max() < 2 * 3 * 1e-3

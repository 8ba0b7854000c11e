"""Train one stage on a folder of tomogram and mask pairs; stops and resumes at any step."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from etsam.clip_loss import PromptMix, clip_loss, run_clips
from etsam.dataset import Clips, ClipSampler, ClipShape, Pair, find_pairs, load_pair
from etsam.frames import FrameSpec
from etsam.losses import LossWeights
from etsam.sam2 import SAM2, SAM2Config, load_checkpoint, save_checkpoint

COMPACT = SAM2Config(
    image_size=512,
    in_channels=5,
    trunk="conv",
    widths=(32, 64, 96, 128),
    stages=(2, 2, 2, 2),
    patch_kernel=5,
    patch_stride=2,
    top_down_levels=(0, 1, 2),
    d_model=128,
    memory_dim=32,
    memory_layers=1,
    memory_feed_forward=256,
    memory_pool=2,
    num_maskmem=4,
    max_pointers=4,
    decoder_feed_forward=256,
    decoder_heads=4,
)
"""The bundled network: fine mask stride (2), five slices as channels, pooled memory."""
COMPACT_LOSSES = LossWeights(focal=10.0, dice=2.0, spread=0.3, absent=1.0, focal_alpha=0.5)
"""Losses for a network that starts from nothing; SAM 2's own push thin masks towards empty."""


@dataclass(frozen=True)
class Schedule:
    """Optimisation: AdamW, linear warm-up, cosine to ``last`` of the peak, weight averaging."""

    steps: int = 10_000
    batch: int = 4
    learning_rate: float = 1e-3
    last: float = 0.02
    warmup: int = 200
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    ema: float = 0.999

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        low = self.last * self.learning_rate
        return low + (self.learning_rate - low) * (1 + math.cos(math.pi * min(done, 1))) / 2


@dataclass(frozen=True)
class TrainOptions:
    """What to train, on what, and how.

    Attributes
    ----------
    stage
        1, or 2 (which needs stage-1 logits beside each tomogram).
    sizes
        Clip sizes in pixels, one drawn for each step.
    validation
        Folder of pairs that are never trained on; Dice is logged every ``every`` steps.
    """

    data: Path
    output: Path
    stage: Literal[1, 2] = 1
    validation: Path | None = None
    config: SAM2Config = COMPACT
    spec: FrameSpec = field(default_factory=FrameSpec)
    schedule: Schedule = field(default_factory=Schedule)
    losses: LossWeights = COMPACT_LOSSES
    frames: int = 4
    sizes: tuple[int, ...] = (128, 192, 256)
    device: str = "cpu"
    bfloat16: bool = True
    seed: int = 0
    every: int = 500
    start: Path | None = None


@dataclass
class _Run:
    """Everything that changes while training, and is saved to go on later."""

    model: SAM2
    average: SAM2
    optimiser: torch.optim.Optimizer
    sampler: ClipSampler
    random: np.random.Generator
    step: int = 0

    def state(self) -> dict[str, Any]:
        """All state, as plain types and tensors that ``weights_only`` loading accepts."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "sampler": json.dumps(self.sampler.random.bit_generator.state),
            "random": json.dumps(self.random.bit_generator.state),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the state of `state`."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.sampler.random.bit_generator.state = json.loads(state["sampler"])
        self.random.bit_generator.state = json.loads(state["random"])


def train(options: TrainOptions, log: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """Train until the schedule ends, resuming from ``output/state.pt`` when there is one.

    Writes ``log.jsonl``, ``state.pt``, validation pictures and the averaged weights
    ``stage{n}.safetensors`` into ``options.output``; each is replaced atomically.

    Returns
    -------
    weights
        Path of the averaged weights.

    Raises
    ------
    ValueError
        When there are no pairs, or a pair does not fit.
    """
    options.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    pairs = _load(options.data, options)
    held = _load(options.validation, options) if options.validation else []
    run = _start(options, pairs)
    prompts = PromptMix("grid" if options.stage == 1 else "zero")
    weights = options.output / f"stage{options.stage}.safetensors"
    began, losses = time.perf_counter(), []
    while run.step < options.schedule.steps:
        losses.append(_step(run, options, prompts))
        run.step += 1
        last = run.step == options.schedule.steps
        if run.step % 50 == 0 or last:
            seconds, began = time.perf_counter() - began, time.perf_counter()
            entry = {"step": run.step, "loss": float(np.mean(losses)), "seconds": seconds}
            losses = []
            if held and (run.step % options.every == 0 or last):
                entry |= validate(run.average, held, options)
                began = time.perf_counter()
            _write_log(options.output, entry, log)
        if run.step % options.every == 0 or last:
            _save(run, options, weights)
    return weights


def _load(folder: Path, options: TrainOptions) -> list[Pair]:
    found = find_pairs(folder)
    if not found:
        raise ValueError(f"no pairs in {folder}; expected NAME.mrc beside NAME_membrane.mrc")
    return [load_pair(*pair, options.spec, with_logits=options.stage == 2) for pair in found]


def _start(options: TrainOptions, pairs: list[Pair]) -> _Run:
    channels = options.spec.channels(feedback=options.stage == 2)
    config = replace(options.config, in_channels=channels)
    layout = torch.channels_last
    model = SAM2(config).to(options.device, memory_format=layout)  # type: ignore[call-overload]
    initialise(model)
    average = SAM2(config).to(options.device, memory_format=layout)  # type: ignore[call-overload]
    if options.start is not None:
        start_from(model, options.start, options.spec)
    average.load_state_dict(model.state_dict())
    average.eval().requires_grad_(False)
    optimiser = torch.optim.AdamW(_groups(model, options.schedule), betas=(0.9, 0.98), fused=True)
    sampler = ClipSampler(pairs, options.spec, options.seed)
    run = _Run(model, average, optimiser, sampler, np.random.default_rng(options.seed + 1))
    saved = options.output / "state.pt"
    if saved.is_file():
        run.restore(torch.load(saved, map_location=options.device, weights_only=True))
    return run


def initialise(model: SAM2) -> None:
    """Give embeddings that Meta's recipe starts at zero or tiny a useful size.

    A network from scratch on few clips learns faster when its memory is audible from the start.
    """
    with torch.no_grad():
        for name in ("maskmem_tpos_enc", "no_mem_embed", "no_obj_ptr", "no_obj_embed_spatial"):
            torch.nn.init.trunc_normal_(getattr(model, name), std=0.02)
        for layer in model.memory_encoder.fuser.layers:
            layer.get_parameter("gamma").fill_(0.1)


def start_from(model: SAM2, path: Path, spec: FrameSpec) -> None:
    """Take over another network's weights so that at first the answers are the same.

    Input channels are matched by their z offset; those the other network has not seen start at 0,
    and so does a context stem it has not got.
    """
    loaded, metadata = load_checkpoint(path)
    other = loaded.state_dict()
    seen = FrameSpec.from_dict(metadata["frame_spec"]).offsets
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            given = other.get(name)
            if given is None:
                if ".context.pointwise" in name:
                    tensor.zero_()
            elif given.shape == tensor.shape:
                tensor.copy_(given)
            else:
                tensor.zero_()
                tensor[:, [spec.offsets.index(z) for z in seen]] = given[:, : len(seen)].float()


def _groups(model: SAM2, schedule: Schedule) -> list[dict[str, Any]]:
    """No weight decay on biases, norms and embeddings."""
    decay = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    return [
        {"params": decay, "weight_decay": schedule.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def _step(run: _Run, options: TrainOptions, prompts: PromptMix) -> float:
    """One optimiser step; returns the loss."""
    schedule = options.schedule
    size = int(run.random.choice(options.sizes))
    # about the same number of pixels in every step
    batch = max(1, round(schedule.batch * (np.median(options.sizes) / size) ** 2))
    clips = _to_device(run.sampler.batch(batch, ClipShape(options.frames, size)), options)
    for group in run.optimiser.param_groups:
        group["lr"] = schedule.rate(run.step)
    device = torch.device(options.device).type
    with torch.autocast(device, torch.bfloat16, enabled=options.bfloat16):
        kind = prompts.draw(run.random)
        loss = clip_loss(run.model, clips, kind, options.losses, run.random)
    run.optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), schedule.clip_norm)
    run.optimiser.step()
    decay = min(schedule.ema, (1 + run.step) / (10 + run.step))
    with torch.no_grad():
        torch._foreach_lerp_(
            list(run.average.parameters()), list(run.model.parameters()), 1 - decay
        )
    return loss.item()


def _to_device(clips: Clips, options: TrainOptions) -> Clips:
    device = torch.device(options.device)
    return Clips(clips.frames.to(device), clips.labels.to(device))


@torch.no_grad()
def validate(model: SAM2, pairs: list[Pair], options: TrainOptions) -> dict[str, Any]:
    """Dice at logits > 0 over fixed clips with the automatic prompt, and a picture of some."""
    sampler = ClipSampler(pairs, options.spec, seed=0)
    random = np.random.default_rng(0)
    kind: Literal["grid", "zero"] = "grid" if options.stage == 1 else "zero"
    hits = found = truth = 0
    rows = []
    device = torch.device(options.device).type
    for _ in range(12):
        clips = _to_device(sampler.batch(2, ClipShape(6, max(options.sizes))), options)
        with torch.autocast(device, torch.bfloat16, enabled=options.bfloat16):
            answers = list(run_clips(model, clips, kind, random))
        for index, output in answers:
            logits = torch.nn.functional.interpolate(
                output.logits, clips.labels.shape[-2:], mode="bilinear"
            )[:, 0]
            label = clips.labels[:, index]
            mask, valid = logits > 0, label >= 0
            hits += int((mask & (label == 1)).sum())
            found += int((mask & valid).sum())
            truth += int((label == 1).sum())
        rows.append(
            _picture(clips.frames[0, -1, len(options.spec.offsets) // 2], label[0], logits[0])
        )
    path = options.output / f"validation_{options.stage}.png"
    Image.fromarray(np.concatenate(rows[:6])).save(path)
    return {
        "dice": 2 * hits / max(1, found + truth),
        "precision": hits / max(1, found),
        "recall": hits / max(1, truth),
    }


def _picture(grey: Tensor, label: Tensor, logits: Tensor) -> np.ndarray:
    """Grey values, labels and probabilities side by side, uint8."""
    panels = [grey.cpu() / 6 + 0.5, (label.cpu() + 1) / 2, logits.cpu().sigmoid()]
    return (torch.cat(panels, dim=1).clamp(0, 1) * 255).byte().numpy()


def _write_log(
    folder: Path, entry: dict[str, Any], log: Callable[[dict[str, Any]], None] | None
) -> None:
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    if log is not None:
        log(entry)


def _save(run: _Run, options: TrainOptions, weights: Path) -> None:
    state = options.output / "state.pt"
    partial = state.with_name("state.pt.partial")
    torch.save(run.state(), partial)
    os.replace(partial, state)
    provenance = {
        "stage": options.stage,
        "step": run.step,
        "schedule": asdict(options.schedule),
        "losses": asdict(options.losses),
        "frames": options.frames,
        "sizes": list(options.sizes),
        "pairs": len(run.sampler.pairs),
    }
    metadata = {"frame_spec": options.spec.to_dict(), "provenance": provenance}
    save_checkpoint(weights, run.average, metadata, half=False)

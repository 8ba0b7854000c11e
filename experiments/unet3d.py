"""A plain 3-D U-Net of 2.3 million parameters (one of our stages has 3.7), trained on the same pairs, to compare with.

    python experiments/tomograms.py simulated/ --shapes SEGMENTATIONS/
    python experiments/unet3d.py train simulated/ unet/ [--validation held/] [--steps 3000]
    python experiments/unet3d.py predict unet/unet3d.safetensors TOMOGRAM -o masks/

MemBrain-seg's network (MONAI's DynUNet, residual blocks, deep supervision) with fewer filters: 2.3
million parameters and three levels of pooling; slices are blurred as ours are. Training goes on
where it stopped; `predict` writes NAME_unet3d_logits.mrc from overlapping tiles, slab by slab. Needs
`pip install monai`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import DynUNet
from safetensors.torch import load_model, save_model
from script import run_script
from tomograms import SPEC, softened
from torch import Tensor, nn
from torch.nn import functional

from etsam.dataset import find_pairs
from etsam.frames import blurred
from etsam.intensity import IntensityScaling, measure_intensity
from etsam.metrics import IGNORE, Confusion, confusion
from etsam.volume import create_volume, open_tomogram, output_path

FILTERS = (24, 48, 96, 120)
HEADS = 2  # outputs of coarser levels that are trained too
CROP = (48, 96, 96)
TILE = (96, 160, 160)  # predicted at once
MARGIN = 16  # slices of it that only help their neighbours
SMOOTH = 1.0


def make_network() -> nn.Module:
    """Return the network: (b, 1, z, y, x) -> logits; (b, heads, 1, z, y, x) while training."""
    levels = len(FILTERS)
    network: nn.Module = DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        kernel_size=[3] * levels,
        strides=[1] + [2] * (levels - 1),
        upsample_kernel_size=[2] * (levels - 1),
        filters=FILTERS,
        res_block=True,
        deep_supervision=True,
        deep_supr_num=HEADS,
    )
    return network


def laid_out(network: nn.Module, layout: torch.memory_format) -> nn.Module:
    """The network with weights in a layout: channels last is faster, files want channels first."""
    network.to(memory_format=layout)  # type: ignore[call-overload]
    return network


@dataclass
class Pairs:
    """Volumes in memory as stored, with their scaling, and crops drawn from them."""

    grey: list[np.ndarray]
    labels: list[np.ndarray]
    scaling: list[IntensityScaling]
    random: np.random.Generator

    @classmethod
    def load(cls, folder: Path, seed: int) -> Pairs:
        """Read every pair of a folder that is at least as large as a crop."""
        pairs = cls([], [], [], np.random.default_rng(seed))
        for path, mask in find_pairs(folder):
            with open_tomogram(mask) as truth:
                if any(side < least for side, least in zip(truth.shape, CROP, strict=True)):
                    continue
            grey, labels, scaling = softened(path)
            pairs.grey.append(grey)
            pairs.labels.append(labels)
            pairs.scaling.append(scaling)
        if not pairs.grey:
            raise ValueError(f"{folder} has no pair of {CROP} voxels or more")
        return pairs

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        """Draw crops (b, 1, z, y, x) with labels, mirrored, turned in the plane, jittered."""
        crops = [self._crop() for _ in range(size)]
        return torch.stack([grey for grey, _ in crops]), torch.stack([true for _, true in crops])

    def _crop(self) -> tuple[Tensor, Tensor]:
        number = int(self.random.integers(len(self.grey)))
        shape = self.labels[number].shape
        starts = [
            int(self.random.integers(0, side - size + 1))
            for side, size in zip(shape, CROP, strict=True)
        ]
        box = tuple(slice(a, a + size) for a, size in zip(starts, CROP, strict=True))
        grey = self.scaling[number].apply(
            torch.from_numpy(self.grey[number][box].astype(np.float32))
        )
        labels = torch.from_numpy(self.labels[number][box])
        flips = [axis for axis in range(3) if self.random.random() < 0.5]
        turns = int(self.random.integers(4))
        grey, labels = (x.flip(flips).rot90(turns, (1, 2)) for x in (grey, labels))
        gain, shift = np.exp(0.25 * self.random.uniform(-1, 1)), 0.2 * self.random.uniform(-1, 1)
        grey = grey * gain + shift
        if self.random.random() < 0.25:
            grey = grey + 0.5 * self.random.random() * torch.randn(grey.shape)
        return grey[None].contiguous(), labels[None].contiguous()


def loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy plus Dice where annotated, summed over the heads with weights 1, 1/2, 1/4."""
    counted = (labels != IGNORE).float()
    true = (labels == 1).float()
    total = outputs.new_zeros(())
    for head, logits in enumerate(outputs.float().unbind(1)):
        entropy = functional.binary_cross_entropy_with_logits(
            logits, true, counted, reduction="sum"
        )
        found = logits.sigmoid() * counted
        overlap = 2 * (found * true).sum() + SMOOTH
        dice = 1 - overlap / (found.sum() + (true * counted).sum() + SMOOTH)
        total = total + (entropy / counted.sum().clamp(min=1) + dice) / 2**head
    return total


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Rise over the first 2 %, then fall along a cosine to a twentieth."""
    warm = max(1, steps // 50)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.05 + 0.475 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


def train(given: argparse.Namespace) -> None:
    """Train, writing unet3d.safetensors, log.jsonl and state.pt; go on where it stopped."""
    torch.manual_seed(given.seed)
    given.output.mkdir(parents=True, exist_ok=True)
    device = torch.device(given.device)
    network = laid_out(make_network().to(device), torch.channels_last_3d)
    optimiser = torch.optim.AdamW(network.parameters(), lr=given.learning_rate, weight_decay=0.01)
    state_path, step = given.output / "state.pt", 0
    if state_path.is_file():
        state = torch.load(state_path, map_location=device, weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        step = state["step"]
    pairs = Pairs.load(given.data, given.seed + step)
    began, losses = time.perf_counter(), []
    while step < given.steps:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, given.steps, given.learning_rate)
        grey, labels = (x.to(device) for x in pairs.batch(given.batch))
        with torch.autocast(device.type, torch.bfloat16, enabled=not given.float32):
            outputs = network(grey)
        value = loss(outputs, labels)
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        losses.append(value.item())
        step += 1
        if step % given.every == 0 or step == given.steps:
            entry = {"step": step, "loss": float(np.mean(losses))}
            if given.validation is not None:
                entry["dice"] = validate(network, given.validation)
            entry["seconds"] = round(time.perf_counter() - began, 1)
            losses = []
            _save(given.output, network, optimiser, step, entry)
            print(json.dumps(entry), flush=True)


def _save(
    folder: Path,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    step: int,
    entry: dict[str, float],
) -> None:
    partial = folder / "state.pt.partial"
    state = {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "step": step}
    torch.save(state, partial)
    partial.replace(folder / "state.pt")
    laid_out(network, torch.contiguous_format)
    save_model(network, str(folder / "unet3d.safetensors.partial"))  # its parts share tensors
    laid_out(network, torch.channels_last_3d)
    (folder / "unet3d.safetensors.partial").replace(folder / "unet3d.safetensors")
    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(entry) + "\n")


def validate(network: nn.Module, folder: Path) -> float:
    """Mean Dice at logit 0 over the pairs of a folder."""
    scores = []
    for path, mask in find_pairs(folder):
        with open_tomogram(mask) as truth:
            count = Confusion()
            for z, logits in enumerate(predict_slices(network, path)):
                count += confusion(logits > 0, truth.read_slice(z))
        scores.append(count.dice)
    return float(np.nanmean(scores))


def predict_slices(network: nn.Module, path: Path, *, invert: bool = False) -> Iterator[np.ndarray]:
    """Yield logits (Y, X) of every slice in order, from slabs of overlapping tiles."""
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    with open_tomogram(path) as tomogram, torch.inference_mode():
        soft = blurred(tomogram, SPEC, tomogram.voxel_spacing)
        scaling = measure_intensity(soft, SPEC.normalisation, invert=invert)
        depth = tomogram.shape[0]
        core = TILE[0] - 2 * MARGIN
        for start in range(0, depth, core):
            low, high = max(start - MARGIN, 0), min(start + core + MARGIN, depth)
            slab = np.stack([soft.read_slice(z) for z in range(low, high)])
            grey = scaling.apply(torch.from_numpy(slab))[None, None]
            with torch.autocast(device.type, torch.bfloat16):
                logits = sliding_window_inference(
                    grey.to(device), TILE, 1, network, overlap=0.25, mode="gaussian"
                )
            planes = logits[0, 0].float().cpu().numpy()
            yield from planes[start - low : min(start + core, depth) - low]
    network.train(training)


def load_network(path: Path, device: str = "cpu") -> nn.Module:
    """Return the network with trained weights."""
    network = make_network()
    load_model(network, path)
    return laid_out(network.to(device), torch.channels_last_3d).eval()


def predict(given: argparse.Namespace) -> None:
    """Write NAME_unet3d_logits.mrc."""
    network = load_network(given.weights, given.device)
    given.output.mkdir(parents=True, exist_ok=True)
    for path in given.tomograms:
        target = output_path(path, "_unet3d_logits", given.output)
        with (
            closing(open_tomogram(path)) as tomogram,
            create_volume(target, tomogram, dtype="float32", label="3-D U-Net") as writer,
        ):
            for z, logits in enumerate(predict_slices(network, path, invert=given.invert)):
                writer.write_slice(z, logits)
        print(target, flush=True)


def main() -> None:
    """Read the options and train or predict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True)
    trainer = verbs.add_parser("train")
    trainer.add_argument("data", type=Path)
    trainer.add_argument("output", type=Path)
    trainer.add_argument("--validation", type=Path)
    trainer.add_argument("--steps", type=int, default=3000)
    trainer.add_argument("--batch", type=int, default=2)
    trainer.add_argument("--learning-rate", type=float, default=1e-3)
    trainer.add_argument("--every", type=int, default=250, help="steps between logs and savings")
    trainer.add_argument("--seed", type=int, default=0)
    trainer.add_argument("--float32", action="store_true")
    trainer.set_defaults(run=train)
    predictor = verbs.add_parser("predict")
    predictor.add_argument("weights", type=Path)
    predictor.add_argument("tomograms", type=Path, nargs="+")
    predictor.add_argument("-o", "--output", type=Path, default=Path())
    predictor.add_argument("--invert", action="store_true", help="membranes are bright")
    predictor.set_defaults(run=predict)
    for verb in (trainer, predictor):
        verb.add_argument("--device", default="cpu")
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    run_script(main)

"""A slim 3-D U-Net of 3.5 million parameters (one of our stages has 3.7), trained on the same kinds of pairs.

    python experiments/unet3d.py prepare unet/ --shapes SEGMENTATIONS/ [--count 230]
    python experiments/unet3d.py train unet/ [--seconds 2150]
    python experiments/unet3d.py predict unet/unet3d.safetensors TOMOGRAM -o masks/

Its finest level has half the resolution, with cubes of two voxels a side as channels, so that two cores train
it: a step takes .8 s where MONAI's DynUNet of 2.3 million parameters at full resolution took 4.3. Tomograms
are those of `tomograms.py` for stage 2, of other seeds; slices are blurred and changed as ours are. Training
goes on where it stopped; its rate falls along a cosine over the seconds given.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from script import run_script
from tomograms import SPEC, Job, jobs, make, mask_of, softened
from torch import Tensor, nn
from torch.nn import functional as F

from etsam.frames import blurred
from etsam.intensity import IntensityScaling, measure_intensity
from etsam.sam2.checkpoint import written_whole
from etsam.simulate import limit_threads
from etsam.tiling import blend_weights, tiles
from etsam.training.augment import change_grey, grain, hide, patches
from etsam.volume import create_volume, open_tomogram, output_path

UNSEEN = 34_000
"""Seeds lie so far beyond the first of stage 2."""
WIDTHS = (32, 64, 96, 128)
"""Channels at strides of 2, 4, 8 and 16 voxels."""
FOLD, STRIDE = 2, 16
CROP, BATCH = (64, 112, 112), 2
PEAK, WARM = 1.5e-3, 60
LEAST, TRIES = 0.003, 3
"""Part of a crop that should be membrane, and how often one with less is drawn again."""
EMPTY = -2.5
"""Logit of a network that has learnt nothing."""
SMOOTH = 100.0
PATCHED, ENDED = 0.2, 0.3
"""Parts of the crops that lose contrast in places, or towards one end."""
CORE, MARGIN, TILE, OVERLAP = 64, 16, 256, 64
"""Slices predicted at once and beyond them; pixels, and those that neighbouring tiles share."""


class Block(nn.Module):
    """``x + conv(gelu(conv(gelu(norm(x)))))`` at constant width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.conv1 = nn.Conv3d(width, width, 3, padding=1)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1)
        nn.init.normal_(self.conv2.weight, std=0.01)  # begins as hardly anything

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(F.gelu(self.conv1(F.gelu(self.norm(x)))))
        return x + y


class UNet(nn.Module):
    """Grey values (b, 1, z, y, x), sides multiples of `STRIDE`, -> logits of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        first, *_, last = WIDTHS
        self.stem = nn.Conv3d(FOLD**3, first, 3, padding=1)
        self.down = nn.ModuleList(Block(width) for width in WIDTHS)
        self.deepest = Block(last)
        self.pools = nn.ModuleList(nn.Conv3d(a, b, 2, 2) for a, b in pairwise(WIDTHS))
        self.merges = nn.ModuleList(nn.Conv3d(b, a, 1) for a, b in pairwise(WIDTHS))
        self.up = nn.ModuleList(Block(width) for width in WIDTHS[:-1])
        self.head = nn.Conv3d(first, FOLD**3, 1)

    def forward(self, grey: Tensor) -> Tensor:
        b, _, *sides = grey.shape
        half = [side // FOLD for side in sides]
        split = [n for side in half for n in (side, FOLD)]
        cubes = grey.reshape(b, *split).permute(0, 2, 4, 6, 1, 3, 5)
        x = self.stem(cubes.reshape(b, FOLD**3, *half))
        levels = []
        for block, pool in zip(self.down, self.pools, strict=False):
            levels.append(block(x))
            x = pool(levels[-1])
        x = self.deepest(self.down[-1](x))
        steps = zip(reversed(self.up), reversed(self.merges), reversed(levels), strict=True)
        for block, merge, level in steps:
            x = block(level + F.interpolate(merge(x), scale_factor=2.0))
        cubes = self.head(F.gelu(x)).reshape(b, *[FOLD] * 3, *half)
        logits: Tensor = cubes.permute(0, 4, 1, 5, 2, 6, 3).reshape(grey.shape)
        return logits


def prepare(given: argparse.Namespace) -> None:
    """Simulate pairs and keep them as softened slices of bytes."""
    made = given.folder / "tomograms"
    made.mkdir(parents=True, exist_ok=True)
    work = jobs(made, 2, given.shapes, UNSEEN + given.count)[UNSEEN:]
    with ProcessPoolExecutor(given.workers, initializer=limit_threads) as pool:
        for path in pool.map(partial(keep, given.folder), work):
            print(path, flush=True)


def keep(folder: Path, job: Job) -> Path:
    """Simulate one pair, keep it as NAME.npz."""
    path, weight = make(job)
    grey, labels, scaling = softened(path)
    target = folder / f"{path.stem}.npz"
    described = json.dumps(asdict(scaling))
    with written_whole(target) as partial_file, partial_file.open("wb") as file:
        np.savez(file, grey=grey, labels=labels, weight=weight, scaling=described)
    path.unlink()
    mask_of(path).unlink()
    return target


@dataclass
class Stacks:
    """Pairs in memory, and crops drawn from them."""

    pairs: list[tuple[np.ndarray, np.ndarray, IntensityScaling]]
    weights: np.ndarray
    random: np.random.Generator

    @classmethod
    def load(cls, folder: Path, seed: int) -> Stacks:
        """Read what was prepared."""
        pairs, weights = [], []
        for path in sorted(folder.glob("*.npz")):
            with np.load(path) as kept:
                scaling = IntensityScaling(**json.loads(str(kept["scaling"])))
                pairs.append((kept["grey"], kept["labels"], scaling))
                weights.append(float(kept["weight"]))
        if not pairs:
            raise ValueError(f"{folder} holds no tomogram: run prepare first")
        return cls(pairs, np.array(weights) / sum(weights), np.random.default_rng(seed))

    def batch(self) -> tuple[Tensor, Tensor]:
        """Crops (b, 1, z, y, x), changed at random, with labels."""
        crops = [self._crop() for _ in range(BATCH)]
        return torch.stack([grey for grey, _ in crops]), torch.stack([true for _, true in crops])

    def _crop(self) -> tuple[Tensor, Tensor]:
        grey, labels, scaling = self.pairs[self.random.choice(len(self.pairs), p=self.weights)]
        for _ in range(TRIES):
            starts = [
                int(self.random.integers(0, side - size + 1))
                for side, size in zip(labels.shape, CROP, strict=True)
            ]
            box = tuple(slice(a, a + size) for a, size in zip(starts, CROP, strict=True))
            if (labels[box] == 1).mean() > LEAST:
                break
        seen = scaling.apply(torch.from_numpy(grey[box].astype(np.float32)))
        seen, true = changed(seen, torch.from_numpy(labels[box].copy()), self.random)
        return seen[None].contiguous(), true[None]


def changed(grey: Tensor, labels: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Change a crop with labels (both z, y, x) at random, as clips are (`etsam.training.augment`)."""
    axes = [axis for axis in range(3) if random.random() < 0.5]
    turns = int(random.integers(4))
    grey, labels = (x.flip(axes).rot90(turns, (1, 2)) for x in (grey, labels))
    generator = torch.Generator()
    generator.manual_seed(int(random.integers(2**62)))
    stack = change_grey(grey[None, None], [random], generator)
    if random.random() < PATCHED:
        stack = hide(stack, patches(stack, [random]), len(grey), generator)
    if random.random() < ENDED:
        soft = torch.tensor(random.random() < 0.7)
        noise = grain(stack.shape, soft, generator)
        stack = torch.lerp(stack, noise, _end(len(grey), random))
    return stack[0, 0], labels


def _end(depth: int, random: np.random.Generator) -> Tensor:
    """How much is hidden of each slice (1, 1, z, 1, 1): more and more towards one end."""
    place = torch.linspace(0, 1, depth)
    if random.random() < 0.5:
        place = place.flip(0)
    middle, width, most = random.uniform((0.3, 0.05, 0.4), (1.0, 0.3, 0.95))
    hidden: Tensor = torch.sigmoid((place - middle) / width) * most
    return hidden.view(1, 1, -1, 1, 1)


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Twice the cross-entropy plus Dice, where annotated."""
    counted, true = (labels >= 0).float(), (labels == 1).float()
    entropy = F.binary_cross_entropy_with_logits(logits, true, counted, reduction="sum")
    found = logits.sigmoid() * counted
    overlap = 2 * (found * true).sum() + SMOOTH
    dice = 1 - overlap / (found.sum() + (true * counted).sum() + SMOOTH)
    return 2 * entropy / counted.sum().clamp(min=1) + dice


def rate(step: int, part: float) -> float:
    """Rise over the first steps, then fall along a cosine to a few hundredths."""
    return PEAK * min(1, (step + 1) / WARM) * (0.515 + 0.485 * math.cos(math.pi * min(1, part)))


class Training:
    """A network, its average over steps and its optimiser, kept in state.pt."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.network = laid_out(UNet())
        assert self.network.head.bias is not None
        nn.init.constant_(self.network.head.bias, EMPTY)
        self.averaged = deepcopy(self.network)
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), PEAK, (0.9, 0.98), weight_decay=0.02
        )
        self.step, self.seconds = 0, 0.0
        if (folder / "state.pt").is_file():
            state = torch.load(folder / "state.pt", weights_only=True)
            self.step, self.seconds = state["step"], state["seconds"]
            for name, part in self._parts().items():
                part.load_state_dict(state[name])

    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        return {
            "network": self.network,
            "averaged": self.averaged,
            "optimiser": self.optimiser,
        }

    def learn(self, stacks: Stacks, part: float) -> float:
        """Take a step; return its loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate(self.step, part)
        grey, labels = stacks.batch()
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.network(grey.contiguous(memory_format=torch.channels_last_3d))
        value = loss(logits.float(), labels)
        self.optimiser.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        pairs = zip(self.averaged.parameters(), self.network.parameters(), strict=True)
        with torch.no_grad():
            for mean, now in pairs:
                mean.lerp_(now, max(0.005, 1 / (1 + self.step / 10)))
        return value.item()

    def save(self) -> None:
        """Write state.pt and unet3d.safetensors."""
        kept = {name: part.state_dict() for name, part in self._parts().items()}
        with written_whole(self.folder / "state.pt") as partial_file:
            torch.save(kept | {"step": self.step, "seconds": self.seconds}, partial_file)
        weights = {name: value.contiguous() for name, value in self.averaged.state_dict().items()}
        with written_whole(self.folder / "unet3d.safetensors") as partial_file:
            save_file(weights, partial_file)


def train(given: argparse.Namespace) -> None:
    """Train, writing unet3d.safetensors, log.jsonl and state.pt; go on where it stopped."""
    torch.manual_seed(given.seed)
    torch.set_flush_denormal(True)
    training = Training(given.folder)
    stacks, losses = Stacks.load(given.folder, given.seed + training.step), []
    began = time.perf_counter() - training.seconds
    while training.seconds < given.seconds:
        losses.append(training.learn(stacks, training.seconds / given.seconds))
        training.seconds = time.perf_counter() - began
        if training.step % given.every == 0 or training.seconds >= given.seconds:
            entry = {
                "step": training.step,
                "loss": round(float(np.mean(losses)), 4),
                "seconds": round(training.seconds),
            }
            losses = []
            print(json.dumps(entry), flush=True)
            with (given.folder / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(entry) + "\n")
            training.save()


def laid_out(network: UNet) -> UNet:
    """The network with weights as convolutions on CPUs want them."""
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return network


def load_network(path: Path) -> UNet:
    """Return the network with trained weights."""
    network = UNet()
    network.load_state_dict(load_file(path))
    return laid_out(network).eval()


@torch.inference_mode()
def predict_slices(network: UNet, path: Path, *, invert: bool = False) -> Iterator[np.ndarray]:
    """Yield logits (Y, X) of every slice in order, from slabs of overlapping tiles."""
    with open_tomogram(path) as tomogram:
        soft = blurred(tomogram, SPEC, tomogram.voxel_spacing)
        scaling = measure_intensity(soft, SPEC.normalisation, invert=invert)
        depth, height, width = tomogram.shape
        regions = tiles((height, width), (TILE, TILE), OVERLAP)
        weights = blend_weights(regions, (height, width), OVERLAP)
        for start in range(0, depth, CORE):
            low, high = max(start - MARGIN, 0), min(start + CORE + MARGIN, depth)
            slices = np.stack([soft.read_slice(z) for z in range(low, high)])
            slab = scaling.apply(torch.from_numpy(slices))
            logits = np.zeros(slab.shape, np.float32)
            for region, weight in zip(regions, weights, strict=True):
                box = (slice(None), *region.box)
                logits[box] += weight * _run(network, slab[box])
            yield from logits[start - low : min(start + CORE, depth) - low]


def _run(network: UNet, grey: Tensor) -> np.ndarray:
    """Logits of a block (z, y, x), its last planes repeated up to whole strides."""
    padding = [n for side in reversed(grey.shape) for n in (0, -side % STRIDE)]
    block = F.pad(grey[None, None], padding, mode="replicate")
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(block.contiguous(memory_format=torch.channels_last_3d))
    depth, height, width = grey.shape
    return np.asarray(logits[0, 0, :depth, :height, :width].float())


def predict(given: argparse.Namespace) -> None:
    """Write NAME_unet3d_logits.mrc."""
    network = load_network(given.weights)
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
    """Read the options; prepare, train or predict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(required=True)
    preparer, trainer = verbs.add_parser("prepare"), verbs.add_parser("train")
    for verb, run in ((preparer, prepare), (trainer, train)):
        verb.add_argument("folder", type=Path)
        verb.set_defaults(run=run)
    preparer.add_argument("--shapes", type=Path, help="folder of the real segmentations")
    preparer.add_argument("--count", type=int, default=230, help="tomograms")
    preparer.add_argument("--workers", type=int, default=2)
    trainer.add_argument("--seconds", type=float, default=2150, help="of training in all")
    trainer.add_argument("--every", type=int, default=50, help="steps between logs and savings")
    trainer.add_argument("--seed", type=int, default=77)
    predictor = verbs.add_parser("predict")
    predictor.add_argument("weights", type=Path)
    predictor.add_argument("tomograms", type=Path, nargs="+")
    predictor.add_argument("-o", "--output", type=Path, default=Path())
    predictor.add_argument("--invert", action="store_true", help="membranes are bright")
    predictor.set_defaults(run=predict)
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    run_script(main)

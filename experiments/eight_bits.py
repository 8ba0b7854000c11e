"""What rounding the bundled trunks' convolutions to eight bits does to a mask.

    python experiments/eight_bits.py TOMOGRAM --labels LABELS --box 0:256,120:440,8:328

Numbers are rounded as int8 would round them and computed as usual: weights by channel, inputs by layer,
on a scale set by the layer's first input (its 99.99th percentile and a tenth more). Printed are the Dice
of both masks with each other and, with labels, of each with those.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from script import run_script
from torch import Tensor, nn

from etsam.metrics import confusion
from etsam.options import LOGIT_THRESHOLD, SegmentOptions
from etsam.pipeline import Volume, segment_slices
from etsam.stages import Stage, load_stages
from etsam.volume import open_tomogram, tomogram_from_array

LARGEST = 127
KEPT = 0.9999
"""Part of a layer's first input that is not cut off."""


def rounded(values: Tensor, largest: Tensor) -> Tensor:
    """Values on a scale of int8, in the type they had."""
    step = largest / LARGEST
    return ((values.float() / step).round().clamp(-LARGEST, LARGEST) * step).to(values.dtype)


class RoundInput:
    """Rounds what goes into a layer."""

    def __init__(self) -> None:
        self.largest: Tensor | None = None

    def __call__(self, _: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
        """Round the layer's only argument."""
        if self.largest is None:
            sizes = given[0].float().abs().flatten()
            self.largest = 1.1 * sizes.kthvalue(int(KEPT * len(sizes))).values
        return (rounded(given[0], self.largest),)


def round_trunk(stage: Stage) -> None:
    """Round the trunk's convolutions over more than a pixel, those that `convolutions.py` times."""
    for layer in stage.model.image_encoder.trunk.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
            sizes = layer.weight.detach().float().abs().amax((1, 2, 3), keepdim=True)
            layer.weight.data = rounded(layer.weight.data, sizes)
            layer.register_forward_pre_hook(RoundInput())


def box(text: str) -> tuple[slice, ...]:
    """Read Z0:Z1,Y0:Y1,X0:X1."""
    return tuple(slice(*map(int, part.split(":"))) for part in text.split(","))


def main() -> None:
    """Segment twice and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tomogram", type=Path)
    parser.add_argument("--labels", type=Path)
    parser.add_argument("--box", type=box, default=(), help="only this part, Z0:Z1,Y0:Y1,X0:X1")
    given = parser.parse_args()
    with open_tomogram(given.tomogram) as tomogram:
        spacing = tomogram.voxel_spacing
        grey = tomogram.read_slices(0, tomogram.shape[0])[given.box].copy()
    options = SegmentOptions()
    stages = load_stages(options)
    volume = Volume(tomogram_from_array(grey), spacing)
    masks = []
    with torch.inference_mode():
        for change in (lambda _: None, round_trunk):
            for stage in stages:
                change(stage)
            logits = segment_slices(volume, stages, options)
            masks.append(np.stack([plane > LOGIT_THRESHOLD for plane in logits]))
    usual, eight = masks
    print(f"masks with each other: Dice {confusion(eight, usual.astype(np.int8)).dice:.4f}")
    if given.labels is not None:
        with open_tomogram(given.labels) as annotation:
            labels = annotation.read_slices(0, annotation.shape[0])[given.box]
        for name, mask in (("as usual", usual), ("eight bits", eight)):
            print(f"{name}, with the labels: Dice {confusion(mask, labels).dice:.4f}")


if __name__ == "__main__":
    run_script(main)

"""How well the lysosome's annotation tells its own slices: what a score against it can be at most.

    python experiments/annotation.py [--prediction LOGITS]

The annotated wall goes round one vesicle, so each slice has one radius an angle. Each slice is drawn
anew from those of the annotation `k` slices before and behind it (the mean of both radii, as thick as
the slice's own wall), and scored against what was annotated there. `k = 0` draws a slice from itself:
what drawing by angles costs. A prediction (logits or a mask) is scored beside it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from lysosome import FOLDER
from script import run_script

from etsam.metrics import Confusion, confusion
from etsam.options import LOGIT_THRESHOLD
from etsam.volume import Tomogram, open_tomogram

ANGLES = 360
APART = (0, 1, 2, 3, 4)
SLABS = ((24, 60), (60, 72), (72, 96), (96, 168), (168, 192), (192, 220), (24, 220))
LEAST = 50
"""Voxels of wall that a slice needs to be drawn."""


class Polar:
    """Pixels of a slice as angle and radius round the vesicle's middle."""

    def __init__(self, ring: np.ndarray) -> None:
        y, x = np.nonzero(ring)
        system = np.stack([x, y, np.ones(len(x))], 1)
        middle = np.linalg.lstsq(system, x**2 + y**2, rcond=None)[0] / 2
        down, right = np.indices(ring.shape)
        down, right = down - middle[1], right - middle[0]
        turn = np.arctan2(down, right) / (2 * np.pi) + 0.5
        self.radius = np.hypot(down, right)
        self.angle = np.minimum((turn * ANGLES).astype(int), ANGLES - 1)

    def wall(self, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Radius and half thickness [pixels] at each angle; NaN where there is no wall."""
        angle, radius = self.angle[mask], self.radius[mask]
        count = np.bincount(angle, minlength=ANGLES)
        count = np.where(count > 0, count, np.nan)
        mean = np.bincount(angle, radius, ANGLES) / count
        square = np.bincount(angle, radius**2, ANGLES) / count
        return mean, np.sqrt(3 * np.maximum(square - mean**2, 0)) + 0.3

    def draw(self, mean: np.ndarray, half: np.ndarray) -> np.ndarray:
        """The mask of a wall; at angles of NaN there is none."""
        inside: np.ndarray = np.abs(self.radius - mean[self.angle]) <= half[self.angle]
        return inside


def walls(labels: Tomogram, polar: Polar) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """The annotated walls by slice."""
    found = {}
    for z in range(labels.shape[0]):
        mask = labels.read_slice(z) == 1
        if mask.sum() >= LEAST:
            found[z] = polar.wall(mask)
    return found


def count(labels: Tomogram, prediction: Tomogram | None) -> dict[str, dict[int, Confusion]]:
    """Count each way of telling a slice, slice by slice."""
    sizes = [int((labels.read_slice(z) == 1).sum()) for z in range(labels.shape[0])]
    polar = Polar(labels.read_slice(int(np.argmax(sizes))) == 1)
    known = walls(labels, polar)
    thickness = np.nanmedian([half for _, half in known.values()])
    counts: dict[str, dict[int, Confusion]] = {}
    for z, (_, own) in known.items():
        truth = labels.read_slice(z).astype(np.int8)
        half = np.where(np.isnan(own), thickness, own)
        for apart in APART:
            if z - apart in known and z + apart in known:
                mean = (known[z - apart][0] + known[z + apart][0]) / 2
                drawn = confusion(polar.draw(mean, half), truth)
                counts.setdefault(f"annotation, k = {apart}", {})[z] = drawn
        if prediction is not None:
            threshold = LOGIT_THRESHOLD if prediction.dtype.kind == "f" else 0
            seen = confusion(prediction.read_slice(z) > threshold, truth)
            counts.setdefault("prediction", {})[z] = seen
    return counts


def main() -> None:
    """Read the options and print Dice by slices."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=Path, default=FOLDER / "partial_labels.mrc")
    parser.add_argument("--prediction", type=Path, help="mask or logits, to score beside")
    given = parser.parse_args()
    with open_tomogram(given.labels) as labels:
        if given.prediction is None:
            counts = count(labels, None)
        else:
            with open_tomogram(given.prediction) as prediction:
                counts = count(labels, prediction)
    print("Dice in slices".ljust(22) + "".join(f"{low}-{high - 1}".rjust(9) for low, high in SLABS))
    for name, slices in counts.items():
        sums = [
            sum((slices[z] for z in range(*slab) if z in slices), Confusion()) for slab in SLABS
        ]
        print(name.ljust(22) + "".join(f"{total.dice:9.3f}" for total in sums))


if __name__ == "__main__":
    run_script(main)

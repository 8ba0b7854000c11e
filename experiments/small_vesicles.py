"""Score small vesicles, such as synaptic ones, at the voxel sizes of whole cells.

    python experiments/small_vesicles.py small/ --model compact

Four simulated tomograms of 9.5 and 12 Å, soft and noisy or sharp and clear, of vesicles with radii of 140 to
320 Å; seeds that training never uses. For each, Dice, precision and recall where it is labelled, and the part of
the vesicles of each size of which less than a third is found.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import mrcfile
import numpy as np
from scipy import ndimage
from script import run_script

from etsam.metrics import confusion
from etsam.options import SegmentOptions
from etsam.pipeline import Volume, segment_slices
from etsam.simulate import simulate_one
from etsam.simulation.recipe import SimulationOptions
from etsam.simulation.suite import FIRST_HELD_OUT_SEED
from etsam.stages import Stage, load_stages
from etsam.volume import open_tomogram

SHAPE = (64, 320, 320)
FIRST_SEED = FIRST_HELD_OUT_SEED + 100
SIZES = (0.0, 160.0, 200.0, 240.0, 280.0, 400.0)
"""Radii [Å] between which vesicles are counted together."""
LEAST = 400
"""Labelled voxels of a vesicle that counts."""
FOUND = 1 / 3
COMMON = SimulationOptions(
    preset="vesicles", bright_membranes=False, views=41, carbon=False, vesicles=60, radii=(140, 320)
)
SCENES = tuple(
    replace(COMMON, voxel_spacing=spacing, contrast_to_noise=ratio, blur=blur, core=core, gold=gold)
    for spacing in (9.5, 12.0)
    for ratio, blur, core, gold in ((1.0, 8.0, 0.0, 3), (2.5, 0.0, 0.25, 8))
)


@dataclass(frozen=True)
class Vesicle:
    """One vesicle that lies within the field: radius [Å] and the part of its wall that was found."""

    radius: float
    found: float


def vesicles(labels: np.ndarray, mask: np.ndarray, spacing: float) -> Iterator[Vesicle]:
    """What became of each vesicle of labels (Z, Y, X); its radius is the larger one in plane."""
    numbered, _ = ndimage.label(labels != 0, np.ones((3, 3, 3)))
    for number, box in enumerate(ndimage.find_objects(numbered), 1):
        wall = (numbered[box] == number) & (labels[box] == 1)
        plane = list(zip(box[1:], labels.shape[1:], strict=True))
        if wall.sum() < LEAST or not all(s.start > 0 and s.stop < n for s, n in plane):
            continue
        radius = max(side.stop - side.start for side, _ in plane) / 2 * spacing
        yield Vesicle(radius, float(mask[box][wall].mean()))


def judge(path: Path, stages: list[Stage], options: SegmentOptions) -> dict[str, object]:
    """Figures of one tomogram."""
    labels = mrcfile.read(path.with_name(f"{path.stem}_membrane.mrc"))
    with closing(open_tomogram(path)) as tomogram:
        spacing = tomogram.voxel_spacing
        assert spacing is not None
        slices = segment_slices(Volume(tomogram, spacing), stages, options)
        mask = np.stack([logits > options.logit_threshold for logits in slices])
    counts = confusion(mask, labels)
    found = list(vesicles(labels, mask, spacing[-1]))
    missed = {}
    for low, high in zip(SIZES, (*SIZES[1:], np.inf), strict=True):
        parts = [vesicle.found for vesicle in found if low <= vesicle.radius < high]
        if parts:
            missed[f"{low:g} Å"] = f"{sum(part < FOUND for part in parts)} of {len(parts)}"
    figures = {name: round(getattr(counts, name), 3) for name in ("dice", "precision", "recall")}
    return {"tomogram": path.stem, **figures, "missed from": missed}


def main() -> None:
    """Simulate what is not there, segment and score it; a JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="compact", help="name or folder")
    given = parser.parse_args()
    options = SegmentOptions(model=given.model, polarity="dark")
    stages = load_stages(options)
    for number, scene in enumerate(SCENES):
        path = simulate_one(given.folder, FIRST_SEED + number, SHAPE, scene, f"small{number}")
        print(json.dumps(judge(path, stages, options), ensure_ascii=False), flush=True)


if __name__ == "__main__":
    run_script(main)

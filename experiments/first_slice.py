"""Which remedy predicts the first slices best, now that slice 0 need not return its prompt?

    python experiments/first_slice.py HELD_OUT_FOLDER [--model compact] [--slices 12]

SAM 2 returns a mask prompt as the answer of its slice, so the released pipeline has no prediction
there. Compared, on simulated pairs that were never trained on: the reference's behaviour, the
prompt on a virtual copy of slice 0 (lead-in 1, our default), and on a mirrored run of 3 and 6
virtual slices, which also fills the memory before slice 0. One line of Dice per slice.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from script import run_script

from etsam.dataset import find_pairs
from etsam.intensity import measure_intensity
from etsam.logits import ScratchLogits
from etsam.metrics import Confusion, confusion
from etsam.options import LOGIT_THRESHOLD, SegmentOptions
from etsam.pipeline import DEFAULT_PROMPTS, StageRun, Volume, as_seen, run_stage
from etsam.stages import Stage, load_stages
from etsam.volume import Tomogram, open_tomogram, tomogram_from_array

LEAD_INS = (0, 1, 3, 6)


def runs_of(tomogram: Tomogram, count: int, stages: list[Stage]) -> list[StageRun]:
    """Both stages on the first slices, with the grey-value scaling of all."""
    start = tomogram_from_array(tomogram.read_slices(0, count))
    first, whole = (Volume(part, tomogram.voxel_spacing) for part in (start, tomogram))
    return [
        StageRun(
            stage,
            as_seen(first, stage),
            prompt,
            scaling=measure_intensity(as_seen(whole, stage).slices, stage.spec.normalisation),
        )
        for stage, prompt in zip(stages, DEFAULT_PROMPTS, strict=True)
    ]


def first_logits(runs: list[StageRun], lead: int) -> Iterator[np.ndarray]:
    """Logits of the last stage with a lead-in."""
    first, second = (replace(run, lead_in=lead) for run in runs)
    with ScratchLogits(first.volume.slices.shape) as scratch:
        with closing(run_stage(first)) as slices:
            for z, logits in enumerate(slices):
                scratch.write_slice(z, logits)
        with closing(run_stage(replace(second, feedback=scratch))) as slices:
            yield from slices


def main() -> None:
    """Print Dice by slice for each lead-in."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--slices", type=int, default=12)
    given = parser.parse_args()
    stages = load_stages(SegmentOptions(model=given.model))
    counts = {lead: [Confusion()] * given.slices for lead in LEAD_INS}
    for tomogram_path, mask_path in find_pairs(given.folder):
        with open_tomogram(tomogram_path) as tomogram, open_tomogram(mask_path) as mask:
            runs = runs_of(tomogram, given.slices, stages)
            labels = mask.read_slices(0, given.slices).astype(np.int8)
        for lead in LEAD_INS:
            for z, logits in enumerate(first_logits(runs, lead)):
                counts[lead][z] += confusion(logits > LOGIT_THRESHOLD, labels[z])
    print("lead-in  " + "".join(f"z={z:<6}" for z in range(given.slices)))
    for lead in LEAD_INS:
        print(f"{lead:<9}" + "".join(f"{c.dice:<8.3f}" for c in counts[lead]))


if __name__ == "__main__":
    run_script(main)

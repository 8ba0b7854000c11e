"""Score both stages on a folder of tomogram and mask pairs, such as the held-out suite.

    etsam simulate suite/ --suite                # never trained on
    python experiments/suite.py suite/ [--model compact]

A line per tomogram, Dice at the default threshold and AUPRC for stage 1 and stage 2; then means.
"""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

import numpy as np

from etsam.dataset import find_pairs
from etsam.intensity import measure_intensity
from etsam.logits import ScratchLogits
from etsam.metrics import Confusion, ScoreHistogram, confusion
from etsam.options import LOGIT_THRESHOLD, SegmentOptions
from etsam.pipeline import DEFAULT_PROMPTS, StageRun, Volume, run_stage
from etsam.prompts import LEAD_IN
from etsam.stages import Stage, load_stages
from etsam.volume import Tomogram, open_tomogram


def score(tomogram: Tomogram, labels: Tomogram, stages: list[Stage]) -> list[tuple[float, float]]:
    """Dice and AUPRC of each stage."""
    scaling = measure_intensity(tomogram, stages[0].spec.normalisation)
    volume = Volume(tomogram, tomogram.voxel_spacing)
    feedback: ScratchLogits | None = None
    scores = []
    for stage, prompt in zip(stages, DEFAULT_PROMPTS, strict=True):
        run = StageRun(stage, volume, prompt, lead_in=LEAD_IN, scaling=scaling, feedback=feedback)
        counts, histogram = Confusion(), ScoreHistogram()
        scratch = ScratchLogits(tomogram.shape)
        with closing(run_stage(run)) as slices:
            for z, logits in enumerate(slices):
                scratch.write_slice(z, logits)
                truth = labels.read_slice(z).astype(np.int8)
                counts += confusion(logits > LOGIT_THRESHOLD, truth)
                histogram.add(logits, truth)
        scores.append((counts.dice, histogram.curve().average_precision))
        feedback = scratch
    return scores


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="compact")
    given = parser.parse_args()
    stages = load_stages(SegmentOptions(model=given.model))
    rows = []
    print(f"{'tomogram':<24}{'Dice 1':>8}{'AUPRC 1':>9}{'Dice 2':>8}{'AUPRC 2':>9}")
    for tomogram_path, mask_path in find_pairs(given.folder):
        with open_tomogram(tomogram_path) as tomogram, open_tomogram(mask_path) as labels:
            (dice1, area1), (dice2, area2) = score(tomogram, labels, stages)
        rows.append((dice1, area1, dice2, area2))
        print(
            f"{tomogram_path.stem:<24}{dice1:8.3f}{area1:9.3f}{dice2:8.3f}{area2:9.3f}", flush=True
        )
    means = np.nanmean(rows, axis=0)
    print(f"{'mean':<24}{means[0]:8.3f}{means[1]:9.3f}{means[2]:8.3f}{means[3]:9.3f}")


if __name__ == "__main__":
    main()

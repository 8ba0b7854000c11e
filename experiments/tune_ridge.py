"""Fit the ridge filter's three numbers on simulated pairs, for a few choices of its scales.

    python experiments/tune_ridge.py simulated/ [--pairs 20] [--crop 160]

For each choice: a logistic fit of both features over all pairs, the offset moved to where the mean
Dice at 0 is best, and that Dice with the mean AUPRC. Never run it on the lysosome or the suite.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from script import run_script

from etsam.baselines.ridge import RidgeOptions, ridge_features
from etsam.metrics import ScoreHistogram
from etsam.volume import open_tomogram, tomogram_from_array

CHOICES = (
    RidgeOptions(scales=(12.0, 20.0), votes=40.0),
    RidgeOptions(scales=(12.0, 20.0), votes=25.0),
    RidgeOptions(scales=(9.0, 15.0), votes=30.0),
    RidgeOptions(scales=(16.0,), votes=30.0),
    RidgeOptions(scales=(20.0,), votes=40.0),
    RidgeOptions(scales=(18.0, 26.0), votes=60.0),
)
SAMPLE = 40_000  # voxels of a pair used for the fit

Sample = tuple[np.ndarray, np.ndarray]


def load(folder: Path, pairs: int, crop: int, options: RidgeOptions) -> list[Sample]:
    """Features (n, 2), logarithmic, and labels of the annotated voxels of each pair with membrane."""
    found = []
    for mask in sorted(folder.glob("*_membrane.mrc"))[:pairs]:
        path = mask.with_name(mask.name.replace("_membrane", ""))
        with open_tomogram(path) as tomogram, open_tomogram(mask) as truth:
            labels = truth.read_slices(0, truth.shape[0])[:, :crop, :crop]
            if not (labels == 1).any():
                continue
            data = tomogram.read_slices(0, tomogram.shape[0])[:, :crop, :crop]
            spacing = tomogram.voxel_spacing
            assert spacing is not None
        features = ridge_features(tomogram_from_array(data, voxel_spacing=spacing[0]), options)
        both = np.stack(features.logarithms(), -1)[labels >= 0]
        found.append((both, labels[labels >= 0] == 1))
    return found


def fit(samples: list[Sample]) -> np.ndarray:
    """Gains and offset of a logistic regression on as many voxels of each pair."""
    random = np.random.default_rng(0)
    places = [random.choice(len(labels), min(SAMPLE, len(labels)), False) for _, labels in samples]
    features = np.concatenate([x[at] for (x, _), at in zip(samples, places, strict=True)])
    labels = np.concatenate([y[at] for (_, y), at in zip(samples, places, strict=True)])
    design = np.column_stack([features, np.ones(len(features))])

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = design @ weights
        error = 1 / (1 + np.exp(-logits)) - labels
        return float(np.mean(np.logaddexp(0, logits) - labels * logits)), design.T @ error / len(
            error
        )

    weights: np.ndarray = minimize(loss, np.array([1.0, 1.0, -4.0]), jac=True).x
    return weights


def score(samples: list[Sample], weights: np.ndarray) -> tuple[float, float, float]:
    """Offset that makes the mean Dice at 0 best, that Dice, and the mean AUPRC."""
    steps = np.arange(-4, 2.01, 0.25)
    dice, areas = [], []
    for features, labels in samples:
        histogram = ScoreHistogram()
        logits = (features @ weights[:2] + weights[2]).astype(np.float32)
        histogram.add(logits, labels.astype(np.int8))
        dice.append([count.dice for count in histogram.confusions(steps)])
        areas.append(histogram.curve().average_precision)
    means = np.nanmean(dice, axis=0)
    best = int(means.argmax())
    return float(weights[2] - steps[best]), float(means[best]), float(np.mean(areas))


def main() -> None:
    """Print a line per choice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--crop", type=int, default=160, help="Y and X, in voxels")
    given = parser.parse_args()
    for options in CHOICES:
        samples = load(given.folder, given.pairs, given.crop, options)
        weights = fit(samples)
        offset, dice, area = score(samples, weights)
        numbers = f"ridge {weights[0]:.3f}  votes {weights[1]:.3f}  offset {offset:.3f}"
        print(
            f"{options.scales} {options.votes:g}: {numbers}  Dice {dice:.3f}  AUPRC {area:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    run_script(main)

"""Measure how membranes are told apart on simulations with known membranes, against plain components.

python experiments/instances.py            # exact masks of the held-out suite's samples
python experiments/instances.py 1.3        # masks 1.3 times as thick, so that more neighbours touch
python experiments/instances.py LOGITS     # with NAME_membrane_logits.mrc of suite tomograms in a folder
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from scipy.special import comb

from etsam.frame import Frame
from etsam.instances import plain_components, separate_membranes
from etsam.membrane import Membrane, load_membrane
from etsam.simulation.labels import label_thickness
from etsam.simulation.recipe import draw
from etsam.simulation.render import quarter_turn
from etsam.simulation.sample import build_sample
from etsam.simulation.suite import SUITE_SHAPE, SuiteEntry, held_out_suite

SMALLEST = (
    200  # voxels; smaller pieces of a true membrane, cut off by the field's edge, are not scored
)


def true_membranes(entry: SuiteEntry, thicker: float = 1.0) -> tuple[NDArray[np.int32], float]:
    """Return the membranes of a suite sample, numbered from 1 (Z, Y, X), and the voxel spacing [Å].

    A membrane that the field cuts into several pieces counts as several.
    """
    rng = np.random.default_rng(entry.seed)
    recipe = draw(rng, entry.options)
    turn, axis = quarter_turn(recipe.tilt.axis_angle)
    recipe = replace(recipe, tilt=replace(recipe.tilt, axis_angle=axis))
    z, y, x = SUITE_SHAPE
    size = (z, x, y) if turn else SUITE_SHAPE
    padded = [next_fast_len(n + 2 * recipe.margin, real=True) for n in size[1:]]
    whole = (size[0] + 2 * recipe.depth_margin, padded[0], padded[1])
    scene = build_sample(whole, recipe, entry.options, rng)
    crop = tuple(slice((w - n) // 2, (w - n) // 2 + n) for w, n in zip(whole, size, strict=True))
    near = scene.distance[crop].abs() <= thicker * label_thickness(scene.spacing) / 2
    numbers = (scene.instance[crop] * near).numpy()
    pieces = cc3d.connected_components(numbers.astype(np.uint16), connectivity=26)
    if turn:
        pieces = pieces.transpose(0, 2, 1)
    return np.ascontiguousarray(pieces, np.int32), scene.spacing


def adjusted_rand(found: NDArray[np.integer], true: NDArray[np.integer]) -> float:
    """Return the adjusted Rand index of two labellings of the same voxels (Hubert and Arabie, 1985)."""
    pairs = np.unique(np.stack([found, true]), axis=1, return_counts=True)[1]
    rows = np.unique(found, return_counts=True)[1]
    columns = np.unique(true, return_counts=True)[1]
    both, a, b = (float(comb(counts, 2).sum()) for counts in (pairs, rows, columns))
    expected = a * b / float(comb(found.size, 2))
    best = (a + b) / 2
    return 1.0 if best == expected else (both - expected) / (best - expected)


def instance_dice(found: NDArray[np.integer], true: NDArray[np.integer]) -> float:
    """Return the mean over true membranes of the Dice with the label that covers most of each."""
    scores = []
    for number in np.unique(true):
        own = true == number
        names, counts = np.unique(found[own], return_counts=True)
        best = names[counts.argmax()]
        scores.append(2 * counts.max() / (own.sum() + (found == best).sum()))
    return float(np.mean(scores))


def main(arguments: list[str]) -> None:
    """Print a line per sample and the means."""
    rows = []
    thicker = float(arguments[0]) if arguments and not Path(arguments[0]).is_dir() else 1.0
    print(f"{'sample':22s} membranes   plain: ARI  Dice  count   separated: ARI  Dice  count")
    for entry in held_out_suite():
        true, spacing = true_membranes(entry, thicker)
        sizes = np.bincount(true.ravel())
        if (sizes[1:] >= SMALLEST).sum() < 2:
            continue
        if arguments and Path(arguments[0]).is_dir():
            path = Path(arguments[0]) / f"{entry.name}_membrane_logits.mrc"
            if not path.is_file():
                continue
            membrane = load_membrane(path, voxel_spacing=spacing)
        else:
            membrane = Membrane(true > 0, None, Frame(SUITE_SHAPE, (spacing,) * 3))
        scored = membrane.mask & (sizes >= SMALLEST)[true] & (true > 0)
        figures = []
        for method in (plain_components, separate_membranes):
            result = method(membrane)
            labels = result.labels[scored].astype(np.int32)
            figures += [adjusted_rand(labels, true[scored]), instance_dice(labels, true[scored])]
            figures.append(int(np.count_nonzero(result.voxels >= SMALLEST)))
        rows.append(figures)
        line = "  ".join(f"{figure:9.3f}" for figure in figures)
        print(f"{entry.name:22s} {(sizes[1:] >= SMALLEST).sum():6d}  {line}", flush=True)
    line = "  ".join(f"{figure:9.3f}" for figure in np.mean(rows, axis=0))
    print(f"{'mean':22s}         {line}")


if __name__ == "__main__":
    main(sys.argv[1:])

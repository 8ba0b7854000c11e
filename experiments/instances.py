"""Measure how membranes are told apart on simulations with known membranes, against plain components.

python experiments/instances.py touching [KIND...] # masks of membranes that touch (experiments/touching.py)
python experiments/instances.py touching-logits   # the same with logits
python experiments/instances.py                   # exact masks of the held-out suite's samples
python experiments/instances.py 1.3               # masks 1.3 times as thick, so that more neighbours touch
python experiments/instances.py LOGITS            # with NAME_membrane_logits.mrc of suite tomograms in a folder
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.fft import next_fast_len
from scipy.special import comb
from touching import scenes

from etsam.frame import Frame
from etsam.instances import plain_components, separate_membranes
from etsam.membrane import Membrane, load_membrane
from etsam.simulation.labels import label_thickness
from etsam.simulation.recipe import draw
from etsam.simulation.render import quarter_turn
from etsam.simulation.sample import build_sample
from etsam.simulation.suite import SUITE_SHAPE, SuiteEntry, held_out_suite

Samples = Iterator[tuple[str, Membrane, NDArray[np.int32]]]
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


def splits_and_merges(found: NDArray[np.integer], true: NDArray[np.integer]) -> tuple[int, int]:
    """Return how many true membranes have several labels, and how many labels several true membranes.

    A tenth of a true membrane, and `SMALLEST` voxels, count.
    """
    pairs, shared = np.unique(np.stack([found, true]), axis=1, return_counts=True)
    size = np.bincount(true)
    large = (pairs[0] > 0) & (shared >= np.maximum(0.1 * size[pairs[1]], SMALLEST))
    labels, membranes = pairs[:, large]
    splits = int(np.count_nonzero(np.unique(membranes, return_counts=True)[1] > 1))
    merges = int(np.count_nonzero(np.unique(labels, return_counts=True)[1] > 1))
    return splits, merges


def suite(what: str | None) -> Samples:
    """Yield the held-out suite's samples: name, mask and true membranes."""
    folder = Path(what) if what and Path(what).is_dir() else None
    thicker = float(what) if what and folder is None else 1.0
    for entry in held_out_suite():
        true, spacing = true_membranes(entry, thicker)
        if (np.bincount(true.ravel())[1:] >= SMALLEST).sum() < 2:
            continue
        if folder is None:
            yield entry.name, Membrane(true > 0, None, Frame(SUITE_SHAPE, (spacing,) * 3)), true
            continue
        path = folder / f"{entry.name}_membrane_logits.mrc"
        if path.is_file():
            yield entry.name, load_membrane(path, voxel_spacing=spacing), true


def scores(membrane: Membrane, true: NDArray[np.int32]) -> list[float]:
    """Return the number of true membranes, and five scores and the CPU time of both methods."""
    sizes = np.bincount(true.ravel())
    scored = membrane.mask & (sizes >= SMALLEST)[true] & (true > 0)
    figures = [float((sizes[1:] >= SMALLEST).sum())]
    for method in (plain_components, separate_membranes):
        start = time.process_time()
        result = method(membrane)
        seconds = time.process_time() - start
        pair = result.labels[scored].astype(np.int32), true[scored]
        count = float(np.count_nonzero(result.voxels >= SMALLEST))
        figures += [adjusted_rand(*pair), instance_dice(*pair), count, *splits_and_merges(*pair)]
        figures.append(seconds)
    return figures


def main() -> None:
    """Print a line per sample and the means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "what", nargs="?", help="touching, touching-logits, a thickness or a folder"
    )
    parser.add_argument("kinds", nargs="*", help="of membranes that touch")
    given = parser.parse_args()
    if given.what in ("touching", "touching-logits"):
        logits = given.what == "touching-logits"
        chosen = scenes(given.kinds)
        samples: Samples = ((one.name, one.membrane(logits=logits), one.true) for one in chosen)
    else:
        samples = suite(given.what)
    heads = "  ARI   Dice  count split merge    s"
    print(f"{'sample':22s} true   components:{heads}   separated:{heads}")
    rows = []
    for name, membrane, true in samples:
        rows.append(scores(membrane, true))
        print(_line(name, rows[-1]), flush=True)
    print(_line("mean", np.mean(rows, axis=0).tolist()))


def _line(name: str, figures: list[float]) -> str:
    one = "{:6.3f} {:6.3f} {:5.1f} {:5.1f} {:5.1f} {:5.1f}"
    return f"{name:22s} {figures[0]:4.1f}   " + (f"{one}   {one}").format(*figures[1:])


if __name__ == "__main__":
    main()

"""Score predictions against ground truth, from any program: a tidy table of numbers.

Volumes are read slice by slice, so that memory does not grow with them; only the border voxels of
the two masks are kept for surface distances.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from etsam.metrics import IGNORE, Confusion, PrecisionRecall, ScoreHistogram, confusion
from etsam.pairing import Pairing
from etsam.predictions import TYPICAL_THRESHOLD, ScoreKind, score_kind
from etsam.storage import Zyx
from etsam.surfaces import SurfaceCollector, SurfaceDistances, surface_distances
from etsam.tables import Score
from etsam.volume import Tomogram, open_tomogram

TOLERANCE = 2.0
"""Surfaces this close [nm] agree: half a bilayer, or two voxels of 1 nm."""

SWEEP = (-2.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0)
"""Logit thresholds of the paper's ablation (section 4.4)."""

SPACING_TOLERANCE = 0.01  # relative difference of voxel sizes that rounding explains
RECALLS = np.linspace(0, 1, 101)  # where curves are given

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class EvaluateOptions:
    """Choices for scoring.

    Attributes
    ----------
    thresholds
        Scores above are membrane; empty: the one the program uses. Surfaces are those of the mask
        at the program's own threshold, or at the first. Masks have none.
    kind
        What the volumes hold, where that cannot be told from name and type.
    surface, tolerance
        Measure surface distances; distance in nm within which surfaces agree.
    voxel_spacing
        Å, in place of what the files say.
    """

    thresholds: tuple[float, ...] = ()
    kind: ScoreKind | None = None
    surface: bool = True
    tolerance: float = TOLERANCE
    voxel_spacing: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Scores of one prediction; the curve where it holds scores rather than a mask."""

    pairing: Pairing
    rows: list[Score]
    curve: PrecisionRecall | None


def evaluate(
    pairings: Iterable[Pairing],
    options: EvaluateOptions | None = None,
    progress: Progress | None = None,
) -> list[Evaluation]:
    """Score each prediction against its ground truth (1 membrane, 0 not, -1 not annotated).

    Raises
    ------
    FileNotFoundError
        If a volume is missing.
    ValueError
        If shapes or voxel sizes differ, or labels and scores are not what they should be.
    """
    options = options or EvaluateOptions()
    return [_evaluate_one(pairing, options, progress) for pairing in pairings]


def curve_rows(evaluation: Evaluation) -> list[Score]:
    """Give the precision-recall curve as rows: precision where recall first reaches 0, 0.01, ... 1.

    `threshold` is the recall, so that curves of several tomograms can be averaged.
    """
    curve, pairing = evaluation.curve, evaluation.pairing
    if curve is None or not curve.recall.size or np.isnan(curve.recall[-1]):
        return []
    places = np.minimum(np.searchsorted(curve.recall, RECALLS - 1e-12), curve.recall.size - 1)
    precision = curve.precision[places]
    name = pairing.prediction.method, pairing.prediction.stage
    return [
        Score(pairing.dataset, pairing.run, *name, float(recall), "precision_at_recall", float(p))
        for recall, p in zip(RECALLS, precision, strict=True)
    ]


def _evaluate_one(
    pairing: Pairing, options: EvaluateOptions, progress: Progress | None
) -> Evaluation:
    prediction = pairing.prediction
    with ExitStack() as stack:
        volume = stack.enter_context(closing(prediction.open()))
        truth = stack.enter_context(closing(open_tomogram(pairing.truth)))
        spacing = _check_alike(volume, truth, options)
        kind = options.kind or prediction.kind or score_kind(volume)
        own = TYPICAL_THRESHOLD[kind] if prediction.threshold is None else prediction.threshold
        thresholds = sorted(options.thresholds or (own,), key=lambda threshold: threshold != own)
        scorer = _Scorer(kind, tuple(thresholds), spacing, prediction.clip)
        try:
            counts, curve, distances = scorer.run(volume, truth, pairing.run, progress)
        except ValueError as error:
            raise ValueError(f"{prediction.path} against {pairing.truth}: {error}") from error
    levels: Sequence[float | None] = [None] if kind == "mask" else thresholds
    values: list[tuple[float | None, str, float]] = []
    for threshold, count in zip(levels, counts, strict=True):
        values += [
            (threshold, name, getattr(count, name))
            for name in ("dice", "iou", "precision", "recall")
        ]
    if curve is not None:
        values.append((None, "auprc", curve.average_precision))
    if distances is not None:
        tolerance = options.tolerance
        values += [
            (levels[0], f"surface_dice_{tolerance:g}nm", distances.dice(tolerance)),
            (levels[0], "surface_distance_mean_nm", distances.mean),
            (levels[0], "surface_distance_95_nm", distances.percentile(95)),
        ]
    name = pairing.dataset, pairing.run, prediction.method, prediction.stage
    return Evaluation(pairing, [Score(*name, *value) for value in values], curve)


@dataclass
class _Scorer:
    """Counts, histogram and borders of one pass over a prediction and its truth."""

    kind: ScoreKind
    thresholds: tuple[float, ...]
    spacing: Zyx | None
    clip: bool = False

    def run(
        self,
        prediction: Tomogram,
        truth: Tomogram,
        name: str = "",
        progress: Progress | None = None,
    ) -> tuple[list[Confusion], PrecisionRecall | None, SurfaceDistances | None]:
        """Read both volumes once."""
        thresholds = self.thresholds if self.kind != "mask" else (0.0,)
        counts = [Confusion() for _ in thresholds]
        histogram = ScoreHistogram() if self.kind != "mask" else None
        borders = SurfaceCollector(), SurfaceCollector()
        for z in range(truth.shape[0]):
            labels, plane = truth.read_slice(z), prediction.read_slice(z)
            self._check(plane, z)
            masks = [plane > threshold for threshold in thresholds]
            for place, mask in enumerate(masks):
                counts[place] += confusion(mask, labels)
            if histogram is not None:
                histogram.add(plane, labels)
            if self.spacing is not None:
                annotated = labels != IGNORE
                borders[0].add(masks[0], annotated)
                borders[1].add(labels == 1, annotated)
            if progress is not None:
                progress(name, z + 1, truth.shape[0])
        if not counts[0].voxels:
            raise ValueError("no voxel is annotated: all labels are -1")
        distances = None
        if self.spacing is not None:
            distances = surface_distances(borders[0].points(), borders[1].points(), self.spacing)
        curve = None if histogram is None else histogram.curve(clip=self.clip)
        return counts, curve, distances

    def _check(self, plane: NDArray[np.float32], z: int) -> None:
        if self.kind == "probability" and not 0 <= plane.min() <= plane.max() <= 1:
            raise ValueError(
                f"slice {z} holds {plane.min():g} to {plane.max():g}, not probabilities: "
                "give --scores logits"
            )


def _check_alike(prediction: Tomogram, truth: Tomogram, options: EvaluateOptions) -> Zyx | None:
    """Return the voxel spacing for surfaces (None: do not measure), or refuse the pair."""
    names = prediction.path or "the prediction", truth.path or "the truth"
    if prediction.shape != truth.shape:
        raise ValueError(
            f"{names[0]} has shape {prediction.shape}, {names[1]} has {truth.shape}: they must show "
            "the same volume"
        )
    known = [v.voxel_spacing for v in (prediction, truth) if v.voxel_spacing is not None]
    if options.voxel_spacing is not None:
        known = [(options.voxel_spacing,) * 3]
    if len(known) == 2 and not np.allclose(known[0], known[1], rtol=SPACING_TOLERANCE, atol=0):
        listed = " and ".join("x".join(f"{step:g}" for step in spacing) for spacing in known)
        raise ValueError(
            f"{names[0]} and {names[1]} have voxels of {listed} Å: give --voxel-spacing where one "
            "header is wrong, or resample one"
        )
    if not options.surface:
        return None
    if not known:
        warnings.warn(
            f"{names[1]}: voxel size unknown, so no surface distances; give --voxel-spacing",
            stacklevel=2,
        )
        return None
    return known[-1]

"""Score predictions against ground truth, from any program: a tidy table of numbers.

Volumes are read slice by slice, so that memory does not grow with them; only the border voxels of
the two masks are kept for surface distances, and the true voxels, packed, for components and leans.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from etsam.components import PackedMask, blob_hits, find_blobs
from etsam.directions import LEANS, PlaneDice, recall_by_lean
from etsam.metrics import Confusion, PrecisionRecall, ScoreHistogram, Truth, confusion, read_labels
from etsam.options import LARGEST
from etsam.overlay import other_origins
from etsam.pairing import Pairing
from etsam.predictions import TYPICAL_THRESHOLD, Prediction, ScoreKind, check_scores, score_kind
from etsam.provenance import refuse_changed, states_of
from etsam.resample import resampled
from etsam.storage import Zyx, check_spacing, same_spacing
from etsam.surfaces import SurfaceCollector, surface_distances
from etsam.tables import CURVE, Score
from etsam.volume import Tomogram, open_tomogram

TOLERANCE = 2.0
"""Surfaces this close [nm] agree: half a bilayer, or two voxels of 1 nm."""

SWEEP = (-2.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0)
"""Logit thresholds of the paper's ablation (section 4.4)."""

FOUND = 0.5
"""Share of its voxels from which a component counts as found."""

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
    sweep
        Also at the paper's nine thresholds and the program's own; for probabilities those of the
        nine logits.
    kind
        What the volumes hold, where that cannot be told from name and type.
    surface, tolerance
        Measure surface distances; distance in nm within which surfaces agree.
    details
        Also score planes, leans and components.
    min_component
        Components of the truth with fewer voxels are specks, and not asked for.
    voxel_spacing
        Å, in place of what the files say.
    resample
        Bring predictions with other voxels onto the grid of the truth, instead of refusing them.
    """

    thresholds: tuple[float, ...] = ()
    sweep: bool = False
    kind: ScoreKind | None = None
    surface: bool = True
    tolerance: float = TOLERANCE
    details: bool = True
    min_component: int = 1
    voxel_spacing: float | None = None
    resample: bool = False

    def __post_init__(self) -> None:
        if self.kind not in (None, *TYPICAL_THRESHOLD):
            known = ", ".join(TYPICAL_THRESHOLD)
            raise ValueError(f"kind is {self.kind!r}: expected one of {known}, or None")
        if not isinstance(self.thresholds, tuple | list):
            raise ValueError(f"thresholds is {self.thresholds!r}: expected several, as (0.5,)")
        if self.resample and self.voxel_spacing is not None:
            raise ValueError("--voxel-spacing says that voxels are equal: give it or --resample")
        if self.voxel_spacing is not None:
            check_spacing(self.voxel_spacing)
        odd = [x for x in (*self.thresholds, self.tolerance) if not abs(x) <= LARGEST]
        if odd or self.tolerance < 0:
            raise ValueError(
                f"thresholds {self.thresholds}, tolerance {self.tolerance}: expected finite numbers "
                f"up to {LARGEST:g}, the tolerance not below 0"
            )

    def levels(self, kind: ScoreKind, own: float) -> tuple[float, ...]:
        """Thresholds for scores of a kind, the program's `own` first where it is among them."""
        if kind == "mask":
            return (0.0,)
        wanted = self.thresholds
        if self.sweep:
            nine = (float(expit(level)) for level in SWEEP) if kind == "probability" else SWEEP
            wanted = (*wanted, own, *nine)
        unique = dict.fromkeys(wanted or (own,))
        return tuple(sorted(unique, key=lambda threshold: threshold != own))


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
        If shapes or voxel sizes differ (see `EvaluateOptions.resample`), labels and scores are not
        what they should be, or a volume has changed while it was read.
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
        Score(pairing.dataset, pairing.run, *name, float(recall), CURVE, float(p))
        for recall, p in zip(RECALLS, precision, strict=True)
    ]


def _evaluate_one(
    pairing: Pairing, options: EvaluateOptions, progress: Progress | None
) -> Evaluation:
    prediction = pairing.prediction
    before = states_of((prediction.path, pairing.truth))
    with ExitStack() as stack:
        volume = stack.enter_context(closing(prediction.open()))
        truth = stack.enter_context(closing(open_tomogram(pairing.truth)))
        kind = options.kind or prediction.kind or score_kind(volume)
        if options.resample and _other_grid(volume, truth, options):
            volume = resampled(volume, truth, kind)
        spacing = _check_alike(volume, truth, options)
        thresholds = options.levels(kind, _own_threshold(prediction, kind))
        scorer = _Scorer(kind, thresholds, options)
        try:
            scorer.run(volume, truth, pairing.run, progress)
        except ValueError as error:
            raise ValueError(f"{prediction.path} against {pairing.truth}: {error}") from error
        refuse_changed(before)
    levels: Sequence[float | None] = [None] if kind == "mask" else thresholds
    values: list[tuple[float | None, str, float]] = []
    for threshold, count in zip(levels, scorer.counts, strict=True):
        values += [
            (threshold, name, getattr(count, name))
            for name in ("dice", "iou", "precision", "recall")
        ]
    curve = None if kind == "mask" else scorer.histogram.curve(clip=prediction.clip)
    if curve is not None:
        values.append((None, "auprc", curve.average_precision))
    values += [(levels[0], *item) for item in scorer.surface_scores(spacing)]
    values += [(levels[0], *item) for item in scorer.detail_scores(spacing)]
    name = pairing.dataset, pairing.run, prediction.method, prediction.stage
    return Evaluation(pairing, [Score(*name, *value) for value in values], curve)


def _own_threshold(prediction: Prediction, kind: ScoreKind) -> float:
    """The program's threshold, where its scores are read as what its name says; else the usual one."""
    if prediction.threshold is None or kind != (prediction.kind or kind):
        return TYPICAL_THRESHOLD[kind]
    return prediction.threshold


@dataclass
class _Scorer:
    """What one pass over a prediction and its truth collects, and the scores made of it."""

    kind: ScoreKind
    thresholds: tuple[float, ...]
    options: EvaluateOptions
    histogram: ScoreHistogram = field(init=False)
    counts: list[Confusion] = field(default_factory=list)
    planes: PlaneDice = field(default_factory=PlaneDice)
    true: PackedMask = field(init=False)
    hits: PackedMask = field(init=False)
    borders: tuple[SurfaceCollector, SurfaceCollector] = field(
        default_factory=lambda: (SurfaceCollector(), SurfaceCollector())
    )

    def run(
        self, prediction: Tomogram, truth: Tomogram, name: str, progress: Progress | None
    ) -> None:
        """Read both volumes once."""
        self.counts = [Confusion() for _ in self.thresholds]
        self.histogram = ScoreHistogram(probabilities=self.kind == "probability")
        self.true, self.hits = PackedMask(truth.shape[1:]), PackedMask(truth.shape[1:])
        for z in range(truth.shape[0]):
            annotated, plane = truth.read_slice(z), prediction.read_slice(z)
            for volume in (truth, prediction):
                volume.require_finite()
            check_scores(plane, self.kind, z)
            labels = read_labels(annotated)
            masks = [plane > threshold for threshold in self.thresholds]
            for place, mask in enumerate(masks):
                self.counts[place] += confusion(mask, labels)
            if self.kind != "mask":
                self.histogram.add(plane, labels)
            self._collect(masks[0], labels)
            if progress is not None:
                progress(name, z + 1, truth.shape[0])
        if not self.counts[0].voxels:
            raise ValueError("no voxel is annotated: all labels are -1")

    def surface_scores(self, spacing: Zyx | None) -> list[tuple[str, float]]:
        """Return surface Dice and distances; nothing where they are not asked for or cannot be had."""
        if not self.options.surface or spacing is None:
            return []
        prediction, truth = (border.surface() for border in self.borders)
        distances = surface_distances(prediction, truth, spacing)
        tolerance = self.options.tolerance
        return [
            (f"surface_dice_{tolerance:g}nm", distances.dice(tolerance)),
            ("surface_distance_mean_nm", distances.mean),
            ("surface_distance_95_nm", distances.percentile(95)),
        ]

    def detail_scores(self, spacing: Zyx | None) -> list[tuple[str, float]]:
        """Return mean Dice by plane, recall by angle to the beam and recall of components, if asked for."""
        if not self.options.details:
            return []
        leans = recall_by_lean(self.true, self.hits, spacing or (1.0, 1.0, 1.0))
        sizes, found = blob_hits(self.true, find_blobs(self.true), self.hits)
        asked = sizes >= self.options.min_component
        shares = found[asked] / sizes[asked]
        components = float(np.mean(shares >= FOUND)) if shares.size else float("nan")
        return [
            *((f"dice_{name}", value) for name, value in self.planes.means().items()),
            *(
                (f"recall_normal_{low}_{high}", value)
                for (low, high), value in zip(pairwise(LEANS), leans, strict=True)
            ),
            ("recall_components", components),
        ]

    def _collect(self, mask: NDArray[np.bool_], labels: Truth) -> None:
        annotated, true = labels.annotated, labels.true
        if self.options.surface:
            self.borders[0].add(mask, annotated)
            self.borders[1].add(true, annotated)
        if self.options.details:
            self.planes.add(mask if annotated is None else mask & annotated, true)
            self.true.append(true)
            self.hits.append(mask & true)


def _other_grid(prediction: Tomogram, truth: Tomogram, options: EvaluateOptions) -> bool:
    """Whether two volumes have other voxels."""
    if prediction.shape != truth.shape:
        return True
    known = [v.voxel_spacing for v in (prediction, truth) if v.voxel_spacing is not None]
    return options.voxel_spacing is None and len(known) == 2 and not same_spacing(*known)


def _check_alike(prediction: Tomogram, truth: Tomogram, options: EvaluateOptions) -> Zyx | None:
    """Return the voxel spacing (None: unknown), or refuse the pair."""
    names = prediction.path or "the prediction", truth.path or "the truth"
    if prediction.shape != truth.shape:
        raise ValueError(
            f"{names[0]} has shape {prediction.shape}, {names[1]} has {truth.shape}: they must show "
            "the same volume on the same grid; give --resample where voxel sizes differ"
        )
    known = [v.voxel_spacing for v in (prediction, truth) if v.voxel_spacing is not None]
    if options.voxel_spacing is not None:
        known = [(options.voxel_spacing,) * 3]
    if len(known) == 2 and not same_spacing(*known):
        listed = " and ".join("x".join(f"{step:g}" for step in spacing) for spacing in known)
        raise ValueError(
            f"{names[0]} and {names[1]} have voxels of {listed} Å: give --voxel-spacing where one "
            "header is wrong, or --resample"
        )
    if prediction.path is not None and other_origins(prediction, truth):  # a TIFF has none
        warnings.warn(
            f"{names[0]} and {names[1]} have other origins: laid voxel on voxel", stacklevel=2
        )
    if not known and options.surface:
        warnings.warn(
            f"{names[1]}: voxel size unknown, so no surface distances; give --voxel-spacing",
            stacklevel=2,
        )
    return known[-1] if known else None

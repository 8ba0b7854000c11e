"""Outputs of segmentation programs: whose file it is, what its numbers mean, which run it shows."""

from __future__ import annotations

import logging
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from etsam.options import LOGIT_THRESHOLD, SIGNED_BYTES
from etsam.provenance import earlier_record, is_as_written, record_path
from etsam.storage import mapping
from etsam.volume import (
    TIFF_SUFFIXES,
    Tomogram,
    open_tomogram,
    stem_of,
    tomogram_from_array,
    whole_volume,
)

ScoreKind = Literal["mask", "logits", "probability"]

TYPICAL_THRESHOLD: dict[ScoreKind, float] = {"mask": 0.0, "logits": 0.0, "probability": 0.5}
TARDIS_THRESHOLD = 0.25  # the default of TARDIS-em 0.3 (--cnn_threshold)
DAMAGES = (
    ArithmeticError,
    AssertionError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)
"""What `tifffile` raises where a file is damaged, found by damaging some."""

UNCHANGED = (
    "as `etsam segment` wrote them: predictions, no annotations; correct them, or leave them out"
)
"""What to say of `unchanged_predictions` among training masks."""
PEEKED = 16  # slices looked at to tell probabilities from logits

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # our errors say it, in one line


@dataclass(frozen=True)
class Convention:
    """How one program names one kind of output, and what it means.

    `clip`: AUPRC is computed from clipped logits (paper, section 4.5: for ETSAM's own).
    """

    method: str
    stage: str
    suffix: re.Pattern[str]  # of the name without file type
    kind: ScoreKind
    threshold: float
    clip: bool = False


def _named(pattern: str) -> re.Pattern[str]:
    return re.compile(f"{pattern}$", re.IGNORECASE)


CHECKPOINT_NAMED = _named("_segmented")
"""MemBrain-seg's masks: the name of the checkpoint stands before it."""

CONVENTIONS = (
    Convention("ETSAM", "stage2", _named("_membrane_logits"), "logits", LOGIT_THRESHOLD, True),
    Convention("ETSAM", "postprocessed", _named("_membrane_postprocessed"), "mask", 0.0),
    Convention("ETSAM", "stage2", _named("_membrane"), "mask", 0.0),
    # ETSAM as released
    Convention(
        "ETSAM", "stage2", _named("_etsam_predicted_logits"), "logits", LOGIT_THRESHOLD, True
    ),
    Convention("ETSAM", "stage2", _named("_etsam_predicted_mask"), "mask", 0.0),
    Convention(
        "ETSAM", "postprocessed", _named("_etsam_predicted_post_processed_mask"), "mask", 0.0
    ),
    Convention("ridge", "final", _named("_ridge_logits"), "logits", 0.0),
    Convention("ridge", "final", _named("_ridge"), "mask", 0.0),
    # MemBrain-seg: "probabilities" are logits, averaged over eight mirrors; > 0 is membrane
    Convention("MemBrain-seg", "final", _named("_scores"), "logits", 0.0),
    Convention("MemBrain-seg", "final", CHECKPOINT_NAMED, "mask", 0.0),
    # TARDIS: a TIFF of probabilities (--cnn_threshold 0), or a mask
    Convention("TARDIS", "final", _named("_CNN"), "probability", TARDIS_THRESHOLD),
    Convention("TARDIS", "final", _named("_semantic"), "mask", 0.0),
)


@dataclass(frozen=True)
class Prediction:
    """A file of scores or of a mask, and how it is to be read.

    `kind` None means: integers are a mask, fractions from 0 to 1 probabilities, others logits.
    `threshold` None means the usual one of `kind`: 0 for logits, 0.5 for probabilities.
    """

    path: Path
    method: str
    stage: str = "final"
    kind: ScoreKind | None = None
    threshold: float | None = None
    clip: bool = False

    def open(self, *, voxel_spacing: float | None = None) -> Tomogram:
        """Open the volume (MRC, OME-Zarr, or TIFF); see `open_tomogram`."""
        return open_prediction(self.path, voxel_spacing=voxel_spacing)


def recognise(path: Path) -> Prediction:
    """Tell from its name which program wrote a file; others become a method named after the folder."""
    for rule in CONVENTIONS:
        if rule.suffix.search(stem_of(path)):
            return Prediction(path, rule.method, rule.stage, rule.kind, rule.threshold, rule.clip)
    return Prediction(path, whole_volume(path).parent.name or "prediction")


def run_of(path: Path) -> str | None:
    """Return the run a file's name tells; None where the program is not known or adds more to it."""
    name = stem_of(path)
    for rule in CONVENTIONS:
        found = rule.suffix.search(name)
        if found:
            return None if rule.suffix is CHECKPOINT_NAMED else name[: found.start()]
    return None


def unchanged_predictions(masks: Iterable[Path]) -> list[Path]:
    """Return the masks that `etsam segment` wrote and nobody has changed since, by the JSON beside each."""
    records = ((mask, earlier_record(record_path(mask), "segment")) for mask in masks)
    return [mask for mask, record in records if record and is_as_written(mask, record)]


def open_prediction(path: Path, *, voxel_spacing: float | None = None) -> Tomogram:
    """Open a volume of scores: MRC, OME-Zarr, or an uncompressed TIFF stack, which has no voxel size.

    `voxel_spacing` in Å takes the place of the file's.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`.
    ValueError
        If it cannot be read as a volume.
    """
    if path.suffix.lower() not in TIFF_SUFFIXES:
        return open_tomogram(path, voxel_spacing=voxel_spacing)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a volume of scores")
    import tifffile

    refused = f"{path} cannot be read slice by slice"
    try:
        with tifffile.TiffFile(path) as file:
            plain = file.series[0].dataoffset is not None
        with mapping():
            data = tifffile.memmap(path, mode="r") if plain else None
    except (*DAMAGES, tifffile.TiffFileError) as error:  # the last no ValueError before 2025.5
        raise ValueError(
            f"{refused} (it is damaged, cut short or no TIFF): make it again, or save it as MRC"
        ) from error
    if data is None:
        raise ValueError(
            f"{refused} (it is compressed or in parts): save an uncompressed TIFF, or MRC"
        )
    try:
        return tomogram_from_array(data, voxel_spacing=voxel_spacing)
    except ValueError as error:
        raise ValueError(f"{refused} ({error}): save one uncompressed stack, or MRC") from error


def score_kind(volume: Tomogram) -> ScoreKind:
    """Guess from type and range what a volume holds; looks at some slices."""
    if volume.dtype.kind in "biu":
        return "mask"
    depth = volume.shape[0]
    planes = (volume.read_slice(int(z)) for z in np.linspace(0, depth - 1, min(depth, PEEKED)))
    inside = all(plane.min() >= 0 and plane.max() <= 1 for plane in planes)
    return "probability" if inside else "logits"


def check_scores(plane: NDArray[np.float32], kind: ScoreKind, z: int) -> None:
    """Refuse slice z (Y, X) where its numbers are not what they are read as.

    Raises
    ------
    ValueError
        Probabilities beyond 0 to 1; a mask with negative numbers or fractions.
    """
    if kind == "probability" and not 0 <= plane.min() <= plane.max() <= 1:
        raise ValueError(
            f"slice {z} holds {plane.min():g} to {plane.max():g}, not probabilities: "
            "give --scores logits"
        )
    if kind == "mask" and plane.min() < 0:
        raise ValueError(
            f"slice {z} holds {plane.min():g} to {plane.max():g}, not a mask: expected 0 and other "
            f"labels above it; {SIGNED_BYTES}"
        )
    if kind == "mask" and (fractions := plane[plane != np.rint(plane)]).size:
        raise ValueError(
            f"slice {z} holds fractions ({fractions[0]:g}), not a mask: give --scores probability "
            "or --scores logits"
        )

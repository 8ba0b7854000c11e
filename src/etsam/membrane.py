"""A membrane mask in memory, from a mask's file or from logits and a threshold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from etsam.frame import Frame, frame_of
from etsam.options import LOGIT_THRESHOLD, SIGNED_BYTES
from etsam.volume import Tomogram, open_tomogram

LOGIT_STEP = 1 / 16
"""Step of logits kept as int8, which reach 8 to either side of the threshold."""

SLAB = 16  # slices read at once

MAX_LABEL = 32_767
"""Largest label an int16 volume holds."""


@dataclass(frozen=True)
class Membrane:
    """A mask and, where it came from logits, how far they lie above the threshold.

    `mask` is bool (Z, Y, X); `field` is int8 (Z, Y, X) in `LOGIT_STEP`, positive inside, or None;
    `numbered` says that a mask's file held several numbers above 0; `numbers` are these, int16 (Z, Y, X), where
    they were asked for.
    """

    mask: NDArray[np.bool_]
    field: NDArray[np.int8] | None
    frame: Frame
    numbered: bool = False
    numbers: NDArray[np.int16] | None = None


def load_membrane(
    path: Path | str,
    *,
    threshold: float = LOGIT_THRESHOLD,
    voxel_spacing: float | None = None,
    numbers: bool = False,
) -> Membrane:
    """Read a mask (integers, or 0 and 1) or logits (other numbers) with a threshold.

    Memory is one byte a voxel for a mask, two for logits, and two more for the `numbers` of a mask.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such volume, it cannot be read, its voxel spacing is unknown, or it holds
        numbers that are all above the threshold; if `numbers` are asked for and it holds logits, or
        larger ones than int16 does.
    """
    volume = open_tomogram(path, voxel_spacing=voxel_spacing)
    try:
        frame = frame_of(volume)
        logits = holds_logits(volume)
        mask = np.empty(volume.shape, bool)
        field = np.empty(volume.shape, np.int8) if logits else None
        kept = np.zeros(volume.shape, np.int16) if numbers else None
        lowest, first, last = np.inf, np.inf, -np.inf
        for start in range(0, volume.shape[0], SLAB):
            stop = min(start + SLAB, volume.shape[0])
            data = volume.read_slices(start, stop)
            volume.require_finite()
            if numbers and logits:
                raise ValueError(f"{path} holds logits: only masks have labels that can be kept")
            mask[start:stop] = data > (threshold if logits else 0)
            lowest = min(lowest, float(data.min()))
            if field is not None:
                field[start:stop] = quantised(data, threshold)
            elif mask[start:stop].any():
                last = max(last, float(data.max()))
                first = min(first, float(data.min(initial=last, where=mask[start:stop])))
                if kept is not None:
                    _require_int16(path, last)
                    np.copyto(kept[start:stop], data, "unsafe", where=mask[start:stop])
    finally:
        volume.close()
    if kept is not None and lowest < -1:
        raise ValueError(
            f"{path} holds {lowest:g}, no label: {SIGNED_BYTES}; save labels as 16-bit numbers"
        )
    if field is None and lowest < 0 and not mask.any():
        raise ValueError(
            f"{path} holds {lowest:g} and 0, not a mask: {SIGNED_BYTES}; save it as 0 and 1"
        )
    if field is not None and lowest > threshold:
        raise ValueError(
            f"{path} holds {lowest:g} and more, all above the threshold {threshold:g}: give "
            "--logit-threshold, 0.5 for probabilities"
        )
    return Membrane(mask, field, frame, first < last, kept)


def _require_int16(path: Path | str, largest: float) -> None:
    """Refuse labels that would wrap."""
    if largest > MAX_LABEL:
        raise ValueError(
            f"{path} holds label {largest:.0f}: labels up to {MAX_LABEL} can be kept; number them anew first"
        )


def holds_logits(volume: Tomogram) -> bool:
    """Say whether a volume holds logits: not integers, and somewhere a fraction or a negative number.

    Where nothing was found logits may be whole numbers for many slices; the middle ones are looked at first.
    """
    if volume.dtype.kind in "biu":
        return False
    depth = volume.shape[0]
    for z in sorted(range(depth), key=lambda z: abs(z - depth // 2)):
        data = volume.read_slice(z)
        if data.min() < 0 or not np.array_equal(data, np.rint(data)):
            return True
    return False


def quantised(logits: NDArray[np.floating], threshold: float) -> NDArray[np.int8]:
    """Return logits above a threshold as int8 in `LOGIT_STEP`, clipped at 8 to either side."""
    scaled = (logits - np.float32(threshold)) / np.float32(LOGIT_STEP)
    return np.asarray(np.clip(np.rint(scaled), -127, 127), np.int8)

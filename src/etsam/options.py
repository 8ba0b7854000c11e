"""What a user may choose when segmenting; free of torch, so that programs can read the defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Literal, get_args

Polarity = Literal["auto", "dark", "bright"]
Dtype = Literal["auto", "float32", "bfloat16"]
FirstSlice = Literal["predict", "prompt"]
PromptKind = Literal["zero", "grid_zero", "grid", "etsam_stage1_partial", "none"]
Mirrors = Literal[1, 2, 4]
Normalisation = Literal["min_max_positive_values", "softplus_minmax", "min_max", "robust"]

PARTIAL: PromptKind = "etsam_stage1_partial"  # parts of stage 1's answer
LOGIT_THRESHOLD = -0.25  # default of the paper (4.3) and of the released code
MAX_TILE = 1024  # pixels of the network; larger frames are tiled
MIN_TILE = 192  # tiles share 128 with their neighbours
LARGEST = 1e9  # of thresholds and distances; far beyond, float32 overflows
MIN_SLICES = 10  # blobs over fewer consecutive slices are noise (paper, section 2.4)
SIGNED_BYTES = "bytes of 0 and 255 whose header says signed read as 0 and -1"
OTHER_FILES = (  # whose names are meant neither as folders nor as volumes that we write
    *(".tif", ".tiff", ".png", ".jpg", ".jpeg", ".npy", ".npz", ".h5", ".hdf", ".hdf5"),
    *(".em", ".nii", ".nrrd", ".txt", ".csv", ".json"),
)
MOST_QUOTED = 60  # letters
MOST_DIGITS = 18  # int64 holds them; Python itself refuses to read some thousands


def is_whole(text: str) -> bool:
    """Whether a text is a whole number from 0 on, of no more than 18 digits."""
    return text.isdecimal() and len(text) <= MOST_DIGITS


def check_counts(options: object, least: Mapping[str, int]) -> None:
    """Refuse attributes that are no whole numbers, or smaller than the least given for each.

    Raises
    ------
    ValueError
        One is.
    """
    for name, low in least.items():
        value = getattr(options, name)
        if not _is_count(value) or int(value) < low:
            raise ValueError(f"{name} is {value!r}: expected a whole number from {low} on")


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def take_paths(options: object, *names: str) -> None:
    """Turn attributes that are texts into paths; None stays.

    Raises
    ------
    ValueError
        One is something else, or empty.
    """
    for name in names:
        value = getattr(options, name)
        if not (value is None or (isinstance(value, str | Path) and str(value))):
            raise ValueError(f"{name} is {value!r}: expected a path")
        object.__setattr__(options, name, None if value is None else Path(value))


def quoted(text: str) -> str:
    """A text as messages quote it: of an endless one the beginning."""
    return repr(text if len(text) <= MOST_QUOTED else f"{text[:MOST_QUOTED]}...")


@dataclass(frozen=True)
class SegmentOptions:
    """Choices for segmenting; None means the model's own.

    Attributes
    ----------
    model, stage1_checkpoint, stage2_checkpoint
        Name or folder of a model; checkpoints take the place of its stages.
    device, dtype
        ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``; ``float32``, ``bfloat16``, or ``auto``:
        bfloat16 for our own models where the hardware is faster in it, float32 for published ones.
    normalize_method, stage1_prompt, stage2_prompt, interval
        Grey-value scaling, prompts, and the distance of their dots in pixels and of repeated
        prompts in slices (default 50, or 10 when splitting).
    split_processing
        Track the four quadrants of the slices on their own.
    tile
        Longest side of a tile, in pixels of the network; larger frames of our own models are tiled.
        Halved when memory runs out.
    mirrors
        Test-time augmentation: track every slice once, also turned by 180 degrees (2), or also
        mirrored (4), and average the logits; takes two or four times as long.
    first_slice
        ``predict``: every slice is predicted; ``prompt``: prompted slices return their prompt, as
        SAM 2 and the released pipeline do.
    polarity
        How membranes look: ``dark``, ``bright``, or ``auto``: our own models try both on a few
        slices, for published ones it means dark.
    voxel_spacing
        Å, in place of the header's.
    logit_threshold, store_logits
        Voxels with larger logits are membrane; also write the logits.
    post_process, min_slices
        Clean the mask; drop components that span fewer slices.
    instances
        Also write int16 labels, one per membrane, touching ones apart (of the clean mask, if made).
    output, preview, overwrite
        Folder, or name, of the mask (default: beside the tomogram); write the PNG; replace results.
    """

    model: str | Path = "compact"
    stage1_checkpoint: Path | None = None
    stage2_checkpoint: Path | None = None
    device: str = "auto"
    dtype: Dtype = "auto"
    normalize_method: Normalisation | None = None
    stage1_prompt: PromptKind | None = None
    stage2_prompt: PromptKind | None = None
    interval: int | None = None
    split_processing: bool = False
    tile: int = MAX_TILE
    mirrors: Mirrors = 1
    first_slice: FirstSlice = "predict"
    polarity: Polarity = "auto"
    voxel_spacing: float | None = None
    logit_threshold: float = LOGIT_THRESHOLD
    store_logits: bool = False
    post_process: bool = False
    instances: bool = False
    min_slices: int = MIN_SLICES
    output: Path | None = None
    preview: bool = True
    overwrite: bool = False

    @property
    def stages_of_model(self) -> list[int]:
        """Stages (1, 2) that are the model's, as no checkpoint takes their place."""
        given = (self.stage1_checkpoint, self.stage2_checkpoint)
        return [stage for stage, path in enumerate(given, 1) if path is None]

    def __post_init__(self) -> None:
        """Check what programs may spell wrongly.

        Raises
        ------
        ValueError
            A choice is none of those there are, or a number is none.
        """
        for name, choice in CHOICES.items():
            known = get_args(choice)
            self._require(name, getattr(self, name) in known, ", ".join(known))
        self._require("stage1_prompt", self.stage1_prompt != PARTIAL, "one that needs no stage 1")
        counts = get_args(Mirrors)
        sound = _is_count(self.mirrors) and self.mirrors in counts
        self._require("mirrors", sound, f"one of {', '.join(map(str, counts))}")
        for name in SWITCHES:
            kind = type(getattr(self, name)).__name__  # numpy's is called bool or bool_
            self._require(name, kind in ("bool", "bool_"), "True or False")
        check_counts(self, {"tile": MIN_TILE, "min_slices": 0})
        if self.interval is not None:
            check_counts(self, {"interval": 1})
        for name in ("voxel_spacing", "logit_threshold"):
            value = getattr(self, name)
            is_number = isinstance(value, Real) and not isinstance(value, bool)
            self._require(name, is_number and math.isfinite(value), "a number")
        take_paths(self, "stage1_checkpoint", "stage2_checkpoint", "output")
        self._require("model", isinstance(self.model, str | Path), "a name or a folder")
        self._require("device", isinstance(self.device, str), "a name, such as auto")

    def _require(self, name: str, sound: bool, expected: str) -> None:
        """Refuse a value; None is sound where it is the default."""
        value = getattr(self, name)
        if not sound and not (value is None and getattr(type(self), name) is None):
            raise ValueError(f"{name} is {value!r}: expected {expected}")


def given_options(options: SegmentOptions | None) -> SegmentOptions:
    """The options of a call; None are the defaults.

    Raises
    ------
    TypeError
        They are something else, such as a dict.
    """
    if options is not None and not isinstance(options, SegmentOptions):
        raise TypeError(f"options are {options!r:.60}: expected SegmentOptions(...)")
    return SegmentOptions() if options is None else options


CHOICES = {
    "dtype": Dtype,
    "normalize_method": Normalisation,
    "stage1_prompt": PromptKind,
    "stage2_prompt": PromptKind,
    "first_slice": FirstSlice,
    "polarity": Polarity,
}
SWITCHES = (
    *("split_processing", "store_logits", "post_process"),
    *("instances", "preview", "overwrite"),
)

"""How a network wants its frames: the settings that a checkpoint carries, and their limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import torch

from etsam.logits import LOGIT_LIMIT
from etsam.options import LARGEST, MAX_TILE, Normalisation, PromptKind
from etsam.storage import SPACING_RANGE

Size = Literal["square", "native"]
Fusion = Literal["add", "concat"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MAX_SIDE = 1 << 16  # pixels; a larger frame in a checkpoint is damage or malice
MAX_OFFSET = 256  # slices
MAX_BLUR = 16.0  # pixels
CHOICES = {
    "size": get_args(Size),
    "normalisation": get_args(Normalisation),
    "fusion": get_args(Fusion),
    "prompt": (None, *get_args(PromptKind)),
}
COUNTS = {"image_size": MAX_SIDE, "multiple": MAX_TILE, "feedback_step": MAX_SIDE}
"""What is counted, and the most."""


@dataclass(frozen=True)
class FrameSpec:
    """How a model wants its frames; saved inside our checkpoints.

    Attributes
    ----------
    size
        ``square``: resize to ``image_size`` x ``image_size``. ``native``: keep the pixels, except
        that an in-plane spacing outside [min_spacing, max_spacing] (Å) is brought to the nearer
        end; then pad by reflection to a multiple of ``multiple``.
    offsets
        Neighbouring z slices stacked as channels, as ascending distances from the slice itself,
        symmetric about 0, edges replicated. They count steps of ``round(min_spacing / spacing)``
        slices where the volume is sampled finer.
    fusion
        Stage 2: ``add`` stage-1 logits, scaled to [0, 1] over the volume, to the grey values
        (reference), or ``concat`` the same z window of clip(logits, -5, 5) / 5 as further channels.
    imagenet
        Three equal channels with ImageNet's mean and standard deviation (reference).
    invert
        The model expects bright membranes.
    blur
        Standard deviation, in pixels of the frame, of a Gaussian that takes the noise of the finest
        detail from each slice before its grey values are scaled; 0 for none (reference).
    feedback_step
        Stage 2: stage 1 tracks every so-manieth slice (of those `offsets` count), and its logits are
        interpolated between them.
    doubt
        Stage 2: by how much its logits may lie below those of stage 1; None for any (reference).
    bias
        Added to the logits, so that -0.25 is the threshold that separates best; 0 for none (reference).
    prompt
        What tracking starts from unless something else is asked for: None for the published models'
        ``grid_zero`` (stage 1) and ``zero`` (stage 2), ``none`` for an empty memory.
    """

    size: Size = "native"
    image_size: int = 1024
    multiple: int = 32
    min_spacing: float = 8.0
    max_spacing: float = 16.0
    offsets: tuple[int, ...] = (-2, -1, 0, 1, 2)
    normalisation: Normalisation = "robust"
    fusion: Fusion = "concat"
    imagenet: bool = False
    invert: bool = False
    prompt: PromptKind | None = None
    feedback_step: int = 1
    doubt: float | None = None
    blur: float = 0.0
    bias: float = 0.0

    def __post_init__(self) -> None:
        for name, good, expected in self._rules():
            if not good:
                raise ValueError(f"{name} is {getattr(self, name)!r:.60}: expected {expected}")

    def _rules(self) -> Iterator[tuple[str, bool, str]]:
        """Names, whether their values fit, and what would; later ones rely on the earlier."""
        for name, known in CHOICES.items():
            told = ", ".join(str(choice) for choice in known)
            yield name, getattr(self, name) in known, told
        for name in ("imagenet", "invert"):
            yield name, isinstance(getattr(self, name), bool), "True or False"
        for name, most in COUNTS.items():
            yield name, _is_whole(getattr(self, name), 1, most), f"a whole number from 1 to {most}"
        yield "offsets", self._are_offsets(), f"ascending ones, as -n as n, at most {MAX_OFFSET}"
        alone = self.offsets == (0,) and self.fusion == "add"
        fits = alone or not self.imagenet
        yield "imagenet", fits, "False, or offsets=(0,) and fusion='add': three equal channels"
        low, high = SPACING_RANGE
        for name in ("min_spacing", "max_spacing"):
            yield name, _is_number(getattr(self, name), low, high), f"{low:g} to {high:g} Å"
        is_range = self.min_spacing <= self.max_spacing
        yield "min_spacing", is_range, f"at most max_spacing, {self.max_spacing:g} Å, for a range"
        sound = self.doubt is None or _is_number(self.doubt, 0, LARGEST)
        yield "doubt", sound, "a finite logit, 0 or more, or None"
        near = _is_number(self.bias, -LOGIT_LIMIT, LOGIT_LIMIT)
        yield "bias", near, f"a logit from -{LOGIT_LIMIT:g} to {LOGIT_LIMIT:g}"
        yield "blur", _is_number(self.blur, 0, MAX_BLUR), f"0 to {MAX_BLUR:g} pixels"

    def _are_offsets(self) -> bool:
        offsets = self.offsets
        if not isinstance(offsets, tuple) or 0 not in offsets:
            return False
        if not all(_is_whole(offset, -MAX_OFFSET, MAX_OFFSET) for offset in offsets):
            return False
        ascend = all(low < high for low, high in pairwise(offsets))
        return ascend and offsets == tuple(-offset for offset in reversed(offsets))

    def channels(self, *, feedback: bool) -> int:
        """Number of channels of a frame, with or without stage-1 logits."""
        if self.imagenet:
            return len(IMAGENET_MEAN)
        return len(self.offsets) * (2 if feedback and self.fusion == "concat" else 1)

    @property
    def plane_dtype(self) -> torch.dtype:
        """What the planes of frames are kept in: half precision where slices are stacked, as many are."""
        return torch.float16 if len(self.offsets) > 1 else torch.float32

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint's metadata."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FrameSpec:
        """Read a checkpoint's metadata; a key this version does not know is refused.

        Raises
        ------
        ValueError
            A key is unknown: the checkpoint was written by a newer version; or a value makes no sense.
        """
        unknown = set(values) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"unknown frame settings {sorted(unknown)}: update etsam")
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**plain)


def _is_whole(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _is_number(value: object, low: float, high: float) -> bool:
    """Whether a value is a number in a range; NaN is in none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


REFERENCE_SPEC = FrameSpec(
    size="square",
    offsets=(0,),
    normalisation="min_max_positive_values",
    fusion="add",
    imagenet=True,
)

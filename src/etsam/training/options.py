"""What to train, on what, and how."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from etsam.frames import FrameSpec
from etsam.losses import LossWeights
from etsam.options import check_counts
from etsam.provenance import sha256
from etsam.sam2 import SAM2Config, load_checkpoint
from etsam.stages import stage_spec
from etsam.training.augment import Augmentation
from etsam.training.fresh import Fresh
from etsam.training.optimiser import Schedule
from etsam.training.paper import PAPER_FRAMES, PAPER_LOSSES, PAPER_PROMPTS, PAPER_SCHEDULE
from etsam.training.prompting import PromptMix

COMPACT = SAM2Config(
    image_size=512,
    in_channels=15,
    trunk="conv",
    widths=(32, 64, 96, 128),
    context_width=64,
    top_down_blocks=1,
    stages=(2, 2, 4, 4),
    patch_kernel=5,
    patch_stride=2,
    top_down_levels=(0, 1, 2),
    d_model=128,
    memory_dim=32,
    memory_layers=1,
    memory_feed_forward=256,
    memory_pool=2,
    num_maskmem=4,
    max_pointers=4,
    decoder_feed_forward=256,
    decoder_heads=4,
    decoder_tokens=32 * 32,
    settling=4,
)
"""The bundled network: fine mask stride (2), pooled memory, slices as channels (its weights see nineteen).

Clips have up to 256 pixels, which are 32 x 32 tokens.
"""
COMPACT_SPEC = FrameSpec(
    offsets=(-18, -12, -8, -5, -3, -2, -1, 0, 1, 2, 3, 5, 8, 12, 18), feedback_step=3, doubt=1.0
)
"""Its frames: near neighbours show detail, far ones tell leaning membranes from noise."""
COMPACT_LOSSES = LossWeights(focal=10.0, dice=2.0, spread=0.3, absent=1.0, focal_alpha=0.5)
"""Losses for a network that starts from nothing; SAM 2's own push thin masks towards empty."""
FURTHER_LOSSES = {
    1: replace(COMPACT_LOSSES, object_score=0.0),
    2: replace(COMPACT_LOSSES, object_score=0.0, smooth=300.0),
}
"""Losses, by stage, for one that goes on: the bundled weights' own at the end."""
FURTHER_RATE = 1e-4
"""Peak of the learning rate for one that goes on; its average over steps grows with the run."""


@dataclass(frozen=True)
class Source:
    """A folder of pairs; clips come from it in proportion to ``weight`` (None: its number of pairs)."""

    folder: Path
    weight: float | None = None


@dataclass(frozen=True)
class TrainOptions:
    """What to train, on what, and how.

    Attributes
    ----------
    data
        A folder of pairs, or several with weights.
    stage
        1, or 2 (which needs stage-1 logits beside each tomogram).
    validation
        Folder of pairs that are never trained on; Dice is logged every ``every`` steps.
    frames, sizes, anchored
        Clips; see `ClipShape`. One of the sizes in pixels is drawn for each step.
    prompts
        None for those of the compact model.
    checkpointing
        Compute intermediate values again for the gradients instead of keeping them.
    memory_gb
        Of slices kept in memory; the others are read from disk each time.
    dtype
        What matrix products are computed in; ``auto`` is bfloat16 where the device is faster in it,
        as `etsam.stages.choose_dtype` finds out, else float32.
    start
        Checkpoint to start from.
    fresh
        Pairs simulated while training, besides those in ``data``.
    """

    data: Path | Sequence[Source]
    output: Path
    stage: Literal[1, 2] = 1
    validation: Path | None = None
    config: SAM2Config = COMPACT
    spec: FrameSpec = COMPACT_SPEC
    schedule: Schedule = field(default_factory=Schedule)
    losses: LossWeights = COMPACT_LOSSES
    frames: int = 4
    sizes: tuple[int, ...] = (128, 192, 256)
    anchored: bool = True
    prompts: PromptMix | None = None
    augmentation: Augmentation = "strong"
    checkpointing: bool = False
    memory_gb: float = 4.0
    device: str = "cpu"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0
    every: int = 500
    start: Path | None = None
    fresh: Fresh | None = None

    def __post_init__(self) -> None:
        for name, expected, sound in (
            ("data", "a pathlib.Path, or a list of Source", self._has_sources()),
            ("output", "a pathlib.Path", isinstance(self.output, Path)),
            ("stage", "1 or 2", self.stage in (1, 2)),
            ("dtype", "auto, float32 or bfloat16", self.dtype in ("auto", "float32", "bfloat16")),
        ):
            if not sound:
                raise ValueError(f"{name} is {getattr(self, name)!r}: expected {expected}")
        check_counts(self, {"every": 1})
        least = 1 if self.anchored else 2
        wrong = [size for size in self.sizes if size < 1 or size % self.spec.multiple]
        if wrong or not self.sizes:
            raise ValueError(
                f"sizes of clips are {self.sizes}: expected multiples of {self.spec.multiple}"
            )
        if self.frames < least or self.schedule.steps < 1:
            raise ValueError(
                f"{self.frames} slices a clip, {self.schedule.steps} steps: expected at least "
                f"{least} and 1"
            )

    def _has_sources(self) -> bool:
        data: object = self.data  # whatever a program gave
        if isinstance(data, list | tuple):
            return all(isinstance(each, Source) for each in data)
        return isinstance(data, Path)

    @property
    def sources(self) -> Sequence[Source]:
        """The folders as a list."""
        return [Source(self.data)] if isinstance(self.data, Path) else self.data

    @property
    def weights(self) -> Path:
        """The averaged weights."""
        return self.output / f"stage{self.stage}.safetensors"

    @property
    def state(self) -> Path:
        """What a run goes on from."""
        return self.output / "state.pt"

    @property
    def lock(self) -> Path:
        """What a run holds while it is at work."""
        return self.output / ".lock"

    @property
    def sign(self) -> Path:
        """What a run makes first and leaves, which tells that the folder is a run's."""
        return self.output / ".run"

    @property
    def identity(self) -> str:
        """What a run must have in common with the one it goes on from, as JSON."""
        spec, config = self.spec.to_dict(), self.config.to_dict()
        return json.dumps({"stage": self.stage, "seed": self.seed, "spec": spec, "config": config})

    @property
    def choices(self) -> dict[str, Any]:
        """How clips are made and learnt from: what a run that goes on may change, and is told of."""
        return {
            "schedule": asdict(self.schedule),
            "losses": asdict(self.losses),
            "frames": self.frames,
            "sizes": list(self.sizes),
            "augmentation": self.augmentation,
        }

    @cached_property
    def start_sum(self) -> str | None:
        """SHA-256 of the checkpoint to start from."""
        return None if self.start is None else sha256(self.start)

    @property
    def circumstances(self) -> dict[str, Any]:
        """What else a run that goes on is told of; paths, which are of no use to those who get the weights."""
        return {
            "data": [[str(source.folder.absolute()), source.weight] for source in self.sources],
            "validation": None if self.validation is None else str(self.validation.absolute()),
            "simulated": None if self.fresh is None else self.fresh.share,
            "dtype": self.dtype,
            "checkpointing": self.checkpointing,
        }

    @property
    def automatic(self) -> Literal["grid", "zero"]:
        """The stage's prompt in use."""
        return "grid" if self.stage == 1 else "zero"


def from_checkpoint(options: TrainOptions, start: Path) -> TrainOptions:
    """Train on from a checkpoint, ours or a published one, with its sizes and frames.

    Schedule, losses and clips become those that suit it; `dataclasses.replace` chooses others after
    that. A network that takes SAM 2's frames, such as the published ones, is trained as the paper
    does. A compact one that sees already what this stage sees goes on with small steps; one of stage
    1 that stage 2 starts from has much to learn, and is trained as one that starts from nothing.
    """
    model, metadata = load_checkpoint(start)
    spec = stage_spec(model, metadata, start)
    options = replace(options, start=start, config=model.config, spec=spec)
    if not spec.imagenet:
        goes_on = model.config.in_channels == spec.channels(feedback=options.stage == 2)
        return _fine_tuning(options) if goes_on else options
    return replace(
        options,
        schedule=PAPER_SCHEDULE,
        losses=PAPER_LOSSES,
        prompts=PAPER_PROMPTS,
        frames=PAPER_FRAMES,
        sizes=(spec.image_size,),
        anchored=False,
        augmentation="sam2",
        checkpointing=True,
    )


def _fine_tuning(options: TrainOptions) -> TrainOptions:
    """For a compact network that knows its task: large steps would make it worse at first."""
    schedule = replace(options.schedule, learning_rate=FURTHER_RATE)
    return replace(options, schedule=schedule, losses=FURTHER_LOSSES[options.stage])

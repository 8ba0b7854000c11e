"""The paper's regime for fine-tuning SAM 2.1, number by number (section 4.3 and SAM 2's configuration)."""

from __future__ import annotations

from etsam.losses import LossWeights
from etsam.training.optimiser import Schedule
from etsam.training.prompting import PromptMix

PAPER_FRAMES = 22
"""Consecutive slices of one tomogram in a clip, one clip a step."""

PAPER_SCHEDULE = Schedule(
    batch=1,
    learning_rate=5e-6,
    encoder_learning_rate=3e-6,
    layer_decay=0.9,
    last=0.1,
    warmup=0,
    weight_decay=0.1,
    clip_norm=0.1,
    beta2=0.999,
)
"""The number of steps is the user's: the paper's 602 and 545 epochs are of unknown length."""

PAPER_PROMPTS = PromptMix(share=0.0, points=0.5, box=0.25, conditioning=2, corrected=2, clicks=7)
"""Shares as the paper says them; SAM 2's configuration for MOSE has points 0.25 and box 0.25. The rest is SAM 2's."""

PAPER_LOSSES = LossWeights(focal=20.0, dice=1.0, quality=1.0, object_score=1.0)

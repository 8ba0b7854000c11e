"""A two-stage model small enough to run in every test."""

from __future__ import annotations

from pathlib import Path

import torch

from etsam.frames import FrameSpec
from etsam.sam2 import SAM2, SAM2Config, save_checkpoint
from etsam.stages import Stage

SPEC = FrameSpec(offsets=(-1, 0, 1), feedback_step=2)


def tiny_network(number: int, spec: FrameSpec = SPEC) -> SAM2:
    """A small random network, made lively: it always sees an object, with logits of both signs."""
    torch.manual_seed(number)
    config = SAM2Config(
        image_size=64,
        in_channels=spec.channels(feedback=number == 2),
        trunk="conv",
        widths=(8, 8, 16, 16),
        stages=(1, 1, 1, 1),
        d_model=32,
        memory_dim=16,
        memory_layers=1,
        memory_feed_forward=32,
        decoder_feed_forward=32,
        decoder_heads=2,
        settling=2,
    )
    model = SAM2(config).requires_grad_(False)
    decoder = model.sam_mask_decoder
    decoder.pred_obj_score_head.layers[-1].bias.fill_(5.0)
    for head in decoder.output_hypernetworks_mlps:
        head.layers[-1].weight.mul_(100)
    return model


def tiny_stages(spec: FrameSpec = SPEC) -> list[Stage]:
    """Both stages in memory."""
    return [Stage(tiny_network(number, spec).eval(), spec) for number in (1, 2)]


def write_tiny_model(folder: Path) -> Path:
    """Both checkpoints in a folder, which is made if need be."""
    folder.mkdir(exist_ok=True)
    for number in (1, 2):
        path = folder / f"stage{number}.safetensors"
        save_checkpoint(path, tiny_network(number), {"frame_spec": SPEC.to_dict()}, half=False)
    return folder

"""Weights that training begins with."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from etsam.frames import FrameSpec
from etsam.sam2 import SAM2, load_checkpoint
from etsam.stages import stage_spec

ADDS = re.compile(r"\.context\.pointwise|\.merges\.|\.(refinements|levels)\..*\.conv2\.")
"""Last layers of parts whose output is added to what would be there without them."""


def initialise(model: SAM2) -> None:
    """Give embeddings that Meta's recipe starts at zero or tiny a useful size.

    A network from scratch on few clips learns faster when its memory is audible from the start.
    """
    with torch.no_grad():
        for name in ("maskmem_tpos_enc", "no_mem_embed", "no_obj_ptr", "no_obj_embed_spatial"):
            torch.nn.init.trunc_normal_(getattr(model, name), std=0.02)
        for layer in model.memory_encoder.fuser.layers:
            layer.get_parameter("gamma").fill_(0.1)


def start_from(model: SAM2, path: Path, spec: FrameSpec) -> None:
    """Take over another network's weights so that at first the answers are the same.

    Input channels, grey values and after them logits, are matched by their z offset; those the other
    network has not seen start at 0, and so does what a context stem, a way back down or a block that
    it has not got would add.

    Raises
    ------
    ValueError
        A tensor has another shape, apart from the input channels.
    """
    loaded, metadata = load_checkpoint(path)
    other = loaded.state_dict()
    seen = stage_spec(loaded, metadata, path).offsets
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            given = other.get(name)
            if given is None:
                if ADDS.search(name):
                    tensor.zero_()
            elif given.shape == tensor.shape:
                tensor.copy_(given)
            elif given.ndim == 4 and given[:, 0].shape == tensor[:, 0].shape:
                tensor.zero_()
                places = [spec.offsets.index(z) for z in seen]
                places += [len(spec.offsets) + place for place in places]
                places = [z for z in places[: given.shape[1]] if z < tensor.shape[1]]
                tensor[:, places] = given[:, : len(places)].to(tensor)
            else:
                raise ValueError(
                    f"{path} does not fit the network: {name} is {tuple(given.shape)}, "
                    f"expected {tuple(tensor.shape)}"
                )

"""What a run leaves behind for another process to go on with."""

from __future__ import annotations

from pathlib import Path

import torch

from etsam.sam2 import MemoryBank
from etsam.tracker import track
from etsam.unfinished import Unfinished
from tiny_model import tiny_network

SHAPE = (8, 64, 64)
IDENTITY = {"tomogram": "a", "spacing": [10.0, 10.0, 10.0]}


def test_memory_comes_back_as_it_was(tmp_path: Path) -> None:
    """Slices, pointers and which candidates answered, of each region."""
    model = tiny_network(1).eval()
    frames = torch.randn(8, model.config.in_channels, 64, 64)
    banks = [MemoryBank.for_config(model.config) for _ in range(2)]
    for bank in banks:
        for _ in track(model, frames, {}, bank):
            pass
    assert banks[0].choice is not None
    banks[1].choice = torch.tensor([[0.125, 0.5, 0.375]])
    with Unfinished(tmp_path, IDENTITY) as run:
        run.logits(0, SHAPE).write_slice(7, torch.zeros(64, 64).numpy())
        run.slice_done(0, 8, banks)
        run.save()
    with Unfinished(tmp_path, IDENTITY) as later:
        assert later.load() and later.start(0, 8) == 8
        found = later.banks(0, model)
        assert len(found) == 2 and later.banks(1, model) == []
        later.logits(0, SHAPE)
        later.slice_done(1, 1, found)
        later.save()  # over the file that was read, while its tensors are in use
    for old, new in zip(banks, found, strict=True):
        assert old.choice is not None and new.choice is not None
        assert torch.equal(old.choice, new.choice)
        for queue, again in ((old.spatial, new.spatial), (old.pointers, new.pointers)):
            assert [z for z, _ in queue] == [z for z, _ in again]
            pairs = zip(queue, again, strict=True)
            assert all(torch.equal(one, other) for (_, one), (_, other) in pairs)
    assert not Unfinished(tmp_path, {**IDENTITY, "tomogram": "b"}).load()

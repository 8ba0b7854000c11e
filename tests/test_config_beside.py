"""The JSON beside a published checkpoint: sizes that its tensors do not tell, and what depends on them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from etsam.options import SegmentOptions
from etsam.sam2 import PRESETS, SAM2, load_checkpoint
from etsam.segmentation import segment_file
from test_cli import write_mrc
from test_hostile_checkpoints import published
from tiny_training import TINY_SAM2


def write_sizes(folder: Path, **sizes: Any) -> None:
    """Give both checkpoints of a folder their JSON, with some sizes changed."""
    for number in (1, 2):
        values = replace(TINY_SAM2, **sizes).to_dict()
        (folder / f"stage{number}.json").write_text(json.dumps(values))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of two small published-format checkpoints with their sizes beside them."""
    folder = tmp_path / "model"
    folder.mkdir()
    for number in (1, 2):
        torch.manual_seed(number)
        torch.save({"model": SAM2(TINY_SAM2).state_dict()}, folder / f"stage{number}.pt")
    write_sizes(folder)
    return folder


@pytest.fixture
def tomogram(tmp_path: Path) -> Path:
    data = np.random.default_rng(0).normal(size=(3, 20, 24)).astype(np.float32)
    return write_mrc(tmp_path / "a.mrc", data)


@pytest.mark.filterwarnings("ignore:no membrane found")
@pytest.mark.parametrize("sizes", [{"image_size": 128}, {"num_heads": 2}])
def test_a_result_of_other_sizes_is_made_anew(
    model: Path, tomogram: Path, sizes: dict[str, Any]
) -> None:
    """Only the sum of the .pt counted, and --resume kept the old result."""
    options = SegmentOptions(model=model, device="cpu", preview=False)
    first = segment_file(tomogram, options)
    recorded = json.loads(first.provenance.read_text())["weights"]
    assert [entry["config"]["image_size"] for entry in recorded] == [64, 64]
    assert segment_file(tomogram, options, resume=True).reused
    write_sizes(model, **sizes)
    again = segment_file(tomogram, options, resume=True)
    assert not again.reused
    for name, value in sizes.items():
        recorded = [entry["config"][name] for entry in again.details["weights"]]
        assert recorded == [value] * 2, name


def test_a_json_may_give_some_sizes(tmp_path: Path) -> None:
    """The others were those of base-plus: "150 missing, 152 of another shape"."""
    path = published(tmp_path / "tiny.pt")
    path.with_suffix(".json").write_text('{"image_size": 256, "global_blocks": [5]}')
    expected = replace(PRESETS["tiny"], image_size=256, global_blocks=(5,))
    assert load_checkpoint(path)[0].config == expected


@pytest.mark.parametrize("text", ['{"epochs": 256}', "{}", "[1, 2]", "3", "null", '"image_size"'])
def test_a_json_of_other_things_is_not_taken_for_sizes(tmp_path: Path, text: str) -> None:
    path = published(tmp_path / "tiny.pt")
    path.with_suffix(".json").write_text(text)
    assert load_checkpoint(path)[0].config == PRESETS["tiny"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"image_size": 256, "epochs": 3}', "no ['epochs']"),
        ('{"image_size": "256"}', "image_size"),
        ('{"image_size": 25', "is not JSON"),
        pytest.param("[" * 10**5, "is not JSON", id="deep"),
    ],
)
def test_wrong_sizes_beside_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = published(tmp_path / "tiny.pt")
    path.with_suffix(".json").write_text(text)
    with pytest.raises(ValueError) as caught:
        load_checkpoint(path)
    assert "tiny.json" in str(caught.value) and words in str(caught.value)

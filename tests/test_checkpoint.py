"""Checkpoints: read strictly or refused in one line; written whole; no code is ever executed."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from etsam.sam2 import PRESETS, SAM2, SAM2Config, load_checkpoint, save_checkpoint
from etsam.sam2.checkpoint import FORMAT, infer_config
from etsam.training.options import TrainOptions
from etsam.training.run import read_state

SMALL = SAM2Config(
    image_size=64,
    embed_dim=8,
    num_heads=1,
    stages=(1, 1, 1, 1),
    global_blocks=(2,),
    window_spec=(4, 2, 4, 2),
    pos_embed_size=(4, 4),
    d_model=32,
    memory_dim=16,
    memory_layers=1,
    memory_feed_forward=32,
    decoder_feed_forward=32,
    decoder_heads=2,
)
COMPACT = replace(SMALL, trunk="conv", widths=(8, 8, 16, 16), global_blocks=())
Edit = Callable[[dict[str, Tensor]], Any]


@pytest.fixture
def model() -> SAM2:
    torch.manual_seed(0)
    return SAM2(SMALL).requires_grad_(False)


def published(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def refusal(path: Path, config: SAM2Config | None = None) -> str:
    """The one line with which ``path`` is refused."""
    with pytest.raises(ValueError) as caught:
        load_checkpoint(path, config)
    message = str(caught.value)
    assert "\n" not in message and path.stem in message and len(message) < 600
    return message


def test_published_format_is_read_exactly(model: SAM2, tmp_path: Path) -> None:
    path = published(tmp_path / "a.pt", {"model": model.state_dict()})
    loaded, metadata = load_checkpoint(path, SMALL)
    assert metadata == {} and loaded.config == SMALL
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_precision_is_chosen(model: SAM2, tmp_path: Path) -> None:
    path = published(tmp_path / "a.pt", {"model": model.state_dict()})
    loaded, _ = load_checkpoint(path, SMALL, dtype=torch.bfloat16)
    assert {v.dtype for v in loaded.state_dict().values()} == {torch.bfloat16}


def test_optimiser_state_beside_the_model_is_ignored(model: SAM2, tmp_path: Path) -> None:
    content = {"model": model.state_dict(), "optimizer": {"lr": 1e-3}, "epoch": 7}
    loaded, _ = load_checkpoint(published(tmp_path / "a.pt", content), SMALL)
    assert loaded.config == SMALL


def drop(name: str) -> Edit:
    return lambda state: state.pop(name)


def put(name: str, *shape: int) -> Edit:
    return lambda state: state.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (drop("no_obj_ptr"), "1 missing, e.g. no_obj_ptr"),
        (put("memory_gate", 3), "1 unexpected, e.g. memory_gate"),
        (put("no_mem_embed", 1, 1, 33), r"no_mem_embed: (1, 1, 33), expected (1, 1, 32)"),
        (put("no_obj_ptr"), "no_obj_ptr: (), expected (1, 32)"),
        (lambda state: state.clear(), "missing"),
    ],
)
def test_tensors_must_fit(model: SAM2, tmp_path: Path, edit: Edit, words: str) -> None:
    state = dict(model.state_dict())
    edit(state)
    path = published(tmp_path / "wrong.pt", {"model": state})
    assert words in refusal(path, SMALL)


class Trojan:
    """A pickle that writes a file when it is read without care."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.victim, "executed")


@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
def test_code_is_never_executed(tmp_path: Path, modern: bool) -> None:
    victim, path = tmp_path / "victim", tmp_path / "trojan.pt"
    torch.save({"model": Trojan(victim)}, path, _use_new_zipfile_serialization=modern)
    assert "tensors only" in refusal(path)
    assert not victim.exists()
    torch.load(path, weights_only=False)
    assert victim.read_text() == "executed"  # the file does carry code


@pytest.mark.parametrize("modern", [True, False], ids=["zip", "legacy"])
def test_truncated_files_are_refused(model: SAM2, tmp_path: Path, modern: bool) -> None:
    path = tmp_path / "whole.pt"
    torch.save({"model": model.state_dict()}, path, _use_new_zipfile_serialization=modern)
    data, cut = path.read_bytes(), tmp_path / "cut.pt"
    for length in (0, 1, 2, 7, 100, 1000, len(data) // 2, len(data) - 1):
        cut.write_bytes(data[:length])
        assert "cannot be read as weights" in refusal(cut, SMALL)


def test_archives_without_their_end_are_refused(tmp_path: Path) -> None:
    """Torch says "Invalid argument" to some of them, with an error of the system; also to a run's state."""
    options = TrainOptions([], tmp_path)
    for numbers in (10_000, 30_000):
        torch.save({"model": {"weight": torch.zeros(numbers)}}, tmp_path / "whole.pt")
        data, cut = (tmp_path / "whole.pt").read_bytes(), tmp_path / "cut.pt"
        assert len(data) > 4 * numbers
        for length in (3_000, 5_000, 30_000, len(data) - 2_000):
            cut.write_bytes(data[:length])
            options.state.write_bytes(data[:length])
            assert "cut short" in refusal(cut)
            with pytest.raises(ValueError, match=r"state\.pt cannot be read .*cut short"):
                read_state(options)
    disk = data.rindex(b"PK\6\7") + 4  # on which its list of contents is
    cut.write_bytes(data[:disk] + b"\2" + data[disk + 1 :])
    assert "cut short" in refusal(cut)


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        torch.zeros(3),
        {},
        {"state_dict": {}},
        {"model": [torch.zeros(1)]},
        {"model": {"a": 1.0}},
        {"model": {3: torch.zeros(1)}},
        None,
    ],
)
def test_other_contents_are_refused(tmp_path: Path, content: Any) -> None:
    assert '"model"' in refusal(published(tmp_path / "other.pt", content))


@pytest.mark.parametrize("data", [b"MAP \x00", b"hello, world\n" * 9, b"\x89HDF\r\n\x1a\n", b"PK"])
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "other.pt"
    path.write_bytes(data)
    assert "cannot be read as weights" in refusal(path)


def test_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match="no checkpoint at"):
            load_checkpoint(path)


@pytest.mark.parametrize("name", PRESETS)
def test_published_sizes_are_inferred(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        state = SAM2(PRESETS[name]).state_dict()
    assert infer_config(state, tmp_path) == PRESETS[name]


def test_finetuned_sizes_are_inferred(tmp_path: Path) -> None:
    """More memories or a thinner memory attention show in the shapes."""
    config = replace(PRESETS["tiny"], num_maskmem=9, memory_layers=2, memory_feed_forward=512)
    with torch.device("meta"):
        state = SAM2(config).state_dict()
    assert infer_config(state, tmp_path) == config


def test_tiny_is_loaded_without_a_config(tmp_path: Path) -> None:
    with torch.device("meta"):
        state = SAM2(PRESETS["tiny"]).state_dict()
    zero = torch.zeros(())
    path = published(
        tmp_path / "a.pt", {"model": {k: zero.expand(v.shape) for k, v in state.items()}}
    )
    assert path.stat().st_size < 1_000_000  # views of one zero
    loaded, _ = load_checkpoint(path)
    assert loaded.config == PRESETS["tiny"]


def test_unknown_sizes_ask_for_a_config(model: SAM2, tmp_path: Path) -> None:
    path = published(tmp_path / "mine.pt", {"model": model.state_dict()})
    assert "mine.json" in refusal(path)
    (tmp_path / "mine.json").write_text(json.dumps(SMALL.to_dict()))
    loaded, _ = load_checkpoint(path)
    assert loaded.config == SMALL


def test_foreign_names_are_refused(tmp_path: Path) -> None:
    path = published(tmp_path / "resnet.pt", {"model": {"layer1.weight": torch.zeros(2)}})
    assert "not a SAM 2.1 checkpoint" in refusal(path)


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", "3", '{"depth": 3}', '{"embed_dim": "x"}', '{"embed_dim": 7}']
)
def test_wrong_config_beside(model: SAM2, tmp_path: Path, text: str) -> None:
    path = published(tmp_path / "mine.pt", {"model": model.state_dict()})
    (tmp_path / "mine.json").write_text(text)
    assert "mine.json" in refusal(path)


METADATA = {"frames": {"size": "native"}, "provenance": {"steps": 1000, "seed": 0}}


@pytest.mark.parametrize("config", [SMALL, COMPACT], ids=["hiera", "conv"])
@pytest.mark.parametrize("half", [True, False])
def test_ours_describe_themselves(tmp_path: Path, config: SAM2Config, half: bool) -> None:
    torch.manual_seed(0)
    model = SAM2(config)
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, model, METADATA, half=half)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]  # nothing partial left
    loaded, metadata = load_checkpoint(path)
    assert loaded.config == config
    assert metadata == {**METADATA, "config": json.loads(json.dumps(config.to_dict()))}
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        original = model.state_dict()[name]
        assert torch.equal(value, original.half().float() if half else original), name
    state = model.state_dict().values()
    size = sum(v.numel() for v in state) * (2 if half else 4)
    assert size < path.stat().st_size < size + 200 * len(state)  # the header names them


def ours(tmp_path: Path, model: SAM2, **header: str) -> Path:
    path = tmp_path / "a.safetensors"
    described = {"format": FORMAT, "etsam": json.dumps({"config": SMALL.to_dict()})}
    save_file(dict(model.state_dict()), path, {**described, **header})
    return path


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"format": "pt"}, "another kind"),
        ({"format": FORMAT + "0"}, "another kind"),
        ({"etsam": "{"}, "not a valid"),
        ({"etsam": "7"}, "not a valid"),
        ({"etsam": "{}"}, "no SAM2Config"),
        ({"etsam": '{"config": {"depth": 3}}'}, "depth"),
        ({"etsam": '{"config": {"trunk": "vit"}}'}, "trunk"),
        ({"etsam": '{"config": 3}'}, "no SAM2Config"),
    ],
)
def test_wrong_descriptions_are_refused(
    model: SAM2, tmp_path: Path, header: dict[str, str], words: str
) -> None:
    assert load_checkpoint(ours(tmp_path, model))[0].config == SMALL
    assert words in refusal(ours(tmp_path, model, **header))


def test_foreign_safetensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    assert "another kind" in refusal(path)


def lengthen(data: bytes, by: int) -> bytes:
    return struct.pack("<Q", struct.unpack("<Q", data[:8])[0] + by) + data[8:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:4],
        lambda data: data[:200],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: struct.pack("<Q", 2**62) + data[8:],
        lambda data: lengthen(data, 64),
        lambda data: lengthen(data, -64),
        lambda data: data.replace(b'"data_offsets":[0,', b'"data_offsets":[8,', 1),
        lambda data: data.replace(b'"F32"', b'"F64"', 1),
        lambda data: data.replace(b'"shape":[', b'"shape":[9', 1),
    ],
)
def test_lying_safetensors_are_refused(
    model: SAM2, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = ours(tmp_path, model)
    data = path.read_bytes()
    path.write_bytes(damage(data))
    assert path.read_bytes() != data
    assert "not a valid safetensors file" in refusal(path)


def test_config_that_does_not_fit_its_tensors(model: SAM2, tmp_path: Path) -> None:
    other = replace(SMALL, memory_layers=2).to_dict()
    path = ours(tmp_path, model, etsam=json.dumps({"config": other}))
    assert "does not fit the network" in refusal(path)


def test_nothing_is_written_when_metadata_is_not_json(model: SAM2, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "a.safetensors", model, {"path": tmp_path}, half=True)
    assert not list(tmp_path.iterdir())

"""Checkpoints that are damaged, lie or carry code: refused in one line, and never run."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from etsam.frames import FrameSpec
from etsam.sam2 import PRESETS, SAM2, MemoryBank, SAM2Config, load_checkpoint, save_checkpoint
from etsam.sam2.checkpoint import FORMAT
from etsam.stages import stage_spec
from test_cli import Run, assert_one_line, write_mrc
from test_hostile import CHECKPOINTS, NASTY, SHAPE, corpus, spoiled
from tiny_model import SPEC, tiny_network, write_tiny_model
from tiny_training import TINY_SAM2


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """Our format and the published one."""
    folder = tmp_path_factory.mktemp("checkpoints")
    model = tiny_network(1)
    save_checkpoint(folder / "a.safetensors", model, {"frame_spec": SPEC.to_dict()}, half=True)
    torch.save({"model": {"x": torch.zeros(3)}}, folder / "a.pt")
    return (folder / "a.safetensors").read_bytes(), (folder / "a.pt").read_bytes()


@corpus(CHECKPOINTS)
@given(
    st.booleans(),
    st.sampled_from(["cut", "flipped", "length", "header"]),
    st.integers(0, 2**20),
    NASTY,
)
def test_checkpoints(
    checkpoints: tuple[bytes, bytes],
    tmp_path: Path,
    ours: bool,
    damage: str,
    place: int,
    value: Any,
) -> None:
    content = bytearray(checkpoints[0 if ours else 1])
    (length,) = struct.unpack_from("<Q", content)
    early = place % min(len(content), 8 + length if ours else len(content))
    if damage == "cut":
        del content[place % len(content) :]
    elif damage == "flipped" or not ours:
        content[early] ^= 1 << place % 8
    elif damage == "length":
        struct.pack_into("<Q", content, 0, 1 << place % 64)
    else:
        header = json.loads(content[8 : 8 + length])
        described = json.loads(header["__metadata__"]["etsam"])
        described = spoiled(described, place, value, remove=place % 5 == 0)
        header["__metadata__"]["etsam"] = json.dumps(described)
        packed = json.dumps(header).encode()
        content = bytearray(struct.pack("<Q", len(packed)) + packed) + content[8 + length :]
    path = tmp_path / ("a.safetensors" if ours else "a.pt")
    path.write_bytes(content)
    try:
        model, metadata = load_checkpoint(path)
        stage_spec(model, metadata, path)
    except ValueError as error:
        assert str(error)


@pytest.mark.parametrize("modern", [True, False])
def test_a_malicious_checkpoint_is_not_run(run: Run, tmp_path: Path, modern: bool) -> None:
    class Malice:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "owned"),)

    path = tmp_path / "stage1.pt"
    torch.save({"model": Malice()}, path, _use_new_zipfile_serialization=modern)
    tomogram = write_mrc(
        tmp_path / "a.mrc", np.random.default_rng(0).normal(size=SHAPE).astype("f4")
    )
    checkpoint = ["--stage1-checkpoint", path, "--stage2-checkpoint", path]
    code, out, err = run("segment", tomogram, *checkpoint)
    assert (code, out) == (1, "")
    assert_one_line(err, "stage1.pt")
    path.write_bytes(pickle.dumps({"model": Malice()}))
    assert run("segment", tomogram, *checkpoint)[0] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mrc", "stage1.pt"]


def test_a_checkpoint_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"x": torch.zeros(1 << 20)}}, tmp_path / "plain.pt")
    bomb = tmp_path / "bomb.pt"
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(ValueError, match="unpacks to"):
        load_checkpoint(bomb)


def refusal(path: Path) -> str:
    """The one line with which a checkpoint is refused."""
    with pytest.raises(ValueError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def published(path: Path, **changes: torch.Tensor) -> Path:
    """SAM 2.1 tiny, of views of one zero, with other tensors in some places."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in SAM2(PRESETS["tiny"]).state_dict().items()}
    zero = torch.zeros(())
    state = {name: zero.expand(shape) for name, shape in shapes.items()}
    torch.save({"model": state | changes}, path)
    return path


def test_a_refused_object_is_named(tmp_path: Path) -> None:
    torch.save({"model": argparse.Namespace(a=3)}, tmp_path / "a.pt")
    message = refusal(tmp_path / "a.pt")
    assert "argparse.Namespace" in message and "PyTorch 2.6" not in message
    (tmp_path / "a.pt").write_bytes(pickle.dumps({"model": 3}))
    assert "PyTorch 2.6" not in refusal(tmp_path / "a.pt")


def test_zeroed_bytes_are_noticed(tmp_path: Path) -> None:
    """torch.load checks no sum."""
    torch.save({"model": {"x": torch.rand(10000)}}, tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(data[:20000] + bytes(1000) + data[21000:])
    torch.load(tmp_path / "a.pt", weights_only=True)
    assert "is damaged" in refusal(tmp_path / "a.pt")


def quantised(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of bytes and a factor; torch warns that it will know none one day."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    "change",
    [
        torch.Tensor.to_sparse,
        torch.Tensor.cfloat,
        quantised,
        lambda x: x.to("meta"),
        torch.Tensor.int,
        torch.Tensor.bool,
    ],
)
def test_tensors_that_are_not_plain_are_refused(
    tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    path = published(tmp_path / "a.pt", no_obj_ptr=change(torch.zeros(1, 256)))
    assert "no_obj_ptr" in refusal(path)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("maskmem_tpos_enc", (), "a size is missing"),
        ("no_mem_embed", (1, 1, 250), "SAM2Config.d_model = 250"),
        ("maskmem_tpos_enc", (7, 1, 1, 0), "SAM2Config.memory_dim = 0"),
    ],
)
def test_shapes_of_no_network_are_refused(
    tmp_path: Path, name: str, shape: tuple[int, ...], words: str
) -> None:
    assert words in refusal(published(tmp_path / "a.pt", **{name: torch.zeros(shape)}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(run: Run, tmp_path: Path, value: float) -> None:
    """They gave an empty mask and exit code 0."""
    folder = write_tiny_model(tmp_path / "model")
    model = tiny_network(2)
    model.no_mem_embed[0, 0, 3] = value
    described = {"frame_spec": SPEC.to_dict()}
    save_checkpoint(folder / "stage2.safetensors", model, described, half=False)
    assert "no_mem_embed" in refusal(folder / "stage2.safetensors")
    tomogram = write_mrc(
        tmp_path / "a.mrc", np.random.default_rng(0).normal(size=SHAPE).astype("f4")
    )
    code, out, err = run("segment", tomogram, "--model", folder, "--device", "cpu")
    assert (code, out) == (1, "")
    assert_one_line(err, "stage2.safetensors", "NaN")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mrc", "model"]


@pytest.mark.parametrize(
    "sizes",
    [
        {"memory_layers": 10**9},
        {"stages": [1, 10**9, 1, 1]},
        {"patch_stride": 0},
        {"decoder_heads": 0},
        {"d_model": 2.5},
        {"image_size": "1024"},
        {"num_heads": True},
        {"widths": [[1]] * 4},
        {"stages": 3},
        {"window_spec": [0, 4, 14, 7]},
        {"window_spec": [8, 4, 14]},
        {"window_spec": [8, 4, 14, 7, 7]},
        {"window_spec": [7, 5, 3, 2], "image_size": 160},
        {"window_spec": [8, 4, 1, 7]},
        {"pos_embed_size": [0, 7]},
        {"pos_embed_size": [7]},
        {"pos_embed_size": [7, 7, 7]},
        {"global_blocks": [99]},
        {"top_down_levels": [9]},
        {"memory_dim": 2},
        {"patch_stride": 3, "image_size": 72},
        {"patch_kernel": 4},
        {"memory_pool": 8, "image_size": 64},
    ],
)
def test_sizes_of_no_network_are_refused(sizes: dict[str, Any]) -> None:
    name = next(iter(sizes))
    expected = rf"SAM2Config\.{name} = .*: expected "
    with pytest.raises(ValueError, match=expected):
        SAM2Config.from_dict(sizes)
    with pytest.raises(ValueError, match=expected):
        SAM2Config(**{key: tuple(v) if isinstance(v, list) else v for key, v in sizes.items()})


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"window_spec": (8, 0, 0, 0)},
        {"window_spec": (17, 7, 3, 1), "global_blocks": (1, 3, 6)},
        {"window_spec": (25, 9, 5, 1)},
        {"pos_embed_size": (1, 3)},
        {"memory_dim": 4},
        {"memory_pool": 3},
        {"patch_kernel": 1, "patch_stride": 8},
        {"patch_stride": 1, "window_spec": (8, 4, 2, 7)},
        {"top_down_levels": (0, 3)},
    ],
)
def test_sizes_that_are_taken_are_of_a_network(sizes: dict[str, Any]) -> None:
    """The rules are no stricter than the network, which answers with each of these."""
    model = SAM2(replace(TINY_SAM2, **sizes)).eval()
    side = model.config.image_size
    with torch.inference_mode():
        seen = model.encode(torch.zeros(1, 3, side, side))
        bank = MemoryBank()
        bank.conditioning[0] = model.remember(seen, model.decode(seen.image, seen))
        logits = model.decode(model.condition(seen.image, bank, 1, 2), seen).logits
    assert logits.shape[-1] == side // model.config.patch_stride


@pytest.mark.parametrize(
    "settings",
    [
        {"slices": 10**12},
        {"slices": "5"},
        {"offsets": 3},
        {"offsets": ["a"]},
        {"offsets": []},
        {"multiple": 0},
        {"image_size": 10**12},
        {"min_spacing": "8"},
    ],
)
def test_settings_of_no_frames_are_refused(settings: dict[str, Any]) -> None:
    try:
        spec = FrameSpec.from_dict(settings)
    except ValueError:
        return
    assert len(spec.offsets) <= 513


@pytest.mark.parametrize(
    "said",
    ['"abc"', "5", "[[1, 2, 3]]", "[" * 100_000, '{"a": ' + "1" * 5000 + "}", "{"],
    ids=lambda said: said[:9],
)
def test_what_a_checkpoint_says_of_itself_is_refused_with_its_name(
    tmp_path: Path, said: str
) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(1)}, path, {"format": FORMAT, "etsam": said})
    assert "is not a valid safetensors file: " in refusal(path)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 3\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\n<!DOCTYPE html>\n<html></html>\n", "a web page"),
        (b"<HTML></HTML>", "a web page"),
        (LFS, "git lfs pull"),
    ],
)
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_files_taken_for_weights_are_named(
    tmp_path: Path, content: bytes, words: str, ending: str
) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(content)
    assert words in refusal(path)


def test_weights_in_other_formats_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save_checkpoint(path, tiny_network(1), {}, half=True)
    assert "give it that ending" in refusal(path)
    for save in (np.savez, np.savez_compressed):
        with path.open("wb") as file:
            save(file, x=np.zeros(3000))
        assert "an archive of NumPy arrays" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a/data.pkl", "a/constants.pkl", "a/code/__torch__.py"):
            archive.writestr(name, "")
    assert "a TorchScript program" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "")
    assert "a zip archive of other things" in refusal(path)


def test_weights_of_sam_2_0_are_named(tmp_path: Path) -> None:
    path = published(tmp_path / "a.pt")
    state = torch.load(path, weights_only=True)["model"]
    new = ("no_obj_embed_spatial", "obj_ptr_tpos_proj.")
    old = {name: value for name, value in state.items() if not name.startswith(new)}
    torch.save({"model": old}, path)
    assert "it looks like SAM 2.0: expected SAM 2.1" in refusal(path)

"""Checkpoints that are damaged, lie or carry code: refused in one line, and never run."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etsam.frames import FrameSpec
from etsam.sam2 import SAM2Config, load_checkpoint, save_checkpoint
from etsam.stages import stage_spec
from test_cli import Run, assert_one_line, write_mrc
from test_hostile import CHECKPOINTS, NASTY, SHAPE, corpus, spoiled
from tiny_model import SPEC, tiny_network


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
        stage_spec(model, metadata)
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
    ],
)
def test_sizes_of_no_network_are_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="SAM2Config"):
        SAM2Config.from_dict(sizes)


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

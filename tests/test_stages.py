"""Devices and precisions by name."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from etsam import stages
from etsam.options import SegmentOptions
from etsam.sam2 import save_checkpoint
from etsam.stages import bfloat16_pays, choose_device, choose_dtype, load_stage, load_stages
from etsam.training.options import TrainOptions, from_checkpoint
from tiny_model import SPEC, tiny_network, write_tiny_model

CPU = torch.device("cpu")


def test_auto_keeps_published_models_exact() -> None:
    assert choose_dtype("auto", CPU, is_own=False) == torch.float32


def test_auto_takes_bfloat16_only_where_the_hardware_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert choose_dtype("auto", CPU, is_own=True) == torch.float32
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    for pays, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(stages, "bfloat16_pays", lambda pays=pays: pays)
        assert choose_dtype("auto", CPU, is_own=True) == dtype
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name)  # private names, which torch may change
    assert choose_dtype("auto", CPU, is_own=True) == torch.float32


@pytest.mark.parametrize(("exact", "half"), [(3.0, 1.0), (1.0, 2.0)])
def test_bfloat16_pays_where_its_product_takes_less_time(
    monkeypatch: pytest.MonkeyPatch, exact: float, half: float
) -> None:
    ends = itertools.accumulate(itertools.cycle([0.0, exact, 0.0, half]))
    monkeypatch.setattr(stages, "perf_counter", lambda: next(ends))
    assert bfloat16_pays.__wrapped__() == (half < exact)


def test_a_program_that_computes_under_autocast_measures_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The answer is kept: it would be one of chance from then on."""
    kinds = set()
    product = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *both: kinds.add(product(*both).dtype))
    with torch.autocast("cpu", torch.bfloat16):
        bfloat16_pays.__wrapped__()
    assert kinds == {torch.float32, torch.bfloat16}


@pytest.mark.parametrize(
    ("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_named_precision_is_obeyed(name: str, dtype: torch.dtype) -> None:
    assert choose_dtype(name, CPU, is_own=True) == dtype
    assert choose_dtype(name, CPU, is_own=False) == dtype


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cpu:7", ""])
def test_devices_that_are_not_there_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="device"):
        choose_device(name)


def test_a_checkpoint_given_settles_which_of_two(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    second = Path(shutil.copy(folder / "stage1.safetensors", folder / "b_stage1.safetensors"))
    options = SegmentOptions(model=folder, device="cpu")
    with pytest.raises(ValueError, match="name one with --stage1-checkpoint"):
        load_stages(options)
    with pytest.warns(UserWarning, match="only stage 1 was given: stage 2 is that of"):
        loaded = load_stages(SegmentOptions(folder, stage1_checkpoint=second, device="cpu"))
    assert [stage.path for stage in loaded] == [second, folder / "stage2.safetensors"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"multiple": 65536}, "multiple is 65536: expected a whole number from 1 to 1024"),
        ({"multiple": 20}, "multiple is 20: expected a multiple of 8 * patch_stride, 32"),
        ({"size": "square", "image_size": 72}, "image_size is 72: expected a multiple of 8 *"),
        ({"colour": 1}, "unknown frame settings ['colour']"),
    ],
    ids=str,
)
def test_frames_that_a_network_does_not_take_are_told_with_the_file(
    tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, tiny_network(1), {"frame_spec": SPEC.to_dict() | settings}, half=True)
    with pytest.raises(ValueError) as caught:
        load_stage(path, 0, CPU)
    assert str(caught.value).startswith(f"{path}: {reason}")
    with pytest.raises(ValueError, match=f"^{path}: "):
        from_checkpoint(TrainOptions([], tmp_path), path)

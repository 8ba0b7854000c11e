"""Devices and precisions by name."""

from __future__ import annotations

import pytest
import torch

from etsam.stages import choose_device, choose_dtype

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
    assert choose_dtype("auto", CPU, is_own=True) == torch.bfloat16
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name)  # private names, which torch may change
    assert choose_dtype("auto", CPU, is_own=True) == torch.float32


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

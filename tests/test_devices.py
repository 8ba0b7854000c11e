"""What a GPU or a Mac needs of the networks, seen without one."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from etsam.sam2 import SAM2, linear
from etsam.tracker import for_a_mean, track
from tiny_model import tiny_network
from tiny_training import TINY_SAM2


class Reel:
    """Random frames on a device."""

    def __init__(self, model: SAM2, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (3, model.config.in_channels, 64, 64)
        self.frames = torch.randn(shape, generator=generator).to(device)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, z: int) -> Tensor:
        return self.frames[z]


def network(kind: str, dtype: torch.dtype) -> SAM2:
    """A small network of our own kind or of the published one."""
    torch.manual_seed(1)
    model = tiny_network(2) if kind == "ours" else SAM2(TINY_SAM2).requires_grad_(False)
    model.eval().compute_in(dtype)
    return model


def run_on(model: SAM2, device: str) -> list[Tensor]:
    """Logits of three slices, the first of them prompted."""
    prompt = torch.zeros(64, 64, device=device)
    found = track(model.to(device), Reel(model, device), {0: prompt})
    return [for_a_mean(logits) for _, logits in found]


KINDS = pytest.mark.parametrize("kind", ["ours", "published"])
TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["single", "half"])


@KINDS
@TYPES
def test_networks_run_where_they_are(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device without values all that waits for one, or is left on the CPU, is an error: so on a
    card nothing is copied there on the way, and the processor never waits for it."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)  # meta has no such state
    near, far = (run_on(network(kind, dtype), device) for device in ("cpu", "meta"))
    assert [(one.shape, one.dtype) for one in near] == [(one.shape, one.dtype) for one in far]
    assert {one.device.type for one in far} == {"meta"}


@cache
def kernels() -> dict[str, set[str]]:
    """Operators of PyTorch, and the devices for which they have kernels, as its own source lists them."""
    yaml = pytest.importorskip("yaml")
    found = find_spec("torchgen")
    if found is None or found.origin is None:
        pytest.skip("this build of PyTorch has no list of its operators")
    source = Path(found.origin).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    listed = yaml.safe_load(source.read_text(encoding="utf-8"))
    names = {one["func"].split("(")[0]: one for one in listed}

    def devices(one: dict[str, Any]) -> set[str]:
        keys = ",".join(one.get("dispatch") or {"CompositeImplicitAutograd": ""})
        base = one.get("structured_delegate")
        own = {key.strip() for key in keys.split(",")}
        return own | devices(names[base]) if base else own

    return {name: devices(one) for name, one in names.items()}


class Seen(TorchDispatchMode):
    """Operators that were called, and whether any had or made 64-bit floating-point numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.wide: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.name().removeprefix("aten::").removesuffix(".default")
        self.names.add(name)
        tensors = [one for one in tree_leaves((args, result)) if isinstance(one, Tensor)]
        if any(one.dtype in (torch.float64, torch.complex128) for one in tensors):
            self.wide.add(name)
        return result


@KINDS
@TYPES
def test_macs_have_all_that_networks_need(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MPS has kernels for each operator, and no double precision."""
    monkeypatch.setattr(linear, "packs", lambda x: False)  # oneDNN's are for x86 alone
    monkeypatch.setattr("etsam.sam2.attention.packs", lambda x: False)
    model = network(kind, dtype)
    with Seen() as seen:
        run_on(model, "cpu")
    assert len(seen.names) > 40 and not seen.wide
    general = {"CompositeImplicitAutograd", "CompositeExplicitAutograd", "MPS"}
    general.add("CompositeExplicitAutogradNonFunctional")
    lacking = {name for name in seen.names if not kernels()[name] & general}
    assert not lacking

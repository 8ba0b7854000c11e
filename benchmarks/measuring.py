"""What the benchmarks of networks share: seconds, operations, the peak of matrix products."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from etsam.sam2.linear import multiply, pack, packs

GEMM = 2048
"""Side of the matrices whose product gives the peak."""


def timed(device: torch.device, work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that some work takes, and what it gives."""
    began = time.perf_counter()
    answer = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, answer


def peak_gflops(device: torch.device, dtype: torch.dtype) -> float:
    """Speed of a large matrix product, by the faster of the two ways that the networks use."""
    a, b = torch.randn(2, GEMM, GEMM, device=device).to(dtype)
    ways: list[Callable[[], Any]] = [lambda: a @ b]
    with torch.no_grad():
        if packs(a):
            packed = pack(b)
            ways.append(lambda: multiply(a, packed))
        best = min(timed(device, way)[0] for way in ways for _ in range(10))
    return 2 * GEMM**3 / best / 1e9


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter of floating-point operations, told of its kernels for CPUs."""
    counted = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        torch.ops.mkldnn._linear_pointwise: _linear_flops,
    }
    return FlopCounterMode(display=False, custom_mapping=counted)


def _linear_flops(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * int(torch.Size(x).numel()) * int(weight[0])


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def commit() -> str | None:
    """Short name of the commit that is measured."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


def device_name(device: torch.device) -> str:
    """Name of the card, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

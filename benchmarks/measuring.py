"""What the benchmarks of networks share: seconds, operations, the peak of matrix products."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

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
    """Speed of a large matrix product."""
    a, b = torch.randn(2, GEMM, GEMM, device=device).to(dtype)
    for _ in range(2):
        a @ b
    best = min(timed(device, lambda: a @ b)[0] for _ in range(8))
    return 2 * GEMM**3 / best / 1e9


def flop_counter() -> FlopCounterMode:
    """PyTorch's counter of floating-point operations, told of its attention kernel for CPUs."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={kernel: _attention_flops})


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def commit() -> str | None:
    """Short name of the commit that is measured."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


def device_name(device: torch.device) -> str:
    """Name of the card, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

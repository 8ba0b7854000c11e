"""SAM 2.1 on slices: ours against `transformers.Sam2VideoModel`, same weights, same work, one run.

    python benchmarks/published.py                        # base_plus, float32, 3 tracked slices each
    python benchmarks/published.py --dtype bfloat16
    python benchmarks/published.py --dtype bfloat16 --against float32      # theirs in float32
    python benchmarks/published.py --device cuda --slices 30
    python benchmarks/published.py --network tiny --size 256 --slices 2    # to see that it works

Random weights, frames of noise, an empty prompt on slice 0 as in stage 2. Both fill their memory with
the same number of slices first, which are not counted. Prints a JSON line each (seconds a slice,
GFLOP/s and their part of the peak of matrix products in the same type), then the ratio of speeds
and the Dice of the two masks of the last slice. The two take turns slice by slice, so that a busy
machine slows both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from etsam.options import LOGIT_THRESHOLD
from etsam.sam2 import PRESETS, SAM2, MemoryBank
from etsam.tracker import track
from sam2_oracle import lively, make_oracle, new_session

GEMM = 2048
"""Side of the matrices whose product gives the peak."""


def peak_gflops(device: torch.device, dtype: torch.dtype) -> float:
    """Speed of a large matrix product."""
    a, b = torch.randn(2, GEMM, GEMM, device=device).to(dtype)
    for _ in range(2):
        a @ b
    best = min(timed(device, lambda: a @ b)[0] for _ in range(8))
    return 2 * GEMM**3 / best / 1e9


def timed(device: torch.device, work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that some work takes, and what it gives."""
    began = time.perf_counter()
    answer = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, answer


def stepper(model: SAM2, frames: torch.Tensor) -> Callable[[], Any]:
    """Ours: each call segments the next slice."""
    size = frames.shape[-1]
    slices = track(model, frames, {0: torch.zeros(size, size)}, MemoryBank.for_config(model.config))
    return lambda: next(slices)


def oracle_stepper(model: SAM2, frames: torch.Tensor) -> Callable[[], Any]:
    """Theirs: each call segments the next slice."""
    weight = model.no_mem_embed
    oracle = make_oracle(model.float()).to(weight.dtype)
    session = new_session(frames.to(weight.dtype))
    size = frames.shape[-1]
    session.add_mask_inputs(0, 0, torch.zeros(1, 1, size, size))
    session.obj_with_new_inputs.append(1)
    oracle(session, frame_idx=0)
    slices = oracle.propagate_in_video_iterator(session, start_frame_idx=0)
    return lambda: next(slices)


def mask_of(answer: Any) -> torch.Tensor:
    """Mask of a slice: ours comes as slice and logits, theirs as a record."""
    logits = answer[1] if isinstance(answer, tuple) else answer.pred_masks[0, 0]
    return logits.flatten() > LOGIT_THRESHOLD


def attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Operations of PyTorch's attention kernel for CPUs, which its own counter does not know."""
    return int(sdpa_flop_count(query, key, value))


def count_flops(work: Callable[[], Any]) -> float:
    """Floating-point operations of some work."""
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={kernel: attention_flops}) as counter:
        work()
    return float(counter.get_total_flops())


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", default="base_plus", choices=sorted(PRESETS))
    parser.add_argument("--size", type=int, default=1024, help="side of a frame in pixels")
    parser.add_argument("--slices", type=int, default=3, help="slices counted")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--against", choices=("float32", "bfloat16"), help="dtype of the other")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    device = torch.device(given.device)
    types = {"etsam": given.dtype, "transformers": given.against or given.dtype}
    dtypes = {name: getattr(torch, text) for name, text in types.items()}
    config = replace(PRESETS[given.network], image_size=given.size)
    warm = config.num_maskmem + 1
    frames = torch.randn(warm + 1 + given.slices, 3, given.size, given.size, device=device)
    commit = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    shared = {
        "commit": subprocess.run(commit, capture_output=True, text=True).stdout.strip() or None,
        "network": given.network,
        "frame": given.size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }
    seconds: dict[str, list[float]] = {"etsam": [], "transformers": []}
    with torch.inference_mode():
        models = {name: lively(config).to(device, dtype) for name, dtype in dtypes.items()}
        steps = {
            "etsam": stepper(models["etsam"], frames),
            "transformers": oracle_stepper(models["transformers"], frames),
        }
        for _ in range(warm):
            for step in steps.values():
                step()
        flops = {name: count_flops(step) for name, step in steps.items()}
        peaks = {name: [peak_gflops(device, dtype)] for name, dtype in dtypes.items()}
        masks: dict[str, torch.Tensor] = {}
        for _ in range(given.slices):
            for name, step in steps.items():
                took, answer = timed(device, step)
                seconds[name].append(took)
                masks[name] = mask_of(answer)
                peaks[name].append(peak_gflops(device, dtypes[name]))
    for name, found in seconds.items():
        rate = flops[name] / min(found) / 1e9
        record = shared | {
            "model": name,
            "dtype": types[name],
            "seconds_per_slice": round(min(found), 3),
            "gflop_per_slice": round(flops[name] / 1e9, 1),
            "gflops": round(rate, 1),
            "of_gemm_peak": round(rate / max(peaks[name]), 3),
        }
        print(json.dumps(record))
    ours, theirs = min(seconds["etsam"]), min(seconds["transformers"])
    both = 2 * (masks["etsam"] & masks["transformers"]).sum() / sum(m.sum() for m in masks.values())
    print(
        f"etsam does {theirs / ours:.2f} times the slices of transformers, masks' Dice {both:.4f}"
    )


if __name__ == "__main__":
    main()

"""SAM 2.1 on slices: ours against `transformers.Sam2VideoModel`, same weights, same work, one run.

    python benchmarks/published.py                        # base_plus, float32, 3 tracked slices each
    python benchmarks/published.py --dtype bfloat16
    python benchmarks/published.py --device cuda --slices 30
    python benchmarks/published.py --network tiny --size 256 --slices 2    # to see that it works

Random weights, frames of noise, an empty prompt on slice 0 as in stage 2. Both fill their memory with
the same number of slices first, which are not counted. Prints a JSON line each (seconds a slice in
the encoder and in the tracker, achieved and peak GFLOP/s of matrix products), then the ratios.
The two take turns slice by slice, so that a busy machine slows both.
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
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
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
    best = min(timed(device, lambda: a @ b) for _ in range(8))
    return 2 * GEMM**3 / best / 1e9


def timed(device: torch.device, work: Callable[[], Any]) -> float:
    """Seconds that some work takes."""
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


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


def count_flops(work: Callable[[], Any]) -> float:
    """Floating-point operations of some work."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", default="base_plus", choices=sorted(PRESETS))
    parser.add_argument("--size", type=int, default=1024, help="side of a frame in pixels")
    parser.add_argument("--slices", type=int, default=3, help="slices counted")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    config = replace(PRESETS[given.network], image_size=given.size)
    warm = config.num_maskmem + 1
    frames = torch.randn(warm + 1 + given.slices, 3, given.size, given.size, device=device)
    commit = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    shared = {
        "commit": subprocess.run(commit, capture_output=True, text=True).stdout.strip() or None,
        "network": given.network,
        "frame": given.size,
        "dtype": given.dtype,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }
    seconds: dict[str, list[float]] = {"etsam": [], "transformers": []}
    with torch.inference_mode():
        model = lively(config).to(device, dtype)
        steps = {"etsam": stepper(model, frames)}
        steps["transformers"] = oracle_stepper(lively(config).to(device, dtype), frames)
        for _ in range(warm):
            for step in steps.values():
                step()
        flops = count_flops(steps["etsam"])
        steps["transformers"]()
        peaks = [peak_gflops(device, dtype)]
        for _ in range(given.slices):
            for name, step in steps.items():
                seconds[name].append(timed(device, step))
            peaks.append(peak_gflops(device, dtype))
    for name, found in seconds.items():
        rate = flops / min(found) / 1e9
        record = shared | {
            "model": name,
            "seconds_per_slice": round(min(found), 3),
            "gflop_per_slice": round(flops / 1e9, 1),
            "gflops": round(rate, 1),
            "of_gemm_peak": round(rate / max(peaks), 3),
        }
        print(json.dumps(record))
    ours, theirs = min(seconds["etsam"]), min(seconds["transformers"])
    print(f"etsam does {theirs / ours:.2f} times the slices of transformers")


if __name__ == "__main__":
    main()

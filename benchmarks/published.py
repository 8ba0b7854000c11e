"""SAM 2.1 on slices: ours against `transformers.Sam2VideoModel`, same weights, same work, one run.

    python benchmarks/published.py                        # base_plus, float32, 3 tracked slices each
    python benchmarks/published.py --dtype bfloat16
    python benchmarks/published.py --dtype bfloat16 --against float32      # theirs in float32
    python benchmarks/published.py --device cuda --slices 30
    python benchmarks/published.py --network tiny --size 256 --slices 2    # to see that it works

Random weights, frames of noise, an empty prompt on slice 0 as in stage 2. Both fill their memory with
the same number of slices first, which are not counted. Prints a JSON line each (seconds a slice,
GFLOP/s and their part of the peak of matrix products in the same type), then the ratio of speeds.
The two take turns slice by slice, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measuring import commit, device_name, flop_counter, peak_gflops, timed

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from etsam.sam2 import PRESETS, SAM2, MemoryBank
from etsam.sam2.linear import keep_rearranged
from etsam.tracker import track
from sam2_oracle import lively, make_oracle, new_session


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
    with flop_counter() as counter:
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
    shared = {
        "commit": commit(),
        "network": given.network,
        "frame": given.size,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
    }
    seconds: dict[str, list[float]] = {"etsam": [], "transformers": []}
    with torch.inference_mode():
        models = {name: lively(config).to(device) for name in dtypes}
        for name, dtype in dtypes.items():
            models[name].compute_in(dtype)
        keep_rearranged(models["etsam"])  # as `etsam.stages.load_stage` does
        steps = {
            "etsam": stepper(models["etsam"], frames),
            "transformers": oracle_stepper(models["transformers"], frames),
        }
        for _ in range(warm):
            for step in steps.values():
                step()
        flops = {name: count_flops(step) for name, step in steps.items()}
        peaks = {name: [peak_gflops(device, dtype)] for name, dtype in dtypes.items()}
        for _ in range(given.slices):
            for name, step in steps.items():
                seconds[name].append(timed(device, step)[0])
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
    print(f"etsam does {theirs / ours:.2f} times the slices of transformers")


if __name__ == "__main__":
    main()

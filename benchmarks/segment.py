"""Where the time of `etsam segment` goes: a JSON line of each stage's parts, one of the whole run.

    python benchmarks/segment.py TOMOGRAM [--model compact] [--dtype float32] [--device cuda] [--tta 4]

Seconds and calls of encoder, memory attention, mask decoder and memory encoder; of making frames (with
reading; in a thread of its own, so beside the others), of what brings logits back to slices, and of
writing; achieved GFLOP/s of the networks and their part of the peak of matrix products in the same
run and type; peak memory. On a GPU the parts wait for their kernels, which the command does not.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from measuring import commit, device_name, flop_counter, peak_gflops
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from etsam import frames, pipeline, volume
from etsam.options import SegmentOptions
from etsam.provenance import reset_peaks
from etsam.sam2.image_encoder import ImageEncoder
from etsam.sam2.mask_decoder import MaskDecoder
from etsam.sam2.memory import MemoryAttention, MemoryEncoder
from etsam.segmentation import segment_file
from etsam.stages import Stage, load_stages

NETWORK = {
    ImageEncoder: "encoder",
    MemoryAttention: "memory_attention",
    MaskDecoder: "decoder",
    MemoryEncoder: "memory_encoder",
}
Key = tuple[int, str]  # stage (0: neither), part


class Parts:
    """Seconds, calls and operations of the parts of a run."""

    def __init__(self, stages: list[Stage]) -> None:
        self.seconds: defaultdict[Key, float] = defaultdict(float)
        self.calls: defaultdict[Key, int] = defaultdict(int)
        self.flops: defaultdict[Key, float] = defaultdict(float)
        self._device = stages[0].model.no_mem_embed.device
        self._known: dict[tuple[Any, ...], float] = {}
        self._open: list[tuple[float, Any]] = []
        self._keys = {
            module: (number, NETWORK[type(module)])
            for number, stage in enumerate(stages, 1)
            for module in stage.model.modules()
            if type(module) in NETWORK
        }
        register_module_forward_pre_hook(self._begin)
        register_module_forward_hook(self._end)

    def add(self, key: Key, seconds: float) -> None:
        """Count a call."""
        self.seconds[key] += seconds
        self.calls[key] += 1

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Time every call of a function or method from now on."""
        function: Callable[..., Any] = getattr(owner, name)

        @wraps(function)
        def watched(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                self.add((0, part), time.perf_counter() - began)

        setattr(owner, name, watched)

    def _begin(self, module: nn.Module, given: Any) -> None:
        """Start the clock, and the counter where these shapes are met for the first time."""
        if module in self._keys:
            known = (module, *_shapes(given)) in self._known
            counter = None if known else flop_counter()
            if counter is not None:
                counter.__enter__()
            self._wait()
            self._open.append((time.perf_counter(), counter))

    def _end(self, module: nn.Module, given: Any, _: Any) -> None:
        if module in self._keys:
            self._wait()
            began, counter = self._open.pop()
            key, shapes = self._keys[module], (module, *_shapes(given))
            self.add(key, time.perf_counter() - began)
            if counter is not None:
                counter.__exit__(None, None, None)
                self._known[shapes] = float(counter.get_total_flops())
            self.flops[key] += self._known[shapes]

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _shapes(given: Any) -> list[tuple[int, ...]]:
    """Shapes of all tensors in nested arguments."""
    if isinstance(given, Tensor):
        return [tuple(given.shape)]
    if isinstance(given, (tuple, list)):
        return [shape for item in given for shape in _shapes(item)]
    return []


def main() -> None:
    """Segment and tell."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tomogram", type=Path)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tta", type=int, default=1, choices=(1, 2, 4))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = SegmentOptions(
            model=given.model,
            dtype=given.dtype,
            device=given.device,
            mirrors=given.tta,
            output=Path(folder),
        )
        stages = load_stages(options)
        weight = stages[0].model.no_mem_embed
        peak = peak_gflops(weight.device, weight.dtype)
        parts = Parts(stages)
        parts.watch(pipeline, "measure_intensity", "grey_values")
        parts.watch(pipeline, "to_slice", "logits_to_slice")
        parts.watch(frames.FrameSource, "__getitem__", "frames")
        parts.watch(volume.VolumeWriter, "write_slice", "write")
        reset_peaks()
        began = time.perf_counter()
        result = segment_file(given.tomogram, options, load=lambda _: stages)
        seconds = time.perf_counter() - began
    tell(parts, peak, seconds, result.details, given.model)


def tell(parts: Parts, peak: float, seconds: float, details: dict[str, Any], model: str) -> None:
    """Print the lines."""
    shape = details["inputs"][0]["shape_zyx"]
    for key in sorted(parts.seconds):
        rate = parts.flops[key] / parts.seconds[key] / 1e9
        line = {
            "stage": key[0] or None,
            "part": key[1],
            "calls": parts.calls[key],
            "seconds": round(parts.seconds[key], 2),
        }
        if rate:
            line |= {"gflops": round(rate, 1), "of_gemm_peak": round(rate / peak, 3)}
        print(json.dumps(line))
    network = sum(seconds for key, seconds in parts.seconds.items() if key[0])
    flops = sum(parts.flops.values())
    record = {
        "commit": commit(),
        "model": model,
        "device": device_name(torch.device(details["device"])),
        "dtype": details["dtype"],
        "threads": torch.get_num_threads(),
        "shape": shape,
        "seconds": round(seconds, 1),
        "slices_per_second": round(shape[0] / seconds, 2),
        "network_seconds": round(network, 1),
        "gemm_peak_gflops": round(peak, 1),
        "network_of_gemm_peak": round(flops / network / 1e9 / peak, 3),
        "peak_rss_mb": details["peak_rss_mb"],
        "peak_vram_mb": details["peak_vram_mb"],
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()

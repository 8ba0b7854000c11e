"""Peak resident memory of segmenting memory-mapped volumes of growing depth.

    python benchmarks/memory.py [--model compact] [--sides 512 512] [--depths 100 1000]
    python benchmarks/memory.py --random base_plus --sides 928 960 --depths 60 300 --dtype bfloat16

Each depth runs in a process of its own; the volume is noise on disk, the logits go to disk: a gigabyte
each for 1000 slices, in the system's temporary folder (TMPDIR names another). The last line says how
much more the deepest one took than the shallowest. `--random` makes a published-format
checkpoint of random weights of that size for both stages.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

SLICE_SEEDS = 16  # different slices of noise; they repeat


def make_model(folder: Path, network: str) -> str:
    """Write random weights of a published size as both stages; returns the folder."""
    import torch

    from etsam.sam2 import PRESETS
    from sam2_oracle import lively

    state = lively(PRESETS[network]).state_dict()
    for number in (1, 2):
        torch.save({"model": state}, folder / f"stage{number}.pt")
    return str(folder)


def make_volume(path: Path, depth: int, sides: tuple[int, int]) -> None:
    """Write a float32 .npy of noise slice by slice."""
    volume = np.lib.format.open_memmap(path, "w+", np.float32, (depth, *sides))
    for z in range(depth):
        random = np.random.default_rng(z % SLICE_SEEDS)
        volume[z] = random.normal(size=sides)
    volume.flush()


def measure(path: Path, model: str, dtype: Any) -> None:
    """Segment a memory map and print seconds and peak resident megabytes as JSON."""
    from etsam.options import SegmentOptions
    from etsam.provenance import peak_rss_mb
    from etsam.segmentation import segment_array

    started = time.perf_counter()
    volume = np.load(path, mmap_mode="r")
    options = SegmentOptions(model=model, dtype=dtype, voxel_spacing=10.0)
    segment_array(volume, options, output_path=path.with_suffix(".logits.npy"))
    record = {"seconds": time.perf_counter() - started, "peak_mb": peak_rss_mb()}
    path.with_suffix(".json").write_text(json.dumps(record))


def main() -> None:
    """Run all depths and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="compact")
    parser.add_argument("--random", metavar="SIZE", help="tiny, small, base_plus or large")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--sides", type=int, nargs=2, default=[512, 512])
    parser.add_argument("--depths", type=int, nargs="+", default=[100, 1000])
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if arguments.random is not None:
            model = make_model(Path(folder), arguments.random)
        height, width = arguments.sides
        for depth in arguments.depths:
            path = Path(folder) / f"{depth}.npy"
            make_volume(path, depth, (height, width))
            process = context.Process(target=measure, args=(path, model, arguments.dtype))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"segmenting {depth} slices failed")
            record = json.loads(path.with_suffix(".json").read_text())
            peaks.append(record["peak_mb"])
            rate = depth / record["seconds"]
            print(
                f"{depth} x {height} x {width}: {peaks[-1]:.0f} MB, {rate:.2f} slices/s", flush=True
            )
    print(f"difference: {peaks[-1] - peaks[0]:.0f} MB")


if __name__ == "__main__":
    main()

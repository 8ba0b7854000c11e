"""Peak resident memory of segmenting memory-mapped volumes of growing depth.

    python benchmarks/memory.py [--model compact] [--side 512] [--depths 100 1000]

Each depth runs in a process of its own; the volume is noise on disk, the logits go to disk. The last
line says how much more the deepest one took than the shallowest.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np

SLICE_SEEDS = 16  # different slices of noise; they repeat


def make_volume(path: Path, depth: int, side: int) -> None:
    """Write a float32 .npy of noise slice by slice."""
    volume = np.lib.format.open_memmap(path, "w+", np.float32, (depth, side, side))
    for z in range(depth):
        random = np.random.default_rng(z % SLICE_SEEDS)
        volume[z] = random.normal(size=(side, side))
    volume.flush()


def measure(path: Path, model: str) -> None:
    """Segment a memory map and print seconds and peak resident megabytes as JSON."""
    from etsam.options import SegmentOptions
    from etsam.provenance import peak_rss_mb
    from etsam.segmentation import segment_array

    started = time.perf_counter()
    volume = np.load(path, mmap_mode="r")
    options = SegmentOptions(model=model)
    segment_array(volume, options, output_path=path.with_suffix(".logits.npy"))
    record = {"seconds": time.perf_counter() - started, "peak_mb": peak_rss_mb()}
    path.with_suffix(".json").write_text(json.dumps(record))


def main() -> None:
    """Run all depths and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="compact")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--depths", type=int, nargs="+", default=[100, 1000])
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    peaks = []
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        for depth in arguments.depths:
            path = Path(folder) / f"{depth}.npy"
            make_volume(path, depth, arguments.side)
            process = context.Process(target=measure, args=(path, arguments.model))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"segmenting {depth} slices failed")
            record = json.loads(path.with_suffix(".json").read_text())
            peaks.append(record["peak_mb"])
            rate = depth / record["seconds"]
            print(f"{depth} x {arguments.side}^2: {peaks[-1]:.0f} MB, {rate:.2f} slices/s")
    print(f"difference: {peaks[-1] - peaks[0]:.0f} MB")


if __name__ == "__main__":
    main()

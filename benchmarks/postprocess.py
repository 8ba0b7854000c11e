"""Time and memory of `etsam postprocess` on membrane-like content: `python benchmarks/postprocess.py`.

Writes a mask of wavy vesicles, closely spaced double membranes with rungs, and specks to a temporary
folder, cleans it in a process of its own, with one worker and with two, and prints a JSON line each.
Bars: 15 s and 3 GB for 500 x 928 x 960.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from etsam.volume import create_volume, tomogram_from_array

CLEAN = """
import json, resource, sys, time
from dataclasses import asdict
import etsam.postprocess
idle = resource.getrusage(resource.RUSAGE_SELF)
start = time.perf_counter()
last = {}
def note(stage, done, total):
    last[stage] = time.perf_counter()
    last.setdefault(stage + "_first", time.perf_counter())
done = etsam.postprocess.postprocess(sys.argv[1], workers=int(sys.argv[2]), progress=note)
seconds = time.perf_counter() - start
used = resource.getrusage(resource.RUSAGE_SELF)
others = resource.getrusage(resource.RUSAGE_CHILDREN)
cpu = used.ru_utime + used.ru_stime - idle.ru_utime - idle.ru_stime
cpu += others.ru_utime + others.ru_stime
print(json.dumps({
    "seconds": round(seconds, 2),
    "cpu_seconds": round(cpu, 2),
    "slices_seconds": round(last["clean"] - start, 2),
    "blobs_seconds": round(last["write_first"] - last["clean"], 2),
    "write_seconds": round(last["write"] - last["write_first"], 2),
    "peak_rss_mb": used.ru_maxrss // 1024,
    "peak_rss_mb_of_a_worker": others.ru_maxrss // 1024,
    "rss_at_start_mb": idle.ru_maxrss // 1024,
    **asdict(done.summary),
}))
"""


def mask_slice(z: int, shape: tuple[int, int], vesicles: NDArray[np.float64]) -> NDArray[np.int8]:
    """Draw one slice: double-walled wavy vesicles, rungs between their walls, specks."""
    random = np.random.default_rng(z)
    mask = np.zeros(shape, np.int8)
    for y, x, radius, depth in vesicles:
        here = radius**2 - (z - depth) ** 2
        if here < 100:
            continue
        r = np.sqrt(here)
        reach = int(r + 20)
        top, left = max(int(y) - reach, 0), max(int(x) - reach, 0)
        rows = np.arange(top, min(int(y) + reach, shape[0]))[:, None] - y
        columns = np.arange(left, min(int(x) + reach, shape[1]))[None] - x
        angle = np.arctan2(rows, columns)
        distance = np.hypot(rows, columns) - r - 4 * np.sin(5 * angle + z / 15)
        band = (np.abs(distance) < 2.5) | (np.abs(distance - 8) < 2.5)
        rung = np.abs(angle - random.uniform(-3, 3)) * r < 2
        band |= rung & (distance > 0) & (distance < 8)
        mask[top : top + band.shape[0], left : left + band.shape[1]] |= band
    specks = random.random(shape) > 0.9999
    mask[specks] = 1
    return mask


def main() -> None:
    """Make the mask, clean it, print what it cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=(500, 928, 960), metavar="N")
    parser.add_argument("--vesicles", type=int, default=25)
    parser.add_argument("--workers", type=int, nargs="+", default=(1, 2))
    options = parser.parse_args()
    depth, height, width = options.shape
    random = np.random.default_rng(0)
    low, high = (0, 0, 30, 0), (height, width, 160, depth)
    vesicles = random.uniform(low, high, (options.vesicles, 4))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.mrc"
        like = tomogram_from_array(np.broadcast_to(np.int8(0), (depth, height, width)))
        with create_volume(path, like, dtype="int8", label="benchmark") as writer:
            for z in range(depth):
                writer.write_slice(z, mask_slice(z, (height, width), vesicles))
        for workers in options.workers:
            command = [sys.executable, "-c", CLEAN, str(path), str(workers)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            for made in path.parent.glob("mask_postprocessed.*"):
                made.unlink()
            found = {"shape": list(options.shape), "workers": workers}
            print(json.dumps(found | json.loads(done.stdout)))


if __name__ == "__main__":
    main()

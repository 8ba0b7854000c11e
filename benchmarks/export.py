"""Time and memory of what `etsam export` does with a full tomogram: `python benchmarks/export.py [separate] [mesh]`.

The mask is that of `benchmarks/postprocess.py`: wavy double walls with rungs, and specks, in 500 x 928 x 960. Each
task runs in a process of its own and prints a JSON line. Bars: 2 min and 6 GB to tell membranes apart, 30 s and 4 GB
for a mesh of 500,000 triangles.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from postprocess import mask_slice

from etsam.frame import Frame
from etsam.instances import separate_membranes
from etsam.membrane import Membrane
from etsam.meshes import surface_mesh

SHAPE = (500, 928, 960)
SPACING = 10.0  # Å
VESICLES = 25


def benchmark_membrane() -> Membrane:
    """Return the mask in memory."""
    random = np.random.default_rng(0)
    depth, height, width = SHAPE
    low, high = (0, 0, 30, 0), (height, width, 160, depth)
    vesicles = random.uniform(low, high, (VESICLES, 4))
    mask = np.empty(SHAPE, bool)
    for z in range(depth):
        mask[z] = mask_slice(z, (height, width), vesicles)
    return Membrane(mask, None, Frame(SHAPE, (SPACING,) * 3))


TASKS: dict[str, Callable[[Membrane], dict[str, int]]] = {
    "separate": lambda membrane: {"membranes": len(separate_membranes(membrane, min_voxels=500))},
    "mesh": lambda membrane: {"faces": len(surface_mesh(membrane).faces)},
}


def measure(task: str) -> None:
    """Do a task and print what it cost."""
    membrane = benchmark_membrane()
    idle = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    found = TASKS[task](membrane)
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = used.ru_utime + used.ru_stime - idle.ru_utime - idle.ru_stime
    result = {
        "task": task,
        "voxels": int(np.count_nonzero(membrane.mask)),
        **found,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_rss_mb": used.ru_maxrss // 1024,
    }
    print(json.dumps(result), flush=True)


def main() -> None:
    """Run tasks, by default all, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", help=f"{' or '.join(TASKS)}; all of them by default")
    parser.add_argument("--here", action="store_true", help="in this process, the first one only")
    given = parser.parse_args()
    if unknown := set(given.tasks) - set(TASKS):
        parser.error(f"{', '.join(sorted(unknown))}: no such task")
    if given.here:
        measure(given.tasks[0])
        return
    for task in given.tasks or TASKS:
        subprocess.run([sys.executable, __file__, "--here", task], check=True)


if __name__ == "__main__":
    main()

"""What a batch costs beyond its tomograms, and how long the engine takes to start: a JSON line each.

    python benchmarks/batch.py [TOMOGRAMS] [SECONDS_OF_A_TOMOGRAM]

The networks are tiny and random and the tomograms small, so that what is left is the cost of the batch
itself: names, locks, manifest. It is told in seconds of processor time a tomogram, which a busy machine
does not change, and as a share of SECONDS_OF_A_TOMOGRAM (96: 256 x 512 x 512 on two cores, README).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mrcfile
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from etsam.batch import BatchPlan, ModelOnce, run_batch
from etsam.options import SegmentOptions
from etsam.sam2 import save_checkpoint
from etsam.segmentation import segment_file
from tiny_model import SPEC, tiny_network

START = """
import json, os, time
begun = time.perf_counter()
from etsam.engine import Engine, start_workers
with start_workers(Engine(workers=1), [].append) as client:
    client.submit(os.getpid).result()
    elapsed = time.perf_counter() - begun
print(json.dumps({"elapsed_s": round(elapsed, 3)}))
"""
SHAPE = (2, 32, 32)
TOMOGRAM_SECONDS = 96.0


def processor_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@contextmanager
def measured(row: dict[str, object]) -> Iterator[None]:
    """Note processor and elapsed seconds."""
    begun, cpu = time.perf_counter(), processor_seconds()
    yield
    row["processor_s"] = round(processor_seconds() - cpu, 3)
    row["elapsed_s"] = round(time.perf_counter() - begun, 3)


def write_inputs(folder: Path, count: int) -> tuple[list[Path], SegmentOptions]:
    """Small tomograms and a tiny model."""
    random = np.random.default_rng(0)
    paths = [folder / f"TS_{number}.mrc" for number in range(count)]
    for path in paths:
        with mrcfile.new(path) as mrc:
            mrc.set_data(random.normal(size=SHAPE).astype(np.float32))
            mrc.voxel_size = 10.0
    for stage in (1, 2):
        described = {"frame_spec": SPEC.to_dict()}
        path = folder / f"stage{stage}.safetensors"
        save_checkpoint(path, tiny_network(stage), described, half=False)
    options = SegmentOptions(model=folder, device="cpu", preview=False, polarity="dark")
    return paths, options


def one_by_one(paths: list[Path], options: SegmentOptions, load: ModelOnce) -> None:
    """Segment each as a single run does, but with the networks loaded already."""
    for path in paths:
        segment_file(path, options, load=load)


def main(count: int, tomogram_seconds: float) -> None:
    """Print the rows."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths, options = write_inputs(folder, count)
        load = ModelOnce(options)
        rows: list[dict[str, object]] = []
        for what in ("warm-up", "alone", "batch", "alone", "batch"):
            for old in folder.glob("*_membrane.*"):
                old.unlink()
            row: dict[str, object] = {"what": what, "tomograms": count}
            with measured(row):
                if what == "batch":
                    plan = BatchPlan(paths, options, manifest=folder / "etsam_manifest.jsonl")
                    assert all(outcome.error is None for outcome in run_batch(plan))
                else:
                    one_by_one(paths, options, load)
            rows.append(row)
        load_row: dict[str, object] = {"what": "loading the tiny networks"}
        with measured(load_row):
            ModelOnce(options)()
        loading = float(str(load_row["processor_s"]))
        spent = {
            what: min(float(str(row["processor_s"])) for row in rows if row["what"] == what)
            for what in ("alone", "batch")
        }
        overhead = (spent["batch"] - loading - spent["alone"]) / count
        for row in [*rows[1:], load_row]:
            print(json.dumps(row))
        share = overhead / tomogram_seconds
        summary = {"overhead_s": round(overhead, 4), "share_of_a_tomogram": round(share, 6)}
        print(json.dumps({"what": "batch, a tomogram", **summary}))
    print(json.dumps(engine_start()))


def engine_start() -> dict[str, object]:
    """Seconds from nothing imported to the first answer of a worker, in a process of its own as the command is."""
    done = subprocess.run([sys.executable, "-c", START], check=True, capture_output=True, text=True)
    row: dict[str, object] = json.loads(done.stdout)
    return {"what": "engine start, local, 1 worker"} | row


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tomograms", type=int, nargs="?", default=20)
    parser.add_argument("tomogram_seconds", type=float, nargs="?", default=TOMOGRAM_SECONDS)
    main(**vars(parser.parse_args()))

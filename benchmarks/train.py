"""Throughput and peak memory of simulating and training, as ratios within one run.

    python benchmarks/train.py                      # the compact network, on the CPU
    python benchmarks/train.py --device cuda
    python benchmarks/train.py --start sam2.1_hiera_base_plus.pt --device cuda --frames 22
    python benchmarks/train.py --network base_plus --frames 4 --steps 1 --checkpointing-only
    python benchmarks/train.py --steps 2 --size 64 --volumes 1               # to see that it works

A line each for simulation and for training with and without gradient checkpointing; each runs in a
process of its own, after one step that is not counted. The last lines compare. Published sizes have
random weights. Memory is the peak of the process (CPU), or of the tensors on the GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

SHAPE = (64, 256, 256)
Record = dict[str, float]


def simulating(folder: Path, volumes: int) -> Record:
    """Simulate pairs and count slices."""
    from etsam.provenance import peak_rss_mb
    from etsam.simulate import simulate_many

    began = time.perf_counter()
    simulate_many(folder, range(volumes), SHAPE)
    seconds = time.perf_counter() - began
    return {"slices/s": volumes * SHAPE[0] / seconds, "MB": peak_rss_mb() or math.nan}


def training(folder: Path, given: argparse.Namespace, checkpointing: bool) -> Record:
    """Train for some steps and count clips and slices."""
    import torch

    from etsam.provenance import peak_rss_mb
    from etsam.train import TrainOptions, from_checkpoint, train

    options = TrainOptions(folder / "pairs", folder / f"run_{checkpointing}", device=given.device)
    if given.start is not None:
        options = from_checkpoint(options, given.start)
    elif given.network != "compact":
        options = from_checkpoint(options, random_network(folder, given.network))
    sizes = (given.size,) if given.size else options.sizes[-1:]
    spec = options.spec
    if spec.size == "square":
        spec = replace(spec, image_size=sizes[0])
    options = replace(options, sizes=sizes, spec=spec, checkpointing=checkpointing)
    if given.frames:
        options = replace(options, frames=given.frames)
    marks: list[Record] = []
    for steps in (1, 1 + given.steps):
        # the first call pays for imports and files, the second goes on from its state
        train(replace(options, schedule=replace(options.schedule, steps=steps)), marks.append)
    seconds = marks[-1]["seconds"]
    clips = given.steps * options.schedule.batch
    slices = clips * (options.frames + options.anchored)
    cuda = torch.device(given.device).type == "cuda"
    memory = torch.cuda.max_memory_allocated() / 1e6 if cuda else peak_rss_mb() or math.nan
    return {"clips/s": clips / seconds, "slices/s": slices / seconds, "MB": memory}


def random_network(folder: Path, name: str) -> Path:
    """A checkpoint of a published size with random weights."""
    import torch

    from etsam.sam2 import PRESETS, SAM2
    from etsam.train import initialise

    path = folder / f"{name}.pt"
    if not path.is_file():
        torch.manual_seed(0)
        model = SAM2(PRESETS[name])
        initialise(model)
        torch.save({"model": model.state_dict()}, path)
    return path


def measured(part: Any, *arguments: Any) -> Record:
    """Run a part in a process of its own."""
    context = multiprocessing.get_context("spawn")
    mine, other = context.Pipe()
    process = context.Process(target=report, args=(other, part, arguments))
    process.start()
    other.close()
    try:
        record: Record = json.loads(mine.recv())
    except EOFError:
        raise SystemExit(f"{part.__name__} failed") from None
    process.join()
    return record


def report(pipe: Any, part: Any, arguments: tuple[Any, ...]) -> None:
    """Send what a part measured."""
    pipe.send(json.dumps(part(*arguments)))


def show(name: str, record: Record) -> None:
    """Print one line."""
    figures = "  ".join(f"{value:9.3g} {unit}" for unit, value in record.items())
    print(f"{name:<28}{figures}", flush=True)


def main() -> None:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--network", default="compact", help="compact, tiny, small, base_plus, large"
    )
    parser.add_argument("--start", type=Path, help="a checkpoint instead")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, help="side of a frame in pixels")
    parser.add_argument("--frames", type=int, help="slices of a clip")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--volumes", type=int, default=2)
    parser.add_argument(
        "--checkpointing-only", action="store_true", help="where all values do not fit in memory"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        simulated = measured(simulating, folder / "pairs", given.volumes)
        show("simulate 64 x 256 x 256", simulated)
        runs = {}
        for checkpointing in (True,) if given.checkpointing_only else (False, True):
            runs[checkpointing] = measured(training, folder, given, checkpointing)
            show("train, checkpointing" if checkpointing else "train", runs[checkpointing])
    if len(runs) == 2:
        print(
            f"checkpointing: {runs[True]['MB'] / runs[False]['MB']:.2f} of the memory, "
            f"{runs[False]['clips/s'] / runs[True]['clips/s']:.2f} times the time"
        )
    trained = next(iter(runs.values()))["slices/s"]
    print(f"simulation makes {simulated['slices/s'] / trained:.2f} slices for each trained on")


if __name__ == "__main__":
    main()

"""A batch on several processes: dask.distributed on this machine, dask-jobqueue on a cluster."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import tomllib
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from queue import Empty, Queue
from types import ModuleType
from typing import Any, Literal, TypeGuard

from etsam.batch import BatchPlan, ModelOnce, Outcome, segment_one
from etsam.manifest import Entry, Manifest, here, now
from etsam.options import SegmentOptions
from etsam.weights import resolve_checkpoints

EngineKind = Literal["local", "slurm", "pbs", "sge", "lsf"]

JOB_CLUSTERS = {
    "slurm": "SLURMCluster",
    "pbs": "PBSCluster",
    "sge": "SGECluster",
    "lsf": "LSFCluster",
}
TOPIC = "etsam"
TICK_SECONDS = 0.5
MESSAGE_LENGTH = 160
MISSING = 'several processes need dask: pip install "etsam[cluster]"'


@dataclass(frozen=True)
class Engine:
    """Where the processes run, how many, and a TOML file with the options of their cluster."""

    kind: EngineKind = "local"
    workers: int | None = None
    options: Path | None = None


def run_on_engine(
    plan: BatchPlan,
    engine: Engine,
    tick: Callable[[], None],
    say: Callable[[str], None],
) -> Generator[Outcome, None, None]:
    """Segment the tomograms in any order, and yield what became of each.

    One process keeps the manifest. A tomogram whose worker is lost goes to another one, which goes
    on where the first one saved. `tick` is called at least every half second, and an exception in
    it interrupts the batch; `say` gets lines for the user.

    Raises
    ------
    ValueError, OSError
        As `etsam.batch.run_batch`; or dask is not installed, or does not take the options.
    """
    masks = plan.masks_by_path()
    if wanted := plan.options.stages_of_model:
        resolve_checkpoints(plan.options.model, wanted)  # fetched once, before the workers want it
    with Manifest(plan.manifest) as manifest, start_workers(engine, say) as client:
        entries = manifest.begin(masks.items(), replacing=plan.replacing)
        events: Queue[Any] = Queue()
        client.subscribe_topic(TOPIC, lambda event: events.put(event[1]))
        waiting: dict[Any, tuple[Path, str]] = {}
        for number, (path, entry) in enumerate(zip(plan.paths, entries, strict=True)):
            alone = replace(plan, paths=[path], masks={path: masks[path]})
            future = client.submit(_work, path, entry, alone, key=f"{plan.run}-{number}")
            waiting[future] = path, entry.mask
            future.add_done_callback(events.put)
        try:
            while waiting:
                tick()
                try:
                    event = events.get(timeout=TICK_SECONDS)
                except Empty:
                    continue
                if isinstance(event, dict):
                    _note_start(manifest, event, {mask for _, mask in waiting.values()})
                    continue
                path, mask = waiting.pop(event)
                outcome = _outcome(event, path, manifest.entries[mask])
                manifest.ended(outcome.entry, outcome.error)
                yield outcome
                if plan.fail_fast and outcome.error is not None:
                    return
        finally:
            client.cancel(list(waiting))
            manifest.interrupted()


def _note_start(manifest: Manifest, event: dict[str, Any], waiting: set[str]) -> None:
    """Record that a worker began a tomogram, unless its end is known already."""
    if event["mask"] in waiting:
        entry = manifest.entries[event["mask"]]
        manifest.started(replace(entry, host=event["host"], pid=event["pid"]))


def _outcome(future: Any, path: Path, known: Entry) -> Outcome:
    """What a worker returned, or that it could not return anything."""
    error = future.exception()
    if error is None:
        outcome: Outcome = future.result()
        counted: dict[str, Any] = {"attempts": max(1, known.attempts), "started": known.started}
        return replace(outcome, entry=replace(outcome.entry, **counted))
    if isinstance(error, _module("distributed").KilledWorker):
        text = "its process died again and again: is there too little memory?"
    else:
        text = " ".join(f"{type(error).__name__}: {error}".split())
    failed = replace(known, state="failed", ended=now(), error=text)
    return Outcome(path, failed, error=RuntimeError(text))


def _work(path: Path, entry: Entry, plan: BatchPlan) -> Outcome:
    """Segment one tomogram in a worker."""
    worker = _module("distributed").get_worker()
    if _is_local(worker.name):  # its stderr is the user's, and tells of being stopped
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
    warnings.formatwarning = _warning_line  # type: ignore[assignment]
    worker.log_event(TOPIC, {"mask": entry.mask, **here()})
    plan = replace(plan, options=replace(plan.options, device=_device(plan.options, worker.name)))
    return segment_one(path, replace(entry, **here()), plan, _model(plan.options))


def _warning_line(message: Warning | str, *_place: object) -> str:
    """A warning as the command shows it, without where in the code it arose."""
    return f"etsam: warning: {' '.join(str(message).split())}\n"


@lru_cache(maxsize=1)
def _model(options: SegmentOptions) -> ModelOnce:
    return ModelOnce(options)


def _device(options: SegmentOptions, name: object) -> str:
    """Give each worker of this machine a GPU of its own, where there are several."""
    if options.device not in ("auto", "cuda") or not _is_local(name):
        return options.device
    import torch

    count = torch.cuda.device_count()
    return f"cuda:{name % count}" if count else options.device


def _is_local(name: object) -> TypeGuard[int]:
    """Whether a worker of that name is a process of this machine; those of jobs are called otherwise."""
    return isinstance(name, int)


@contextmanager
def start_workers(engine: Engine, say: Callable[[str], None]) -> Iterator[Any]:
    """Start the workers, yield dask's client of them, and stop them in the end.

    Raises
    ------
    ValueError
        dask is not installed, or does not take the options.
    """
    distributed = _module("distributed")
    workers = engine.workers or max(1, _gpus())
    options = _read_options(engine.options)
    try:
        cluster = _local(workers, options) if engine.kind == "local" else _jobs(engine, options)
    except (TypeError, ValueError, RuntimeError) as error:
        place = engine.options or f"--engine {engine.kind} without --engine-options"
        raise ValueError(f"{place}: {str(error)[:MESSAGE_LENGTH]}") from error
    with cluster, distributed.Client(cluster) as client:
        if engine.kind != "local":
            cluster.adapt(minimum=min(1, workers), maximum=workers)
        if client.dashboard_link:
            say(f"{workers} workers, see {client.dashboard_link}")
        yield client


def _local(workers: int, options: dict[str, Any]) -> Any:
    """Processes of this machine, which share its cores; each does one tomogram at a time.

    Raises
    ------
    ValueError
        The options have a name that dask does not know, or ask for no process.
    """
    distributed = _module("distributed")
    classes = (distributed.LocalCluster, distributed.Nanny, distributed.Worker)
    known = {name for kind in classes for name in inspect.signature(kind).parameters}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(f"{unknown[0]} is no option of dask's LocalCluster: take it out")
    if options.get("n_workers", 1) == 0:
        raise ValueError("n_workers is 0: give 1 or more, or --workers")
    threads = os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // workers)
    chosen = {
        "n_workers": workers,
        "threads_per_worker": 1,
        "processes": True,
        "memory_limit": 0,
        "dashboard_address": ":0",
        "env": {"OMP_NUM_THREADS": str(threads)},
        "silence_logs": logging.CRITICAL,
    }
    return distributed.LocalCluster(**(chosen | options))


def _jobs(engine: Engine, options: dict[str, Any]) -> Any:
    """Jobs of a cluster, one process each, as dask-jobqueue submits them."""
    kind = getattr(_module("dask_jobqueue"), JOB_CLUSTERS[engine.kind])
    return kind(**({"processes": 1, "worker_extra_args": ["--nthreads", "1"]} | options))


def _module(name: str) -> ModuleType:
    """Import a module of the extra ``cluster``."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(MISSING) from error


def _read_options(path: Path | None) -> dict[str, Any]:
    """Read keyword arguments of the cluster's class.

    Raises
    ------
    ValueError
        The file is not TOML.
    """
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error


def _gpus() -> int:
    """NVIDIA devices of this machine that may be used, without asking torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))

"""Simulate tomograms with exact membrane masks: a random sample, its tilt series, its reconstruction."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from etsam import __version__
from etsam.in_order import KILLED, WorkerKilledError, in_order
from etsam.memory import memory_errors
from etsam.provenance import State, sha256, size_and_time
from etsam.simulation.maps import read_map
from etsam.simulation.recipe import SimulationOptions, draw
from etsam.simulation.render import render
from etsam.simulation.segmentations import read_segmentation
from etsam.simulation.suite import SUITE_SHAPE, held_out_suite
from etsam.staging import hidden_folder, place_files
from etsam.storage import MAX_SIDE, naming, write_text
from etsam.volume import OutputType, create_volume, refuse_input, tomogram_from_array

Job = tuple[Path, int, tuple[int, int, int], SimulationOptions, str | None, bool]

ALL_DRAWN = SimulationOptions()
MIN_SIDE = 16  # voxels
LESS_MEMORY = "simulate a smaller --shape, or fewer --views"


@dataclass(frozen=True)
class Simulation:
    """A simulated tomogram (Z, Y, X) with its labels: 1 membrane, 0 background, -1 ignore."""

    tomogram: np.ndarray
    mask: np.ndarray
    voxel_spacing: float
    parameters: dict[str, Any]


def simulate(
    seed: int,
    shape: tuple[int, int, int] = (64, 256, 256),
    options: SimulationOptions = ALL_DRAWN,
    device: str = "cpu",
) -> Simulation:
    """Simulate one tomogram; the same seed, shape and options give the same tomogram.

    Returns
    -------
    Simulation
        `tomogram` float32 (Z, Y, X) of mean 0 and standard deviation 1; `mask` int8: 1 within half
        the labelled thickness of a bilayer's mid-surface, -1 where the missing wedge hides it.

    Raises
    ------
    ValueError
        `shape` is too small or too large, or the preset unknown.
    MemoryError
        The memory is used up.
    """
    check_shape(shape)
    rng = np.random.default_rng(seed)
    recipe = draw(rng, options)
    # naming the device costs every call of torch a little, and the CPU need not be named
    placed = nullcontext() if device == "cpu" else torch.device(device)
    with placed, memory_errors(LESS_MEMORY):
        tomogram, labels, reached = render(recipe, shape, options, rng)
    asked = {"etsam": __version__, "seed": seed, "shape": list(shape)}
    parameters = {
        **asked,
        **asdict(recipe),
        "contrast_to_noise_reached": reached,
        "membrane_voxels": int((labels > 0).sum()),
        "given": asdict(options),
        "sources": _sources(options),
    }
    return Simulation(
        tomogram.cpu().numpy(), labels.cpu().numpy(), recipe.voxel_spacing, parameters
    )


def _supplied(options: SimulationOptions) -> tuple[str, ...]:
    """Places of the maps and segmentations that a user supplies."""
    return (*options.proteins, *options.membrane_proteins, *(s.path for s in options.shapes))


def _sources(options: SimulationOptions) -> dict[str, str]:
    """SHA-256 of each map and segmentation that a user supplies."""
    return {path: _sum(path, size_and_time(Path(path))) for path in _supplied(options)}


@lru_cache
def _sum(path: str, _state: State) -> str:
    """SHA-256 of a file, computed once for each state of it."""
    return sha256(path)


def check_shape(shape: tuple[int, int, int]) -> None:
    """Refuse a shape (Z, Y, X) that cannot be simulated.

    Raises
    ------
    ValueError
        A side is too short or too long.
    """
    if min(shape) < MIN_SIDE or max(shape) > MAX_SIDE:
        raise ValueError(
            f"shape {shape} cannot be simulated: use at least {MIN_SIDE} and at most {MAX_SIDE} "
            "voxels an axis"
        )


def quantised(tomogram: np.ndarray, percentiles: tuple[float, float]) -> np.ndarray:
    """Scale a tomogram between two percentiles to int8, -127..127."""
    low, high = np.percentile(tomogram[::2, ::2, ::2], percentiles)
    scaled = (tomogram - low) * (254.0 / max(high - low, 1e-12)) - 127.0
    return np.asarray(np.rint(scaled).clip(-127, 127), np.int8)


def _write_mrc(path: Path, data: np.ndarray, spacing: float) -> None:
    like = tomogram_from_array(data, voxel_spacing=spacing)
    dtype: OutputType = "int8" if data.dtype == np.int8 else "float32"
    with create_volume(path, like, dtype=dtype, label=f"etsam {__version__} simulate") as volume:
        for z, plane in enumerate(data):
            volume.write_slice(z, plane)


def simulate_one(
    folder: Path,
    seed: int,
    shape: tuple[int, int, int],
    options: SimulationOptions = ALL_DRAWN,
    name: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write one pair unless it is there: `{name}.mrc`, `{name}_membrane.mrc`, `{name}.json`.

    Raises
    ------
    FileExistsError
        There is one of another shape or of other options, and `overwrite` is not given.
    OSError
        A file cannot be written; nothing partial is left.
    """
    stem = name or f"sim_{seed:06d}"
    target, mask, record = _files(folder, stem)

    def is_there() -> bool:
        there = [path for path in (target, mask, record) if os.path.lexists(path)]
        if there:
            _refuse_others(there[0], record, seed, shape, options)
        return all(path.exists() for path in (target, mask, record))

    if not overwrite and is_there():
        return target
    with hidden_folder(folder, stem) as work:
        result = simulate(seed, shape, options)
        tomogram, clip = result.tomogram, result.parameters["clip_percent"]
        if options.dtype == "int8":
            tomogram = quantised(tomogram, (clip, 100.0 - clip))
        with naming(target):
            _write_mrc(work / target.name, tomogram, result.voxel_spacing)
            _write_mrc(work / mask.name, result.mask, result.voxel_spacing)
            write_text(work / record.name, json.dumps(result.parameters, indent=1))
            if overwrite or not is_there():  # by another process, meanwhile
                place_files(work, [record, mask, target])
    return target


def _files(folder: Path, stem: str) -> tuple[Path, Path, Path]:
    """Tomogram, mask and record of a pair."""
    return folder / f"{stem}.mrc", folder / f"{stem}_membrane.mrc", folder / f"{stem}.json"


def _refuse_others(
    there: Path,
    record: Path,
    seed: int,
    shape: tuple[int, int, int],
    options: SimulationOptions,
) -> None:
    """Refuse to keep or complete a pair that is not what is asked for, going by its JSON.

    What is supplied counts by its place and its content.

    Warns where another version of this package made it.
    """
    asked, default = (json.loads(json.dumps(asdict(one))) for one in (options, ALL_DRAWN))
    try:
        made = json.loads(record.read_text(encoding="utf-8"))
        given = default | made["given"]  # an option that came later was left to chance
        same = (made["seed"], made["shape"], given) == (seed, list(shape), asked)
        sources = _sources(options)
        same = same and made.get("sources", sources) == sources
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise FileExistsError(
            f"{there} is there, of another shape, of other options or of other maps or segmentations: "
            "give --overwrite, remove it or choose another folder"
        )
    if made.get("etsam") != __version__:
        warnings.warn(
            f"{there.parent}: what is there was made by etsam {made.get('etsam', '(unknown version)')}, "
            f"this is {__version__}, which may draw other things: --overwrite makes it anew",
            stacklevel=3,
        )


def limit_threads() -> None:
    """One thread a process, which is as fast here."""
    torch.set_num_threads(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread, which is as fast here, and leave the caller's setting as it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def simulate_many(
    folder: Path | str,
    seeds: Iterable[int],
    shape: tuple[int, int, int] = (64, 256, 256),
    workers: int = 1,
    options: SimulationOptions = ALL_DRAWN,
    overwrite: bool = False,
) -> list[Path]:
    """Write a pair per seed into `folder`, skipping those that exist; one torch thread a worker.

    A script that asks for more than one worker must start from ``if __name__ == "__main__":``.

    Warns where a contrast to noise was asked for that tomograms do not reach, and where nothing is seen of
    a segmentation that was supplied.

    Raises
    ------
    FileExistsError, MemoryError, OSError, ValueError
        See `simulate` and `simulate_one`; a map or segmentation lies where a result would.
    """
    seeds = list(seeds)
    check_shape(shape)  # before a folder is made for it
    _check_supplied(Path(folder), seeds, options)
    jobs = [(Path(folder), seed, shape, options, None, overwrite) for seed in seeds]
    written: list[Path] = []
    said: set[str] = set()
    try:
        for path, told in in_order(_simulate_job, jobs, min(workers, len(jobs))):
            written.append(path)
            for message in told:
                if message not in said:
                    warnings.warn(message, stacklevel=2)
            said.update(told)
    except WorkerKilledError:
        raise MemoryError(f"{KILLED}: use fewer --workers, or {LESS_MEMORY}") from None
    if options.contrast_to_noise is not None:
        _warn_of_contrast(written, options.contrast_to_noise)
    if options.shapes:
        _warn_of_nothing(written)
    return written


def _simulate_job(job: Job) -> tuple[Path, list[str]]:
    """Do one of several; also what it warns of, which a process of its own cannot tell in its caller's way."""
    with _one_thread(), warnings.catch_warnings(record=True) as told:
        path = simulate_one(*job)
    return path, [str(one.message) for one in told]


def _check_supplied(folder: Path, seeds: Sequence[int], options: SimulationOptions) -> None:
    """Read maps, and keep what is supplied from being replaced."""
    for path in (*options.proteins, *options.membrane_proteins):
        read_map(path)
    for path in _supplied(options):
        results = (file for seed in seeds for file in _files(folder, f"sim_{seed:06d}"))
        refuse_input(results, Path(path), "map or segmentation", "folder")


def _warn_of_nothing(written: list[Path]) -> None:
    """Warn where a tomogram with a segmentation in it has no membrane at all."""
    for path in written:
        made = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if made.get("membrane_voxels") == 0:
            warnings.warn(
                f"{path} holds no membrane: nothing of the segmentation is seen in it; is its voxel spacing "
                "right?",
                stacklevel=3,
            )


def _warn_of_contrast(written: list[Path], asked: float) -> None:
    """Warn where tomograms do not reach the contrast to noise that was asked for, by their JSON."""
    fainter: dict[Path, float] = {}
    for path in written:
        made = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        reached = made.get("contrast_to_noise_reached")  # absent where an older version made it
        if reached is not None and reached < asked:
            fainter[path] = reached
    if fainter:
        faintest = min(fainter, key=lambda path: fainter[path])
        warnings.warn(
            f"{faintest.parent}: contrast to noise is less than {asked:g} in {len(fainter)} of "
            f"{len(written)} tomograms, down to {fainter[faintest]:.2g} in {faintest.name}, as their "
            "membranes differ too much among themselves: see contrast_to_noise_reached in the JSON files "
            "and leave such seeds out",
            stacklevel=3,
        )


def simulate_suite(
    folder: Path | str, shapes: Path | None = None, overwrite: bool = False
) -> list[Path]:
    """Write the held-out suite into `folder`; with a folder of segmentations, real shapes too.

    Raises
    ------
    FileExistsError, FileNotFoundError, OSError, ValueError
        See `simulate_one`, `held_out_suite` and `read_segmentation`.
    """
    place, suite = Path(folder), held_out_suite(shapes)
    for shape in (shape for entry in suite for shape in entry.options.shapes):
        read_segmentation(shape)  # a bad one is refused before minutes of work on the others
    with _one_thread():
        return [
            simulate_one(place, entry.seed, SUITE_SHAPE, entry.options, entry.name, overwrite)
            for entry in suite
        ]

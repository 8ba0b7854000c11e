"""Memory that really runs out: smaller tiles, or one line; never a half-written result."""

from __future__ import annotations

import gc
import json
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from etsam import evaluate, segmentation
from etsam.batch import BatchPlan, run_batch
from etsam.memory import _trimmer, give_back_freed, less_memory, memory_errors, smaller_tile
from etsam.options import SegmentOptions
from etsam.results import how_far
from etsam.sam2 import SAM2
from etsam.segmentation import segment_array, segment_file
from etsam.tables import read_table
from test_cli import Run, assert_one_line, write_mrc
from tiny_model import tiny_stages, write_tiny_model

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")

SHAPE = (3, 64, 520)
ROOM = 350 << 20  # bytes a process may still take
HUNGRY = 12_000  # bytes a pixel: 400 MB for the whole frame, 270 MB for each of two tiles
STARVING = 120_000


@pytest.fixture
def options(tmp_path: Path) -> SegmentOptions:
    folder = write_tiny_model(tmp_path / "tiny")
    return SegmentOptions(
        model=folder, device="cpu", preview=False, polarity="dark", output=tmp_path / "out"
    )


@pytest.fixture
def tomogram(tmp_path: Path) -> Path:
    data = np.random.default_rng(3).normal(size=SHAPE).astype(np.float32)
    return write_mrc(tmp_path / "wide.mrc", data)


@contextmanager
def little_memory() -> Iterator[None]:
    """Let the kernel refuse this process more than `ROOM`; what earlier tests left is freed before."""
    gc.collect()
    give_back_freed()
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, most))


@pytest.fixture
def needing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the networks ask for so many bytes a pixel while they look at a frame."""
    encode = SAM2.encode

    def need(bytes_a_pixel: int) -> None:
        def hungry(self: SAM2, frame: Tensor) -> object:
            height, width = frame.shape[-2:]
            held = torch.empty(height * width * bytes_a_pixel, dtype=torch.uint8)
            features = encode(self, frame)
            del held
            return features

        monkeypatch.setattr(SAM2, "encode", hungry)

    return need


def test_tiles_are_halved_until_they_part_the_frame() -> None:
    sizes = {(1024, 1000): 512, (1024, 512): 256, (512, 1000): 256, (1024, 300): 256}
    assert {case: smaller_tile(*case) for case in sizes} == sizes
    for case in ((256, 1000), (1024, 200), (1024, 0), (300, 1000)):
        assert smaller_tile(*case) is None


def test_smaller_tiles_give_what_they_give_without_need(
    options: SegmentOptions, tomogram: Path, tmp_path: Path, needing: Callable[[int], None]
) -> None:
    asked = replace(options, tile=512, output=tmp_path / "wanted")
    wanted = segment_file(tomogram, asked)
    needing(HUNGRY)
    with little_memory(), pytest.warns(UserWarning, match="tiles of 512 pixels"):
        result = segment_file(tomogram, options)
    assert result.mask.read_bytes() == wanted.mask.read_bytes()
    details = json.loads(result.provenance.read_text())
    assert details["parameters"]["tile"] == 512 and details["request"]["tile"] == 1024
    assert segment_file(tomogram, options, resume=True).reused
    target = tmp_path / "logits.npy"
    with little_memory(), pytest.warns(UserWarning, match="not enough memory"):
        logits = segment_array(tomogram, options, output_path=target)
    assert np.array_equal(logits, segment_array(tomogram, asked))


def test_what_stopped_goes_on_with_the_smaller_tiles(
    options: SegmentOptions, tomogram: Path, tmp_path: Path, needing: Callable[[int], None]
) -> None:
    wanted = segment_file(tomogram, replace(options, tile=512, output=tmp_path / "wanted"))
    needing(HUNGRY)

    def stop(fraction: float, message: str) -> None:
        if fraction > 0.6:
            raise KeyboardInterrupt

    with little_memory(), pytest.warns(UserWarning), pytest.raises(KeyboardInterrupt):
        segment_file(tomogram, options, stop)
    assert how_far(tmp_path / "out" / "wide_membrane.mrc") == (2, 1)
    seen: list[str] = []
    result = segment_file(tomogram, options, lambda _, text: seen.append(text), resume=True)
    assert result.mask.read_bytes() == wanted.mask.read_bytes()
    assert not any("stage 1" in text for text in seen)


def test_where_no_tile_is_small_enough_it_is_said_in_one_line(
    run: Run, options: SegmentOptions, tomogram: Path, needing: Callable[[int], None]
) -> None:
    needing(STARVING)
    with (
        little_memory(),
        pytest.warns(UserWarning),
        pytest.raises(MemoryError, match="larger mach"),
    ):
        segment_file(tomogram, options)
    args = ["segment", tomogram, "--model", options.model, "--no-preview", "--split-processing"]
    with little_memory():
        code, out, err = run(*args, "--device", "cpu", "--overwrite", "-o", options.output)
    assert (code, out) == (1, "")
    assert_one_line("".join(err.splitlines(keepends=True)[-1:]), "not enough memory")
    assert not list((options.output or Path()).glob("*.mrc"))


def resident_mb() -> float:
    """Memory of this process that belongs to no file."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


@pytest.mark.skipif(_trimmer() is None, reason="glibc's allocator")
def test_freed_memory_between_pieces_in_use_is_given_back() -> None:
    """Small pieces lie in one heap: what is freed between them stays with the process until asked for."""
    pieces = [np.ones(100_000, np.uint8) for _ in range(2000)]
    kept = pieces[::8]
    full = resident_mb()
    del pieces
    give_back_freed()
    assert resident_mb() < full - 100
    assert all(piece.all() for piece in kept)


def test_a_failed_tomogram_keeps_nothing_of_what_it_read(
    tomogram: Path, options: SegmentOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[weakref.ref[np.ndarray]] = []

    def fail(*_: object, **__: object) -> None:
        activations = np.zeros(8)
        left.append(weakref.ref(activations))
        try:
            raise RuntimeError("out of memory")
        except RuntimeError as error:
            raise MemoryError("out of memory") from error

    monkeypatch.setattr(segmentation, "segment_file", fail)
    outcomes = list(run_batch(BatchPlan([tomogram, tomogram.with_name("b.mrc")], options)))
    assert [type(outcome.error) for outcome in outcomes] == [MemoryError] * 2
    assert [reference() for reference in left] == [None, None]


def test_curves_of_millions_of_points_are_not_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves: list[weakref.ref[object]] = []
    kept: list[int] = []

    def scored(*args: object) -> list[evaluate.Evaluation]:
        kept.append(sum(curve() is not None for curve in curves))
        found = usual(*args)
        curves.extend(weakref.ref(one.curve) for one in found)
        return found

    usual = evaluate.evaluate
    monkeypatch.setattr(evaluate, "evaluate", scored)
    for name in "abc":
        write_mrc(tmp_path / f"{name}_membrane.mrc", np.eye(16, dtype=np.int8)[None].repeat(4, 0))
        scores = np.random.default_rng(1).normal(size=(4, 16, 16)).astype(np.float32)
        write_mrc(tmp_path / f"{name}_scores.mrc", scores)
    masks = [tmp_path / f"{name}_scores.mrc" for name in "abc"]
    given = ["-t", tmp_path, "-o", tmp_path / "s.csv", "--curves", tmp_path / "c.csv"]
    code, _, err = run("evaluate", *masks, *given)
    assert code == 0, err
    assert len(curves) == 3 and kept == [0, 0, 0]
    assert len(read_table(tmp_path / "c.csv")) == 3 * 101


@pytest.mark.parametrize(
    ("said", "advised"),
    [
        ("CUDA out of memory", True),
        ("MPS backend out of memory (MPS allocated: 8.9 GiB)", True),
        ("Invalid buffer size: 19.38 GiB", True),
        ("std::bad_alloc", False),
        ("bad allocation", False),
    ],
)
def test_the_processor_is_advised_only_to_those_who_use_a_card(said: str, advised: bool) -> None:
    with pytest.raises(MemoryError) as caught, memory_errors():
        raise RuntimeError(said)
    assert ("--device cpu" in str(caught.value)) == advised
    assert "--split-processing" in str(caught.value)


@pytest.mark.parametrize("said", ["CUDA out of memory", "std::bad_alloc"])
def test_bfloat16_is_advised_only_where_it_is_not_in_use(said: str) -> None:
    stages = tiny_stages()
    for dtype, advised in ((torch.float32, True), (torch.bfloat16, False)):
        for stage in stages:
            stage.model.to(dtype)
        with pytest.raises(MemoryError) as caught, memory_errors(less_memory(stages)):
            raise RuntimeError(said)
        assert ("--dtype bfloat16" in str(caught.value)) == advised
        assert ("--device cpu" in str(caught.value)) == ("CUDA" in said)
        assert "--split-processing" in str(caught.value)

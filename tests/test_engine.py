"""Several processes: nothing is lost with a worker, nothing is recorded twice."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from etsam import engine
from etsam.batch import BatchPlan, run_batch
from etsam.engine import Engine, run_on_engine
from etsam.manifest import read_manifest
from etsam.options import SegmentOptions
from etsam.results import how_far
from etsam.segmentation import segment_file
from test_cli import Run, assert_one_line, write_mrc
from tiny_model import write_tiny_model

SHAPE = (40, 32, 32)
OF_DASK = pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::DeprecationWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


@pytest.fixture
def options(tmp_path: Path) -> SegmentOptions:
    folder = write_tiny_model(tmp_path / "tiny")
    return SegmentOptions(model=folder, device="cpu", preview=False, polarity="dark")


def write_tomograms(folder: Path, count: int) -> list[Path]:
    random = np.random.default_rng(5)
    volumes = random.normal(size=(count, *SHAPE)).astype(np.float32)
    return [write_mrc(folder / f"TS_{n}.mrc", data) for n, data in enumerate(volumes)]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_wrong_engine_options_are_one_line(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    (path,) = write_tomograms(tmp_path, 1)
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("queue = \n")
    odd = tmp_path / "odd.toml"
    odd.write_text('colour = "red"\n')
    for file in (wrong, odd, tmp_path / "absent.toml"):
        code, out, err = run("segment", path, "--engine", "slurm", "--engine-options", file)
        assert (code, out) == (1, "")
        assert_one_line(err, str(file))
    code, _, err = run("segment", path, "--workers", "2")
    assert code == 2
    assert_one_line(err, "--engine")


@pytest.mark.parametrize(
    ("text", "part"), [("nonsense = 3", "nonsense is no option"), ("n_workers = 0", "1 or more")]
)
def test_wrong_options_of_local_workers_are_one_line(
    run: Run, tmp_path: Path, text: str, part: str
) -> None:
    pytest.importorskip("distributed")
    (path,) = write_tomograms(tmp_path, 1)
    file = tmp_path / "local.toml"
    file.write_text(text)
    code, out, err = run("segment", path, "--engine", "local", "--engine-options", file)
    assert (code, out) == (1, "")
    assert_one_line(err, str(file), part)


def test_workers_that_do_not_start_are_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    (path,) = write_tomograms(tmp_path, 1)

    def fail(*_: object) -> None:
        raise RuntimeError("Nanny failed to start.")

    monkeypatch.setattr(engine, "_local", fail)
    code, out, err = run("segment", path, "--engine", "local")
    assert (code, out) == (1, "")
    assert_one_line(err, "--engine local", "Nanny failed to start")


@OF_DASK
def test_workers_say_nothing_of_being_cancelled(
    options: SegmentOptions, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("distributed")
    paths = write_tomograms(tmp_path, 2)
    (tmp_path / "junk.mrc").write_bytes(b"x")
    plan = BatchPlan([*paths, tmp_path / "junk.mrc"], options, fail_fast=True)
    outcomes = list(run_on_engine(plan, Engine(workers=3), lambda: None, lambda _: None))
    assert outcomes[-1].error is not None
    assert capfd.readouterr().err == ""


@OF_DASK
def test_workers_warn_in_one_line(
    options: SegmentOptions, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("distributed")
    data = np.random.default_rng(5).normal(size=SHAPE).astype(np.float32)
    data[3, 4, 5] = np.nan
    with pytest.warns(RuntimeWarning, match="NaN"):
        path = write_mrc(tmp_path / "TS_1.mrc", data)
    asked = replace(options, logit_threshold=-1e3)
    (outcome,) = run_on_engine(BatchPlan([path], asked), Engine(), lambda: None, lambda _: None)
    assert outcome.error is None
    lines = capfd.readouterr().err.splitlines()
    assert lines and all(line.startswith(f"etsam: warning: {path}: ") for line in lines)
    assert lines[-1].endswith("1 NaN or infinite voxels were read as the mean of their slice")


@OF_DASK
def test_what_is_done_stays_done_when_workers_refuse_it(
    options: SegmentOptions, tmp_path: Path
) -> None:
    pytest.importorskip("distributed")
    plan = BatchPlan(write_tomograms(tmp_path, 1), options, manifest=tmp_path / "m.jsonl")
    list(run_batch(plan))
    before = read_manifest(tmp_path / "m.jsonl")
    (outcome,) = run_on_engine(replace(plan, run="second"), Engine(), lambda: None, lambda _: None)
    assert isinstance(outcome.error, FileExistsError)
    assert read_manifest(tmp_path / "m.jsonl") == before and before[0].state == "done"


def test_workers_get_a_device_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    assert engine._gpus() == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert engine._gpus() == 0
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    auto = SegmentOptions()
    assert [engine._device(auto, n) for n in (0, 1, 2, "job-1")] == [
        *("cuda:0", "cuda:1", "cuda:0"),
        "auto",
    ]
    assert engine._device(replace(auto, device="cpu"), 1) == "cpu"


@pytest.mark.slow
@OF_DASK
def test_a_lost_worker_loses_nothing(options: SegmentOptions, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    paths = write_tomograms(tmp_path, 4)
    manifest = tmp_path / "out" / "m.jsonl"
    plan = BatchPlan(paths, replace(options, output=tmp_path / "out"), manifest=manifest)
    killed: list[int] = []

    def kill_one() -> None:
        for entry in read_manifest(manifest):
            begun = how_far(Path(entry.mask))
            if entry.state == "running" and begun and begun[1] > 0 and not killed and entry.pid:
                killed.append(entry.pid)
                os.kill(entry.pid, signal.SIGKILL)

    outcomes = list(run_on_engine(plan, Engine(workers=2), kill_one, print))
    assert killed
    assert sorted(outcome.path for outcome in outcomes) == paths
    entries = read_manifest(manifest)
    assert [entry.state for entry in entries] == ["done"] * 4
    assert len({entry.input for entry in entries}) == 4
    assert sum(entry.attempts for entry in entries) == 5
    assert len({entry.pid for entry in entries}) >= 2
    for path in paths:
        alone = segment_file(path, replace(options, output=tmp_path / "alone"))
        assert alone.mask.read_bytes() == (tmp_path / "out" / alone.mask.name).read_bytes()
    assert not list((tmp_path / "out").rglob("*.partial*"))

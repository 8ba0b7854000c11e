"""Many tomograms: what is named, what is recorded, what is kept, and nothing lost when killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from batch_child import WINDOW, segment_all
from etsam import segmentation
from etsam.batch import BatchPlan, ModelOnce, run_batch
from etsam.cli.batch import exit_code
from etsam.cli.progress import duration
from etsam.logits import tracked_slices
from etsam.manifest import read_manifest
from etsam.options import SegmentOptions
from etsam.results import how_far
from etsam.sam2 import save_checkpoint
from test_cli import Run, assert_one_line, write_mrc
from test_manifest import states
from tiny_model import SPEC, tiny_network, write_tiny_model

SHAPE = (7, 24, 32)
DEPTH = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def options(model: Path) -> SegmentOptions:
    return SegmentOptions(model=model, device="cpu", preview=False, polarity="dark")


def volume(seed: int, depth: int = SHAPE[0]) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(depth, *SHAPE[1:])).astype(np.float32)


@pytest.fixture
def tomograms(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "data"
    folder.mkdir()
    return [write_mrc(folder / f"TS_{n}.mrc", volume(n)) for n in range(3)]


def test_a_link_that_leads_nowhere_fails_alone(
    run: Run, tomograms: list[Path], model: Path, tmp_path: Path
) -> None:
    loop = tomograms[0].with_name("loop.mrc")
    loop.symlink_to(loop.name)
    args = ("--model", model, "--no-preview", "--device", "cpu")
    code, out, err = run("segment", loop, *args)
    assert (code, out) == (1, "")
    assert_one_line(err, "loop.mrc does not exist")
    code, out, err = run("segment", tomograms[0], loop, "-o", tmp_path / "out", *args)
    assert code == 1 and len(out.splitlines()) == 1
    assert "1 of 2 done" in err


def test_the_model_is_loaded_once(
    tomograms: list[Path], options: SegmentOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    load = ModelOnce.__call__

    def counting(self: ModelOnce, progress: object = None) -> object:
        loads.append(self._stages is None)
        return load(self)

    monkeypatch.setattr(ModelOnce, "__call__", counting)
    outcomes = list(run_batch(BatchPlan(tomograms, options)))
    assert states([outcome.entry for outcome in outcomes]) == ["done"] * 3
    assert loads == [True, False, False]


def test_a_batch_equals_single_runs(
    tomograms: list[Path], options: SegmentOptions, tmp_path: Path
) -> None:
    list(run_batch(BatchPlan(tomograms, replace(options, output=tmp_path / "many"))))
    for path in tomograms:
        single = segmentation.segment_file(path, replace(options, output=tmp_path / "one"))
        assert single.mask.read_bytes() == (tmp_path / "many" / single.mask.name).read_bytes()


def test_resume_skips_what_is_done_and_redoes_what_changed(
    tomograms: list[Path], options: SegmentOptions, model: Path, tmp_path: Path
) -> None:
    plan = BatchPlan(tomograms, options, resume=True, manifest=tmp_path / "m.jsonl")

    def reused(plan: BatchPlan) -> list[bool]:
        outcomes = list(run_batch(plan))
        assert all(outcome.error is None for outcome in outcomes)
        return [outcome.entry.reused for outcome in outcomes]

    assert reused(plan) == [False] * 3
    first = tomograms[0].with_name("TS_0_membrane.mrc")
    before = first.stat().st_mtime_ns
    assert reused(plan) == [True] * 3
    assert first.stat().st_mtime_ns == before
    os.utime(tomograms[0])  # touched, not changed
    assert reused(plan) == [True] * 3
    with mrcfile.open(tomograms[1], "r+") as mrc:
        mrc.data[3, 3, 3] += 1
    first.unlink()
    assert reused(plan) == [False, False, True]
    stricter = replace(options, logit_threshold=0.5)
    assert reused(replace(plan, options=stricter)) == [False] * 3
    other = replace(stricter, stage1_checkpoint=model / "other.safetensors")
    described = {"frame_spec": SPEC.to_dict()}
    assert other.stage1_checkpoint is not None
    save_checkpoint(other.stage1_checkpoint, tiny_network(7), described, half=False)
    with pytest.warns(UserWarning, match="only stage 1 was given"):
        assert reused(replace(plan, options=other)) == [False] * 3
    entries = read_manifest(tmp_path / "m.jsonl")
    assert [entry.attempts for entry in entries] == [6] * 3
    assert all(entry.sha256 and len(entry.weights) == 2 for entry in entries)
    (model / "other.safetensors").unlink()


def test_a_mask_that_is_not_ours_is_never_replaced(
    tomograms: list[Path], options: SegmentOptions
) -> None:
    mine = write_mrc(tomograms[0].with_name("TS_0_membrane.mrc"), np.ones(SHAPE, np.int8))
    before = mine.read_bytes()
    (outcome,) = run_batch(BatchPlan(tomograms[:1], options, resume=True))
    assert isinstance(outcome.error, FileExistsError)
    assert mine.read_bytes() == before


def test_tomograms_of_one_mask_are_refused_in_every_part(
    run: Run, tomograms: list[Path], model: Path, tmp_path: Path
) -> None:
    (tmp_path / "more").mkdir()
    twin = write_mrc(tmp_path / "more" / "TS_0.mrc", volume(5))
    args = ("segment", tomograms[0], twin, "--model", model, "-o", tmp_path / "out", "--resume")
    for part in ("1/2", "2/2"):
        code, out, err = run(*args, "--shard", part)
        assert (code, out) == (1, "")
        assert_one_line(err, "would both become")
    assert not (tmp_path / "out").exists()


def test_failures_are_recorded_and_counted(
    run: Run, tomograms: list[Path], model: Path, tmp_path: Path
) -> None:
    tomograms[1].write_bytes(b"nothing")
    absent = tmp_path / "data" / "absent.mrc"
    args = ["segment", tomograms[0].parent, absent, "--model", model, "--no-preview", "-o"]
    code, out, err = run(*args, tmp_path / "out")
    assert code == 102
    assert len(out.splitlines()) == 2
    assert "2 of 4 done (0 before), 2 failed" in err
    code, out, _ = run("status", tmp_path / "out")
    assert code == 0
    assert "4 tomograms: 2 done, 2 failed" in out
    assert "too short for an MRC header" in out
    status = json.loads(run("status", tmp_path / "out", "--json", "--failed")[1])
    assert status["counts"]["failed"] == 2
    assert {Path(t["input"]).name for t in status["tomograms"]} == {"TS_1.mrc", "absent.mrc"}
    code, out, err = run(*args, tmp_path / "other", "--fail-fast")
    assert code == 1
    assert "1 of 4 done (0 before), 1 failed" in err
    entries = read_manifest(tmp_path / "other" / "etsam_manifest.jsonl")
    assert states(entries) == ["done", "failed", "queued", "queued"]
    assert [path.name for path in (tmp_path / "other").glob(".*.partial")] == []


def test_what_is_done_stays_done_when_a_resumed_batch_stops_early(
    tomograms: list[Path], options: SegmentOptions, tmp_path: Path
) -> None:
    plan = BatchPlan(tomograms, options, manifest=tmp_path / "m.jsonl", fail_fast=True)
    list(run_batch(plan))
    before = read_manifest(tmp_path / "m.jsonl")
    tomograms[0].write_bytes(b"nothing")
    (outcome,) = run_batch(replace(plan, resume=True))
    assert outcome.error is not None
    after = read_manifest(tmp_path / "m.jsonl")
    assert (after[0].state, after[0].attempts, after[0].sha256) == ("failed", 2, None)
    assert after[1:] == before[1:]
    assert states(after[1:]) == ["done", "done"]


def test_what_is_done_stays_done_when_it_is_refused_a_second_time(
    tomograms: list[Path], options: SegmentOptions, tmp_path: Path
) -> None:
    list(run_batch(BatchPlan(tomograms[:1], options, manifest=tmp_path / "m.jsonl")))
    (done,) = read_manifest(tmp_path / "m.jsonl")
    write_mrc(tomograms[1].with_name("TS_1_membrane.mrc"), np.ones(SHAPE, np.int8))
    outcomes = list(run_batch(BatchPlan(tomograms[:2], options, manifest=tmp_path / "m.jsonl")))
    assert [type(outcome.error) for outcome in outcomes] == [FileExistsError] * 2
    first, second = read_manifest(tmp_path / "m.jsonl")
    assert first == done and done.state == "done"
    assert second.state == "failed" and second.error == " ".join(str(outcomes[1].error).split())


def test_what_is_done_stays_done_when_a_second_run_stops_at_once(
    tomograms: list[Path], options: SegmentOptions, tmp_path: Path
) -> None:
    plan = BatchPlan(tomograms[:2], options, manifest=tmp_path / "m.jsonl", fail_fast=True)
    list(run_batch(plan))
    before = read_manifest(tmp_path / "m.jsonl")
    (outcome,) = run_batch(replace(plan, run="second"))
    assert isinstance(outcome.error, FileExistsError)
    assert read_manifest(tmp_path / "m.jsonl") == before
    tomograms[0].write_bytes(b"nothing")
    list(run_batch(replace(plan, options=replace(options, overwrite=True), run="third")))
    assert states(read_manifest(tmp_path / "m.jsonl")) == ["failed", "queued"]


def test_what_an_interruption_kept_from_beginning_stays_queued(
    tomograms: list[Path], options: SegmentOptions, tmp_path: Path
) -> None:
    def stop(_path: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run_batch(BatchPlan(tomograms, options, manifest=tmp_path / "m.jsonl"), stop))
    entries = read_manifest(tmp_path / "m.jsonl")
    assert [(e.state, e.attempts) for e in entries] == [("queued", 0)] * 3


def test_a_model_that_cannot_be_loaded_is_said_once(
    run: Run, tomograms: list[Path], tmp_path: Path
) -> None:
    code, out, err = run("segment", *tomograms, "--model", tmp_path, "--no-preview")
    assert (code, out) == (1, "")
    assert err.count("etsam: error: ") == 1


def test_exit_codes_and_durations() -> None:
    assert [exit_code(n) for n in (0, 1, 2, 24, 25, 900)] == [0, 1, 102, 124, 125, 125]
    assert [duration(s) for s in (4, 600, 7200)] == ["4 s", "10 min", "2.0 h"]


def test_sigterm_finishes_the_slice_and_a_later_run_goes_on(
    run: Run,
    tomograms: list[Path],
    options: SegmentOptions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = segmentation.segment_file(tomograms[0], replace(options, output=tmp_path / "whole"))
    seen: list[str] = []
    message = batch_message(seen, lambda text: text == "stage 2 of 2: slice 3 of 7")
    monkeypatch.setattr("etsam.cli.progress.StageProgress.message", message)
    args = ["segment", tomograms[0], "-o", tmp_path / "out", "--model", options.model]
    args += ["--no-preview", "--polarity", "dark", "--device", "cpu"]
    code, out, err = run(*args)
    assert (code, out) == (143, "")
    assert "give --resume" in err
    mask = tmp_path / "out" / "TS_0_membrane.mrc"
    assert how_far(mask) == (2, 3)
    assert [path.name for path in mask.parent.iterdir()] == [f".{mask.name}.partial"]
    seen.clear()
    code, out, err = run(*args, "--resume")
    assert code == 0, err
    assert next(text for text in seen if text.startswith("stage")) == "stage 2 of 2: slice 4 of 7"
    assert mask.read_bytes() == whole.mask.read_bytes()
    assert sorted(p.name for p in mask.parent.iterdir()) == [
        "TS_0_membrane.json",
        "TS_0_membrane.mrc",
    ]


def batch_message(seen: list[str], stop: Callable[[str], bool]) -> Callable[..., None]:
    """A progress message that notes itself and, at one of them, once, terminates this process."""
    signals = [signal.SIGTERM]

    def message(self: object, fraction: float, text: str) -> None:
        seen.append(text)
        if stop(text) and signals:
            os.kill(os.getpid(), signals.pop())

    return message


def test_without_resume_leftovers_are_cleared(
    tomograms: list[Path], options: SegmentOptions, tmp_path: Path
) -> None:
    def stop(fraction: float, message: str) -> None:
        if fraction > 0.6:
            raise KeyboardInterrupt

    asked = replace(options, output=tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        segmentation.segment_file(tomograms[0], asked, stop)
    mask = tmp_path / "out" / "TS_0_membrane.mrc"
    assert how_far(mask) is not None
    seen: list[str] = []
    segmentation.segment_file(tomograms[0], asked, lambda _, message: seen.append(message))
    assert "stage 1 of 2: slice 1 of 7" in seen
    assert not list(mask.parent.glob(".*"))


def test_one_result_is_made_by_one_process(
    tomograms: list[Path], options: SegmentOptions, tmp_path: Path
) -> None:
    asked = replace(options, output=tmp_path)
    errors: list[str] = []

    def again(fraction: float, message: str) -> None:
        if fraction > 0.5 and not errors:
            with pytest.raises(OSError, match="another process") as caught:
                segmentation.segment_file(tomograms[0], asked)
            errors.append(str(caught.value))

    segmentation.segment_file(tomograms[0], asked, again)
    assert len(errors) == 1


def test_memory_that_runs_out_is_said_in_one_line(
    run: Run, tomograms: list[Path], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore lines")

    monkeypatch.setattr(segmentation, "_with_polarity", fail)
    code, _, err = run("segment", tomograms[0], "--model", model, "--no-preview")
    assert code == 1
    assert_one_line(err, "out of memory", "--split-processing")


def test_an_input_that_changes_while_it_is_read_is_refused(
    tomograms: list[Path], options: SegmentOptions
) -> None:
    with pytest.raises(ValueError, match="has changed"):
        segmentation.segment_file(
            tomograms[0], options, lambda *_: os.utime(tomograms[0], ns=(1, time.time_ns()))
        )
    assert not list(tomograms[0].parent.glob("*membrane*"))


def kill_and_go_on(options: SegmentOptions, folder: Path, kills: int, seed: int) -> None:
    """Kill a batch of three `kills` times at random; compare with a batch left alone."""
    paths = [write_mrc(folder / f"TS_{n}.mrc", volume(n, DEPTH)) for n in range(3)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["batch_child", "torch", "etsam.pipeline", "etsam.segmentation"])
    chance = random.Random(seed)

    def start(output: Path) -> tuple[multiprocessing.Process, object]:
        slices = context.Value("i", 0)
        asked = replace(options, output=output, store_logits=True)
        args = (paths, asked, output / "m.jsonl", slices)
        process = context.Process(target=segment_all, args=args)
        process.start()
        return process, slices

    alone, count = start(folder / "alone")
    alone.join(300)
    assert alone.exitcode == 0
    total = count.value
    assert total == (len(tracked_slices(DEPTH, SPEC.feedback_step)) + DEPTH) * len(paths)
    wanted = {path.name: path.read_bytes() for path in (folder / "alone").glob("*.mrc")}
    repeated = 0
    for _ in range(kills):
        process, count = start(folder / "killed")
        limit = chance.randrange(max(2, total // (kills + 1) * 2))
        while process.is_alive() and count.value < limit:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.02)
        process.kill()
        process.join()
        repeated += count.value
        for path in (folder / "killed").glob("*.mrc"):
            assert path.read_bytes() == wanted[path.name]
    process, count = start(folder / "killed")
    process.join(300)
    assert process.exitcode == 0
    repeated += count.value - total
    assert repeated <= kills * WINDOW
    assert {path.name: path.read_bytes() for path in (folder / "killed").glob("*.mrc")} == wanted
    assert states(read_manifest(folder / "killed" / "m.jsonl")) == ["done"] * 3
    assert not list((folder / "killed").rglob("*.partial*"))


def test_killed_at_random_the_results_are_the_same(options: SegmentOptions, tmp_path: Path) -> None:
    kill_and_go_on(options, tmp_path, kills=3, seed=1)


@pytest.mark.slow
def test_killed_twenty_times_in_quadrants_with_prompts(
    options: SegmentOptions, tmp_path: Path
) -> None:
    asked = replace(options, split_processing=True, stage1_prompt="grid", interval=4)
    kill_and_go_on(asked, tmp_path, kills=20, seed=2)

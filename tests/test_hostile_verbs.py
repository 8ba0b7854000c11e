"""Nothing of a user's is lost and every refusal is clear, in verbs that write tables, folders and runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from etsam.logits import NpyWriter
from test_cli import Run, assert_one_line, write_mrc
from tiny_model import write_tiny_model
from tiny_training import write_pairs

HEADER = "dataset,run,method,stage,threshold,metric,value\n"
SMALL = ("--preset", "empty", "--shape", "16,32,32")


def sheet() -> np.ndarray:
    mask = np.zeros((12, 24, 24), np.int8)
    mask[:, 10:13] = 1
    return mask


def refused(answer: tuple[int, str, str], *parts: str) -> None:
    code, out, err = answer
    assert (code, out) == (1, "")
    assert_one_line(err, *parts)


@pytest.mark.parametrize("name", ["stage1.safetensors", "log.jsonl"])
def test_training_replaces_nothing_that_is_of_no_run(run: Run, tmp_path: Path, name: str) -> None:
    start = write_tiny_model(tmp_path / "tiny") / "stage1.safetensors"
    data, place = write_pairs(tmp_path / "data", 1), tmp_path / "run"
    place.mkdir()
    (place / name).write_text("precious")
    given = ["train", data, "-o", place, "--start", start, "--steps", 1, "--batch", 1]
    given += ["--frames", 2, "--size", 64, "--device", "cpu", "--float32"]
    refused(run(*given), name, "--output")
    assert [path.name for path in place.iterdir()] == [name]
    assert (place / name).read_text() == "precious"
    (place / name).unlink()
    assert run(*given)[0] == 0
    (place / ".lock").unlink(missing_ok=True)  # as on Windows, where it goes when it is released
    (place / "state.pt").unlink()  # as the message about another run says
    assert run(*given)[0] == 0


def test_a_table_may_come_through_a_pipe_and_an_empty_one_is_called_so(
    run: Run, tmp_path: Path
) -> None:
    write_mrc(tmp_path / "a_membrane.mrc", sheet())
    pipe = tmp_path / "pairs.csv"
    os.mkfifo(pipe)
    text = "prediction,truth\na_membrane.mrc,a_membrane.mrc\n"
    writer = threading.Thread(target=pipe.write_text, args=(text,))
    writer.start()
    code, out, err = run("evaluate", "--pairs", pipe)
    writer.join()
    assert code == 0 and ",dice,1\n" in out, err
    refused(run("evaluate", "--pairs", os.devnull), f"{os.devnull} names no pairs")
    refused(run("evaluate", "--pairs", tmp_path / "no.csv"), "no.csv does not exist")
    refused(run("compare", os.devnull), f"{os.devnull} holds no scores")
    refused(run("compare", tmp_path), "is no file")


def test_two_methods_on_one_run_have_a_line_each(run: Run, tmp_path: Path) -> None:
    truth = write_mrc(tmp_path / "a_membrane.mrc", sheet())
    masks = [write_mrc(tmp_path / f"a{end}.mrc", sheet()) for end in ("_ridge", "_semantic")]
    code, _, err = run("evaluate", *masks, "-t", truth)
    assert code == 0
    assert [line.split(" in ")[0] for line in err.splitlines()] == ["a: 12 slices"] * 2


def test_what_is_named_twice_is_scored_once(run: Run, tmp_path: Path) -> None:
    truth = write_mrc(tmp_path / "x_membrane.mrc", (sheet() > 0).astype(np.int8))
    scores = write_mrc(tmp_path / "lg.mrc", sheet())
    (tmp_path / "sub").mkdir()
    again = tmp_path / "sub" / ".."
    once = run("evaluate", scores, "-t", truth)
    twice = ("evaluate", scores, scores, again / scores.name, "-t", truth, "-t", again / truth.name)
    assert once[0] == 0 and run(*twice)[:2] == once[:2]


@pytest.mark.parametrize("name", ["sim_000000_membrane.mrc", "sim_000000.json"])
def test_simulating_replaces_no_file_of_ones_own(run: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    refused(run("simulate", tmp_path, *SMALL), name, "--overwrite")
    assert (tmp_path / name).read_text() == "precious"
    assert run("simulate", tmp_path, *SMALL, "--overwrite")[0] == 0


def test_a_pair_that_a_killed_process_left_is_completed(run: Run, tmp_path: Path) -> None:
    assert run("simulate", tmp_path, *SMALL)[0] == 0
    for left in (["sim_000000.json"], ["sim_000000.json", "sim_000000_membrane.mrc"]):
        for path in tmp_path.iterdir():
            if path.name not in left:
                path.unlink()
        assert run("simulate", tmp_path, *SMALL)[0] == 0
        assert len(list(tmp_path.iterdir())) == 3


def test_an_export_never_replaces_the_tomogram(run: Run, tmp_path: Path) -> None:
    mask = write_mrc(tmp_path / "a.mrc", sheet())
    tomogram = write_mrc(tmp_path / "a_labels.mrc", sheet())
    before = tomogram.read_bytes()
    asked = ("export", mask, "--as", "labels", "--tomogram", tomogram, "--overwrite")
    refused(run(*asked), "is the tomogram itself")
    assert tomogram.read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
@pytest.mark.parametrize(
    ("verb", "name"),
    [
        (("export", "--as", "labels"), "a_labels.mrc"),
        (("postprocess",), "a_postprocessed.mrc"),
        (("baseline",), "a_ridge.mrc"),
        (("report", "--mask", "a.mrc"), "a_report.html"),
        (("figures", "slices", "-o", "a.png"), "a.png"),
    ],
    ids=lambda value: value[0],
)
def test_a_link_that_leads_nowhere_is_kept(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: tuple[str, ...],
    name: str,
) -> None:
    """Its disk may be back tomorrow."""
    monkeypatch.chdir(tmp_path)
    write_mrc(tmp_path / "a.mrc", sheet())
    (tmp_path / name).symlink_to("/nowhere/else")
    refused(run(*verb, "a.mrc"), name, "--overwrite")
    assert os.readlink(tmp_path / name) == "/nowhere/else"


@pytest.mark.skipif(sys.platform != "linux", reason="names are Unicode there")
def test_names_that_are_no_unicode_are_printed_in_any_locale(tmp_path: Path) -> None:
    """With a locale of UTF-8, and not C, Python prints no such name by itself."""
    folder = os.fsencode(tmp_path)
    mask = os.path.join(folder, b"\xff_membrane.mrc")
    write_mrc(tmp_path / "b.mrc", sheet()).rename(os.fsdecode(mask))
    command = [sys.executable, "-c", "from etsam.cli import main; main()", "postprocess", mask]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == mask.replace(b".mrc", b"_postprocessed.mrc") + b"\n"


def test_thresholds_that_other_programs_write_as_nan_are_none(run: Run, tmp_path: Path) -> None:
    rows = [f"d,r{i},{m},,nan,dice,{0.5 + 0.1 * i**2:g}\n" for i in range(3) for m in "AB"]
    path = tmp_path / "scores.csv"
    path.write_text(HEADER + "".join(rows))
    code, out, err = run("compare", path)
    assert (code, err) == (0, "") and out.startswith("dice\n")


def test_a_table_without_what_is_compared_is_no_success(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(HEADER + "d,r,A,,,auc,0.5\n")
    refused(run("compare", path), "none of dice", "--metric", "auc")


def test_a_number_too_long_for_json_is_said_of_its_table(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    row = dict.fromkeys(HEADER.strip().split(","), "x")
    path.write_text(json.dumps([row]).replace('"x"}', "9" * 5000 + "}"))
    refused(run("compare", path), str(path), "is not a JSON table")


def test_an_empty_model_is_not_the_current_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_tiny_model(tmp_path / "tiny"))
    write_mrc(tmp_path / "a.mrc", np.random.default_rng(0).normal(size=(4, 9, 9)).astype("f4"))
    refused(run("segment", tmp_path / "a.mrc", "--model", ""), "no model ''")


def test_a_mask_that_fills_the_volume_has_no_surface(run: Run, tmp_path: Path) -> None:
    full = write_mrc(tmp_path / "a.mrc", np.ones((4, 9, 9), np.int8))
    refused(run("figures", "surfaces", full, "-o", tmp_path / "f.png"), "fills the volume")


def test_a_seed_that_is_too_large_is_wrong_usage(run: Run, tmp_path: Path) -> None:
    code, _, err = run("train", tmp_path, "-o", tmp_path / "run", "--seed", 10**20)
    assert code == 2
    assert_one_line(err, "--seed")


def test_a_portal_that_nobody_answers_for_is_a_matter_of_the_network(run: Run) -> None:
    pytest.importorskip("cryoet_data_portal")
    asked = ("download", "10000/245", "--dry-run", "--attempts", 1, "--timeout", 1)
    refused(run(*asked, "--portal", "http://127.0.0.1:1"), "cannot be reached", "network")


@pytest.mark.parametrize(
    ("kind", "added"),
    [
        ("copick", "ExperimentRuns/a/Picks/me_0_ribosome.json"),
        ("membrain-pick", "mb1.h5"),
        ("morphometrics", "morphometrics/a.vtp"),
    ],
)
def test_what_others_put_into_an_exported_folder_is_kept(
    run: Run, tmp_path: Path, kind: str, added: str
) -> None:
    mask = write_mrc(tmp_path / "a.mrc", sheet())
    asked = ("export", mask, "--as", kind, "--overwrite")
    for _ in range(2):
        code, out, err = run(*asked)
        assert code == 0, err
    theirs = Path(out.strip()) / added
    theirs.parent.mkdir(parents=True, exist_ok=True)
    theirs.write_text("precious")
    refused(run(*asked), added, "of no export")
    assert theirs.read_text() == "precious"


def test_threads_do_not_write_into_one_file(tmp_path: Path) -> None:
    path, plane = tmp_path / "a.npy", np.ones((3, 4), np.float32)

    def write_all(value: int) -> None:
        with NpyWriter(path, (1, 3, 4)) as writer:
            writer.write_slice(0, plane * value)

    with NpyWriter(path, (2, 3, 4)) as writer:
        writer.write_slice(0, plane)
        other = threading.Thread(target=write_all, args=(5,))
        other.start()
        other.join()
        assert np.load(path).shape == (1, 3, 4)
        writer.write_slice(1, plane)
    assert np.array_equal(np.load(path), np.ones((2, 3, 4)))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="paths are short there")
@pytest.mark.parametrize("letter", ["x", "ü"])
@pytest.mark.parametrize("suffix", [".mrc", ".zarr"])
def test_names_as_long_as_a_disk_takes_can_be_written(
    run: Run, tmp_path: Path, letter: str, suffix: str
) -> None:
    """Nothing that lies there meanwhile has a longer one."""
    mask = write_mrc(tmp_path / "m.mrc", sheet())
    stem = letter * ((255 - len(".json")) // len(os.fsencode(letter)))
    target = tmp_path / f"{stem}{suffix}"
    for _ in range(2):
        code, out, err = run("postprocess", mask, "-o", target, "--overwrite")
        assert (code, out) == (0, f"{target}\n"), err
    assert {path.name for path in tmp_path.iterdir()} == {"m.mrc", target.name, f"{stem}.json"}
    stem = letter * (240 // len(os.fsencode(letter)))
    long = mask.rename(tmp_path / f"{stem}{mask.suffix}")
    code, _, err = run("prepare", long, "--annotation", target, "-o", tmp_path / "pairs")
    assert code == 0, err
    code, _, err = run("export", long, "--as", "labels")
    assert code == 0, err

"""MemBrain-seg and TARDIS: what they are told, what is read back, what is said when it goes wrong.

Small scripts stand for the two programs: they take the same arguments and no others, and write the same
files with the same faults (no origin, scores in a TIFF). Their behaviour is in the checkpoint's text.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from etsam.baselines.programs import last_words
from etsam.pairing import find_pairings
from etsam.predictions import recognise

Run = Callable[..., tuple[int, str, str]]

COMMON = """
import argparse, os, sys
from pathlib import Path
import mrcfile, numpy as np, tifffile

def misbehave(path):
    how = Path(path).read_text() if path else ""
    if how == "fail":
        print("loading weights")
        print("\\x1b[31m╭─ Traceback ─╮\\x1b[0m\\n│ RuntimeError: bad checkpoint │\\n╰──╯")
        sys.exit(1)
    if how == "nothing":
        print("TARDIS ERROR CODE: 12 EMPTY_DIRECTORY\\nDescription: no recognizable file")
        print("Copyright (c) its authors")
        sys.exit()
    if how == "killed":
        os.kill(os.getpid(), 9)
    return how

def read(path):
    with mrcfile.open(path) as mrc:
        assert mrc.data.dtype == np.float32
        return mrc.data.copy(), mrc.voxel_size.copy()
"""

MEMBRAIN = """
parser = argparse.ArgumentParser()
parser.add_argument("verb", choices=["segment"])
parser.add_argument("--tomogram-path", type=Path, required=True)
parser.add_argument("--ckpt-path", required=True)
parser.add_argument("--out-folder", type=Path, default="./predictions")
parser.add_argument("--store-probabilities", action="store_true")
parser.add_argument("--sliding-window-size", type=int, default=160)
given = parser.parse_args()
how = misbehave(given.ckpt_path)
assert "PYTHONPATH" not in os.environ and given.sliding_window_size == 96
data, size = read(given.tomogram_path)
scores = ((data.mean() - data) / data.std()).astype(np.float32)
given.out_folder.mkdir()
def write(end, values):
    with mrcfile.new(given.out_folder / (given.tomogram_path.stem + end)) as mrc:
        mrc.set_data(values)
        mrc.voxel_size = size
if given.store_probabilities:
    write("_scores.mrc", scores[1:] if how == "shape" else scores)
token = os.path.basename(given.ckpt_path).split("-val_loss")[0]
write(f"_{token}_segmented.mrc", (scores > 0).astype(np.int8))
"""

TARDIS = """
parser = argparse.ArgumentParser()
parser.add_argument("--path", type=Path)
parser.add_argument("--output_format", default="mrc_csv")
parser.add_argument("--cnn_threshold", default="0.25")
parser.add_argument("--correct_px", type=float)
parser.add_argument("--cnn_checkpoint")
given = parser.parse_args()
misbehave(given.cnn_checkpoint)
assert given.output_format == "mrc_None" and given.correct_px == 10 and given.path.is_dir()
(given.path / "temp").mkdir()
(given.path / "Predictions").mkdir()
for path in given.path.glob("*.mrc"):
    data, size = read(path)
    values = 1 / (1 + np.exp((data - data.mean()) / data.std()))
    assert float(given.cnn_threshold) == 0
    tifffile.imwrite(given.path / "Predictions" / f"{path.stem}_CNN.tif", values)
"""


def stand_in(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{COMMON}{text}")
    path.chmod(0o755)
    return path


@pytest.fixture
def tomogram(tmp_path: Path) -> Path:
    data = np.random.default_rng(0).normal(size=(5, 12, 14)).astype(np.float32)
    path = tmp_path / "TS_1_10.00Apx.mrc"
    with mrcfile.new(path) as mrc:
        mrc.set_data(data)
        mrc.voxel_size = 10.0
        mrc.header.origin.x = 42.0
        mrc.header.nxstart = -3
    return path


def checkpoint(folder: Path, how: str = "") -> Path:
    path = folder / "v10-val_loss0.3.ckpt"
    path.write_text(how)
    return path


def test_membrain_seg_is_run_and_its_scores_get_the_tomograms_geometry(
    tmp_path: Path, tomogram: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(stand_in(tmp_path, "membrain", MEMBRAIN).parent), prepend=":")
    monkeypatch.setenv("PYTHONPATH", "ours")
    weights, out = checkpoint(tmp_path), tmp_path / "out"
    method = ("--method", "membrain-seg", "--weights", weights, "--store-logits")
    extra = ("--extra", "--sliding-window-size 96")
    code, said, err = run("baseline", tomogram, *method, *extra, "-o", out)
    assert code == 0, err
    mask, scores = out / "TS_1_10.00Apx_v10_segmented.mrc", out / "TS_1_10.00Apx_scores.mrc"
    assert said.strip() == str(mask)
    assert {path.name for path in out.iterdir()} == {
        mask.name, scores.name, mask.with_suffix(".json").name,
    }  # fmt: skip
    with mrcfile.open(tomogram) as given, mrcfile.open(mask) as m, mrcfile.open(scores) as s:
        for found in (m, s):
            assert found.header.origin.x == 42
            assert found.header.nxstart == -3
        standard = (given.data.mean() - given.data) / given.data.std()
        assert np.allclose(s.data, standard, atol=1e-5)
        assert np.array_equal(m.data, s.data > 0)
    assert recognise(mask).method == recognise(scores).method == "MemBrain-seg"
    record = json.loads(mask.with_suffix(".json").read_text())
    assert record["parameters"]["command"][1] == "segment"
    assert record["weights"][0]["name"] == weights.name
    assert record["peak_rss_mb"] > 1
    assert record["stage_seconds"]["membrain-seg"] > 0
    assert "is there already" in run("baseline", tomogram, *method, *extra, "-o", out)[2]


def test_tardis_probabilities_become_an_mrc_and_polarity_is_turned(
    tmp_path: Path, tomogram: Path, run: Run
) -> None:
    program = stand_in(tmp_path, "tardis_mem", TARDIS)
    found = {}
    for invert in (False, True):
        out = tmp_path / f"out{invert}"
        options = ("--method", "tardis", "--program", program, "--store-scores", "-o", out)
        code, _, err = run("baseline", tomogram, *options, *(["--invert"] if invert else []))
        assert code == 0, err
        with (
            mrcfile.open(out / "TS_1_10.00Apx_semantic.mrc") as mask,
            mrcfile.open(out / "TS_1_10.00Apx_CNN.mrc") as scores,
        ):
            assert mask.header.origin.x == 42
            assert 0 < scores.data.min() < scores.data.max() < 1
            assert np.array_equal(mask.data, scores.data > 0.25)
            found[invert] = scores.data.copy()
    assert np.allclose(found[False], 1 - found[True], atol=1e-5)
    truth = tmp_path / "truth"
    truth.mkdir()
    (tmp_path / "outFalse" / "TS_1_10.00Apx_semantic.mrc").rename(truth / "TS_1_10.00Apx_gt.mrc")
    paired = find_pairings([tmp_path / "outFalse"], [truth])
    assert [(p.prediction.method, p.prediction.threshold) for p in paired] == [("TARDIS", 0.25)]


@pytest.mark.parametrize(
    ("how", "part"),
    [
        (
            "fail",
            "membrain-seg failed with exit code 1: RuntimeError: bad checkpoint (all it said: ",
        ),
        ("nothing", "ended without writing scores: Description: no recognizable file"),
        ("killed", "was killed by signal 9"),
        ("shape", "wrote scores of shape (4, 12, 14), the tomogram has (5, 12, 14)"),
    ],
)
def test_a_failure_is_one_line_and_leaves_only_the_log(
    tmp_path: Path, tomogram: Path, run: Run, how: str, part: str
) -> None:
    program, out = stand_in(tmp_path, "membrain", MEMBRAIN), tmp_path / "out"
    weights = checkpoint(tmp_path, how)
    code, _, err = run(
        "baseline", tomogram, "--method", "membrain-seg", "--weights", weights, "--program", program,
        "--extra", "--sliding-window-size 96", "-o", out,
    )  # fmt: skip
    assert code == 1
    lines = [line for line in err.splitlines() if "error" in line]
    assert len(lines) == 1
    assert part in lines[0]
    left = [path.name for path in out.glob("*")]
    assert left == ([] if how == "shape" else ["TS_1_10.00Apx_membrain-seg.log"])


def test_what_is_missing_is_said_before_anything_is_written(
    tmp_path: Path, tomogram: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    out = tmp_path / "out"
    program = stand_in(tmp_path, "membrain", MEMBRAIN)
    given = (
        ("membrain-seg", (), "pip install membrain-seg, then give --program ENV/bin/membrain"),
        ("tardis", (), "pip install tardis-em, then give --program ENV/bin/tardis_mem"),
        ("tardis", ("--program", tmp_path / "none"), "is no program"),
        ("membrain-seg", ("--program", program), "give --weights CHECKPOINT"),
        ("membrain-seg", ("--program", program, "--weights", tmp_path / "no"), "does not exist"),
        ("ridge", ("--weights", program), "--weights is for --method membrain-seg or tardis"),
        (
            "tardis",
            ("--extra", "'--device cpu"),
            "cannot be read as arguments: no closing quotation",
        ),
    )
    for method, options, part in given:
        code, _, err = run("baseline", tomogram, "--method", method, *options, "-o", out)
        assert code != 0
        assert part in err
        assert not out.exists()
    monkeypatch.chdir(tmp_path)
    err = run("baseline", tomogram, "--method", "membrain-seg", "--program", "./membrain")[2]
    assert "give --weights CHECKPOINT" in err  # found, though the folder is not on PATH
    with mrcfile.open(tomogram, "r+") as mrc:
        mrc.voxel_size = 0
    tardis = stand_in(tmp_path, "tardis_mem", TARDIS)
    err = run("baseline", tomogram, "--method", "tardis", "--program", tardis)[2]
    assert "unknown: give --voxel-spacing" in err


def test_last_words_prefer_a_complaint_to_decoration(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for text, wanted in (
        ("", "it said nothing"),
        ("10 %\r20 %\r\n\n", "20 %"),
        ("ValueError: odd\nsee the manual\n====\n", "ValueError: odd"),
    ):
        log.write_text(text)
        assert last_words(log) == wanted

"""What a volume of scores is read as, and which threshold then applies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from scipy.special import expit

from etsam.evaluate import EvaluateOptions, evaluate
from etsam.pairing import Pairing
from etsam.predictions import Prediction, recognise
from test_evaluate import labels_and_logits
from test_evaluate import write as write_new

Run = Callable[..., tuple[int, str, str]]


def write(path: Path, data: np.ndarray) -> Path:
    path.unlink(missing_ok=True)
    return write_new(path, data)


def dice(path: Path, truth: Path, options: EvaluateOptions) -> dict[float | None, float]:
    rows = evaluate([Pairing(recognise(path), truth, "d", "r")], options)[0].rows
    return {row.threshold: row.value for row in rows if row.metric == "dice"}


def test_a_programs_threshold_is_for_its_own_kind_of_scores(tmp_path: Path) -> None:
    """MemBrain-seg's logits are cut at 0; probabilities under the same name are not."""
    labels, logits = labels_and_logits()
    truth = write(tmp_path / "a_membrane.mrc", labels)
    path = write(tmp_path / "a_scores.mrc", logits)
    kept = dice(path, truth, EvaluateOptions(surface=False, kind="logits"))
    write(path, expit(logits).astype(np.float32))
    turned = dice(path, truth, EvaluateOptions(surface=False, kind="probability"))
    assert list(kept) == [0.0] and list(turned) == [0.5]
    assert turned[0.5] == pytest.approx(kept[0.0], abs=1e-6)
    own = Prediction(path, "M", threshold=0.3)
    rows = evaluate([Pairing(own, truth, "d", "r")], EvaluateOptions(surface=False))[0].rows
    assert {row.threshold for row in rows if row.metric == "dice"} == {0.3}


def test_fractions_are_no_mask(tmp_path: Path, run: Run) -> None:
    labels, logits = labels_and_logits()
    truth = write(tmp_path / "truth" / "a_membrane.mrc", labels)
    path = write(tmp_path / "a_membrane.mrc", expit(logits).astype(np.float32))
    code, out, err = run("evaluate", path, "-t", truth)
    assert (code, out) == (1, "")
    assert "holds fractions (0." in err and "give --scores probability or --scores logits" in err
    assert run("evaluate", path, "-t", truth, "--scores", "probability")[0] == 0
    write(path, (logits > 0).astype(np.float32))  # whole numbers are one, whatever their type
    assert run("evaluate", path, "-t", truth)[0] == 0


@pytest.mark.parametrize(
    ("kind", "factor", "told"),
    [
        ("mask", -1.0, "holds -1 to 0, not a mask: expected 0 and other labels above it; bytes of"),
        ("mask", 0.7, "holds fractions (0.7), not a mask: give --scores probability"),
        ("probability", 3.0, "holds 0 to 3, not probabilities: give --scores logits"),
    ],
)
def test_scores_on_another_grid_are_what_they_are_read_as(
    tmp_path: Path, run: Run, kind: str, factor: float, told: str
) -> None:
    labels = labels_and_logits()[0]
    truth = write(tmp_path / "truth" / "a_membrane.mrc", labels)
    coarse = np.where(labels[::2, ::2, ::2], factor, 0).astype(np.float32)
    path = write_new(tmp_path / "a_membrane.mrc", coarse, 20.0)
    asked = ("--resample", "--scores", kind)
    code, out, err = run("evaluate", path, "-t", truth, *asked)
    assert (code, out) == (1, "")
    assert f"{path} against {truth}: slice 0 {told}" in err
    write(path, coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2))  # on the grid of the truth: the same
    assert told in run("evaluate", path, "-t", truth, *asked)[2]


def test_masks_have_no_threshold_and_it_is_said(tmp_path: Path, run: Run) -> None:
    labels, logits = labels_and_logits()
    truth = write(tmp_path / "truth" / "a_membrane.mrc", labels)
    mask = write(tmp_path / "a_membrane.mrc", (logits > 0).astype(np.int8))
    asked = ("--threshold", 0.5, "--sweep", "--curves", tmp_path / "curves.csv")
    code, _, err = run("evaluate", mask, "-t", truth, *asked)
    assert code == 0
    for option in ("--threshold", "--sweep", "--curves"):
        assert f"etsam: warning: {option} is for scores: 1 of 1 are masks" in err
    scores = write(tmp_path / "a_scores.mrc", logits)
    code, _, err = run("evaluate", scores, "-t", truth, *asked, "--overwrite")
    assert code == 0 and "is for scores" not in err


@pytest.mark.filterwarnings("always:.*other origins")
def test_other_origins_are_told_once(tmp_path: Path, run: Run) -> None:
    labels, logits = labels_and_logits()
    truth = write(tmp_path / "truth" / "a_membrane.mrc", labels)
    path = write(tmp_path / "a_scores.mrc", logits)
    assert "origins" not in run("evaluate", path, "-t", truth)[2]
    with mrcfile.mmap(path, "r+") as stored:
        stored.header.origin.z = 5000
    code, out, err = run("evaluate", path, "-t", truth)
    assert (code, "dice" in out) == (0, True)
    assert err.count("warning") == 1
    assert f"warning: {path} and {truth} have other origins: laid voxel on voxel" in err


def test_truth_of_other_values_is_told_of_prepare(tmp_path: Path, run: Run) -> None:
    labels, logits = labels_and_logits()
    path = write(tmp_path / "a_scores.mrc", logits)
    for values in (labels.clip(0).astype(np.uint16) * 255, labels.clip(0).cumsum(0, np.int16)):
        truth = write(tmp_path / "truth" / "a_membrane.mrc", values)
        code, _, err = run("evaluate", path, "-t", truth)
        assert code == 1
        assert "expected 1, 0 and -1 (ignored); `etsam prepare` makes" in err
    truth = write(tmp_path / "truth" / "a_membrane.mrc", logits)
    assert "prepare" not in run("evaluate", path, "-t", truth)[2]  # which takes whole numbers


@pytest.mark.parametrize("verb", [("postprocess",), ("export", "--as", "ply")])
def test_masks_that_are_no_numbers_are_refused_as_scores_are(
    tmp_path: Path, run: Run, verb: tuple[str, ...]
) -> None:
    path = write(tmp_path / "a_membrane.mrc", np.eye(24, dtype=np.float32)[None].repeat(24, 0))
    with mrcfile.mmap(path, "r+") as stored:
        stored.data[3, 2, 1] = np.nan
    code, out, err = run(*verb, path)
    assert (code, out) == (1, "")
    assert f"{path}: 1 voxels of slice 3 are NaN or infinite" in err
    assert list(tmp_path.iterdir()) == [path]

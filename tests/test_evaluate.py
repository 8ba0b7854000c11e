"""Scoring files: numbers against hand counts, whose file it is, and what is refused."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import tifffile

from etsam import pairing
from etsam.evaluate import SWEEP, EvaluateOptions, curve_rows, evaluate
from etsam.pairing import Pairing, find_pairings, match, read_pairings
from etsam.predictions import Prediction, open_prediction, recognise, score_kind
from etsam.tables import read_table, variants
from etsam.volume import create_volume, open_tomogram, tomogram_from_array

Run = Callable[..., tuple[int, str, str]]


def write(path: Path, data: np.ndarray, spacing: float = 10.0) -> Path:
    path.parent.mkdir(exist_ok=True)
    with mrcfile.new(path) as mrc:
        mrc.set_data(data)
        mrc.voxel_size = spacing
    return path


def labels_and_logits(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(-1, 2, (6, 20, 22)).astype(np.int8)
    logits = (random.normal(size=labels.shape) * 2 + labels).astype(np.float32)
    return labels, logits


def values(text: str) -> dict[tuple[str, str], float]:
    rows = csv.DictReader(io.StringIO(text))
    return {(row["metric"], row["threshold"]): float(row["value"] or "nan") for row in rows}


def test_numbers_equal_counting_and_scikit_learn(tmp_path: Path, run: Run) -> None:
    ranking = pytest.importorskip("sklearn.metrics")
    labels, logits = labels_and_logits()
    truth = write(tmp_path / "a_membrane.mrc", labels)
    scores = write(tmp_path / "a_scores.mrc", logits)
    code, out, err = run("evaluate", scores, "-t", truth, "--threshold", 0, "--threshold", 1.5)
    assert code == 0, err
    found = values(out)
    counted = labels >= 0
    true = labels[counted] == 1
    for threshold in (0, 1.5):
        guess = logits[counted] > threshold
        hits = np.sum(guess & true)
        assert found["precision", f"{threshold}"] == pytest.approx(hits / guess.sum(), abs=1e-6)
        assert found["recall", f"{threshold}"] == pytest.approx(hits / true.sum(), abs=1e-6)
        dice = 2 * hits / (guess.sum() + true.sum())
        assert found["dice", f"{threshold}"] == pytest.approx(dice, abs=1e-6)
        assert found["iou", f"{threshold}"] == pytest.approx(dice / (2 - dice), abs=1e-6)
    area = ranking.average_precision_score(true, logits[counted])
    assert found["auprc", ""] == pytest.approx(area, abs=1e-4)
    assert found["surface_dice_2nm", "0"] > 0.9  # noise is near everything


def test_our_logits_are_clipped_as_in_the_paper(tmp_path: Path) -> None:
    ranking = pytest.importorskip("sklearn.metrics")
    labels, logits = labels_and_logits(1)
    logits = np.minimum(logits, 1)
    logits[logits < -2] = -1024
    truth = write(tmp_path / "a_membrane.mrc", labels)
    ours = write(tmp_path / "masks" / "a_membrane_logits.mrc", logits)
    rows = evaluate(find_pairings([ours], [truth]))[0].rows
    area = next(row.value for row in rows if row.metric == "auprc")
    true = labels[labels >= 0] == 1
    clipped = np.maximum(logits, -logits[labels >= 0].max())[labels >= 0]
    exact = ranking.average_precision_score(true, 1 / (1 + np.exp(-clipped.astype(float))))
    assert area == pytest.approx(exact, abs=1e-4)
    assert {row.threshold for row in rows if row.metric == "dice"} == {-0.25}


def test_a_perfect_mask_and_a_shifted_one(tmp_path: Path) -> None:
    labels = np.zeros((8, 24, 24), np.int8)
    labels[:, 10:12] = 1
    truth = write(tmp_path / "a_membrane.mrc", labels, 15.0)
    perfect = write(tmp_path / "b" / "a_membrane.mrc", labels, 15.0)
    shifted = write(tmp_path / "c" / "a_membrane.mrc", np.roll(labels, 4, 1), 15.0)
    first, second = evaluate(find_pairings([perfect, shifted], [truth], stage="x"))
    found = {row.metric: row.value for row in first.rows}
    assert found["dice"] == found["surface_dice_2nm"] == 1
    assert found["surface_distance_mean_nm"] == 0
    assert "auprc" not in found
    moved = {row.metric: row.value for row in second.rows}
    assert moved["dice"] == moved["surface_dice_2nm"] == 0
    assert moved["surface_distance_95_nm"] == pytest.approx(6.0)
    assert second.rows[0].threshold is None


@pytest.mark.parametrize(
    ("name", "method", "kind", "threshold"),
    [
        ("TS_1_membrane.mrc", "ETSAM", "mask", 0.0),
        ("TS_1_membrane_logits.zarr", "ETSAM", "logits", -0.25),
        ("TS_1_etsam_predicted_logits.mrc", "ETSAM", "logits", -0.25),
        ("TS_1_scores.mrc", "MemBrain-seg", "logits", 0.0),
        ("TS_1_MemBrain_seg_v10_alpha.ckpt_segmented.mrc", "MemBrain-seg", "mask", 0.0),
        ("TS_1_semantic.mrc", "TARDIS", "mask", 0.0),
        ("TS_1_CNN.tif", "TARDIS", "probability", 0.25),
        ("TS_1_ridge_logits.mrc", "ridge", "logits", 0.0),
        ("mine/TS_1.mrc", "mine", None, None),
    ],
)
def test_whose_file_it_is(name: str, method: str, kind: str | None, threshold: float) -> None:
    found = recognise(Path(name))
    assert (found.method, found.kind, found.threshold) == (method, kind, threshold)


def test_probabilities_in_a_tiff(tmp_path: Path) -> None:
    labels, logits = labels_and_logits(2)
    probability = (1 / (1 + np.exp(-logits))).astype(np.float32)
    tifffile.imwrite(tmp_path / "a_CNN.tif", probability)
    truth = write(tmp_path / "a_membrane.mrc", labels)
    write(tmp_path / "a_semantic.mrc", (probability > 0.25).astype(np.int8))
    (tiff,) = find_pairings([tmp_path], [truth])  # the mask is the probabilities'
    assert tiff.prediction.method == "TARDIS"
    with open_prediction(tiff.prediction.path) as volume:
        assert score_kind(volume) == "probability"
        assert np.array_equal(volume.read_slice(3), probability[3])
    rows = evaluate([tiff])[0].rows
    mask = evaluate(find_pairings([tmp_path / "a_semantic.mrc"], [truth]))[0].rows
    assert [row.value for row in rows[:4]] == [row.value for row in mask[:4]]
    tifffile.imwrite(tmp_path / "b_CNN.tif", probability, compression="zlib")
    with pytest.raises(ValueError, match="uncompressed TIFF"):
        open_prediction(tmp_path / "b_CNN.tif")


def test_guessing_logits_from_their_range(tmp_path: Path) -> None:
    _, logits = labels_and_logits()
    with open_tomogram(write(tmp_path / "x.mrc", logits)) as volume:
        assert score_kind(volume) == "logits"


def test_runs_whose_names_begin_alike() -> None:
    truths = [Path("TS_1_membrane.mrc"), Path("TS_10_membrane.mrc"), Path("TS_1_b_labels.mrc")]
    files = [Path("TS_10_scores.mrc"), Path("TS_1_scores.mrc"), Path("TS_1_b_scores.mrc")]
    found = [truth for _, truth in match(files, truths)]
    assert found == [truths[1], truths[0], truths[2]]
    with pytest.warns(UserWarning, match="TS_10_2_scores.mrc is scored against run TS_10, not TS_"):
        assert match([Path("TS_10_2_scores.mrc"), *files], truths)[0][1] == truths[1]
    with pytest.raises(ValueError, match="no truth for it"):
        match([Path("TS_2_scores.mrc"), *files], truths)
    with pytest.raises(ValueError, match="several truths"):
        match(files[:1], [Path("a/TS_10_membrane.mrc"), Path("b/TS_10_membrane.mrc")])


def test_folders_tables_and_curves(tmp_path: Path, run: Run) -> None:
    for number in (1, 2):
        labels, logits = labels_and_logits(number)
        write(tmp_path / "truth" / f"TS_{number}_membrane.mrc", labels)
        write(tmp_path / "truth" / f"TS_{number}.mrc", logits)  # the tomogram
        write(tmp_path / "out" / f"TS_{number}_scores.mrc", logits)
        write(tmp_path / "out" / f"TS_{number}_v1_segmented.mrc", (logits > 0).astype(np.int8))
    table, curves = tmp_path / "t.json", tmp_path / "c.csv"
    places = (tmp_path / "out", "-t", tmp_path / "truth")
    code, out, err = run("evaluate", *places, "--sweep", "-o", table, "--curves", curves)
    assert (code, out.strip()) == (0, str(table)), err
    curves.write_text("mine")
    new = ("-o", tmp_path / "new.csv", "--no-surface", "--no-details")
    code, out, err = run("evaluate", *places, *new, "--curves", curves)
    assert (code, out, curves.read_text()) == (1, "", "mine") and not new[1].exists()
    assert err == f"etsam: error: {curves} is there already: give --overwrite or another name\n"
    assert run("evaluate", *places, *new, "--curves", curves, "--overwrite")[0] == 0
    rows = read_table(table)
    assert {row.tomogram for row in rows} == {("truth", "TS_1"), ("truth", "TS_2")}
    assert {row.method for row in rows} == {"MemBrain-seg"}
    assert sum(row.metric == "dice" for row in rows) == 2 * 9
    assert {row.threshold for row in rows if row.metric.startswith("surface")} == {0.0}
    levels = [row.threshold for row in read_table(curves)]
    assert levels == 2 * [round(0.01 * step, 6) for step in range(101)]
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(
        "prediction,truth,method,run\nout/TS_1_scores.mrc,truth/TS_1_membrane.mrc,M,r\n"
    )
    found = values(run("evaluate", "--pairs", pairs, "--no-surface")[1])
    dice = next(r.value for r in rows if (r.run, r.metric, r.threshold) == ("TS_1", "dice", 0.0))
    assert found["dice", "0"] == pytest.approx(dice, abs=1e-6)


def test_two_predictions_of_a_kind_for_one_truth_are_refused(tmp_path: Path, run: Run) -> None:
    labels, logits = labels_and_logits()
    write(tmp_path / "truth" / "TS_1_membrane.mrc", labels)
    for name in ("TS_1_a_segmented", "TS_1_b_segmented"):
        write(tmp_path / "out" / f"{name}.mrc", (logits > 0).astype(np.int8))
    code, out, err = run("evaluate", tmp_path / "out", "-t", tmp_path / "truth")
    assert (code, out) == (1, "")
    assert "are both of MemBrain-seg for" in err


def test_levels_of_zarrs_are_scored_as_the_whole(tmp_path: Path) -> None:
    labels, _ = labels_and_logits()
    for place in ("truth/a_membrane.zarr", "out/a_membrane.zarr"):
        (tmp_path / place).parent.mkdir()
        with (
            tomogram_from_array(labels) as like,
            create_volume(tmp_path / place, like, dtype="int8", label="test") as writer,
        ):
            for z, plane in enumerate(labels):
                writer.write_slice(z, plane)
    table = tmp_path / "pairs.csv"
    table.write_text("prediction,truth\nout/a_membrane.zarr/0,truth/a_membrane.zarr/0\n")
    for pair in (
        *find_pairings(
            [tmp_path / "out/a_membrane.zarr/0"], [tmp_path / "truth/a_membrane.zarr/0"]
        ),
        *read_pairings(table),
    ):
        assert (pair.dataset, pair.run, pair.prediction.method) == ("truth", "a", "ETSAM")


def test_names_of_thousands_are_looked_at_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []
    usual = pairing.stem_of
    monkeypatch.setattr(pairing, "stem_of", lambda path: seen.append(path) or usual(path))
    truths = [Path(f"truth/TS_{n}_membrane.mrc") for n in range(1000)]
    masks = [Path(f"out/TS_{n}_membrane.mrc") for n in range(999, -1, -1)]
    assert match(masks, truths) == list(zip(masks, reversed(truths), strict=True))
    assert len(seen) <= 3 * len(truths)


@pytest.mark.filterwarnings("ignore:.*scored against run TS_1, not TS_1_2")
def test_a_mask_gives_way_to_scores_of_its_own_run_only(tmp_path: Path, run: Run) -> None:
    labels, logits = labels_and_logits()
    truth = write(tmp_path / "truth" / "TS_1_membrane.mrc", labels).parent
    masks = write(tmp_path / "out" / "TS_1_membrane.mrc", (labels > 0).astype(np.int8)).parent
    other = write(masks / "TS_1_2_membrane_logits.mrc", logits)
    code, out, err = run("evaluate", masks, "-t", truth)
    assert (code, out) == (1, "")
    assert f"{other} and {masks / 'TS_1_membrane.mrc'} are both of ETSAM for" in err
    own = other.rename(masks / "TS_1_membrane_logits.mrc")
    assert [pair.prediction.path for pair in find_pairings([masks], [truth])] == [own]


def test_tilt_series_and_hidden_files_are_not_scored(tmp_path: Path, run: Run) -> None:
    labels, logits = labels_and_logits()
    truth = write(tmp_path / "truth" / "TS_1_membrane.mrc", labels).parent
    scores = write(tmp_path / "out" / "TS_1.mrc", logits)
    for end in (".st", ".ali", ".preali", ".ST"):
        write(scores.with_suffix(end), logits)
    write(truth / "TS_1_membrane.st", labels)
    for place, name in ((truth, "TS_1_membrane.mrc"), (scores.parent, "TS_1.tif")):
        (place / f"._{name}").touch()  # as macOS writes beside each file of another's disk
    (found,) = find_pairings([scores.parent], [truth], method="mine")
    assert found.prediction.path == scores
    (named,) = find_pairings([scores.with_suffix(".st")], [truth])
    assert named.prediction.path == scores.with_suffix(".st")
    scores.unlink()
    code, out, err = run("evaluate", scores.parent, "-t", truth, "--method", "mine")
    assert (code, out) == (1, "")
    assert "holds no prediction: expected MRC" in err


def test_a_sweep_of_probabilities_has_their_thresholds(tmp_path: Path, run: Run) -> None:
    """TARDIS stands beside us at its own 0.25, not at our logit."""
    labels, logits = labels_and_logits(4)
    truth = tmp_path / "truth"
    for name in ("TS_1", "TS_2", "TS_3"):
        write(truth / f"{name}_membrane.mrc", labels)
        write(tmp_path / "out" / f"{name}_CNN.mrc", 1 / (1 + np.exp(-logits)))
        write(tmp_path / "out" / f"{name}_membrane_logits.mrc", logits)
    table = tmp_path / "t.csv"
    code, _, err = run("evaluate", tmp_path / "out", "-t", truth, "--sweep", "-o", table)
    assert code == 0, err
    rows = [row for row in read_table(table) if row.run == "TS_1"]
    levels = {
        method: {row.threshold for row in rows if (row.method, row.metric) == (method, "dice")}
        for method in ("TARDIS", "ETSAM")
    }
    assert len(levels["TARDIS"]) == 10
    assert levels["ETSAM"] == set(SWEEP)
    scores = {(row.method, row.threshold): row.value for row in rows if row.metric == "recall"}
    for level in SWEEP:  # the same voxels
        turned = min(levels["TARDIS"], key=lambda x: abs(x - 1 / (1 + np.exp(-level))))
        assert scores["TARDIS", turned] == pytest.approx(scores["ETSAM", level], abs=1e-3)
    chosen = variants(read_table(table))
    assert chosen["TARDIS"]["recall"]["truth", "TS_1"] == scores["TARDIS", 0.25]
    assert chosen["ETSAM"]["recall"]["truth", "TS_1"] == scores["ETSAM", -0.25]
    assert "surface_dice_2nm" in chosen["TARDIS"]


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_scores_and_labels_that_are_no_numbers_are_refused(
    tmp_path: Path, run: Run, value: float
) -> None:
    labels, logits = labels_and_logits()
    truth, scores = write(tmp_path / "a_membrane.mrc", labels), write(tmp_path / "a_s.mrc", logits)
    no_truth = write(tmp_path / "b_membrane.mrc", labels.astype(np.float32))
    no_scores = write(tmp_path / "b_scores.mrc", logits)
    for path in (no_truth, no_scores):
        with mrcfile.mmap(path, "r+") as mrc:
            mrc.data[3, 2, 1] = value
    for pair in ((no_scores, truth), (scores, no_truth)):
        code, out, err = run("evaluate", pair[0], "-t", pair[1])
        assert (code, out) == (1, "")
        assert "1 voxels of slice 3 are NaN or infinite" in err


def test_what_can_be_scored_is_kept_where_one_file_is_damaged(tmp_path: Path, run: Run) -> None:
    labels, logits = labels_and_logits()
    for name in ("TS_1", "TS_2"):
        write(tmp_path / "truth" / f"{name}_membrane.mrc", labels)
        write(tmp_path / "out" / f"{name}_scores.mrc", logits)
    damaged = tmp_path / "out" / "TS_1_scores.mrc"
    damaged.write_bytes(damaged.read_bytes()[:3000])
    table = tmp_path / "t.csv"
    code, _, err = run("evaluate", tmp_path / "out", "-t", tmp_path / "truth", "-o", table)
    assert code == 1
    assert "TS_1_scores.mrc" in err
    assert {row.run for row in read_table(table)} == {"TS_2"}


def test_prepared_pairs_keep_dataset_and_run(tmp_path: Path) -> None:
    truth = write(tmp_path / "pairs" / "10000_245_membrane.mrc", labels_and_logits()[0])
    (tmp_path / "pairs" / "10000_245_prepared.json").write_text(
        '{"dataset": "10000", "run": "245"}'
    )
    write(tmp_path / "out" / "10000_245_scores.mrc", labels_and_logits()[1])
    (found,) = find_pairings([tmp_path / "out"], [truth.parent])
    assert (found.dataset, found.run) == ("10000", "245")


def test_the_curve_ends_at_the_share_of_membrane(tmp_path: Path) -> None:
    labels, logits = labels_and_logits(3)
    truth = write(tmp_path / "a_membrane.mrc", labels)
    path = write(tmp_path / "a_scores.mrc", logits)
    item = evaluate([Pairing(recognise(path), truth, "d", "r")], EvaluateOptions(surface=False))[0]
    rows = curve_rows(item)
    share = np.mean(labels[labels >= 0] == 1)
    assert rows[-1].value == pytest.approx(share, abs=0.02)
    assert rows[0].value >= rows[50].value > share


def test_what_is_refused_in_one_line(tmp_path: Path, run: Run) -> None:
    labels, logits = labels_and_logits()
    truth = write(tmp_path / "a_membrane.mrc", labels)
    other = write(tmp_path / "a_scores.mrc", logits, 13.6)
    small = write(tmp_path / "b_scores.mrc", logits[:, :-1])
    blank = write(tmp_path / "c_membrane.mrc", np.full_like(labels, -1))
    wrong = write(tmp_path / "d_membrane.mrc", labels * 2)
    signed = write(tmp_path / "a.mrc", -(labels == 1).astype(np.int8))
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(f"prediction,truth\n{other},{truth}\n")
    cases = [
        ((other, "-t", truth), 1, "voxels of 13.6x13.6x13.6 and 10x10x10 Å"),
        ((small, "-t", truth), 1, "has shape (6, 19, 22)"),
        ((other, "-t", blank, "--voxel-spacing", 10), 1, "no voxel is annotated"),
        ((other, "-t", wrong, "--voxel-spacing", 10), 1, "labels reach from -2"),
        ((other, "-t", truth, "--voxel-spacing", 10, "--scores", "probability"), 1, "--scores"),
        ((tmp_path / "none.mrc", "-t", truth), 1, "does not exist"),
        ((other, "-t", tmp_path / "none"), 1, "does not exist"),
        ((other,), 2, "give predictions and --truth, or --pairs"),
        ((small, "-t", truth, "--resample"), 1, "they must show the same volume to be resampled"),
        ((other, "-t", truth, "--resample", "--voxel-spacing", 10), 1, "give it or --resample"),
        (("--pairs", tmp_path / "none.csv"), 1, "does not exist"),
        (("--pairs", pairs, "-o", pairs), 1, "pairs.csv is read as well"),
        (("--pairs", pairs, "--curves", pairs), 1, "pairs.csv is read as well"),
        ((signed, "-t", truth), 1, "holds -1 to 0, not a mask"),
        (("--pairs", tmp_path / "none.csv", "--method", "M"), 2, "make it a column"),
        ((other, "-t", truth, "--voxel-spacing", 0), 2, "voxel spacing 0.0 is not plausible"),
        ((other, "-t", truth, "--threshold", "nan"), 1, "expected finite numbers"),
        ((other, "-t", truth, "--tolerance", "nan"), 1, "expected finite numbers"),
        ((other, "-t", truth, "--tolerance", "1e300"), 1, "finite numbers up to 1e+09"),
        ((other, "-t", truth, "--threshold", "-1e39"), 1, "finite numbers up to 1e+09"),
        ((other, "-t", truth, "-o", truth), 1, "expected one that ends in .csv or .json"),
        ((other, "-t", truth, "-o", tmp_path / "no" / "x.csv"), 1, "make the folder first"),
        ((other, "-t", truth, "-o", "x.csv", "--curves", "x.csv"), 2, "are the same file"),
    ]
    for args, code, part in cases:
        got, out, err = run("evaluate", *args)
        assert (got, out) == (code, ""), args
        assert err.splitlines()[-1].startswith("etsam: error: ")
        assert part in err
    assert run("evaluate", other, "-t", truth, "--voxel-spacing", 13.6)[0] == 0


def test_unknown_voxel_size_gives_no_distances(tmp_path: Path) -> None:
    labels, logits = labels_and_logits()
    truth = write(tmp_path / "a_membrane.mrc", labels, 0.0)
    path = write(tmp_path / "a_scores.mrc", logits, 0.0)
    pairing = Pairing(Prediction(path, "M"), truth, "d", "r")
    with pytest.warns(UserWarning, match="voxel size unknown"):
        rows = evaluate([pairing])[0].rows
    assert not [row for row in rows if row.metric.startswith("surface")]
    assert json.dumps([row.metric for row in rows])

"""What is easily mistaken: whole logits, ties, names with $ and =, surfaces outside, options without a role."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from scipy import stats
from scipy.spatial import cKDTree

from etsam.compare import TEST_COLUMNS, compare
from etsam.evaluate import EvaluateOptions
from etsam.export import ExportOptions
from etsam.export.points import CLOSEST, oriented_points
from etsam.frame import Frame
from etsam.membrane import Membrane, load_membrane
from etsam.midsurface import mid_surface
from etsam.postprocess import CleaningOptions
from etsam.report import ReportOptions
from etsam.statistics import paired_test
from etsam.tables import write_table
from test_cli import Run, assert_one_line, write_mrc
from test_figures import scores


def sheet(shape: tuple[int, int, int] = (40, 60, 60)) -> np.ndarray:
    """Logits of a sheet in a few slices; elsewhere "no object", as SAM 2 has it."""
    logits = np.full(shape, -1024, np.float32)
    logits[11:19] = (2.25 - 0.5 * np.abs(np.arange(shape[1]) - 29.5))[:, None]
    return logits


def test_logits_that_are_whole_numbers_in_many_slices_are_logits(tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a_membrane_logits.mrc", sheet())
    for threshold in (-2.0, -0.25, 1.0):
        found = load_membrane(path, threshold=threshold)
        assert found.field is not None
        assert np.array_equal(found.mask, sheet() > threshold)
    mask = write_mrc(tmp_path / "a_membrane.mrc", (sheet() > 0).astype(np.float32))
    assert load_membrane(mask).field is None


def test_bytes_of_0_and_255_that_read_as_signed_are_explained(run: Run, tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a_membrane.mrc", -(sheet() > 0).astype(np.int8))
    code, out, err = run("export", path)
    assert (code, out) == (1, "")
    assert_one_line(err, "bytes of 0 and 255 whose header says signed read as 0 and -1")


@pytest.mark.parametrize("seed", range(20))
def test_ties_are_ties_whatever_was_rounded(seed: int) -> None:
    """Scores of two digits, whose differences are equal but for the last bit."""
    random = np.random.default_rng(seed)
    size = int(random.integers(6, 12))
    hundredths = random.integers(50, 90, size)
    whole = random.integers(-3, 4, size)
    whole[0] = 20  # far from normal
    found = paired_test(hundredths / 100, (hundredths - whole) / 100)
    expected = stats.wilcoxon(whole.astype(float))
    assert found.test == "Wilcoxon"
    assert found.p == pytest.approx(float(expected.pvalue), abs=1e-12)
    kept = whole[whole != 0]
    ranks = stats.rankdata(np.abs(kept))
    assert found.rank_effect == pytest.approx(np.sum(np.sign(kept) * ranks) / ranks.sum())


def test_points_keep_their_distance() -> None:
    """Also where the grid of cubes cuts a membrane into unequal parts."""
    z, y, x = np.indices((60, 60, 60))
    shell = np.abs(np.sqrt((z - 30) ** 2 + (y - 30) ** 2 + (x - 30) ** 2) - 20) < 1.5
    frame = Frame((60, 60, 60), (9.0, 10.0, 12.0), (0.0, 0.0, 0.0))
    surface = mid_surface(Membrane(shell, None, frame))
    points = oriented_points(surface, np.ones(len(surface.points), int), frame, 100.0)
    places = points.points * np.array(frame.spacing)
    near = cKDTree(places).query(places, k=2)[0][:, 1] / 100.0
    assert len(places) > 30 and near.min() >= CLOSEST and near.max() <= 1.2


@pytest.mark.filterwarnings("always")
def test_membranes_without_a_point_are_told(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("starfile")
    face = np.zeros((40, 60, 60), np.int8)
    face[:, :5] = 1
    path = write_mrc(tmp_path / "a_membrane.mrc", face)
    code, _, err = run("export", path, "--as", "points", "--as", "labels")
    assert code == 0
    assert f"warning: 1 of 1 membranes of {path} have no mid-surface inside of the volume" in err


@pytest.mark.filterwarnings("always:.*several numbers")
def test_numbers_of_membranes_that_are_not_kept_are_told(run: Run, tmp_path: Path) -> None:
    labels = np.zeros((40, 60, 60), np.int16)
    labels[:20, 30:35], labels[20:, 30:35] = 9, 7
    for name, values, told in (("two", labels, 1), ("one", 9 * (labels > 0).astype(np.int16), 0)):
        path = write_mrc(tmp_path / f"{name}.mrc", values)
        code, _, err = run("export", path, "--as", "labels", "--components")
        assert (code, err.count("holds several numbers above 0")) == (0, told)
    assert mrcfile.read(tmp_path / "two_labels.mrc").max() == 1


@pytest.mark.filterwarnings("always")
def test_options_of_export_and_report_that_play_no_role_are_told(run: Run, tmp_path: Path) -> None:
    path = write_mrc(tmp_path / "a_membrane.mrc", (sheet() > 0).astype(np.int8))
    write_mrc(tmp_path / "a.mrc", sheet())
    idle = ("--max-faces", 200, "--point-spacing", 50, "--logit-threshold", 3)
    code, _, err = run("export", path, "--as", "labels", *idle)
    assert code == 0
    for option in ("--max-faces", "--point-spacing"):
        assert f"warning: {option} is for --as " in err
    assert f"{path} is a mask: --logit-threshold is for logits" in err
    code, _, err = run("export", path, "--as", "ply", "--components", "-o", tmp_path / "o")
    assert code == 0 and "warning: --components is for --as labels" in err
    code, _, err = run("report", tmp_path / "a.mrc", "--logit-threshold", 3)
    assert code == 0 and f"{path} is a mask: --logit-threshold is for logits" in err


def test_copick_refuses_voxels_that_are_no_cubes_at_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_mrc(tmp_path / "a_membrane.mrc", (sheet() > 0).astype(np.int8))
    with mrcfile.open(path, "r+") as mrc:
        mrc.voxel_size = (9.0, 10.0, 12.0)
    monkeypatch.setattr("etsam.export.separate_membranes", lambda *_, **__: pytest.fail("began"))
    code, out, err = run("export", path, "--as", "labels", "--as", "copick")
    assert (code, out) == (1, "")
    assert_one_line(err, "copick needs cubic voxels", "12 x 10 x 9", "leave out copick")


def test_names_with_dollars_and_equals_are_names(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    tomogram = write_mrc(tmp_path / "a.mrc", sheet((4, 60, 60)))
    (tmp_path / "run=1").mkdir()
    mask = write_mrc(tmp_path / "run=1" / r"x$\bad$y_membrane.mrc", np.ones((4, 60, 60), np.int8))
    code, out, err = run(
        "figures", "slices", tomogram, "-m", mask, "-z", 1, "-o", tmp_path / "f.svg"
    )
    assert code == 0, err
    assert r"x$\bad$y" in Path(out.strip()).read_text(encoding="utf-8")


@pytest.mark.filterwarnings("always")
def test_methods_named_twice_count_once_and_no_pair_is_said(run: Run, tmp_path: Path) -> None:
    rows = scores()
    once, twice = (compare(rows, methods=[*names, "same"]) for names in (["ours"], ["ours"] * 2))
    assert once.methods == twice.methods and len(once.tests) == len(twice.tests)
    assert len(compare(rows, metrics=["dice", "dice"]).tests) == 3
    write_table(tmp_path / "t.csv", [row for row in rows if row.method == "ours"])
    code, _, err = run("compare", tmp_path / "t.csv", "-o", tmp_path / "tests.csv")
    assert code == 0 and "holds no test: there is no pair of methods" in err
    assert (tmp_path / "tests.csv").read_text() == ",".join(TEST_COLUMNS) + "\n"


@pytest.mark.parametrize(
    "make",
    [
        lambda: CleaningOptions(min_slices="3"),  # type: ignore[arg-type]
        lambda: CleaningOptions(min_slices=2.5),  # type: ignore[arg-type]
        lambda: CleaningOptions(max_rung=-1),
        lambda: ExportOptions(min_voxels="5"),  # type: ignore[arg-type]
        lambda: ExportOptions("ply"),  # type: ignore[arg-type]
        lambda: ExportOptions(threshold=float("nan")),
        lambda: EvaluateOptions(kind="foo"),  # type: ignore[arg-type]
        lambda: EvaluateOptions(thresholds=0.5),  # type: ignore[arg-type]
    ],
)
def test_options_of_programs_are_checked(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        make()


def test_paths_of_programs_may_be_texts() -> None:
    assert ExportOptions(output="o", tomogram="t.mrc").tomogram == Path("t.mrc")  # type: ignore[arg-type]
    assert ReportOptions(output="o").output == Path("o")  # type: ignore[arg-type]
    assert ExportOptions(("labels", "labels")).formats == ("labels",)


def test_an_index_lists_what_failed_too(run: Run, tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_mrc(tmp_path / f"{name}.mrc", sheet())
    write_mrc(tmp_path / "two_membrane.mrc", (sheet() > 0).astype(np.int8))
    code, out, err = run("report", tmp_path / "one.mrc", tmp_path / "two.mrc")
    assert code == 1 and "one.mrc has no segmentation" in err
    index = Path(out.split()[-1]).read_text(encoding="utf-8")
    assert 'href="two_report.html"' in index and 'href="one_report.html"' not in index
    assert "failed" in index and "one.mrc has no segmentation" in index

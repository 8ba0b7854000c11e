"""Labels that somebody numbered by hand are handed on with their numbers."""

from __future__ import annotations

import csv
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from etsam.export import layouts
from etsam.instances import kept_labels
from etsam.membrane import load_membrane
from test_cli import Run, write_mrc

LABELS = {3: slice(4, 9), 7: slice(9, 14), 40: slice(30, 35)}
"""Numbers and columns of flat membranes; the first two touch."""


def numbered(dtype: str = "int16") -> np.ndarray:
    labels = np.zeros((40, 48, 44), dtype)
    for number, columns in LABELS.items():
        labels[:, :, columns] = number
    labels[20:, :, LABELS[7]] = 0
    return labels


def test_numbers_stay_in_every_format(run: Run, tmp_path: Path) -> None:
    starfile = pytest.importorskip("starfile")
    pytest.importorskip("trimesh")
    path = write_mrc(tmp_path / "by_hand.mrc", numbered())
    kinds = ("labels", "midsurface", "membrain-pick", "morphometrics", "points", "copick")
    code, _, err = run("export", path, "--keep-labels", *(a for k in kinds for a in ("--as", k)))
    assert code == 0 and "warning" not in err
    with mrcfile.open(tmp_path / "by_hand_labels.mrc") as written:
        assert "numbers kept" in str(written.header.label)
    with (tmp_path / "by_hand_midsurface.csv").open(encoding="ascii") as file:
        local = [row for row in csv.DictReader(file) if row["label"] == "3"]
    assert np.median([float(row["thickness_nm"]) for row in local]) == pytest.approx(5, abs=0.3)
    assert np.array_equal(mrcfile.read(tmp_path / "by_hand_labels.mrc"), numbered())
    with (tmp_path / "by_hand_labels.csv").open(encoding="ascii") as file:
        rows = {int(row["label"]): row for row in csv.DictReader(file)}
    assert list(rows) == sorted(LABELS)
    for number, columns in LABELS.items():
        here = numbered() == number
        assert int(rows[number]["voxels"]) == here.sum()
        assert (int(rows[number]["x_min"]), int(rows[number]["x_max"])) == (
            columns.start,
            columns.stop - 1,
        )
        mask = mrcfile.read(tmp_path / "by_hand_membranes" / f"mb{number}.mrc")
        assert np.array_equal(mask != 0, here)
    assert len(list((tmp_path / "by_hand_membranes").iterdir())) == len(LABELS)
    config = (tmp_path / "by_hand_morphometrics" / "config.yml").read_text(encoding="utf-8")
    assert all(f"  MEMBRANE{number}: {number}\n" in config for number in LABELS)
    assert config.count("    - MEMBRANE") == 2 * len(LABELS)
    points = starfile.read(tmp_path / "by_hand_points.star")
    assert set(points["rlnTomoManifoldIndex"]) == set(LABELS)
    for number, columns in LABELS.items():
        own = points[points["rlnTomoManifoldIndex"] == number]
        own = own[own["rlnCoordinateZ"] < 15]  # away from the rim of one that ends
        middle = (columns.start + columns.stop - 1) / 2
        assert len(own) > 4 and np.allclose(own["rlnCoordinateX"], middle, atol=0.2)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "float32"])
def test_small_labels_go_where_a_size_is_asked_for(run: Run, tmp_path: Path, dtype: str) -> None:
    path = write_mrc(tmp_path / "a.mrc", numbered(dtype))
    least = ("--min-voxels", int((numbered() == 7).sum()) + 1)
    assert run("export", path, "--keep-labels", "--as", "labels", *least)[0] == 0
    expected = numbered()
    expected[expected == 7] = 0
    assert np.array_equal(mrcfile.read(tmp_path / "a_labels.mrc"), expected)
    one = numbered()
    one[0, 0, 0] = 5
    path = write_mrc(tmp_path / "b.mrc", one)
    assert run("export", path, "--keep-labels", "--as", "labels")[0] == 0
    assert mrcfile.read(tmp_path / "b_labels.mrc")[0, 0, 0] == 5, "a single voxel is kept, unasked"


def test_labels_that_cannot_be_kept_are_refused(run: Run, tmp_path: Path) -> None:
    large = numbered("uint16")
    large[large == 40] = 40_000
    path = write_mrc(tmp_path / "large.mrc", large)
    code, _, err = run("export", path, "--keep-labels", "--as", "labels")
    assert code == 1 and "holds label 40000: labels up to 32767 can be kept" in err
    logits = write_mrc(tmp_path / "logits.mrc", numbered("float32") - 0.5)
    code, _, err = run("export", logits, "--keep-labels", "--as", "labels")
    assert code == 1 and "holds logits: only masks have labels that can be kept" in err
    assert not list(tmp_path.glob("*_labels*"))
    signed = numbered("int8")
    signed[signed == 40] = -56  # 200 in signed bytes
    code, _, err = run("export", write_mrc(tmp_path / "s.mrc", signed), "--keep-labels")
    assert code == 1 and "s.mrc holds -56, no label" in err
    with pytest.raises(ValueError, match="read without its numbers"):
        kept_labels(load_membrane(path))


def test_the_largest_membranes_get_files(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "MAX_MEMBRANES", 2)
    path = write_mrc(tmp_path / "a.mrc", numbered())
    kinds = ("--as", "membrain-pick", "--as", "morphometrics")
    assert run("export", path, "--keep-labels", *kinds)[0] == 0
    assert sorted(p.name for p in (tmp_path / "a_membranes").iterdir()) == ["mb3.mrc", "mb40.mrc"]
    place = next((tmp_path / "a_morphometrics" / "segmentations").iterdir())
    assert set(np.unique(mrcfile.read(place))) == {0, 3, 40}


@pytest.mark.filterwarnings("always")
def test_flags_of_labels_that_play_no_role_are_told(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("trimesh")
    path = write_mrc(tmp_path / "a.mrc", numbered())
    for number, flag in enumerate(("--components", "--keep-labels", "--separate")):
        code, _, err = run("export", path, flag, "--as", "ply", "-o", tmp_path / str(number))
        assert code == 0 and f"warning: {flag} is for --as labels, points" in err

"""What cannot come to a good end is refused before anything is computed."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from test_cli import Run, assert_one_line, write_mrc

HEADER = "dataset,run,method,stage,threshold,metric,value\n"


def computed(*_: Any, **__: Any) -> None:
    pytest.fail("it was computed")


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    sheet = np.zeros((12, 24, 24), np.int8)
    sheet[:, 10:13] = 1
    write_mrc(tmp_path / "a.mrc", sheet.astype(np.float32))
    return write_mrc(tmp_path / "a_membrane.mrc", sheet)


@pytest.fixture
def read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that takes nothing, whoever asks."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    make = Path.mkdir

    def refuse(path: Path, *args: Any, **options: Any) -> None:
        if path.parent == folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        make(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    return folder


def test_where_nothing_can_be_written_nothing_is_computed(
    run: Run, mask: Path, read_only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etsam.evaluate.evaluate", computed)
    monkeypatch.setattr("etsam.report.measure", computed)
    table = read_only / "x.csv"
    for option in ("-o", "--curves"):
        code, _, err = run("evaluate", mask, "-t", mask, option, table)
        assert code == 1
        assert_one_line(err, f"{table}: Permission denied")
    code, _, err = run("report", mask.parent / "a.mrc", "-o", read_only)
    assert code == 1
    assert_one_line(err, f"{read_only}/a_report.html: Permission denied")


def test_a_file_is_no_folder_for_a_table(run: Run, mask: Path) -> None:
    code, _, err = run("evaluate", mask, "-t", mask, "-o", mask / "x.csv")
    assert code == 1
    assert_one_line(err, f"{mask} is a file, not a folder: give the table another name")


@pytest.mark.parametrize("spacing", ["1000", "0", "-1", "nan"])
@pytest.mark.parametrize(
    "verb", ["segment", "baseline", "report", "export", "evaluate", "simulate", "figures slices"]
)
def test_an_implausible_voxel_spacing_is_wrong_usage(
    run: Run, tmp_path: Path, verb: str, spacing: str
) -> None:
    code, _, err = run(*verb.split(), tmp_path / "none", "--voxel-spacing", spacing)
    assert code == 2
    assert "--voxel-spacing" in err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["compare", "figures scores", "figures ablation"])
def test_curves_are_not_taken_for_scores(run: Run, tmp_path: Path, verb: str) -> None:
    path = tmp_path / "curves.csv"
    path.write_text(HEADER + "d,r,m,s,0,precision_at_recall,1\nd,r,m,s,1,precision_at_recall,.5\n")
    code, out, err = run(*verb.split(), path)
    assert (code, out) == (1, "")
    assert_one_line(err, f"{path} holds curves", "--curves", "evaluate --output")

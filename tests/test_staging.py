"""Files made aside: at no moment half a result under its name, nothing hidden left, others' files kept."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from etsam import simulate
from etsam.export import ExportOptions, export_file
from etsam.simulation.recipe import SimulationOptions
from etsam.staging import hidden_folder, place_files
from file_limit import file_limit
from test_cli import Run, assert_one_line, write_mrc

SHAPE = (16, 16, 16)
FEW = SimulationOptions(views=3)


def balls(path: Path) -> Path:
    """A mask of two blobs."""
    mask = np.zeros((16, 32, 32), np.int8)
    mask[4:12, 4:12, 4:12] = mask[4:12, 18:28, 18:28] = 1
    return write_mrc(path, mask)


def test_a_second_signal_leaves_no_hidden_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, asked = os.unlink, []

    def stopped_once(*args: object, **more: object) -> None:
        if not asked:
            asked.append(args)
            raise KeyboardInterrupt
        usual(*args, **more)  # type: ignore[arg-type]

    with (
        monkeypatch.context() as patched,
        pytest.raises(KeyboardInterrupt),
        hidden_folder(tmp_path / "new", "a") as folder,
    ):
        (folder / "file").touch()
        patched.setattr(os, "unlink", stopped_once)
    assert asked and not list(tmp_path.iterdir())


@pytest.mark.parametrize("views", [3, 5])
def test_a_pair_that_another_process_has_made_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, views: int
) -> None:
    usual, others = simulate._write_mrc, []

    def after_another(path: Path, data: np.ndarray, spacing: float) -> None:
        if not others:
            others.append(path)
            options = SimulationOptions(views=views)
            others.append(simulate.simulate_one(tmp_path, 0, SHAPE, options))
            others.append(others[-1].stat().st_ino)
        usual(path, data, spacing)

    monkeypatch.setattr(simulate, "_write_mrc", after_another)
    if views == FEW.views:
        made = simulate.simulate_one(tmp_path, 0, SHAPE, FEW)
        assert made == others[1]
    else:
        with pytest.raises(FileExistsError, match="of other options"):
            simulate.simulate_one(tmp_path, 0, SHAPE, FEW)
    assert others[1].stat().st_ino == others[2]
    assert len(list(tmp_path.iterdir())) == 3


def test_no_folder_is_emptied_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = balls(tmp_path / "a_membrane.mrc")
    options = ExportOptions(
        ("membrain-pick",), labelling="components", min_voxels=0, overwrite=True
    )
    (made,) = export_file(mask, options)
    names = sorted(each.name for each in made.iterdir())
    usual = shutil.rmtree

    def only_hidden(path: Path, ignore_errors: bool = False) -> None:
        assert Path(path).name.startswith(".")
        assert sorted(each.name for each in made.iterdir()) == names
        usual(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", only_hidden)
    assert export_file(mask, options) == [made]
    assert set(tmp_path.iterdir()) == {mask, made}


@pytest.mark.parametrize(
    ("kind", "name"), [("labels", "a_membrane_labels.mrc"), ("obj", "a_membrane.obj")]
)
def test_an_export_to_a_full_disk_names_its_file(
    run: Run, tmp_path: Path, kind: str, name: str
) -> None:
    pytest.importorskip("fast_simplification")
    mask = balls(tmp_path / "a_membrane.mrc")
    with file_limit(1000):
        code, out, err = run("export", mask, "--as", kind, "-o", tmp_path / "new")
    assert (code, out) == (1, "")
    assert_one_line(err, f"{tmp_path / 'new' / name}: File too large")
    assert list(tmp_path.iterdir()) == [mask]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("stop", range(5))
def test_a_signal_between_two_names_leaves_the_new_result_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int, after: bool
) -> None:
    names = [tmp_path / name for name in ("a.json", "a.mrc")]
    stale = tmp_path / "a_logits.mrc"
    usual, moved = os.replace, []

    def stopped_once(*args: object) -> None:
        moved.append(args)
        if after or len(moved) != stop + 1:
            usual(*args)  # type: ignore[arg-type]
        if len(moved) == stop + 1:
            raise KeyboardInterrupt

    for path in (*names, stale):
        path.write_text("old")
    with hidden_folder(tmp_path, "a") as folder:
        for path in names:
            (folder / path.name).write_text("new")
        monkeypatch.setattr(os, "replace", stopped_once)
        with pytest.raises(KeyboardInterrupt):
            place_files(folder, names, [stale])
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a.json": "new",
        "a.mrc": "new",
    }


def test_what_was_made_and_is_gone_is_an_error(tmp_path: Path) -> None:
    with hidden_folder(tmp_path, "a") as folder, pytest.raises(FileNotFoundError):
        place_files(folder, [tmp_path / "a.json"])

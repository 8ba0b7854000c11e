"""Maps, segmentations and formats that a user asks `etsam simulate` for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from etsam.in_order import WorkerKilledError
from etsam.simulate import quantised, simulate_many
from etsam.simulation.contents import add_soluble
from etsam.simulation.imaging import TiltSeries
from etsam.simulation.recipe import Contents, SimulationOptions, draw
from etsam.simulation.sample import build_sample
from etsam.simulation.scene import CLEARANCE, FAR, empty_scene
from etsam.simulation.segmentations import real_shape
from test_cli import Run, assert_one_line

SMALL = ("--shape", "16,64,64", "--voxel-spacing", 10, "--dark")


def write(path: Path, data: np.ndarray, spacing: float | tuple[float, float, float] = 10.0) -> Path:
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(data)
        mrc.voxel_size = spacing
    return path


def sheet() -> np.ndarray:
    """Labels of a sheet along y and z, 5 voxels thick, and of something else."""
    labels = np.zeros((24, 80, 80), np.int8)
    labels[:, :, 38:43] = 2
    labels[:, :, 60:70] = 1
    return labels


def protein() -> np.ndarray:
    ball = np.square(np.indices((9, 9, 9)) - 4).sum(axis=0)
    return np.exp(-ball / 6).astype(np.float32)


def test_a_segmentation_becomes_the_membrane(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "labels.mrc", sheet())
    given = ("--preset", "empty", "--segmentation", path, "--segmentation-labels", 2)
    assert run("simulate", tmp_path / "a", *SMALL, *given)[0] == 0
    mask = mrcfile.read(tmp_path / "a" / "sim_000000_membrane.mrc")
    flat = mask.max(axis=0)
    rows, columns = (np.flatnonzero((flat == 1).any(axis=axis)) for axis in (1, 0))
    assert min(len(rows), len(columns)) <= 8 and max(len(rows), len(columns)) == 64
    np.savez(tmp_path / "labels.npz", labels=sheet())
    given = (*given[:3], tmp_path / "labels.npz", *given[4:])
    code, _, err = run("simulate", tmp_path / "b", *SMALL, *given)
    assert code == 1
    assert_one_line(err, "labels.npz says no voxel spacing")
    assert run("simulate", tmp_path / "b", *SMALL, *given, "--segmentation-spacing", 10)[0] == 0
    assert np.array_equal(mrcfile.read(tmp_path / "b" / "sim_000000_membrane.mrc"), mask)


def test_proteins_lie_along_the_normal_of_a_segmentation(tmp_path: Path) -> None:
    """Which has no inside: either way up, and never flat on it."""
    stick = np.zeros((25, 25, 25), np.float32)
    stick[1:24, 10:15, 10:15] = 1.0
    path = str(write(tmp_path / "stick.mrc", stick))
    shape = real_shape(write(tmp_path / "labels.mrc", sheet()), labels=(2,))
    options = SimulationOptions("empty", 10.0, shapes=(shape,), membrane_proteins=(path,))
    added = []
    for given in (replace(options, membrane_proteins=()), options):
        recipe = draw(np.random.default_rng(1), given)
        recipe = replace(recipe, contents=Contents(embedded=0.0), cut=False)
        added.append(build_sample((24, 64, 64), recipe, given, np.random.default_rng(2)))
    density, far = added[1].density - added[0].density, added[0].distance.abs()
    reach = [float(density[(far >= low) & (far < low + 25)].sum()) for low in (0, 25, 50, 75)]
    assert min(reach) > 0.5 * max(reach), "as much at every height of the stick"


@pytest.mark.parametrize("radius", [30.0, 60.0, 110.0])
def test_proteins_of_any_size_fill_as_much_and_keep_clear(tmp_path: Path, radius: float) -> None:
    side = int(radius / 5) + 3
    away = np.sqrt(np.square(np.indices((2 * side + 1,) * 3) - side).sum(axis=0)) * 5.0
    ball = np.clip((radius - away) / 5 + 0.5, 0, 1).astype(np.float32)
    scene = empty_scene((128, 96, 96), 10.0, TiltSeries(tuple(np.arange(-60, 61, 3.0))))
    z = torch.arange(128, dtype=torch.float32)[:, None, None]
    known = ((z - 64) * 10).expand(128, 96, 96)
    scene.distance = torch.where(known.abs() < CLEARANCE, known, FAR)
    maps = (str(write(tmp_path / "ball.mrc", ball, 5.0)),)
    add_soluble(scene, np.random.default_rng(0), torch.tensor([0.1]), 1.0, maps)
    edge = int(radius / 10) + 1
    far = known.abs() > 2 * radius + 22
    inner = (slice(edge, -edge),) * 3  # where proteins lie on every side
    filled = float((scene.density[inner][far[inner]] > 0.1).float().mean())
    assert 0.05 < filled < 0.15
    assert float(scene.density[known.abs() < 15].abs().max()) < 0.02


def test_float_output_is_the_same_tomogram(run: Run, tmp_path: Path) -> None:
    for dtype in ("int8", "float32"):
        assert run("simulate", tmp_path / dtype, *SMALL, "--dtype", dtype)[0] == 0
    exact = mrcfile.read(tmp_path / "float32" / "sim_000000.mrc")
    clip = json.loads((tmp_path / "int8" / "sim_000000.json").read_text())["clip_percent"]
    assert exact.dtype == np.float32
    assert abs(exact.mean()) < 1e-3 and exact.std() == pytest.approx(1, abs=1e-3)
    bytes_ = mrcfile.read(tmp_path / "int8" / "sim_000000.mrc")
    assert np.array_equal(bytes_, quantised(exact, (clip, 100 - clip)))
    masks = [mrcfile.read(tmp_path / d / "sim_000000_membrane.mrc") for d in ("int8", "float32")]
    assert masks[0].dtype == masks[1].dtype == np.int8 and np.array_equal(*masks)
    code, _, err = run("simulate", tmp_path / "int8", *SMALL, "--dtype", "float32")
    assert code == 1
    assert_one_line(err, "of other options")


def test_what_is_supplied_is_kept_and_counts_by_its_content(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "labels.mrc", sheet())
    asked = ("simulate", tmp_path / "out", *SMALL, "--preset", "empty", "--segmentation", path)
    assert run(*asked)[0] == run(*asked)[0] == 0
    write(path, np.flip(sheet(), 2).copy())
    code, _, err = run(*asked)
    assert code == 1
    assert_one_line(err, "of other maps or segmentations")
    own = tmp_path / "out" / "sim_000000_membrane.mrc"
    before = own.read_bytes()
    for words in (("--segmentation", own), ("--proteins", own)):
        code, _, err = run("simulate", tmp_path / "out", *SMALL, *words, "--overwrite")
        assert code == 1
        assert_one_line(err, "is the map or segmentation itself: give another folder")
        assert own.read_bytes() == before


@pytest.mark.filterwarnings("always")
def test_what_plays_no_role_is_told(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "protein.mrc", protein())
    words = ("--preset", "empty", "--spikes", 1, "--membrane-proteins", path)
    code, _, err = run("simulate", tmp_path / "a", *SMALL, *words)
    assert code == 0
    for idle in ("--spikes", "--membrane-proteins"):
        assert f"warning: {idle} plays no role: --preset empty has no membranes" in err
    small = np.zeros((24, 80, 80), np.int8)
    small[12, 40, 40] = 1
    path = write(tmp_path / "small.mrc", small)
    words = ("--preset", "empty", "--segmentation", path, "--segmentation-spacing", 2)
    code, _, err = run("simulate", tmp_path / "b", *SMALL, *words)
    assert code == 0 and "sim_000000.mrc holds no membrane" in err
    code, _, err = run("simulate", tmp_path / "c", *SMALL, "--segmentation-labels", 1)
    assert code == 2
    assert_one_line(err, "--segmentation-labels is of a --segmentation")


def test_a_path_alone_is_no_list_of_maps() -> None:
    with pytest.raises(ValueError, match="proteins is 'p.mrc': expected several"):
        SimulationOptions(proteins="p.mrc")  # type: ignore[arg-type]
    assert SimulationOptions(proteins=(Path("p.mrc"),)).proteins == ("p.mrc",)  # type: ignore[arg-type]


def test_maps_and_spikes_change_the_tomogram_and_not_the_mask(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "protein.mrc", protein())
    asked = ("--preset", "vesicles", "--seeds", 5, *SMALL)
    made = {}
    for name, words in {
        "plain": ("--spikes", 0),
        "maps": ("--spikes", 0, "--proteins", path, "--proteins", path),
        "set in": ("--spikes", 0, "--membrane-proteins", path),
        "spikes": ("--spikes", 1),
    }.items():
        assert run("simulate", tmp_path / name, *asked, *words)[0] == 0
        stem = tmp_path / name / "sim_000005"
        made[name] = (mrcfile.read(f"{stem}.mrc"), mrcfile.read(f"{stem}_membrane.mrc"))
        given = json.loads(stem.with_suffix(".json").read_text())["given"]
        assert len(given["proteins"]) == 2 * (name == "maps")
    for name in ("maps", "set in", "spikes"):
        assert np.array_equal(made[name][1], made["plain"][1])
        assert not np.array_equal(made[name][0], made["plain"][0])


@pytest.mark.parametrize(
    ("data", "spacing", "said"),
    [
        (np.zeros((8, 8, 8), np.float32), 10.0, "holds nothing above 0"),
        (-protein(), 10.0, "holds nothing above 0"),
        (np.full((8, 8, 8), np.nan, np.float32), 10.0, "finite"),
        (np.where(protein() > 0.9, np.nan, protein()), 10.0, "1 voxels of slice 4 are NaN"),
        (protein(), 0.0, "has no voxel spacing"),
        (protein(), (10.0, 10.0, 12.0), "has voxels of 10 to 12 Å: expected cubes"),
        (np.zeros((2, 2, 600), np.int8), 10.0, "2 x 2 x 600 voxels: expected the map of a protein"),
        (protein(), 200.0, "is 1800 Å long: expected the map of a protein"),
    ],
)
@pytest.mark.parametrize("option", ["--proteins", "--membrane-proteins"])
@pytest.mark.filterwarnings("ignore:Data array contains NaN")
def test_unfit_maps_are_refused_before_anything_is_made(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    data: np.ndarray,
    spacing: float | tuple[float, float, float],
    said: str,
    option: str,
) -> None:
    monkeypatch.delattr("etsam.simulate.hidden_folder")
    path = write(tmp_path / f"map{option}.mrc", data, spacing)
    code, out, err = run("simulate", tmp_path / "out", *SMALL, option, path)
    assert (code, out) == (1, "")
    assert_one_line(err, str(path), said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--segmentation-labels", "7"), "has no voxel labelled (7,)"),
        (("--segmentation-labels", "1,b"), "expected whole numbers, such as 1 or 1,2"),
        (("--segmentation-spacing", "0"), "is not plausible"),
    ],
)
def test_unfit_segmentations_are_refused(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, str],
    said: str,
) -> None:
    monkeypatch.delattr("etsam.simulate.hidden_folder")
    path = write(tmp_path / "labels.mrc", sheet())
    code, _, err = run("simulate", tmp_path / "out", *SMALL, "--segmentation", path, *words)
    assert code in (1, 2)
    assert_one_line(err, said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spacing", "said"), [(0.0, "says no voxel spacing"), ((10.0, 10.0, 12.0), "are no cubes")]
)
def test_segmentations_need_one_spacing(
    run: Run, tmp_path: Path, spacing: float | tuple[float, float, float], said: str
) -> None:
    path = write(tmp_path / "labels.mrc", sheet(), spacing)
    code, _, err = run("simulate", tmp_path / "out", *SMALL, "--segmentation", path)
    assert code == 1
    assert_one_line(err, str(path), said)


def older(folder: Path) -> None:
    """Let what is there be of another version."""
    for path in folder.glob("*.json"):
        made = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(made | {"etsam": "0.0.1"}), encoding="utf-8")


@pytest.mark.parametrize("workers", [1, 2])
def test_what_workers_warn_of_is_told_once(tmp_path: Path, workers: int) -> None:
    made = simulate_many(tmp_path, range(3), (16, 48, 48), workers)
    older(tmp_path)
    with pytest.warns(UserWarning, match=r"was made by etsam 0\.0\.1") as told:
        assert simulate_many(tmp_path, range(3), (16, 48, 48), workers) == made
    assert len(told) == 1


def test_a_worker_that_is_killed_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise WorkerKilledError("gone")

    monkeypatch.setattr("etsam.simulate.in_order", killed)
    code, out, err = run("simulate", tmp_path, *SMALL)
    assert (code, out) == (1, "")
    assert_one_line(err, "fewer --workers")

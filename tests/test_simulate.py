"""The verb: reproducible pairs on disk, presets, the held-out suite."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from scipy import ndimage

from etsam import __version__
from etsam.simulate import quantised, simulate, simulate_many, simulate_one
from etsam.simulation import suite
from etsam.simulation.recipe import PRESETS, SimulationOptions
from etsam.simulation.segmentations import RealShape, read_segmentation
from etsam.simulation.suite import FIRST_HELD_OUT_SEED, held_out_suite
from file_limit import file_limit
from test_cli import assert_one_line

SHAPE = (16, 64, 64)


def test_same_seed_same_tomogram_other_seed_another() -> None:
    first, again, other = (simulate(seed, SHAPE) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first.mask, again.mask)
    np.testing.assert_allclose(first.tomogram, again.tomogram, atol=1e-5)
    assert not np.array_equal(first.tomogram, other.tomogram)


@pytest.mark.parametrize("preset", PRESETS[1:])
def test_presets(preset: str) -> None:
    made = simulate(7, SHAPE, SimulationOptions(preset=preset, voxel_spacing=12.0))
    assert made.tomogram.shape == made.mask.shape == SHAPE
    assert made.tomogram.dtype == np.float32 and made.mask.dtype == np.int8
    assert np.isfinite(made.tomogram).all()
    assert made.tomogram.std() == pytest.approx(1.0, abs=0.01)
    assert set(np.unique(made.mask)) <= {-1, 0, 1}
    assert made.voxel_spacing == 12.0
    assert preset != "empty" or not made.mask.any()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_whole_organelle_is_closed_and_nearly_as_deep_as_the_volume(seed: int) -> None:
    depth = 48
    options = SimulationOptions(preset="empty", voxel_spacing=12.0, whole=1, lean=90.0)
    membrane = simulate(seed, (depth, 96, 96), options).mask == 1
    slices = np.flatnonzero(membrane.any(axis=(1, 2)))
    assert slices[-1] - slices[0] > 0.5 * depth
    area = membrane.sum(axis=(1, 2))[slices[0] : slices[-1] + 1]
    assert (area > 0).all(), "one wall from pole to pole"
    assert not simulate(seed, (depth, 96, 96), replace(options, whole=0)).mask.any()


@pytest.mark.parametrize(("radius", "seed"), [(160.0, 2), (300.0, 3)])
def test_vesicles_have_the_radii_asked_for(radius: float, seed: int) -> None:
    options = SimulationOptions(
        "empty", voxel_spacing=10.0, vesicles=12, radii=(radius, 1.05 * radius), lean=90.0
    )
    mask = simulate(seed, (80, 160, 160), options).mask == 1
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    sides = [
        [side.stop - side.start for side in box]
        for box in ndimage.find_objects(labels)
        if all(side.start > 0 and side.stop < n for side, n in zip(box, mask.shape, strict=True))
    ]
    assert 0 < len(sides) <= count <= 12
    wall = 5.5  # voxels; that of a label
    found = np.prod(np.array(sides) - wall, axis=1) ** (1 / 3) * 10.0 / 2
    np.testing.assert_allclose(found, radius, rtol=0.2)


@pytest.mark.parametrize("radii", [(300.0, 200.0), (10.0, 200.0), (200.0, np.nan), (200.0, 1e9)])
def test_radii_that_no_vesicle_has_are_refused(radii: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="smallest and a largest radius"):
        SimulationOptions(radii=radii)


def test_bright_membranes_are_dark_ones_inverted() -> None:
    dark, bright = (
        simulate(3, SHAPE, SimulationOptions("vesicles", 10.0, 2.0, is_bright))
        for is_bright in (False, True)
    )
    np.testing.assert_allclose(dark.tomogram, -bright.tomogram, atol=1e-5)
    np.testing.assert_array_equal(dark.mask, bright.mask)


@pytest.mark.parametrize("axis", [0.0, 90.0])
def test_streaks_run_across_the_tilt_axis(axis: float) -> None:
    for seed in range(200):
        options = SimulationOptions(preset="empty", contrast_to_noise=0.3)
        made = simulate(seed, SHAPE, options) if _axis(seed, options) == axis else None
        if made is not None:
            break
    assert made is not None
    power = (np.abs(np.fft.fft2(made.tomogram)) ** 2).mean(axis=0)
    missing, full = (power[2:20, 0], power[0, 2:20])
    ratio = missing.mean() / full.mean()
    assert ratio < 0.7 if axis == 0.0 else ratio > 1.4


def _axis(seed: int, options: SimulationOptions) -> float:
    from etsam.simulation.recipe import draw

    return draw(np.random.default_rng(seed), options).tilt.axis_angle


def test_pairs_are_written_whole_and_kept(tmp_path: Path) -> None:
    written = simulate_many(tmp_path, [1, 2], SHAPE)
    assert [path.name for path in written] == ["sim_000001.mrc", "sim_000002.mrc"]
    assert not list(tmp_path.glob("*.partial"))
    with (
        mrcfile.open(written[0]) as volume,
        mrcfile.open(tmp_path / "sim_000001_membrane.mrc") as m,
    ):
        assert volume.data.dtype == m.data.dtype == np.int8
        assert volume.data.shape == SHAPE
        parameters = json.loads((tmp_path / "sim_000001.json").read_text())
        assert volume.voxel_size.x == pytest.approx(parameters["voxel_spacing"], abs=1e-3)
        assert 15 < volume.data.std() < 80
    before = written[0].stat().st_mtime_ns
    simulate_one(tmp_path, 1, SHAPE)
    assert written[0].stat().st_mtime_ns == before


@pytest.mark.parametrize("lost", ["", "_membrane"])
def test_what_is_missing_of_a_pair_is_made_again(tmp_path: Path, lost: str) -> None:
    simulate_one(tmp_path, 1, SHAPE)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / f"sim_000001{lost}.mrc").unlink()
    simulate_one(tmp_path, 1, SHAPE)
    assert {path.name for path in tmp_path.iterdir()} == set(files)
    for name, before in files.items():  # but for the date in a header's label
        assert (tmp_path / name).read_bytes()[1024:] == before[1024:]


def test_pairs_of_another_version_are_kept_and_told(tmp_path: Path) -> None:
    path = simulate_one(tmp_path, 1, SHAPE)
    record = path.with_suffix(".json")
    known = json.loads(record.read_text())
    assert known["etsam"] == __version__
    simulate_one(tmp_path, 1, SHAPE)
    before = path.stat().st_mtime_ns
    for version, said in (("0.0.9", "made by etsam 0.0.9, this is"), (None, "unknown version")):
        other = known | {"etsam": version} if version else {k: known[k] for k in [*known][1:]}
        record.write_text(json.dumps(other))
        with pytest.warns(UserWarning, match=said):
            simulate_one(tmp_path, 1, SHAPE)
    assert path.stat().st_mtime_ns == before


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize(
    ("share", "reached"), [(1.0, 2.0), (0.25, 0.5), (-0.55, -1.1), (None, None)]
)
def test_contrast_that_is_not_reached_is_recorded_and_told(
    tmp_path: Path,
    run: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
    share: float | None,
    reached: float | None,
) -> None:
    monkeypatch.setattr(
        "etsam.simulation.render.membrane_contrast", lambda signal, *_: (float(signal.std()), share)
    )
    small = ("simulate", tmp_path, "--shape", "16,48,48", "--preset", "empty")
    code, _, err = run(*small, "--contrast-to-noise", 2)
    made = json.loads((tmp_path / "sim_000000.json").read_text())
    assert code == 0
    assert (made["contrast_to_noise"], made["contrast_to_noise_reached"]) == (2, reached)
    told = f"less than 2 in 1 of 1 tomograms, down to {reached} in sim_000000.mrc"
    assert err.count("\n") == (told in err) == (reached in (0.5, -1.1))
    assert run(*small, "--seeds", 1)[2] == ""  # whoever leaves it to chance misses nothing


def test_command_line(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    threads = torch.get_num_threads()
    code, out, _ = run(
        "simulate", tmp_path, "--seeds", "3", "--shape", "16,48,48", "--preset", "empty"
    )
    assert code == 0
    assert (tmp_path / "sim_000003.mrc").is_file()
    assert out.strip() == str(tmp_path / "sim_000003.mrc")
    assert torch.get_num_threads() == threads


def test_what_is_there_of_another_kind_is_refused_and_replaced(
    tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    asked = ("simulate", tmp_path, "--preset", "empty", "--shape")
    path = tmp_path / "sim_000000.mrc"
    assert run(*asked, "16,48,48")[0] == 0
    before = path.read_bytes()
    assert run(*asked, "16,48,48")[:2] == (0, f"{path}\n")
    for other in (["16,48,64"], ["16,48,48", "--voxel-spacing", 12]):
        code, out, err = run(*asked, *other)
        assert (code, out) == (1, "")
        assert_one_line(err, str(path), "--overwrite")
        assert path.read_bytes() == before
    assert run(*asked, "16,48,64", "--overwrite")[0] == 0
    with mrcfile.open(path) as volume:
        assert volume.data.shape == (16, 48, 64)
    record = path.with_suffix(".json")
    record.write_text(record.read_text().replace('"lean"', '"leaning"'))
    with pytest.raises(FileExistsError, match="other options"):
        simulate_one(tmp_path, 0, (16, 48, 64), SimulationOptions(preset="empty"))


def test_options_that_came_later_do_not_count_against_what_is_there(tmp_path: Path) -> None:
    path = simulate_one(tmp_path, 0, (16, 48, 48))
    record = path.with_suffix(".json")
    made = json.loads(record.read_text())
    del made["given"]["gold"], made["given"]["lean"]
    record.write_text(json.dumps(made))
    assert simulate_one(tmp_path, 0, (16, 48, 48)) == path


@pytest.mark.parametrize("size", [500, 40_000])
def test_a_full_disk_leaves_nothing_partial(tmp_path: Path, size: int) -> None:
    """The limit holds the record or not, and the volumes never."""
    with file_limit(size), pytest.raises(OSError, match="too large") as caught:
        simulate_one(tmp_path, 0, (16, 64, 64))
    assert caught.value.filename == str(tmp_path / "sim_000000.mrc")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ("--seeds", "3:1"),
        ("--seeds", "0:0"),
        ("--seeds", "²"),
        ("--seeds", "0:99999999999999999999"),
        ("--seeds", "99999999999999999999"),
        ("--seeds", "9" * 5000),
        ("--voxel-spacing", "0"),
        ("--voxel-spacing", "-10"),
        ("--voxel-spacing", "nan"),
        ("--voxel-spacing", "1000"),
        ("--contrast-to-noise", "0"),
        ("--contrast-to-noise", "inf"),
        ("--contrast-to-noise", "-1"),
        ("--contrast-to-noise", "1e9"),
        ("--views", "1000000"),
        ("--shape", "1000000,64,64"),
        ("--shape", "8,8,8"),
        ("--suite", "--seeds", "0:3"),
        ("--suite", "--bright"),
        ("--suite", "--workers", "2"),
        ("--suite", "--dtype", "float32"),
        ("--spikes", "nan"),
        ("--spikes", "-1"),
        ("--segmentation-labels", "2"),
        ("--proteins", "nowhere.mrc"),
    ],
)
def test_nonsense_is_one_line(
    tmp_path: Path, run: Callable[..., tuple[int, str, str]], words: tuple[str, ...]
) -> None:
    code, out, err = run("simulate", tmp_path / "out", *words)
    assert code in (1, 2) and out == ""
    assert_one_line(err)
    assert not list(tmp_path.rglob("*.mrc"))


def test_memory_that_is_used_up_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def render(*_: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes")

    monkeypatch.setattr("etsam.simulate.render", render)
    with pytest.raises(MemoryError, match="fewer --views"):
        simulate(0, SHAPE)


def test_quantised_uses_the_whole_range() -> None:
    values = quantised(
        np.random.default_rng(0).normal(size=(8, 64, 64)).astype(np.float32), (1, 99)
    )
    assert values.min() == -127 and values.max() == 127
    assert abs(float(values.mean())) < 5


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 16"):
        simulate(0, (8, 64, 64))
    with pytest.raises(ValueError, match="unknown preset"):
        simulate(0, SHAPE, SimulationOptions(preset="mitochondrion"))


def test_the_suite_is_held_out() -> None:
    suite = held_out_suite()
    assert len(suite) >= 12
    assert (
        len({entry.name for entry in suite}) == len({entry.seed for entry in suite}) == len(suite)
    )
    assert min(entry.seed for entry in suite) >= FIRST_HELD_OUT_SEED
    with pytest.raises(FileNotFoundError, match="missing"):
        held_out_suite(Path("nowhere"))


def test_real_shapes_keep_their_place(tmp_path: Path) -> None:
    labels = np.zeros((24, 60, 60), np.int8)
    labels[:, 28:32] = 1  # an upright wall, 4 voxels of 10 Å
    path = tmp_path / "wall.npz"
    np.savez(path, labels=labels)
    shape = RealShape(str(path), 10.0)
    options = SimulationOptions(
        preset="empty", voxel_spacing=10.0, views=41, bright_membranes=False, shapes=(shape,)
    )
    made = simulate(2, (20, 64, 64), options)
    assert 0.03 < float((made.mask == 1).mean()) < 0.2
    rows = np.abs(np.argwhere(made.mask == 1)[:, 1:] - 32)
    assert np.median(rows.min(axis=1)) <= 6
    with pytest.raises(ValueError, match="no voxel labelled"):
        read_segmentation(RealShape(str(path), 10.0, (5,)))
    with mrcfile.new(tmp_path / "wall.mrc") as file:
        file.set_data(labels)
    found = read_segmentation(RealShape(str(tmp_path / "wall.mrc"), 10.0))
    np.testing.assert_array_equal(found, labels == 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"other": np.ones((4, 4, 4))}, "is no segmentation: expected a NumPy .npz file"),
        (b"garbage", "is no segmentation: expected a NumPy .npz file with an array `labels`"),
        (b"", "is no segmentation: expected a NumPy .npz file"),
        ({"labels": np.ones((4, 4))}, "float64 of shape (4, 4), expected numbers (Z, Y, X)"),
        ({"labels": np.full((2, 2, 2), "a")}, "<U1 of shape (2, 2, 2), expected numbers"),
        ({"labels": np.zeros((4, 4, 4), np.int8)}, "has no voxel labelled (1, 2)"),
    ],
)
def test_bad_segmentations_are_named_before_anything_is_made(
    tmp_path: Path,
    run: Callable[..., tuple[int, str, str]],
    content: bytes | dict[str, np.ndarray],
    said: str,
) -> None:
    shapes = tmp_path / "shapes"
    shapes.mkdir()
    for entry in (row[2] for row in suite._REAL):
        path = shapes / entry
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            np.savez(path, **content)  # type: ignore[arg-type]
    code, out, err = run("simulate", tmp_path / "suite", "--suite", "--shapes", shapes)
    assert (code, out) == (1, "")
    assert_one_line(err, str(shapes / "midsurfer_Fig11_mito.npz"), said)
    assert not (tmp_path / "suite").exists()


@pytest.mark.parametrize(
    ("record", "place", "value"),
    [
        (b"PK\1\2", 8, 1),  # its list of contents says that it is encrypted,
        (b"PK\1\2", 8, 32),  # patched,
        (b"PK\1\2", 10, 77),  # packed in an unknown way,
        (b"PK\1\2", 45, 77),  # or elsewhere;
        (b"PK\5\6", 18, 77),  # its end, that the list is far beyond it
    ],
)
def test_damaged_archives_are_named(tmp_path: Path, record: bytes, place: int, value: int) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, labels=np.ones((4, 4, 4)))
    content = bytearray(path.read_bytes())
    content[content.rindex(record) + place] = value
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz is no segmentation: expected a NumPy"):
        read_segmentation(RealShape(str(path), 10.0))


def test_what_the_system_says_of_an_archive_stays(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_segmentation(RealShape(str(tmp_path / "a.npz"), 10.0))
    (tmp_path / "a.npz").mkdir()
    with pytest.raises(OSError, match="directory|denied"):
        read_segmentation(RealShape(str(tmp_path / "a.npz"), 10.0))


@pytest.mark.parametrize("spacing", [0.0, -10.0, np.nan, np.inf, 1e4])
def test_segmentations_have_a_spacing(spacing: float) -> None:
    with pytest.raises(ValueError, match="is not plausible"):
        RealShape("a.npz", spacing)


def test_suite_with_real_segmentations(shared: Path) -> None:
    entries = held_out_suite(shared / "masks")
    real = [entry for entry in entries if entry.options.shapes]
    assert len(real) == 4
    made = simulate(real[-1].seed, (24, 96, 96), real[-1].options)
    assert (made.mask == 1).mean() > 0.01

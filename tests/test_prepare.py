"""Pairs laid out by `etsam prepare`, from every layout, and read by those who come after."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from conftest import Run
from etsam.annotations import CleaningOptions
from etsam.dataset import find_pairs
from etsam.intensity import measure_intensity
from etsam.layout import Annotated, find_annotated, find_inputs
from etsam.pairing import find_pairings
from etsam.prepare import PrepareOptions, prepare
from etsam.tables import read_choices
from etsam.verify import overlays, verify
from etsam.volume import OutputType, create_volume, open_tomogram, tomogram_from_array

SHAPE = (10, 16, 18)
GREY = np.random.default_rng(1).normal(5, 3, SHAPE).astype(np.float32)
LABELS = np.zeros(SHAPE, np.int8)
LABELS[2:8, 4:6] = 1
LABELS[5, 12, 12] = 1
LABELS[0, 0] = -1


def write_mrc(path: Path, data: np.ndarray, *, start: int = 0, spacing: float = 9.5) -> Path:
    """An MRC file with a geometry that is easily lost."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(data)
        file.voxel_size = spacing
        file.header.origin = (100.0, -20.0, 3.5)
        file.nstart = start
        file.header.ispg = 1
    return path


def write_zarr(path: Path, data: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    like = tomogram_from_array(data, voxel_spacing=10.0)
    kind = "int8" if data.dtype == np.int8 else "float32"
    with create_volume(path, like, dtype=kind, label="test") as writer:
        for z, plane in enumerate(data):
            writer.write_slice(z, plane)
    return path


def read(path: Path) -> np.ndarray:
    with open_tomogram(path) as volume:
        return volume.read_slices(0, volume.shape[0])


@pytest.fixture
def pair(tmp_path: Path) -> Annotated:
    tomogram = write_mrc(tmp_path / "in" / "TS_1_10.00Apx.mrc", GREY, start=-7)
    mask = write_mrc(tmp_path / "in" / "TS_1_10.00Apx_membrane.mrc", LABELS, start=-7)
    return Annotated("TS_1_10.00Apx", tomogram, (mask,))


def test_a_pair_keeps_bytes_and_geometry(pair: Annotated, tmp_path: Path) -> None:
    done = prepare(pair, tmp_path / "out")
    assert done.mask is not None
    assert done.tomogram.read_bytes() == pair.tomogram.read_bytes()
    assert done.mask.name == "TS_1_10.00Apx_membrane.mrc"
    np.testing.assert_array_equal(read(done.mask), LABELS)
    compared = verify(pair.tomogram, done.mask)
    assert overlays(compared)
    assert all(item.same for item in compared)
    with mrcfile.open(done.mask) as file:
        assert file.header.mode == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "TS_1_10.00Apx.mrc",
        "TS_1_10.00Apx_membrane.mrc",
        "TS_1_10.00Apx_prepared.json",
    ]


def test_a_mask_gets_the_place_of_its_tomogram(pair: Annotated, tmp_path: Path) -> None:
    write_mrc(pair.masks[0], LABELS, start=3)
    with mrcfile.mmap(pair.masks[0], "r+") as file:
        file.header.origin = (0.0, 0.0, 0.0)
    with pytest.warns(UserWarning, match="other origins: laid voxel on voxel"):
        done = prepare(pair, tmp_path / "out")
    assert done.mask is not None
    assert all(item.same for item in verify(pair.tomogram, done.mask))
    write_mrc(pair.masks[0], LABELS, spacing=12.0)
    with pytest.warns(UserWarning, match=r"9\.5x9\.5x9\.5 and 12x12x12 Å"):
        prepare(pair, tmp_path / "other")


def test_cleaning_and_components_reach_the_files(pair: Annotated, tmp_path: Path) -> None:
    options = PrepareOptions(CleaningOptions(min_voxels=5), components=True)
    done = prepare(pair, tmp_path / "out", options)
    assert done.mask is not None
    assert done.components is not None
    expected = LABELS.copy()
    expected[5, 12, 12] = 0
    np.testing.assert_array_equal(read(done.mask), expected)
    assert np.unique(read(done.components)).tolist() == [0, 1, 2]
    found = json.loads(done.record.read_text())["results"]
    assert (found["components_found"], found["components_kept"]) == (2, 1)
    assert found["components"][1] == {"number": 2, "voxels": 1, "slices": [5, 5], "kept": False}


@pytest.mark.parametrize("method", ["min_max", "robust", "softplus_minmax"])
def test_normalised_tomograms_are_scaled_as_the_network_scales(
    pair: Annotated, tmp_path: Path, method: str
) -> None:
    done = prepare(pair, tmp_path / "out", PrepareOptions(normalise=method))
    with open_tomogram(pair.tomogram) as volume:
        scaling = measure_intensity(volume, method)
        expected = scaling.apply_to_array(volume.read_slices(0, SHAPE[0]))
    np.testing.assert_array_equal(read(done.tomogram), expected)
    assert all(item.same for item in verify(pair.tomogram, done.tomogram))


def test_numpy_and_torch_scale_alike() -> None:
    torch = pytest.importorskip("torch")
    volume = tomogram_from_array(GREY * 20)
    for method in ("min_max_positive_values", "softplus_minmax", "min_max", "robust"):
        for invert in (False, True):
            scaling = measure_intensity(volume, method, invert=invert)
            by_torch = scaling.apply(torch.from_numpy(GREY * 20)).numpy()
            np.testing.assert_allclose(scaling.apply_to_array(GREY * 20), by_torch, atol=1e-6)


def test_links_and_zarr(pair: Annotated, tmp_path: Path) -> None:
    done = prepare(pair, tmp_path / "out", PrepareOptions(link=True))
    assert done.tomogram.is_symlink()
    assert done.tomogram.resolve() == pair.tomogram.resolve()
    again = prepare(
        pair, tmp_path / "out", PrepareOptions(overwrite=True)
    )  # the link goes, not the file
    assert not again.tomogram.is_symlink()
    assert pair.tomogram.stat().st_size == again.tomogram.stat().st_size
    tomogram = write_zarr(tmp_path / "z" / "a.zarr", GREY)
    mask = write_zarr(tmp_path / "z" / "a_membrane.zarr", LABELS)
    for options in (PrepareOptions(), PrepareOptions(overwrite=True)):
        done = prepare(Annotated("a", tomogram, (mask,)), tmp_path / "out", options)
        assert (done.tomogram.name, done.mask and done.mask.name) == ("a.zarr", "a_membrane.zarr")
        np.testing.assert_array_equal(read(done.tomogram), GREY)


def test_resume_redoes_what_was_asked_otherwise_or_changed(pair: Annotated, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(pair, out)
    with pytest.raises(FileExistsError, match="give --resume, --overwrite"):
        prepare(pair, out)
    assert prepare(pair, out, PrepareOptions(resume=True)).reused
    smaller = PrepareOptions(CleaningOptions(min_voxels=5), resume=True)
    assert not prepare(pair, out, smaller).reused
    assert prepare(pair, out, smaller).reused
    (out / "TS_1_10.00Apx_membrane.mrc").unlink()
    assert not prepare(pair, out, smaller).reused
    write_mrc(pair.masks[0], LABELS * 0, start=-7)
    done = prepare(pair, out, smaller)
    assert not done.reused
    assert done.details["results"]["voxels_before"] == 0


def test_a_failure_leaves_no_record_and_no_half_file(
    pair: Annotated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("full")

    write_mrc(pair.masks[0], LABELS * np.float32(0.5))
    with pytest.raises(ValueError, match="is no annotation"):
        prepare(pair, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write_mrc(pair.masks[0], LABELS, start=-7)
    with monkeypatch.context() as patched, pytest.raises(OSError, match="full"):
        patched.setattr("etsam.prepare._write_masks", full)
        prepare(pair, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    write_mrc(pair.masks[0], LABELS[:5])
    with pytest.raises(ValueError, match="must lie on one grid"):
        prepare(pair, tmp_path / "out")


def test_earlier_components_go_where_none_are_asked_for(pair: Annotated, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(pair, out, PrepareOptions(components=True))
    bad = PrepareOptions(CleaningOptions(keep=(9,)), overwrite=True)
    with pytest.raises(ValueError, match="no component 9"):
        prepare(pair, out, bad)
    assert len(list(out.iterdir())) == 4  # what was there stays as it was
    prepare(pair, out, PrepareOptions(overwrite=True))
    own = out / "TS_1_10.00Apx_components.mrc"
    assert not own.exists()
    write_mrc(own, LABELS)  # not of the run before
    prepare(pair, out, PrepareOptions(overwrite=True))
    assert own.exists()


def test_inputs_are_never_replaced(pair: Annotated) -> None:
    before = pair.tomogram.read_bytes(), pair.masks[0].read_bytes()
    with pytest.raises(ValueError, match="is the tomogram itself"):
        prepare(pair, pair.tomogram.parent, PrepareOptions(overwrite=True))
    assert (pair.tomogram.read_bytes(), pair.masks[0].read_bytes()) == before


def test_runs_as_fetched_and_as_the_portal_has_them(tmp_path: Path) -> None:
    write_mrc(tmp_path / "10000/245/tomogram/TS_026.mrc", GREY)
    write_mrc(tmp_path / "10000/245/target_mask/truth.mrc", LABELS)
    write_mrc(tmp_path / "10160/8354/tomogram/x.mrc", GREY)
    portal = tmp_path / "10001/TS_1/Reconstructions/VoxelSpacing9.500"
    write_mrc(portal / "Tomograms/100/TS_1.mrc", GREY)
    for number, part in ((7, slice(0, 5)), (8, slice(5, 10))):
        mask = LABELS.copy()
        mask[part] = 0
        write_mrc(portal / f"Annotations/{number}/membrane-1.0_segmentationmask.mrc", mask)
    found = find_annotated(tmp_path)
    assert {item.name: len(item.masks) for item in found} == {
        "10001_TS_1": 2,
        "10000_245": 1,
        "10160_8354": 0,
    }
    with pytest.raises(ValueError, match="merge them with `etsam prepare`"):
        find_pairs(tmp_path)
    for item in found:
        done = prepare(item, tmp_path / "out")
        assert (done.mask is None) == (not item.masks)
        assert [done.details["dataset"], done.details["run"]] == item.name.split("_", 1)
        assert prepare(item, tmp_path / "out", PrepareOptions(resume=True)).reused
    joined = read(tmp_path / "out" / "10001_TS_1_membrane.mrc")
    np.testing.assert_array_equal(joined == 1, LABELS == 1)
    pairs = find_pairs(tmp_path / "out")
    assert [tomogram.name for tomogram, _ in pairs] == ["10000_245.mrc", "10001_TS_1.mrc"]
    shutil.rmtree(tmp_path / "10001")
    assert len(find_pairs(tmp_path)) == 1  # what was fetched can be trained on as it is


def test_a_tilt_series_is_not_taken_for_the_tomogram(pair: Annotated) -> None:
    shutil.copy(pair.tomogram, pair.tomogram.with_suffix(".ali"))
    assert find_annotated(pair.tomogram.parent) == [pair]


def test_evaluate_finds_the_truth_of_a_prediction(pair: Annotated, tmp_path: Path) -> None:
    prepare(pair, tmp_path / "out", PrepareOptions(components=True))
    masks = tmp_path / "masks"
    write_mrc(masks / "TS_1_10.00Apx_membrane.mrc", np.maximum(LABELS, 0))
    (found,) = find_pairings([masks], [tmp_path / "out"])
    assert found.run == "TS_1_10.00Apx"
    assert found.truth == tmp_path / "out" / "TS_1_10.00Apx_membrane.mrc"


def test_inputs_that_do_not_tell_are_refused(pair: Annotated, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name its mask with --annotation"):
        find_inputs([pair.tomogram])
    with pytest.raises(FileNotFoundError, match="nowhere does not exist: give folders"):
        find_inputs([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no tomogram with a mask"):
        find_inputs([tmp_path / "empty"])
    shutil.copytree(tmp_path / "in", tmp_path / "copy")
    with pytest.raises(ValueError, match="would both be called TS_1_10.00Apx"):
        find_inputs([tmp_path / "in", tmp_path / "copy"])
    with pytest.raises(ValueError, match="--annotation is of one tomogram"):
        find_inputs([pair.tomogram, tmp_path / "b.mrc"], (pair.masks[0],))
    assert find_inputs([pair.tomogram], pair.masks) == [pair]


def test_command(pair: Annotated, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    limit = np.zeros(SHAPE, np.int8)
    limit[:6] = 1
    write_mrc(tmp_path / "limits" / "TS_1_10.00Apx_limit.mrc", limit, start=-7)
    args = ["prepare", pair.tomogram.parent, "-o", out, "--limit", tmp_path / "limits"]
    code, text, err = run(*args, "--outside", "ignore", "--box", ":,2:,:", "--components")
    assert code == 0
    assert [Path(line).name for line in text.splitlines()] == [
        "TS_1_10.00Apx.mrc",
        "TS_1_10.00Apx_membrane.mrc",
        "TS_1_10.00Apx_components.mrc",
    ]
    assert "2 of 2 components kept" in err
    inside = limit.astype(bool)
    inside[:, :2] = False
    np.testing.assert_array_equal(
        read(out / "TS_1_10.00Apx_membrane.mrc"), np.where(inside, LABELS, -1)
    )
    code, text, _ = run(*args, "--drop", "2", "--overwrite", "--json")
    assert (code, json.loads(text)["results"]["components_kept"]) == (0, 1)


@pytest.mark.filterwarnings("always:no voxel of")
def test_labels_that_no_voxel_has_are_told_once(pair: Annotated, tmp_path: Path, run: Run) -> None:
    args = ("prepare", pair.tomogram.parent, "-o", tmp_path / "out", "--values", "7")
    code, _, err = run(*args)
    assert code == 0
    (warning,) = [line for line in err.splitlines() if "warning" in line]
    assert "is labelled 7, as asked for" in warning


def test_choices_say_it_for_several(pair: Annotated, tmp_path: Path, run: Run) -> None:
    folder = pair.tomogram.parent
    shutil.copy(pair.tomogram, folder / "b.mrc")
    shutil.copy(pair.masks[0], folder / "b_membrane.mrc")
    table = tmp_path / "choices.csv"
    table.write_text("name,keep,drop\nb,2,\nTS_1_10.00Apx,,2\n")
    assert read_choices(table) == {"b": ((2,), ()), "TS_1_10.00Apx": ((), (2,))}
    code, _, _ = run("prepare", folder, "-o", tmp_path / "out", "--choices", table)
    assert code == 0
    assert (read(tmp_path / "out" / "b_membrane.mrc") == 1).sum() == 1
    assert (read(tmp_path / "out" / "TS_1_10.00Apx_membrane.mrc") == 1).sum() == 6 * 2 * 18
    table.write_text("name,keep,drop,\nb,2,,\n")  # as a spreadsheet with an empty column writes it
    assert read_choices(table) == {"b": ((2,), ())}
    table.write_text("name,keep\nb,x\n")
    with pytest.raises(ValueError, match="row 1: expected columns name, keep, drop"):
        read_choices(table)
    for text, words in (
        (b"name,keep\nb,1\nc,1\nb,2\n", "row 3: b is named twice"),
        (b"name,keep\nb," + b"1 " * 100_000, "choices.csv is not a CSV table .*: save it as CSV"),
        (b"name,keep\n\xe9,1\n", "choices.csv is not a CSV table .*: save it as CSV in UTF-8"),
        (b"name, keep, drop\nb,1,\n", "row 1: expected columns name, keep, drop"),
        (b"name,keep\n", "choices.csv names no tomogram"),
        (b"name,kep,drop\nb,1,2\n", "choices.csv has a column 'kep': expected columns name, keep"),
    ):
        table.write_bytes(text)
        with pytest.raises(ValueError, match=words):
            read_choices(table)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--box", "1:2,3:4"], "--box is '1:2,3:4': expected Z:Z,Y:Y,X:X"),
        (["--box", "5:2,:,:"], "the box 5:2,:,: leaves nothing of 10 x 16 x 18 voxels"),
        (["--keep", "a"], "--keep is 'a': expected numbers"),
        (["--keep", "9" * 5000], "--keep is '999"),
        (["--values", "9" * 5000], "...': expected numbers from 1 on"),
        (["--box", f":,:,0:{'9' * 5000}"], "--box is ':,:,0:999"),
        (["--keep", "9"], "no component 9: there are 2"),
        (["--link", "--normalise", "min_max"], "give --link or --normalise"),
        (["--link", "--voxel-spacing", "10"], "give --link or --voxel-spacing"),
        (["--resume", "--overwrite"], "give one"),
        (["--limit", "nowhere.mrc"], "nowhere.mrc does not exist"),
        (["--choices", "nowhere.csv"], "nowhere.csv does not exist"),
        (["--choices", os.devnull], f"{os.devnull} names no tomogram"),
    ],
)
def test_command_refuses_in_one_line(
    pair: Annotated, tmp_path: Path, run: Run, args: list[str], words: str
) -> None:
    code, out, err = run("prepare", pair.tomogram.parent, "-o", tmp_path / "out", *args)
    assert code != 0
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("etsam: error")]
    assert len(lines) == 1
    assert words in lines[0] and len(lines[0]) < 300


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("kind", ["int8", "int16", "float32"])
def test_a_level_and_a_zarr_without_suffix_become_zarr(
    tmp_path: Path, version: str, kind: OutputType
) -> None:
    data = np.round(GREY * 5).astype(kind)
    with (
        open_tomogram(write_mrc(tmp_path / "like.mrc", data, spacing=12.5)) as like,
        create_volume(
            tmp_path / "t.zarr", like, dtype=kind, label="", ngff_version=version
        ) as writer,
    ):
        for z, plane in enumerate(data):
            writer.write_slice(z, plane)
    shutil.copytree(tmp_path / "t.zarr", tmp_path / "bare")
    mask = write_zarr(tmp_path / "m.zarr", LABELS)
    for source, name in (("t.zarr/0", "t"), ("bare", "bare"), ("bare/0", "0")):
        (pair,) = find_inputs([tmp_path / source], (mask / "0",))
        for link in (False, True):
            options = PrepareOptions(link=link, overwrite=True)
            with warnings.catch_warnings(action="ignore"):  # the mask lies elsewhere
                done = prepare(pair, tmp_path / "out", options)
            assert {path.name for path in done.volumes()} == {
                f"{name}.zarr",
                f"{name}_membrane.zarr",
            }
            with open_tomogram(done.tomogram) as volume:
                assert volume.dtype == kind
                np.testing.assert_array_equal(volume.read_slices(0, SHAPE[0]), data)
                assert volume.voxel_spacing == pytest.approx((12.5,) * 3)
                assert volume.origin == pytest.approx((3.5, -20.0, 100.0))
    assert len(find_pairs(tmp_path / "out")) == 3

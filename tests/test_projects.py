"""copick projects and portal runs: which tomograms they hold, and where the masks go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest

from etsam.inputs import choose_masks, find_tomograms
from etsam.layout import portal_tomograms
from etsam.manifest import read_manifest
from etsam.projects import Member, copick_tomograms, select
from etsam.volume import create_volume, open_tomogram, tomogram_from_array
from test_cli import Run, assert_one_line, write_mrc
from tiny_model import write_tiny_model

SHAPE = (6, 24, 32)
FROM_FOLDER = pytest.mark.filterwarnings("ignore:voxel spacing:UserWarning")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


def volume(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def write_zarr(path: Path, data: np.ndarray, spacing: float | None = 10.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        tomogram_from_array(data, voxel_spacing=spacing) as like,
        create_volume(path, like, dtype="float32", label="x") as writer,
    ):
        for z, plane in enumerate(data):
            writer.write_slice(z, plane)
    return path


def config(path: Path, **fields: Any) -> Path:
    path.write_text(json.dumps({"config_type": "filesystem", "pickable_objects": [], **fields}))
    return path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Two runs with tomograms that may not be written to, and a third one in the overlay."""
    static = tmp_path / "static" / "ExperimentRuns"
    for seed, run in enumerate(("TS_1", "TS_2")):
        for kind in ("wbp", "denoised"):
            write_zarr(static / run / "VoxelSpacing10.000" / f"{kind}.zarr", volume(seed))
    write_zarr(static / "TS_1" / "VoxelSpacing10.000" / "wbp_cellcanvas_features.zarr", volume(0))
    write_zarr(static / ".hidden" / "VoxelSpacing10.000" / "wbp.zarr", volume(0))
    overlay = tmp_path / "overlay" / "ExperimentRuns"
    write_zarr(overlay / "TS_3" / "VoxelSpacing20.000" / "wbp.zarr", volume(3), None)
    write_zarr(overlay / "TS_1" / "VoxelSpacing10.000" / "wbp.zarr", volume(9))
    return config(
        tmp_path / "config.json",
        static_root=f"local://{tmp_path}/static/",
        overlay_root=f"local://{tmp_path}/overlay",
    )


def test_the_tomograms_of_a_copick_project(project: Path, tmp_path: Path) -> None:
    found = copick_tomograms(project)
    overlay = tmp_path / "overlay"
    assert list(found.values()) == [
        Member("TS_1", 10.0, "denoised", overlay),
        Member("TS_1", 10.0, "wbp", overlay),
        Member("TS_2", 10.0, "denoised", overlay),
        Member("TS_2", 10.0, "wbp", overlay),
        Member("TS_3", 20.0, "wbp", overlay),
    ]
    first = tmp_path / "static/ExperimentRuns/TS_1/VoxelSpacing10.000/wbp.zarr"
    assert first in found  # the overlay's tomogram of the same name comes second
    assert find_tomograms([project, first]) == found
    assert [m.run for m in copick_tomograms(overlay).values()] == ["TS_1", "TS_3"]
    (given,) = find_tomograms([first]).values()
    assert given == Member("TS_1", 10.0, "wbp", tmp_path / "static")


def test_a_selection_by_type_and_spacing(project: Path) -> None:
    found = find_tomograms([project])
    runs = {
        text: [found[path].run for path in select(found, text)]
        for text in ("wbp", "wbp@*", "wbp@10", "*@20.0", "den*@10.0009")
    }
    assert runs == {
        "wbp": ["TS_1", "TS_2", "TS_3"],
        "wbp@*": ["TS_1", "TS_2", "TS_3"],
        "wbp@10": ["TS_1", "TS_2"],
        "*@20.0": ["TS_3"],
        "den*@10.0009": ["TS_1", "TS_2"],
    }
    with pytest.raises(FileNotFoundError, match=r"denoised@10\.000, wbp@10\.000, wbp@20\.000"):
        select(found, "ctf@10")
    for wrong in ("", "@10", "wbp@", "wbp@ten", "wbp@nan", "wbp@-inf"):
        with pytest.raises(ValueError, match="TYPE@SPACING"):
            select(found, wrong)


@FROM_FOLDER
def test_masks_become_segmentations(run: Run, project: Path, model: Path, tmp_path: Path) -> None:
    args = ["segment", project, "--model", model, "--no-preview", "--polarity", "dark"]
    args += ["--device", "cpu", "--select", "wbp"]
    code, out, err = run(*args)
    assert (code, out) == (1, "")
    assert_one_line(err, "--copick", "--output")
    code, out, err = run(*args, "--copick", "--store-logits")
    assert code == 0, err
    runs = tmp_path / "overlay" / "ExperimentRuns"
    names = [f"{s}_etsam_wbp_membrane" for s in ("10.000", "10.000", "20.000")]
    places = [runs / f"TS_{n}" / "Segmentations" for n in (1, 2, 3)]
    assert out.split() == [str(p / f"{name}.zarr") for p, name in zip(places, names, strict=True)]
    for place, name in zip(places, names, strict=True):
        found = {path.name for path in place.iterdir()}
        assert found == {f"{name}.zarr", f"{name}-logits.zarr", f"{name}.json"}
    with open_tomogram(out.split()[2]) as mask:
        assert mask.voxel_spacing == (20.0,) * 3 and mask.dtype == np.int8
    entries = read_manifest(runs / "etsam_manifest.jsonl")
    assert [entry.state for entry in entries] == ["done"] * 3
    assert not list((tmp_path / "static").rglob("*membrane*"))
    code, _, err = run(*args, "--copick", "--store-logits", "--resume")
    assert code == 0 and "3 of 3 done (3 before)" in err
    assert len(find_tomograms([project])) == 5  # no mask counts as a tomogram


@FROM_FOLDER
def test_masks_of_a_project_in_one_folder_have_names_of_their_own(
    run: Run, project: Path, model: Path, tmp_path: Path
) -> None:
    args = ["segment", project, "--model", model, "--no-preview", "--polarity", "dark"]
    code, out, err = run(*args, "--device", "cpu", "-o", tmp_path / "out")
    assert code == 0, err
    assert sorted(Path(line).name for line in out.split()) == [
        "TS_1_10.000_denoised_membrane.zarr",
        "TS_1_10.000_wbp_membrane.zarr",
        "TS_2_10.000_denoised_membrane.zarr",
        "TS_2_10.000_wbp_membrane.zarr",
        "TS_3_20.000_wbp_membrane.zarr",
    ]
    assert run(*args, "--copick", "-o", tmp_path / "out")[0] == 2


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("{", "not valid JSON"),
        ("[]", "JSON object"),
        ('{"name": "x"}', "overlay_root"),
        ('{"config_type": "cryoet_data_portal", "overlay_root": "/tmp"}', "on a server"),
        ('{"overlay_root": "s3://bucket/path"}', "not a folder of this machine"),
        ('{"overlay_root": 7}', "not a folder of this machine"),
        ('{"overlay_root": ""}', "not a folder of this machine"),
        ('{"overlay_root": "local:///nowhere"}', "has no tomogram"),
    ],
)
def test_configs_that_say_nothing_are_one_line(
    run: Run, tmp_path: Path, content: str, part: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    for verb in (("segment",), ("inspect", "--no-timing")):
        code, out, err = run(*verb, path)
        assert (code, out) == (1, "")
        assert_one_line(err, "config.json", part)


@pytest.fixture
def portal(tmp_path: Path) -> Path:
    """Two runs of a dataset as the portal lays them out, one with MRC and Zarr of a tomogram."""
    dataset = tmp_path / "10000"
    for seed, run in enumerate(("TS_026", "TS_027")):
        folder = dataset / run / "Reconstructions" / "VoxelSpacing13.480" / "Tomograms" / "100"
        folder.mkdir(parents=True)
        write_mrc(folder / f"{run}.mrc", volume(seed), 1.0)
        (folder / "tomogram_metadata.json").write_text("{}")
    write_zarr(folder / "TS_027.zarr", volume(1))
    return dataset


@FROM_FOLDER
def test_runs_of_the_portal(run: Run, portal: Path, model: Path, tmp_path: Path) -> None:
    found = find_tomograms([portal])
    names = [path.name for path in found]
    assert names == ["TS_026.mrc", "TS_027.mrc"]
    assert [m.run for m in found.values()] == ["TS_026", "TS_027"]
    assert list(found) == portal_tomograms(tmp_path) == portal_tomograms(portal)
    assert find_tomograms([portal / "TS_026"]) == {path: found[path] for path in list(found)[:1]}
    assert choose_masks(found, None, copick=False) == {}  # beside the tomograms
    with pytest.raises(ValueError, match="not in a copick project"):
        choose_masks(found, None, copick=True)
    args = ["segment", portal, "--model", model, "--no-preview", "--polarity", "dark"]
    args += ["--device", "cpu"]
    code, out, err = run(*args, "-o", tmp_path / "masks")
    assert code == 0, err
    masks = [Path(line) for line in out.split()]
    assert [path.name for path in masks] == [
        "TS_026_13.480_100_membrane.mrc",
        "TS_027_13.480_100_membrane.mrc",
    ]
    with mrcfile.open(masks[0]) as mrc:  # the header said 1 Å, the folder 13.48
        assert mrc.voxel_size.x == pytest.approx(13.48, abs=1e-4)
    code, out, err = run(*args)
    assert code == 0, err
    assert [Path(line).parent.name for line in out.split()] == ["100", "100"]
    assert list(find_tomograms([portal])) == list(found)


def test_the_spacing_of_a_folder_counts_only_where_the_file_has_none(tmp_path: Path) -> None:
    folder = tmp_path / "VoxelSpacing13.480"
    folder.mkdir()
    for given, wanted in ((1.0, 13.48), (10.0, 10.0)):
        with open_tomogram(write_mrc(folder / f"{given}.mrc", volume(0), given)) as tomogram:
            assert tomogram.voxel_spacing == pytest.approx((wanted,) * 3)
            assert any("folder's name" in note for note in tomogram.notes) == (given == 1.0)
    with mrcfile.open(folder / "1.0.mrc", "r+") as mrc:
        mrc.header.nxstart = 100  # in voxels, of whatever size
    for asked, wanted in ((None, 13.48), (7.0, 7.0)):
        with open_tomogram(folder / "1.0.mrc", voxel_spacing=asked) as tomogram:
            assert tomogram.voxel_spacing == (wanted,) * 3
            assert tomogram.origin == pytest.approx((0, 0, 100 * wanted))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_copick_itself_makes_the_project_and_reads_the_masks(
    run: Run, model: Path, tmp_path: Path
) -> None:
    copick = pytest.importorskip("copick")
    membrane = {"name": "membrane", "is_particle": False, "label": 1}
    path = config(
        tmp_path / "copick.json",
        name="test",
        version="1.0.0",
        pickable_objects=[membrane],
        overlay_root=f"local://{tmp_path}/project",
        overlay_fs_args={"auto_mkdir": True},
    )
    for seed, name in enumerate(("TS-1", "TS-2")):
        spacing = copick.from_file(str(path)).new_run(name).new_voxel_spacing(10.0)
        spacing.new_tomogram("wbp").from_numpy(volume(seed))
    args = ["segment", path, "--model", model, "--no-preview", "--polarity", "dark"]
    code, out, err = run(*args, "--device", "cpu", "--copick")
    assert code == 0, err
    root = copick.from_file(str(path))
    assert [r.name for r in root.runs] == ["TS-1", "TS-2"]
    for one, line in zip(root.runs, out.split(), strict=True):
        (kind,) = one.get_voxel_spacing(10.0).tomograms
        assert kind.tomo_type == "wbp"
        (found,) = one.get_segmentations(name="membrane", user_id="etsam", session_id="wbp")
        assert found.voxel_size == 10.0 and not found.is_multilabel
        with open_tomogram(line) as mask:
            assert mask.voxel_spacing == (10.0,) * 3
            assert np.array_equal(found.numpy(), mask.read_slices(0, SHAPE[0]))
        assert 0 < found.numpy().mean() < 1

"""A sphere of known centre and radius, at a shifted origin, comes out in the right place in every format."""

from __future__ import annotations

import csv
import gzip
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from etsam.export import FORMATS, ExportOptions, export_file
from etsam.export.points import check_star_name, relion_angles
from etsam.frame import Frame

SHAPE = (41, 52, 61)
SPACING = (12.0, 10.0, 9.0)
ORIGIN = (-500.0, 300.5, 1234.25)
FRAME = Frame(SHAPE, SPACING, ORIGIN)
CENTRE = np.array([19.3, 24.8, 31.2])
RADIUS = 170.0
TENTH = 0.1 * min(SPACING)
SHELL = ("points", "midsurface", "labels", "ply", "chimerax")
MESHES = ("ply", "stl", "obj", "glb", "vtp")

trimesh = pytest.importorskip("trimesh")
starfile = pytest.importorskip("starfile")
pytest.importorskip("fast_simplification")


def distances(frame: Frame = FRAME, centre: np.ndarray = CENTRE) -> np.ndarray:
    axes = [
        (np.arange(n) - c) * s for n, c, s in zip(frame.shape, centre, frame.spacing, strict=True)
    ]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return np.sqrt(z**2 + y**2 + x**2)


def write(path: Path, data: np.ndarray, frame: Frame = FRAME) -> Path:
    with mrcfile.new(path) as mrc:
        mrc.set_data(data)
        mrc.voxel_size = tuple(reversed(frame.spacing))
        mrc.header.origin = tuple(reversed(frame.origin))
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ball as mask, a shell as logits, and all they export to."""
    folder = tmp_path_factory.mktemp("export")
    away = distances()
    ball = write(folder / "TS_1_10.00Apx_membrane.mrc", (away < RADIUS).astype(np.int8))
    logits = ((30.0 - np.abs(away - RADIUS)) / 10.0 - 0.25).astype(np.float32)
    shell = write(folder / "shell_logits.mrc", logits)
    export_file(ball, ExportOptions((*MESHES, "labels", "membrain-pick", "morphometrics")))
    export_file(shell, ExportOptions(SHELL, point_spacing=60.0))
    return folder


def assert_sphere(places: np.ndarray, centre: np.ndarray, radius: float, within: float) -> None:
    """Least-squares sphere through points has the centre and radius."""
    matrix = np.column_stack([2 * (places - centre), np.ones(len(places))])
    solution = np.linalg.lstsq(matrix, ((places - centre) ** 2).sum(axis=1), rcond=None)[0]
    fitted = math.sqrt(solution[3] + (solution[:3] ** 2).sum())
    np.testing.assert_allclose(solution[:3], 0, atol=within)
    assert fitted == pytest.approx(radius, abs=within)


@pytest.mark.parametrize("kind", MESHES[:4])
def test_meshes_lie_where_the_sphere_is(exported: Path, kind: str) -> None:
    mesh = trimesh.load(exported / f"TS_1_10.00Apx_membrane.{kind}", force="mesh")
    assert_sphere(np.asarray(mesh.vertices), FRAME.to_angstrom(CENTRE[None])[0], RADIUS, TENTH)
    mesh.merge_vertices()
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * RADIUS**3, rel=0.02)  # outward


def test_vtp_read_by_vtk(exported: Path) -> None:
    xml = pytest.importorskip("vtkmodules.vtkIOXML")
    from vtkmodules.util.numpy_support import vtk_to_numpy

    reader = xml.vtkXMLPolyDataReader()
    reader.SetFileName(str(exported / "TS_1_10.00Apx_membrane.vtp"))
    reader.Update()
    places = vtk_to_numpy(reader.GetOutput().GetPoints().GetData())
    assert_sphere(places, FRAME.to_angstrom(CENTRE[None])[0], RADIUS, TENTH)
    assert reader.GetOutput().GetNumberOfPolys() > 1000


def test_vtp_holds_the_ply(exported: Path) -> None:
    import base64
    from xml.etree import ElementTree

    root = ElementTree.parse(exported / "TS_1_10.00Apx_membrane.vtp").getroot()
    assert root.attrib["byte_order"] == "LittleEndian" and root.attrib["header_type"] == "UInt64"
    arrays = {
        array.attrib.get("Name", "points"): np.frombuffer(
            base64.b64decode(array.text or "")[8:],
            {"Float32": "<f4", "Int64": "<i8"}[array.attrib["type"]],
        )
        for array in root.iter("DataArray")
    }
    ply = trimesh.load(exported / "TS_1_10.00Apx_membrane.ply", process=False)
    np.testing.assert_allclose(arrays["points"].reshape(-1, 3), ply.vertices, atol=1e-3)
    np.testing.assert_array_equal(arrays["connectivity"].reshape(-1, 3), ply.faces)
    np.testing.assert_array_equal(arrays["offsets"], 3 * np.arange(1, len(ply.faces) + 1))


def test_labels_and_table(exported: Path) -> None:
    with mrcfile.open(exported / "TS_1_10.00Apx_membrane_labels.mrc") as mrc:
        assert mrc.data.dtype == np.int16
        assert mrc.header.origin.tolist() == pytest.approx(tuple(reversed(ORIGIN)))
        places = FRAME.to_angstrom(np.argwhere(mrc.data == 1))
        count = int((mrc.data == 1).sum())
    with (exported / "TS_1_10.00Apx_membrane_labels.csv").open() as file:
        (row,) = csv.DictReader(file)
    centre = [float(row[f"centre_{axis}_A"]) for axis in "xyz"]
    np.testing.assert_allclose(centre, places.mean(axis=0), atol=0.01)
    np.testing.assert_allclose(centre, FRAME.to_angstrom(CENTRE[None])[0], atol=TENTH)
    assert int(row["voxels"]) == count
    assert float(row["volume_nm3"]) == pytest.approx(count * 1.08, rel=1e-3)


def relion_matrix(rot: float, tilt: float, psi: float) -> np.ndarray:
    """RELION's Euler_angles2matrix, from its three rotations."""
    a, b, c = np.radians([rot, tilt, psi])

    def about_z(t: float) -> np.ndarray:
        return np.array([[np.cos(t), np.sin(t), 0], [-np.sin(t), np.cos(t), 0], [0, 0, 1]])

    about_y = np.array([[np.cos(b), 0, -np.sin(b)], [0, 1, 0], [np.sin(b), 0, np.cos(b)]])
    return about_z(c) @ about_y @ about_z(a)


def test_points_lie_on_the_mid_surface_and_point_outwards(exported: Path) -> None:
    table = starfile.read(exported / "shell_logits_points.star")
    voxels = table[[f"rlnCoordinate{axis}" for axis in "ZYX"]].to_numpy()
    places = FRAME.to_angstrom(voxels)
    centre = FRAME.to_angstrom(CENTRE[None])[0]
    assert_sphere(places, centre, RADIUS, TENTH)
    assert len(places) > 60
    outward = (places - centre) / np.linalg.norm(places - centre, axis=1)[:, None]
    for row, direction in zip(table.to_dict("records"), outward, strict=True):
        angles = (row["rlnAngleRot"], row["rlnAngleTilt"], row["rlnAnglePsi"])
        turned = relion_matrix(*angles) @ [0, 0, 1]
        assert turned @ direction > math.cos(math.radians(3))
        assert row["rlnAngleTiltPrior"] == row["rlnAngleTilt"]
    centred = table[[f"rlnCenteredCoordinate{axis}Angst" for axis in "ZYX"]].to_numpy()
    np.testing.assert_allclose(centred, (voxels - np.array(SHAPE) / 2) * SPACING, atol=0.02)
    assert set(table["rlnTomoName"]) == {"shell"}


def test_mid_surface_table(exported: Path) -> None:
    table = np.genfromtxt(exported / "shell_logits_midsurface.csv", delimiter=",", names=True)
    places = np.column_stack([table[f"{axis}_A"] for axis in "xyz"])
    centre = FRAME.to_angstrom(CENTRE[None])[0]
    assert_sphere(places, centre, RADIUS, TENTH)
    normals = np.column_stack([table[f"normal_{axis}"] for axis in "xyz"])
    outward = (places - centre) / np.linalg.norm(places - centre, axis=1)[:, None]
    assert ((normals * outward).sum(axis=1) > 0.99).all()
    assert np.median(table["thickness_nm"]) == pytest.approx(6.0, abs=0.05)
    assert set(table["label"]) == {1.0}


def test_relion_angles_at_the_poles() -> None:
    tilt, psi = relion_angles(np.array([[1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]))
    np.testing.assert_allclose(tilt, [0, 180, 90, 90], atol=1e-9)
    np.testing.assert_allclose(psi[2:], [90, 180], atol=1e-9)


def test_membrane_folders(exported: Path) -> None:
    with mrcfile.open(exported / "TS_1_10.00Apx_membrane_membranes" / "mb1.mrc") as mrc:
        np.testing.assert_array_equal(mrc.data, distances() < RADIUS)
        assert mrc.header.origin.tolist() == pytest.approx(tuple(reversed(ORIGIN)))
    folder = exported / "TS_1_10.00Apx_membrane_morphometrics"
    (labels,) = (folder / "segmentations").iterdir()
    assert labels.name.startswith("TS_1_10.00Apx")
    yaml = pytest.importorskip("yaml")
    config = yaml.safe_load((folder / "config.yml").read_text())
    assert config["segmentation_values"] == {"MEMBRANE1": 1}
    assert (folder / config["seg_dir"]).is_dir() and (folder / config["tomo_dir"]).is_dir()
    with mrcfile.open(labels) as mrc:
        assert set(np.unique(mrc.data)) == {0, 1}
        assert mrc.header.origin.tolist() == pytest.approx(tuple(reversed(ORIGIN)))
        assert mrc.voxel_size.tolist() == pytest.approx(tuple(reversed(SPACING)))
        places = FRAME.to_angstrom(np.argwhere(mrc.data == 1))
    np.testing.assert_allclose(places.mean(axis=0), FRAME.to_angstrom(CENTRE[None])[0], atol=TENTH)


def test_chimerax_script_opens_what_is_there(exported: Path) -> None:
    script = (exported / "shell_logits.cxc").read_text()
    opened = [Path(name) for name in re.findall(r'open "([^"]+)"', script)]
    assert [path.name for path in opened] == [
        "shell_logits.mrc",
        "shell_logits.ply",
        "shell_logits_labels.mrc",
    ]
    assert all(path.is_file() for path in opened)
    assert "level -0.25" in script


def places_in_chimerax(script: str) -> dict[str, np.ndarray]:
    """Voxel size and origin (2, xyz) of each volume, after the commands as ChimeraX carries them out."""
    places: dict[str, np.ndarray] = {}
    for path, number in re.findall(r'open "([^"]+\.mrc)" id (\d)', script):
        with mrcfile.open(path, header_only=True) as mrc:
            stored = [mrc.voxel_size.tolist(), mrc.header.origin.tolist()]
        places[number] = np.array(stored, np.float64)
    for number, key, text in re.findall(r"volume #(\d) (voxelSize|origin) (\S+)", script):
        values = np.array(text.split(","), np.float64)
        if key == "voxelSize":  # keeps the origin in voxels
            places[number][1] *= values / places[number][0]
        places[number][int(key == "origin")] = values
    return places


@pytest.mark.parametrize("cell", [1.0, 8.0, 10.0])
def test_the_scene_lies_in_one_frame(tmp_path: Path, cell: float) -> None:
    frame = Frame((30, 40, 40), (10.0,) * 3, ORIGIN)
    centre = np.array([14.2, 20.1, 19.4])
    ball = (distances(frame, centre) < 100).astype(np.int8)
    mask = write(tmp_path / "a_membrane.mrc", ball, Frame(frame.shape, (cell,) * 3, ORIGIN))
    tomogram = write(tmp_path / "a.mrc", ball, Frame(frame.shape, (9.0,) * 3))
    export_file(mask, ExportOptions(voxel_spacing=10.0, tomogram=tomogram))
    script = (tmp_path / "a_membrane.cxc").read_text()
    for number, place in places_in_chimerax(script).items():
        np.testing.assert_allclose(place, [frame.spacing, ORIGIN[::-1]], err_msg=number)
    assert ("#2 origin" in script) == (cell != 10.0)
    mesh = trimesh.load(tmp_path / "a_membrane.ply")
    assert_sphere(np.asarray(mesh.vertices), frame.to_angstrom(centre[None])[0], 100.0, 1.0)


def test_copick_project(tmp_path: Path) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    frame = Frame((30, 40, 40), (10.0,) * 3, ORIGIN)
    centre = np.array([14.2, 20.1, 19.4])
    mask = distances(frame, centre) < 100
    source = write(tmp_path / "run_a_membrane.mrc", mask.astype(np.int8), frame)
    export_file(source, ExportOptions(("copick",)))
    project = tmp_path / "run_a_membrane_copick"
    config = json.loads((project / "config.json").read_text())
    assert config["overlay_root"] == f"local://{project}"
    run = project / "ExperimentRuns" / "run-a"
    names = sorted(path.name for path in (run / "Segmentations").iterdir())
    assert names == [
        "10.000_etsam_0_membrane.zarr",
        "10.000_etsam_0_membranes-multilabel.zarr",
    ]
    for name in names:
        (image,) = json.loads((run / "Segmentations" / name / ".zattrs").read_text())["multiscales"]
        assert image["datasets"][0]["coordinateTransformations"] == [
            {"type": "scale", "scale": [10.0] * 3},
            {"type": "translation", "translation": [0.0] * 3},  # as the mesh
        ]
    array = run / "Segmentations" / names[0] / "0"
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{array}/"}}
    np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), mask)
    mesh = trimesh.load(run / "Meshes" / "etsam_0_membrane.glb", force="mesh")
    assert_sphere(np.asarray(mesh.vertices), centre[::-1] * 10.0, 100.0, 1.0)


@pytest.mark.filterwarnings("default")  # copick and zarr warn of themselves
def test_copick_opens_the_project(tmp_path: Path) -> None:
    copick = pytest.importorskip("copick", exc_type=ImportError)
    frame = Frame((30, 40, 40), (10.0,) * 3, ORIGIN)
    centre = np.array([14.2, 20.1, 19.4])
    mask = distances(frame, centre) < 100
    source = write(tmp_path / "run_a_membrane.mrc", mask.astype(np.int8), frame)
    export_file(source, ExportOptions(("copick",)))
    root = copick.from_file(str(tmp_path / "run_a_membrane_copick" / "config.json"))
    (run,) = root.runs
    (found,) = run.get_segmentations(name="membrane", is_multilabel=False)
    assert found.voxel_size == 10.0
    np.testing.assert_array_equal(found.numpy(), mask)
    (labels,) = run.get_segmentations(name="membranes", is_multilabel=True)
    np.testing.assert_array_equal(labels.numpy(), mask)
    mesh = trimesh.util.concatenate(list(run.get_meshes("membrane")[0].mesh.geometry.values()))
    assert_sphere(np.asarray(mesh.vertices), centre[::-1] * 10.0, 100.0, 1.0)


def test_anisotropic_voxels_do_not_go_into_copick(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cubic"):
        export_file(
            exported / "TS_1_10.00Apx_membrane.mrc",
            ExportOptions(("labels", "copick"), output=tmp_path),
        )
    assert not list(tmp_path.iterdir())  # not the labels either


def test_refusals(exported: Path, tmp_path: Path) -> None:
    ball = exported / "TS_1_10.00Apx_membrane.mrc"
    with pytest.raises(FileExistsError, match="--overwrite"):
        export_file(ball, ExportOptions(("ply",)))
    empty = write(tmp_path / "empty.mrc", np.zeros(SHAPE, np.int8))
    with pytest.raises(ValueError, match="no membrane"):
        export_file(empty)
    with pytest.raises(ValueError, match="formats"):
        ExportOptions(("fbx",))
    sure = write(tmp_path / "sure.mrc", np.full(SHAPE, 0.3, np.float32))
    with pytest.raises(
        ValueError, match=r"holds 0\.3 and more, all above .* 0\.5 for probabilities"
    ):
        export_file(sure)
    smaller = write(tmp_path / "smaller.mrc", np.zeros((4, *SHAPE[1:]), np.int8))
    with pytest.raises(ValueError, match="they do not belong together"):
        export_file(ball, ExportOptions(("labels",), tomogram=smaller, output=tmp_path / "out"))
    slice_ = write(tmp_path / "slice.mrc", np.eye(30, dtype=np.int8)[None])
    with pytest.raises(ValueError, match="leave out meshes and copick"):
        export_file(slice_, ExportOptions(("ply",)))
    unknown = write(tmp_path / "unknown.mrc", np.ones(SHAPE, np.int8), Frame(SHAPE, (1.0,) * 3))
    with pytest.raises(ValueError, match="--voxel-spacing"):
        export_file(unknown)


@pytest.mark.parametrize("name", ["#x", "_y", "data_z", "it's", 'a"b', "x#y", "two\nlines", "a\tb"])
def test_names_that_star_takes_for_something_else(name: str) -> None:
    with pytest.raises(ValueError, match="cannot stand in a STAR file"):
        check_star_name(name)


def test_a_name_that_star_does_not_take_costs_one_line(run, exported: Path, tmp_path: Path) -> None:
    odd = tmp_path / "#x_membrane.mrc"
    good = tmp_path / "a b_membrane.mrc"
    for path in (odd, good):
        path.symlink_to(exported / "TS_1_10.00Apx_membrane.mrc")
    code, out, err = run("export", odd, good, "--as", "points")
    assert code == 1 and out == f"{tmp_path / 'a b_membrane_points.star'}\n"
    assert err.count("etsam: error") == 1 and "'#x' cannot stand" in err
    assert set(starfile.read(tmp_path / "a b_membrane_points.star")["rlnTomoName"]) == {"a b"}


def test_points_closer_than_voxels_are_refused(exported: Path, tmp_path: Path) -> None:
    for spacing in (1e-30, 8.9, 0.0, math.nan):
        with pytest.raises(ValueError, match="at least a voxel, 9 Å"):
            export_file(
                exported / "shell_logits.mrc",
                ExportOptions(("points",), point_spacing=spacing, output=tmp_path),
            )
    assert not list(tmp_path.iterdir())


def test_a_mask_without_a_surface_says_what_to_leave_out(tmp_path: Path) -> None:
    two = np.zeros(SHAPE, np.int8)
    two[20, 20, 20:22] = 1
    source = write(tmp_path / "two.mrc", two)
    with pytest.raises(ValueError, match="too small to be smoothed; leave out meshes and copick"):
        export_file(source, ExportOptions(("labels", "ply")))
    made = export_file(source, ExportOptions(("labels",), min_voxels=1))
    assert [path.name for path in made] == ["two_labels.csv", "two_labels.mrc"]
    with pytest.warns(UserWarning, match="is smaller than --min-voxels 3: none gets a label"):
        export_file(source, ExportOptions(("labels",), min_voxels=3, overwrite=True))


def test_a_packed_tomogram_keeps_its_name(exported: Path, tmp_path: Path) -> None:
    tomogram = tmp_path / "TS_2.mrc.gz"
    tomogram.write_bytes(gzip.compress((exported / "TS_1_10.00Apx_membrane.mrc").read_bytes()))
    options = ExportOptions(("morphometrics",), tomogram=tomogram, output=tmp_path / "out")
    (folder,) = export_file(exported / "TS_1_10.00Apx_membrane.mrc", options)
    (linked,) = (folder / "tomograms").iterdir()
    assert linked.name == "TS_2.mrc.gz" and linked.samefile(tomogram)
    assert [path.name for path in (folder / "segmentations").iterdir()] == ["TS_2_labels.mrc"]


def test_command(run, exported: Path, tmp_path: Path) -> None:
    code, out, err = run(
        "export", exported / "shell_logits.mrc", "--as", "stl", "--max-faces", 2000, "-o", tmp_path
    )
    assert code == 0, err
    assert out.split() == [str(tmp_path / "shell_logits.stl")]
    mesh = trimesh.load(tmp_path / "shell_logits.stl")
    assert 1000 < len(mesh.faces) <= 2000
    code, _, err = run("export", tmp_path / "missing.mrc")
    assert code == 1 and err.count("\n") == 1


def test_a_table_of_ones_own_is_kept(exported: Path, tmp_path: Path) -> None:
    notes = tmp_path / "shell_logits_labels.csv"
    notes.write_text("notes")
    options = ExportOptions(("labels",), output=tmp_path)
    with pytest.raises(FileExistsError, match="shell_logits_labels.csv.*--overwrite"):
        export_file(exported / "shell_logits.mrc", options)
    assert notes.read_text() == "notes" and list(tmp_path.iterdir()) == [notes]
    (tmp_path / "shell_logits_labels.mrc" / "mine").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"shell_logits_labels\.mrc is a folder and not Zarr"):
        export_file(exported / "shell_logits.mrc", replace(options, overwrite=True))


def test_command_lists_all_formats() -> None:
    from etsam.cli.export import FORMATS as offered

    assert tuple(offered) == FORMATS

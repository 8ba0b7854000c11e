"""Folders as other programs expect them: MemBrain-pick, surface_morphometrics, copick, and a ChimeraX script."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from etsam.export.mesh_files import write_mesh
from etsam.frame import Frame, is_cubic
from etsam.instances import MIN_VOXELS, Instances, separate_membranes
from etsam.membrane import load_membrane
from etsam.meshes import Mesh
from etsam.storage import PLACE_TOLERANCE, VolumeInfo, Zyx
from etsam.volume import OutputType, Tomogram, create_volume, tomogram_from_array

MAX_MEMBRANES = 200
"""Membranes that get a file of their own: the largest ones."""

MEMBRANE_COLOUR = (255, 176, 0, 255)
PALETTE = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#999999")
"""Colours that all kinds of colour vision tell apart (Okabe and Ito)."""

INSTANCES = "etsam membranes, 1 the largest"
KEPT = "etsam membranes, numbers kept"


def write_volume(
    path: Path, data: np.ndarray, like: Tomogram, *, dtype: OutputType, label: str
) -> None:
    """Write a volume (Z, Y, X) with the geometry of another."""
    with create_volume(path, like, dtype=dtype, label=label) as writer:
        for z, plane in enumerate(data):
            writer.write_slice(z, plane)


def write_instances(
    mask: Path, target: Path, like: Tomogram, *, voxel_spacing: float | None = None
) -> Instances:
    """Number the membranes of a mask's file, touching ones apart, in int16 with another's geometry.

    Those below `MIN_VOXELS` are left out; a warning says so where that leaves none.

    Raises
    ------
    ValueError
        The voxel spacing is unknown.
    """
    membrane = load_membrane(mask, voxel_spacing=voxel_spacing)
    found = separate_membranes(membrane, min_voxels=MIN_VOXELS)
    if membrane.mask.any() and not len(found):
        warnings.warn(
            f"every membrane is smaller than {MIN_VOXELS} voxels: none gets a label", stacklevel=2
        )
    write_volume(target, found.labels, like, dtype="int16", label=INSTANCES)
    return found


def write_sizes(path: Path, instances: Instances, frame: Frame) -> None:
    """Write a table of labels: voxels, volume, box (voxels zyx) and centre (Å xyz)."""
    lines = [
        "label,voxels,volume_nm3,z_min,z_max,y_min,y_max,x_min,x_max,centre_x_A,centre_y_A,centre_z_A"
    ]
    boxes, centres = _extents(instances)
    places = frame.to_angstrom(centres) if len(instances) else np.zeros((0, 3))
    for row, (number, voxels) in enumerate(zip(instances.numbers, instances.voxels, strict=True)):
        volume = voxels * frame.voxel_volume / 1e3
        box = ",".join(str(side) for side in boxes[row].ravel().tolist())
        centre = ",".join(f"{value:.2f}" for value in places[row])
        lines.append(f"{number},{voxels},{volume:.1f},{box},{centre}")
    path.write_text("\n".join(lines) + "\n", encoding="ascii")


def write_membranes(folder: Path, instances: Instances, like: Tomogram) -> int:
    """Write mb1.mrc, mb2.mrc, ... with one membrane each, as MemBrain-pick reads them; returns how many."""
    folder.mkdir()
    chosen = instances.largest(MAX_MEMBRANES)
    for number in chosen:
        one = (plane == number for plane in instances.labels)
        path = folder / f"mb{number}.mrc"
        with create_volume(path, like, dtype="int8", label="etsam export membrane") as writer:
            for z, plane in enumerate(one):
                writer.write_slice(z, plane.view(np.int8))
    return len(chosen)


def write_morphometrics(
    folder: Path, instances: Instances, like: Tomogram, names: tuple[str, Path | None]
) -> None:
    """Write a folder for surface_morphometrics: config.yml, segmentations/ and tomograms/.

    `names` are the tomogram's stem and file. Each of the largest membranes is a feature (MEMBRANE and its
    number), as the program makes one surface per value. The tomogram is linked, or copied where links are
    not to be had.
    """
    stem, tomogram = names
    for name in ("segmentations", "tomograms", "morphometrics"):
        (folder / name).mkdir(parents=True)
    label = "etsam export labels"
    chosen = instances.largest(MAX_MEMBRANES)
    write_volume(
        folder / "segmentations" / f"{stem}_labels.mrc",
        np.where(np.isin(instances.labels, chosen), instances.labels, 0),
        like,
        dtype="int16",
        label=label,
    )
    if tomogram is not None:
        link_or_copy(tomogram, folder / "tomograms" / tomogram.name)
    (folder / "config.yml").write_text(_morphometrics_config(stem, chosen), encoding="utf-8")


def _morphometrics_config(stem: str, numbers: Sequence[int]) -> str:
    """Return a config for surface_morphometrics; it keeps that program's defaults where it has them."""
    values = "\n".join(f"  MEMBRANE{n}: {n}" for n in numbers) or "  {}"
    listed = "\n".join(f"    - MEMBRANE{n}" for n in numbers) or "    []"
    return (
        "# surface_morphometrics: run from this folder, `morphometrics segmentation_to_meshes config.yml`\n"
        'seg_dir: "./segmentations/"\ntomo_dir: "./tomograms/"\nwork_dir: "./morphometrics/"\n'
        'data_dir: "./segmentations/"  # the name of seg_dir in versions before 2\n'
        f"exp_name: {json.dumps(stem)}\nsegmentation_values:\n{values}\ncores: 2\n"
        "surface_generation:\n  angstroms: false\n  ultrafine: false\n  extrapolation_distance: 1.5\n"
        "  isotropic_remesh: true\n  target_area: 1.0\n  simplify: false\n"
        "  simplify_max_triangles: 300000\n  octree_depth: 9\n  point_weight: 0.7\n"
        "  neighbor_count: 400\n  smoothing_iterations: 1\n"
        "curvature_measurements:\n  radius_hit: 9\n  min_component: 30\n  exclude_borders: 1\n"
        "distance_and_orientation_measurements:\n  mindist: 3\n  maxdist: 400\n  tolerance: 0.1\n"
        f"  verticality: true\n  relative_orientation: true\n  intra:\n{listed}\n  inter: {{}}\n"
        "density_sampling:\n  sample_spacing: 0.25\n  scan_range: 10\n"
        f"thickness_measurements:\n  average_radius: 12\n  fit_curve: true\n  components:\n{listed}\n"
    )


def check_cubic(spacing: Zyx) -> None:
    """Refuse voxels that are not cubes, which copick's names cannot say.

    Raises
    ------
    ValueError
        They are not.
    """
    if not is_cubic(spacing):
        sides = " x ".join(f"{step:g}" for step in spacing)
        raise ValueError(
            f"copick needs cubic voxels, these are {sides} Å (z, y, x): leave out copick"
        )


def write_copick(
    folder: Path, home: Path, run: str, instances: Instances, like: Tomogram, mesh: Mesh
) -> None:
    """Write a copick project with the mask, the membranes one by one, and the mesh of one run.

    `home` is where `folder` will lie in the end, as the config names it.
    copick counts Å from the first voxel, so that mesh and segmentations are moved there from the MRC origin.
    Voxels are cubes, see `check_cubic`.
    """
    spacing = np.array(like.voxel_spacing)
    place = folder / "ExperimentRuns" / run
    (place / "Segmentations").mkdir(parents=True)
    stem = f"{spacing[0]:.3f}_etsam_0"
    grid = tomogram_from_array(instances.labels, voxel_spacing=float(spacing[0]))
    for name, data, dtype in (
        (f"{stem}_membrane.zarr", (instances.labels > 0).view(np.int8), "int8"),
        (f"{stem}_membranes-multilabel.zarr", instances.labels, "int16"),
    ):
        kind: OutputType = "int8" if dtype == "int8" else "int16"
        path = place / "Segmentations" / name
        write_volume(path, data, grid, dtype=kind, label="etsam export")
    (place / "Meshes").mkdir()
    moved = Mesh(mesh.vertices - np.array(like.origin[::-1]), mesh.faces)
    write_mesh(place / "Meshes" / "etsam_0_membrane.glb", moved, "glb")
    config = {
        "config_type": "filesystem",
        "name": "etsam",
        "description": "Membranes found by etsam",
        "version": "1.0.0",
        "pickable_objects": [
            {"name": name, "is_particle": False, "label": label, "color": MEMBRANE_COLOUR}
            for label, name in enumerate(("membrane", "membranes"), 1)
        ],
        "overlay_root": f"local://{home.resolve()}",
        "overlay_fs_args": {"auto_mkdir": True},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_chimerax(
    path: Path,
    frame: Frame,
    mask: tuple[Tomogram, float],
    tomogram: Tomogram | None,
    others: Sequence[Path],
) -> None:
    """Write a ChimeraX script that opens a tomogram, a mask with its level, and meshes and labels in one frame.

    `others` lie in `frame` already; tomogram and mask are moved there where their files say another place.
    """
    lines = ["# ChimeraX: open this file. All lies in one frame, that of the meshes and labels."]
    if tomogram is not None:
        lines += [*_opened(tomogram, 1, frame), "volume #1 style image region all step 2"]
    lines += [*_opened(mask[0], 2, frame), f"volume #2 level {mask[1]:g} style surface step 1"]
    lines += ["hide #2 models"] if others else []
    for number, other in enumerate(others):
        lines.append(f"open {_quoted(other)} id {3 + number}")
        if other.suffix == ".mrc":
            lines.append(f"hide #{3 + number} models")
        else:
            lines.append(f"color #{3 + number} {PALETTE[number % len(PALETTE)]}")
    lines += ["lighting soft", "set bgColor white", "view"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _opened(volume: Tomogram, number: int, frame: Frame) -> list[str]:
    """Return the lines that open a volume in ChimeraX, in a frame; voxelSize comes first, as it scales the origin."""
    assert volume.path is not None
    lines = [f"open {_quoted(volume.path)} id {number}"]
    if not _lies_in(volume.stored, frame):
        for key, values in (("voxelSize", frame.spacing), ("origin", frame.origin)):
            listed = ",".join(f"{value:.8g}" for value in reversed(values))
            lines.append(f"volume #{number} {key} {listed}")
    return lines


def _lies_in(stored: VolumeInfo, frame: Frame) -> bool:
    """Whether a file puts the first and the last voxel where the frame has them."""
    if stored.voxel_spacing is None:
        return False
    ends = np.array([(0, 0, 0), frame.shape])
    own = Frame(stored.shape, stored.voxel_spacing, stored.origin).to_angstrom(ends)
    apart = np.abs(own - frame.to_angstrom(ends))
    return bool(apart.max() <= PLACE_TOLERANCE * min(frame.spacing))


def copick_name(text: str) -> str:
    """Return a run's name that copick takes."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip("-.") or "run"


def link_or_copy(source: Path, target: Path) -> None:
    """Link a file, or copy it where the system has no links."""
    try:
        target.symlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, target)


def _quoted(path: Path) -> str:
    return '"' + str(path.resolve()).replace('"', '\\"') + '"'


def _extents(instances: Instances) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return boxes (n, 3, 2), last voxel included, and mean places (n, 3) zyx of all labels."""
    count = len(instances)
    boxes = np.empty((count, 3, 2), np.int64)
    boxes[..., 0], boxes[..., 1] = np.iinfo(np.int64).max, -1
    total = np.zeros((count, 3))
    for z, plane in enumerate(instances.labels):
        rows, columns = np.nonzero(plane)
        names = np.searchsorted(instances.numbers, plane[rows, columns])
        for axis, places in enumerate((np.full(len(rows), z), rows, columns)):
            np.minimum.at(boxes[:, axis, 0], names, places)
            np.maximum.at(boxes[:, axis, 1], names, places)
            total[:, axis] += np.bincount(names, places, count)
    return boxes, total / np.maximum(instances.voxels, 1)[:, None]

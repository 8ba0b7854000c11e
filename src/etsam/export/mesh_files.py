"""Meshes as files: PLY, STL, OBJ and GLB through trimesh, VTP for VTK and ParaView."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Literal, get_args
from xml.sax.saxutils import quoteattr

import numpy as np

from etsam.meshes import Mesh

MeshFormat = Literal["ply", "stl", "obj", "glb", "vtp"]
MESH_FORMATS: tuple[str, ...] = get_args(MeshFormat)


def write_mesh(path: Path, mesh: Mesh, kind: str) -> None:
    """Write a mesh in Å, x y z, in one of `MESH_FORMATS`.

    Raises
    ------
    ValueError
        If trimesh is needed and not there.
    """
    if kind == "vtp":
        path.write_text(_vtp(mesh), encoding="ascii")
        return
    try:
        import trimesh
    except ImportError as error:
        raise ValueError(f'writing {kind} needs trimesh: pip install "etsam[export]"') from error
    written = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    with path.open("wb") as file:  # trimesh leaves one that it opens open where the disk is full
        written.export(file, file_type=kind)


def _vtp(mesh: Mesh) -> str:
    """Return an XML PolyData file with its numbers in base64 behind their length in bytes."""
    points = _array(mesh.vertices.astype("<f4"), "Float32", 'NumberOfComponents="3"')
    links = _array(mesh.faces.astype("<i8"), "Int64", 'Name="connectivity"')
    ends = np.arange(3, 3 * len(mesh.faces) + 1, 3, dtype="<i8")
    offsets = _array(ends, "Int64", 'Name="offsets"')
    return (
        '<?xml version="1.0"?>\n'
        '<VTKFile type="PolyData" version="1.0" byte_order="LittleEndian" header_type="UInt64">\n'
        f'<PolyData><Piece NumberOfPoints="{len(mesh.vertices)}" NumberOfVerts="0" NumberOfLines="0" '
        f'NumberOfStrips="0" NumberOfPolys="{len(mesh.faces)}">\n'
        f"<Points>{points}</Points>\n<Polys>{links}\n{offsets}</Polys>\n"
        "</Piece></PolyData></VTKFile>\n"
    )


def _array(values: np.ndarray, kind: str, attribute: str) -> str:
    """Return a binary DataArray element."""
    data = values.tobytes()
    text = base64.b64encode(np.uint64(len(data)).tobytes() + data).decode("ascii")
    return f'<DataArray type={quoteattr(kind)} {attribute} format="binary">{text}</DataArray>'

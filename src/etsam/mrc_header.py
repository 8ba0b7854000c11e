"""The MRC header: what it says of a volume, and the header of a result that lies in the same place.

Fields follow Cheng et al., J. Struct. Biol. 192 (2015) 146 (MRC2014) and IMOD's `mrc_format.txt`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from etsam.storage import MAX_SIDE, ByteOrder, VolumeInfo, Zyx, known_origin, noted_spacing

HEADER_BYTES = 1024
MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
REFUSED_MODES = {
    3: "complex 16-bit integers",
    4: "complex floats",
    16: "RGB",
    101: "packed 4-bit integers",
}
IMOD_STAMP = 1146047817  # at byte 152; the flags follow at byte 156 (mrc_format.txt)
IMOD_STAMP_BYTE = 152
IMOD_SIGNED_BYTES = 1
IMOD_PACKED_NIBBLES = 16
VOLUME_STACK_GROUPS = range(401, 631)
STAMPS = {"<": b"\x44\x44\x00\x00", ">": b"\x11\x11\x00\x00"}
FOREIGN = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"PK\3\4": "a zip archive",
    b"%PDF": "a PDF document",
}
MAX_LABELS = 10
LABEL_CHARACTERS = 80
CELL_ROUNDING = 1e-6  # relative difference of voxel spacings that a header's float32 explains
ORIGIN_ROUNDING = 0.01  # Å


@dataclass(frozen=True)
class DataLayout:
    """Where the voxels of an MRC file lie (`data_offset` in bytes) and how they are stored."""

    data_offset: int
    dtype: np.dtype


def read_header(header: bytes, path: Path, size: int | None) -> tuple[DataLayout, VolumeInfo]:
    """Interpret 1024 header bytes of a file of `size` bytes (None where it is not known yet).

    Raises
    ------
    ValueError
        If the header is not that of a volume of real voxels, or promises more bytes than there are.
    """
    order, fields = parse_header(header, path)
    notes: list[str] = []
    if bytes(fields["map"])[:3] != b"MAP":
        notes.append("no MAP identifier in the header")
    if header[212:214] not in _stamps_of(order):
        notes.append("wrong machine stamp: byte order found from the dimensions")
    shape = (int(fields["nz"]), int(fields["ny"]), int(fields["nx"]))
    if int(fields["ispg"]) in VOLUME_STACK_GROUPS:
        raise ValueError(
            f"{path} is a stack of volumes (space group {fields['ispg']}): split it first"
        )
    if shape[0] == 1 and int(fields["ispg"]) == 0:
        raise ValueError(f"{path} is a single 2-D image (nz = 1): etsam needs a volume")
    dtype = _data_dtype(fields, header, order, notes, path)
    data_bytes = shape[0] * shape[1] * shape[2] * dtype.itemsize
    offset = _data_offset(int(fields["nsymbt"]), data_bytes, size, notes)
    if size is not None and size < offset + data_bytes:
        raise ValueError(
            f"{path} is cut short: {shape[0]} x {shape[1]} x {shape[2]} voxels of mode {fields['mode']} "
            f"need {offset + data_bytes:,} bytes, it has {size:,}: copy it again"
        )
    spacing = _header_spacing(fields, notes)
    info = VolumeInfo(
        shape=shape,
        dtype=dtype.newbyteorder("="),
        voxel_spacing=spacing,
        origin=_header_origin(fields, spacing),
        mrc_header=header,
        header_order=order,
        notes=tuple(notes),
    )
    return DataLayout(offset, dtype), info


def parse_header(header: bytes, path: Path) -> tuple[ByteOrder, np.ndarray]:
    """Return the byte order ("<" or ">") and the fields, trusting the dimensions over the machine stamp.

    A side below 65536 reads as 65536 or more in the other byte order, so that one order at most is plausible.

    Raises
    ------
    ValueError
        It is too short, or in neither order that of a volume of real voxels.
    """
    if len(header) < HEADER_BYTES:
        raise ValueError(f"{path} has {len(header)} bytes: too short for an MRC header (1024)")
    orders: tuple[ByteOrder, ...] = ("<", ">")
    for order in orders:
        fields = np.frombuffer(header, HEADER_DTYPE.newbyteorder(order))[0]
        sides = [int(fields[name]) for name in ("nx", "ny", "nz")]
        mode = int(fields["mode"])
        if all(1 <= side <= MAX_SIDE for side in sides):
            if mode in MODES:
                return order, fields
            kind = REFUSED_MODES.get(mode)
            if kind:
                raise ValueError(
                    f"{path} holds {kind} (MRC mode {mode}): convert it to mode 1 or 2"
                )
    for magic, kind in FOREIGN.items():
        if header.startswith(magic):
            raise ValueError(f"{path} is {kind}, not an MRC volume: convert it first")
    fields = np.frombuffer(header, HEADER_DTYPE.newbyteorder("<"))[0]
    raise ValueError(
        f"{path} is not an MRC volume: its header says nx, ny, nz = {fields['nx']}, {fields['ny']}, "
        f"{fields['nz']} and mode {fields['mode']}"
    )


def axis_order(fields: np.ndarray) -> tuple[int, int, int]:
    """Return which of x, y, z (0, 1, 2) sections, rows and columns run along; x, y, z when the map is illegal."""
    order = tuple(int(fields[name]) - 1 for name in ("maps", "mapr", "mapc"))
    return (order[0], order[1], order[2]) if sorted(order) == [0, 1, 2] else (2, 1, 0)


def _stamps_of(order: str) -> tuple[bytes, ...]:
    return (b"\x44\x44", b"\x44\x41") if order == "<" else (b"\x11\x11",)


def _data_dtype(
    fields: np.ndarray, header: bytes, order: str, notes: list[str], path: Path
) -> np.dtype:
    """Return the stored data type; bytes are unsigned where IMOD's rule says so (`readBytesSigned`)."""
    mode = int(fields["mode"])
    if mode != 0:
        return np.dtype(order + MODES[mode])
    stamp, flags = struct.unpack_from(order + "ii", header, IMOD_STAMP_BYTE)
    if stamp == IMOD_STAMP:
        if flags & IMOD_PACKED_NIBBLES:
            raise ValueError(
                f"{path} holds packed 4-bit integers (IMOD flag 16): convert it to mode 1 or 2"
            )
        signed = bool(flags & IMOD_SIGNED_BYTES)
    else:
        signed = not (fields["dmin"] >= 0 and fields["dmax"] >= 128)
    if not signed:
        notes.append("bytes read as unsigned (IMOD's flag, or a maximum above 127)")
    return np.dtype("i1" if signed else "u1")


def _data_offset(extended: int, data_bytes: int, size: int | None, notes: list[str]) -> int:
    """Return where the data begin, leaving out an extended header that is not there."""
    lies = extended < 0 or (size is not None and size < HEADER_BYTES + extended + data_bytes)
    if extended and lies and size == HEADER_BYTES + data_bytes:
        notes.append(f"extended header of {extended} bytes is not there")
        return HEADER_BYTES
    return HEADER_BYTES + max(extended, 0)


def _header_spacing(fields: np.ndarray, notes: list[str]) -> Zyx | None:
    if sorted(int(fields[name]) for name in ("mapc", "mapr", "maps")) != [1, 2, 3]:
        notes.append("illegal axis map: read as columns x, rows y, sections z")
    sections = "xyz"[axis_order(fields)[0]]
    if sections != "z":
        notes.append(f"sections run along {sections} (axis map): read and tracked along it, not z")
    spacing = []
    for axis in axis_order(fields):
        cells = int(fields[("mx", "my", "mz")[axis]])
        length = float(fields["cella"]["xyz"[axis]])
        spacing.append(length / cells if cells > 0 else 0.0)
    return noted_spacing((spacing[0], spacing[1], spacing[2]), notes)


def with_spacing(info: VolumeInfo, spacing: Zyx) -> VolumeInfo:
    """Return `info` with another voxel spacing (zyx, Å), in which the start indices of an MRC header count."""
    if info.mrc_header is None:
        return replace(info, voxel_spacing=spacing)
    fields = np.frombuffer(info.mrc_header, HEADER_DTYPE.newbyteorder(info.header_order))[0]
    return replace(info, voxel_spacing=spacing, origin=_header_origin(fields, spacing))


def _header_origin(fields: np.ndarray, spacing: Zyx | None) -> Zyx:
    """Return the position of the first voxel, zyx in Å for the stored axes.

    As in ChimeraX, the origin fields count when one is not zero, otherwise the start indices times the spacing,
    or times 1 Å where that is unknown.
    """
    axes = axis_order(fields)
    origin = [float(fields["origin"]["xyz"[axis]]) for axis in axes]
    if not any(origin):
        starts = [int(fields[name]) for name in ("nzstart", "nystart", "nxstart")]
        steps = spacing or (1.0, 1.0, 1.0)
        origin = [start * step for start, step in zip(starts, steps, strict=True)]
    return known_origin(origin)


def output_header(info: VolumeInfo, dtype: np.dtype, label: str) -> np.ndarray:
    """Return header fields for a volume of `dtype` lying exactly where the volume of `info` lies.

    From an MRC source every byte is kept but those that describe the voxels themselves (mode, statistics,
    IMOD's byte flags), the extended header (dropped: it describes the acquisition of the source), the machine
    stamp (made right) and the labels (ours is added, the oldest dropped when there are ten). Cell and origin are
    written only where those of `info` are not the source's, as with a spacing that the user gave.
    """
    order = info.header_order
    source = info.mrc_header
    fields = np.zeros((), HEADER_DTYPE.newbyteorder(order))
    if source is None:
        _fill_geometry(fields, info)
    else:
        fields = np.frombuffer(bytearray(source), HEADER_DTYPE.newbyteorder(order)).reshape(())
        _move(fields, info)
        _clear_byte_flags(fields, order)
    fields["mode"] = {"int8": 0, "int16": 1, "float32": 2}[dtype.name]
    fields["nsymbt"] = 0
    fields["exttyp"] = b""
    fields["map"] = b"MAP "
    fields["machst"] = np.frombuffer(STAMPS[order], np.uint8)
    _add_label(fields, label)
    return fields


def _fill_geometry(fields: np.ndarray, info: VolumeInfo) -> None:
    """Write a fresh header; an unknown spacing becomes 1 Å, which by custom means unknown."""
    fields["nz"], fields["ny"], fields["nx"] = info.shape
    fields["mapc"], fields["mapr"], fields["maps"] = 1, 2, 3
    fields["ispg"] = 1
    fields["nversion"] = 20141
    fields["cellb"] = (90.0, 90.0, 90.0)
    fields["origin"] = info.origin[::-1]
    _fill_cell(fields, info.voxel_spacing or (1.0, 1.0, 1.0))


def _move(fields: np.ndarray, info: VolumeInfo) -> None:
    """Write what spacing and origin differ from those that the fields tell, so that they tell those of `info`."""
    known, wanted = _header_spacing(fields[()], []), info.voxel_spacing
    if wanted and not (known and np.allclose(known, wanted, rtol=CELL_ROUNDING, atol=0)):
        _fill_cell(fields, wanted)
        known = wanted
    if not np.allclose(_header_origin(fields[()], known), info.origin, atol=ORIGIN_ROUNDING):
        for axis, value in zip(axis_order(fields[()]), info.origin, strict=True):
            fields["origin"]["xyz"[axis]] = value
        for name in ("nzstart", "nystart", "nxstart"):  # would count where the origin is zero
            fields[name] = 0


def _fill_cell(fields: np.ndarray, spacing: Zyx) -> None:
    """Write the cell so that cell / intervals is `spacing` (zyx of the stored axes, Å)."""
    sides = [int(fields[name]) for name in ("nz", "ny", "nx")]
    for axis, side, step in zip(axis_order(fields[()]), sides, spacing, strict=True):
        intervals = "m" + "xyz"[axis]
        if fields[intervals] <= 0:
            fields[intervals] = side
        fields["cella"]["xyz"[axis]] = step * int(fields[intervals])


def _clear_byte_flags(fields: np.ndarray, order: str) -> None:
    """Say in IMOD's flags, where they are in use, that bytes are signed and not packed."""
    header = fields.reshape(1).view(np.uint8)
    flags = header[IMOD_STAMP_BYTE : IMOD_STAMP_BYTE + 8].view(order + "i4")
    if flags[0] == IMOD_STAMP:
        flags[1] = (flags[1] | IMOD_SIGNED_BYTES) & ~IMOD_PACKED_NIBBLES


def _add_label(fields: np.ndarray, label: str) -> None:
    text = label.encode("ascii", "replace")[:LABEL_CHARACTERS]
    used = min(max(int(fields["nlabl"]), 0), MAX_LABELS)
    there = [bytes(value) for value in fields["label"][:used]]
    kept = [value for value in there if value.strip(b" \0")][-(MAX_LABELS - 1) :]
    labels = [*kept, text]
    fields["label"] = labels + [b""] * (MAX_LABELS - len(labels))
    fields["nlabl"] = len(labels)

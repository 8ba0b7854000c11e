"""Zarr arrays through tensorstore: opened, made, and what it says of them in users' words."""

from __future__ import annotations

import errno
import math
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from etsam.ngff_metadata import NgffImage
from etsam.storage import VolumeInfo

if TYPE_CHECKING:
    import tensorstore

CHUNK = (16, 256, 256)  # as written: few slices wait in memory, viewers still read blocks
NOT_THE_DATA = ("PERMISSION_DENIED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "UNKNOWN")
"""How tensorstore's messages begin where a disk or a network fails."""
FULL = {"no space left": errno.ENOSPC, "quota exceeded": errno.EDQUOT}
NOT_KNOWN = re.compile(r'"([^"]+)" is not registered|(filter)s are not supported')
"""Codecs that tensorstore does not have."""
ENDING = re.compile(r" \[\w+( \w+)*='.*")
"""What follows tensorstore's messages: specifications, places in its source."""
OF_FILE = re.compile(r'.*(\.zarray|zarr\.json)": ')
REASON_LENGTH = 200
CHUNK_LIKE = re.compile(r"(c[./])?[0-9]+([./][0-9]+)*")
"""Path of a chunk in its array, in any of the ways of either version of Zarr."""


def open_array(image: NgffImage) -> tensorstore.TensorStore:
    """Open an array to read it; nothing of it is kept in memory.

    Raises
    ------
    ValueError
        There is none, or it is damaged or of a kind that cannot be read.
    """
    import tensorstore

    metadata = image.array / ("zarr.json" if image.zarr_format == 3 else ".zarray")
    if not metadata.is_file():  # a pipe would be waited for
        raise ValueError(
            f"{image.array} is not a readable Zarr array: it has no file {metadata.name}"
        )
    spec = {
        "driver": "zarr3" if image.zarr_format == 3 else "zarr",
        "kvstore": _files_of(image.array),
        "context": {"cache_pool": {"total_bytes_limit": 0}},
    }
    try:
        return tensorstore.open(spec, open=True, read=True).result()
    except (ValueError, NotImplementedError, OverflowError) as error:
        raise ValueError(f"{image.array} is not a readable Zarr array: {_why(error)}") from error


def _files_of(folder: Path) -> dict[str, str]:
    """Return tensorstore's name for a folder: without `..` and in Unicode, it takes no other.

    Raises
    ------
    ValueError
        The name is no Unicode.
    """
    # on Windows links and drives' letters stay: behind letters may be network names, which tensorstore does not take
    path = os.path.abspath(folder) if sys.platform == "win32" else os.path.realpath(folder)
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{folder} has a name that is no Unicode, which Zarr cannot have: rename it"
        ) from None
    return {"driver": "file", "path": f"{path}/"}


def grid_of(grid: tensorstore.ChunkLayout.Grid, store: tensorstore.TensorStore) -> tuple[int, ...]:
    """Return the sides of a chunk; an axis without a grid is one chunk."""
    sides = grid.shape or (None,) * store.rank
    return tuple(side or size for side, size in zip(sides, store.shape, strict=True))


def missing_chunks(image: NgffImage, array: tensorstore.TensorStore, path: Path) -> tuple[str, ...]:
    """Note the chunks of the array of `image` that are not stored; Zarr reads them as the fill value.

    Raises
    ------
    ValueError
        If not one is stored under a name that the metadata give it, or one is a pipe, which would
        be waited for.
    """
    grid = zip(array.shape, grid_of(array.chunk_layout.write_chunk, array), strict=True)
    counts = [-(-size // side) for size, side in grid]
    prefix, separator = _form_of_keys(array)
    number = re.escape(separator).join(["(0|[1-9][0-9]*)"] * len(counts))
    chunk = re.compile(re.escape(prefix) + number)
    stored, other = 0, ""
    for folder, _, names in os.walk(image.array):
        inside = folder[len(str(image.array)) + 1 :].replace(os.sep, "/")
        for key in (f"{inside}/{name}" if inside else name for name in names):
            found = chunk.fullmatch(key)
            if found and all(int(n) < m for n, m in zip(found.groups(), counts, strict=True)):
                if (image.array / key).is_fifo():
                    raise ValueError(f"{image.array / key} is a pipe: expected a chunk of voxels")
                stored += 1
            elif not other and CHUNK_LIKE.fullmatch(key):
                other = key
    if not stored and other:
        first, last = (
            prefix + separator.join(map(str, place))
            for place in ([0] * len(counts), [count - 1 for count in counts])
        )
        raise ValueError(
            f"{path} has no voxels: {image.array} holds chunks such as {other}, expected {first} to "
            f"{last} by its metadata (separator {separator!r}): correct these"
        )
    if not stored:
        raise ValueError(f"{path} has no voxels: {image.array} holds no chunk")
    expected = math.prod(counts)
    if stored == expected:
        return ()
    return (f"{expected - stored} of {expected} chunks are not stored and read as the fill value",)


def _form_of_keys(array: tensorstore.TensorStore) -> tuple[str, str]:
    """Return what the names of an array's chunks begin with, and what stands between their numbers."""
    metadata = array.spec().to_json()["metadata"]
    if metadata.get("zarr_format") == 2:
        return "", metadata.get("dimension_separator", ".")
    encoding = metadata["chunk_key_encoding"]
    is_v2 = encoding["name"] == "v2"
    separator = encoding.get("configuration", {}).get("separator", "." if is_v2 else "/")
    return "" if is_v2 else f"c{separator}", separator


def read(view: tensorstore.TensorStore, path: Path) -> np.ndarray:
    """Decode part of an array of the volume at `path`.

    Raises
    ------
    OSError
        A disk or a network fails.
    ValueError
        The chunks are damaged.
    """
    try:
        return view.read().result()
    except (ValueError, NotImplementedError) as error:
        if str(error).startswith(NOT_THE_DATA):
            raise failed(f"{path} cannot be read", error) from error
        raise ValueError(f"{path} is damaged: {_reason(error)}") from error


def failed(what: str, error: Exception) -> OSError:
    """What tensorstore says of a disk, with the number that the system's own errors have."""
    text = str(error).lower()
    number = next((code for words, code in FULL.items() if words in text), errno.EIO)
    return OSError(number, f"{what}: {_reason(error)}")


def _reason(error: Exception) -> str:
    """Return the first part of tensorstore's message, without its specification."""
    return _said(error)[:REASON_LENGTH]


def _said(error: Exception) -> str:
    return ENDING.sub("", " ".join(str(error).split()))


def _why(error: Exception) -> str:
    """Return why tensorstore does not open an array, without the place of its metadata."""
    unknown = NOT_KNOWN.search(_said(error))
    if unknown:
        codec = unknown[1] or unknown[2]
        return f"'{codec}' cannot be read here: write it anew with blosc, zstd or gzip alone"
    return OF_FILE.sub("", _said(error))[:REASON_LENGTH]


def create_array(folder: Path, info: VolumeInfo, dtype: np.dtype) -> tensorstore.TensorStore:
    """Make an empty array (Z, Y, X) for the volume of `info`, in the Zarr of its OME-Zarr version."""
    import tensorstore

    chunk = [min(*pair) for pair in zip(CHUNK, info.shape, strict=True)]
    if info.ngff_version == "0.5":
        blosc = {"cname": "zstd", "clevel": 5, "shuffle": "shuffle", "typesize": dtype.itemsize}
        metadata: dict[str, Any] = {
            "shape": info.shape,
            "data_type": dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "codecs": [
                {"name": "bytes", "configuration": {"endian": "little"}},
                {"name": "blosc", "configuration": blosc},
            ],
            "fill_value": 0,
            "dimension_names": ["z", "y", "x"],
        }
    else:
        metadata = {
            "shape": info.shape,
            "dtype": dtype.newbyteorder("<").str,
            "chunks": chunk,
            "dimension_separator": "/",
            "compressor": {"id": "blosc", "cname": "zstd", "clevel": 5, "shuffle": 1},
            "fill_value": 0,
        }
    spec = {
        "driver": "zarr3" if info.ngff_version == "0.5" else "zarr",
        "kvstore": _files_of(folder),
        "metadata": metadata,
        "context": {"cache_pool": {"total_bytes_limit": 0}},
        "store_data_equal_to_fill_value": True,
    }
    return tensorstore.open(spec, create=True, delete_existing=True).result()

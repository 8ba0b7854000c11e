"""Zarr arrays that cannot be read or written are told by what is wrong with them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etsam.volume import create_volume, open_tomogram, tomogram_from_array
from file_limit import file_limit
from test_cli import Run, write_mrc

DATA = np.ones((4, 8, 8), np.float32)


def image(path: Path, version: str) -> Path:
    """An OME-Zarr; returns the metadata of its array."""
    with (
        tomogram_from_array(DATA, voxel_spacing=10.0) as like,
        create_volume(path, like, dtype="float32", label="a", ngff_version=version) as writer,
    ):
        for z, plane in enumerate(DATA):
            writer.write_slice(z, plane)
    return path / "0" / (".zarray" if version == "0.4" else "zarr.json")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_metadata_that_are_missing_or_a_pipe_are_not_waited_for(
    tmp_path: Path, version: str
) -> None:
    metadata = image(tmp_path / "a.zarr", version)
    metadata.unlink()
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"it has no file {metadata.name}$"):
            open_tomogram(tmp_path / "a.zarr")
        if os.name == "nt":
            return
        metadata.unlink(missing_ok=True)
        os.mkfifo(metadata)


@pytest.mark.parametrize(
    ("version", "change", "codec"),
    [
        ("0.4", {"compressor": {"id": "lzma"}}, "lzma"),
        ("0.4", {"filters": [{"id": "delta", "dtype": "<f4"}]}, "filter"),
        ("0.5", {"codecs": [{"name": "bytes"}, {"name": "pcodec"}]}, "pcodec"),
    ],
)
def test_codecs_that_are_not_known_are_named(
    tmp_path: Path, version: str, change: dict[str, Any], codec: str
) -> None:
    folder = tmp_path / ("long name " * 20) / "a [1].zarr"  # nothing of the message is cut for it
    folder.parent.mkdir()
    metadata = image(folder, version)
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | change))
    with pytest.raises(ValueError, match=f"'{codec}' cannot be read here: write it anew with"):
        open_tomogram(folder)


def test_metadata_that_do_not_fit_are_told_by_the_name_of_the_result(
    run: Run, tmp_path: Path
) -> None:
    mask = write_mrc(tmp_path / "a.mrc", DATA.astype(np.int8))
    attributes = tmp_path / "out.zarr" / ".zattrs"
    asked = ("postprocess", mask, "-o", attributes.parent)
    assert run(*asked)[0] == 0
    before = attributes.read_bytes()
    with file_limit(len(before) - 10):
        code, out, err = run(*asked, "--overwrite")
    assert (code, out) == (1, "")
    assert err.endswith(f" {attributes.parent}: File too large\n")
    assert attributes.read_bytes() == before

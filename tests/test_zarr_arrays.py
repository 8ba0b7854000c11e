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


def image(path: Path, version: str, slices: int = 4) -> Path:
    """An OME-Zarr; returns the metadata of its array."""
    data = np.ones((slices, 8, 8), np.float32)
    with (
        tomogram_from_array(data, voxel_spacing=10.0) as like,
        create_volume(path, like, dtype="float32", label="a", ngff_version=version) as writer,
    ):
        for z, plane in enumerate(data):
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


def separated(version: str, separator: str) -> dict[str, Any]:
    """Metadata by which this stands between the numbers of a chunk."""
    if version == "0.4":
        return {"dimension_separator": separator}
    return {"chunk_key_encoding": {"name": "default", "configuration": {"separator": separator}}}


@pytest.mark.parametrize(
    ("version", "change", "names"),
    [
        ("0.4", {"dimension_separator": "."}, ("0/0/0", "0.0.0", "1.0.0")),
        ("0.5", separated("0.5", "."), ("c/0/0/0", "c.0.0.0", "c.1.0.0")),
        ("0.5", {"chunk_key_encoding": {"name": "v2"}}, ("c/0/0/0", "0.0.0", "1.0.0")),
    ],
)
def test_chunks_of_other_names_than_the_metadata_give_are_refused(
    tmp_path: Path, version: str, change: dict[str, Any], names: tuple[str, str, str]
) -> None:
    """They read as the fill value, without a word."""
    metadata = image(tmp_path / "a.zarr", version, slices=20)
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | change))
    (metadata.parent / "c/1/0/0").unlink(missing_ok=True)
    (metadata.parent / "1/0/0").unlink(missing_ok=True)
    stored, first, last = names
    expected = rf"chunks such as {stored}, expected {first} to {last} by .*\(separator '\.'\)"
    with pytest.raises(ValueError, match=expected):
        open_tomogram(tmp_path / "a.zarr")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("separator", [".", "/"])
def test_chunks_are_counted_by_the_names_that_the_metadata_give(
    tmp_path: Path, version: str, separator: str
) -> None:
    """What lies outside the array, or has another name, stands for none of them."""
    metadata = image(tmp_path / "a.zarr", version, slices=20)
    folder, prefix = metadata.parent, "c/" if version == "0.5" else ""
    content = json.loads(metadata.read_text()) | separated(version, separator)
    metadata.write_text(json.dumps(content))
    keys = [f"{prefix}{z}/0/0".replace("/", separator) for z in range(3)]
    for z in range(2):
        (folder / f"{prefix}{z}/0/0").rename(folder / keys[z])
    with open_tomogram(tmp_path / "a.zarr") as whole:
        assert whole.notes == () and whole.read_slice(19).all()
    for stray in (keys[2], f"{keys[2]}{separator}0", keys[1].replace("1", "01")):
        (folder / stray).parent.mkdir(parents=True, exist_ok=True)
        (folder / keys[1]).replace(folder / stray)
        with open_tomogram(tmp_path / "a.zarr") as partly:
            assert "1 of 2 chunks are not stored" in str(partly.notes)
        (folder / stray).rename(folder / keys[1])


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
    mask = write_mrc(tmp_path / "a.mrc", np.ones((4, 8, 8), np.int8))
    attributes = tmp_path / "out.zarr" / ".zattrs"
    asked = ("postprocess", mask, "-o", attributes.parent)
    assert run(*asked)[0] == 0
    before = attributes.read_bytes()
    with file_limit(len(before) - 10):
        code, out, err = run(*asked, "--overwrite")
    assert (code, out) == (1, "")
    assert err.endswith(f" {attributes.parent}: File too large\n")
    assert attributes.read_bytes() == before

"""A corpus of damaged, lying and malicious files: each a right result, or one line and exit code 1.

More than 500 files a run, the same ones every time.
"""

from __future__ import annotations

import bz2
import gzip
import json
import os
import re
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mrcfile.dtypes import HEADER_DTYPE

from etsam.manifest import Entry, read_manifest
from etsam.mrc_header import MODES
from etsam.volume import create_volume, open_tomogram, tomogram_from_array
from test_cli import Run, assert_one_line
from test_projects import write_zarr

SHAPE = (4, 5, 6)
DAMAGED_HEADERS, CUT_SHORT, ARCHIVES, ZARRS, CHECKPOINTS, RECORDS = 160, 80, 90, 90, 80, 60


def corpus(files: int) -> Callable[[Any], Any]:
    """Let a test see so many generated files, the same ones at every run."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=files,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=checks,
    )


def look(run: Run, path: Path) -> dict[str, Any] | None:
    """Inspect a file as a user would: what is found, or None after one line of complaint."""
    code, out, err = run("inspect", "--no-timing", "--json", path)
    if code == 0:
        assert err == "" or all(line.startswith("etsam: warning") for line in err.splitlines())
        found: dict[str, Any] = json.loads(out)
        return found
    assert (code, out) == (1, "")
    assert_one_line(err)
    return None


INTEGERS = st.one_of(
    st.integers(-(2**31), 2**31 - 1), st.sampled_from([0, 1, -1, 2, 3, 65535, 65536, 2**31 - 1])
)
FLOATS = st.one_of(
    st.floats(width=32), st.sampled_from([0.0, 1.0, -10.0, 1e-30, 1e30, float("nan"), float("inf")])
)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "mode": st.one_of(st.sampled_from([0, 1, 2, 3, 4, 6, 12, 16, 101]), INTEGERS),
        "nx": INTEGERS,
        "nz": INTEGERS,
        "mx": INTEGERS,
        "nsymbt": INTEGERS,
        "ispg": st.one_of(st.sampled_from([0, 1, 401]), INTEGERS),
        "nlabl": INTEGERS,
        "nzstart": INTEGERS,
        "mapc": st.integers(-1, 4),
        "maps": st.integers(-1, 4),
        "cella": st.tuples(FLOATS, FLOATS, FLOATS),
        "origin": st.tuples(FLOATS, FLOATS, FLOATS),
        "dmin": FLOATS,
        "dmax": FLOATS,
        "map": st.binary(min_size=4, max_size=4),
        "machst": st.lists(st.integers(0, 255), min_size=4, max_size=4).map(tuple),
    },
)


def mrc_bytes(data: np.ndarray, fields: dict[str, Any], order: str = "<") -> bytes:
    """An MRC file with any fields of its header wrong."""
    header = np.zeros((), HEADER_DTYPE.newbyteorder(order))
    modes = {kind: mode for mode, kind in MODES.items()}
    header["mode"] = modes.get(data.dtype.str[1:], 0)
    header["nz"], header["ny"], header["nx"] = data.shape
    header["mz"], header["my"], header["mx"] = data.shape
    header["cella"] = tuple(10.0 * side for side in data.shape[::-1])
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["ispg"], header["map"] = 1, b"MAP "
    header["machst"] = (0x44, 0x44, 0, 0) if order == "<" else (0x11, 0x11, 0, 0)
    for name, value in fields.items():
        header[name] = value
    return header.tobytes() + data.astype(data.dtype.newbyteorder(order)).tobytes()


def values(seed: int, kind: str) -> np.ndarray:
    random = np.random.default_rng(seed)
    if np.dtype(kind).kind != "f":
        limits = np.iinfo(kind)
        return random.integers(limits.min, limits.max, SHAPE, kind, endpoint=True)
    data = random.normal(size=SHAPE).astype(kind)
    if seed % 3 == 0:
        data.reshape(-1)[random.integers(0, data.size, 9)] = [np.nan, np.inf, -np.inf] * 3
    return data


@corpus(DAMAGED_HEADERS)
@given(HEADERS, st.sampled_from(sorted(MODES.values())), st.sampled_from("<>"), st.integers(0, 99))
def test_headers_that_lie(
    run: Run, tmp_path: Path, fields: dict[str, Any], kind: str, order: str, seed: int
) -> None:
    data = values(seed, kind)
    path = tmp_path / "a.mrc"
    path.write_bytes(mrc_bytes(data, fields, order))
    found = look(run, path)
    decisive = {"mode", "nx", "nz", "nsymbt", "ispg", "dmin", "dmax"} & set(fields)
    if not decisive:
        assert found is not None
    if found is None or decisive:
        return
    assert tuple(found["shape_zyx"]) == SHAPE
    with open_tomogram(path) as tomogram:
        read = tomogram.read_slices(0, SHAPE[0])
    assert np.isfinite(read).all()
    finite = np.isfinite(data)
    np.testing.assert_array_equal(read[finite], data[finite].astype(np.float32))


@corpus(CUT_SHORT)
@given(st.integers(0, 1024 + 4 * 120 - 1), st.sampled_from("<>"))
def test_files_cut_anywhere(run: Run, tmp_path: Path, length: int, order: str) -> None:
    path = tmp_path / "cut.mrc"
    path.write_bytes(mrc_bytes(values(1, "f4"), {}, order)[:length])
    assert look(run, path) is None


@corpus(ARCHIVES)
@given(
    st.sampled_from([gzip, bz2]),
    st.sampled_from(["cut", "flipped", "junk after", "promises", "whole"]),
    st.integers(0, 2**20),
)
def test_archives(run: Run, tmp_path: Path, codec: Any, damage: str, place: int) -> None:
    data = values(2, "i2")
    fields = {"nx": 60000, "ny": 60000, "nz": 60000} if damage == "promises" else {}
    packed = bytearray(codec.compress(mrc_bytes(data, fields)))
    if damage == "cut":
        del packed[place % len(packed) :]
    elif damage == "flipped":
        packed[place % len(packed)] ^= 1 << place % 8
    elif damage == "junk after":
        packed += bytes(range(256))
    path = tmp_path / "a.mrc.gz"
    path.write_bytes(packed)
    found = look(run, path)
    if damage == "whole":
        assert found is not None
    if damage in ("cut", "promises"):
        assert found is None
    if found is not None:
        with open_tomogram(path) as tomogram:
            np.testing.assert_array_equal(tomogram.read_slices(0, SHAPE[0]), data)


@pytest.mark.parametrize("codec", [gzip, bz2])
def test_a_damaged_archive_is_not_called_something_else(tmp_path: Path, codec: Any) -> None:
    """A header that comes out wrong is the damage's doing, which bzip2 says at the end of a block only."""
    data = np.random.default_rng(0).integers(-9, 9, (20, 64, 64), np.int16)
    whole = codec.compress(mrc_bytes(data, {}))
    path = tmp_path / "a.mrc.bz2"
    told = []
    for place in range(20, len(whole), 500):
        packed = bytearray(whole)
        packed[place] ^= 4
        path.write_bytes(packed)
        try:
            open_tomogram(path).close()
        except ValueError as error:
            told.append(str(error))
    assert told and [text for text in told if "damaged" not in text.split(".bz2")[-1]] == []
    path.write_bytes(codec.compress(b"no volume" * 500))
    with pytest.raises(ValueError, match="not an MRC volume"):
        open_tomogram(path)


@pytest.mark.parametrize("codec", [gzip, bz2])
def test_an_archive_that_unpacks_to_too_much_is_left_packed(
    run: Run, tmp_path: Path, codec: Any
) -> None:
    content = mrc_bytes(np.zeros(SHAPE, np.int16), {}) + bytes(40 << 20)
    path = tmp_path / "bomb.mrc.gz"
    path.write_bytes(codec.compress(content))
    tracemalloc.start()
    try:
        look(run, path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


NASTY = st.one_of(
    st.none(),
    st.booleans(),
    INTEGERS,
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["../../etc", "/etc/passwd", "..", "", "\0", 10**30, -1, [], {}, [[]] * 3]),
    st.lists(st.integers(-5, 70000), max_size=4),
)


def places(content: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where values stand in JSON."""
    pairs = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    below = [place for key, value in pairs for place in places(value, (*prefix, key))]
    return [*([prefix] if prefix else []), *below]


def spoiled(content: Any, place: int, value: Any, *, remove: bool) -> Any:
    """JSON with one value replaced or removed."""
    content = json.loads(json.dumps(content))
    known = places(content)
    *path, last = known[place % len(known)]
    owner = content
    for key in path:
        owner = owner[key]
    if remove:
        del owner[last]
    else:
        owner[last] = value
    return content


@corpus(ZARRS)
@given(
    st.sampled_from(["0.4", "0.5"]), st.integers(0, 99), st.integers(0, 99), NASTY, st.booleans()
)
def test_zarr_metadata(
    run: Run, tmp_path: Path, version: str, file: int, place: int, value: Any, remove: bool
) -> None:
    folder = tmp_path / f"{version}.zarr"
    if not folder.exists():
        with (
            tomogram_from_array(values(1, "f4"), voxel_spacing=10.0) as like,
            create_volume(folder, like, dtype="float32", label="x", ngff_version=version) as writer,
        ):
            for z in range(SHAPE[0]):
                writer.write_slice(z, like.read_slice(z))
    names = {".zattrs", ".zarray", ".zgroup", "zarr.json"}
    found = sorted(path for path in folder.rglob("*") if path.name in names)
    chosen = found[file % len(found)]
    good = chosen.read_text()
    try:
        bad = spoiled(json.loads(good), place, value, remove=remove)
        chosen.write_text(json.dumps(bad))
        seen = look(run, folder)
        assert seen is None or np.prod(seen["shape_zyx"]) < 1e9
        chosen.write_text(good[: place % len(good)])
        look(run, folder)
    finally:
        chosen.write_text(good)


@corpus(RECORDS)
@given(st.integers(0, 99), NASTY, st.booleans(), st.integers(0, 400))
def test_manifests_and_earlier_results(
    run: Run, tmp_path: Path, place: int, value: Any, remove: bool, cut: int
) -> None:
    good = asdict(Entry("/in.mrc", "/out.mrc", "done", 1, seconds=1.0))
    path = tmp_path / "etsam_manifest.jsonl"
    path.write_text(json.dumps(spoiled(good, place, value, remove=remove)) + "\n", "utf-8")
    code, _, err = run("status", tmp_path)
    assert code in (0, 1)
    if code:
        assert_one_line(err, "line 1")
    path.write_text(json.dumps(good)[: cut % len(json.dumps(good))] + "\n", "utf-8")
    with pytest.raises(ValueError, match="line 1"):
        read_manifest(path)


NAMES = [
    "a b.mrc",
    "é 膜.mrc",
    "TS.1.2.mrc",
    "-x.mrc",
    "no_suffix",
    "a'b\"c.mrc",
    "x" * 200 + ".mrc",
]


@pytest.mark.parametrize("name", NAMES)
def test_odd_names_and_links(run: Run, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(mrc_bytes(values(1, "f4"), {}))
    assert look(run, path) is not None
    link = tmp_path / "link.mrc"
    link.symlink_to(path)
    found = look(run, link)
    assert found is not None and tuple(found["shape_zyx"]) == SHAPE
    path.unlink()
    assert look(run, link) is None


def test_what_is_no_file_is_refused(run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mrc")
    (tmp_path / "folder.mrc").mkdir()
    (tmp_path / "loop.mrc").symlink_to(tmp_path / "loop.mrc")
    for name in ("pipe.mrc", "folder.mrc", "loop.mrc"):
        assert look(run, tmp_path / name) is None


def test_chunks_are_told_from_what_else_lies_in_an_array(run: Run, tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "a.zarr", values(1, "f4").repeat(9, axis=0))
    chunks = sorted(p for p in (path / "0").rglob("*") if p.is_file() and p.name[0] != ".")
    assert len(chunks) == 3
    chunks[0].unlink()
    for name in ("Thumbs.db", "0.txt", "x/7"):
        (path / "0" / name).parent.mkdir(exist_ok=True)
        (path / "0" / name).write_bytes(b"x")
    found = look(run, path)
    assert found is not None and "1 of 3 chunks are not stored" in str(found)
    os.mkfifo(chunks[0])  # reading it would wait for ever
    code, _, err = run("inspect", "--no-timing", path)
    assert code == 1 and f"{chunks[0]} is a pipe" in err
    assert_one_line(err)


def test_an_extended_header_that_is_not_there_is_so_in_archives_too(
    run: Run, tmp_path: Path
) -> None:
    content = mrc_bytes(values(2, "f4"), {"nsymbt": 2**31 - 1})
    for name, codec in (("a.mrc", bytes), ("b.mrc.gz", gzip.compress), ("c.mrc.bz2", bz2.compress)):
        (tmp_path / name).write_bytes(codec(content))
        found = look(run, tmp_path / name)
        assert found is not None and "is not there" in str(found)


@pytest.mark.parametrize("ending", [".mrc", ".zarr"])
def test_an_origin_out_of_this_world_counts_as_none(tmp_path: Path, ending: str) -> None:
    source = tmp_path / "a.mrc"
    source.write_bytes(mrc_bytes(values(3, "f4"), {"origin": (1e38, 70.0, -1e13)}))
    far = write_zarr(tmp_path / "b.zarr", np.ones(SHAPE, np.float32))
    attributes = far / "zarr.json" if (far / "zarr.json").is_file() else far / ".zattrs"
    text = attributes.read_text(encoding="utf-8")
    assert '"translation": [' in text
    attributes.write_text(re.sub(r'("translation": )\[[^]]*\]', r"\1[1e29, 70, 0]", text))
    for path, origin in ((source, (0.0, 70.0, 0.0)), (far, (0.0, 70.0, 0.0))):
        target = tmp_path / f"{path.stem}_out{ending}"
        with open_tomogram(path) as volume:
            assert volume.origin == origin
            with create_volume(target, volume, dtype="int8", label="x") as writer:
                for z in range(volume.shape[0]):
                    writer.write_slice(z, np.zeros(volume.shape[1:], np.int8))
        with open_tomogram(target) as written:
            assert written.origin == origin


def test_there_are_more_than_500_files() -> None:
    assert DAMAGED_HEADERS + CUT_SHORT + ARCHIVES + ZARRS + CHECKPOINTS + RECORDS > 500

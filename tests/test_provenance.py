"""The record beside a result."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from etsam import __version__
from etsam.provenance import (
    Clock,
    input_record,
    peak_rss_mb,
    provenance,
    sha256,
    weights_record,
    write_json,
)
from etsam.volume import create_volume, open_tomogram, tomogram_from_array

KEYS = {"schema", "etsam", "command", "parameters", "results", "inputs", "warnings"}
KEYS |= {"device", "dtype", "weights", "torch", "python", "platform", "cpus"}
KEYS |= {"started", "seconds", "stage_seconds", "peak_rss_mb", "peak_vram_mb"}


def test_all_keys_are_there_even_when_unknown() -> None:
    bare = provenance("segment", parameters={})
    assert set(bare) == KEYS
    assert bare["etsam"] == __version__
    assert bare["seconds"] is None
    compute = {"device": "cpu", "dtype": "float32", "weights": [{"name": "compact"}]}
    full = provenance("segment", parameters={"x": 1}, compute=compute, clock=Clock())
    assert set(full) == KEYS
    assert (full["device"], full["dtype"]) == ("cpu", "float32")
    with pytest.raises(ValueError, match="gpu"):
        provenance("segment", parameters={}, compute={"gpu": 1})


def test_clock_counts_stages_and_adds_what_comes_again() -> None:
    clock = Clock()
    for _ in range(2):
        with clock.stage("stage 1"):
            time.sleep(0.01)
    with pytest.raises(KeyError), clock.stage("stage 2"):
        raise KeyError
    details = provenance("segment", parameters={}, clock=clock)
    assert 0.02 <= details["stage_seconds"]["stage 1"] <= details["seconds"]
    assert set(details["stage_seconds"]) == {"stage 1", "stage 2"}
    assert details["started"].endswith("+00:00")


def test_describes_inputs_and_weights(tmp_path: Path) -> None:
    array = np.zeros((3, 4, 5), np.int8)
    like = tomogram_from_array(array, voxel_spacing=10.5)
    with create_volume(tmp_path / "a.mrc", like, dtype="int8", label="") as writer:
        for z in range(3):
            writer.write_slice(z, array[z])
    content = (tmp_path / "a.mrc").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    with open_tomogram(tmp_path / "a.mrc") as volume:
        record = input_record(volume, checksum=True)
        assert input_record(volume)["sha256"] is None
    assert record["sha256"] == sha256(tmp_path / "a.mrc") == digest
    assert record["bytes"] == len(content)
    assert record["shape_zyx"] == [3, 4, 5]
    assert record["voxel_spacing_zyx_angstrom"] == [10.5, 10.5, 10.5]
    unknown = input_record(tomogram_from_array(array), checksum=True)
    assert unknown["path"] is unknown["bytes"] is unknown["voxel_spacing_zyx_angstrom"] is None
    assert weights_record("w", tmp_path / "a.mrc")["sha256"] == digest


def test_written_file_is_strict_json_and_complete_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    odd = {"p": Path("a"), "n": np.float32(2), "a": np.arange(2), "nan": float("nan"), "t": (1,)}
    write_json(path, provenance("segment", parameters=odd, results={"ä": np.nan}))
    read = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert read["parameters"] == {"p": "a", "n": 2.0, "a": [0, 1], "nan": None, "t": [1]}
    assert read["results"] == {"ä": None}
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell")
def test_peak_memory_is_in_megabytes() -> None:
    before = peak_rss_mb()
    assert before is not None
    block = np.ones(int(before * 1e6 / 8) + 20_000_000)
    after = peak_rss_mb()
    assert after is not None
    assert after >= block.nbytes / 1e6
    assert after < 50 * block.nbytes / 1e6


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux' own fault")
def test_peak_memory_leaves_out_the_program_that_started_this_one() -> None:
    """A small process started by a large one says its own size."""
    held = np.ones(60_000_000)  # 480 MB
    code = "from etsam.provenance import peak_rss_mb; print(peak_rss_mb())"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert float(answer.stdout) < held.nbytes / 1e6 / 2

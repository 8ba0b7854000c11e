"""The record of a batch: what is in it, where it lies, and who holds it."""

from __future__ import annotations

import ntpath
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from etsam import manifest as module
from etsam.batch import default_manifest
from etsam.manifest import Entry, Manifest, current_entries, find_manifests, read_manifest
from test_cli import write_mrc


def states(entries: list[Entry]) -> list[str]:
    return [entry.state for entry in entries]


def test_a_manifest_is_read_back_and_locked(tmp_path: Path) -> None:
    path = default_manifest([tmp_path / "a.mrc", tmp_path / "s" / "b.mrc"], None, "2/3")
    assert path == tmp_path / "etsam_manifest.2of3.jsonl"
    with Manifest(path) as manifest:
        first, _ = manifest.begin([(Path(f"{n}.mrc"), tmp_path / f"{n}_m.mrc") for n in "ab"])
        manifest.started(first)
        assert states(read_manifest(path)) == ["running", "queued"]
        assert states(current_entries([path])) == ["running", "queued"]
        with pytest.raises(OSError, match="another batch"), Manifest(path):
            pass
    assert states(current_entries(find_manifests(tmp_path))) == ["interrupted", "queued"]
    shutil.copy(path, tmp_path / "copy.jsonl")  # without its hidden lock
    assert states(current_entries([tmp_path / "copy.jsonl"])) == ["interrupted", "queued"]
    assert not (tmp_path / ".copy.jsonl.lock").exists()
    with Manifest(path) as manifest:
        (again,) = manifest.begin([(Path("a.mrc"), tmp_path / "a_m.mrc")])
        assert manifest.started(again).attempts == 2
    assert len(read_manifest(path)) == 2
    path.write_text('{"state": "sleeping"}\n')
    with pytest.raises(ValueError, match="line 1"):
        read_manifest(path)
    with pytest.raises(FileNotFoundError, match="no manifest"):
        find_manifests(tmp_path / "nowhere")


def test_tomograms_on_two_drives_are_recorded_beside_the_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def commonpath(_folders: object) -> str:
        return ntpath.commonpath(["C:\\a", "D:\\b"])

    monkeypatch.setattr(os.path, "commonpath", commonpath)
    path = default_manifest([tmp_path / "b" / "c.mrc", tmp_path / "a" / "b.mrc"], None)
    assert path.parent == tmp_path / "b"


def test_links_are_recorded_where_they_lie(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    links = [tmp_path / f"{name}.mrc" for name in ("near", "dangling", "loop")]
    for link, target in zip(links, ("far/a.mrc", "nowhere.mrc", "loop.mrc"), strict=True):
        link.symlink_to(target)
    write_mrc(tmp_path / "far" / "a.mrc", np.zeros((2, 24, 32), np.float32))
    path = default_manifest(links, None)
    assert path == tmp_path / "etsam_manifest.jsonl"
    with Manifest(path) as manifest:
        entries = manifest.begin([(link, link.with_suffix(".zarr")) for link in links])
    assert [entry.input for entry in entries] == [str(link) for link in links]


def test_a_refused_manifest_is_left_alone_and_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text("tomograms to do\n")
    with pytest.raises(ValueError, match="line 1 is not what etsam wrote"), Manifest(path):
        pass
    assert [found.name for found in tmp_path.iterdir()] == ["m.jsonl"]
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="no regular file"), Manifest(path):
        pass
    assert path.is_fifo() and [found.name for found in tmp_path.iterdir()] == ["m.jsonl"]
    path.unlink()
    answers: list[object] = [[], ValueError("changed since"), [], []]

    def read(_path: Path) -> object:
        answer = answers.pop(0)
        if isinstance(answer, ValueError):
            raise answer
        return answer

    monkeypatch.setattr(module, "read_manifest", read)
    with pytest.raises(ValueError, match="changed since"), Manifest(path):
        pass
    with Manifest(path) as manifest:  # its lock was given back
        assert manifest.entries == {}


def test_only_lines_that_change_are_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    usual = module.asdict
    monkeypatch.setattr(module, "asdict", lambda entry: made.append(entry.mask) or usual(entry))
    with Manifest(tmp_path / "m.jsonl") as manifest:
        pairs = [(Path(f"{n}.mrc"), tmp_path / f"{n}_m.mrc") for n in range(40)]
        for entry in manifest.begin(pairs):
            manifest.ended(replace(manifest.started(entry), state="done"), None)
    assert len(made) == 3 * 40
    assert states(read_manifest(tmp_path / "m.jsonl")) == ["done"] * 40

"""Downloads from servers on loopback that speak what Zenodo, Dataverse, the portal and S3 speak."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from conftest import Run
from data_servers import (
    DATAVERSE_DOI,
    MASK,
    RECORD,
    TOMOGRAM,
    ZENODO_DOI,
    DataServers,
    md5,
    options,
)
from etsam.download import LOCK_NAME, Outcome, download
from etsam.listing import list_items
from etsam.published import SETS, PublishedRun, find_runs


def fetched(outcomes: Iterator[Outcome]) -> dict[str, bool]:
    """Names, and whether they were kept; fails on an error."""
    result = {}
    for outcome in outcomes:
        assert outcome.error is None, outcome.error
        result[outcome.item.name] = outcome.kept
    return result


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != LOCK_NAME
    }


def test_a_zenodo_record_comes_with_its_checksums(server: DataServers, tmp_path: Path) -> None:
    assert fetched(download([ZENODO_DOI], tmp_path, options(server))) == {
        "a.pt": False,
        "b c.pt": False,
    }
    assert files_in(tmp_path) == {"a.pt": TOMOGRAM, "b c.pt": MASK}
    items = list_items([ZENODO_DOI], options(server).selection)
    assert [item.parts[0].checksum for item in items] == [
        f"md5:{md5(TOMOGRAM)}",
        f"md5:{md5(MASK)}",
    ]


def test_a_dataverse_keeps_its_folders_and_redirects(server: DataServers, tmp_path: Path) -> None:
    chosen = options(server, match=("emdb/*", "*/polnet/*"))
    assert set(fetched(download([f"doi:{DATAVERSE_DOI}"], tmp_path, chosen))) == {
        "emdb/4603/target_mask/truth.mrc",
        "emdb/4603/tomogram/emd_4603.map",
        "train/polnet/x.mrc",
    }
    assert files_in(tmp_path)["train/polnet/x.mrc"] == b"x" * 77


@pytest.mark.parametrize("format", ["mrc", "zarr"])
def test_runs_of_the_portal_by_the_official_client(
    server: DataServers, tmp_path: Path, format: str
) -> None:
    chosen, seen = options(server, format=format), []
    names = fetched(
        download(["10444/16674"], tmp_path, chosen, lambda *bytes_: seen.append(bytes_))
    )
    assert set(names) == {
        f"10444/16674/tomogram/TS_9.{format}",
        f"10444/16674/target_mask/32927_membrane-1.0_segmentationmask.{format}",
    }  # the annotation that the set names, not the other one
    files = files_in(tmp_path)
    there = sum(len(files[name]) for name in files if name.startswith("10444/"))
    assert seen[-1] == (there, there)
    if format == "mrc":
        assert files["10444/16674/tomogram/TS_9.mrc"] == TOMOGRAM[::-1]
    else:
        chunk = "10444/16674/tomogram/TS_9.zarr/0/0/0/1"
        assert files[chunk] == TOMOGRAM[::-1] + b"0/0/0/1"
        assert len([name for name in files if "TS_9.zarr" in name]) == 5
    assert not [name for name in files if "partial" in name]


def test_a_set_takes_tomograms_and_masks_from_where_they_are(
    server: DataServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [PublishedRun("cdp", "10000", "245", "dataverse"), find_runs("10444/16674")[0]]
    runs += [run for run in SETS["test-17"].runs() if run.run == "4603"]
    monkeypatch.setattr("etsam.listing.find_runs", lambda _name: runs)
    assert set(fetched(download(["test"], tmp_path, options(server)))) == {
        "10000/245/tomogram/TS_026.mrc",
        "10000/245/target_mask/truth.mrc",
        "10444/16674/tomogram/TS_9.mrc",
        "10444/16674/target_mask/32927_membrane-1.0_segmentationmask.mrc",
        "emdb/4603/tomogram/emd_4603.map",
        "emdb/4603/target_mask/truth.mrc",
    }
    asked = [path for method, path, _ in server.asked if method == "POST"]
    assert len(asked) == 2 + 5  # a few questions, however many runs


@pytest.mark.parametrize(
    ("source", "masks", "words"),
    [
        ("emdb", "auto", "is no data"),
        ("10.7910/DVN/NONE", "auto", "is not there"),
        ("10.5281/zenodo.5", "auto", "is not there"),
    ],
)
def test_what_is_not_there_is_one_line(
    server: DataServers, tmp_path: Path, source: str, masks: str, words: str
) -> None:
    with pytest.raises((OSError, ValueError), match=words) as caught:
        list(download([source], tmp_path, options(server, masks=masks)))
    assert "\n" not in str(caught.value)
    assert files_in(tmp_path) == {}


def test_runs_that_are_not_there_fail_alone(server: DataServers, tmp_path: Path, run: Run) -> None:
    args = ("9/9", "10001/245", "10444/16674", "--masks", "none")
    code, text, err = run(*command(server, *args, "-o", tmp_path, "--json"))
    assert code == 1
    assert "the portal has no run 9/9" in err
    assert "no run 10001/245: run 245 is of data set 10000" in err
    states = {file["name"]: file["state"] for file in json.loads(text)["files"]}
    assert states == {
        "9/9": "failed",
        "10001/245": "failed",
        "10444/16674/tomogram/TS_9.mrc": "fetched",
    }
    code, text, err = run(*command(server, *args, "--dry-run"))
    assert code == 1
    assert "no run 9/9" in err
    assert "1 of 1 files" in text
    items = list_items(["test-17"], options(server, masks="dataverse").selection)
    problems = {item.name: item.problem for item in items if item.problem}
    assert "no folder 10000/247/target_mask" in problems["10000/247/target_mask"]
    assert "no run 10000/247" in problems["10000/247"]
    assert "10000/245/target_mask" not in problems


def test_a_portal_that_fails_is_one_line(server: DataServers, tmp_path: Path) -> None:
    server.faults["/graphql"] = [400]
    with pytest.raises(OSError, match="did not answer as the portal does") as caught:
        list(download(["10000/245"], tmp_path, options(server)))
    assert "\n" not in str(caught.value)


def test_resume_keeps_what_is_complete_and_repairs_the_rest(
    server: DataServers, tmp_path: Path
) -> None:
    fetched(download([ZENODO_DOI], tmp_path, options(server)))
    with pytest.raises(FileExistsError, match="give --resume, --overwrite"):
        list(download([ZENODO_DOI], tmp_path, options(server)))
    (tmp_path / "a.pt").write_bytes(TOMOGRAM[:-1] + b"!")  # same size, other bytes
    server.asked.clear()
    again = fetched(download([ZENODO_DOI], tmp_path, options(server, resume=True)))
    assert again == {"a.pt": False, "b c.pt": True}
    assert files_in(tmp_path) == {"a.pt": TOMOGRAM, "b c.pt": MASK}
    assert len(server.asked) == 2  # the listing and the repaired file
    server.zenodo[RECORD]["a.pt"] = MASK
    assert set(fetched(download([ZENODO_DOI], tmp_path, options(server, overwrite=True)))) == {
        "a.pt",
        "b c.pt",
    }
    assert files_in(tmp_path)["a.pt"] == MASK


def test_a_zarr_appears_when_its_last_chunk_is_there(server: DataServers, tmp_path: Path) -> None:
    chunk = "/10444/TS_9/Reconstructions/VoxelSpacing4.990/Tomograms/100/TS_9.zarr/0/0/0/1"
    server.faults[chunk] = [404]
    chosen = options(server, format="zarr", masks="none")
    (outcome,) = download(["10444/16674"], tmp_path, chosen)
    assert isinstance(outcome.error, FileNotFoundError)
    folder = tmp_path / "10444/16674/tomogram"
    assert [path.name for path in folder.iterdir()] == ["TS_9.zarr.partial"]
    server.asked.clear()
    fetched(download(["10444/16674"], tmp_path, replace(chosen, resume=True)))
    assert [path.name for path in folder.iterdir()] == ["TS_9.zarr"]
    gets = [path for _, path, _ in server.asked if "TS_9.zarr/" in path]
    assert chunk in gets
    assert len(gets) < 5  # chunks that had come are not fetched again
    (folder / "TS_9.zarr/0/0/0/0").unlink()
    assert fetched(download(["10444/16674"], tmp_path, replace(chosen, resume=True))) == {
        "10444/16674/tomogram/TS_9.zarr": False
    }
    assert len(list((folder / "TS_9.zarr").rglob("*"))) >= 5


def test_one_failure_does_not_stop_the_others(server: DataServers, tmp_path: Path) -> None:
    server.faults[f"/api/records/{RECORD}/files/a.pt/content"] = [("alter", 5)]
    outcomes = {o.item.name: o.error for o in download([ZENODO_DOI], tmp_path, options(server))}
    assert isinstance(outcomes["a.pt"], ValueError)
    assert outcomes["b c.pt"] is None
    assert files_in(tmp_path) == {"b c.pt": MASK}


def test_several_come_at_once(server: DataServers, tmp_path: Path) -> None:
    names = [f"{i}.bin" for i in range(8)]
    server.zenodo[RECORD] = dict.fromkeys(names, TOMOGRAM)
    for name in names:
        server.faults[f"/api/records/{RECORD}/files/{name}/content"] = [("slow", 0.02)]
    fetched(download([ZENODO_DOI], tmp_path, options(server, workers=3)))
    # the server may see one end after the next has begun, for each worker
    assert 2 <= server.most_at_once <= 6


def test_a_link_out_of_the_folder_is_not_followed(server: DataServers, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "emdb").symlink_to(outside)
    with pytest.raises(ValueError, match="leads out of"):
        list(download([DATAVERSE_DOI], tmp_path / "out", options(server)))
    assert files_in(outside) == {}


def test_a_disk_too_small_is_said_before_the_first_byte(
    server: DataServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    need = len(TOMOGRAM) + len(MASK)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=need - 1))
    with pytest.raises(OSError, match=f"downloading needs {need:,} bytes") as caught:
        list(download([ZENODO_DOI], tmp_path, options(server)))
    assert caught.value.errno == errno.ENOSPC
    assert files_in(tmp_path) == {}
    (tmp_path / "a.pt").write_bytes(TOMOGRAM)
    fetched(download([ZENODO_DOI], tmp_path, options(server, resume=True)))  # now it is enough


def test_two_downloads_into_one_folder_do_not_meet(server: DataServers, tmp_path: Path) -> None:
    with (
        FileLock(tmp_path / LOCK_NAME),
        pytest.raises(OSError, match="another download is at work"),
    ):
        list(download([ZENODO_DOI], tmp_path, options(server)))


def command(server: DataServers, *args: object) -> list[str]:
    servers = [
        "--zenodo",
        server.url,
        "--dataverse",
        server.url,
        "--portal",
        f"{server.url}/graphql",
    ]
    servers += ["--portal-files", server.url, "--portal-s3", server.url]
    return ["download", *map(str, args), *servers]


def test_killed_in_the_middle_it_goes_on_and_nothing_half_is_named(
    server: DataServers, tmp_path: Path
) -> None:
    data = os.urandom(4_000_000)
    server.zenodo[RECORD] = {"big.mrc": data}
    server.faults[f"/api/records/{RECORD}/files/big.mrc/content"] = [("hold", 2_500_000)]
    args = command(server, ZENODO_DOI, "-o", tmp_path, "--resume", "--timeout", 300)
    code = "import sys; from etsam.cli import main; main(sys.argv[1:])"
    child = subprocess.Popen([sys.executable, "-c", code, *args], stderr=subprocess.DEVNULL)
    part = tmp_path / "big.mrc.partial"
    deadline = time.monotonic() + 600
    while not (part.exists() and part.stat().st_size >= 1 << 20):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    server.released.set()
    size = part.stat().st_size
    assert size < len(data)
    assert not (tmp_path / "big.mrc").exists()
    server.asked.clear()
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "big.mrc")]
    assert files_in(tmp_path) == {"big.mrc": data}
    assert server.asked[-1][2] == f"bytes={size}-"


def test_command_states_sizes_without_writing(
    server: DataServers, tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "data"
    code, text, _ = run(*command(server, "10444/16674", "-o", out, "--dry-run"))
    assert code == 0
    assert "400.0 kB  10444/16674/tomogram/TS_9.mrc" in text
    assert "2 of 2 files to fetch: 480.0 kB" in text
    assert not out.exists()
    _, text, _ = run(*command(server, "10444/16674", "-o", out, "--dry-run", "--json"))
    plan = json.loads(text)
    assert plan["bytes_to_fetch"] == len(TOMOGRAM) + len(MASK)
    assert [file["state"] for file in plan["files"]] == ["absent", "absent"]
    _, text, _ = run(*command(server, "10444/16674", "--format", "zarr", "--dry-run"))
    assert "TS_9.zarr  (5 files)" in text


def test_command_asks_for_sizes_that_are_not_listed(server: DataServers, run: Run) -> None:
    for tomogram in server.portal["tomograms"]:
        tomogram["fileSizeMrc"] = None
    _, text, _ = run(*command(server, "10444/16674", "--masks", "none", "--dry-run"))
    assert "1 of 1 files to fetch: 400.0 kB" in text
    assert [method for method, *_ in server.asked][-1] == "HEAD"


def test_command_fetches_tells_and_counts(server: DataServers, tmp_path: Path, run: Run) -> None:
    server.faults[f"/api/records/{RECORD}/files/a.pt/content"] = [404]
    code, text, err = run(*command(server, ZENODO_DOI, "-o", tmp_path))
    assert code == 1
    assert text.split("\n")[0] == str(tmp_path / "b c.pt")
    errors = [line for line in err.splitlines() if line.startswith("etsam: error")]
    assert len(errors) == 1
    assert "is not there" in errors[0]
    assert "1 of 2 files" in err
    code, text, _ = run(*command(server, ZENODO_DOI, "-o", tmp_path, "--resume", "--json"))
    states = {file["name"]: file["state"] for file in json.loads(text)["files"]}
    assert (code, states) == (0, {"a.pt": "fetched", "b c.pt": "kept"})


def test_command_fetches_where_sizes_are_refused_and_says_what_it_cannot_check(
    server: DataServers, tmp_path: Path, run: Run
) -> None:
    server.add_dataverse("list.bin", MASK, filesize=None, checksum=None, md5=None)
    number = 99 + len(server.dataverse)
    server.faults[f"/api/access/datafile/{number}"] = [405]
    server.lengths = False
    args = command(server, DATAVERSE_DOI, "-o", tmp_path, "--match", "*.bin", "--match", "train/*")
    code, _, err = run(*args, "--json")
    assert code == 0
    words = f"etsam: warning: {tmp_path / 'list.bin'}: size and checksum unknown: not checked"
    assert words in err.splitlines()
    code, text, err = run(*args, "--resume", "--json")
    checked = {file["name"]: file["checked"] for file in json.loads(text)["files"]}
    assert (code, checked) == (0, {"list.bin": False, "train/polnet/x.mrc": True})
    assert words in err.splitlines()


def test_command_lists_the_sets(run: Run) -> None:
    _, text, _ = run("download", "--list")
    assert [line.split()[0] for line in text.splitlines()] == list(SETS)
    _, text, _ = run("download", "--list", "train")
    assert len(text.splitlines()) == 83
    _, text, _ = run("download", "--list", "unseen", "--json")
    assert json.loads(text)[0]["run"] == "8354"
    _, _, err = run("download", "--list", "unseen", "--format", "zarr", "--masks", "auto")
    assert err == "etsam: warning: --format plays no role with --list\n"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "name a SOURCE"),
        (["test"], "give --output FOLDER"),
        (["nonesuch", "--dry-run"], "is no data: expected train, test"),
        (["test", "-o", "x", "--resume", "--overwrite"], "give one"),
    ],
)
def test_command_refuses_in_one_line(run: Run, args: list[str], words: str) -> None:
    code, out, err = run("download", *args)
    assert code != 0
    assert out == ""
    assert words in err
    assert len(err.splitlines()) == 1


def test_without_the_client_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setitem(sys.modules, "cryoet_data_portal", None)
    code, _, err = run("download", "10000/245", "--dry-run")
    assert code == 1
    assert 'pip install "etsam[portal]"' in err

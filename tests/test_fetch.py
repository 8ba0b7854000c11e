"""Fetching one file: interruptions, damage, refusals, waits."""

from __future__ import annotations

import email.utils
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_servers import DataServers, md5, running
from etsam.fetch import Patience, RemoteFile, Stopping, fetch, partial_path, read_json

DATA = bytes(range(256)) * 20_000  # 5 MB
QUICK = Patience(timeout=30, attempts=3, first_wait=0.01, longest_wait=2.0)
HASTY = Patience(timeout=0.5, attempts=30, first_wait=0.01)


@pytest.fixture
def server() -> Iterator[DataServers]:
    with running() as server:
        server.files["/a.mrc"] = DATA
        yield server


def remote(
    server: DataServers, *, size: int | None = len(DATA), checked: bool = True
) -> RemoteFile:
    return RemoteFile(f"{server.url}/a.mrc", "", size, f"md5:{md5(DATA)}" if checked else None)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("size", [len(DATA), None])
def test_a_file_arrives_and_nothing_else_is_left(
    server: DataServers, tmp_path: Path, size: int | None, checked: bool
) -> None:
    seen: list[int] = []
    fetch(
        remote(server, size=size, checked=checked),
        tmp_path / "a",
        patience=QUICK,
        report=lambda done, _total: seen.append(done),
    )
    assert (tmp_path / "a").read_bytes() == DATA
    assert left_in(tmp_path) == ["a"]
    assert seen == sorted(seen)
    assert seen[-1] == len(DATA)


@pytest.mark.parametrize("fault", ["cut", "stall"])
@pytest.mark.parametrize("checked", [True, False])
def test_a_broken_connection_goes_on_where_it_ended(
    server: DataServers, tmp_path: Path, fault: str, checked: bool
) -> None:
    server.faults["/a.mrc"] = [(fault, 3_000_000), (fault, 4_500_000)]
    patience = HASTY if fault == "stall" else QUICK
    fetch(remote(server, checked=checked), tmp_path / "a", patience=patience)
    assert (tmp_path / "a").read_bytes() == DATA
    ranges = [asked for _, _, asked in server.asked]
    assert ranges[0] is None
    starts = [int(asked.removeprefix("bytes=").rstrip("-")) for asked in ranges[1:]]
    assert starts == sorted(starts)
    assert starts[0] >= 2_000_000


def test_giving_up_keeps_the_part_and_a_later_call_goes_on(
    server: DataServers, tmp_path: Path
) -> None:
    server.faults["/a.mrc"] = [("cut", 3_000_000), 503, 503]
    with pytest.raises(OSError, match="503.*go on with --resume"):
        fetch(remote(server), tmp_path / "a", patience=QUICK)
    assert left_in(tmp_path) == ["a.partial", "a.partial.version"]
    server.asked.clear()
    fetch(remote(server), tmp_path / "a", resume=True, patience=QUICK)
    assert (tmp_path / "a").read_bytes() == DATA
    assert server.asked == [("GET", "/a.mrc", "bytes=3000000-")]


def test_without_resume_a_part_is_not_trusted(server: DataServers, tmp_path: Path) -> None:
    partial_path(tmp_path / "a").write_bytes(b"x" * 1000)
    fetch(remote(server), tmp_path / "a", patience=QUICK)
    assert (tmp_path / "a").read_bytes() == DATA
    assert server.asked == [("GET", "/a.mrc", None)]


def test_a_file_that_changed_on_the_server_is_fetched_anew(
    server: DataServers, tmp_path: Path
) -> None:
    server.files["/a.mrc"] = DATA[::-1]
    server.faults["/a.mrc"] = [("cut", 2_000_000), 503, 503]
    file = remote(server, checked=False)
    with pytest.raises(OSError, match="503"):
        fetch(file, tmp_path / "a", patience=QUICK)
    server.files["/a.mrc"] = DATA
    fetch(file, tmp_path / "a", resume=True, patience=QUICK)
    assert (tmp_path / "a").read_bytes() == DATA


def test_without_tag_and_checksum_nothing_is_joined(server: DataServers, tmp_path: Path) -> None:
    server.tags = False
    partial_path(tmp_path / "a").write_bytes(b"another file")
    fetch(remote(server, checked=False), tmp_path / "a", resume=True, patience=QUICK)
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_server_without_ranges_sends_all_again(server: DataServers, tmp_path: Path) -> None:
    server.ranges = False
    server.faults["/a.mrc"] = [("cut", 3_000_000)]
    seen: list[int] = []
    fetch(
        remote(server),
        tmp_path / "a",
        patience=QUICK,
        report=lambda done, _total: seen.append(done),
    )
    assert (tmp_path / "a").read_bytes() == DATA
    assert seen != sorted(seen)  # the bar goes back


def test_what_is_fetched_again_is_no_progress(server: DataServers, tmp_path: Path) -> None:
    server.ranges = False
    server.faults["/a.mrc"] = [("cut", 3_000_000), ("cut", 1_200_000)] * 4
    with pytest.raises(OSError, match=r"ended after .* of 5,120,000 bytes"):
        fetch(remote(server), tmp_path / "a", patience=QUICK)
    assert len(server.asked) == QUICK.attempts


def test_another_range_than_asked_for_is_not_joined(server: DataServers, tmp_path: Path) -> None:
    server.faults["/a.mrc"] = [("cut", 3_000_000), ("shift", 7)]
    fetch(remote(server, checked=False), tmp_path / "a", patience=QUICK)
    assert (tmp_path / "a").read_bytes() == DATA
    assert [asked for *_, asked in server.asked] == [None, "bytes=3000000-", None]


def test_a_range_refused_though_none_was_asked_for_is_asked_again(
    server: DataServers, tmp_path: Path
) -> None:
    server.faults["/a.mrc"] = [416, {"Content-Range": "bytes */0"}, 416]
    fetch(remote(server), tmp_path / "a", patience=QUICK)
    assert (tmp_path / "a").read_bytes() == DATA


@pytest.mark.parametrize(("size", "checked"), [(None, False), (len(DATA), False), (None, True)])
def test_an_end_that_nothing_states_is_told(
    server: DataServers, tmp_path: Path, size: int | None, checked: bool
) -> None:
    server.lengths = False
    is_whole = fetch(remote(server, size=size, checked=checked), tmp_path / "a", patience=QUICK)
    assert is_whole == (size is not None or checked)
    server.lengths = True
    assert fetch(remote(server, size=None, checked=False), tmp_path / "a", patience=QUICK)


@pytest.mark.parametrize("size", [len(DATA), None])
def test_a_part_that_is_whole_is_only_checked(
    server: DataServers, tmp_path: Path, size: int | None
) -> None:
    partial_path(tmp_path / "a").write_bytes(DATA)
    fetch(remote(server, size=size), tmp_path / "a", resume=True, patience=QUICK)
    assert (tmp_path / "a").read_bytes() == DATA
    assert [method for method, *_ in server.asked] == ([] if size else ["GET"])


def test_a_part_longer_than_the_file_is_dropped(server: DataServers, tmp_path: Path) -> None:
    partial_path(tmp_path / "a").write_bytes(DATA + b"more")
    fetch(remote(server, size=None), tmp_path / "a", resume=True, patience=QUICK)
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_wrong_checksum_removes_the_part_and_says_so(server: DataServers, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"older")
    server.faults["/a.mrc"] = [("alter", 1234)]
    with pytest.raises(ValueError, match=r"does not have the checksum md5:.*is removed"):
        fetch(remote(server), tmp_path / "a", patience=QUICK)
    assert left_in(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"older"


def test_a_damaged_part_does_not_pass_for_the_file(server: DataServers, tmp_path: Path) -> None:
    partial_path(tmp_path / "a").write_bytes(b"\0" * 1_000_000)
    with pytest.raises(ValueError, match="checksum"):
        fetch(remote(server), tmp_path / "a", resume=True, patience=QUICK)
    assert left_in(tmp_path) == []


def test_another_size_than_listed_is_refused(server: DataServers, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="5,120,000 bytes, but is listed with 77"):
        fetch(remote(server, size=77), tmp_path / "a", patience=QUICK)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (404, FileNotFoundError, "is not there"),
        (410, FileNotFoundError, "is not there"),
        (403, PermissionError, "is not public"),
        (400, OSError, "answered 400"),
    ],
)
def test_a_refusal_is_final_and_one_line(
    server: DataServers, tmp_path: Path, status: int, error: type[OSError], words: str
) -> None:
    server.faults["/a.mrc"] = [status]
    with pytest.raises(error, match=words) as caught:
        fetch(remote(server), tmp_path / "a", patience=QUICK)
    assert "\n" not in str(caught.value)
    assert len(server.asked) == 1
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(server: DataServers, tmp_path: Path, status: int) -> None:
    server.faults["/a.mrc"] = [status, status]
    fetch(remote(server), tmp_path / "a", patience=QUICK)
    assert (tmp_path / "a").read_bytes() == DATA
    assert len(server.asked) == 3


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_kept_to(server: DataServers, tmp_path: Path, as_date: bool) -> None:
    wait = email.utils.formatdate(time.time() + 2, usegmt=True) if as_date else "1"
    server.faults["/a.mrc"] = [429, {"Retry-After": wait}]
    start = time.monotonic()
    fetch(remote(server), tmp_path / "a", patience=QUICK)
    assert time.monotonic() - start > 0.8
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_wait_beyond_patience_is_not_waited_for(server: DataServers, tmp_path: Path) -> None:
    server.faults["/a.mrc"] = [429, {"Retry-After": "3600"}]
    with pytest.raises(OSError, match="asks to wait 3600 s"):
        fetch(remote(server), tmp_path / "a", patience=QUICK)


def test_a_silent_server_ends_in_time(server: DataServers, tmp_path: Path) -> None:
    server.faults["/a.mrc"] = [("stall", 0)] * 3
    patience = Patience(timeout=0.2, attempts=2, first_wait=0.01)
    with pytest.raises(OSError, match="timed out"):
        fetch(remote(server), tmp_path / "a", patience=patience)
    assert "a" not in left_in(tmp_path)


def test_nobody_at_the_address_is_said_at_once(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/a"
    start = time.monotonic()
    with pytest.raises(OSError, match="refused: is there a network, or a proxy to set"):
        fetch(RemoteFile(url, ""), tmp_path / "a", patience=Patience(first_wait=600))
    assert time.monotonic() - start < 300


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/a", "a.mrc"])
def test_only_http_is_fetched(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match="expected http:// or https://"):
        fetch(RemoteFile(url, ""), tmp_path / "a")


def test_stopping_keeps_what_came(server: DataServers, tmp_path: Path) -> None:
    stop = threading.Event()

    def report(done: int, _total: int | None) -> None:
        if done >= 2_000_000:
            stop.set()

    with pytest.raises(Stopping):
        fetch(remote(server), tmp_path / "a", patience=QUICK, stop=stop, report=report)
    assert 2_000_000 <= partial_path(tmp_path / "a").stat().st_size < len(DATA)
    fetch(remote(server), tmp_path / "a", resume=True, patience=QUICK)
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_listing_that_is_not_json_is_one_line(server: DataServers) -> None:
    server.files["/list"] = b"<html>\nbusy</html>"
    with pytest.raises(OSError, match="did not answer in JSON") as caught:
        read_json(f"{server.url}/list", QUICK)
    assert "\n" not in str(caught.value)

"""Fetch a file over HTTP: gone on with where a connection or a process ended, checked, then named.

What has come so far lies in ``NAME.partial`` beside its place, and what tells one version of the
file on the server from another in ``NAME.partial.version``. Nothing else is kept.
"""

from __future__ import annotations

import email.utils
import hashlib
import http.client
import json
import os
import random
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from etsam import __version__
from etsam.renaming import rename

CHUNK_BYTES = 1 << 20
LISTING_BYTES = 256 << 20  # no listing of files is longer
BUSY = (408, 425, 429, 500, 502, 503, 504)
GONE = (404, 410)
CLOSED = (401, 403, 451)
RANGE_REFUSED = 416
CHECKSUMS = ("md5", "sha1", "sha256", "sha512")

Report = Callable[[int, int | None], None]
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server; ``size`` in bytes, ``checksum`` as ``md5:...``; None: not known.

    ``name`` is a path below the place where it is to lie, with ``/``; "" is that place itself.
    """

    url: str
    name: str
    size: int | None = None
    checksum: str | None = None

    @property
    def is_stated(self) -> bool:
        """Whether something tells when it is whole."""
        return self.size is not None or self.checksum is not None


@dataclass(frozen=True)
class Patience:
    """How long to bear with a server; times in seconds.

    ``attempts`` are those in a row that bring less than a megabyte more than was ever there.
    Between them the wait doubles from ``first_wait``, or is what the server asks for, up to
    ``longest_wait``.
    """

    timeout: float = 30.0
    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 120.0


class Stopping(Exception):
    """Another thread asked to stop."""


class _Transient(OSError):
    """A failure that may pass; ``wait`` is what the server asks for."""

    def __init__(self, reason: str, wait: float | None = None, *, absent: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.absent = absent  # nobody answers at that address


class _PastTheEnd(OSError):
    """The server has no more bytes than were kept; ``total`` is what it has, where it says so."""

    def __init__(self, total: int | None) -> None:
        super().__init__("the server has no more bytes than were kept")
        self.total = total


def partial_path(target: Path) -> Path:
    """Where the parts of a file are kept until it is complete."""
    return target.with_name(target.name + ".partial")


def fetch(
    remote: RemoteFile,
    target: Path,
    *,
    resume: bool = False,
    patience: Patience | None = None,
    stop: threading.Event | None = None,
    report: Report | None = None,
) -> bool:
    """Fetch a file to ``target``, replacing what is there when all of it has come and is right.

    Parameters
    ----------
    remote
        The file; its own ``name`` is not looked at.
    resume
        Go on with what an earlier process left, if it is of the same version of the file.
    stop
        Checked after each megabyte and while waiting.
    report
        Called with the bytes that are there, and all there are if known; may go back to 0.

    Returns
    -------
    bool
        Whether it is known to be whole: its checksum or its size was stated, or its end was marked.

    Raises
    ------
    FileNotFoundError
        The server has no such file.
    ValueError
        Size or checksum are wrong; what was fetched is removed.
    OSError
        The server refuses, or does not answer for longer than ``patience``; what came is kept.
    Stopping
        ``stop`` was set; what came is kept.
    """
    patience, stop = patience or Patience(), stop or threading.Event()
    part = partial_path(target)
    if not resume:
        discard(target)
    ended = _insist(
        remote.url, lambda: _attempt(remote, part, patience, stop, report), part, patience, stop
    )
    if problem := damage(remote, part):
        discard(target)
        raise ValueError(
            f"{remote.url} {problem}: the download was damaged or altered and is removed; try again"
        )
    rename(part, target)
    _version_path(part).unlink(missing_ok=True)
    return ended or remote.is_stated


def read_json(url: str, patience: Patience | None = None) -> Any:
    """Return what a server answers in JSON.

    Raises
    ------
    FileNotFoundError, OSError
        As `fetch`; also if the answer is not JSON.
    """
    patience, stop = patience or Patience(), threading.Event()

    def ask() -> bytes:
        with _open(url, {}, patience.timeout) as response:
            return _read(response, LISTING_BYTES)

    try:
        return json.loads(_insist(url, ask, None, patience, stop))
    except (ValueError, RecursionError) as error:
        raise OSError(
            f"{url} did not answer in JSON: is this the server that was meant?"
        ) from error


def size_on_server(url: str, patience: Patience | None = None) -> int | None:
    """Return the bytes of a file as its server states them; None where it does not."""
    patience, stop = patience or Patience(), threading.Event()

    def ask() -> int | None:
        with _open(url, {}, patience.timeout, method="HEAD") as response:
            return _number(response.headers.get("Content-Length"))

    return _insist(url, ask, None, patience, stop)


def damage(remote: RemoteFile, path: Path) -> str | None:
    """Say what is wrong with a file that is there; None where it is as the server has it."""
    size = path.stat().st_size
    if remote.size is not None and size != remote.size:
        return f"has {size:,} bytes instead of {remote.size:,}"
    if remote.checksum is None:
        return None
    algorithm, _, wanted = remote.checksum.partition(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(
            file, lambda: hashlib.new(algorithm, usedforsecurity=False)
        ).hexdigest()
    return None if found == wanted else f"does not have the checksum {remote.checksum}"


def known_checksum(algorithm: str, value: str) -> str | None:
    """Return a sum as ``md5:...``, or None where it is of a kind that is not known here."""
    name = algorithm.lower().replace("-", "")
    return f"{name}:{value.lower()}" if name in CHECKSUMS and value else None


def discard(target: Path) -> None:
    """Remove what was kept of a file that is not complete."""
    part = partial_path(target)
    part.unlink(missing_ok=True)
    _version_path(part).unlink(missing_ok=True)


def _version_path(part: Path) -> Path:
    return part.with_name(part.name + ".version")


def _size(part: Path | None) -> int:
    return part.stat().st_size if part is not None and part.exists() else 0


def _insist(
    url: str,
    attempt: Callable[[], Answer],
    part: Path | None,
    patience: Patience,
    stop: threading.Event,
) -> Answer:
    """Repeat an attempt until it succeeds, or fails for good."""
    failures, fetched_any = 0, False
    most = _size(part)  # what is only fetched again, from a server without ranges, is no progress
    while True:
        try:
            return attempt()
        except _Transient as error:
            failures += 1
            if _size(part) - most >= CHUNK_BYTES:
                failures, fetched_any = 1, True
            most = max(most, _size(part))
            if failures >= patience.attempts or (error.absent and not fetched_any):
                kept = "; what came is kept: go on with --resume" if _size(part) else ""
                advice = ": is there a network, or a proxy to set?" if error.absent else ""
                raise OSError(f"{url}: {error}{advice}{kept}") from error
            wait = patience.first_wait * 2 ** (failures - 1) * random.uniform(0.75, 1)
            wait = min(wait, patience.longest_wait) if error.wait is None else error.wait
            if wait > patience.longest_wait:
                raise OSError(f"{url}: {error} and asks to wait {wait:.0f} s: try later") from error
        if stop.wait(wait):
            raise Stopping


def _attempt(
    remote: RemoteFile,
    part: Path,
    patience: Patience,
    stop: threading.Event,
    report: Report | None,
) -> bool:
    """Fetch what is missing of a file, over one connection; return whether its end was certain."""
    have, version = _usable(remote, part)
    if have and have == remote.size:
        return True
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and version:
        headers["If-Range"] = version
    try:
        opened = _open(remote.url, headers, patience.timeout)
    except _PastTheEnd as error:
        if have and error.total == have:
            return True
        part.unlink(missing_ok=True)
        raise _Transient(f"{error}: beginning again", wait=0) from error
    with opened as response:
        start = _starts_at(response, have)
        if start is None:
            part.unlink(missing_ok=True)
            raise _Transient("the server sent another range than was asked for: beginning again", 0)
        length = _number(response.headers.get("Content-Length"))
        total = remote.size if length is None else start + length
        if remote.size not in (None, total):
            raise ValueError(
                f"{remote.url} has {total:,} bytes, but is listed with {remote.size:,}: it changed, "
                "or the server sent another page"
            )
        if not start:
            part.unlink(missing_ok=True)
            _remember_version(part, response)
        with part.open("ab") as file:
            done = start
            while chunk := _read(response, CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                if report is not None:
                    report(done, total)
                if stop.is_set():
                    raise Stopping
            file.flush()
            os.fsync(file.fileno())
    if total is not None and done < total:
        raise _Transient(f"the connection ended after {done:,} of {total:,} bytes")
    return total is not None or bool(response.chunked)


def _usable(remote: RemoteFile, part: Path) -> tuple[int, str]:
    """Bytes of a part that may be gone on with, and the version of the file they are of."""
    have = _size(part)
    path = _version_path(part)
    version = path.read_text(encoding="latin-1").strip() if path.exists() else ""
    too_much = remote.size is not None and have > remote.size
    if too_much or not (version or remote.checksum):
        return 0, ""
    return have, version


def _remember_version(part: Path, response: http.client.HTTPResponse) -> None:
    tag = response.headers.get("ETag", "")
    version = response.headers.get("Last-Modified", "") if tag.startswith("W/") or not tag else tag
    path = _version_path(part)
    if version:
        path.write_text(version, encoding="latin-1")
    else:
        path.unlink(missing_ok=True)


def _starts_at(response: http.client.HTTPResponse, have: int) -> int | None:
    """First byte of an answer: where we stopped, 0 where all is sent again, None where it is neither."""
    if response.status != 206:
        return 0
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    return have if unit == "bytes" and rest.partition("-")[0] == str(have) else None


def _open(
    url: str, headers: dict[str, str], timeout: float, method: str = "GET"
) -> http.client.HTTPResponse:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"{url!r} is not an address to fetch from: expected http:// or https://")
    sent = {"User-Agent": f"etsam/{__version__}", **headers}
    try:
        request = urllib.request.Request(url, headers=sent, method=method)
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(url, error) from error
    except urllib.error.URLError as error:
        reason = error.reason
        if isinstance(reason, ssl.SSLCertVerificationError) or not isinstance(reason, OSError):
            raise OSError(f"{url}: {reason}") from error
        raise _no_answer(reason) from error
    except (OSError, http.client.HTTPException) as error:
        raise _no_answer(error) from error
    return response


def _read(response: http.client.HTTPResponse, count: int) -> bytes:
    try:
        return response.read(count)
    except (TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException) as error:
        raise _no_answer(error) from error


def _no_answer(error: Exception) -> _Transient:
    absent = isinstance(error, ConnectionRefusedError | socket.gaierror)
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return _Transient(" ".join(str(text).split()), absent=absent)


def _refusal(url: str, error: urllib.error.HTTPError) -> OSError:
    answer = f"the server answered {error.code} {error.reason}".strip()
    if error.code in BUSY:
        return _Transient(answer, _retry_after(error.headers.get("Retry-After")))
    if error.code in GONE:
        return FileNotFoundError(f"{url} is not there: {answer}")
    if error.code in CLOSED:
        return PermissionError(f"{url} is not public: {answer}")
    if error.code == RANGE_REFUSED:
        return _PastTheEnd(_number(error.headers.get("Content-Range", "").rpartition("/")[2]))
    return OSError(f"{url}: {answer}")


def _retry_after(text: str | None) -> float | None:
    """Seconds that a server asks to wait: it gives a number or a date."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return None


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdecimal() else None

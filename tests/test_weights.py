"""Weights: bundled, fetched from a server that speaks Zenodo's API, or in a folder."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from etsam import weights
from etsam.fetch import Patience
from etsam.weights import (
    ETSAM_V1,
    START_WEIGHTS,
    ZenodoModel,
    fetch_model,
    resolve_checkpoints,
    resolve_model,
)
from test_cli import Run, assert_one_line

STAGE1 = b"first stage" * 50_000
STAGE2 = b"second stage" * 50_000


class FakeZenodo(ThreadingHTTPServer):
    """A record server on loopback; ``fault`` names what goes wrong."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fault = ""
        self.asked: list[str] = []
        self.files = {ETSAM_V1.stage1: STAGE1, ETSAM_V1.stage2: STAGE2}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def listing(self) -> bytes:
        files = [
            {
                "key": name,
                "size": len(data),
                "checksum": f"md5:{hashlib.md5(data).hexdigest()}",
                "links": {"self": f"{self.url}/api/records/{ETSAM_V1.record}/files/{name}/content"},
            }
            for name, data in self.files.items()
            if not (self.fault == "file not listed" and name == ETSAM_V1.stage2)
        ]
        return json.dumps({"id": ETSAM_V1.record, "files": files}).encode()


class _Handler(BaseHTTPRequestHandler):
    server: FakeZenodo

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output quiet."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        fault, parts = self.server.fault, self.path.strip("/").split("/")
        if fault == "no record" or parts[:3] != ["api", "records", str(ETSAM_V1.record)]:
            self.send_error(404)
        elif len(parts) == 3:
            self._send(b"<html>busy</html>" if fault == "not json" else self.server.listing())
        elif fault == "no file":
            self.send_error(404)
        else:
            self._send_file(self.server.files[parts[4]], fault)

    def _send_file(self, data: bytes, fault: str) -> None:
        if fault == "altered":
            data = data[:-1] + b"!"
        self._send(data, cut=len(data) // 2 if fault == "interrupted" else None)

    def _send(self, data: bytes, cut: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:cut])


@pytest.fixture
def zenodo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeZenodo]:
    monkeypatch.setenv(weights.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "PATIENCE", Patience(attempts=2, first_wait=0.01))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with FakeZenodo() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def model_at(server: FakeZenodo) -> ZenodoModel:
    return replace(ETSAM_V1, server=server.url)


def test_fetches_once_then_works_without_the_server(zenodo: FakeZenodo) -> None:
    seen: list[tuple[float, str]] = []
    model = model_at(zenodo)
    files = fetch_model(model, progress=lambda fraction, message: seen.append((fraction, message)))
    assert [file.path.read_bytes() for file in files] == [STAGE1, STAGE2]
    sums = [hashlib.sha256(data).hexdigest() for data in (STAGE1, STAGE2)]
    assert [file.sha256 for file in files] == sums
    assert seen[-1] == (1.0, f"fetch {ETSAM_V1.stage2}")
    assert all(0 <= fraction <= 1 for fraction, _ in seen)
    asked = len(zenodo.asked)
    assert fetch_model(replace(model, server="http://127.0.0.1:9")) == files
    assert len(zenodo.asked) == asked
    assert sorted(path.name for path in model.folder.iterdir()) == sorted(
        [weights.CHECKSUM_FILE, ETSAM_V1.stage1, ETSAM_V1.stage2]
    )


def test_fetches_only_what_is_missing(zenodo: FakeZenodo) -> None:
    fetch_model(model_at(zenodo))[0].path.unlink()
    zenodo.asked.clear()
    fetch_model(model_at(zenodo))
    assert [path for path in zenodo.asked if "files" in path] == [
        f"/api/records/{ETSAM_V1.record}/files/{ETSAM_V1.stage1}/content"
    ]


@pytest.mark.parametrize(
    "fault", ["no record", "not json", "file not listed", "no file", "interrupted"]
)
def test_a_failed_download_says_where_to_get_and_put_the_files(
    zenodo: FakeZenodo, fault: str
) -> None:
    zenodo.fault = fault
    model = model_at(zenodo)
    with pytest.raises(OSError, match="cannot fetch model 'etsam-v1'") as caught:
        fetch_model(model)
    message = str(caught.value)
    for expected in (model.page, str(model.folder), "--model FOLDER", model.stage1, model.stage2):
        assert expected in message
    assert "\n" not in message
    left = [] if not model.folder.exists() else [path.name for path in model.folder.iterdir()]
    begun = {"file not listed": ETSAM_V1.stage1, "interrupted": f"{ETSAM_V1.stage1}.partial"}
    assert left == ([begun[fault]] if fault in begun else [])
    zenodo.fault = ""
    assert fetch_model(model)[1].path.read_bytes() == STAGE2


def test_train_is_advised_a_file(
    run: Run, tmp_path: Path, zenodo: FakeZenodo, monkeypatch: pytest.MonkeyPatch
) -> None:
    zenodo.fault = "no record"
    model = model_at(zenodo)
    monkeypatch.setitem(weights.MODELS, model.name, model)
    asked = ("train", tmp_path, "-o", tmp_path / "run", "--start", "etsam-v1")
    code, _, err = run(*asked)
    assert code == 1
    advised = f"put it into {model.folder}, or name it with --start FILE"
    assert_one_line(err, f"get {model.stage1} from {model.page} and {advised}")
    assert "--model" not in err


def test_an_altered_download_is_refused_and_removed(zenodo: FakeZenodo) -> None:
    zenodo.fault = "altered"
    with pytest.raises(ValueError, match="does not have the checksum md5:"):
        fetch_model(model_at(zenodo))
    assert list(model_at(zenodo).folder.iterdir()) == []


def test_without_a_network_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(weights.CACHE_VARIABLE, str(tmp_path))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(OSError, match="refused") as caught:
        fetch_model(replace(ETSAM_V1, server=f"http://127.0.0.1:{port}"))
    assert str(tmp_path / "etsam-v1") in str(caught.value)


def test_a_cached_file_that_changed_is_refused(zenodo: FakeZenodo) -> None:
    stage2 = fetch_model(model_at(zenodo))[1].path
    stage2.write_bytes(STAGE2[:1000])
    with pytest.raises(ValueError, match="changed since it was fetched"):
        fetch_model(model_at(zenodo))
    (stage2.parent / weights.CHECKSUM_FILE).write_text("0123\n")
    with pytest.raises(ValueError, match="SHA256SUMS is damaged: delete .* fetched anew"):
        fetch_model(model_at(zenodo))


def test_files_put_into_the_cache_by_hand_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(weights.CACHE_VARIABLE, str(tmp_path))
    folder = tmp_path / "etsam-v1"
    folder.mkdir()
    (folder / ETSAM_V1.stage1).write_bytes(STAGE1)
    (folder / ETSAM_V1.stage2).write_bytes(STAGE2)
    assert resolve_model("etsam-v1").stage1 == folder / ETSAM_V1.stage1


def test_a_folder_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "mine_stage1.safetensors").write_bytes(STAGE1)
    (tmp_path / "mine_stage2.pt").write_bytes(STAGE2)
    (tmp_path / "stage1_log.jsonl").write_text("{}")
    files = resolve_model(tmp_path)
    assert (files.stage1.name, files.stage2.name) == ("mine_stage1.safetensors", "mine_stage2.pt")
    assert files.name == tmp_path.name
    assert files.sha256[0] == hashlib.sha256(STAGE1).hexdigest()


def test_a_folder_with_no_or_two_candidates_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a_stage1.pt").write_bytes(STAGE1)
    with pytest.raises(FileNotFoundError, match="no stage2 checkpoint"):
        resolve_model(str(tmp_path))
    (tmp_path / "b_stage1.pt").write_bytes(STAGE1)
    with pytest.raises(ValueError, match="--stage1-checkpoint"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize("other", ["._a_stage1.pt", ".a_stage1.pt"])
def test_hidden_files_are_no_candidates(tmp_path: Path, other: str) -> None:
    for name in (other, "a_Stage1.PT", "a_stage2.pt"):
        (tmp_path / name).write_bytes(STAGE1)
    assert resolve_model(tmp_path).stage1.name == "a_Stage1.PT"


def test_only_the_stage_that_is_wanted_is_looked_for(zenodo: FakeZenodo, tmp_path: Path) -> None:
    """The remedy for two candidates, naming one, met the same error."""
    for name in ("a_stage1.pt", "b_stage1.pt", "a_stage2.pt"):
        (tmp_path / name).write_bytes(STAGE2)
    (file,) = resolve_checkpoints(tmp_path, [2])
    assert file.path.name == "a_stage2.pt"
    assert file.sha256 == hashlib.sha256(STAGE2).hexdigest()
    (fetched,) = fetch_model(model_at(zenodo), [2])
    assert fetched.path.name == ETSAM_V1.stage2
    assert not any(path.endswith(f"{ETSAM_V1.stage1}/content") for path in zenodo.asked)


def test_a_cache_that_cannot_be_written_is_said_before_the_network(
    zenodo: FakeZenodo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It read like a failing server."""
    (tmp_path / "file").touch()
    monkeypatch.setenv(weights.CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    for fetch in (
        lambda: fetch_model(model_at(zenodo)),
        lambda: weights.fetch_start_weights("sam2.1-large"),
    ):
        with pytest.raises(OSError, match=r"cache .*cache cannot be written .* set ETSAM_CACHE"):
            fetch()
    assert zenodo.asked == []


def test_files_put_into_the_cache_by_hand_are_opened_by_fetch(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page in place of a file was said to be in order."""
    monkeypatch.setenv(weights.CACHE_VARIABLE, str(tmp_path))
    (tmp_path / "etsam-v1").mkdir()
    for name in (ETSAM_V1.stage1, ETSAM_V1.stage2):
        (tmp_path / "etsam-v1" / name).write_text("<!DOCTYPE html><html></html>")
    code, out, err = run("weights", "fetch", "etsam-v1")
    assert (code, out) == (1, "")
    assert_one_line(err, ETSAM_V1.stage1)
    code, out, _ = run("weights", "fetch", "compact")
    assert code == 0 and len(out.splitlines()) == 2


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="expected compact, etsam-v1, or an existing folder"):
        resolve_model("nonesuch")


def test_the_bundled_model_answers_or_says_it_is_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights.BundledModel, "folder", tmp_path)
    with pytest.raises(FileNotFoundError, match="not in this installation"):
        resolve_model("compact")
    (tmp_path / weights.COMPACT.stage1).write_bytes(STAGE1)
    (tmp_path / weights.COMPACT.stage2).write_bytes(STAGE2)
    assert resolve_model("compact").sha256[1] == hashlib.sha256(STAGE2).hexdigest()


def test_start_weights_are_checked(
    zenodo: FakeZenodo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zenodo.files["sam2.1_hiera_tiny.pt"] = STAGE1
    url = f"{zenodo.url}/api/records/{ETSAM_V1.record}/files/sam2.1_hiera_tiny.pt"
    right = weights.StartWeights("sam2.1-tiny", url, hashlib.sha256(STAGE1).hexdigest())
    wrong = START_WEIGHTS["sam2.1-tiny"].sha256
    monkeypatch.setitem(START_WEIGHTS, "sam2.1-tiny", replace(right, sha256=wrong))
    with pytest.raises(ValueError, match="checksum"):
        weights.fetch_start_weights("sam2.1-tiny")
    monkeypatch.setitem(START_WEIGHTS, "sam2.1-tiny", right)
    path = weights.fetch_start_weights("sam2.1-tiny")
    assert path.read_bytes() == STAGE1
    path.write_bytes(STAGE2)
    with pytest.raises(ValueError, match="wrong SHA-256"):
        weights.fetch_start_weights("sam2.1-tiny")
    with pytest.raises(ValueError, match="expected sam2.1-tiny, sam2.1-small"):
        weights.fetch_start_weights("sam3")

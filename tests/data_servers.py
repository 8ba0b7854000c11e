"""One server on loopback that speaks what Zenodo, a Dataverse, the CryoET Data Portal and S3 speak."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import threading
import time
import urllib.parse
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files as package_files
from typing import Any
from xml.sax.saxutils import escape

from etsam.download import DownloadOptions
from etsam.fetch import Patience
from etsam.listing import Selection
from etsam.portal import PortalServers

BUCKET = "cryoet-data-portal-public"
DATAVERSE_DOI = "10.7910/DVN/K4JKCW"
RECORD = 17571925
ZENODO_DOI = f"10.5281/zenodo.{RECORD}"
TOMOGRAM = b"tomogram" * 50_000
MASK = b"mask" * 20_000
PAGE = 2  # keys that S3 lists at once


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


class DataServers(ThreadingHTTPServer):
    """Holds files and answers for them.

    ``faults`` maps a path to what goes wrong with the next requests for it, first come first:
    a status code (with headers), ``("cut", n)`` ends the connection after n bytes, ``("stall", n)``
    falls silent there for a second, ``("hold", n)`` until ``released`` is set, ``("alter", n)``
    changes byte n, ``("slow", seconds)`` waits per 64 kB, ``("shift", n)`` sends a range n bytes
    further on than was asked for.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.zenodo: dict[int, dict[str, bytes]] = {}
        self.dataverse: list[dict[str, Any]] = []
        self.portal: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.faults: dict[str, list[Any]] = defaultdict(list)
        self.asked: list[tuple[str, str, str | None]] = []  # method, path, range
        self.ranges = self.tags = self.lengths = True
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add_dataverse(self, name: str, data: bytes, **record_of_file: Any) -> None:
        """Add a file ``folder/label`` to the data set; the rest goes into its ``dataFile``."""
        folder, _, label = name.rpartition("/")
        number = 100 + len(self.dataverse)
        record = {"id": number, "filename": label, "filesize": len(data), "md5": md5(data)}
        record["checksum"] = {"type": "MD5", "value": md5(data)}
        entry = {"label": label, "directoryLabel": folder, "dataFile": record | record_of_file}
        self.dataverse.append(entry)
        self.files[f"/store/{number}"] = data

    def add_run(
        self, dataset: int, run: int, name: str, spacing: float = 10.0, **arrays: bytes
    ) -> None:
        """Add a run with a tomogram (``tomogram``) and annotations (``a500`` for number 500)."""
        prefix = f"{dataset}/{name}/Reconstructions/VoxelSpacing{spacing:.3f}"
        self.portal["runs"].append({"id": run, "datasetId": dataset, "name": name})
        path = f"{prefix}/Tomograms/100/{name}"
        self.add_tomogram(run, path, arrays.pop("tomogram"), run + 1, spacing)
        for key, data in arrays.items():
            number = int(key[1:])
            path = f"{prefix}/Annotations/{number}/membrane-1.0_segmentationmask"
            self.portal["annotations"].append(
                {"id": number, "runId": run, "objectName": "membrane", "groundTruthStatus": False}
                | {"isCuratorRecommended": False}
            )
            shape = {"id": number * 10, "annotationId": number, "shapeType": "SegmentationMask"}
            self.portal["annotationShapes"].append(shape)
            for kind in ("mrc", "zarr"):
                place = f"{path}.{kind}"
                self.portal["annotationFiles"].append(
                    {"id": number * 100 + (kind == "zarr"), "annotationShapeId": number * 10}
                    | {"tomogramVoxelSpacingId": run + 1, "format": kind, "fileSize": len(data)}
                    | {"s3Path": f"s3://{BUCKET}/{place}"}
                    | {"httpsPath": f"https://files.invalid/{place}"}
                )
            self.files[f"/{path}.mrc"] = data
            self.files[f"/{path}.zarr/.zattrs"] = b"{}"
            self.files[f"/{path}.zarr/0/0/0/0"] = data

    def add_tomogram(self, run: int, path: str, data: bytes, group: int, spacing: float) -> None:
        """Add a tomogram to a run; ``group`` is the number of its voxel spacing."""
        self.portal["tomograms"].append(
            {
                "id": 10 * group,
                "runId": run,
                "voxelSpacing": spacing,
                "fileSizeMrc": float(len(data)),
            }
            | {"tomogramVoxelSpacingId": group, "isVisualizationDefault": True}
            | {"httpsMrcFile": f"https://files.invalid/{path}.mrc"}
            | {"s3MrcFile": f"s3://{BUCKET}/{path}.mrc"}
            | {"httpsOmezarrDir": f"https://files.invalid/{path}.zarr"}
            | {"s3OmezarrDir": f"s3://{BUCKET}/{path}.zarr"}
        )
        self.files[f"/{path}.mrc"] = data
        for chunk in (".zattrs", ".zgroup", "0/.zarray", "0/0/0/0", "0/0/0/1"):
            self.files[f"/{path}.zarr/{chunk}"] = data + chunk.encode()


@contextmanager
def running() -> Iterator[DataServers]:
    """Serve until the block ends."""
    with DataServers() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def stocked() -> Iterator[DataServers]:
    """Serve a record, two runs of the portal and a few files of the paper's data set."""
    with running() as server:
        server.zenodo[RECORD] = {"a.pt": TOMOGRAM, "b c.pt": MASK}
        server.add_run(10000, 245, "TS_026", tomogram=TOMOGRAM, a500=MASK)
        server.add_run(
            10444, 16674, "TS_9", 4.99, tomogram=TOMOGRAM[::-1], a32927=MASK, a4=b"other"
        )
        for run in ("10000/245", "emdb/4603"):
            server.add_dataverse(f"{run}/target_mask/truth.mrc", MASK)
        server.add_dataverse("emdb/4603/tomogram/emd_4603.map", TOMOGRAM)
        server.add_dataverse("train/polnet/x.mrc", b"x" * 77)
        yield server


def options(server: DataServers, **more: object) -> DownloadOptions:
    selection = Selection(
        zenodo=server.url,
        dataverse=server.url,
        portal=PortalServers(f"{server.url}/graphql", server.url, server.url),
        patience=Patience(timeout=30, attempts=3, first_wait=0.01, longest_wait=2),
    )
    own = {name: more.pop(name) for name in ("workers", "resume", "overwrite") if name in more}
    return DownloadOptions(replace(selection, **more), **own)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    server: DataServers
    timeout = 5

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output quiet."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(("POST", self.path, None))
        if self._refused(self.path):
            return
        self._send(json.dumps(answer_graphql(self.server.portal, question)).encode())

    def _answer(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(parts.path)
        self.server.asked.append((self.command, path, self.headers.get("Range")))
        if self._refused(path):
            return
        words = path.strip("/").split("/")
        if path.startswith("/api/records/") and len(words) == 3:
            self._zenodo(int(words[2]))
        elif path.startswith("/api/records/") and int(words[2]) in self.server.zenodo:
            self._file(path, self.server.zenodo[int(words[2])].get(words[4]))
        elif path.startswith("/api/datasets/:persistentId"):
            self._dataverse(urllib.parse.parse_qs(parts.query))
        elif path.startswith("/api/access/datafile/"):
            self.send_response(303)  # as Dataverse does where its files lie in S3
            self.send_header("Location", f"{self.server.url}/store/{words[3]}")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif words[0] == BUCKET:
            self._bucket(urllib.parse.parse_qs(parts.query))
        else:
            self._file(path, self.server.files.get(path))

    def _refused(self, path: str) -> bool:
        """Play the next fault of a path if it is a status."""
        faults = self.server.faults[path]
        if faults and isinstance(faults[0], int):
            self.send_response(faults.pop(0))
            for name, value in (
                faults.pop(0) if faults and isinstance(faults[0], dict) else {}
            ).items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return True
        return False

    def _zenodo(self, record: int) -> None:
        if record not in self.server.zenodo:
            self.send_error(404)
            return
        base = f"{self.server.url}/api/records/{record}/files"
        files = [
            {"key": name, "size": len(data), "checksum": f"md5:{md5(data)}"}
            | {"links": {"self": f"{base}/{urllib.parse.quote(name)}/content"}}
            for name, data in self.server.zenodo[record].items()
        ]
        self._send(json.dumps({"id": record, "files": files}).encode())

    def _dataverse(self, query: dict[str, list[str]]) -> None:
        if query.get("persistentId") != [f"doi:{DATAVERSE_DOI}"]:
            self.send_error(404)
            return
        version = {"latestVersion": {"files": self.server.dataverse}}
        self._send(json.dumps({"status": "OK", "data": version}).encode())

    def _bucket(self, query: dict[str, list[str]]) -> None:
        """List keys as S3's ListObjectsV2 does, a page at a time."""
        prefix, after = query["prefix"][0], query.get("continuation-token", [""])[0]
        keys = sorted(path[1:] for path in self.server.files if path[1:].startswith(prefix))
        page = [key for key in keys if key > after]
        more = len(page) > PAGE
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.server.files['/' + key])}</Size></Contents>"
            for key in page[:PAGE]
        )
        token = (
            f"<NextContinuationToken>{escape(page[PAGE - 1])}</NextContinuationToken>"
            if more
            else ""
        )
        self._send(
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>".encode()
        )

    def _file(self, path: str, data: bytes | None) -> None:
        if data is None:
            self.send_error(404)
            return
        faults = self.server.faults[path]
        kind, where = faults.pop(0) if faults and self.command == "GET" else ("", 0)
        tag = f'"{md5(data)}"'
        start = 0
        asked = self.headers.get("Range")
        if asked and self.server.ranges and self.headers.get("If-Range", tag) == tag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        if start >= len(data) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            start += int(where) if kind == "shift" else 0
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if self.server.tags:
            self.send_header("ETag", tag)
        if self.server.lengths:
            self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "GET":
            self._body(data, start, kind, where)

    def _body(self, data: bytes, start: int, kind: str, where: float) -> None:
        server = self.server
        with server.lock:
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            if kind == "alter":
                data = data[: int(where)] + bytes([data[int(where)] ^ 255]) + data[int(where) + 1 :]
            stop = int(where) if kind in ("cut", "stall", "hold") else len(data)
            for place in range(start, stop, 65536):
                self.wfile.write(data[place : min(place + 65536, stop)])
                time.sleep(where if kind == "slow" else 0)
            if kind == "stall":
                self.wfile.flush()
                time.sleep(1.0)
            if kind == "hold":
                self.wfile.flush()
                server.released.wait(600)
        except ConnectionError:
            pass  # the client went away
        finally:
            with server.lock:
                server.at_once -= 1

    def _send(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@cache
def portal_schema() -> Any:
    """The schema that the portal publishes."""
    from graphql import build_schema

    text = package_files("cryoet_data_portal").joinpath("data/schema.graphql").read_text("utf-8")
    return build_schema(text, assume_valid=True)


def answer_graphql(tables: dict[str, list[dict[str, Any]]], question: dict[str, Any]) -> Any:
    """Answer a question as the portal's API does, by its published schema."""
    from graphql import default_field_resolver, get_named_type, graphql_sync, is_non_null_type

    def rows(table: str) -> Any:
        def resolve(_info: Any, where: dict[str, Any] | None = None, **_more: Any) -> Any:
            return [row for row in tables[table] if fits(row, where or {})]

        return resolve

    def resolve(source: Any, info: Any, **arguments: Any) -> Any:
        value = default_field_resolver(source, info, **arguments)
        if value is not None or not is_non_null_type(info.return_type):
            return value
        named = get_named_type(info.return_type)  # something, where the test does not care
        blanks = {"Int": 0, "Float": 0.0, "String": "", "Boolean": False}
        first = next(iter(named.values)) if hasattr(named, "values") else "2020-01-01T00:00:00"
        return blanks.get(named.name, first)

    names = ("runs", "tomograms", "annotations", "annotationShapes", "annotationFiles")
    result = graphql_sync(
        portal_schema(),
        question["query"],
        {name: rows(name) for name in names},
        variable_values=question.get("variables"),
        field_resolver=resolve,
    )
    return result.formatted


def fits(row: dict[str, Any], where: dict[str, Any]) -> bool:
    """Whether a row is what a ``where`` of the API asks for."""
    tests = {
        "_eq": lambda value, wanted: value == wanted,
        "_in": lambda value, wanted: value in wanted,
        "_ilike": lambda value, wanted: fnmatch.fnmatch(
            value.lower(), wanted.lower().replace("%", "*")
        ),
    }
    return all(
        tests[operator](row.get(name), wanted)
        for name, condition in where.items()
        for operator, wanted in condition.items()
    )

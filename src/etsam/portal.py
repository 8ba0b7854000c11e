"""Tomograms and membrane masks of runs of the CryoET Data Portal, by its official client.

The client answers which files there are; fetching them is left to `etsam.fetch`, which can go on
after an interruption and checks sizes. The package ``cryoet-data-portal`` is optional.
"""

from __future__ import annotations

import importlib
import socket
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from etsam.fetch import RemoteFile
from etsam.published import PublishedRun

Format = Literal["mrc", "zarr"]

MASKS = "SegmentationMask"
OBJECT = "%membrane%"
SAME_SPACING = 0.005  # relative; the portal rounds
REGION = "us-west-2"  # of the portal's bucket
TIMEOUT_S = 60


@dataclass(frozen=True)
class PortalServers:
    """Where to ask instead of the portal's own servers; None: there.

    ``graphql`` is the address of its API, ``files`` what its files' addresses begin with in place
    of scheme and host, ``s3`` the endpoint that lists its bucket.
    """

    graphql: str | None = None
    files: str | None = None
    s3: str | None = None


@dataclass(frozen=True)
class PortalFile:
    """A tomogram or a mask: a file, or a Zarr of many; ``name`` is that of the file or folder."""

    name: str
    parts: tuple[RemoteFile, ...]


@dataclass(frozen=True)
class PortalRun:
    """What the portal has of a run: its tomogram, and the masks that lie on it."""

    tomogram: PortalFile
    masks: tuple[PortalFile, ...]


def portal_runs(
    runs: Sequence[PublishedRun],
    *,
    format: Format = "mrc",
    with_masks: bool = True,
    servers: PortalServers | None = None,
) -> dict[str, PortalRun | FileNotFoundError]:
    """Ask the portal for the files of runs, by ``dataset/run``: five or six questions for all of them.

    The tomogram is the one with the run's voxel spacing, of several the one with masks on it, then
    the one that the portal shows, then the oldest. Masks are the run's annotations if it names
    any; else all of membranes that count as ground truth, or that a curator recommends, or all.

    Returns
    -------
    dict
        By name the files of a run; or, where there is no such run, tomogram or mask, the error that
        says so.

    Raises
    ------
    ValueError
        The client is not installed.
    OSError
        The portal does not answer, or not as it should.
    """
    api = _client_module()
    servers = servers or PortalServers()
    with _portal_errors(servers):
        client = api.Client(servers.graphql)
        _with_timeout(client)
        answers = _Answers(api, client, runs, format, with_masks)
        files = _Files(format, servers)
        return {run.name: _found_or_not(answers, run, files) for run in runs}


class _Answers:
    """All that the portal says of some runs, asked for at once."""

    def __init__(
        self,
        api: ModuleType,
        client: Any,
        runs: Sequence[PublishedRun],
        format: Format,
        with_masks: bool,
    ) -> None:
        numbers = sorted({int(run.run) for run in runs})
        self.runs = {item.id: item for item in api.Run.find(client, [api.Run.id._in(numbers)])}
        self.tomograms = _grouped(
            api.Tomogram.find(client, [api.Tomogram.run_id._in(numbers)]), "run_id"
        )
        self.with_masks = with_masks
        self.annotations: dict[int, list[Any]] = {}
        self.files: dict[int, list[Any]] = {}
        if with_masks:
            self._ask_masks(api, client, runs, format)

    def _ask_masks(
        self, api: ModuleType, client: Any, runs: Sequence[PublishedRun], format: Format
    ) -> None:
        named = sorted({number for run in runs for number in run.annotations})
        unnamed = sorted({int(run.run) for run in runs if not run.annotations})
        found = []
        if named:
            found += api.Annotation.find(client, [api.Annotation.id._in(named)])
        if unnamed:
            wanted = [api.Annotation.run_id._in(unnamed), api.Annotation.object_name.ilike(OBJECT)]
            found += api.Annotation.find(client, wanted)
        self.annotations = _grouped(found, "run_id")
        shape, file = api.AnnotationShape, api.AnnotationFile
        numbers = sorted({item.id for item in found})
        shapes = shape.find(client, [shape.annotation_id._in(numbers), shape.shape_type == MASKS])
        owner = {item.id: item.annotation_id for item in shapes}
        wanted = [file.annotation_shape_id._in(sorted(owner)), file.format == format]
        for item in file.find(client, wanted) if owner else []:
            self.files.setdefault(owner[item.annotation_shape_id], []).append(item)

    def of(self, run: PublishedRun, files: _Files) -> PortalRun:
        """Choose the tomogram and the masks of a run."""
        found = self.runs.get(int(run.run))
        if found is None or str(found.dataset_id) != run.dataset:
            there = "" if found is None else f": run {run.run} is of data set {found.dataset_id}"
            raise FileNotFoundError(f"the portal has no run {run.name}{there}")
        chosen = self._annotations(run)
        spacings = {file.tomogram_voxel_spacing_id for item in chosen for file in self.files[item]}
        tomogram = self._tomogram(run, spacings)
        masks = [
            files.mask(number, file)
            for number in chosen
            for file in self.files[number]
            if file.tomogram_voxel_spacing_id == tomogram.tomogram_voxel_spacing_id
        ]
        if self.with_masks and not masks:
            raise FileNotFoundError(
                f"the portal has no membrane mask on the tomogram of {run.name} in this format: "
                "give --masks none, or the other --format"
            )
        return PortalRun(files.tomogram(run, tomogram), tuple(masks))

    def _annotations(self, run: PublishedRun) -> list[int]:
        """Numbers of the annotations to take that have a mask."""
        items = [item for item in self.annotations.get(int(run.run), []) if item.id in self.files]
        if not run.annotations:
            truth = [item for item in items if item.ground_truth_status]
            items = truth or [item for item in items if item.is_curator_recommended] or items
        else:
            items = [item for item in items if item.id in run.annotations]
        return sorted(item.id for item in items)

    def _tomogram(self, run: PublishedRun, spacings: set[int]) -> Any:
        items = self.tomograms.get(int(run.run), [])
        if run.voxel_spacing is not None:
            near = SAME_SPACING * run.voxel_spacing
            items = [i for i in items if abs(i.voxel_spacing - run.voxel_spacing) <= near]
        if not items:
            size = "" if run.voxel_spacing is None else f" of {run.voxel_spacing:g} Å"
            raise FileNotFoundError(f"the portal has no tomogram{size} of run {run.name}")

        def order(item: Any) -> tuple[bool, bool, int]:
            beside = item.tomogram_voxel_spacing_id in spacings
            return not beside, not item.is_visualization_default, item.id

        return min(items, key=order)


class _Files:
    """Addresses and sizes of what the portal lists."""

    def __init__(self, format: Format, servers: PortalServers) -> None:
        self._format = format
        self._servers = servers

    def tomogram(self, run: PublishedRun, item: Any) -> PortalFile:
        """The file or the Zarr of a tomogram."""
        if self._format == "mrc":
            places = item.https_mrc_file, item.s3_mrc_file, item.file_size_mrc
        else:
            places = item.https_omezarr_dir, item.s3_omezarr_dir, None
        if not places[0]:
            raise FileNotFoundError(
                f"the portal has no {self._format} of tomogram {item.id} ({run.name})"
            )
        return self._file("", *places)

    def mask(self, annotation: int, item: Any) -> PortalFile:
        """The file or the Zarr of an annotation; its number is kept in the name."""
        size = item.file_size if self._format == "mrc" else None
        return self._file(f"{annotation}_", item.https_path, item.s3_path, size)

    def _file(self, prefix: str, https: str, s3: str, size: float | None) -> PortalFile:
        https = self._moved(https.rstrip("/"))
        name = prefix + https.rsplit("/", 1)[-1]
        if self._format == "mrc":
            return PortalFile(name, (RemoteFile(https, "", int(size) if size else None),))
        return PortalFile(name, tuple(_objects(s3, https, self._servers.s3)))

    def _moved(self, url: str) -> str:
        if self._servers.files is None:
            return url
        return self._servers.files.rstrip("/") + urllib.parse.urlsplit(url).path


def _found_or_not(
    answers: _Answers, run: PublishedRun, files: _Files
) -> PortalRun | FileNotFoundError:
    try:
        return answers.of(run, files)
    except FileNotFoundError as error:
        return error


def _objects(s3: str, https: str, endpoint: str | None) -> Iterator[RemoteFile]:
    """List what lies in a folder of the bucket, with sizes."""
    boto3 = importlib.import_module("boto3")
    botocore = importlib.import_module("botocore")
    config = importlib.import_module("botocore.config").Config(
        signature_version=botocore.UNSIGNED, connect_timeout=TIMEOUT_S, read_timeout=TIMEOUT_S
    )
    client = boto3.client("s3", endpoint_url=endpoint, region_name=REGION, config=config)
    bucket, _, key = s3.removeprefix("s3://").rstrip("/").partition("/")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{key}/")
    empty = True
    for page in pages:
        for item in page.get("Contents", ()):
            name = item["Key"].removeprefix(f"{key}/")
            if name and not name.endswith("/"):
                empty = False
                yield RemoteFile(f"{https}/{urllib.parse.quote(name)}", name, int(item["Size"]))
    if empty:
        raise FileNotFoundError(f"{s3} is empty")


def _grouped(items: Iterable[Any], name: str) -> dict[int, list[Any]]:
    result: dict[int, list[Any]] = {}
    for item in items:
        result.setdefault(getattr(item, name), []).append(item)
    return result


def _client_module() -> ModuleType:
    try:
        return importlib.import_module("cryoet_data_portal")
    except ModuleNotFoundError as error:
        raise ValueError(
            'runs of the CryoET Data Portal need its client: pip install "etsam[portal]"'
        ) from error


def _with_timeout(client: Any) -> None:
    """Make each question of the client end in time; by itself it waits for ever."""
    unbounded = client.get_client

    def bounded() -> Any:
        made = unbounded()
        made.transport.default_timeout = TIMEOUT_S
        return made

    client.get_client = bounded


@contextmanager
def _portal_errors(servers: PortalServers) -> Iterator[None]:
    """Say what the client's and the bucket's errors mean, in one line."""
    known = (
        importlib.import_module("gql.transport.exceptions").TransportError,
        importlib.import_module("requests.exceptions").RequestException,
        importlib.import_module("botocore.exceptions").BotoCoreError,
        importlib.import_module("botocore.exceptions").ClientError,
    )
    try:
        yield
    except known as error:
        where = servers.graphql or "the CryoET Data Portal"
        reason = _no_connection(error)
        if reason is not None:
            raise OSError(
                f"{where} cannot be reached ({reason}): is there a network, and a proxy where it needs "
                "one?"
            ) from error
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise OSError(f"{where} did not answer as the portal does: {text}") from error


def _no_connection(error: BaseException | None) -> str | None:
    """What the system says where no connection could be made; None for other errors."""
    while error is not None:
        if isinstance(error, socket.gaierror | ConnectionError) and error.strerror:
            return error.strerror
        error = error.__cause__ or error.__context__
    return None

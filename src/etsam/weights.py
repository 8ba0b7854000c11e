"""Where a model's weights are: bundled, fetched once and verified, or in a folder of the user's."""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from etsam.fetch import Patience, RemoteFile, fetch
from etsam.provenance import sha256
from etsam.repositories import ZENODO, zenodo_files
from etsam.storage import write_text

Progress = Callable[[float, str], None]

CACHE_VARIABLE = "ETSAM_CACHE"
CHECKSUM_FILE = "SHA256SUMS"
CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth")
LOCK_NAME = ".lock"
PATIENCE = Patience(attempts=4)


@dataclass(frozen=True)
class ModelFiles:
    """The two checkpoints of a model, on this machine.

    ``sha256`` holds the hexadecimal sums of stage 1 and stage 2, in this order.
    """

    name: str
    stage1: Path
    stage2: Path
    sha256: tuple[str, str]


@dataclass(frozen=True)
class BundledModel:
    """A model that travels with the package, as files in ``etsam/models``."""

    name: str
    stage1: str
    stage2: str
    about: str

    @property
    def folder(self) -> Path:
        """Folder of the installed package that holds the files."""
        return Path(str(importlib.resources.files("etsam") / "models"))


@dataclass(frozen=True)
class ZenodoModel:
    """A model in a Zenodo record; Zenodo's API names each file's address, size and MD5 sum."""

    name: str
    stage1: str
    stage2: str
    about: str
    record: int
    server: str = ZENODO

    @property
    def page(self) -> str:
        """The record's page for a browser."""
        return f"{self.server}/records/{self.record}"

    @property
    def folder(self) -> Path:
        """Folder of the cache that holds the files once fetched."""
        return cache_folder() / self.name


@dataclass(frozen=True)
class StartWeights:
    """Weights of SAM 2.1 that training starts from: address and SHA-256 sum."""

    name: str
    url: str
    sha256: str

    @property
    def path(self) -> Path:
        """Where the cache holds the file once fetched."""
        return cache_folder() / "sam2" / self.url.rsplit("/", 1)[-1]


Model = BundledModel | ZenodoModel

COMPACT = BundledModel(
    name="compact",
    stage1="compact_stage1.safetensors",
    stage2="compact_stage2.safetensors",
    about="small, bundled, trained on simulated tomograms; needs no network",
)
ETSAM_V1 = ZenodoModel(
    name="etsam-v1",
    stage1="etsam_stage1_v1.pt",
    stage2="etsam_stage2_v1.pt",
    about="published by Selvaraj and Cheng, two SAM 2.1 base-plus, doi 10.5281/zenodo.17571925",
    record=17571925,
)
MODELS: dict[str, Model] = {model.name: model for model in (COMPACT, ETSAM_V1)}
DEFAULT_MODEL = COMPACT.name

_SAM2_FOLDER = "https://dl.fbaipublicfiles.com/segment_anything_2/092824"
_SAM2_SHA256 = {
    "tiny": "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
    "small": "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
    "base_plus": "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
    "large": "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
}
START_WEIGHTS: dict[str, StartWeights] = {
    f"sam2.1-{size.replace('_', '-')}": StartWeights(
        name=f"sam2.1-{size.replace('_', '-')}",
        url=f"{_SAM2_FOLDER}/sam2.1_hiera_{size}.pt",
        sha256=sha256,
    )
    for size, sha256 in _SAM2_SHA256.items()
}


def cache_folder() -> Path:
    """Folder for fetched weights: ``$ETSAM_CACHE``, else the platform's cache folder."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("etsam")


def resolve_model(model: str | Path, *, progress: Progress | None = None) -> ModelFiles:
    """Find both checkpoints of a model by its name or its folder, fetching them if need be.

    Parameters
    ----------
    model
        A name of ``MODELS``, or a folder with one stage-1 and one stage-2 checkpoint: files with
        ``stage1`` and ``stage2`` in their names that end in .safetensors, .pt or .pth.
    progress
        Called with (fraction in 0..1, message) while a file is being fetched.

    Raises
    ------
    FileNotFoundError
        The bundled files are not in this installation, or the folder lacks a checkpoint.
    ValueError
        Neither a known name nor a folder, an ambiguous folder, or a wrong checksum.
    OSError
        The files are not cached and cannot be fetched; says where to get and where to put them.
    """
    record = MODELS.get(str(model))
    if isinstance(record, BundledModel):
        return _bundled(record)
    if isinstance(record, ZenodoModel):
        return fetch_model(record, progress=progress)
    folder = Path(model).expanduser()
    if model != "" and folder.is_dir():  # an empty name is not the current folder
        return _from_folder(folder)
    raise ValueError(
        f"no model {str(model)!r}: expected {', '.join(MODELS)}, or an existing folder with one "
        "stage1 and one stage2 checkpoint"
    )


def fetch_model(model: ZenodoModel, *, progress: Progress | None = None) -> ModelFiles:
    """Fetch a published model into the cache unless it is there, and check its sums.

    A download is checked against Zenodo's MD5 sum before it gets its name; its SHA-256 sum is then
    kept beside it, so that a cached file is checked again without a network.

    Raises
    ------
    ValueError
        A downloaded or a cached file has the wrong checksum.
    OSError
        The files cannot be fetched; says where to get and where to put them.
    """
    names = (model.stage1, model.stage2)
    missing = [name for name in names if not (model.folder / name).is_file()]
    if missing:
        try:
            listed = zenodo_files(model.record, server=model.server, patience=PATIENCE)
            for name in missing:
                _download(_listed(listed, name), model.folder / name, progress)
        except OSError as error:
            raise OSError(
                f"cannot fetch model {model.name!r} ({_reason(error)}): get {' and '.join(names)} "
                f"from {model.page} and put them into {model.folder}, or into any folder named "
                "with --model FOLDER"
            ) from error
        for name in missing:
            _record_sum(model.folder / name)
    sums = tuple(_checked_sum(model.folder / name) for name in names)
    return ModelFiles(
        model.name, model.folder / model.stage1, model.folder / model.stage2, (sums[0], sums[1])
    )


def fetch_start_weights(name: str, *, progress: Progress | None = None) -> Path:
    """Path of SAM 2.1's weights by name (``sam2.1-base-plus``), fetched into the cache once.

    Raises
    ------
    ValueError
        Unknown name, or a file with the wrong SHA-256 sum.
    OSError
        The file cannot be fetched; says where to get and where to put it.
    """
    if name not in START_WEIGHTS:
        raise ValueError(f"no start weights {name!r}: expected {', '.join(START_WEIGHTS)}")
    weights = START_WEIGHTS[name]
    target = weights.path
    if target.is_file():
        if sha256(target) != weights.sha256:
            raise ValueError(f"{target} has the wrong SHA-256 sum: delete it and try again")
        return target
    try:
        file = RemoteFile(weights.url, target.name, None, f"sha256:{weights.sha256}")
        _download(file, target, progress)
    except OSError as error:
        raise OSError(
            f"cannot fetch {weights.name} ({_reason(error)}): get {weights.url} and put it into "
            f"{target.parent}"
        ) from error
    return target


def is_installed(model: Model) -> bool:
    """Whether both checkpoints are on this machine."""
    return all((model.folder / name).is_file() for name in (model.stage1, model.stage2))


def _bundled(model: BundledModel) -> ModelFiles:
    stage1, stage2 = model.folder / model.stage1, model.folder / model.stage2
    if not is_installed(model):
        raise FileNotFoundError(
            f"model {model.name!r} is not in this installation ({model.folder}): reinstall etsam, "
            f"or choose --model {ETSAM_V1.name} or --model FOLDER"
        )
    return ModelFiles(model.name, stage1, stage2, (sha256(stage1), sha256(stage2)))


def _from_folder(folder: Path) -> ModelFiles:
    stage1, stage2 = (_only_checkpoint(folder, stage) for stage in ("stage1", "stage2"))
    return ModelFiles(folder.resolve().name, stage1, stage2, (sha256(stage1), sha256(stage2)))


def _only_checkpoint(folder: Path, stage: str) -> Path:
    found = sorted(
        path
        for path in folder.iterdir()
        if stage in path.name and path.suffix in CHECKPOINT_SUFFIXES and path.is_file()
    )
    if not found:
        raise FileNotFoundError(
            f"no {stage} checkpoint in {folder}: expected a file with {stage!r} in its name that "
            f"ends in {', '.join(CHECKPOINT_SUFFIXES)}"
        )
    if len(found) > 1:
        raise ValueError(
            f"{len(found)} {stage} checkpoints in {folder} ({found[0].name}, {found[1].name}): "
            f"name one with --{stage}-checkpoint"
        )
    return found[0]


def _listed(files: list[RemoteFile], name: str) -> RemoteFile:
    for file in files:
        if file.name == name:
            return file
    raise OSError(f"the record has no file {name}")


def _download(file: RemoteFile, target: Path, progress: Progress | None) -> None:
    """Fetch a file into the cache, going on with what an earlier try left; one process at a time."""
    from filelock import FileLock

    def report(done: int, total: int | None) -> None:
        if progress is not None and total:
            progress(done / total, f"fetch {target.name}")

    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(cache_folder() / LOCK_NAME):
        if not target.is_file():
            fetch(file, target, resume=True, patience=PATIENCE, report=report)


def _record_sum(path: Path) -> None:
    sums = _recorded_sums(path.parent) | {path.name: sha256(path)}
    lines = "".join(f"{value}  {name}\n" for name, value in sorted(sums.items()))
    write_text(path.parent / CHECKSUM_FILE, lines)


def _recorded_sums(folder: Path) -> dict[str, str]:
    file = folder / CHECKSUM_FILE
    if not file.is_file():
        return {}
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = [line.split(maxsplit=1) for line in lines if line.strip()]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"{file} is damaged: delete {folder}, so that it is fetched anew")
    return {name: value for value, name in pairs}


def _checked_sum(path: Path) -> str:
    checksum = sha256(path)
    if _recorded_sums(path.parent).get(path.name, checksum) != checksum:
        raise ValueError(
            f"{path} has changed since it was fetched: delete it, so that it is fetched anew"
        )
    return checksum


def _reason(error: OSError) -> str:
    """The innermost cause, on one line: libraries wrap it several times."""
    cause: BaseException = error
    while (inner := getattr(cause, "reason", None) or cause.__cause__) is not None and isinstance(
        inner, BaseException
    ):
        cause = inner
    text = getattr(cause, "strerror", None) or str(cause)
    return " ".join(text.split()) or type(cause).__name__

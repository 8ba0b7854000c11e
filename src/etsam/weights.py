"""Where a model's weights are: bundled, fetched once and verified, or in a folder of the user's."""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

from etsam.fetch import Patience, RemoteFile, fetch
from etsam.provenance import sha256
from etsam.repositories import ZENODO, zenodo_files
from etsam.storage import write_text

Progress = Callable[[float, str], None]

CACHE_VARIABLE = "ETSAM_CACHE"
CHECKSUM_FILE = "SHA256SUMS"
CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth")
STAGES = (1, 2)
LOCK_NAME = ".lock"
PATIENCE = Patience(attempts=4)
ANY_FOLDER = "into any folder named with --model FOLDER"


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
class Checkpoint:
    """One checkpoint on this machine, and its hexadecimal SHA-256 sum."""

    path: Path
    sha256: str


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

    See `resolve_checkpoints`.
    """
    one, two = resolve_checkpoints(model, progress=progress)
    name = model if str(model) in MODELS else Path(model).expanduser().resolve().name
    return ModelFiles(str(name), one.path, two.path, (one.sha256, two.sha256))


def resolve_checkpoints(
    model: str | Path,
    stages: Sequence[int] = STAGES,
    *,
    progress: Progress | None = None,
    way: str = ANY_FOLDER,
) -> list[Checkpoint]:
    """Find the checkpoints of some stages of a model, fetching them if need be.

    Parameters
    ----------
    model
        A name of ``MODELS``, or a folder with one stage-1 and one stage-2 checkpoint: files with
        ``stage1`` and ``stage2`` in their names that end in .safetensors, .pt or .pth.
    stages
        1, 2 or both; the others need not be there.
    progress
        Called with (fraction in 0..1, message) while a file is being fetched.
    way
        What else an error advises who has got the files by other means.

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
        return _bundled(record, stages)
    if isinstance(record, ZenodoModel):
        return fetch_model(record, stages, progress=progress, way=way)
    folder = Path(model).expanduser()
    if model != "" and folder.is_dir():  # an empty name is not the current folder
        paths = [_only_checkpoint(folder, f"stage{stage}") for stage in stages]
        return [Checkpoint(path, sha256(path)) for path in paths]
    raise ValueError(
        f"no model {str(model)!r}: expected {', '.join(MODELS)}, or an existing folder with one "
        "stage1 and one stage2 checkpoint"
    )


def fetch_model(
    model: ZenodoModel,
    stages: Sequence[int] = STAGES,
    *,
    progress: Progress | None = None,
    way: str = ANY_FOLDER,
) -> list[Checkpoint]:
    """Fetch a published model's stages into the cache unless they are there, and check their sums.

    A download is checked against Zenodo's MD5 sum before it gets its name; its SHA-256 sum is then
    kept beside it, so that a cached file is checked again without a network. `way` as in
    `resolve_checkpoints`.

    Raises
    ------
    ValueError
        A downloaded or a cached file has the wrong checksum.
    OSError
        The files cannot be fetched; says where to get and where to put them.
    """
    paths = _paths(model, stages)
    missing = [path for path in paths if not path.is_file()]
    if missing:
        _make_cache(model.folder)
        try:
            listed = zenodo_files(model.record, server=model.server, patience=PATIENCE)
            for path in missing:
                _download(_listed(listed, path.name), path, progress)
        except OSError as error:
            names = " and ".join(path.name for path in paths)
            raise OSError(
                f"cannot fetch model {model.name!r} ({_reason(error)}): get {names} from {model.page} "
                f"and put {'them' if len(paths) > 1 else 'it'} into {model.folder}, or {way}"
            ) from error
        for path in missing:
            _record_sum(path)
    return [Checkpoint(path, _checked_sum(path)) for path in paths]


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
    _make_cache(target.parent)
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
    return all(path.is_file() for path in _paths(model, STAGES))


def _paths(model: Model, stages: Sequence[int]) -> list[Path]:
    """Where the checkpoints of some stages are or go to."""
    names = dict(zip(STAGES, (model.stage1, model.stage2), strict=True))
    return [model.folder / names[stage] for stage in stages]


def _bundled(model: BundledModel, stages: Sequence[int]) -> list[Checkpoint]:
    if not is_installed(model):
        raise FileNotFoundError(
            f"model {model.name!r} is not in this installation ({model.folder}): reinstall etsam, "
            f"or choose --model {ETSAM_V1.name} or --model FOLDER"
        )
    return [Checkpoint(path, sha256(path)) for path in _paths(model, stages)]


def _only_checkpoint(folder: Path, stage: str) -> Path:
    found = sorted(
        path
        for path in folder.iterdir()
        if stage in path.name.lower()
        and path.suffix.lower() in CHECKPOINT_SUFFIXES
        and not path.name.startswith(".")  # such as those that macOS puts beside copies
        and path.is_file()
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


def _make_cache(folder: Path) -> None:
    """Make a folder of the cache; before the network, so that a disk's fault is not taken for its."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"the cache {cache_folder()} cannot be written ({error.strerror}): set "
            f"{CACHE_VARIABLE} to a folder that can"
        ) from error


def _download(file: RemoteFile, target: Path, progress: Progress | None) -> None:
    """Fetch a file into the cache, going on with what an earlier try left; one process at a time."""
    from filelock import FileLock

    def report(done: int, total: int | None) -> None:
        if progress is not None and total:
            progress(done / total, f"fetch {target.name}")

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

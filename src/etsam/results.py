"""The files of one segmentation: their names, whether they are there already, how they get there."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from etsam.ngff_metadata import refuse_folder
from etsam.options import SegmentOptions
from etsam.projects import is_segmentation
from etsam.provenance import (
    earlier_record,
    is_as_written,
    plain,
    record_path,
    refuse_edited,
    sha256,
)
from etsam.staging import place_files
from etsam.storage import refuse_taken
from etsam.volume import (
    KNOWN_SUFFIXES,
    Tomogram,
    create_volume,
    output_path,
    refuse_input,
    stem_of,
)

NOT_IN_RESULT = (
    *("model", "stage1_checkpoint", "stage2_checkpoint"),  # the sums of the weights tell more
    *("device", "output", "preview", "overwrite"),
)
NETWORK = ("sha256", "config")  # of weights, what a result depends on
STATE_FILE = "state.safetensors"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class SegmentResult:
    """The files that were written; None for those that were not asked for.

    ``details`` is what the JSON file holds; ``reused`` says that all was there already.
    """

    mask: Path
    provenance: Path
    preview: Path | None
    logits: Path | None
    cleaned: Path | None
    instances: Path | None
    details: dict[str, Any]
    reused: bool = False

    def json(self) -> str:
        """One line of JSON with paths and details."""
        names = ("mask", "provenance", "preview", "logits", "cleaned", "instances")
        values = {name: getattr(self, name) for name in names}
        shown = {name: None if path is None else str(path) for name, path in values.items()}
        return json.dumps(shown | {"reused": self.reused} | self.details, default=str)

    def paths(self) -> list[Path]:
        """All files of the result."""
        return [path for path in vars(self).values() if isinstance(path, Path)]

    def beside(self) -> list[Path]:
        """All files but the JSON."""
        return [path for path in self.paths() if path != self.provenance]

    @property
    def voxel_bytes(self) -> int:
        """Bytes of a voxel in all volumes of the result together, unpacked."""
        sizes = {"mask": 1, "logits": 4, "cleaned": 1, "instances": 2}
        return sum(size for name, size in sizes.items() if getattr(self, name) is not None)

    def staged(self, folder: Path) -> SegmentResult:
        """The same file names in another folder."""
        moved: dict[str, Any] = {
            name: folder / path.name for name, path in vars(self).items() if isinstance(path, Path)
        }
        return replace(self, **moved)


@dataclass(frozen=True)
class Task:
    """What decides a result: the input's record, the networks' sums and sizes, what was asked for."""

    source: Mapping[str, Any]
    weights: list[dict[str, Any]]
    request: Mapping[str, Any]

    def record(self, sha256: str) -> dict[str, Any]:
        """What the JSON says of it, with the input's sum; `is_finished` compares it."""
        return {"inputs": [dict(self.source) | {"sha256": sha256}], "request": dict(self.request)}


def result_names(path: Path, options: SegmentOptions) -> SegmentResult:
    """Names of all results of a tomogram."""
    output = options.output
    mask = output_path(path, "_membrane", output)
    if output is not None and names_mask(output):
        mask = output
    provenance, preview, logits, cleaned, instances = _beside(mask)
    return SegmentResult(
        mask,
        provenance,
        preview if options.preview else None,
        logits if options.store_logits else None,
        cleaned if options.post_process else None,
        instances if options.instances else None,
        {},
    )


def _beside(mask: Path) -> tuple[Path, Path, Path, Path, Path]:
    """Names of all that may be made with a mask: JSON, preview, logits, cleaned mask, instances."""
    stem = stem_of(mask)
    joint = "-" if is_segmentation(mask) else "_"  # copick's names part at underscores
    return (
        record_path(mask),
        mask.with_name(f"{stem}.png"),
        output_path(mask, f"{joint}logits"),
        output_path(mask, f"{joint}postprocessed"),
        output_path(mask, f"{joint}instances"),
    )


def names_mask(output: Path) -> bool:
    """Whether an output is the name of a mask, and not of a folder for results."""
    is_folder = output.is_dir() and output.suffix.lower() != ".zarr"
    return bool(KNOWN_SUFFIXES.search(output.name)) and not is_folder


def request_of(options: SegmentOptions) -> dict[str, Any]:
    """What was asked for, as far as the result depends on it."""
    asked = {key: value for key, value in asdict(options).items() if key not in NOT_IN_RESULT}
    return dict(plain(asked))


def earlier_result(result: SegmentResult) -> dict[str, Any] | None:
    """What the JSON of an earlier segmentation says; None where there is none of ours."""
    return earlier_record(result.provenance, "segment")


def is_finished(result: SegmentResult, earlier: Mapping[str, Any], task: Task) -> bool:
    """Whether all files are there, and the JSON's, made from the same input, weights and parameters.

    An input of the same path, size and time is the same; otherwise its contents decide.
    """
    try:
        weights = [{key: entry[key] for key in NETWORK} for entry in earlier["weights"]]
        (before,) = earlier["inputs"]
        known = {key: before[key] for key in ("path", "bytes", "modified_ns", "sha256")}
        sound = 0 <= earlier["results"]["membrane_fraction"] <= 1
        same = earlier["request"] == task.request and weights == task.weights
        same &= result.mask.name in earlier["outputs"]
    except (KeyError, TypeError, ValueError):
        return False
    if not (sound and same) or not all(path.exists() for path in result.paths()):
        return False
    if all(known[key] == task.source[key] for key in ("path", "bytes", "modified_ns")):
        return True
    if known["bytes"] != task.source["bytes"]:
        return False
    return bool(known["sha256"] == sha256(task.source["path"]))


def refuse_existing(result: SegmentResult, source: Path, *, replaceable: bool) -> None:
    """Keep results that are there, and always the tomogram and folders of other things.

    Raises
    ------
    ValueError, FileExistsError
        A result would replace, hold or lie in the tomogram, or replace an earlier result.
    """
    refuse_input(result.paths(), source, "tomogram")
    ways = "--overwrite or another --output"
    if earlier_result(result) is not None:
        ways = f"--resume, {ways}"
    for path in result.paths():
        refuse_folder(path)
        if not replaceable:
            refuse_taken(path, ways)


def refuse_others(
    result: SegmentResult, earlier: Mapping[str, Any] | None, *, overwrite: bool
) -> None:
    """Keep files under the results' names that are not as the earlier run of this mask wrote them.

    Raises
    ------
    FileExistsError
        One has been changed or put there since, or the JSON is that of a mask of another format.
    """
    if overwrite:
        return
    if result.cleaned is not None and _of_postprocess(result.cleaned):
        raise FileExistsError(
            f"{result.cleaned} was made by `etsam postprocess`: give --overwrite to replace it, or "
            "another --output"
        )
    refuse_edited(result.beside(), earlier or {})
    outputs = (earlier or {}).get("outputs")
    if isinstance(outputs, dict) and outputs and result.mask.name not in outputs:
        raise FileExistsError(
            f"{result.provenance} is of another mask, not of {result.mask.name}: give --overwrite "
            "to replace it, or another --output"
        )


def outdated(result: SegmentResult) -> list[str]:
    """What the user should know of files that were made of the mask that a result replaces."""
    cleaned = _beside(result.mask)[3]
    if result.cleaned is not None or not _of_postprocess(cleaned):
        return []
    return [f"{cleaned.name} is of the mask before: run `etsam postprocess --overwrite` again"]


def _of_postprocess(cleaned: Path) -> bool:
    """Whether a cleaned mask is there that `etsam postprocess` made, and not `etsam segment`."""
    return cleaned.exists() and earlier_record(record_path(cleaned), "postprocess") is not None


@contextmanager
def work_folder(result: SegmentResult) -> Iterator[Path]:
    """Hidden folder beside the results, locked; its files get their names when all went well.

    After an interruption, when memory or a disk fails, or when the disk is full and a state was
    saved before, it stays for a later process to go on with; every other failure removes it.

    Raises
    ------
    OSError
        Another process is at work on the same results, or the folder cannot be made.
    """
    from filelock import FileLock, Timeout

    folder = _folder_of(result.mask)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OSError(f"{result.mask} is being made by another process: wait for it") from None
    except FileNotFoundError:
        raise OSError(f"{result.mask} has just been made by another process") from None
    except OSError:
        with suppress(OSError):
            folder.rmdir()
        raise
    keep = False
    try:
        yield folder
        _place(folder, result)
    except BaseException as error:
        full = isinstance(error, OSError) and error.errno in FULL_DISK
        keep = worth_keeping(error) or (full and (folder / STATE_FILE).is_file())
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
        lock.release()
        if not keep:  # Windows keeps a folder whose lock is held
            with suppress(OSError):
                folder.rmdir()


def how_far(mask: Path) -> tuple[int, int] | None:
    """Stage (from 1) and slices done of a run that has not ended, as last saved; None without one."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(_folder_of(mask) / STATE_FILE, framework="np") as file:
            state = json.loads(file.metadata()["etsam"])
            return int(state["stage"]) + 1, int(state["done"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def worth_keeping(error: BaseException) -> bool:
    """Whether a later process may succeed where this one stopped."""
    if isinstance(error, OSError):
        return error.errno is not None and error.errno not in FULL_DISK
    if isinstance(error, RuntimeError):
        return "CUDA error" in str(error)
    return isinstance(error, KeyboardInterrupt | MemoryError)


def _folder_of(mask: Path) -> Path:
    return mask.with_name(f".{mask.name}.partial")


def _place(folder: Path, result: SegmentResult) -> None:
    """Give the results their names; what the earlier run made and this one does not goes."""
    earlier = earlier_result(result) or {}
    made = [result.provenance, *result.beside()]
    others = [path for path in _beside(result.mask) if path not in made]
    stale = [path for path in others if is_as_written(path, earlier)]
    if result.cleaned is not None:  # its own JSON, where `etsam postprocess` made the one before
        stale.append(record_path(result.cleaned))
    place_files(folder, made, stale)


def write_thresholded(
    slices: Iterable[np.ndarray],
    like: Tomogram,
    threshold: float,
    *,
    mask: Path,
    scores: Path | None,
    label: str,
) -> int:
    """Write scores, float32 (Y, X) slice by slice, as an int8 mask of those above a threshold; themselves if wanted.

    Returns
    -------
    voxels
        How many are membrane.
    """
    voxels = 0
    with ExitStack() as stack:
        masks = stack.enter_context(create_volume(mask, like, dtype="int8", label=label))
        kept = None
        if scores is not None:
            kept = stack.enter_context(create_volume(scores, like, dtype="float32", label=label))
        for z, plane in enumerate(slices):
            membrane = plane > threshold
            voxels += int(np.count_nonzero(membrane))
            masks.write_slice(z, membrane.view(np.int8))
            if kept is not None:
                kept.write_slice(z, plane)
    return voxels


def clear_folder(folder: Path, keep: tuple[str, ...] = ()) -> None:
    """Remove what an earlier run left in a work folder, but not its lock nor what to keep."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in ("lock", *keep):
            path.unlink()

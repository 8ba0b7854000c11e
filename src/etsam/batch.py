"""Many tomograms, one after the other, with a record of each; one tomogram is a batch of one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from etsam.inputs import refuse_same_results
from etsam.manifest import MANIFEST_NAME, SUFFIX, Entry, Manifest, here, now
from etsam.messages import one_line
from etsam.options import SegmentOptions
from etsam.provenance import peak_rss_mb, reset_peaks
from etsam.results import names_mask, request_of, result_names
from etsam.storage import with_own_name
from etsam.volume import refuse_input, whole_volume

if TYPE_CHECKING:
    from etsam.results import SegmentResult
    from etsam.stages import Stage

Progress = Callable[[float, str], None]
FAILURES = (ValueError, OSError, MemoryError, RuntimeError)


@dataclass(frozen=True)
class BatchPlan:
    """What is to be done.

    Attributes
    ----------
    paths, options
        The tomograms, and the choices for all of them.
    resume, fail_fast
        Keep what is done and go on where an earlier run stopped; stop at the first failure.
    manifest
        File for the record; None keeps it in memory.
    masks
        Names of masks, of those tomograms for which the options do not say them.
    run
        Name of this run, which marks its results and what it left unfinished.
    """

    paths: list[Path]
    options: SegmentOptions
    resume: bool = False
    fail_fast: bool = False
    manifest: Path | None = None
    masks: dict[Path, Path] = field(default_factory=dict)
    run: str = field(default_factory=lambda: uuid4().hex[:12])

    @property
    def replacing(self) -> bool:
        """Whether what is done is done again."""
        return self.options.overwrite and not self.resume

    def options_for(self, path: Path) -> SegmentOptions:
        """Return the choices for one tomogram."""
        mask = self.masks.get(path)
        return self.options if mask is None else replace(self.options, output=mask)

    def masks_by_path(self) -> dict[Path, Path]:
        """Where the mask of each tomogram goes.

        Raises
        ------
        ValueError
            Two tomograms share one, or the manifest would be a result or in a tomogram's place.
        """
        results = {path: result_names(path, self.options_for(path)) for path in self.paths}
        masks = {path: result.mask for path, result in results.items()}
        refuse_same_results(masks)
        if self.manifest is not None:
            for path, result in results.items():
                _refuse_result(self.manifest, result)
                refuse_input([self.manifest], path, "tomogram", "--manifest")
        return masks


@dataclass(frozen=True)
class Outcome:
    """What became of one tomogram: its entry, and its result or what went wrong."""

    path: Path
    entry: Entry
    result: SegmentResult | None = None
    error: BaseException | None = None


class ModelOnce:
    """The networks of a model, loaded when they are first wanted and then kept."""

    def __init__(self, options: SegmentOptions) -> None:
        self._options = options
        self._stages: list[Stage] | None = None
        self.failure: BaseException | None = None

    def __call__(self, progress: Progress | None = None) -> list[Stage]:
        """Return the networks; a failure to load them is remembered.

        Raises
        ------
        ValueError, OSError
            As `etsam.stages.load_stages`.
        """
        from etsam.stages import load_stages

        if self._stages is None:
            try:
                self._stages = load_stages(self._options, progress)
            except FAILURES as error:
                self.failure = error
                raise
        return self._stages


def default_manifest(
    paths: list[Path],
    output: Path | None,
    shard: str | None = None,
    masks: dict[Path, Path] | None = None,
) -> Path:
    """Return where a batch records itself: in the results' folder, or the one its tomograms share.

    That of masks that go back into a project (`masks`, by tomogram) is the one these share. Of tomograms on several
    drives it is the first one's.
    """
    if output is None:
        ends = [masks[path] if masks else path for path in paths]
        folders = [with_own_name(whole_volume(end)).parent for end in ends]
        try:
            folder = Path(os.path.commonpath(folders))
        except ValueError:
            folder = folders[0]
    else:
        folder = output.parent if names_mask(output) else output
    part = f".{shard.replace('/', 'of')}" if shard else ""
    return folder / f"{MANIFEST_NAME}{part}{SUFFIX}"


def run_batch(
    plan: BatchPlan, progress_for: Callable[[Path], Progress] | None = None
) -> Iterator[Outcome]:
    """Segment the tomograms in order, and yield what became of each.

    A failure is recorded and the next tomogram begun, unless `plan` says otherwise or the model
    cannot be loaded. `progress_for` gives what is called with each tomogram's progress; an
    exception in it interrupts the batch.

    Raises
    ------
    ValueError, OSError
        Two tomograms have the same result, another batch is at work here, or the model cannot be
        loaded.
    """
    masks = plan.masks_by_path()
    load = ModelOnce(plan.options)
    with Manifest(plan.manifest) as manifest:
        queue = manifest.begin(masks.items(), replacing=plan.replacing)
        for path, entry in zip(plan.paths, queue, strict=True):
            progress = None if progress_for is None else progress_for(path)
            running = manifest.started(replace(entry, **here()))
            try:
                outcome = segment_one(path, running, plan, load, progress)
            except BaseException:
                manifest.interrupted()
                raise
            manifest.ended(outcome.entry, outcome.error)
            if load.failure is not None:
                raise load.failure
            yield outcome
            if plan.fail_fast and outcome.error is not None:
                return


def segment_one(
    path: Path,
    entry: Entry,
    plan: BatchPlan,
    load: Callable[[Progress | None], list[Stage]],
    progress: Progress | None = None,
) -> Outcome:
    """Segment one tomogram of a batch; a failure is part of what is returned."""
    from etsam.segmentation import segment_file

    reset_peaks()
    begun = time.perf_counter()
    entry = replace(entry, parameters=request_of(plan.options))
    try:
        result = segment_file(
            path, plan.options_for(path), progress, load=load, resume=plan.resume, run=plan.run
        )
    except FAILURES as error:
        failed = replace(entry, state="failed", error=one_line(error), **_measured(begun))
        return Outcome(path, failed, error=_without_frames(error))
    details = result.details
    done = replace(
        entry,
        state="done",
        sha256=details["inputs"][0]["sha256"],
        weights=[weights["sha256"] for weights in details["weights"]],
        membrane_fraction=details["results"]["membrane_fraction"],
        reused=result.reused,
        **_measured(begun),
    )
    return Outcome(path, done, result)


def _refuse_result(manifest: Path, result: SegmentResult) -> None:
    """Refuse a manifest that has the name of a result.

    Raises
    ------
    ValueError
        The one would replace the other.
    """
    for path in result.paths():
        if path.name == manifest.name and with_own_name(path) == with_own_name(manifest):
            raise ValueError(f"{manifest} is a result's name: give another --manifest")


def _without_frames(error: BaseException) -> BaseException:
    """An error without its tracebacks, which hold all that was in memory where it arose; it may be kept long."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def _measured(begun: float) -> dict[str, Any]:
    seconds = round(time.perf_counter() - begun, 3)
    return {"ended": now(), "seconds": seconds, "peak_rss_mb": peak_rss_mb()}


@dataclass
class BatchClock:
    """Time that is left, from the tomograms done so far in this run."""

    total: int
    done: int = 0
    worked: int = 0
    begun: float = field(default_factory=time.monotonic)

    def count(self, entry: Entry) -> None:
        """Take note of a tomogram that is done."""
        self.done += 1
        self.worked += not entry.reused

    def remaining(self) -> float | None:
        """Seconds that are left, or None before the first tomogram is done."""
        if not self.worked:
            return None
        return (time.monotonic() - self.begun) / self.worked * (self.total - self.done)

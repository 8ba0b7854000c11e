"""What a segmentation says of itself: the warnings, the JSON beside the mask, the label in its header."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etsam import __version__
from etsam.options import SegmentOptions
from etsam.provenance import Clock, provenance
from etsam.volume import Tomogram

if TYPE_CHECKING:
    from etsam.stages import Stage

LABEL_LENGTH = 80  # of MRC headers
LOW_THRESHOLD = -1.0  # logits: what to try where nothing is found


@contextmanager
def told_of(path: Path) -> Iterator[list[str]]:
    """Show each warning once and with the tomogram's name before it; collects the texts without it.

    Those of this thread, and of threads without a tomogram of their own where no other is at work.
    """
    run = _Run(path)
    _LISTENERS.begin(run)
    try:
        yield run.told
    finally:
        _LISTENERS.end(run)


class _Anew(Warning):
    """Nobody warns of it."""


@dataclass(eq=False)
class _Run:
    """A tomogram at work, and what was warned of."""

    path: Path
    told: list[str] = field(default_factory=list)
    thread: int = field(default_factory=threading.get_ident)


class _Listeners:
    """Runs that are told of warnings, of all threads: these share what shows them, and the filters."""

    def __init__(self) -> None:
        self._runs: list[_Run] = []
        self._lock = threading.Lock()
        self._shown_by: Callable[..., None] = warnings.showwarning

    def begin(self, run: _Run) -> None:
        """Listen; what has been warned of before is so again."""
        with self._lock:
            self._runs.append(run)
            if warnings.showwarning != self._tell:
                self._shown_by = warnings.showwarning
                warnings.showwarning = self._tell  # type: ignore[assignment]
            # a filter that comes and goes; not `catch_warnings`, which other threads may be in
            warnings.simplefilter("ignore", _Anew, append=True)
            with suppress(ValueError):
                warnings.filters.remove(("ignore", None, _Anew, None, 0))  # type: ignore[attr-defined]

    def end(self, run: _Run) -> None:
        """Listen no more."""
        with self._lock:
            self._runs.remove(run)
            if not self._runs and warnings.showwarning == self._tell:
                warnings.showwarning = self._shown_by

    def _tell(self, message: Warning | str, category: type[Warning], *place: Any) -> None:
        """Tell the run of a warning's thread; what `warnings.showwarning` is replaced by."""
        run = self._of_this_thread()
        if run is None or not issubclass(category, UserWarning | RuntimeWarning):
            self._shown_by(message, category, *place)
        elif str(message) not in run.told:
            run.told.append(str(message))
            self._shown_by(category(f"{run.path}: {message}"), category, *place)

    def _of_this_thread(self) -> _Run | None:
        runs = list(self._runs)
        own = [run for run in runs if run.thread == threading.get_ident()]
        if not own and len(runs) == 1:
            own = runs
        return own[-1] if own else None


_LISTENERS = _Listeners()


def reading_notes(tomogram: Tomogram) -> list[str]:
    """What the user should know of a tomogram that has been read to its end."""
    notes = list(tomogram.notes)
    if tomogram.replaced_voxels:
        large = ", or too large for float32," if tomogram.dtype.itemsize > 4 else ""
        notes.append(
            f"{tomogram.replaced_voxels:,} NaN or infinite voxels{large} were read as the mean of their slice"
        )
    return notes


def array_notes(
    tomogram: Tomogram,
    stages: Sequence[Stage],
    kind: str = "an array",
    way_out: str = "segment_array(..., SegmentOptions(voxel_spacing=...)) says it, or give a file's path",
) -> list[str]:
    """What the caller should know of an array where scale matters to the networks; nothing of a file."""
    scales = [stage.spec for stage in stages if stage.spec.size != "square"]
    if tomogram.path is not None or tomogram.voxel_spacing is not None or not scales:
        return []
    return [
        f"{kind} does not say its voxel spacing, {scales[0].min_spacing:g} to "
        f"{scales[0].max_spacing:g} Å is taken for granted: {way_out}"
    ]


def notes_on(
    tomogram: Tomogram, stages: Sequence[Stage], options: SegmentOptions, membrane_voxels: int
) -> list[str]:
    """What the user should know of a tomogram that has been segmented, with settled options."""
    notes = reading_notes(tomogram)
    return notes if membrane_voxels else [*notes, _nothing_found(stages, options)]


def _nothing_found(stages: Sequence[Stage], options: SegmentOptions) -> str:
    """What to try, of that which was not tried and can change something."""
    scaled = any(stage.spec.size != "square" for stage in stages)
    look = "look at the preview; " if options.preview else ""
    spacing = options.voxel_spacing is None and scaled
    tries = what_to_try(options.logit_threshold, options.polarity, spacing=spacing)
    return f"no membrane found: {look}{tries}"


def what_to_try(threshold: float, polarity: str | None, *, spacing: bool) -> str:
    """Name the options that may find membrane where these found none; `spacing`: the voxels' size too."""
    is_low = threshold <= LOW_THRESHOLD
    tries = ["a lower --logit-threshold" if is_low else f"--logit-threshold {LOW_THRESHOLD:g}"]
    tries.append(f"--polarity {'dark' if polarity == 'bright' else 'bright'}")
    if spacing:
        tries.append("--voxel-spacing")
    return f"try {', '.join(tries[:-1])}, or {tries[-1]}"


def segmentation_label(options: SegmentOptions) -> str:
    """One line for the header of mask and logits: version, model, threshold."""
    start, end = f"etsam {__version__} segment ", f" logits > {options.logit_threshold:g}"
    models = " + ".join(dict.fromkeys(_model_names(options)))
    return f"{start}{models[: LABEL_LENGTH - len(start + end)]}{end}"


def segmentation_details(
    tomogram: Tomogram,
    stages: Sequence[Stage],
    options: SegmentOptions,
    membrane_voxels: int,
    cleaning: Mapping[str, Any] | None,
    clock: Clock,
) -> dict[str, Any]:
    """What the JSON beside the mask says, but for the task and the warnings."""
    dtypes = [str(stage.dtype).removeprefix("torch.") for stage in stages]
    weights = [
        {
            "name": name,
            "path": None if stage.path is None else str(stage.path.absolute()),
            **stage.identity,
            "frames": stage.spec.to_dict(),
        }
        for name, stage in zip(_model_names(options), stages, strict=True)
    ]
    return provenance(
        "segment",
        parameters=asdict(options) | {"model": options.model if options.stages_of_model else None},
        results={
            "membrane_voxels": membrane_voxels,
            "membrane_fraction": membrane_voxels / math.prod(tomogram.shape),
            "cleaning": cleaning,
        },
        compute={
            "device": str(stages[0].device),
            "dtype": dtypes if len(set(dtypes)) > 1 else dtypes[0],
            "weights": weights,
        },
        clock=clock,
    )


def _model_names(options: SegmentOptions) -> list[str]:
    """Name of each stage: the model's, or the checkpoint's where one takes its place."""
    given = (options.stage1_checkpoint, options.stage2_checkpoint)
    return [str(options.model) if path is None else path.stem for path in given]

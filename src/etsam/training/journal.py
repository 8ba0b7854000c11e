"""What a training run tells: a line of JSON for each entry, curves and pictures for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from etsam.storage import appearing, write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG_NAME = "log.jsonl"

Log = Callable[[dict[str, Any]], None]


class Journal:
    """``log.jsonl`` and pictures in a run's folder; curves too where tensorboard is installed.

    A run that goes on at ``step`` forgets what was written of later steps, one that begins all.
    """

    def __init__(self, folder: Path, step: int, log: Log | None = None) -> None:
        self._folder, self._log = folder, log
        self._path = folder / LOG_NAME
        self._forget(step)
        self._writer = _summary_writer(folder, step)

    def write(self, entry: dict[str, Any]) -> None:
        """Add an entry; ``step`` is its place on the curves."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if self._writer is not None:
            for name, value in entry.items():
                if name != "step":
                    self._writer.add_scalar(name, value, entry["step"])
        if self._log is not None:
            self._log(entry)

    def values(self, name: str) -> dict[int, float]:
        """All that was written under a name, by step."""
        if not self._path.is_file():
            return {}
        entries = map(json.loads, self._path.read_text("utf-8").splitlines())
        return {entry["step"]: entry[name] for entry in entries if name in entry}

    def show(self, name: str, picture: np.ndarray, step: int) -> None:
        """Write a picture, uint8 (h, w, 3), to NAME.png."""
        with appearing(self._folder / f"{name}.png") as partial:
            Image.fromarray(picture).save(partial, format="PNG")
        if self._writer is not None:
            self._writer.add_image(name, picture, step, dataformats="HWC")

    def _forget(self, step: int) -> None:
        if not self._path.is_file():
            return
        lines = self._path.read_text("utf-8").splitlines()
        kept = [line for line in lines if step and _is_past(line, step)]
        write_text(self._path, "".join(line + "\n" for line in kept))

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()


def _is_past(line: str, step: int) -> bool:
    """Whether a line is whole and of a step up to this one."""
    try:
        return int(json.loads(line)["step"]) <= step
    except (ValueError, KeyError, TypeError):
        return False


def _summary_writer(folder: Path, step: int) -> SummaryWriter | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else 0)

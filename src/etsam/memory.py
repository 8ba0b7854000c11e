"""When memory runs out: smaller tiles where they help, otherwise one line that says what to do.

And what is freed is given back to the system, so that it does not run out for want of order.
"""

from __future__ import annotations

import ctypes
import gc
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from etsam.options import MIN_TILE, SegmentOptions

if TYPE_CHECKING:
    from etsam.stages import Stage

OUT_OF_MEMORY = (  # as torch, oneDNN, CUDA and the C++ library say it
    *("out of memory", "can't allocate memory", "not enough memory", "bad_alloc"),
    *("bad allocation", "Invalid buffer size"),  # on Windows and on Macs
    *("could not create a primitive", "could not create a memory", "ALLOC_FAILED"),
)
OF_CARDS = ("CUDA", "MPS", "Invalid buffer size")  # the last one is MPS's
TRY = "try --split-processing"
LESS_MEMORY = f"{TRY}, --dtype bfloat16, or a larger machine"
LESS_IN_BFLOAT16 = LESS_MEMORY.replace(" --dtype bfloat16,", "")
NOT_FOR_USERS = re.compile(r"\[enforce fail[^\]]*\]\s*(err == 0\.)?\s*|\s*Error code \d.*")
REASON_LENGTH = 160

Result = TypeVar("Result")


def give_back_freed() -> None:
    """Return freed memory that the C library keeps between pieces in use (glibc; else nothing)."""
    trim = _trimmer()
    if trim is not None:
        trim(0)


@cache
def _trimmer() -> Callable[[int], int] | None:
    """glibc's ``malloc_trim``, where there is one."""
    if not sys.platform.startswith("linux"):
        return None
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim


@contextmanager
def memory_errors(advice: str = LESS_MEMORY) -> Iterator[None]:
    """Turn what torch raises when memory, of a device or of the machine, is used up into one line.

    Raises
    ------
    MemoryError
        It is; `advice` says what to do.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not any(words in text for words in OUT_OF_MEMORY):
            raise
        reason = NOT_FOR_USERS.sub("", text.splitlines()[0])[:REASON_LENGTH].rstrip(" .")
        if advice in (LESS_MEMORY, LESS_IN_BFLOAT16) and any(word in text for word in OF_CARDS):
            advice = advice.replace("or a", "--device cpu, or a")
        raise MemoryError(f"{reason}: {advice}") from error


def less_memory(stages: Sequence[Stage]) -> str:
    """What to try in less memory, of that which was not tried."""
    lower = all(str(stage.dtype) == "torch.bfloat16" for stage in stages)
    return LESS_IN_BFLOAT16 if lower else LESS_MEMORY


def with_smaller_tiles(
    attempt: Callable[[SegmentOptions], Result],
    options: SegmentOptions,
    frame: int,
    advice: str = LESS_MEMORY,
) -> Result:
    """Return what `attempt` returns; where it runs out of memory call it again with half the tile.

    Parameters
    ----------
    attempt
        Does the work from its beginning, with the options it is given.
    frame
        Longest side of the network's frames in pixels; 0 where they are not tiled.
    advice
        As of `memory_errors`, from `less_memory`.

    Raises
    ------
    MemoryError
        The smallest tiles are too large, or there are none.
    """
    while True:
        try:
            with memory_errors(advice):
                return attempt(options)
        except MemoryError as error:
            tile = smaller_tile(options.tile, frame)
            if tile is None:
                raise
            reason = str(error).partition(f": {TRY}")[0]
        warnings.warn(
            f"not enough memory ({reason}): beginning again with tiles of {tile} pixels",
            stacklevel=3,
        )
        options = replace(options, tile=tile)
        _release()


def smaller_tile(tile: int, frame: int) -> int | None:
    """Half a tile, or a quarter ... : the largest that parts a frame; None where that is too small."""
    tile //= 2
    while tile >= max(frame, 1):
        tile //= 2
    return tile if tile >= MIN_TILE else None


def _release() -> None:
    """Give back what the failed attempt held."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()

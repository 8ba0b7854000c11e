"""What Windows would refuse though Linux does it: noted while tests run, so that they fail here too."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

refused: list[str] = []
"""What the package did since this was cleared: files replaced or removed while this process has them open or mapped
into memory, and descriptors that were flushed though they may only be read."""

HELD = Path("/proc/self")


def watch() -> None:
    """Take note from now on, where the system tells what a process holds open: on Linux."""
    if sys.platform != "linux":
        return
    import fcntl

    flush = os.fsync

    def flush_and_see(descriptor: int) -> None:
        may = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if may == os.O_RDONLY and _is_ours():
            refused.append("flushed what was opened to read only")
        flush(descriptor)

    os.fsync = flush_and_see
    sys.addaudithook(_see)


def _see(event: str, given: tuple[Any, ...]) -> None:
    if event not in ("os.rename", "os.remove") or not _is_ours():
        return
    files, folders = given[: len(given) // 2], given[len(given) // 2 :]
    for file, folder in zip(files, folders, strict=True):
        path = _place(os.fsdecode(file), folder)
        if path and not path.endswith("lock") and (how := held(path)):
            refused.append(f"{event} of {path}, which is {how}")


def _is_ours() -> bool:
    """Whether the package is at work: a frame of it is on the stack."""
    frame = sys._getframe(1)
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith("etsam."):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _place(name: str, folder: int) -> str:
    """Absolute path without links but the last; '' where it cannot be told."""
    try:
        base = os.getcwd() if folder == -1 else os.readlink(HELD / "fd" / str(folder))
    except OSError:
        return ""
    whole = os.path.join(base, name)
    return os.path.join(os.path.realpath(os.path.dirname(whole)), os.path.basename(whole))


def held(path: str) -> str:
    """How this process holds a file, or one below a folder; '' where it does not."""
    for entry in os.listdir(HELD / "fd"):
        try:
            open_file = os.readlink(HELD / "fd" / entry)
        except OSError:
            continue
        if (open_file == path and not os.path.isdir(path)) or open_file.startswith(f"{path}/"):
            return "open"
    mapped = (HELD / "maps").read_bytes().split(b"\n")
    own = os.fsencode(path)
    if any(line.endswith(b" " + own) or b" " + own + b"/" in line for line in mapped):
        return "mapped into memory"
    return ""

"""Errors as one line for users: no error numbers, no names of files at work."""

from __future__ import annotations

import os
import re

KEPT = re.compile(r"\.([^/\\]+)\.partial[/\\](stage\d+\.f32|state\.safetensors|lock)(\.partial)?$")
"""What a segmentation keeps while it is made; users know it by the mask's name."""
WORK_FOLDER = re.compile(r"\.[^/\\]+\.partial[/\\]")
"""The folder of files that are written together; they will lie beside it."""
HIDDEN = re.compile(r"\.([^/\\]+?)(?:\.[0-9a-f]{8})?\.partial\b")
"""The name of a file or folder while it is written; users know it by the name it will have."""

BEGINNING, END = 1200, 600
"""Letters that are kept of an endless line, which quotes a damaged file: its path first, the way out last."""


def one_line(error: BaseException | str) -> str:
    """The message of an error, without line breaks and error numbers; of an endless one not the middle."""
    if isinstance(error, OSError) and error.strerror:
        named = KEPT.sub(r"\1", os.fsdecode(error.filename or ""))
        place = HIDDEN.sub(r"\1", WORK_FOLDER.sub("", named))
        text = f"{place}: {error.strerror}" if place else error.strerror
    elif isinstance(error, UnicodeEncodeError):
        text = "a name that is no Unicode cannot be written into a text: rename the file"
    elif isinstance(error, MemoryError):
        text = f"not enough memory: {error}" if str(error) else "not enough memory"
    else:
        text = str(error)
    line = " ".join(text.split()) or type(error).__name__
    return line if len(line) <= BEGINNING + END else f"{line[:BEGINNING]} ... {line[-END:]}"

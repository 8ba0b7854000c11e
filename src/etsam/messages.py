"""Errors as one line for users: no error numbers, no names of files at work."""

from __future__ import annotations

import os
import re

KEPT = re.compile(r"\.([^/\\]+)\.partial[/\\](stage\d+\.f32|state\.safetensors|lock)(\.partial)?$")
"""What a segmentation keeps while it is made; users know it by the mask's name."""
WORK_FOLDER = re.compile(r"\.[^/\\]+\.partial[/\\]")
"""The folder of files that are written together; they will lie beside it."""
HIDDEN = re.compile(r"\.([^/\\]+?)(?:\.\d+)?\.partial\b")
"""The name of a file or folder while it is written; users know it by the name it will have."""


def one_line(error: BaseException | str) -> str:
    """The message of an error, without line breaks and without error numbers."""
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
    return " ".join(text.split()) or type(error).__name__

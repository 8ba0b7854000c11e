"""Renaming a file over another one, also where other programs look into files for a moment."""

from __future__ import annotations

import sys
import time
from pathlib import Path

PATIENCE = 2.0 if sys.platform == "win32" else 0.0
"""Seconds: Windows renames no file over one that somebody reads, as virus scanners and indexers do a new one."""

PAUSE = 0.05  # seconds


def rename(source: Path, target: Path) -> None:
    """Give a file or folder a name, which another file may have.

    Raises
    ------
    OSError
        The system does not do it; where others hold the file, after some patience.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            source.replace(target)
            return
        except PermissionError:
            if time.monotonic() >= end:
                raise
            time.sleep(PAUSE)

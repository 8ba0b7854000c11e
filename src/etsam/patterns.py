"""Names with ``*``, ``?`` or ``[`` as what they match, which a shell does not do in quotes, nor Windows at all."""

from __future__ import annotations

import glob
import os
from pathlib import Path


def is_pattern(path: Path) -> bool:
    """Whether a name stands for others: a file of that very name stands for itself."""
    return glob.has_magic(str(path)) and not os.path.lexists(path)


def matching(pattern: Path) -> list[Path]:
    """What a pattern matches, in order; ``**`` is for folders at any depth, and a folder that is there for itself."""
    for place in pattern.parents:
        if place.is_dir():
            rest = pattern.relative_to(place)
            pattern = Path(glob.escape(str(place)), rest)
            break
    return [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]

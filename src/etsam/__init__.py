"""Membranes in cryo-electron tomograms with a two-stage SAM 2 tracker.

The public names are loaded on first use, so that ``import etsam`` stays fast and free of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from etsam.segmentation import segment as segment
    from etsam.volume import open_tomogram as open_tomogram
    from etsam.weights import resolve_model as resolve_model

_PUBLIC = {
    "open_tomogram": "etsam.volume",
    "resolve_model": "etsam.weights",
    "segment": "etsam.segmentation",
}

__all__ = ["__version__", "open_tomogram", "resolve_model", "segment"]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use.

    Raises
    ------
    AttributeError
        The package has no such public name.
    """
    if name not in _PUBLIC:
        raise AttributeError(f"module 'etsam' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""The JSON beside a mask, as far as a page needs it; it may be damaged, or another program's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_LOGIT = 1e6  # no network's logits reach so far; float32 still holds what is computed with it


def read_recorded(path: Path) -> dict[str, Any] | None:
    """Return what the JSON beside a mask says; None where there is none.

    Unknown values may be null or left out.

    Raises
    ------
    ValueError
        It is not JSON, or what a page shows of it is of another kind.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
        json.dumps(content, indent=2)  # as the page shows it: nested too deeply, it fails here
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: remove it or segment again") from error
    wrong = _wrong(content)
    if wrong:
        raise ValueError(f"{path} is damaged: {wrong}; remove it or segment again")
    return dict(content)


def recorded_parameters(recorded: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the parameters that were recorded, as far as they are known."""
    return dict((recorded or {}).get("parameters") or {})


def recorded_threshold(recorded: Mapping[str, Any] | None) -> float | None:
    """Return the threshold of the logits that was recorded; None where it is not known."""
    value = recorded_parameters(recorded).get("logit_threshold")
    return None if value is None else float(value)


def recorded_weights(recorded: Mapping[str, Any] | None) -> list[str]:
    """Return the weights that were recorded, each by its name and the start of its SHA-256."""
    weights = (recorded or {}).get("weights") or []
    return [f"{one.get('name')} ({str(one.get('sha256') or 'unknown')[:12]})" for one in weights]


def _wrong(content: Any) -> str | None:
    """Return what in a JSON is of another kind than a page needs."""
    if not isinstance(content, dict):
        return "expected an object"
    parameters = content.get("parameters") or {}
    if not isinstance(parameters, dict):
        return "`parameters` is no object"
    if not _is_logit(parameters.get("logit_threshold")):
        return "`logit_threshold` is no finite number"
    weights = content.get("weights") or []
    if not isinstance(weights, list) or not all(isinstance(one, dict) for one in weights):
        return "`weights` is no list of objects"
    return None


def _is_logit(value: Any) -> bool:
    """Whether a value may be a threshold of logits, or is unknown."""
    if value is None:
        return True
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and -MAX_LOGIT <= value <= MAX_LOGIT  # false for NaN too

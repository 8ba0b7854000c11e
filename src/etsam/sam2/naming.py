"""Where and under which names files of others keep the tensors of a SAM 2 network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from torch import Tensor

State = dict[str, Tensor]

ENTRIES = ("model", "state_dict", "model_state_dict")
"""What programs call a network's tensors in files that hold other things too."""
ANCHOR = "no_mem_embed"
"""A parameter of the network itself: what stands before its name stands before all names."""
WRAPPERS = {"module", "_orig_mod"}
"""Parts of names that DataParallel and torch.compile add, also inside of a network."""
COUNT, AVERAGED = "n_averaged", "module."
"""What `torch.optim.swa_utils.AveragedModel` keeps beside a network, and what stands before the network's names."""
OF_TRANSFORMERS = "no_memory_embedding"
"""What `transformers` calls that parameter."""
EXPECTED = (
    'expected {"model": ...}, {"state_dict": ...} or a bare state_dict, as '
    "torch.save(network.state_dict(), ...) writes"
)


def find_state(content: Any, path: Path) -> State:
    """The tensors by their names, out of what a file in PyTorch's format holds.

    Raises
    ------
    ValueError
        There are none where they are looked for.
    """
    if isinstance(content, dict):
        for found in (*map(content.get, ENTRIES), content):
            if _are_tensors(found) and (found or "model" in content):
                return dict(found)
    raise ValueError(f'{path} has no "model" entry with tensors; {EXPECTED}')


def _are_tensors(found: Any) -> TypeGuard[State]:
    return isinstance(found, dict) and all(
        isinstance(name, str) and isinstance(value, Tensor) and not value.is_nested  # has no shape
        for name, value in found.items()
    )


def plain_names(state: Mapping[str, Tensor], path: Path) -> State:
    """The same tensors by Meta's names: without wrappers, what they count, and what stands before all of them.

    Raises
    ------
    ValueError
        Some have not got what stands before the others, two get one name, or they are those of
        another program.
    """
    state = {name: value for name, value in state.items() if not _is_count(name, state)}
    plain = {_unwrapped(name): value for name, value in state.items()}
    if any(name.endswith(OF_TRANSFORMERS) for name in plain):
        raise ValueError(
            f"{path} has the names of transformers' Sam2VideoModel: expected Meta's, those of the "
            ".pt of the same network (`etsam weights fetch sam2.1-base-plus` and the like)"
        )
    prefix = next((name[: -len(ANCHOR)] for name in plain if name.endswith(f".{ANCHOR}")), "")
    others = [name for name in plain if not name.startswith(prefix)]
    if others or len(plain) < len(state):
        example = f", e.g. {others[0]}" if others else ""
        raise ValueError(
            f"{path} holds more than one network: names with and without {prefix or WRAPPERS!r}"
            f"{example}; save the state_dict of the network alone"
        )
    return {name.removeprefix(prefix): value for name, value in plain.items()}


def _is_count(name: str, state: Mapping[str, Tensor]) -> bool:
    """Whether a tensor says how many states a network averaged with it is the mean of."""
    before = f"{name.removesuffix(COUNT)}{AVERAGED}"
    return name.endswith(COUNT) and any(other.startswith(before) for other in state)


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)

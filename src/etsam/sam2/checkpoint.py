"""Read published checkpoints (``{"model": state_dict}`` and the like) and our own self-describing safetensors."""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from etsam.renaming import rename
from etsam.sam2.config import PRESETS, SAM2Config
from etsam.sam2.model import SAM2
from etsam.sam2.naming import ANCHOR, OF_TRANSFORMERS, State, find_state, plain_names
from etsam.sam2.unreadable import (
    UNREADABLE,
    check_archive,
    kind_of,
    no_weights,
    refuse_cut,
    why_unreadable,
)

FORMAT = "etsam-sam2-1"
"""Value of the ``format`` entry in our safetensors metadata."""

_FILTERS = threading.Lock()
"""Warnings' filters are of all threads: two that changed them and put them back would leave those of one."""

COPIED = sys.platform == "win32"
"""Whether weights are copied out of their file, which Windows does not replace while it is mapped into memory."""
SYSTEM_ERROR = re.compile(r"os error (\d+)")
SINCE_2_1 = {"no_obj_embed_spatial", "obj_ptr_tpos_proj.weight", "obj_ptr_tpos_proj.bias"}
"""Parameters that SAM 2.0 has not."""


def load_checkpoint(
    path: str | Path,
    config: SAM2Config | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[SAM2, dict[str, Any]]:
    """Build the network of a checkpoint and load its weights strictly.

    Parameters
    ----------
    path
        A published file (``.pt``, ``.pth``: ``{"model": state_dict}`` and what
        `etsam.sam2.naming` knows, always read with ``weights_only=True``), one of ours
        (``.safetensors``), or another safetensors file with Meta's names.
    config
        Sizes of a published-format network that is none of the published ones; a JSON file of
        the same name beside the checkpoint may say them too, or some. Ours carry their own.

    Returns
    -------
    model, metadata
        The network in evaluation mode, and what a file of ours says of itself (else nothing).

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When the file is not a checkpoint, its tensors do not fit the network exactly, or some of its
        weights are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; expected a .pt or .safetensors file")
    is_safe = path.suffix.lower() == ".safetensors"
    state, metadata = _read_safetensors(path) if is_safe else (_read_pickle(path), None)
    config, whose = _sizes(state, metadata, path) if config is None else (config, "that was given")
    with torch.device("meta"):
        model = SAM2(config)
    _check_fit(model.state_dict(), state, f"{path} does not fit the network {whose}")
    _check_plain(state, path)
    state = {k: v.to(dtype) for k, v in state.items()}
    _check_finite(state, path)
    model.load_state_dict(state, strict=True, assign=True)
    return model.to(device).eval().requires_grad_(False), metadata or {}


def save_checkpoint(path: str | Path, model: SAM2, metadata: dict[str, Any], *, half: bool) -> None:
    """Write ``model`` with its config and ``metadata`` (JSON types) as safetensors, atomically.

    Raises
    ------
    OSError
        The file cannot be written, for example because the disk is full.
    """
    dtype = torch.float16 if half else torch.float32
    state = {k: v.detach().cpu().to(dtype).contiguous() for k, v in model.state_dict().items()}
    described = {**metadata, "config": model.config.to_dict()}
    header = {"format": FORMAT, "etsam": json.dumps(described)}
    with written_whole(Path(path)) as partial:
        save_file(state, partial, header)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A partial name for torch or safetensors to write to; the file gets its own once it is on disk.

    Raises
    ------
    OSError
        The file cannot be written, however the library puts it; nothing partial is left.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        with partial.open("r+b") as file:  # Windows flushes only what may be written
            os.fsync(file.fileno())
        partial.chmod(0o666 & ~_umask())  # safetensors leaves them to their owner alone
        rename(partial, path)
    except (OSError, RuntimeError, SafetensorError) as wrong:
        error = _system_error(wrong, path)
        if error is None:
            raise
        raise error from None
    finally:
        partial.unlink(missing_ok=True)


def _umask() -> int:
    """What this process takes from the permissions of new files."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _system_error(wrong: BaseException, path: Path) -> OSError | None:
    """The system's error that made torch or safetensors fail to write `path`; None where that was another."""
    for error in (wrong, wrong.__context__):
        if isinstance(error, OSError) and error.errno is not None:
            return OSError(error.errno, os.strerror(error.errno), str(path))
    found = SYSTEM_ERROR.search(str(wrong))
    if found is None:
        return None
    number = int(found[1])
    if sys.platform == "win32":  # a number of its own, which it translates itself
        return OSError(0, ctypes.FormatError(number), str(path), number)
    return OSError(number, os.strerror(number), str(path))


def infer_config(state: State, path: Path) -> SAM2Config:
    """Find the sizes of a published-format state dict from its shapes.

    Head counts, windows and global blocks leave no trace in the shapes: they come from the
    published preset with the same widths and depths.

    Raises
    ------
    ValueError
        A parameter of SAM 2.1 is missing, or no published network has these sizes.
    """
    try:
        embed_dim = state["image_encoder.trunk.patch_embed.proj.weight"].shape[0]
        stages = _stages(state)
        layers = {k.split(".")[2] for k in state if k.startswith("memory_attention.layers.")}
        sizes: dict[str, Any] = {
            "d_model": state["no_mem_embed"].shape[-1],
            "memory_dim": state["maskmem_tpos_enc"].shape[-1],
            "num_maskmem": state["maskmem_tpos_enc"].shape[0],
            "memory_layers": len(layers),
            "memory_feed_forward": state["memory_attention.layers.0.linear1.weight"].shape[0],
        }
    except (KeyError, IndexError) as missing:
        problem = f"it has no {missing}" if isinstance(missing, KeyError) else "a size is missing"
        raise ValueError(
            f"{path} is not a SAM 2.1 checkpoint: {problem}; expected the parameters of "
            "facebookresearch/sam2"
        ) from None
    name = _published_name(embed_dim, stages)
    if name is not None:
        return _to_config(PRESETS[name].to_dict() | sizes, path)
    raise ValueError(
        f"{path} has width {embed_dim} and stages {stages}, which is no published SAM 2.1 size; "
        f"put its SAM2Config as JSON into {path.with_suffix('.json').name} beside it"
    )


def _published_name(embed_dim: int, stages: tuple[int, ...]) -> str | None:
    """The published network whose trunk has this width and these depths."""
    sizes = {(preset.embed_dim, preset.stages): name for name, preset in PRESETS.items()}
    return sizes.get((embed_dim, stages))


def _stages(state: State) -> tuple[int, ...]:
    """Blocks in each level of a Hiera trunk, told by where the width changes."""
    stages: list[int] = []
    width = 0
    index = 0
    prefix = "image_encoder.trunk.blocks"
    while (key := f"{prefix}.{index}.attn.proj.weight") in state:
        if state[key].shape[0] != width:
            stages.append(0)
            width = state[key].shape[0]
        stages[-1] += 1
        index += 1
    return tuple(stages)


def _sizes(state: State, metadata: dict[str, Any] | None, path: Path) -> tuple[SAM2Config, str]:
    """The sizes of a network, and in words where they are from: a file of ours says them.

    Of others they are those that the tensors tell, where a published network has them, below those
    of the JSON beside it.
    """
    if metadata is not None:
        return _to_config(metadata.get("config"), path), "that it says it is"
    beside = path.with_suffix(".json")
    given = _sizes_beside(beside)
    if not given:
        config = infer_config(state, path)
        name = _published_name(config.embed_dim, config.stages)
        return config, f"SAM 2.1 {name} (other sizes go into {beside.name} beside it)"
    try:
        told = infer_config(state, path).to_dict()
    except ValueError:
        told = {}
    return _to_config(told | given, beside), f"of the sizes in {beside.name} (mend or remove it)"


def _sizes_beside(beside: Path) -> dict[str, Any]:
    """Sizes in a JSON beside a checkpoint; none where there is no such file, or one of other things."""
    if not beside.is_file():
        return {}
    try:
        values = json.loads(beside.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as wrong:
        raise ValueError(f"{beside} is not JSON: {wrong}") from None
    is_config = isinstance(values, dict) and not SAM2Config.names().isdisjoint(values)
    return values if is_config else {}


def _to_config(values: Any, source: Path) -> SAM2Config:
    try:
        return SAM2Config.from_dict(dict(values))
    except (ValueError, TypeError) as wrong:
        raise ValueError(f"{source} holds no SAM2Config: {wrong}") from None


def _read_pickle(path: Path) -> State:
    check_archive(path)
    try:
        refuse_cut(path)
        with _FILTERS, warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torch")  # of pickles that are refused anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as wrong:
        raise ValueError(no_weights(path, why_unreadable(path, wrong))) from None
    return plain_names(find_state(content, path), path)


def _read_safetensors(path: Path) -> tuple[State, dict[str, Any] | None]:
    """Tensors, and what a file of ours says of itself; None of another one with Meta's names."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            is_ours = header.get("format") == FORMAT
            metadata = _said(header["etsam"], path) if is_ours else None
            names = list(file.keys())
            of_sam2 = any(name.endswith((ANCHOR, OF_TRANSFORMERS)) for name in names)
            if not is_ours and ("etsam" in header or not of_sam2):
                raise ValueError(
                    f"{path} is a safetensors file of another kind (format {header.get('format')!r}, "
                    f"expected {FORMAT!r}, or the parameters of facebookresearch/sam2)"
                )
            state = {name: file.get_tensor(name) for name in names}
            if COPIED:
                state = {name: tensor.clone() for name, tensor in state.items()}
            return (state if is_ours else plain_names(state, path)), metadata
    except (SafetensorError, KeyError, TypeError) as wrong:
        kind = kind_of(path)
        why = f"it is {kind}" if kind else wrong
        raise ValueError(f"{path} is not a valid safetensors file: {why}") from None


def _said(text: str, path: Path) -> dict[str, Any]:
    """What a file of ours says of itself."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as wrong:  # also a number of thousands of digits
        raise ValueError(f"{path} is not a valid safetensors file: {wrong}") from None
    if not isinstance(said, dict):
        raise ValueError(
            f"{path} is not a valid safetensors file: of itself it says {said!r:.60}, expected a JSON object"
        )
    return said


def _check_plain(state: State, path: Path) -> None:
    """Refuse tensors that do not hold a real number for each element."""
    for name, tensor in state.items():
        odd = tensor.is_meta or tensor.layout != torch.strided
        if odd or not tensor.is_floating_point():  # nor are those of complex or quantised numbers
            raise ValueError(
                f"{path} has a tensor of whole, quantised or complex numbers, or a sparse or empty "
                f"one, {name}: save it as plain float32"
            )


def _check_finite(state: State, path: Path) -> None:
    """Refuse weights that would make every logit NaN, and so every mask empty."""
    wrong = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if wrong:
        raise ValueError(
            f"{path} has NaN or infinite weights in {len(wrong)} of {len(state)} tensors, e.g. "
            f"{wrong[0]}: copy or fetch it again, or train with a smaller learning rate"
        )


def _check_fit(expected: State, found: State, refusal: str) -> None:
    """Name the first differences in one line after the refusal, rather than PyTorch's pages of them."""
    missing = sorted(set(expected) - set(found))
    extra = sorted(set(found) - set(expected))
    shapes = [k for k in expected if k in found and expected[k].shape != found[k].shape]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing, e.g. {missing[0]}")
    if extra:
        problems.append(f"{len(extra)} unexpected, e.g. {extra[0]}")
    if shapes:
        k = shapes[0]
        problems.append(
            f"{len(shapes)} of another shape, e.g. {k}: {tuple(found[k].shape)}, "
            f"expected {tuple(expected[k].shape)}"
        )
    if set(missing) == SINCE_2_1:
        problems.append("it looks like SAM 2.0: expected SAM 2.1")
    if problems:
        raise ValueError(f"{refusal}: {'; '.join(problems)}")

"""Read published checkpoints (``{"model": state_dict}``) and our own self-describing safetensors."""

from __future__ import annotations

import json
import os
import pickle
import struct
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from etsam.sam2.config import PRESETS, SAM2Config
from etsam.sam2.model import SAM2

FORMAT = "etsam-sam2-1"
"""Value of the ``format`` entry in our safetensors metadata."""

UNREADABLE = (
    pickle.UnpicklingError,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What `torch.load` raises on damaged files."""

State = dict[str, Tensor]


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
        A published file (``.pt``, ``.pth``: ``{"model": state_dict}``, always read with
        ``weights_only=True``) or one of ours (``.safetensors``).
    config
        Sizes of a published-format network that is none of the published ones; a JSON file of
        the same name beside the checkpoint says the same. Ours carry their own.

    Returns
    -------
    model, metadata
        The network in evaluation mode, and what the file says of itself (empty for ``.pt``).

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When the file is not a checkpoint, or its tensors do not fit the network exactly.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; expected a .pt or .safetensors file")
    if path.suffix == ".safetensors":
        state, metadata = _read_safetensors(path)
        config = config or _to_config(metadata.get("config"), path)
    else:
        state, metadata = _read_pickle(path), {}
        config = config or _config_beside(path) or infer_config(state, path)
    with torch.device("meta"):
        model = SAM2(config)
    _check_fit(model.state_dict(), state, path)
    model.load_state_dict({k: v.to(dtype) for k, v in state.items()}, strict=True, assign=True)
    return model.to(device).eval().requires_grad_(False), metadata


def save_checkpoint(path: str | Path, model: SAM2, metadata: dict[str, Any], *, half: bool) -> None:
    """Write ``model`` with its config and ``metadata`` (JSON types) as safetensors, atomically."""
    path = Path(path)
    dtype = torch.float16 if half else torch.float32
    state = {k: v.detach().cpu().to(dtype).contiguous() for k, v in model.state_dict().items()}
    described = {**metadata, "config": model.config.to_dict()}
    partial = path.with_name(path.name + ".partial")
    save_file(state, partial, {"format": FORMAT, "etsam": json.dumps(described)})
    os.replace(partial, path)


def infer_config(state: State, path: Path) -> SAM2Config:
    """Find the sizes of a published-format state dict from its shapes.

    Head counts, windows and global blocks leave no trace in the shapes: they come from the
    published preset with the same widths and depths.
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
        raise ValueError(
            f"{path} is not a SAM 2.1 checkpoint: it has no {missing}; expected the parameter "
            "names of facebookresearch/sam2"
        ) from None
    for preset in PRESETS.values():
        if (preset.embed_dim, preset.stages) == (embed_dim, stages):
            return replace(preset, **sizes)
    raise ValueError(
        f"{path} has width {embed_dim} and stages {stages}, which is no published SAM 2.1 size; "
        f"put its SAM2Config as JSON into {path.with_suffix('.json').name} beside it"
    )


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


def _config_beside(path: Path) -> SAM2Config | None:
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return None
    try:
        values = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as wrong:
        raise ValueError(f"{beside} is not JSON: {wrong}") from None
    return _to_config(values, beside)


def _to_config(values: Any, source: Path) -> SAM2Config:
    try:
        return SAM2Config.from_dict(dict(values))
    except (ValueError, TypeError) as wrong:
        raise ValueError(f"{source} holds no SAM2Config: {wrong}") from None


def _read_pickle(path: Path) -> State:
    _refuse_packed(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that are refused anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as wrong:
        reason = str(wrong).strip().splitlines()[0] if str(wrong).strip() else "it is empty"
        raise ValueError(
            f"{path} cannot be read as weights ({reason[:120]}); expected a file saved by "
            "torch.save that holds tensors only"
        ) from None
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()
    ):
        raise ValueError(f'{path} has no "model" entry with tensors; expected {{"model": ...}}')
    return state


def _refuse_packed(path: Path) -> None:
    """Refuse an archive that unpacks to more than it holds: torch.save packs nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, *UNREADABLE):
        return
    if unpacked > path.stat().st_size:
        raise ValueError(
            f"{path} unpacks to {unpacked:,} bytes, more than it holds: expected a file saved by "
            "torch.save"
        )


def _read_safetensors(path: Path) -> tuple[State, dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ValueError(
                    f"{path} is a safetensors file of another kind "
                    f"(format {header.get('format')!r}, expected {FORMAT!r})"
                )
            metadata = dict(json.loads(header["etsam"]))
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as wrong:
        raise ValueError(f"{path} is not a valid safetensors file: {wrong}") from None


def _check_fit(expected: State, found: State, path: Path) -> None:
    """Name the first differences in one line, rather than PyTorch's pages of them."""
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
    if problems:
        raise ValueError(f"{path} does not fit the network: {'; '.join(problems)}")

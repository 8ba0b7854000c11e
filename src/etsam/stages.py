"""The two networks of a model, loaded, with what they want of their frames."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from etsam.frames import CPU, REFERENCE_SPEC, FrameSpec
from etsam.memory import give_back_freed
from etsam.options import SegmentOptions
from etsam.provenance import plain
from etsam.provenance import sha256 as checksum
from etsam.sam2 import SAM2, load_checkpoint
from etsam.sam2.linear import keep_rearranged
from etsam.weights import Checkpoint, resolve_checkpoints

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Stage:
    """One trained network and how it wants its frames."""

    model: SAM2
    spec: FrameSpec
    sha256: str = ""
    path: Path | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """The file's sum, and the sizes: of published ones some may stand in a JSON beside it."""
        return {"sha256": self.sha256, "config": plain(self.model.config.to_dict())}

    @property
    def device(self) -> torch.device:
        """Where the network runs."""
        return self.model.no_mem_embed.device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return self.model.no_mem_embed.dtype

    def own_types(self) -> AbstractContextManager[Any]:
        """Types as the network has them, also in a program that computes under autocast."""
        return torch.autocast(self.device.type, enabled=False)

    @property
    def frames_on(self) -> torch.device:
        """Where frames are best made: on a CUDA card itself, which would wait for the processor."""
        return self.device if self.device.type == "cuda" else CPU


def choose_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` into a device that is there.

    Raises
    ------
    ValueError
        The name is unknown, or this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}: expected auto, cpu, cuda:N or mps") from None
    counts = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if (device.index or 0) >= counts.get(device.type, 0):
        raise ValueError(f"no device {name!r} on this machine: use --device auto")
    return device


def choose_dtype(name: str, device: torch.device, *, is_own: bool) -> torch.dtype:
    """Turn ``auto``, ``float32`` or ``bfloat16`` into the precision to compute in.

    ``auto`` keeps published models exact and takes bfloat16 for our own where the device has
    instructions for it that are faster than float32's (`bfloat16_pays`).
    """
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if not is_own or device.type == "mps":
        return torch.float32
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        named = any(_processor_has(name) for name in ("avx512_bf16", "amx_tile"))
        fast = named and bfloat16_pays()
    return torch.bfloat16 if fast else torch.float32


def _processor_has(name: str) -> bool:
    """Whether torch knows that the processor has some instructions; it has no public name for it."""
    asked = getattr(torch.cpu, f"_is_{name}_supported", None)
    return asked is not None and bool(asked())


@cache
def bfloat16_pays() -> bool:
    """Whether this processor multiplies matrices in bfloat16 faster than in float32, as measured.

    Some have the instructions and are half as fast with them: Xeons whose AMX is hidden by a virtual
    machine. Those that gain do so at least twofold, so that noise does not change the answer.
    """
    kinds = (torch.float32, torch.bfloat16)
    matrices = {kind: torch.ones(768, 768, dtype=kind, device="cpu") for kind in kinds}
    times: dict[torch.dtype, list[float]] = {kind: [] for kind in kinds}
    for _ in range(6):
        for kind, matrix in matrices.items():
            began = perf_counter()
            with torch.autocast("cpu", enabled=False):  # each in its own, whatever the program has
                torch.mm(matrix, matrix)
            times[kind].append(perf_counter() - began)
    return min(times[torch.bfloat16]) < min(times[torch.float32])


def load_stages(options: SegmentOptions, progress: Progress | None = None) -> list[Stage]:
    """Load both networks of the chosen model, fetching published weights if need be.

    One checkpoint given takes that stage's place in the model, with a warning.

    Raises
    ------
    FileNotFoundError, ValueError, OSError
        A checkpoint is missing, is not one, or cannot be fetched.
    """
    given = {1: options.stage1_checkpoint, 2: options.stage2_checkpoint}
    wanted = options.stages_of_model
    found = resolve_checkpoints(options.model, wanted, progress=progress) if wanted else []
    taken = dict(zip(wanted, found, strict=True))
    device = choose_device(options.device)
    stages = []
    for stage, path in given.items():
        file = taken[stage] if path is None else Checkpoint(path, "")
        stages.append(
            load_stage(file.path, stage - 1, device, dtype=options.dtype, sha256=file.sha256)
        )
    if len(wanted) == 1:
        warnings.warn(
            f"only stage {3 - wanted[0]} was given: stage {wanted[0]} is that of {options.model}, "
            f"which does not know it; --stage{wanted[0]}-checkpoint names another",
            stacklevel=2,
        )
    return stages


def load_stage(
    path: Path, number: int, device: torch.device, *, dtype: str = "auto", sha256: str = ""
) -> Stage:
    """Load the network of stage `number` (0 or 1), ready to segment.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no such file, it is no checkpoint, or it is one of another stage or with frames that
        the network does not take.
    """
    model, metadata = load_checkpoint(path, device=device)
    model.compute_in(choose_dtype(dtype, device, is_own="frame_spec" in metadata))
    if model.config.trunk == "conv":  # several times as fast on CPUs
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    keep_rearranged(model)
    give_back_freed()
    stage = Stage(model, stage_spec(model, metadata, path), sha256 or checksum(path), path)
    check_channels(stage, number)
    return stage


def stage_spec(model: SAM2, metadata: dict[str, object], path: Path) -> FrameSpec:
    """Frame settings the checkpoint at `path` carries (``frame_spec``), or those of the published models.

    Raises
    ------
    ValueError
        They make no sense, or the network does not take sides of such frames.
    """
    saved = metadata.get("frame_spec")
    if not isinstance(saved, dict):
        return replace(REFERENCE_SPEC, image_size=model.config.image_size)
    try:
        spec = FrameSpec.from_dict(saved)
    except ValueError as wrong:
        raise ValueError(f"{path}: {wrong}") from None
    name = "image_size" if spec.size == "square" else "multiple"
    side, pieces = getattr(spec, name), 8 * model.config.patch_stride
    if side % pieces:
        raise ValueError(
            f"{path}: {name} is {side}: expected a multiple of 8 * patch_stride, {pieces}"
        )
    return spec


def check_channels(stage: Stage, number: int) -> None:
    """Refuse a network that does not take the frames its settings make.

    Raises
    ------
    ValueError
        Their numbers of channels differ.
    """
    wanted, given = stage.model.config.in_channels, stage.spec.channels(feedback=number > 0)
    if wanted != given:
        is_other = wanted == stage.spec.channels(feedback=number == 0)
        seems = f": it seems to be of stage {2 - number}" if is_other else ""
        raise ValueError(
            f"expected a checkpoint of stage {number + 1}, whose frames have {given} channels, but "
            f"{stage.path} takes {wanted}{seems}"
        )

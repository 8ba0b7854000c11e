"""SAM 2.1 in plain PyTorch, with the parameter names of the published checkpoints."""

from etsam.sam2.checkpoint import load_checkpoint, save_checkpoint
from etsam.sam2.config import BASE_PLUS, LARGE, PRESETS, SMALL, TINY, SAM2Config
from etsam.sam2.memory import Memory, MemoryBank
from etsam.sam2.model import MEMORY_BIAS, NO_OBJECT_LOGIT, SAM2, Features, Output

__all__ = [
    "BASE_PLUS",
    "LARGE",
    "MEMORY_BIAS",
    "NO_OBJECT_LOGIT",
    "PRESETS",
    "SAM2",
    "SMALL",
    "TINY",
    "Features",
    "Memory",
    "MemoryBank",
    "Output",
    "SAM2Config",
    "load_checkpoint",
    "save_checkpoint",
]

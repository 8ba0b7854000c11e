"""OME-Zarr 0.4 and 0.5 read and written through tensorstore (being written)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from etsam.storage import VolumeInfo, VoxelStatistics


class NgffSource:
    """An open OME-Zarr image."""

    info: VolumeInfo

    def __init__(self, path: Path) -> None:
        raise ValueError(f"{path} is a folder: OME-Zarr cannot be read yet")

    def read(self, start: int, stop: int) -> np.ndarray:
        raise NotImplementedError

    def close(self) -> None: ...


class NgffSink:
    """An OME-Zarr image under construction."""

    def __init__(self, path: Path, partial: Path, info: VolumeInfo, dtype: np.dtype, label: str) -> None:
        raise ValueError(f"{path}: OME-Zarr cannot be written yet")

    def write(self, z: int, data: np.ndarray) -> None: ...

    def finish(self, statistics: VoxelStatistics) -> None: ...

    def discard(self) -> None: ...

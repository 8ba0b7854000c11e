"""Where a volume lies: from voxels (zyx) to ångström (xyz), the frame that other programs use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from etsam.storage import Zyx
from etsam.volume import Tomogram


@dataclass(frozen=True)
class Frame:
    """Shape (Z, Y, X), voxel spacing and origin (zyx, Å) of a volume.

    The centre of voxel (0, 0, 0) lies at the origin, as in ChimeraX and in MRC2014.
    """

    shape: tuple[int, int, int]
    spacing: Zyx
    origin: Zyx = (0.0, 0.0, 0.0)

    def to_angstrom(self, voxels: ArrayLike) -> NDArray[np.float64]:
        """Return positions (n, 3) xyz in Å of voxel coordinates (n, 3) zyx."""
        places = np.asarray(voxels, np.float64) * self.spacing + self.origin
        return np.ascontiguousarray(places[:, ::-1])

    def to_voxels(self, places: ArrayLike) -> NDArray[np.float64]:
        """Return voxel coordinates (n, 3) zyx of positions (n, 3) xyz in Å."""
        voxels = (np.asarray(places, np.float64)[:, ::-1] - self.origin) / self.spacing
        return np.ascontiguousarray(voxels)

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel [Å^3]."""
        return float(np.prod(self.spacing))


def frame_of(volume: Tomogram) -> Frame:
    """Return the frame of a volume.

    Raises
    ------
    ValueError
        If its voxel spacing is unknown.
    """
    if volume.voxel_spacing is None:
        name = "the array" if volume.path is None else str(volume.path)
        raise ValueError(f"{name} does not say its voxel spacing: give --voxel-spacing in Å")
    return Frame(volume.shape, volume.voxel_spacing, volume.origin)


def is_cubic(spacing: Zyx) -> bool:
    """Whether voxels of these sides are cubes, to a thousandth."""
    return max(spacing) - min(spacing) <= 1e-3 * min(spacing)

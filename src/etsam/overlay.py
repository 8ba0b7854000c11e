"""What volumes that are drawn over each other must have in common, and what a truth may hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from etsam.metrics import read_labels
from etsam.storage import PLACE_TOLERANCE, same_spacing
from etsam.volume import Tomogram


@dataclass(frozen=True)
class Reference:
    """What masks are held against: labels 1, 0 and -1, or with a `threshold` scores or a mask."""

    volume: Tomogram
    threshold: float | None = None

    def labels(self, z: int) -> NDArray[np.float32]:
        """Return slice `z` as labels (Y, X): 1 membrane, 0 not, -1 not annotated.

        Raises
        ------
        ValueError
            If a truth holds anything else.
        """
        plane = self.volume.read_slice(z)
        if self.threshold is not None:
            return np.asarray(plane > self.threshold, np.float32)
        self.volume.require_finite()
        try:
            read_labels(plane)
        except ValueError as error:
            raise ValueError(
                f"{self.volume.path or 'the truth'}, slice {z}: {error}; give a ground truth"
            ) from error
        return plane


def check_shapes(first: tuple[str, Tomogram], second: tuple[str, Tomogram]) -> None:
    """Check that two named volumes have the same number of voxels along each axis.

    Raises
    ------
    ValueError
        They have not.
    """
    if second[1].shape != first[1].shape:
        raise ValueError(
            f"{second[0]} has shape {second[1].shape}, {first[0]} {first[1].shape}: they do not belong together"
        )


def place_difference(first: Tomogram, second: Tomogram) -> str | None:
    """Say in what the headers of two volumes place them differently: voxel sizes, or origins; None: in nothing."""
    sizes = [v.voxel_spacing for v in (first, second) if v.voxel_spacing is not None]
    if len(sizes) == 2 and not same_spacing(*sizes):
        listed = " and ".join("x".join(f"{step:g}" for step in size) for size in sizes)
        return f"voxels of {listed} Å"
    return "other origins" if other_origins(first, second) else None


def other_origins(first: Tomogram, second: Tomogram) -> bool:
    """Whether the headers of two volumes of one grid place them differently."""
    step = first.voxel_spacing or second.voxel_spacing or (1.0, 1.0, 1.0)
    apart = np.abs(np.subtract(second.origin, first.origin))
    return not (apart <= PLACE_TOLERANCE * np.array(step)).all()


def check_grids(first: tuple[str, Tomogram], others: Iterable[tuple[str, Tomogram]]) -> None:
    """Check that named volumes have the same voxels; unknown voxel sizes pass.

    Raises
    ------
    ValueError
        If shapes differ, or voxel sizes by more than 1 %.
    """
    like_name, like = first
    for name, volume in others:
        check_shapes(first, (name, volume))
        mine, theirs = volume.voxel_spacing, like.voxel_spacing
        if mine is None or theirs is None:
            continue
        if not same_spacing(mine, theirs):
            sizes = ["x".join(f"{step:g}" for step in one) for one in (mine, theirs)]
            raise ValueError(
                f"{name} has voxels of {sizes[0]} Å, {like_name} of {sizes[1]} Å: draw volumes on one "
                "grid, or give --voxel-spacing where a header is wrong"
            )

"""Training labels of a scene: where a membrane is, and where the missing wedge hides it."""

from __future__ import annotations

import torch
from torch import Tensor

from etsam.simulation.imaging import TiltSeries
from etsam.simulation.scene import Scene


def label_thickness(voxel_spacing: float) -> float:
    """Thickness [Å] of a labelled membrane: about 6 voxels within 55 to 110 Å."""
    return min(max(5.8 * voxel_spacing, 55.0), 110.0)


def hidden_by_wedge(normal: Tensor, tilt: TiltSeries, least: float = 0.45) -> Tensor:
    """Where a surface with this normal (z and x components, (2, ...)) lies in the missing wedge."""
    nz, nx = normal
    angle = torch.rad2deg(torch.atan(nz / torch.where(nx.abs() < 1e-4, 1e-4, nx)))
    outside = (angle > max(tilt.angles)) | (angle < min(tilt.angles))
    return (outside & (nz.abs() > least)) | (nz.abs() > 0.9)


def membrane_labels(scene: Scene, tilt: TiltSeries) -> Tensor:
    """Labels int8 (Z, Y, X): 1 membrane, 0 background, -1 membrane that cannot be seen."""
    membrane = scene.distance.abs() <= label_thickness(scene.spacing) / 2
    hidden = membrane & hidden_by_wedge(scene.normal, tilt)
    return membrane.to(torch.int8) - 2 * hidden.to(torch.int8)

"""Training labels of a scene: where a membrane is, and where the missing wedge hides it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from etsam.simulation.scene import Scene


def label_thickness(voxel_spacing: float) -> float:
    """Thickness [Å] of a labelled membrane: about 6 voxels within 55 to 110 Å."""
    return min(max(5.8 * voxel_spacing, 55.0), 110.0)


def membrane_labels(scene: Scene, lean: float) -> Tensor:
    """Labels int8 (Z, Y, X): 1 membrane, 0 background, -1 neither.

    That is a membrane in the missing wedge which leans by more than `lean` degrees, unseen: those
    nearly upright still show through their curvature. And it is where a membrane went on before the
    sample was cut (`SimulationOptions.ghosts` says how far): the few views smear what is left of it
    over there, and to call that background would teach to overlook faint walls.
    """
    reach = label_thickness(scene.spacing) / 2
    membrane = scene.distance.abs() <= reach
    unsure = membrane & (scene.hidden > math.sin(math.radians(lean)))
    labels = membrane.to(torch.int8) - 2 * unsure.to(torch.int8)
    if scene.removed is not None:
        labels[scene.removed.abs() <= reach] = -1
    return labels

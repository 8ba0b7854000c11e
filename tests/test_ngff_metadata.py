"""What OME-Zarr metadata say that is not known here is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etsam.volume import open_tomogram
from test_ngff import UNITS, image, level

LEFT_OUT = "a coordinate transformation of type {} is not known here and left out"


@pytest.mark.parametrize("of_image", [False, True])
@pytest.mark.parametrize(
    ("step", "notes"),
    [
        ({"type": "identity"}, ()),
        ({"type": "affine", "affine": [[1, 0, 0, 5]] * 3}, (LEFT_OUT.format("'affine'"),)),
        ({"scale": [2.0] * 3}, (LEFT_OUT.format("None"),)),
        ({"type": "x" * 999}, (LEFT_OUT.format("'" + "x" * 59),)),
    ],
)
def test_transformations_of_other_types_are_noted(
    tmp_path: Path, step: dict[str, Any], notes: tuple[str, ...], of_image: bool
) -> None:
    content = {**UNITS, "datasets": level([8.0] * 3), "coordinateTransformations": []}
    holder = content if of_image else content["datasets"][0]
    holder["coordinateTransformations"].append(step)
    folder = image(tmp_path / "a", np.ones((4, 8, 8), np.float32), content)
    with open_tomogram(folder) as tomogram:
        assert (tomogram.voxel_spacing, tomogram.notes) == ((8.0,) * 3, notes)

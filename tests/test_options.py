"""Options of programs: what is spelt wrongly is refused, not taken for something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from etsam.options import SegmentOptions


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("polarity", "Bright"),
        ("dtype", "float16"),
        ("first_slice", "z"),
        ("normalize_method", "bad"),
        ("stage1_prompt", "points"),
        ("stage2_prompt", ""),
        ("polarity", None),
        ("tile", None),
        ("interval", 1.5),
        ("tile", "512"),
        ("min_slices", 2.0),
        ("voxel_spacing", "10"),
        ("logit_threshold", "-0.25"),
        ("logit_threshold", float("nan")),
        ("voxel_spacing", float("inf")),
        ("tile", 0),
        ("interval", 0),
        ("min_slices", -1),
        ("mirrors", "4"),
        ("model", None),
        ("model", 5),
        ("device", None),
        ("output", 5),
        ("output", ""),
        ("stage1_checkpoint", True),
    ],
)
def test_wrong_values_are_refused_with_what_was_expected(name: str, value: Any) -> None:
    given: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"{name} is .*: expected") as caught:
        SegmentOptions(**given)
    assert repr(value) in str(caught.value)


def test_numbers_of_numpy_are_numbers() -> None:
    options = SegmentOptions(voxel_spacing=np.float32(10), interval=np.int64(20))  # type: ignore[arg-type]
    assert options.voxel_spacing == 10 and options.interval == 20


def test_paths_may_be_texts() -> None:
    options = SegmentOptions(output="masks", stage1_checkpoint="a.pt")  # type: ignore[arg-type]
    assert (options.output, options.stage1_checkpoint) == (Path("masks"), Path("a.pt"))

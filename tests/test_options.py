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
        ("mirrors", 3),
        ("mirrors", 2.0),
        ("mirrors", True),
        ("tile", True),
        ("tile", 191),
        ("min_slices", True),
        ("logit_threshold", True),
        ("split_processing", "no"),
        ("store_logits", "x"),
        ("post_process", 1),
        ("instances", None),
        ("preview", 0),
        ("overwrite", "yes"),
        ("stage1_prompt", "etsam_stage1_partial"),
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
    options = SegmentOptions(
        voxel_spacing=np.float32(10),  # type: ignore[arg-type]
        interval=np.int64(20),  # type: ignore[arg-type]
        mirrors=np.int64(2),  # type: ignore[arg-type]
        preview=np.bool_(False),  # type: ignore[arg-type]
    )
    assert (options.voxel_spacing, options.interval, options.mirrors) == (10, 20, 2)
    assert not options.preview


def test_stage_2_may_be_prompted_by_stage_1() -> None:
    assert SegmentOptions(stage2_prompt="etsam_stage1_partial", tile=192).tile == 192


def test_paths_may_be_texts() -> None:
    options = SegmentOptions(output="masks", stage1_checkpoint="a.pt")  # type: ignore[arg-type]
    assert (options.output, options.stage1_checkpoint) == (Path("masks"), Path("a.pt"))

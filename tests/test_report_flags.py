"""What a report says: advises nothing that was done already or does not help, counts slices as others do."""

from __future__ import annotations

import json
import ntpath
import os
from functools import partial
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from etsam.report import report_file, write_index
from etsam.report.page import IndexRow

SHAPE = (24, 48, 56)


def write(path: Path, data: np.ndarray) -> Path:
    with mrcfile.new(path) as mrc:
        mrc.set_data(data)
        mrc.voxel_size = 10.0
    return path


def flags(folder: Path, mask: np.ndarray, **parameters: object) -> dict[str, str]:
    """Flags of the page of a mask that is brighter than the rest, and was made with these parameters."""
    noise = np.random.default_rng(0).normal(0, 1, mask.shape)
    tomogram = write(folder / "a.mrc", (noise + 2 * mask).astype(np.float32))
    write(folder / "a_membrane.mrc", mask.astype(np.int8))
    (folder / "a_membrane.json").write_text(json.dumps({"parameters": parameters}))
    return {flag.name: flag.text for flag in report_file(tomogram).flags}


@pytest.mark.parametrize(("polarity", "flagged"), [("dark", True), ("bright", False)])
def test_bright_is_not_advised_for_what_was_made_so(
    tmp_path: Path, polarity: str, flagged: bool
) -> None:
    mask = np.zeros(SHAPE, bool)
    mask[:, 20:25] = True
    assert ("bright membranes" in flags(tmp_path, mask, polarity=polarity)) is flagged


@pytest.mark.parametrize(
    ("parameters", "tries"),
    [
        ({}, "try --logit-threshold -1, --polarity bright, or --voxel-spacing"),
        (
            {"polarity": "bright", "logit_threshold": -1.5, "voxel_spacing": 10.0},
            "try a lower --logit-threshold, or --polarity dark",
        ),
    ],
)
def test_of_an_empty_mask_what_was_not_tried_is_advised(
    tmp_path: Path, parameters: dict[str, object], tries: str
) -> None:
    found = flags(tmp_path, np.zeros(SHAPE, bool), **parameters)
    assert found == {"empty": f"No voxel is above the threshold: {tries}."}


def test_specks_are_said_to_be_dropped_by_the_slices_they_span(tmp_path: Path) -> None:
    mask = np.zeros(SHAPE, bool)
    mask[:12, ::6, ::6] = True  # postprocess keeps them
    text = flags(tmp_path, mask)["noisy"]
    assert text.endswith(
        "hold 100% of the mask: etsam postprocess drops those over fewer than 10 slices."
    )


def test_slices_are_numbered_from_0_as_in_previews(tmp_path: Path) -> None:
    flags(tmp_path, np.zeros(SHAPE, bool))
    page = (tmp_path / "a_report.html").read_text("utf-8")
    assert "`z = ${place.z * meta.binning[0]} (0 to ${meta.fullShape[0] - 1})`" in page
    assert "} of ${" not in page


def test_an_index_names_pages_on_another_drive_in_full(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    on_windows = partial(ntpath.relpath, "D:\\a", "C:\\b")
    monkeypatch.setattr(os.path, "relpath", lambda _page, _folder: on_windows())
    page = tmp_path / "a b_report.html"
    index = write_index([IndexRow("a b", page, None, {}, [])], tmp_path / "index")
    assert f'href="{page.as_uri()}"' in index.read_text("utf-8")

"""A volume that is written while it is read has no result: the record would vouch for other voxels."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from etsam.evaluate import evaluate
from etsam.layout import Annotated
from etsam.options import SegmentOptions
from etsam.pairing import find_pairings
from etsam.postprocess import postprocess
from etsam.prepare import PrepareOptions, prepare
from etsam.segmentation import segment_file
from etsam.volume import open_tomogram
from test_cli import write_mrc
from tiny_model import write_tiny_model

SHAPE = (40, 24, 32)
Progress = Callable[..., None]


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    data = np.zeros(SHAPE, np.int8)
    data[:, 8:11] = 1
    return write_mrc(tmp_path / "a_membrane.mrc", data)


@pytest.fixture
def tomogram(tmp_path: Path) -> Path:
    data = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    return write_mrc(tmp_path / "a.mrc", data)


def erased(path: Path) -> Progress:
    """What is called with progress, and sets the later slices to 0, as a program that still writes does."""

    def once(*_: object) -> None:
        if not left:
            with mrcfile.open(path, "r+") as mrc:
                mrc.data[20:] = 0
            os.utime(path, ns=(1, 1))  # whatever the clock's steps are
            left.append(path)

    left: list[Path] = []
    return once


def refused(path: Path) -> AbstractContextManager[object]:
    return pytest.raises(ValueError, match=f"{path.name} has changed while it was being read")


def test_segment_postprocess_and_evaluate_refuse(
    mask: Path, tomogram: Path, tmp_path: Path
) -> None:
    (tmp_path / "p").mkdir()
    before = sorted(tmp_path.iterdir())
    with refused(mask):
        postprocess(mask, progress=erased(mask))
    with open_tomogram(mask) as opened, refused(mask):
        os.utime(mask, ns=(2, 2))
        postprocess(opened, progress=erased(mask))
    prediction = write_mrc(tmp_path / "p" / "a_membrane.mrc", np.ones(SHAPE, np.int8))
    for changing in (mask, prediction):
        os.utime(changing, ns=(2, 2))
        with refused(changing):
            evaluate(find_pairings([prediction], [mask]), progress=erased(changing))
    model = write_tiny_model(tmp_path / "p" / "tiny")
    with refused(tomogram):
        output = tmp_path / "b.mrc"
        options = SegmentOptions(model=model, output=output, device="cpu", polarity="dark")
        segment_file(tomogram, options, erased(tomogram))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("changing", ["tomogram", "mask", "limit"])
def test_prepare_refuses(changing: str, mask: Path, tomogram: Path, tmp_path: Path) -> None:
    limit = write_mrc(tmp_path / "limit.mrc", np.ones(SHAPE, np.int8))
    pair = Annotated("a", tomogram, (mask,))
    path = {"tomogram": tomogram, "mask": mask, "limit": limit}[changing]
    with refused(path):
        prepare(pair, tmp_path / "out", PrepareOptions(limit=limit), erased(path))
    assert not (tmp_path / "out").exists()


def test_a_change_while_a_file_is_opened_counts(
    mask: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed ones are read to their end then."""

    def opened(path: Path) -> object:
        volume = open_tomogram(path)
        erased(path)()
        return volume

    monkeypatch.setattr("etsam.postprocess.open_tomogram", opened)
    with refused(mask):
        postprocess(mask)
    assert list(mask.parent.iterdir()) == [mask]

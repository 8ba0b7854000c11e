"""The preview picture: which slices, what is drawn, what is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from etsam.preview import OUTLINE, WIDTH, save_preview
from etsam.volume import Tomogram, create_volume, open_tomogram, tomogram_from_array


def sphere(shape: tuple[int, int, int] = (40, 64, 80)) -> tuple[np.ndarray, np.ndarray]:
    """Make a noisy tomogram with a dark shell, and the shell."""
    z, y, x = (np.arange(n)[index] - n / 2 for n, index in zip(shape, INDEX, strict=True))
    mask = np.abs(np.sqrt(z**2 + y**2 + x**2) - 18) < 2
    noise = np.random.default_rng(0).normal(size=shape)
    return (noise - 2 * mask).astype(np.float32), mask.astype(np.int8)


INDEX = ((slice(None), None, None), (slice(None), None), (slice(None),))


def outlined(pixels: np.ndarray) -> np.ndarray:
    """Say where a picture has exactly the colour of the outline."""
    return np.all(pixels == OUTLINE, axis=-1)


def picture(path: Path) -> np.ndarray:
    """Read a picture as (height, width, 3)."""
    with Image.open(path) as image:
        return np.asarray(image)


def volumes(spacing: float | None = 10.0) -> tuple[Tomogram, Tomogram]:
    data, mask = sphere()
    return tomogram_from_array(data, voxel_spacing=spacing), tomogram_from_array(mask)


def test_outline_is_in_the_lower_row_only_and_round_the_mask(tmp_path: Path) -> None:
    tomogram, mask = volumes()
    assert len(save_preview(tmp_path / "a.png", tomogram, mask)) == 3
    pixels = picture(tmp_path / "a.png")
    lines = outlined(pixels)
    height = len(lines)
    assert not lines[: height // 2].any()
    assert 0.005 < lines[height // 2 :].mean() < 0.2
    columns = np.array_split(lines.any(axis=0), 3)
    assert all(part.any() for part in columns)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_chooses_slices_with_membrane(tmp_path: Path) -> None:
    data = np.random.default_rng(1).normal(size=(100, 30, 30)).astype(np.float32)
    mask = np.zeros(data.shape, np.int8)
    mask[60:80, 10:12] = 1
    tomogram = tomogram_from_array(data)
    chosen = save_preview(tmp_path / "a.png", tomogram, tomogram_from_array(mask))
    assert chosen == pytest.approx([65, 70, 75], abs=2)
    mask[:] = 0
    mask[33] = 1  # between the slices that are looked at first
    chosen = save_preview(tmp_path / "a.png", tomogram, tomogram_from_array(mask))
    assert chosen == pytest.approx([25, 50, 75], abs=1)
    asked = save_preview(tmp_path / "a.png", tomogram, tomogram_from_array(mask), slices=[33])
    assert asked == (33,)


def test_reads_only_the_slices_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, mask = sphere((90, 20, 20))
    path = tmp_path / "a.mrc"
    with create_volume(path, tomogram_from_array(data), dtype="float32", label="") as writer:
        for z, plane in enumerate(data):
            writer.write_slice(z, plane)
    read: list[int] = []
    with open_tomogram(path) as tomogram:
        original = tomogram.read_slice
        monkeypatch.setattr(tomogram, "read_slice", lambda z: read.append(z) or original(z))
        chosen = save_preview(tmp_path / "a.png", tomogram, tomogram_from_array(mask))
    assert tuple(read) == chosen


def bar_length(path: Path, spacing: float | None) -> int:
    """Measure the white bar of the first panel, in pixels."""
    save_preview(path, *volumes(spacing), slices=[20])
    pixels = picture(path).min(axis=-1)
    panel = pixels[: len(pixels) // 2, 16:-16]
    rows = np.flatnonzero((panel[-40:] == 255).sum(axis=1) > 30)
    row = panel[-40:][rows[-1]]
    return max(len(run) for run in "".join("x" if v == 255 else " " for v in row).split())


def test_scale_bar_has_a_round_length(tmp_path: Path) -> None:
    # 64 x 80 slices are enlarged 7 times: 80 voxels of 1 nm, of which at most 30 % are the bar.
    assert bar_length(tmp_path / "a.png", 10.0) == pytest.approx(20 * 7, abs=2)
    assert bar_length(tmp_path / "b.png", 13.6) == pytest.approx(20 / 1.36 * 7, abs=2)
    assert bar_length(tmp_path / "c.png", None) == pytest.approx(20 * 7, abs=2)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 500), (3, 1500, 40), (1, 900, 1000)])
def test_any_shape_fits_the_picture(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    data = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    mask = tomogram_from_array(np.ones(shape, np.int8))
    save_preview(tmp_path / "a.png", tomogram_from_array(data), mask, title="name " * 60)
    height, width = picture(tmp_path / "a.png").shape[:2]
    assert width <= WIDTH
    assert height <= 2700


def test_constant_slices_and_bad_requests(tmp_path: Path) -> None:
    flat = tomogram_from_array(np.zeros((4, 30, 30), np.float32))
    empty = tomogram_from_array(np.zeros((4, 30, 30), np.int8))
    assert save_preview(tmp_path / "a.png", flat, empty) == (0, 1, 2)
    with pytest.raises(ValueError, match="shape"):
        save_preview(tmp_path / "b.png", flat, tomogram_from_array(np.zeros((4, 30, 31))))
    with pytest.raises(ValueError, match=r"slices \[4\]: expected some of 0 to 3"):
        save_preview(tmp_path / "b.png", flat, empty, slices=[4])
    with pytest.raises(ValueError, match="expected some of"):
        save_preview(tmp_path / "b.png", flat, empty, slices=[])
    assert not (tmp_path / "b.png").exists()

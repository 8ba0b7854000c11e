"""One picture that says whether a segmentation worked: three slices, bare and with the mask.

Only these slices are read (and, to choose them, the mask's slices at some depths).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation, gaussian_filter

from etsam.drawing import round_length
from etsam.overlay import check_shapes
from etsam.storage import appearing
from etsam.volume import Tomogram

WIDTH = 2400
"""Largest width of the picture [px]."""

OUTLINE = (255, 176, 0)
"""Amber, told from grey with any colour vision."""

PAPER = (255, 255, 255)
INK = (20, 20, 20)
SMOOTHING = 1.2  # voxels; enough to see membranes through shot noise
CONTRAST = (0.5, 99.5)  # percentiles that become black and white
ENLARGED = 400  # px; panels of small slices are enlarged to at least this
TALLEST = 1200  # px
_GREYS = [value // 4 * 255 // 63 for value in range(256)]  # 64 greys: half the file, same look
SAMPLED = 41  # mask slices looked at to find where the membrane is
BAR = 0.3  # the scale bar's largest share of a panel's width


@dataclass(frozen=True)
class _Layout:
    """Sizes of the picture in pixels; `scale` is pixels per voxel along x."""

    width: int
    height: int
    margin: int
    font: int
    scale: float

    def corner(self, column: int, row: int) -> tuple[int, int]:
        """Upper left corner of a panel."""
        left = self.margin + column * (self.width + self.margin)
        top = self.margin + 2 * self.font + row * (self.height + self.margin)
        return left, top


def save_preview(
    path: Path | str,
    tomogram: Tomogram,
    mask: Tomogram,
    *,
    slices: Sequence[int] | None = None,
    title: str | None = None,
) -> tuple[int, ...]:
    """Write a PNG of three slices, the bare ones above those with the mask outlined.

    Parameters
    ----------
    path
        PNG file to write; it appears only when complete.
    tomogram, mask
        Volumes of one shape; mask voxels above 0 are membrane.
    slices
        Slices to show (default: where a quarter, half and three quarters of the mask lie, or of
        the volume if the mask is empty).
    title
        Line above the picture (default: name of the tomogram's file).

    Returns
    -------
    tuple of int
        The slices shown.

    Raises
    ------
    ValueError
        If the shapes differ or a slice is not in the volume.
    """
    check_shapes(("the tomogram", tomogram), ("the mask", mask))
    chosen = tuple(slices) if slices is not None else _choose(mask)
    outside = [z for z in chosen if not 0 <= z < mask.shape[0]]
    if outside or not chosen:
        raise ValueError(f"slices {list(chosen)}: expected some of 0 to {mask.shape[0] - 1}")
    path = Path(path)
    layout = _lay_out(tomogram.shape, len(chosen))
    image = Image.new("RGB", layout.corner(len(chosen), 2), PAPER)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=layout.font)
    name = title or (tomogram.path.name if tomogram.path is not None else "tomogram")
    draw.text((layout.margin, layout.margin), _fitted(name, image.width, layout), INK, font)
    for column, z in enumerate(chosen):
        bare = _panel(tomogram.read_slice(z), layout)
        image.paste(bare, layout.corner(column, 0))
        outlined = _outlined(bare, mask.read_slice(z) > 0)
        image.paste(outlined, layout.corner(column, 1))
        left, top = layout.corner(column, 0)
        _label(draw, (left + layout.font // 2, top + layout.font // 4), f"z = {z}", font)
    _scale_bar(draw, layout, tomogram)
    with appearing(path) as partial:
        image.save(partial, "PNG", compress_level=6)
    return chosen


def _choose(mask: Tomogram) -> tuple[int, ...]:
    """Choose the slices before which a quarter, half and three quarters of the mask lie."""
    depth = mask.shape[0]
    for step in (max(1, depth // SAMPLED), 1):
        places = np.arange(step // 2, depth, step)
        area = np.array([np.count_nonzero(mask.read_slice(int(z)) > 0) for z in places])
        if area.any():
            break
    if np.count_nonzero(area) < 3:
        places, area = np.arange(depth), np.ones(depth)
    share = (np.cumsum(area) - area / 2) / area.sum()
    quarters = [int(places[np.abs(share - part).argmin()]) for part in (0.25, 0.5, 0.75)]
    return tuple(sorted(set(quarters)))


def _lay_out(shape: tuple[int, int, int], columns: int) -> _Layout:
    """Fit the panels into the picture."""
    _, height, width = shape
    margin = 16
    room = (WIDTH - margin) / columns - margin
    scale = min(room / width, TALLEST / height)
    if scale > 1:
        scale = min(floor(scale), ceil(ENLARGED / min(height, width)))
    panel = max(1, round(width * scale)), max(1, round(height * scale))
    return _Layout(*panel, margin, min(max(panel[0] // 22, 16), 32), scale)


def _panel(data: NDArray[np.float32], layout: _Layout) -> Image.Image:
    """Bring a slice to grey values that show membranes, and to the size of a panel."""
    smooth = gaussian_filter(data, max(SMOOTHING, 0.5 / layout.scale))
    low, high = np.percentile(smooth, CONTRAST)
    scaled = (smooth - low) / max(float(high - low), 1e-12)
    grey = Image.fromarray((np.clip(scaled, 0, 1) * 255).astype(np.uint8))
    grey = grey.resize((layout.width, layout.height), Image.Resampling.BICUBIC)
    return grey.point(_GREYS).convert("RGB")


def _outlined(panel: Image.Image, mask: NDArray[np.bool_]) -> Image.Image:
    """Draw a line round the mask, on its outside so that the membrane stays in sight."""
    whole = Image.fromarray(mask.astype(np.uint8) * 255).resize(panel.size, Image.Resampling.BOX)
    inside = np.asarray(whole) > 127
    line = binary_dilation(inside, np.ones((3, 3)), 2) & ~inside
    pixels = np.asarray(panel).copy()
    pixels[line] = OUTLINE
    return Image.fromarray(pixels)


def _scale_bar(draw: ImageDraw.ImageDraw, layout: _Layout, tomogram: Tomogram) -> None:
    """Draw a bar of a round length in the first panel: nm, or voxels where the spacing is unknown."""
    spacing = None if tomogram.voxel_spacing is None else tomogram.voxel_spacing[2] / 10
    longest = BAR * layout.width / layout.scale * (spacing or 1.0)
    length = round_length(longest)
    pixels = round(length / (spacing or 1.0) * layout.scale)
    left, top = layout.corner(0, 0)
    x, y = left + layout.font // 2, top + layout.height - layout.font // 2
    thick = max(4, layout.font // 4)
    box = (x, y - thick, x + pixels, y)
    draw.rectangle((box[0] - 2, box[1] - 2, box[2] + 2, box[3] + 2), INK)
    draw.rectangle(box, PAPER)
    text = f"{length:g} {'voxels' if spacing is None else 'nm'}"
    font = ImageFont.load_default(size=layout.font)
    _label(draw, (x, y - thick - round(1.5 * layout.font)), text, font)


def _label(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Write white letters with a dark rim, readable on any grey."""
    draw.text(place, text, PAPER, font, stroke_width=3, stroke_fill=INK)


def _fitted(name: str, width: int, layout: _Layout) -> str:
    """Shorten a name in its middle so that it and the legend fit on one line."""
    legend = "    outlined: membrane mask"
    letters = max(12, int((width - 2 * layout.margin) / (0.58 * layout.font)) - len(legend))
    if len(name) > letters:
        name = f"{name[: letters // 2 - 1]}...{name[-(letters // 2 - 2) :]}"
    return name + legend

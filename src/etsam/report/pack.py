"""Volumes and meshes small enough for a page: WebP slices in base64, 16-bit vertices."""

from __future__ import annotations

import base64
import io
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from etsam.membrane import Membrane
from etsam.meshes import Mesh
from etsam.volume import Tomogram

MAX_SIDE = 640  # pixels of a slice on the page
MAX_SLICES = 320
PAGE_BYTES = 16_500_000
"""Bytes of all slices before base64, which makes them 22 MB."""

LEVEL_STEP = 2
"""Levels of the page per step of a quantised logit: 1/8 logit."""

LEVELS = 64  # of 128: up to 8 logits above the threshold
FLOOR = (
    48  # 2 logits below the threshold; below that a voxel is background whatever the slider says
)
LEVEL_SHARE = 0.4  # of the page's bytes, at most, if need be in coarser steps
COARSENESS = (1, 2, 4, 8)
QUALITIES = ((80, 0.0), (60, 0.0), (40, 0.0), (60, 0.8), (40, 0.8), (30, 0.8), (20, 0.8), (10, 0.8))
"""WebP qualities of grey slices with the blur [pixels] before them, best first."""

CONTRAST = (0.1, 99.9)  # percentiles of the grey values that become 0 and 255


@dataclass(frozen=True)
class PackedVolume:
    """Slices as base64 of WebP: `grey` and `level` (z); `binning` voxels per pixel, zyx.

    A level is 64 at the threshold and a step of 1/8 logit; without logits it is 0 or 127. `above[i]` counts
    the voxels of the whole volume with a level above i.
    """

    grey: list[str]
    level: list[str]
    binning: tuple[int, int, int]
    shape: tuple[int, int, int]
    above: list[int]


def pack_volume(tomogram: Tomogram, membrane: Membrane, budget: int = PAGE_BYTES) -> PackedVolume:
    """Pack a tomogram and its segmentation into at most about `budget` bytes."""
    depth, height, width = tomogram.shape
    side = -(-max(height, width) // MAX_SIDE)
    binning = (-(-depth // MAX_SLICES), side, side)
    shape = (-(-depth // binning[0]), -(-height // side), -(-width // side))
    counts = np.zeros(2 * LEVELS, np.int64)
    coarse = _coarseness(membrane, binning, int(LEVEL_SHARE * budget / shape[0]))
    level = []
    for z in range(shape[0]):
        planes = _levels(membrane, z * binning[0], min((z + 1) * binning[0], depth), coarse)
        counts += np.bincount(planes.ravel(), minlength=2 * LEVELS)
        level.append(_webp(_reduced(planes.max(axis=0), side, np.max), None))
    contrast = _contrast(tomogram)
    room = (budget - sum(map(len, level))) // shape[0]
    quality, blur = _quality(tomogram, binning, contrast, room)
    grey = [
        _webp(_blurred(_grey(tomogram, z, binning, contrast), blur), quality)
        for z in range(shape[0])
    ]
    above = (counts.sum() - np.cumsum(counts)).tolist()
    return PackedVolume(_texts(grey), _texts(level), binning, shape, above)


def pack_mesh(mesh: Mesh, membranes: NDArray[np.int16]) -> dict[str, object]:
    """Pack a mesh for WebGL: 16-bit places in its box, triangles, a colour per vertex; deflated, base64."""
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    size = float((high - low).max()) or 1.0
    places = np.rint((mesh.vertices - low) / size * 65535).astype("<u2")
    return {
        "vertices": _deflated(places),
        "faces": _deflated(mesh.faces.astype("<u4")),
        "membranes": _deflated((membranes % 256).astype("u1")),
        "low": low.tolist(),
        "size": size,
        "count": [len(places), len(mesh.faces)],
    }


def thumbnail(tomogram: Tomogram, membrane: Membrane, side: int = 200) -> str:
    """Return a small picture of the slice with most membrane, its mask in amber, as a data URI."""
    area = [int(np.count_nonzero(plane)) for plane in membrane.mask]
    z = int(np.argmax(area)) if any(area) else len(area) // 2
    step = -(-max(tomogram.shape[1:]) // side)
    grey = _grey(tomogram, z, (1, step, step), _contrast(tomogram))
    rgb = np.repeat(grey[..., None], 3, axis=2).astype(np.float32)
    mask = _reduced(membrane.mask[z].astype(np.float32), step, np.mean)[..., None] > 0.4
    rgb = np.where(mask, 0.45 * rgb + 0.55 * np.array([255, 176, 0], np.float32), rgb)
    file = io.BytesIO()
    Image.fromarray(rgb.astype(np.uint8)).save(file, "WEBP", quality=60)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _levels(membrane: Membrane, start: int, stop: int, coarse: int = 1) -> NDArray[np.uint8]:
    """Return slices as levels 0..127 in steps of `coarse`; above 64 is membrane."""
    mask = membrane.mask[start:stop]
    if membrane.field is None:
        return np.where(mask, np.uint8(2 * LEVELS - 1), np.uint8(0))
    step = LEVEL_STEP * coarse
    steps = np.floor_divide(membrane.field[start:stop], step).astype(np.int16) * coarse + LEVELS
    steps = np.where(mask, np.maximum(steps, LEVELS + 1), np.minimum(steps, LEVELS))
    return np.asarray(steps.clip(FLOOR, 2 * LEVELS - 1), np.uint8)


def _coarseness(membrane: Membrane, binning: tuple[int, int, int], room: int) -> int:
    """Return the finest steps with which levels take `room` bytes a slice."""
    depth = len(membrane.mask)
    for coarse in COARSENESS:
        sizes = []
        for part in range(1, 8):
            start = depth * part // 8
            planes = _levels(membrane, start, min(start + binning[0], depth), coarse)
            sizes.append(len(_webp(_reduced(planes.max(axis=0), binning[1], np.max), None)))
        if np.mean(sizes) <= room:
            return coarse
    return COARSENESS[-1]


def _blurred(plane: NDArray[np.uint8], blur: float) -> NDArray[np.uint8]:
    return np.asarray(gaussian_filter(plane, blur)) if blur else plane


def _grey(
    tomogram: Tomogram, z: int, binning: tuple[int, int, int], contrast: tuple[float, float]
) -> NDArray[np.uint8]:
    """Return a slice of the page as bytes."""
    stop = min((z + 1) * binning[0], tomogram.shape[0])
    data = tomogram.read_slices(z * binning[0], stop).mean(axis=0)
    data = _reduced(data, binning[1], np.mean)
    scaled = (data - contrast[0]) / max(contrast[1] - contrast[0], 1e-12)
    return np.asarray(np.rint(scaled.clip(0, 1) * 255), np.uint8)


def _reduced(plane: np.ndarray, side: int, by: np.ufunc | object) -> np.ndarray:
    """Reduce squares of `side` pixels to one by a function of (array, axis)."""
    if side == 1:
        return plane
    padding = [(0, -size % side) for size in plane.shape]
    plane = np.pad(plane, padding, mode="edge")
    blocks = plane.reshape(plane.shape[0] // side, side, plane.shape[1] // side, side)
    assert callable(by)
    result: np.ndarray = by(blocks, axis=(1, 3))
    return result


def _contrast(tomogram: Tomogram) -> tuple[float, float]:
    depth = tomogram.shape[0]
    chosen = sorted({depth * part // 8 for part in range(1, 8)})
    data = np.concatenate([tomogram.read_slice(z)[::2, ::2].ravel() for z in chosen])
    low, high = np.percentile(data, CONTRAST)
    return float(low), float(high)


def _quality(
    tomogram: Tomogram, binning: tuple[int, int, int], contrast: tuple[float, float], room: int
) -> tuple[int, float]:
    """Return the best of `QUALITIES` with which slices take `room` bytes each."""
    depth = -(-tomogram.shape[0] // binning[0])
    samples = [_grey(tomogram, depth * part // 6, binning, contrast) for part in range(1, 6)]
    for quality, blur in QUALITIES:
        sizes = [len(_webp(_blurred(sample, blur), quality)) for sample in samples]
        if np.mean(sizes) <= room:
            return quality, blur
    return QUALITIES[-1]


def _webp(plane: NDArray[np.uint8], quality: int | None) -> bytes:
    """Return a grey picture as WebP; exact where there is no quality."""
    file = io.BytesIO()
    image = Image.fromarray(plane)
    if quality is None:
        image.convert("RGB").save(file, "WEBP", lossless=True, quality=20, method=1)
    else:
        image.convert("RGB").save(file, "WEBP", quality=quality, method=2)
    return file.getvalue()


def _texts(parts: list[bytes]) -> list[str]:
    return [base64.b64encode(part).decode("ascii") for part in parts]


def _deflated(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 6)).decode()

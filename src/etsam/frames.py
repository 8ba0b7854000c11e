"""Slices to network-ready frames, and low-resolution logits back to slices."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn.functional import interpolate

from etsam.frame_spec import IMAGENET_MEAN, IMAGENET_STD
from etsam.frame_spec import REFERENCE_SPEC as REFERENCE_SPEC  # who makes frames asks for them here
from etsam.frame_spec import FrameSpec as FrameSpec
from etsam.intensity import IntensityScaling, SliceSource
from etsam.logits import LOGIT_LIMIT, LogitRange
from etsam.storage import Zyx

CPU = torch.device("cpu")


@dataclass(frozen=True)
class FrameGeometry:
    """Sizes on the way from a slice to a frame: slice -> scaled -> padded frame.

    ``z_step`` is the distance of stacked neighbours; ``is_square`` that slices are squeezed.
    """

    slice_shape: tuple[int, int]
    scaled_shape: tuple[int, int]
    frame_shape: tuple[int, int]
    z_step: int = 1
    is_square: bool = False


def frame_geometry(
    spec: FrameSpec,
    slice_shape: tuple[int, int],
    voxel_spacing: tuple[float, float, float] | None = None,
) -> FrameGeometry:
    """Work out the sizes for slices of (Y, X) voxels with spacing zyx in Å (None: unknown, 1:1)."""
    if spec.size == "square":
        square = (spec.image_size, spec.image_size)
        return FrameGeometry(slice_shape, square, square, is_square=True)
    spacing = voxel_spacing or (spec.min_spacing,) * 3
    scaled = tuple(
        max(1, round(length * step / min(max(step, spec.min_spacing), spec.max_spacing)))
        for length, step in zip(slice_shape, spacing[1:], strict=True)
    )
    padded = tuple(-(-length // spec.multiple) * spec.multiple for length in scaled)
    z_step = max(1, round(spec.min_spacing / spacing[0]))
    return FrameGeometry(slice_shape, (scaled[0], scaled[1]), (padded[0], padded[1]), z_step)


def blur_plane(plane: np.ndarray, spec: FrameSpec, geometry: FrameGeometry) -> np.ndarray:
    """Blur a slice, or part of one (Y, X), by `FrameSpec.blur`, mirrored at its borders; float32."""
    deviations = [
        spec.blur * length / scaled  # voxels
        for length, scaled in zip(geometry.slice_shape, geometry.scaled_shape, strict=True)
    ]
    return np.asarray(gaussian_filter(plane.astype(np.float32, copy=False), deviations))


def blurred(source: SliceSource, spec: FrameSpec, voxel_spacing: Zyx | None = None) -> SliceSource:
    """A volume as a model wants it before grey values are scaled: blurred in plane, or as it is."""
    if spec.blur == 0:
        return source
    shape = source.shape[1], source.shape[2]
    return _Blurred(source, spec, frame_geometry(spec, shape, voxel_spacing))


@dataclass(frozen=True)
class _Blurred:
    """A volume whose slices are blurred when read."""

    source: SliceSource
    spec: FrameSpec
    geometry: FrameGeometry

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.source.shape

    def read_slice(self, z: int) -> np.ndarray:
        return blur_plane(self.source.read_slice(z), self.spec, self.geometry)


def window(z: int, depth: int, offsets: Iterable[int], step: int) -> list[int]:
    """Indices of the slices stacked around z, clamped to the volume."""
    return [min(max(z + offset * step, 0), depth - 1) for offset in offsets]


def resize_planes(planes: Tensor, shape: tuple[int, int]) -> Tensor:
    """Resize (n, h, w) float planes bicubically with antialiasing, as Pillow does for mode F.

    In double precision like Pillow: single moves the result by 3e-5, which stage 2 amplifies.
    """
    if planes.shape[-2:] == shape:
        return planes
    double = planes[None].double()
    return interpolate(double, shape, mode="bicubic", antialias=True)[0].to(planes.dtype)


def pad_reflected(planes: Tensor, shape: tuple[int, int]) -> Tensor:
    """Extend (n, h, w) planes at the bottom and right by reflection, as often as needed."""
    for axis, length in ((-2, shape[0]), (-1, shape[1])):
        if planes.shape[axis] != length:
            period = max(1, 2 * (planes.shape[axis] - 1))
            index = torch.arange(length, device=planes.device) % period
            planes = planes.index_select(axis, torch.minimum(index, period - index))
    return planes


def to_frame(planes: Tensor, spec: FrameSpec, geometry: FrameGeometry) -> Tensor:
    """Bring scaled (n, Y, X) planes to the frame (c, h, w) the network takes."""
    frame = pad_reflected(resize_planes(planes, geometry.scaled_shape), geometry.frame_shape)
    if not spec.imagenet:
        return frame
    mean = frame.new_tensor(IMAGENET_MEAN)[:, None, None]
    std = frame.new_tensor(IMAGENET_STD)[:, None, None]
    return (frame - mean) / std  # (3, h, w)


def to_slice(logits: Tensor, geometry: FrameGeometry) -> Tensor:
    """Bring low-resolution logits (h / s, w / s), s the patch stride, back to the slice (Y, X), bilinearly."""
    values = logits.float()
    height, width = geometry.scaled_shape
    if geometry.frame_shape != geometry.scaled_shape:
        values = _bilinear(values, geometry.frame_shape)[:height, :width]
    return _bilinear(values, geometry.slice_shape)


def _bilinear(values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Resize one (h, w) plane."""
    if values.shape == shape:
        return values
    return interpolate(values[None, None], shape, mode="bilinear", align_corners=False)[0, 0]


def read_plane(source: SliceSource, z: int) -> Tensor:
    """Read slice z as a float32 tensor (Y, X)."""
    return torch.from_numpy(np.ascontiguousarray(source.read_slice(z), dtype=np.float32))


class FrameSequence(Protocol):
    """Frames by index; read lazily."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor: ...


@dataclass(frozen=True)
class FrameSource:
    """Frames of a volume, made when asked for: (c, h, w) float32 for each z.

    ``feedback`` are the previous stage's logits at slice resolution and ``feedback_range`` their
    clipped extremes over the volume (for ``fusion="add"``). With ``keep`` the planes that the frames
    around the latest one are made of stay in memory, so that each is scaled and resized once; one
    thread at a time may ask for frames then. Stacked planes are rounded to half precision, by at most
    one part in 2000, so that a far look along z takes little memory. Planes are made and kept on
    ``device``.
    """

    source: SliceSource
    spec: FrameSpec
    scaling: IntensityScaling
    geometry: FrameGeometry
    feedback: SliceSource | None = None
    feedback_range: LogitRange | None = None
    keep: bool = False
    device: torch.device = CPU
    _kept: dict[int, Tensor] = dataclasses.field(init=False, default_factory=dict)

    def __len__(self) -> int:
        return self.source.shape[0]

    def __getitem__(self, index: int) -> Tensor:
        indices = window(index, len(self), self.spec.offsets, self.geometry.z_step)
        for z in [z for z in self._kept if not indices[0] <= z <= indices[-1]]:
            del self._kept[z]
        kinds = zip(*(self._planes(z) for z in indices), strict=True)  # grey values, then logits
        # channels last in memory, as convolutions on CPUs want them: spares them a slow copy
        planes = torch.stack([plane for kind in kinds for plane in kind], dim=-1)
        return planes.float().permute(2, 0, 1)

    def _planes(self, z: int) -> Tensor:
        """What slice z adds to a frame, (k, h, w): its grey values, and its logits or none."""
        if z in self._kept:
            return self._kept[z]
        planes = self.scaling.apply(read_plane(self.source, z).to(self.device))[None]
        if self.feedback is not None:
            logits = read_plane(self.feedback, z)[None].to(self.device)
            planes = fuse(planes, logits, self.spec, self.feedback_range)
        planes = to_frame(planes, self.spec, self.geometry).to(self.spec.plane_dtype)
        if self.keep:
            self._kept[z] = planes
        return planes


def fuse(
    planes: Tensor, logits: Tensor, spec: FrameSpec, limits: LogitRange | None = None
) -> Tensor:
    """Join scaled slices (n, Y, X) and stage-1 logits of the same slices into stage-2 planes.

    Raises
    ------
    ValueError
        ``fusion="add"`` without the range of the logits over the volume.
    """
    clipped = logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
    if spec.fusion == "concat":
        return torch.cat((planes, clipped / LOGIT_LIMIT))  # (2 n, Y, X)
    if limits is None:
        raise ValueError("fusion 'add' needs the range of the stage-1 logits over the volume")
    return planes + (clipped - limits.low) / (limits.high - limits.low or 1.0)


class Prefetched:
    """Frames with the next one made by a thread while the network works on the present one."""

    def __init__(self, frames: FrameSequence) -> None:
        self._frames = frames
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="etsam-frames")
        self._ahead: tuple[int, Future[Tensor]] | None = None

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Tensor:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == index:
            frame = ahead[1].result()
        else:
            frame = self._pool.submit(self._frames.__getitem__, index).result()
        if index + 1 < len(self):
            self._ahead = index + 1, self._pool.submit(self._frames.__getitem__, index + 1)
        return frame

    def __enter__(self) -> Prefetched:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

"""Training data: tomogram and mask pairs, found in folders and read slice by slice."""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch
from torch import Tensor

from etsam.frames import FrameGeometry, FrameSpec, blur_plane, blurred, frame_geometry
from etsam.intensity import IntensityScaling, measure_intensity
from etsam.layout import find_pairs as find_pairs  # who trains asks for pairs here
from etsam.logits import LogitRange
from etsam.metrics import IGNORE, OTHER_VALUES
from etsam.overlay import place_difference
from etsam.polarity import is_seen_inverted
from etsam.storage import mapping
from etsam.volume import Tomogram, open_tomogram, stem_of, tomogram_from_array, whole_volume

LOGITS_SUFFIX = "_stage1.npy"
LOGIT_STEP = 5.0 / 127
"""Stage-1 logits, clipped to [-5, 5], are kept as int8 in memory and on disk."""
NEW_LOGITS = "remove it, and --stage1-checkpoint makes it again"
OPEN_VOLUMES = 64
"""Files kept open at once."""


def logits_path(tomogram: Path) -> Path:
    """Where the stage-1 logits of a training tomogram lie."""
    return whole_volume(tomogram).with_name(stem_of(tomogram) + LOGITS_SUFFIX)


class SliceStore:
    """Slices of many volumes, read when asked for; the latest stay in memory, within a bound.

    Safe to read from several threads.
    """

    def __init__(self, limit_gb: float) -> None:
        self._limit = limit_gb * 1e9
        self._held = 0
        self._slices: OrderedDict[tuple[Path, int], np.ndarray] = OrderedDict()
        self._open: OrderedDict[Path, Tomogram] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path, z: int) -> np.ndarray:
        """Slice z (Y, X) of a volume: bytes as they are, anything else as float32."""
        with self._lock:
            key = (path, z)
            if key in self._slices:
                self._slices.move_to_end(key)
                return self._slices[key]
            volume = self._volume(path)
            plane = volume.read_slice(z)
            if volume.dtype.itemsize == 1:
                plane = plane.astype(volume.dtype)
            self._slices[key] = plane
            self._held += plane.nbytes
            while self._held > self._limit and len(self._slices) > 1:
                self._held -= self._slices.popitem(last=False)[1].nbytes
            return plane

    def forget(self, path: Path) -> None:
        """Close a volume and forget its slices; it is opened anew where it is asked for again."""
        with self._lock:
            for key in [key for key in self._slices if key[0] == path]:
                self._held -= self._slices.pop(key).nbytes
            if path in self._open:
                self._open.pop(path).close()

    def close(self) -> None:
        """Close all files and forget all slices."""
        with self._lock:
            for volume in self._open.values():
                volume.close()
            self._open.clear()
            self._slices.clear()
            self._held = 0

    def _volume(self, path: Path) -> Tomogram:
        if path not in self._open:
            self._open[path] = open_volume(path)
            if len(self._open) > OPEN_VOLUMES:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(path)
        return self._open[path]


def open_volume(path: Path) -> Tomogram:
    """Open a tomogram, a mask or stored stage-1 logits.

    Raises
    ------
    FileNotFoundError, OSError, ValueError
        It is not there or cannot be read; the message names it.
    """
    if path.suffix != ".npy":
        return open_tomogram(path)
    try:
        with mapping():
            logits = np.lib.format.open_memmap(path, mode="r")
        volume = tomogram_from_array(logits)
    except (ArithmeticError, TokenError, ValueError):
        raise ValueError(f"{path} is damaged, or holds no stage-1 logits: {NEW_LOGITS}") from None
    if logits.dtype != np.int8:  # logits themselves would count as so many steps
        volume.close()
        raise ValueError(
            f"{path} holds {logits.dtype}, expected int8 in steps of 5/127 logits: {NEW_LOGITS}"
        )
    return volume


class Pair:
    """A tomogram, its labels and, for stage 2, its stage-1 logits, (Z, Y, X), read when asked for.

    Attributes
    ----------
    misplaced
        How the mask's header differs from the tomogram's in voxel size or origin; None: it does not.
    is_annotated
        Whether any voxel is labelled.
    """

    def __init__(
        self,
        tomogram: Path,
        mask: Path,
        spec: FrameSpec,
        store: SliceStore,
        *,
        with_logits: bool = False,
    ) -> None:
        """Check that the files fit each other.

        Raises
        ------
        ValueError
            The shapes differ, or the mask has other values than -1, 0 and 1.
        FileNotFoundError
            Stage-1 logits are wanted and there are none.
        """
        self.name = stem_of(tomogram)
        self.tomogram, self.mask = tomogram, mask
        self.logits = logits_path(tomogram) if with_logits else None
        self._spec, self._store = spec, store
        if self.logits is not None and not self.logits.exists():
            raise FileNotFoundError(f"no stage-1 logits at {self.logits}; give --stage1-checkpoint")
        with open_volume(tomogram) as volume:
            self.shape = volume.shape
            self.voxel_spacing = volume.voxel_spacing
            for path in filter(None, (mask, self.logits)):
                with open_volume(path) as other:
                    if other.shape != self.shape:
                        raise ValueError(f"{path} is {other.shape}, but {tomogram} is {self.shape}")
                    if path == mask:
                        self.misplaced = place_difference(volume, other)
                        self.is_annotated = self._check_mask(other)

    @cached_property
    def geometry(self) -> FrameGeometry:
        """Sizes on the way from its slices to frames."""
        return frame_geometry(self._spec, self.shape[1:], self.voxel_spacing)

    @cached_property
    def is_inverted(self) -> bool:
        """Whether the network sees it inverted; see `is_seen_inverted`."""
        with open_volume(self.tomogram) as volume, open_volume(self.mask) as labels:
            return is_seen_inverted(volume, labels, self._spec)

    @cached_property
    def scaling(self) -> IntensityScaling:
        """Scaling of the grey values, measured over the volume at first use; inverted if need be.

        Raises
        ------
        ValueError
            The volume is constant, or cannot be read.
        """
        with open_volume(self.tomogram) as volume:
            try:
                seen = blurred(volume, self._spec, volume.voxel_spacing)
                return measure_intensity(seen, self._spec.normalisation, invert=self.is_inverted)
            except ValueError as wrong:
                if str(self.tomogram) in str(wrong):
                    raise
                raise ValueError(f"{self.tomogram} cannot be trained on: {wrong}") from None

    @cached_property
    def logit_range(self) -> LogitRange:
        """Extremes of the stage-1 logits over the volume."""
        assert self.logits is not None
        low, high = np.inf, -np.inf
        with open_volume(self.logits) as volume:
            for z in range(self.shape[0]):
                plane = volume.read_slice(z)
                low, high = min(low, float(plane.min())), max(high, float(plane.max()))
        return LogitRange(low * LOGIT_STEP, high * LOGIT_STEP)

    def read_grey(self, z: int, box: tuple[slice, slice]) -> Tensor:
        """Scaled grey values of part of slice z, float32."""
        plane = self._store.read(self.tomogram, z)[box]
        if self._spec.blur:
            plane = blur_plane(plane, self._spec, self.geometry)
        return self.scaling.apply(torch.from_numpy(np.array(plane)))

    def read_labels(self, z: int, box: tuple[slice, slice]) -> Tensor:
        """Labels of part of slice z, int8.

        Raises
        ------
        ValueError
            There are other values than -1, 0 and 1.
        """
        plane = self._store.read(self.mask, z)[box]
        self._check_labels(plane, z)
        return torch.from_numpy(plane.astype(np.int8))

    def read_logits(self, z: int, box: tuple[slice, slice]) -> Tensor:
        """Stage-1 logits of part of slice z, float32."""
        assert self.logits is not None
        return (
            torch.from_numpy(np.array(self._store.read(self.logits, z)[box])).float() * LOGIT_STEP
        )

    def close(self) -> None:
        """Close its files: Windows removes none that are open."""
        for path in filter(None, (self.tomogram, self.mask, self.logits)):
            self._store.forget(path)

    def _check_mask(self, volume: Tomogram) -> bool:
        """Check the labels of all slices; returns whether any voxel is annotated."""
        annotated = False
        for z in range(self.shape[0]):
            plane = volume.read_slice(z)
            self._check_labels(plane, z)
            annotated = annotated or bool((plane != IGNORE).any())
        return annotated

    def _check_labels(self, plane: np.ndarray, z: int) -> None:
        if not np.isin(plane, (IGNORE, 0, 1)).all():
            raise ValueError(
                f"{self.mask} has values other than 1 (membrane), 0 and -1 (not annotated) in slice "
                f"{z}; {OTHER_VALUES}"
            )


def open_pairs(
    folder: Path, spec: FrameSpec, store: SliceStore, *, with_logits: bool
) -> list[Pair]:
    """All pairs of a folder, their masks read through and checked.

    Raises
    ------
    ValueError, FileNotFoundError
        There are none, or one does not fit; see `Pair`.
    """
    found = find_pairs(folder)
    if not found:
        raise ValueError(
            f"no pairs in {folder}; expected NAME.mrc (or .zarr) beside NAME_membrane.mrc, or runs "
            "as `etsam download` or the CryoET Data Portal lay them out"
        )
    return [Pair(tomogram, mask, spec, store, with_logits=with_logits) for tomogram, mask in found]

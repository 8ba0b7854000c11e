"""The mask of a run as a layer, painted slice by slice: threshold, changes by hand, clean-up, membranes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from etsam.frame import Frame
from etsam.instances import MIN_VOXELS, separate_membranes
from etsam.membrane import Membrane, quantised
from etsam.napari.files import layer_volume
from etsam.postprocess import CleaningSummary, clean_mask

if TYPE_CHECKING:
    import napari
    from napari.layers import Image

UNSEEN = np.float32(-1e4)  # logit of slices that are still to come


class PaintedMask:
    """The mask layer of a run, with its logits, and which voxels were changed by hand.

    Parameters
    ----------
    viewer
        Shows the layer.
    image
        The layer that is segmented: the mask lies where it lies.
    shape
        (Z, Y, X) of its finest data.
    threshold
        Voxels are membrane where their logit is larger.
    """

    def __init__(
        self,
        viewer: napari.Viewer,
        image: Image,
        shape: tuple[int, int, int],
        threshold: float,
    ) -> None:
        self.viewer = viewer
        self.place = _place_of(image)
        self.threshold = threshold
        self.logits = np.full(shape, UNSEEN, np.float32)
        self._painted = np.zeros(shape, bool)  # what the layer shows but for changes by hand
        self._by_hand = np.zeros(shape, bool)
        self.layer = viewer.add_labels(
            np.zeros(shape, np.uint8), name=f"{image.name}_membrane", opacity=0.6, **self.place
        )

    @property
    def is_shown(self) -> bool:
        """Whether the layer is still in the viewer."""
        return self.layer in self.viewer.layers

    def voxels(self) -> int:
        """Number of membrane voxels."""
        return int(np.count_nonzero(self.layer.data))

    def paint(self, z: int, logits: np.ndarray) -> None:
        """Paint slice `z` from its logits (Y, X)."""
        self.logits[z] = logits
        self._repaint(z, logits > self.threshold)

    def set_threshold(self, threshold: float) -> None:
        """Paint all slices anew; voxels changed by hand stay as they are."""
        self.threshold = threshold
        self._repaint(slice(None), self.logits > threshold)

    def clean(self) -> CleaningSummary:
        """Drop small blobs and cut rungs, in what the layer shows."""
        shown = np.asarray(self.layer.data)
        self._by_hand |= shown != self._painted
        cleaned, summary = clean_mask((shown > 0).astype(np.uint8))
        self._painted = cleaned > 0
        self.layer.data = cleaned
        return summary

    def split(self) -> int:
        """Add a layer with a number for each membrane; returns how many there are."""
        mask = np.asarray(self.layer.data) > 0
        with layer_volume(self.layer.data, self.place) as volume:
            frame = Frame(volume.shape, volume.voxel_spacing or (1.0, 1.0, 1.0), volume.origin)
        field = quantised(self.logits, self.threshold)
        found = separate_membranes(Membrane(mask, field, frame), min_voxels=MIN_VOXELS)
        name = self.layer.name.replace("_membrane", "_membranes")
        self.viewer.add_labels(found.labels.astype(np.int32), name=name, **self.place)
        return len(found)

    def drop(self) -> None:
        """Remove the layer."""
        if self.is_shown:
            self.viewer.layers.remove(self.layer)

    def _repaint(self, part: int | slice, painted: np.ndarray) -> None:
        shown = np.asarray(self.layer.data)
        self._by_hand[part] |= shown[part] != self._painted[part]
        self._painted[part] = painted
        shown[part] = np.where(self._by_hand[part], shown[part], painted)
        self.layer.refresh()


def _place_of(image: Image) -> dict[str, Any]:
    """How a layer lies in the world, and where it came from, as napari's ``add_labels`` takes it."""
    return {
        "scale": tuple(image.scale),
        "translate": tuple(image.translate),
        "rotate": image.rotate,
        "shear": image.shear,
        "affine": image.affine,
        "units": getattr(image, "units", None),
        "metadata": dict(image.metadata),
    }

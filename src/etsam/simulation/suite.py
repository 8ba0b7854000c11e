"""The held-out suite: named tomograms, never to be trained on, from easy to very hard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from etsam.simulation.recipe import SimulationOptions
from etsam.simulation.segmentations import RealShape

FIRST_HELD_OUT_SEED = 1_000_000_000
SUITE_SHAPE = (64, 320, 320)


@dataclass(frozen=True)
class SuiteEntry:
    """One tomogram of the suite; its seed is never used for training."""

    name: str
    seed: int
    options: SimulationOptions


def _entry(
    number: int, name: str, preset: str, spacing: float, ratio: float, views: int, blur: float = 0.0
) -> SuiteEntry:
    options = SimulationOptions(
        preset=preset,
        voxel_spacing=spacing,
        contrast_to_noise=ratio,
        views=views,
        bright_membranes=name.endswith("bright"),
        blur=blur,
        core=0.25 if blur else 0.0,
    )
    return SuiteEntry(name, FIRST_HELD_OUT_SEED + number, options)


# number, name, preset, voxel spacing [Å], membrane contrast-to-noise per voxel, views, blur [Å]
_SYNTHETIC = (
    (0, "easy_vesicles", "vesicles", 10.0, 3.0, 61),
    (1, "easy_toroids", "polnet", 10.0, 2.5, 61),
    (2, "easy_bright", "vesicles", 12.0, 2.5, 41),
    (3, "medium_vesicles", "vesicles", 9.5, 1.2, 41),
    (4, "medium_virus", "virus", 8.0, 1.2, 41),
    (5, "medium_cell", "cell", 11.0, 1.3, 61),
    (6, "medium_organelle", "organelle", 13.6, 1.0, 41),
    (7, "hard_vesicles", "vesicles", 12.0, 0.8, 31),
    (8, "hard_organelle", "organelle", 13.6, 0.65, 29),
    (9, "hard_cell", "cell", 14.0, 0.8, 41),
    (10, "hard_bright", "organelle", 10.0, 0.8, 41),
    (11, "very_hard_organelle", "organelle", 13.6, 0.45, 27),
    (12, "very_hard_cell", "cell", 15.0, 0.5, 31),
    (13, "blurred_organelle", "organelle", 13.6, 0.9, 29, 17.0),
    (14, "blurred_vesicles", "vesicles", 9.5, 1.0, 41, 14.0),
)

# number, name, file, spacing of the segmentation [Å], its membrane labels, then as above
_REAL = (
    (20, "real_mitochondrion", "midsurfer_Fig11_mito.npz", 12.44, (1, 2), 12.4, 1.5),
    (21, "real_thylakoid", "membrain_v1_T1S1M1.npz", 13.68, (1,), 13.7, 1.1),
    (22, "real_host_cell", "midsurfer_Fig7.npz", 12.0, (1,), 12.0, 0.8),
    (23, "real_vesicle", "pyseg_tomo22_vesicle4_seg.npz", 12.0, (1,), 10.0, 1.5),
)


def held_out_suite(shapes: Path | None = None) -> list[SuiteEntry]:
    """List the suite; with the folder of real segmentations `shapes`, its four real ones too.

    The segmentations are MidSurfer's (BSD-3), MemBrain's (MPL-2.0) and PySeg's (Apache-2.0)
    examples as `.npz` files with `labels`.

    Raises
    ------
    FileNotFoundError
        A segmentation of the suite is not in `shapes`.
    """
    entries = [_entry(*row) for row in _SYNTHETIC]
    if shapes is None:
        return entries
    for number, name, file, own, labels, spacing, ratio in _REAL:
        path = shapes / file
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; leave out `shapes` for the rest alone")
        options = SimulationOptions(
            preset="empty",
            voxel_spacing=spacing,
            contrast_to_noise=ratio,
            bright_membranes=False,
            views=41,
            blur=0.0,
            core=0.0,
            shapes=(RealShape(str(path), own, labels),),
        )
        entries.append(SuiteEntry(name, FIRST_HELD_OUT_SEED + number, options))
    return entries

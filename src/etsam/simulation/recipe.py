"""The random recipe of one simulated tomogram: sample, tilt series and reconstruction."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from etsam.options import check_counts
from etsam.simulation.imaging import Reconstruction, TiltSeries
from etsam.simulation.segmentations import RealShape

DTYPES = ("int8", "float32")
PRESETS = ("any", "vesicles", "organelle", "cell", "virus", "polnet", "empty")
Number = TypeVar("Number", bool, float)
_SHARES = (0.34, 0.22, 0.21, 0.08, 0.09, 0.06)  # of "any", in the order of PRESETS[1:]

SPACINGS = (
    2.0,
    100.0,
)  # Å; finer ones take minutes for a cube of 64, in coarser ones nothing is seen
RADII = (50.0, 1e5)  # Å; tighter bilayers do not exist
CONTRASTS = (0.001, 1000.0)  # membrane over noise; long before there is only one to be seen

MOST_SPIKES = 10.0  # globules per cross-section of one; two are a closed layer already

LEAN = math.degrees(math.asin(0.6))
"""Membranes in the missing wedge are not labelled from this lean on [degrees]."""


@dataclass(frozen=True)
class SimulationOptions:
    """What to fix of the random recipe; None or "any" leaves it to chance.

    ``lean`` says from which lean [degrees] on membranes in the missing wedge are not labelled, and
    ``ghosts`` how far [Å] beyond a cut face the smeared rest of cut membranes is not labelled either.
    ``fading`` is how much the sample's density falls where it is weakest, from 0 to 1, and
    ``depth_fading`` how much towards the bottom and top of the volume. ``whole`` closed organelles reach
    from near its bottom to near its top. ``spikes`` is the mean number of ectodomains per cross-section of
    one, outside of closed membranes and on both sides of given shapes. ``dtype`` is that of files: "int8",
    between two percentiles, or "float32", of mean 0 and standard deviation 1.

    Raises
    ------
    ValueError
        The voxel spacing, the contrast, the radii, the spikes or a fading is out of range, or the dtype is
        another.
    """

    preset: str = "any"
    voxel_spacing: float | None = None  # Å
    contrast_to_noise: float | None = None  # membrane over noise, per voxel
    bright_membranes: bool | None = None
    views: int | None = None  # of the tilt series
    blur: float | None = None  # Å, standard deviation
    core: float | None = None  # density that proteins add in the middle of bilayers
    actin: int | None = None  # filaments
    microtubules: int | None = None
    gold: int | None = None  # beads
    carbon: bool | None = None  # the edge of a carbon film
    whole: int | None = None  # organelles, closed
    vesicles: int | None = None  # tried to be placed
    radii: tuple[float, float] | None = None  # Å, of vesicles
    spikes: float | None = None  # coverage of membranes by ectodomains
    lean: float = LEAN
    ghosts: float = math.inf
    fading: float = 0.0
    depth_fading: float = 0.0
    proteins: tuple[str, ...] = ()  # density maps (MRC) used instead of pseudo-proteins
    membrane_proteins: tuple[str, ...] = ()  # maps aligned along z, membrane in the middle
    shapes: tuple[RealShape, ...] = ()  # segmentations used besides the preset's membranes
    dtype: str = "int8"  # of the file

    def __post_init__(self) -> None:
        spacing, ratio = self.voxel_spacing, self.contrast_to_noise
        if spacing is not None and not SPACINGS[0] <= spacing <= SPACINGS[1]:
            raise ValueError(
                f"voxels of {spacing} Å cannot be simulated: expected {SPACINGS[0]:g} to "
                f"{SPACINGS[1]:g} Å, such as 10"
            )
        if ratio is not None and not CONTRASTS[0] <= ratio <= CONTRASTS[1]:
            raise ValueError(
                f"a contrast to noise of {ratio} cannot be simulated: expected {CONTRASTS[0]:g} to "
                f"{CONTRASTS[1]:g}, such as 1"
            )
        low, high = self.radii or RADII
        if not RADII[0] <= low <= high <= RADII[1]:
            raise ValueError(
                f"vesicles of {low:g} to {high:g} Å cannot be simulated: expected a smallest and a largest "
                f"radius within {RADII[0]:g} and {RADII[1]:g} Å"
            )
        for name in ("proteins", "membrane_proteins"):
            paths: object = getattr(self, name)
            if isinstance(paths, (str, Path)):
                raise ValueError(
                    f"{name} is {str(paths)!r}: expected several, as ({str(paths)!r},)"
                )
            object.__setattr__(self, name, tuple(map(str, getattr(self, name))))
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}: expected one of {', '.join(DTYPES)}")
        for amount in (self.fading, self.depth_fading):
            if not 0 <= amount <= 1:
                raise ValueError(f"a fading of {amount} cannot be simulated: expected 0 to 1")
        if self.spikes is not None and not 0 <= self.spikes <= MOST_SPIKES:
            raise ValueError(
                f"a coverage of {self.spikes} by spikes cannot be simulated: expected 0 to {MOST_SPIKES:g}"
            )
        if not 0 <= self.lean <= 90:
            raise ValueError(f"a lean of {self.lean} is none: expected 0 to 90 degrees")
        counts = ("views", "actin", "microtubules", "gold", "whole", "vesicles")
        check_counts(self, {name: 0 for name in counts if getattr(self, name) is not None})


@dataclass(frozen=True)
class Contents:
    """How much of everything the sample holds."""

    vesicles: int = 0
    radii: tuple[float, float] = (150.0, 1500.0)  # Å
    large: int = 0
    whole: int = 0  # closed, nearly as deep as the volume
    tubules: int = 0
    toroids: int = 0
    sheets: int = 0
    crowding: tuple[float, float] = (0.0, 0.05)  # protein volume fraction outside, at most inside
    ribosomes: int = 0
    actin: int = 0
    microtubules: int = 0
    gold: int = 0
    carbon: bool = False
    ice: int = 0
    capsids: int = 0
    layers: int = 0  # protein sheets, not membranes
    network: int = 0  # tortuous connected membranes
    spikes: float = 0.0  # coverage of membranes by ectodomains
    embedded: float = 0.3  # coverage by proteins in the bilayer
    protein_contrast: float = 1.0
    lumen: float = 0.0  # spread of compartments' mean densities
    gradient: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """Everything that determines one simulated tomogram besides its random state."""

    preset: str
    voxel_spacing: float  # Å
    tilt: TiltSeries
    reconstruction: Reconstruction
    contents: Contents
    contrast_to_noise: float
    bright_membranes: bool
    core: float  # density that proteins add in the middle of bilayers
    thickness: float  # of the sample over the volume's depth
    cut: bool  # membranes end at the sample's faces, as in a lamella
    slope: tuple[float, float]  # of the sample's faces along y and x
    margin: int = 32  # voxels simulated beyond the field in y and x
    depth_margin: int = 0
    clip_percent: float = 0.1


def draw(rng: np.random.Generator, options: SimulationOptions) -> Recipe:
    """Draw a recipe at random within the options.

    Raises
    ------
    ValueError
        The preset is unknown.
    """
    if options.preset not in PRESETS:
        raise ValueError(f"unknown preset {options.preset!r}; use one of {', '.join(PRESETS)}")
    preset = str(rng.choice(PRESETS[1:], p=_SHARES))
    if options.preset != "any":
        preset = options.preset
    spacing = float(np.exp(rng.normal(np.log(11.5), 0.25)).clip(6.0, 20.0))
    ratio = float(np.exp(rng.normal(np.log(1.1), 0.6)).clip(0.35, 8.0))
    bright = bool(rng.random() < 0.1)
    if preset == "organelle" and rng.random() < 0.6:
        ratio = float(rng.uniform(0.35, 0.9))
    few = rng.random() < (0.6 if preset == "organelle" else 0.2)
    lamella = preset in ("cell", "organelle")
    slope = np.tan(np.radians(rng.normal(0, 5.0, 2))) if rng.random() < 0.5 else np.zeros(2)
    drawn_blur, drawn_core = draw_softness(rng)
    blur = _given(options.blur, drawn_blur)
    return Recipe(
        preset=preset,
        voxel_spacing=_given(options.voxel_spacing, round(spacing, 2)),
        tilt=replace(draw_tilt_series(rng, few, options.views), blur=blur),
        reconstruction=draw_reconstruction(rng),
        contents=_fixed(draw_contents(rng, preset), options),
        contrast_to_noise=_given(options.contrast_to_noise, round(ratio, 3)),
        bright_membranes=_given(options.bright_membranes, bright),
        core=_given(options.core, drawn_core),
        thickness=float(rng.choice([rng.uniform(0.45, 0.9), rng.uniform(0.9, 1.4)])),
        cut=bool(rng.random() < (0.7 if lamella else 0.15)),
        slope=(float(slope[0]), float(slope[1])),
        depth_margin=int(rng.choice([0, 0, 8, 16])),
        clip_percent=float(rng.choice([0.01, 0.1, 0.3, 1.0])),
    )


def _given(asked: Number | None, drawn: Number) -> Number:
    """What was asked for, else what was drawn."""
    return drawn if asked is None else asked


def draw_softness(rng: np.random.Generator) -> tuple[float, float]:
    """Draw blur [Å] and core density: a third of the tomograms resolve leaflets, most do not.

    From numbers of its own, so that everything else of a seed stays as it is.
    """
    own = rng.spawn(1)[0]
    low, high = (0.0, 5.0) if own.random() < 0.35 else (5.0, 20.0)
    blur = float(own.uniform(low, high))
    core = float(own.uniform(0.1, 0.5)) if own.random() < 0.55 else 0.0
    return round(blur, 1), round(core, 2)


def draw_tilt_series(
    rng: np.random.Generator, few_views: bool, views: int | None = None
) -> TiltSeries:
    """Draw tilt range, step, axis, optics and alignment of a tilt series."""
    low, high = -float(rng.uniform(40, 66)), float(rng.uniform(40, 66))
    if rng.random() < 0.6:
        high = -low
    step = float(rng.choice([1.0, 1.5, 2.0, 3.0, 3.0, 4.0, 5.0]))
    fewest = (high - low) / float(rng.integers(25, 36))
    step = fewest if few_views else min(step, fewest)
    angles = np.arange(low, high + 0.01, step)
    if rng.random() < 0.25:
        angles = angles[rng.random(len(angles)) > 0.08]
    if views is not None:
        angles = np.linspace(low, high, views)
    axis = rng.choice([0.0, 90.0, rng.normal(0, 4.0), rng.uniform(-90, 90)], p=[0.6, 0.2, 0.1, 0.1])
    return TiltSeries(
        angles=tuple(round(float(a), 3) for a in angles),
        axis_angle=float(axis),
        defocus=float(rng.uniform(1.5e4, 8e4)),
        voltage=float(rng.choice([300.0, 300.0, 300.0, 200.0])),
        amplitude_contrast=float(rng.uniform(0.05, 0.12)),
        exposure=float(rng.uniform(60, 150)),
        dose_symmetric=bool(rng.random() < 0.7),
        shift=float(abs(rng.normal(0, 0.45))),
        hot_pixels=int(rng.choice([0, 0, 5, 40])),
        bad_columns=int(rng.choice([0, 1, 3], p=[0.9, 0.05, 0.05])),
        attenuation=float(rng.uniform(0.1, 0.8)),
    )


def draw_reconstruction(rng: np.random.Generator) -> Reconstruction:
    """Draw filters: plain weighted back-projection, low-passed or SIRT-like."""
    flat = float(np.exp(rng.uniform(np.log(0.015), np.log(0.25)))) if rng.random() < 0.55 else 0.0
    high_pass = float(np.exp(rng.uniform(np.log(0.004), np.log(0.03))))
    return Reconstruction(
        saturation=flat,
        cutoff=float(rng.uniform(0.08, 0.5)),
        falloff=float(rng.uniform(0.03, 0.16)),
        high_pass=high_pass if rng.random() < (0.5 if flat else 0.3) else 0.0,
        ctf_correction=str(rng.choice(["none", "flip", "wiener"], p=[0.4, 0.45, 0.15])),
        in_plane_cutoff=float(rng.choice([2.0, rng.uniform(0.3, 1.0), rng.uniform(0.12, 0.3)])),
    )


def draw_contents(rng: np.random.Generator, preset: str) -> Contents:
    """Draw what the sample of a preset holds."""
    dense = float(np.exp(rng.uniform(np.log(0.004), np.log(0.2))))
    outside = float(rng.choice([0.0, 0.005, 0.02, 0.06]))
    gold = int(rng.integers(1, 14)) if rng.random() < 0.45 else 0
    shared: dict[str, Any] = {
        "crowding": (outside, dense),
        "gold": gold,
        "ice": int(rng.integers(1, 4)) if rng.random() < 0.2 else 0,
        "gradient": float(rng.choice([0.0, 0.01, 0.04])),
        "lumen": float(rng.choice([0.0, 0.015, 0.05])),
        "embedded": float(rng.choice([0.0, rng.uniform(0.0, 0.6)], p=[0.3, 0.7])),
        "spikes": float(rng.uniform(0.05, 0.5)) if rng.random() < 0.3 else 0.0,
        "carbon": bool(rng.random() < 0.12),
        "protein_contrast": float(rng.uniform(0.4, 1.2)),
        "layers": int(rng.random() < 0.04),
    }
    return Contents(**{**shared, **_BY_PRESET[preset](rng)})


def _fixed(contents: Contents, options: SimulationOptions) -> Contents:
    """Contents with what the options fix of them."""
    names = ("actin", "microtubules", "gold", "carbon", "whole", "vesicles", "radii", "spikes")
    given = {name: getattr(options, name) for name in names}
    return replace(contents, **{name: n for name, n in given.items() if n is not None})


def _vesicles(rng: np.random.Generator) -> dict[str, Any]:
    small = float(np.exp(rng.uniform(np.log(150), np.log(500))))
    crowded = rng.random() < 0.5
    return {
        "vesicles": int(rng.integers(30, 160)) if crowded else int(rng.integers(1, 25)),
        "radii": (small, small * float(rng.uniform(1.3, 6.0))),
        "tubules": int(rng.integers(0, 3)) if rng.random() < 0.2 else 0,
        "carbon": bool(rng.random() < 0.35),
        "capsids": int(rng.integers(1, 8)) if rng.random() < 0.06 else 0,
    }


def _organelle(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "vesicles": int(rng.integers(0, 14)),
        "radii": (300.0, float(rng.uniform(800, 2600))),
        "large": int(rng.integers(1, 4)),
        "sheets": int(rng.random() < 0.2),
    }


def _cell(rng: np.random.Generator) -> dict[str, Any]:
    busy = float(np.exp(rng.uniform(np.log(0.04), np.log(0.35))))
    return {
        "vesicles": int(rng.integers(0, 25)),
        "radii": (200.0, float(rng.uniform(400, 1500))),
        "large": int(rng.integers(0, 3)),
        "tubules": int(rng.integers(0, 4)),
        "sheets": int(rng.integers(0, 3)),
        "network": int(rng.random() < 0.25),
        "crowding": (busy, busy * float(rng.uniform(0.3, 1.5))),
        "ribosomes": int(rng.integers(0, 250)),
        "actin": int(rng.integers(5, 60)) if rng.random() < 0.4 else 0,
        "microtubules": int(rng.integers(1, 10)) if rng.random() < 0.35 else 0,
        "gold": 0,
        "carbon": False,
    }


def _virus(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "vesicles": int(rng.integers(3, 30)),
        "radii": (380.0, float(rng.uniform(420, 700))),
        "crowding": (float(rng.uniform(0, 0.01)), float(rng.uniform(0.03, 0.25))),
        "spikes": float(rng.uniform(0.2, 1.0)),
        "embedded": float(rng.uniform(0.2, 0.8)),
        "carbon": bool(rng.random() < 0.3),
    }


def _polnet(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "vesicles": int(rng.integers(2, 15)),
        "radii": (200.0, 900.0),
        "toroids": int(rng.integers(1, 6)),
        "carbon": False,
        "crowding": (float(rng.uniform(0.01, 0.08)),) * 2,
        "actin": int(rng.integers(0, 20)),
    }


def _empty(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "crowding": (float(rng.choice([0.0, 0.01, 0.08, 0.2])), 0.0),
        "ribosomes": int(rng.integers(0, 60)),
        "actin": int(rng.integers(0, 30)) if rng.random() < 0.5 else 0,
        "microtubules": int(rng.integers(0, 8)) if rng.random() < 0.5 else 0,
        "carbon": bool(rng.random() < 0.4),
        "capsids": int(rng.integers(1, 10)) if rng.random() < 0.2 else 0,
        "ice": int(rng.integers(0, 5)),
    }


_BY_PRESET = {
    "vesicles": _vesicles,
    "organelle": _organelle,
    "cell": _cell,
    "virus": _virus,
    "polnet": _polnet,
    "empty": _empty,
}

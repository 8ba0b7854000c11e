"""A small simulated tomogram with its true mask, for a first try without any data."""

from __future__ import annotations

from pathlib import Path

SEED = 1
SHAPE = (48, 192, 192)


def write_sample(folder: Path) -> Path:
    """Write ``sample.mrc`` and ``sample_truth.mrc`` into a folder unless they are there.

    Returns the tomogram's path.
    """
    tomogram, truth = folder / "sample.mrc", folder / "sample_truth.mrc"
    if tomogram.is_file() and truth.is_file():
        return tomogram
    import numpy as np

    from etsam.simulate import simulate
    from etsam.simulation.recipe import SimulationOptions
    from etsam.volume import create_volume, tomogram_from_array

    folder.mkdir(parents=True, exist_ok=True)
    options = SimulationOptions(preset="vesicles", contrast_to_noise=1.0, voxel_spacing=10.0)
    made = simulate(SEED, SHAPE, options)
    label = f"etsam: simulated sample, seed {SEED}"
    with tomogram_from_array(made.tomogram, voxel_spacing=made.voxel_spacing) as like:
        with create_volume(truth, like, dtype="int8", label=label) as writer:
            for z, labels in enumerate(made.mask):
                writer.write_slice(z, (labels == 1).astype(np.int8))
        with create_volume(tomogram, like, dtype="float32", label=label) as writer:
            for z, values in enumerate(made.tomogram):
                writer.write_slice(z, values)
    return tomogram

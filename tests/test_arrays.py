"""Arrays of other libraries: lazy ones are made once a pass, and what float32 loses is told."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorstore

from etsam import arrays
from etsam.intensity import measure_intensity
from etsam.record import reading_notes
from etsam.volume import tomogram_from_array

SHAPE = (6, 5, 6)
SLICE_BYTES = 5 * 6 * 4


def voxels() -> np.ndarray:
    return np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)


@pytest.mark.parametrize(
    ("limit", "layers_made"),
    [
        (9 * SLICE_BYTES, [3, 0, 0]),  # room for all three layers
        (3 * SLICE_BYTES, [3, 3, 3]),  # for one
        (3 * SLICE_BYTES - 1, [6, 3, 6]),  # for none: as the slices are asked for
    ],
)
def test_chunks_of_a_lazy_array_are_made_once_a_pass(
    monkeypatch: pytest.MonkeyPatch, limit: int, layers_made: list[int]
) -> None:
    dask_array = pytest.importorskip("dask.array")
    monkeypatch.setattr(arrays, "LAYER_IN_MEMORY", limit)
    made: list[int] = []

    def make(block: np.ndarray) -> np.ndarray:
        made.append(len(block))
        return block

    data = voxels()
    chunked = dask_array.from_array(data, chunks=((2, 1, 3), 5, 3))
    lazy = chunked.map_blocks(make, dtype=data.dtype, meta=data[:0])
    with tomogram_from_array(lazy) as tomogram:
        for reads, layers in zip(
            ([(z, z + 1) for z in range(6)], [(0, 6)], []), layers_made, strict=True
        ):
            made.clear()
            for start, stop in reads or [(z, z + 1) for z in range(6)]:
                np.testing.assert_array_equal(tomogram.read_slices(start, stop), data[start:stop])
            assert len(made) == 2 * layers
        with ThreadPoolExecutor(4) as pool:
            for z, found in zip(range(6), pool.map(tomogram.read_slice, range(6)), strict=True):
                np.testing.assert_array_equal(found, data[z])


class Stored:
    """A Zarr array as Zarr's own library has it: with a number of slices in each chunk."""

    chunks = (4, 5, 6)
    shape, dtype = SHAPE, np.dtype(np.float32)

    def __init__(self, folder: Path) -> None:
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{folder}/a/"}}
        self.store = tensorstore.open(spec, create=True, dtype="float32", shape=SHAPE).result()
        self.store.write(voxels()).result()
        self.asked: list[slice] = []

    def __getitem__(self, key: slice) -> np.ndarray:
        self.asked.append(key)
        return np.asarray(self.store[key])


def test_chunks_of_one_size_are_read_a_layer_at_a_time(tmp_path: Path) -> None:
    stored = Stored(tmp_path)
    with tomogram_from_array(stored) as tomogram:
        for z in (0, 5, 3, 4):
            np.testing.assert_array_equal(tomogram.read_slice(z), voxels()[z])
    assert stored.asked == [slice(0, 4), slice(4, 6)]


def test_values_that_float32_loses_are_told() -> None:
    data = voxels().astype(np.float64)
    with tomogram_from_array(1e-3 * data + 1e9) as tomogram:
        for method in ("robust", "min_max"):
            with pytest.raises(
                ValueError, match=r"constant .*float32 .*: subtract their mean first"
            ):
                measure_intensity(tomogram, method)
    with (
        tomogram_from_array(np.zeros(SHAPE)) as tomogram,
        pytest.raises(ValueError, match="nothing to segment$"),
    ):
        measure_intensity(tomogram, "robust")
    huge = tomogram_from_array((abs(data) + 1) * 1e300)
    with huge, pytest.raises(ValueError, match="too large for float32: scale them"):
        huge.read_slice(0)
    data[0, 0, 0] = 1e300
    with tomogram_from_array(data) as tomogram:
        tomogram.read_slice(0)
        assert "1 NaN or infinite voxels, or too large for float32, " in reading_notes(tomogram)[0]

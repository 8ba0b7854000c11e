"""Arrays and paths as programs give them: what is told of them, what is refused, what does not matter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

import etsam
from etsam import stages
from etsam.frames import REFERENCE_SPEC
from etsam.options import SegmentOptions
from etsam.pipeline import Volume, segment_slices
from etsam.provenance import sha256
from etsam.record import array_notes, notes_on
from etsam.sam2.positions import sine_map
from etsam.segmentation import segment_array, segment_file
from etsam.volume import open_tomogram, tomogram_from_array
from test_cli import write_mrc
from tiny_model import SPEC, tiny_network, write_tiny_model


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> SegmentOptions:
    model = write_tiny_model(tmp_path_factory.mktemp("model"))
    return SegmentOptions(model=model, device="cpu", preview=False)


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(6, 40, 30)).astype(np.float32)


@pytest.fixture
def tomogram(volume: np.ndarray, tmp_path: Path) -> Path:
    return write_mrc(tmp_path / "TS_1.mrc", volume)


def test_a_file_says_the_voxel_spacing_that_an_array_has_to_be_given(
    options: SegmentOptions, tomogram: Path, volume: np.ndarray
) -> None:
    """Of 4 Å voxels the network sees half as many; square frames know no scale."""
    with mrcfile.open(tomogram, "r+") as mrc:
        mrc.voxel_size = 4.0
    wanted = segment_array(tomogram, options)
    assert np.array_equal(segment_array(volume, replace(options, voxel_spacing=4.0)), wanted)
    with pytest.warns(UserWarning, match="an array does not say") as told:
        assert not np.array_equal(segment_array(volume, options), wanted)
    assert [warning.filename for warning in told] == [__file__]
    lying = tomogram_from_array(volume)
    assert array_notes(lying, [stages.Stage(tiny_network(1), REFERENCE_SPEC)]) == []


@dataclass(frozen=True)
class Named:
    """A path of another library."""

    path: str

    def __fspath__(self) -> str:
        return self.path


def test_volumes_and_options_may_be_of_other_kinds_or_are_refused(
    options: SegmentOptions, tomogram: Path, volume: np.ndarray
) -> None:
    wanted = segment_array(tomogram, options)
    assert np.array_equal(segment_array(Named(str(tomogram)), options), wanted)
    for odd in (b"TS_1.mrc", {"volume": volume}, object()):
        with pytest.raises(ValueError, match="expected a file or an array"):
            segment_array(odd, options)
    with pytest.raises(ValueError, match=r"\.float\(\)"):
        segment_array(torch.from_numpy(volume).bfloat16(), options)
    for verb in (segment_array, segment_file):
        with pytest.raises(TypeError, match=r"options are .*: expected SegmentOptions"):
            verb(tomogram, {"voxel_spacing": 10.0})


def test_what_was_odd_in_an_array_is_told(options: SegmentOptions, volume: np.ndarray) -> None:
    holed = volume.copy()
    holed[2, 3, 4:6] = np.nan
    with pytest.warns(UserWarning, match="2 NaN or infinite voxels were read as the mean"):
        logits = segment_array(holed, replace(options, voxel_spacing=10.0))
    assert np.isfinite(logits).all()


def test_autocast_of_a_program_changes_nothing(options: SegmentOptions, volume: np.ndarray) -> None:
    options = replace(options, voxel_spacing=10.0)
    wanted = segment_array(volume, options)
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(segment_array(volume, options), wanted)
        assert torch.is_autocast_enabled("cpu")


def test_autocast_changes_nothing_of_files_and_slices(
    options: SegmentOptions, tomogram: Path, tmp_path: Path
) -> None:
    options = replace(options, dtype="float32", store_logits=True)
    loaded = stages.load_stages(options)

    def found(name: str) -> tuple[np.ndarray, list[np.ndarray]]:
        result = segment_file(tomogram, replace(options, output=tmp_path / name))
        with open_tomogram(tomogram) as volume, open_tomogram(result.logits) as stored:
            settled = replace(options, polarity="dark")
            slices = list(segment_slices(Volume(volume), loaded, settled, between))
            return stored.read_slices(0, stored.shape[0]), slices

    def between(*_: object) -> None:
        inside.add(torch.is_autocast_enabled("cpu"))

    inside: set[bool] = set()
    wanted = found("alone")
    assert inside == {False}
    with torch.autocast("cpu", torch.bfloat16):
        for ours, theirs in zip(found("cast"), wanted, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert inside == {False, True}, "the program's own code has its own types"


@pytest.fixture
def default_type() -> Iterator[None]:
    """Torch's default, as it is left to other tests: nothing is kept that was made with another."""
    kept = torch.get_default_dtype()
    sine_map.cache_clear()
    yield
    torch.set_default_dtype(kept)
    sine_map.cache_clear()


@pytest.mark.usefixtures("default_type")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_default_type_of_a_program_changes_nothing(
    options: SegmentOptions, volume: np.ndarray, dtype: torch.dtype
) -> None:
    """Neither this result nor later ones."""
    options = replace(options, voxel_spacing=10.0, dtype="float32")
    wanted = segment_array(volume, options)
    sine_map.cache_clear()
    torch.set_default_dtype(dtype)
    assert np.array_equal(segment_array(volume, options), wanted)
    torch.set_default_dtype(torch.float32)
    assert np.array_equal(segment_array(volume, options), wanted)


def test_default_device_of_a_program_changes_nothing(
    options: SegmentOptions, volume: np.ndarray
) -> None:
    options = replace(options, voxel_spacing=10.0)
    wanted = segment_array(volume, options)
    with torch.device("meta"):
        assert np.array_equal(segment_array(volume, options), wanted)


@pytest.mark.parametrize("name", ["", None])
def test_a_volume_without_a_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="the volume is .*: expected a file or an array"):
        etsam.segment(name)


def test_methods_the_model_does_not_know_are_not_used(
    options: SegmentOptions, volume: np.ndarray
) -> None:
    options = replace(options, voxel_spacing=10.0)
    logits = segment_array(volume, options)
    with pytest.warns(UserWarning, match="robust") as told:
        same = segment_array(volume, replace(options, normalize_method="min_max"))
    assert len(told) == 1
    assert np.array_equal(same, logits)


def test_advice_where_nothing_is_found_can_be_followed() -> None:
    """Not the preview without one, nor what was tried, nor a scale that square frames do not know."""
    tomogram = tomogram_from_array(np.zeros((2, 3, 4)), voxel_spacing=10.0)
    for asked, spec, said in (
        (
            {},
            SPEC,
            "look at the preview; try --logit-threshold -1, --polarity bright, or --voxel-spacing",
        ),
        ({"preview": False}, REFERENCE_SPEC, "try --logit-threshold -1, or --polarity bright"),
        (
            {"preview": False, "polarity": "bright", "logit_threshold": -2.0, "voxel_spacing": 9.0},
            SPEC,
            "try a lower --logit-threshold, or --polarity dark",
        ),
    ):
        loaded = [stages.Stage(tiny_network(1), spec)]
        (note,) = notes_on(tomogram, loaded, SegmentOptions(**asked), 0)
        assert note == f"no membrane found: {said}"
        assert notes_on(tomogram, loaded, SegmentOptions(**asked), 1) == []


def test_stages_of_two_precisions_are_told_apart(
    options: SegmentOptions, tomogram: Path, tmp_path: Path
) -> None:
    """Beside the mask, and in what a run is gone on with: half of it in another precision is none of it."""

    def mixed(_progress: object) -> list[stages.Stage]:
        loaded = stages.load_stages(replace(options, dtype="float32"))
        loaded[1].model.compute_in(torch.bfloat16)
        return loaded

    def stop(fraction: float, _message: str) -> None:
        if fraction > 0.6:
            raise KeyboardInterrupt

    alike = replace(options, dtype="float32", output=tmp_path / "alike")
    assert segment_file(tomogram, alike).details["dtype"] == "float32"
    asked = replace(options, dtype="auto", output=tmp_path / "mixed")
    result = segment_file(tomogram, asked, load=mixed)
    assert result.details["dtype"] == ["float32", "bfloat16"]

    other = replace(options, dtype="auto", output=tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        segment_file(tomogram, other, stop, load=lambda _: stages.load_stages(alike))
    resumed = segment_file(tomogram, other, load=mixed, resume=True)
    assert sha256(resumed.mask) == sha256(result.mask)
    assert resumed.details["results"] == result.details["results"]

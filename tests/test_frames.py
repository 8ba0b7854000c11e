"""Frames: grey values and geometry on the way to the network and back."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from etsam.frames import (
    REFERENCE_SPEC,
    FrameSource,
    FrameSpec,
    Prefetched,
    blurred,
    frame_geometry,
    fuse,
    pad_reflected,
    resize_planes,
    to_frame,
    to_slice,
    window,
)
from etsam.intensity import IntensityScaling, Normalisation, measure_intensity
from etsam.logits import LogitRange

IDENTITY = IntensityScaling(-1e9, 1e9, 0.0, 1.0)


@dataclass(frozen=True)
class Slices:
    """A volume in memory."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.array.shape

    def read_slice(self, z: int) -> np.ndarray:
        return self.array[z]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(64, 64), (200, 96), (37, 51), (150, 31)])
def test_resize_is_pillows_float_bicubic(shape: tuple[int, int]) -> None:
    plane = noise(90, 71)
    expected = Image.fromarray(plane).resize(shape[::-1], Image.Resampling.BICUBIC)
    resized = resize_planes(torch.from_numpy(plane)[None], shape)[0]
    assert np.abs(resized.numpy() - np.asarray(expected)).max() < 2e-6


def test_min_max_scalings_follow_their_definition() -> None:
    volume = noise(6, 20, 30) * 9 - 2
    source, tensor = Slices(volume), torch.from_numpy(volume)

    positive = measure_intensity(source, "min_max_positive_values").apply(tensor)
    assert torch.allclose(positive, tensor.clamp_min(0) / volume.max())
    plain = measure_intensity(source, "min_max").apply(tensor)
    assert (plain.min().item(), plain.max().item()) == (0.0, 1.0)
    soft = np.log1p(np.exp(volume.astype(np.float64)))
    expected = (soft - soft.min()) / (soft.max() - soft.min())
    scaled = measure_intensity(source, "softplus_minmax").apply(tensor).numpy()
    assert np.abs(scaled - expected).max() < 1e-6


def test_robust_scaling_ignores_outliers_units_and_offset() -> None:
    volume = noise(8, 40, 40)
    spiked = volume.copy()
    spiked[3, 5, :3] = 1e6
    scaled = measure_intensity(Slices(volume), "robust").apply(torch.from_numpy(volume))
    assert abs(scaled.mean()) < 1e-4 and abs(scaled.std() - 1) < 1e-3
    other = spiked * 250 + 8000
    again = measure_intensity(Slices(other), "robust").apply(torch.from_numpy(other))
    assert torch.quantile((again - scaled).abs(), 0.99) < 0.02


def test_robust_scaling_is_that_of_evenly_spaced_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    volume = noise(200, 4, 25)
    taken: list[int] = []
    found = measure_intensity(Slices(volume), "robust", tick=taken.append)
    assert len(taken) == 64 and set(np.diff(taken)) == {3, 4}
    assert taken[0] == 199 - taken[-1] == 1
    assert (found.low, found.high) == pytest.approx(
        tuple(np.percentile(volume[taken], [0.1, 99.9]))
    )
    rows = np.arange(1000, dtype=np.float32).reshape(1, 100, 10)  # each lighter than the one above
    monkeypatch.setattr("etsam.intensity.SAMPLE_VALUES", 500)
    part = measure_intensity(Slices(rows), "robust")
    assert part.offset == pytest.approx(500, abs=40)
    assert part.low < 20 and part.high > 980


@pytest.mark.parametrize("method", ["min_max", "robust"])
def test_inverting_equals_segmenting_the_negative(method: str) -> None:
    volume = noise(5, 30, 30)
    inverted = measure_intensity(Slices(volume), method, invert=True)
    negative = measure_intensity(Slices(-volume), method)
    a = inverted.apply(torch.from_numpy(volume))
    b = negative.apply(torch.from_numpy(-volume))
    assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("method", ["min_max", "min_max_positive_values", "robust"])
@pytest.mark.parametrize("invert", [False, True])
def test_values_near_the_end_of_float32_are_scaled_as_others(method: str, invert: bool) -> None:
    """Their differences are beyond it."""
    volume = noise(5, 30, 30).clip(-3, 3) - np.float32(0.3)
    large = (volume * 1e38).astype(np.float32)
    plain, scaling = (measure_intensity(Slices(v), method, invert=invert) for v in (volume, large))
    expected = plain.apply(torch.from_numpy(volume)).numpy()
    for scaled in (scaling.apply(torch.from_numpy(large)).numpy(), scaling.apply_to_array(large)):
        assert scaled.dtype == np.float32
        np.testing.assert_allclose(scaled, expected, atol=1e-5)


@pytest.mark.parametrize("method", get_args(Normalisation))
def test_constant_volume_is_refused(method: str) -> None:
    with pytest.raises(ValueError, match="constant"):
        measure_intensity(Slices(np.full((3, 8, 8), 4.0, np.float32)), method)


def test_negative_volume_names_the_way_out() -> None:
    with pytest.raises(ValueError, match="use the normalisation min_max"):
        measure_intensity(Slices(-1 - np.abs(noise(2, 8, 8))), "min_max_positive_values")


def test_unknown_normalisation_is_refused() -> None:
    with pytest.raises(ValueError, match="zscore"):
        measure_intensity(Slices(noise(2, 8, 8)), "zscore")


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    spacing=st.one_of(st.none(), st.floats(2.0, 60.0)),
)
def test_native_frames_have_the_promised_spacing_and_come_back(
    height: int, width: int, spacing: float | None
) -> None:
    spec = FrameSpec(offsets=(0,))
    voxel = None if spacing is None else (spacing,) * 3
    geometry = frame_geometry(spec, (height, width), voxel)
    for size, scaled, frame in zip(
        (height, width), geometry.scaled_shape, geometry.frame_shape, strict=True
    ):
        assert frame % spec.multiple == 0 and scaled <= frame < scaled + spec.multiple
        if spacing is None or 8 <= spacing <= 16:
            assert scaled == size
        else:
            effective = 8 if spacing < 8 else 16
            assert abs(scaled - size * spacing / effective) <= 0.5 or scaled == 1
    frame = to_frame(torch.ones(1, height, width), spec, geometry)
    assert frame.shape == (1, *geometry.frame_shape)
    quarter = (geometry.frame_shape[0] // 4, geometry.frame_shape[1] // 4)
    back = to_slice(torch.full(quarter, 3.0), geometry)
    assert back.shape == (height, width) and torch.allclose(back, torch.tensor(3.0))


def test_each_axis_is_scaled_by_its_own_spacing() -> None:
    geometry = frame_geometry(FrameSpec(offsets=(0,)), (100, 100), (10.0, 4.0, 8.0))
    assert geometry.scaled_shape == (50, 100)


def test_logits_return_to_the_pixels_they_came_from() -> None:
    """A smooth ramp survives frame -> quarter size -> slice, padding and scaling included."""
    spec = FrameSpec(offsets=(0,))
    for spacing in (None, (5.0, 5.0, 5.0), (24.0, 24.0, 24.0)):
        geometry = frame_geometry(spec, (150, 201), spacing)
        ramp = torch.arange(201.0).expand(150, 201)[None]
        frame = to_frame(ramp, spec, geometry)
        low = torch.nn.functional.avg_pool2d(frame, 4)[0]
        error = (to_slice(low, geometry) - ramp[0]).abs()[4:-4, 8:-8]
        assert error.max() < 0.51, spacing


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_padding_reflects_like_numpy(size: int) -> None:
    planes = noise(2, size, size)
    padded = pad_reflected(torch.from_numpy(planes), (32, 32)).numpy()
    expected = np.pad(planes, ((0, 0), (0, 32 - size), (0, 32 - size)), mode="reflect")
    assert np.array_equal(padded, expected)


def test_window_replicates_edges_and_skips_finely_sampled_slices() -> None:
    assert window(0, 10, (-2, -1, 0, 1, 2), 1) == [0, 0, 0, 1, 2]
    assert window(9, 10, (-1, 0, 1), 2) == [7, 9, 9]
    assert frame_geometry(FrameSpec(), (64, 64), (4.0, 10.0, 10.0)).z_step == 2
    assert frame_geometry(FrameSpec(), (64, 64), (13.0, 10.0, 10.0)).z_step == 1


def test_reference_frames_are_three_imagenet_channels() -> None:
    spec = FrameSpec(**{**REFERENCE_SPEC.to_dict(), "image_size": 64})
    volume = Slices(noise(3, 40, 50))
    frames = FrameSource(volume, spec, IDENTITY, frame_geometry(spec, (40, 50)))
    frame = frames[1]
    assert frame.shape == (3, 64, 64)
    back = frame * torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    back = back + torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    grey = resize_planes(torch.from_numpy(volume.array[1])[None], (64, 64))
    assert torch.allclose(back, grey.expand(3, 64, 64), atol=1e-5)


def test_stacked_frames_carry_neighbours_and_feedback() -> None:
    spec = FrameSpec(offsets=(-1, 0, 1))
    steps = np.arange(4, dtype=np.float32)[:, None, None]
    volume = Slices(steps * np.ones((1, 32, 32), np.float32))
    logits = Slices(volume.array * 10 - 10)
    geometry = frame_geometry(spec, (32, 32))
    plain = FrameSource(volume, spec, IDENTITY, geometry)
    fused = FrameSource(volume, spec, IDENTITY, geometry, feedback=logits)
    assert plain[0][:, 5, 5].tolist() == [0, 0, 1]
    assert fused[3][:, 5, 5].tolist() == [2, 3, 3, 1, 1, 1]
    assert fused[0][:, 5, 5].tolist() == [0, 0, 1, -1, -1, 0]
    assert spec.channels(feedback=False) == 3 and spec.channels(feedback=True) == 6


@pytest.mark.parametrize("spec", [FrameSpec(), REFERENCE_SPEC])
def test_frames_are_made_on_the_device_alone(spec: FrameSpec) -> None:
    """Tensors of two devices cannot be joined, so that nothing is left on the CPU on the way."""
    volume, geometry = Slices(noise(4, 40, 56)), frame_geometry(spec, (40, 56), (4.0,) * 3)
    there = torch.device("meta")
    limits = LogitRange(-4.0, 4.0)
    for feedback in (None, volume):
        frames = FrameSource(volume, spec, IDENTITY, geometry, feedback, limits, True, there)
        near = FrameSource(volume, spec, IDENTITY, geometry, feedback, limits)
        assert frames[1].device == there and frames[1].shape == near[1].shape


def test_kept_planes_change_nothing_and_are_made_once() -> None:
    spec = FrameSpec(offsets=(-5, -1, 0, 1, 5), min_spacing=8.0)
    volume, geometry = Slices(noise(30, 40, 56)), frame_geometry(spec, (40, 56), (4.0,) * 3)
    logits = Slices(4 * noise(30, 40, 56))
    again = FrameSource(volume, spec, IDENTITY, geometry, feedback=logits)
    kept = FrameSource(volume, spec, IDENTITY, geometry, feedback=logits, keep=True)
    for z in (*range(30), 3, 2, 29):
        assert torch.equal(kept[z], again[z])
        assert len(kept._kept) <= 2 * 5 * geometry.z_step + 1
    kept[10], kept[11]
    made = kept._kept[10]
    assert made.shape == (2, 32, 32) and (kept[12], kept._kept[10] is made)[1]


def test_added_feedback_is_clipped_and_scaled_over_the_volume() -> None:
    planes, logits = torch.full((1, 1, 4), 0.25), torch.tensor([[[-9.0, -5.0, 1.0, 3.0]]])
    fused = fuse(planes, logits, REFERENCE_SPEC, LogitRange(-5.0, 3.0))
    assert torch.allclose(fused, torch.tensor([[[0.25, 0.25, 1.0, 1.25]]]))
    silent = fuse(planes, torch.full((1, 1, 4), -5.0), REFERENCE_SPEC, LogitRange(-5.0, -5.0))
    assert torch.equal(silent, planes)
    with pytest.raises(ValueError, match="range"):
        fuse(planes, logits, REFERENCE_SPEC)


def test_spec_survives_a_checkpoint_and_refuses_nonsense() -> None:
    assert FrameSpec.from_dict(REFERENCE_SPEC.to_dict()) == REFERENCE_SPEC
    with pytest.raises(ValueError, match="colour"):
        FrameSpec.from_dict({"colour": 1})
    with pytest.raises(ValueError, match="ascending"):
        FrameSpec(offsets=(0, 1))
    with pytest.raises(ValueError, match="imagenet"):
        FrameSpec(imagenet=True)
    with pytest.raises(ValueError, match="range"):
        FrameSpec(min_spacing=20.0)
    for doubt in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="expected a finite logit"):
            FrameSpec(doubt=doubt)
    for blur in (-0.1, 17.0, float("nan")):
        with pytest.raises(ValueError, match="expected 0 to 16 pixels"):
            FrameSpec(blur=blur)
    for bias in (-5.1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="expected a logit from -5 to 5"):
            FrameSpec(bias=bias)


@pytest.mark.parametrize(
    "values",
    [
        *({"multiple": n} for n in (0, 8192, 65536, 32.5, "32", True)),
        *({"image_size": n} for n in (0, 1 << 17, 64.0)),
        *({"feedback_step": n} for n in (0, 1.5, None)),
        *({"offsets": n} for n in ([-1.5, 0, 1.5], [-300, 0, 300], 0, "0", [[0]], [])),
        {"min_spacing": 0.001, "max_spacing": 0.001},
        *({"max_spacing": n} for n in (math.inf, "16", 10**400, None)),
        *({"min_spacing": n} for n in (0, math.nan, True)),
        *({name: "foo"} for name in ("size", "normalisation", "fusion", "prompt")),
        *({name: n} for name in ("invert", "imagenet") for n in ("no", 0, None)),
        *({name: "1"} for name in ("doubt", "blur", "bias")),
        {"doubt": 10**400},
    ],
    ids=lambda values: str(values)[:40],
)
def test_settings_of_a_checkpoint_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    """They gave hours of work, gigabytes or frames that were not meant."""
    name = next(iter(values))
    with pytest.raises(ValueError, match=rf"^{name} is .{{1,80}}: expected "):
        FrameSpec.from_dict(values)


@pytest.mark.parametrize(
    "values",
    [
        {"multiple": 16, "image_size": 64, "feedback_step": 3},
        {"min_spacing": 10, "max_spacing": 10.0, "doubt": 2, "blur": 0, "bias": -0.5},
        {"size": "square", "prompt": "none", "fusion": "add", "offsets": [0], "imagenet": True},
    ],
)
def test_settings_that_make_sense_are_taken(values: dict[str, Any]) -> None:
    spec = FrameSpec.from_dict(values)
    assert FrameSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(("spacing", "deviation"), [(8.0, 1.5), (4.0, 3.0)])
def test_slices_are_blurred_in_plane_by_pixels_of_the_frame(
    spacing: float, deviation: float
) -> None:
    """A point becomes a Gaussian of that width, and nothing in the slices beside it."""
    volume = np.zeros((3, 48, 64), np.int8)
    volume[1, 20, 30] = 100
    source = Slices(volume)
    assert blurred(source, FrameSpec()) is source
    soft = blurred(source, FrameSpec(blur=1.5), (spacing,) * 3)
    assert soft.shape == volume.shape and not soft.read_slice(0).any()
    plane = soft.read_slice(1)
    assert plane.dtype == np.float32 and plane.sum() == pytest.approx(100, rel=1e-5)
    for axis, middle in ((0, 20), (1, 30)):
        places, mass = np.arange(plane.shape[axis]) - middle, plane.sum(1 - axis) / plane.sum()
        assert np.sqrt((places**2 * mass).sum()) == pytest.approx(deviation, rel=0.03)


def test_prefetching_changes_nothing_and_ends_its_thread() -> None:
    spec = FrameSpec(offsets=(-1, 0, 1))
    frames = FrameSource(Slices(noise(7, 32, 32)), spec, IDENTITY, frame_geometry(spec, (32, 32)))
    before = threading.active_count()
    with Prefetched(frames) as ahead:
        for z in (0, 5, 0, 1, 2, 3, 6):
            assert torch.equal(ahead[z], frames[z])
    assert threading.active_count() == before

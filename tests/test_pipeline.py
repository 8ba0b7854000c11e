"""The pipeline: streaming, causal, the same in one piece and in tiles."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from etsam import pipeline
from etsam.frames import REFERENCE_SPEC, FrameSpec
from etsam.intensity import UNSCALED, measure_intensity
from etsam.logits import ScratchLogits
from etsam.options import SegmentOptions
from etsam.pipeline import StageRun, Volume, plan_stage, run_stage, segment_slices
from etsam.sam2 import NO_OBJECT_LOGIT, SAM2
from etsam.stages import choose_device
from etsam.tracker import Frames
from etsam.volume import tomogram_from_array
from tiny_model import tiny_stages

OPTIONS = SegmentOptions()


@dataclass
class Watched:
    """Slices of noise made when read, which counts how many of them are alive."""

    shape: tuple[int, int, int]
    alive: int = 0
    most: int = 0
    reads: int = 0
    changed: set[int] = field(default_factory=set)

    def read_slice(self, z: int) -> np.ndarray:
        seed = z + 10_000 * (z in self.changed)
        data = np.random.default_rng(seed).normal(size=self.shape[1:]).astype(np.float32)
        self.alive += 1
        self.reads += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(data, self._gone)
        return data

    def _gone(self) -> None:
        self.alive -= 1


def logits(volume: Watched, options: SegmentOptions = OPTIONS, **spec: object) -> np.ndarray:
    stages = tiny_stages(replace(FrameSpec(offsets=(-1, 0, 1)), **spec))
    return np.stack(list(segment_slices(Volume(volume), stages, options)))


@pytest.mark.parametrize("split", [False, True])
def test_slices_in_memory_do_not_grow_with_depth(split: bool) -> None:
    most = []
    for depth in (8, 40):
        volume = Watched((depth, 32, 32))
        logits(volume, replace(OPTIONS, split_processing=split))
        most.append(volume.most)
        assert volume.alive == 0
        assert volume.reads <= 3 * depth + 8, "slices are read again and again"
    assert most[1] <= most[0] <= 9


def test_a_slice_never_depends_on_later_ones() -> None:
    stage = tiny_stages(FrameSpec(offsets=(0,)))[0]
    before, after = Watched((8, 32, 32)), Watched((8, 32, 32), changed={5})
    a, b = (
        np.stack(list(run_stage(StageRun(stage, Volume(v), "zero", lead_in=1))))
        for v in (before, after)
    )
    assert np.array_equal(a[:5], b[:5])
    assert all(not np.array_equal(a[z], b[z]) for z in (5, 6, 7)), "memory is not used"


def test_prompted_slices_answer_with_their_prompt_only_when_asked() -> None:
    stage = tiny_stages(FrameSpec(offsets=(0,)))[0]
    run = StageRun(stage, Volume(Watched((7, 64, 64))), "grid", interval=3)
    prompted, free = (np.stack(list(run_stage(replace(run, lead_in=n)))) for n in (0, 1))
    for z in range(7):
        assert np.array_equal(prompted[z], prompted[0]) == (z % 3 == 0)
        assert not np.allclose(free[z], prompted[0], atol=0.5) and free[z].std() > 0.01


@pytest.mark.parametrize(("spacing", "tracked"), [(10.0, 5), (4.0, 3)])
def test_stage_1_may_track_every_third_slice(spacing: float, tracked: int) -> None:
    """Stage 2 answers for all slices; where the volume is finer, steps are in slices twice as far."""
    spec = FrameSpec(offsets=(-1, 0, 1), feedback_step=3)
    volume = Volume(Watched((12, 32, 32)), (spacing,) * 3)
    stages = tiny_stages(spec)
    seen: list[str] = []
    sparse = list(segment_slices(volume, stages, OPTIONS, lambda _, text: seen.append(text)))
    assert len(sparse) == 12
    assert sum("stage 1 of 2" in text for text in seen) == tracked

    first = replace(plan_stage(stages[0], 0, volume, OPTIONS, 3), scaling=UNSCALED)
    assert len(list(run_stage(first))) == len(first.slices()) == tracked
    dense = list(run_stage(replace(first, step=1)))
    assert np.allclose(next(run_stage(first)), dense[0], atol=0.01)


@pytest.mark.parametrize(("step", "prompted"), [(1, [0, 5, 10]), (3, [0, 6, 11]), (4, [0, 8, 11])])
def test_prompts_keep_their_distance_where_slices_are_left_out(
    step: int, prompted: list[int]
) -> None:
    """A prompt goes to the next slice that is tracked."""
    stage = tiny_stages(FrameSpec(offsets=(0,)))[0]
    volume = Volume(Watched((12, 64, 64)))
    run = StageRun(stage, volume, "grid", interval=5, step=step)
    answers = dict(zip(run.slices(), run_stage(run), strict=True))
    same = [z for z, answer in answers.items() if np.array_equal(answer, answers[0])]
    assert same == prompted


@pytest.mark.parametrize("doubt", [0.0, 0.02])
def test_stage_2_may_doubt_stage_1_so_far(doubt: float) -> None:
    """Its memory goes on with what it said itself."""
    volume = Watched((6, 32, 32))
    free, restrained = logits(volume), logits(volume, doubt=doubt)
    stage = tiny_stages(FrameSpec(offsets=(-1, 0, 1)))[0]
    scaling = measure_intensity(volume, "robust")
    run = replace(plan_stage(stage, 0, Volume(volume), OPTIONS, 1), scaling=scaling)
    first = np.stack(list(run_stage(run)))
    assert (free < first - doubt).any(), "nothing to restrain"
    np.testing.assert_allclose(restrained, np.maximum(free, first - doubt), atol=1e-4)


def test_a_bias_moves_logits_and_nothing_else() -> None:
    """The network remembers what it said itself."""
    volume = Watched((6, 32, 32))
    scaling = measure_intensity(volume, "robust")
    plain, moved = (
        replace(
            plan_stage(
                tiny_stages(FrameSpec(offsets=(-1, 0, 1), bias=bias))[0],
                0,
                Volume(volume),
                OPTIONS,
                1,
            ),
            scaling=scaling,
        )
        for bias in (0.0, -0.5)
    )
    before = list(run_stage(plain))
    np.testing.assert_allclose(list(run_stage(moved)), np.subtract(before, 0.5), atol=1e-6)


def test_each_stage_sees_the_volume_as_blurred_as_it_wants() -> None:
    """Grey values are scaled after that."""
    sharp = tiny_stages(FrameSpec(offsets=(-1, 0, 1)))[0]
    soft = replace(sharp, spec=replace(sharp.spec, blur=1.0))
    volume = Watched((4, 32, 32))
    array = np.stack([volume.read_slice(z) for z in range(4)])
    by_hand = tomogram_from_array(gaussian_filter(array, (0, 1.0, 1.0)))
    expected = list(segment_slices(Volume(by_hand), [sharp], OPTIONS))
    found = list(segment_slices(Volume(volume), [soft], OPTIONS))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    plain = list(segment_slices(Volume(volume), [sharp], OPTIONS))
    assert np.abs(np.subtract(plain, found)).max() > 0.01
    assert plan_stage(sharp, 0, Volume(volume), OPTIONS).volume.slices is volume


def test_an_empty_memory_is_a_start_too() -> None:
    assert logits(Watched((4, 32, 32)), prompt="none").std() > 0.01


def test_quadrants_do_not_see_each_other() -> None:
    options = replace(OPTIONS, split_processing=True)
    stage = tiny_stages(FrameSpec(offsets=(0,)))[0]
    run = StageRun(stage, Volume(Watched((3, 60, 60))), "zero", split=options.split_processing)
    a = np.stack(list(run_stage(run)))

    @dataclass(frozen=True)
    class OneQuadrantChanged:
        shape = (3, 60, 60)

        def read_slice(self, z: int) -> np.ndarray:
            data = Watched(self.shape).read_slice(z).copy()
            data[30:, 30:] += 1
            return data

    b = np.stack(list(run_stage(replace(run, volume=Volume(OneQuadrantChanged())))))
    assert np.array_equal(a[:, :30], b[:, :30]) and np.array_equal(a[:, :, :30], b[:, :, :30])
    assert not np.allclose(a[1:, 30:, 30:], b[1:, 30:, 30:])


def test_tiles_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    """Across a tile border logits change no more than elsewhere."""
    monkeypatch.setattr(pipeline, "OVERLAP", 32)
    monkeypatch.setattr("etsam.options.MIN_TILE", 96)
    tiled = logits(Watched((3, 64, 200)), replace(OPTIONS, tile=96))
    assert tiled.shape == (3, 64, 200)
    steps = np.abs(np.diff(tiled, axis=2)).mean(axis=(0, 1))
    assert steps.max() < 4 * np.median(steps)


@dataclass(frozen=True)
class Flipped:
    """A volume mirrored along some axes of its slices."""

    source: Watched
    axes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.source.shape

    def read_slice(self, z: int) -> np.ndarray:
        return np.flip(self.source.read_slice(z), self.axes)


@pytest.mark.parametrize(("mirrors", "axes"), [(4, (0,)), (4, (1,)), (2, (0, 1))])
def test_mirror_images_of_a_volume_get_mirrored_logits(
    mirrors: Literal[2, 4], axes: tuple[int, ...]
) -> None:
    """The average over mirror images cannot tell which of them was given; one alone can."""
    volume = Watched((4, 64, 40))
    stages = tiny_stages(FrameSpec(offsets=(-1, 0, 1)))
    far = []
    for options in (replace(OPTIONS, mirrors=mirrors), OPTIONS):
        seen, turned = (
            np.stack(list(segment_slices(Volume(v), stages, options)))
            for v in (volume, Flipped(volume, axes))
        )
        far.append(float(np.abs(np.flip(turned, [axis + 1 for axis in axes]) - seen).max()))
    assert far[0] < 1e-3 < 1e-2 < far[1]


def answering(monkeypatch: pytest.MonkeyPatch, *answers: tuple[float, float]) -> None:
    """Let each region answer with two logits, of even and of odd tracked slices."""
    given = itertools.cycle(answers)

    def track(model: SAM2, frames: Frames, *_: object) -> Iterator[tuple[int, torch.Tensor]]:
        logits = next(given)
        for step in range(len(frames)):
            yield step, torch.full((8, 8), logits[step % 2])

    monkeypatch.setattr(pipeline, "track", track)


def test_no_object_is_one_vote_and_no_veto(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a mean it counts as -10; alone it stays what it is, also as one of four quadrants."""
    stage = tiny_stages(FrameSpec(offsets=(0,)))[0]
    run = StageRun(stage, Volume(Watched((4, 32, 32))), "none", mirrors=4)
    three = (8.0, 4.0), (8.0, -3.0), (8.0, 4.0)
    answering(monkeypatch, *three, (NO_OBJECT_LOGIT, NO_OBJECT_LOGIT))
    np.testing.assert_allclose([plane.mean() for plane in run_stage(run)], [3.5, -1.25] * 2)

    for alone in (replace(run, mirrors=1), replace(run, mirrors=1, split=True)):
        answering(monkeypatch, (NO_OBJECT_LOGIT, -30.0))
        found = [(plane.min(), plane.max()) for plane in run_stage(alone)]
        assert found == [(-1024, -1024), (-30, -30)] * 2

    monkeypatch.setattr(pipeline, "OVERLAP", 32)
    answering(monkeypatch, (NO_OBJECT_LOGIT, -30.0), (10.0, 10.0))
    wide = replace(run, volume=Volume(Watched((2, 32, 160))), mirrors=1, tile=96)
    absent, low = (plane[0] for plane in run_stage(wide))
    assert absent[80] == pytest.approx(0, abs=0.5) and absent.min() == -10 and low.min() == -30


@pytest.mark.parametrize("feedback_step", [1, 3])
def test_no_object_on_a_slice_is_no_veto_on_those_that_are_not_tracked(
    monkeypatch: pytest.MonkeyPatch, feedback_step: int
) -> None:
    volume = Volume(Watched((4, 32, 32)))
    run = StageRun(tiny_stages(FrameSpec(offsets=(0,)))[0], volume, "none", step=feedback_step)
    answering(monkeypatch, (5.0, NO_OBJECT_LOGIT))
    with ScratchLogits(run.volume.slices.shape, step=run.step) as scratch:
        for z, plane in zip(run.slices(), run_stage(run), strict=True):
            scratch.write_slice(z, plane)
        found = [float(scratch.read_slice(z).mean()) for z in range(4)]
    wanted = {1: [5, NO_OBJECT_LOGIT, 5, NO_OBJECT_LOGIT], 3: [5, 0, -5, -10]}
    assert found == pytest.approx(wanted[feedback_step], abs=1e-5)


def test_voxel_spacing_scales_the_frames() -> None:
    volume = Watched((3, 64, 64))
    stages = tiny_stages()
    sizes = {}
    for spacing in (None, (10.0,) * 3, (4.0,) * 3):
        out = list(segment_slices(Volume(volume, spacing), stages, OPTIONS))
        sizes[spacing] = np.stack(out)
    assert np.array_equal(sizes[None], sizes[(10.0,) * 3])
    assert not np.allclose(sizes[None], sizes[(4.0,) * 3])
    assert sizes[(4.0,) * 3].shape == (3, 64, 64)


def test_reference_frames_run_through_both_stages() -> None:
    spec = {**REFERENCE_SPEC.to_dict(), "image_size": 64}
    out = logits(Watched((3, 40, 50)), **spec)
    assert out.shape == (3, 40, 50) and np.isfinite(out).all() and out.std() > 0.01


def test_devices_are_checked() -> None:
    assert choose_device("cpu").type == "cpu" and choose_device("auto").type
    for name in ("abacus", "cuda:99"):
        with pytest.raises(ValueError, match=name):
            choose_device(name)

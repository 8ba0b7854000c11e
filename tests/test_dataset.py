"""Training data: pairs in folders, clips cut from them, bounded memory, mixing, augmentation."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from etsam.dataset import Pair, SliceStore, find_pairs, open_pairs
from etsam.frames import REFERENCE_SPEC, FrameSource, FrameSpec, blurred, frame_geometry
from etsam.intensity import measure_intensity
from etsam.training import augment, clips
from etsam.training.augment import Augmentation
from etsam.training.clips import ClipSampler, ClipShape, Group
from etsam.volume import create_volume, open_tomogram, tomogram_from_array
from tiny_training import write_pairs

SHAPE = ClipShape(frames=3, size=64)
OPENED: list[SliceStore] = []


def new_store(limit_gb: float = 1.0) -> SliceStore:
    OPENED.append(SliceStore(limit_gb))
    return OPENED[-1]


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def sampler(
    folder: Path,
    *,
    seed: int = 0,
    spec: FrameSpec | None = None,
    limit_gb: float = 1.0,
    augmentation: Augmentation = "strong",
) -> ClipSampler:
    spec = spec or FrameSpec()
    pairs = open_pairs(folder, spec, new_store(limit_gb), with_logits=False)
    return ClipSampler(lambda _: [Group(pairs, 1.0)], spec, seed, augmentation)


def write(path: Path, data: np.ndarray, spacing: float = 10.0) -> None:
    with mrcfile.new(path) as file:
        file.set_data(data)
        file.voxel_size = spacing


def test_clips_are_reproducible_and_shaped(folder: Path) -> None:
    first, again, other = (sampler(folder, seed=n).batch(5, range(4), SHAPE) for n in (0, 0, 1))
    assert first.frames.shape == (4, 4, 5, 64, 64)
    assert first.labels.shape == (4, 4, 64, 64)
    assert torch.equal(first.frames, again.frames)
    assert not torch.equal(first.frames, other.frames)
    assert set(first.labels.unique().tolist()) <= {-1, 0, 1}


def test_some_clips_come_from_thin_volumes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "THIN", 1.0)
    monkeypatch.setattr(clips, "THICKEST", 1)
    frames = sampler(folder, augmentation="strong").batch(0, [0, 1], SHAPE).frames
    assert frames.std() > 0.1
    for clip in frames:  # a single slice: all neighbours and all frames are alike, but for noise
        flat = clip.flatten(0, 1)
        alike = torch.corrcoef(flat.flatten(1))
        assert alike[0].min() > 0.5
    monkeypatch.setattr(clips, "THIN", 0.0)
    whole = sampler(folder, augmentation="strong").batch(0, [0, 1], SHAPE).frames
    assert not torch.equal(whole, frames)


def test_a_clip_is_the_same_in_any_batch(folder: Path) -> None:
    """So that several processes can share a batch, and a resumed run draws what it would have."""
    source = sampler(folder)
    whole = source.batch(7, range(4), SHAPE)
    source.batch(8, range(2), SHAPE)
    part = source.batch(7, [1, 3], SHAPE)
    assert torch.equal(whole.frames[1::2], part.frames)
    assert whole.randoms[3].random() == part.randoms[1].random()
    assert not torch.equal(whole.frames, source.batch(8, range(4), SHAPE).frames)


@pytest.mark.parametrize("augmentation", ["strong", "sam2", "none"])
def test_labels_turn_with_the_frames(
    tmp_path: Path, augmentation: Augmentation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tomogram that shows its own mask keeps doing so through every augmentation that moves it."""
    for name in ("FADED", "COVERED"):  # cover it with noise; see test_augment.py
        monkeypatch.setattr(augment, name, 0.0)
    mask = np.zeros((8, 96, 96), np.int8)
    mask[:, 10:40, 20:30] = 1
    write(tmp_path / "a.mrc", mask * 50)
    write(tmp_path / "a_membrane.mrc", mask)
    clips = sampler(tmp_path, augmentation=augmentation).batch(0, range(12), SHAPE)
    assert (clips.labels == 1).any()
    for grey, label in zip(
        clips.frames[:, :, 2].flatten(0, 1), clips.labels.flatten(0, 1), strict=True
    ):
        if 0 < label.sum() < label.numel():
            assert (grey[label == 1].mean() - grey[label == 0].mean()).abs() > 0.8


def test_square_frames_are_whole_slices_as_in_use(folder: Path) -> None:
    """SAM 2's frames: the slice squeezed, three equal channels, ImageNet's mean and deviation."""
    spec = replace(REFERENCE_SPEC, image_size=96)
    shape = ClipShape(frames=16, anchored=False)
    clips = sampler(folder, spec=spec, augmentation="none").batch(0, [0], shape)
    assert clips.frames.shape == (1, 16, 3, 96, 96)
    slices = []
    for pair in open_pairs(folder, spec, new_store(), with_logits=False):
        with open_tomogram(pair.tomogram) as volume:
            geometry = frame_geometry(spec, volume.shape[1:])
            frames = FrameSource(volume, spec, pair.scaling, geometry)
            slices += [frames[z] for z in (0, 15)]
    nearest = min((clips.frames[0, 0] - frame).abs().max() for frame in slices)
    assert nearest < 1e-5


def test_fine_voxels_are_scaled_as_in_use(tmp_path: Path) -> None:
    """A network for 8 to 16 Å sees a tomogram of 4 Å at half its resolution."""
    mask = np.zeros((6, 160, 160), np.int8)
    mask[:, 40:120] = 1
    write(tmp_path / "a.mrc", mask * 50, spacing=4.0)
    write(tmp_path / "a_membrane.mrc", mask, spacing=4.0)
    shape = ClipShape(frames=2, size=80)
    clips = sampler(tmp_path, spec=FrameSpec(multiple=16), augmentation="none").batch(0, [0], shape)
    assert clips.labels.float().mean() == 0.5
    assert (clips.labels[0, 0].sum(0) == 40).all()


def test_slices_are_blurred_as_in_use(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).normal(size=(3, 40, 48)).astype(np.float32)
    write(tmp_path / "a.mrc", grey)
    write(tmp_path / "a_membrane.mrc", np.zeros(grey.shape, np.int8))
    spec, store = FrameSpec(blur=1.2), new_store()
    pair = Pair(*find_pairs(tmp_path)[0], spec, store)
    soft = blurred(tomogram_from_array(grey), spec, (10.0,) * 3)
    scaling = measure_intensity(soft, spec.normalisation)
    everything = (slice(None), slice(None))
    expected = scaling.apply(torch.from_numpy(soft.read_slice(1)))
    torch.testing.assert_close(pair.read_grey(1, everything), expected)
    inside = pair.read_grey(1, (slice(0, 40), slice(4, 44)))[:, 6:-6]
    torch.testing.assert_close(inside, expected[:, 10:38])


def test_memory_is_bounded_and_changes_nothing(folder: Path) -> None:
    """With room for one slice the clips are those of an unbounded store."""
    spec = FrameSpec()
    slice_gb = 80 * 80 / 1e9
    store = new_store(1.5 * slice_gb)
    pairs = open_pairs(folder, spec, store, with_logits=False)
    small = ClipSampler(lambda _: [Group(pairs, 1.0)], spec, 0)
    assert torch.equal(
        small.batch(3, range(4), SHAPE).frames, sampler(folder).batch(3, range(4), SHAPE).frames
    )
    assert sum(plane.nbytes for plane in store._slices.values()) <= 1.5 * slice_gb * 1e9
    store.close()
    assert not store._slices and not store._open


def test_groups_are_mixed_by_weight(folder: Path, tmp_path: Path) -> None:
    spec, store = FrameSpec(offsets=(0,)), new_store()
    groups = []
    for weight, brightness in ((3.0, 0), (1.0, 1)):
        place = tmp_path / str(brightness)
        place.mkdir()
        write(place / "a.mrc", np.random.default_rng(0).integers(0, 9, (4, 32, 32)).astype(np.int8))
        write(place / "a_membrane.mrc", np.full((4, 32, 32), brightness, np.int8))
        groups.append(Group(open_pairs(place, spec, store, with_logits=False), weight))
    clips = ClipSampler(lambda _: groups, spec, 0, "none").batch(
        0, range(400), ClipShape(1, 32, False)
    )
    assert clips.labels.float().mean() == pytest.approx(0.25, abs=0.07)


def test_clips_show_something_annotated(tmp_path: Path) -> None:
    """Where little is annotated, clips look for it."""
    labels = np.full((6, 200, 200), -1, np.int8)
    labels[:, 90:110, 90:110] = 0
    write(
        tmp_path / "a.mrc", np.random.default_rng(0).integers(0, 99, labels.shape).astype(np.int8)
    )
    write(tmp_path / "a_membrane.mrc", labels)
    clips = sampler(tmp_path).batch(0, range(12), SHAPE)
    assert (clips.labels >= 0).flatten(1).any(1).float().mean() > 0.8


def test_zarr_pairs_and_mixed_formats_are_found(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "b.zarr"
    with (
        open_tomogram(folder / "t0.mrc") as volume,
        create_volume(target, volume, dtype="int8", label="test") as writer,
    ):
        for z in range(volume.shape[0]):
            writer.write_slice(z, volume.read_slice(z).astype(np.int8))
    shutil.copy(folder / "t0_membrane.mrc", tmp_path / "b_membrane.mrc")
    assert find_pairs(tmp_path) == [(tmp_path / "b.zarr", tmp_path / "b_membrane.mrc")]
    spec, store = FrameSpec(), new_store()
    zarr = Pair(*find_pairs(tmp_path)[0], spec, store)
    mrc = Pair(folder / "t0.mrc", folder / "t0_membrane.mrc", spec, store)
    box = (slice(3, 70), slice(5, 60))
    assert torch.equal(zarr.read_grey(4, box), mrc.read_grey(4, box))


def portal(folder: Path, source: Path, names: tuple[str, ...]) -> Path:
    spacing = folder / "10000/run_1/Reconstructions/VoxelSpacing10.000"
    (spacing / "Tomograms/100").mkdir(parents=True)
    shutil.copy(source / "t0.mrc", spacing / "Tomograms/100/run_1.mrc")
    for number, name in enumerate(names):
        place = spacing / f"Annotations/{101 + number}"
        place.mkdir(parents=True)
        shutil.copy(source / "t0_membrane.mrc", place / f"{name}_segmentationmask.mrc")
    return spacing


def test_portal_runs_are_found(folder: Path, tmp_path: Path) -> None:
    spacing = portal(tmp_path, folder, ("membrane-1.0", "ribosome-1.0"))
    mask = spacing / "Annotations/101/membrane-1.0_segmentationmask.mrc"
    assert find_pairs(tmp_path) == [(spacing / "Tomograms/100/run_1.mrc", mask)]
    assert find_pairs(tmp_path / "10000/run_1") == find_pairs(tmp_path)


def test_two_membrane_annotations_are_refused(folder: Path, tmp_path: Path) -> None:
    portal(tmp_path, folder, ("membrane-1.0", "inner_membrane-1.0"))
    with pytest.raises(ValueError, match="2 membrane annotations"):
        find_pairs(tmp_path)


def test_mismatched_pairs_are_refused(tmp_path: Path) -> None:
    for name, shape in (("a.mrc", (4, 8, 8)), ("a_membrane.mrc", (4, 8, 9))):
        write(tmp_path / name, np.random.default_rng(0).integers(0, 2, shape).astype(np.int8))
    with pytest.raises(ValueError, match=r"\(4, 8, 9\)"):
        sampler(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x93NUMPY", b"\x93NUMPY\1\0\6\0{'a':(", b"\x80\x04N.", b"voxels", b"PK\x03\x04"],
)
def test_damaged_logits_are_named(folder: Path, tmp_path: Path, content: bytes) -> None:
    for name in ("t0.mrc", "t0_membrane.mrc"):
        shutil.copy(folder / name, tmp_path)
    (tmp_path / "t0_stage1.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"t0_stage1\.npy is damaged"):
        open_pairs(tmp_path, FrameSpec(), new_store(), with_logits=True)


@pytest.mark.parametrize("dtype", ["f4", "u1", "i2"])
def test_logits_of_another_type_are_refused(folder: Path, tmp_path: Path, dtype: str) -> None:
    """Logits as float32 were trained on at 1/25 of their size."""
    for name in ("t0.mrc", "t0_membrane.mrc"):
        shutil.copy(folder / name, tmp_path)
    with open_tomogram(folder / "t0.mrc") as volume:
        np.save(tmp_path / "t0_stage1.npy", np.ones(volume.shape, dtype))
    expected = rf"t0_stage1\.npy holds {np.dtype(dtype)}, expected int8 in steps of 5/127 logits"
    with pytest.raises(ValueError, match=f"{expected}: remove it, and --stage1-checkpoint makes"):
        open_pairs(tmp_path, FrameSpec(), new_store(), with_logits=True)


def test_a_constant_volume_is_named(tmp_path: Path) -> None:
    write(tmp_path / "flat.mrc", np.full((4, 32, 32), 3, np.int8))
    write(tmp_path / "flat_membrane.mrc", np.zeros((4, 32, 32), np.int8))
    (pair,) = open_pairs(tmp_path, FrameSpec(), new_store(), with_logits=False)
    with pytest.raises(ValueError, match=r"flat\.mrc cannot .* constant"):
        _ = pair.scaling


@pytest.mark.parametrize("z", [2, 0])
def test_masks_of_other_values_are_refused(tmp_path: Path, z: int) -> None:
    """In any slice, before a clip is drawn."""
    mask = np.zeros((4, 64, 64), np.int8)
    mask[z, 5, 5] = 3
    write(tmp_path / "a.mrc", np.arange(4 * 64 * 64).reshape(4, 64, 64).astype(np.int8))
    write(tmp_path / "a_membrane.mrc", mask)
    match = f"not annotated. in slice {z}; `etsam prepare` makes"
    with pytest.raises(ValueError, match=match):
        open_pairs(tmp_path, FrameSpec(), new_store(), with_logits=False)


def test_a_mask_that_is_a_link_to_nowhere_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "t0.mrc", tmp_path)
    (tmp_path / "t0_membrane.mrc").symlink_to("gone.mrc")
    with pytest.raises(FileNotFoundError, match=r"t0_membrane\.mrc does not exist"):
        open_pairs(tmp_path, FrameSpec(), new_store(), with_logits=False)


def test_missing_logits_and_small_volumes_are_refused(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--stage1-checkpoint"):
        open_pairs(folder, FrameSpec(), new_store(), with_logits=True)
    with pytest.raises(ValueError, match="17 slices of 64"):
        sampler(folder).batch(0, [0], ClipShape(17, 64))
    with pytest.raises(ValueError, match=r"96\^2"):
        sampler(folder).batch(0, [0], ClipShape(2, 96))

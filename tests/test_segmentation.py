"""The verb: arrays to logits, files to masks, and nothing left behind when it goes wrong."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest

import etsam
from etsam import polarity, stages
from etsam.instances import MIN_VOXELS, separate_membranes
from etsam.membrane import load_membrane
from etsam.options import SegmentOptions
from etsam.provenance import sha256
from etsam.segmentation import segment_array, segment_file
from etsam.weights import resolve_checkpoints
from tiny_model import write_tiny_model

SHAPE = (6, 40, 30)
OPTIONS = SegmentOptions(device="cpu", preview=False)


class Cancelled(Exception):
    """What a program raises in its callback to stop."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def options(model: Path) -> SegmentOptions:
    return replace(OPTIONS, model=model)


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    return np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)


@pytest.fixture
def tomogram(volume: np.ndarray, tmp_path: Path) -> Path:
    path = tmp_path / "TS_1_10.00Apx.mrc"
    with mrcfile.new(path) as mrc:
        mrc.set_data(volume)
        mrc.voxel_size = 10.0
        mrc.header.origin = (5.0, -6.0, 7.0)
    return path


def cancel_at(fraction: float) -> Callable[[float, str], None]:
    def progress(done: float, message: str) -> None:
        if done >= fraction:
            raise Cancelled(message)

    return progress


def test_the_plugins_call(
    model: Path, volume: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = resolve_checkpoints(model)
    monkeypatch.setattr(stages, "resolve_checkpoints", lambda *_, progress: found)
    seen: list[tuple[float, str]] = []
    mapped = np.lib.format.open_memmap(tmp_path / "in.npy", "w+", np.float32, SHAPE)
    mapped[:] = volume
    keywords = {
        "normalize_method": None,
        "split_processing": False,
        "stage1_prompt": "grid_zero",
        "stage2_prompt": "zero",
        "progress": lambda fraction, message: seen.append((fraction, message)),
    }
    unsaid = "an array does not say its voxel spacing, 8 to 16 Å is taken for granted"
    with pytest.warns(UserWarning, match=unsaid) as told:
        logits = etsam.segment(mapped, **keywords, output_path=None)
    assert [warning.filename for warning in told] == [__file__]
    assert type(logits) is np.ndarray and logits.dtype == np.float32 and logits.shape == SHAPE
    assert np.isfinite(logits).all() and logits.std() > 0.05
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1
    assert "stage 1 of 2: slice 6 of 6" in {message for _, message in seen}

    with pytest.warns(UserWarning, match=unsaid):
        written = etsam.segment(mapped, **keywords, output_path=tmp_path / "out.npy")
    assert isinstance(written, np.memmap)
    assert np.array_equal(np.load(tmp_path / "out.npy"), logits)
    asked = SegmentOptions(voxel_spacing=10.0)
    assert np.array_equal(segment_array(volume, asked), logits)


@pytest.mark.filterwarnings("ignore:this model knows only")
def test_the_plugins_call_cancelled_leaves_nothing(
    model: Path, volume: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = resolve_checkpoints(model)
    monkeypatch.setattr(stages, "resolve_checkpoints", lambda *_, progress: found)
    threads = threading.active_count()
    for fraction in (0.0, 0.4, 0.9):
        with pytest.raises(Cancelled):
            etsam.segment(
                volume,
                normalize_method="min_max_positive_values",
                split_processing=True,
                stage1_prompt="grid_zero",
                stage2_prompt="zero",
                progress=cancel_at(fraction),
                output_path=str(tmp_path / "out.npy"),
            )
        assert not list(tmp_path.iterdir())
        assert threading.active_count() == threads


def test_the_bundled_model_is_the_default(volume: np.ndarray) -> None:
    with pytest.warns(UserWarning, match="an array does not say"):
        logits = etsam.segment(volume)
    assert logits.shape == SHAPE and np.isfinite(logits).all()


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.7, 1.0])
def test_cancelling_leaves_nothing(
    options: SegmentOptions, tomogram: Path, tmp_path: Path, fraction: float
) -> None:
    threads = threading.active_count()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(Cancelled):
        segment_array(
            tomogram, options, progress=cancel_at(fraction), output_path=tmp_path / "x.npy"
        )
    asked = replace(options, store_logits=True, post_process=True, preview=True)
    with pytest.raises(Cancelled):
        segment_file(tomogram, asked, cancel_at(fraction))
    assert sorted(tmp_path.iterdir()) == before
    assert threading.active_count() == threads


def test_a_file_becomes_mask_logits_picture_and_provenance(
    options: SegmentOptions, tomogram: Path, volume: np.ndarray
) -> None:
    logits = segment_array(tomogram, options)
    threshold = float(np.median(logits))
    asked = replace(
        options,
        logit_threshold=threshold,
        store_logits=True,
        post_process=True,
        preview=True,
        min_slices=3,
    )
    result = segment_file(tomogram, asked)
    stem = "TS_1_10.00Apx_membrane"
    assert sorted(p.name for p in tomogram.parent.iterdir()) == sorted(
        [
            tomogram.name,
            f"{stem}.mrc",
            f"{stem}.png",
            f"{stem}.json",
            f"{stem}_logits.mrc",
            f"{stem}_postprocessed.mrc",
        ]
    )
    with mrcfile.open(result.mask) as mask, mrcfile.open(result.logits) as stored:
        assert mask.data.dtype == np.int8 and stored.data.dtype == np.float32
        assert np.array_equal(stored.data, logits)
        assert np.array_equal(mask.data, logits > threshold)
        assert mask.header.origin.y == -6 and mask.voxel_size.x == 10
    details = json.loads(result.provenance.read_text())
    printed = json.loads(result.json())
    assert printed["mask"] == str(result.mask) and "\n" not in result.json()
    text = json.dumps(details)
    assert sha256(options.model / "stage1.safetensors") in text
    assert etsam.__version__ in text and str(threshold) in text


def test_labels_per_membrane_of_the_mask_or_the_clean_mask(
    options: SegmentOptions, tomogram: Path, tmp_path: Path
) -> None:
    threshold = float(np.median(segment_array(tomogram, options)))
    asked = replace(options, logit_threshold=threshold, instances=True)
    plain = segment_file(tomogram, asked)
    clean = segment_file(tomogram, replace(asked, post_process=True, output=tmp_path / "clean"))
    for result, source in ((plain, plain.mask), (clean, clean.cleaned)):
        assert result.instances is not None and source is not None
        assert result.instances.name == "TS_1_10.00Apx_membrane_instances.mrc"
        assert json.loads(result.json())["instances"] == str(result.instances)
        with mrcfile.open(result.instances) as labels, mrcfile.open(source) as mask:
            assert labels.data.dtype == np.int16
            assert labels.header.origin.y == -6 and labels.voxel_size.x == 10
            assert not labels.data[mask.data == 0].any()
            sizes = np.bincount(labels.data.ravel())[1:]
        expected = separate_membranes(load_membrane(source), min_voxels=MIN_VOXELS)
        assert sizes.tolist() == expected.voxels.tolist()
        assert len(sizes) and sizes.min() >= MIN_VOXELS


def test_a_mask_of_small_membranes_says_why_it_has_no_labels(
    options: SegmentOptions, tomogram: Path
) -> None:
    logits = segment_array(tomogram, options)
    few = float(np.sort(logits, axis=None)[-MIN_VOXELS // 2])
    with pytest.warns(UserWarning, match=f"smaller than {MIN_VOXELS} voxels: none gets a label"):
        result = segment_file(tomogram, replace(options, logit_threshold=few, instances=True))
    assert result.instances is not None and not mrcfile.read(result.instances).any()
    assert mrcfile.read(result.mask).any()
    assert any("none gets a label" in line for line in result.details["warnings"])


def test_labels_need_a_known_voxel_spacing(
    options: SegmentOptions, volume: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "unknown.mrc"
    with mrcfile.new(path) as mrc:
        mrc.set_data(volume)
    asked = replace(options, instances=True)
    with pytest.raises(ValueError, match="--voxel-spacing"):
        segment_file(path, asked)
    assert list(tmp_path.iterdir()) == [path]
    result = segment_file(path, replace(asked, voxel_spacing=10.0, logit_threshold=-1e3))
    with mrcfile.open(result.instances) as labels:
        assert set(np.unique(labels.data)) == {1}


def test_results_are_replaced_only_when_asked(options: SegmentOptions, tomogram: Path) -> None:
    first = segment_file(tomogram, options)
    with pytest.raises(FileExistsError, match="overwrite"):
        segment_file(tomogram, options)
    again = replace(options, overwrite=True, logit_threshold=1e9)
    with pytest.warns(UserWarning, match="no membrane found"):
        segment_file(tomogram, again)
    with mrcfile.open(first.mask) as mask:
        assert not mask.data.any()
    with pytest.raises(ValueError, match="tomogram itself"):
        segment_file(tomogram, replace(again, output=tomogram))


def test_a_result_made_while_the_model_was_loading_is_kept(
    options: SegmentOptions, tomogram: Path
) -> None:
    mask = tomogram.with_name("TS_1_10.00Apx_membrane.mrc")

    def load_slowly(_: object) -> list[stages.Stage]:
        mask.write_bytes(b"made by another process")
        return stages.load_stages(options)

    with pytest.raises(FileExistsError, match="overwrite"):
        segment_file(tomogram, options, load=load_slowly)
    assert mask.read_bytes() == b"made by another process"
    assert sorted(tomogram.parent.iterdir()) == [tomogram, mask]


def test_checkpoints_are_named_as_what_made_the_mask(
    options: SegmentOptions, tomogram: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model)
    one, two = Path("stage1.safetensors"), Path("stage2.safetensors")
    both = replace(options, model="x" * 90, stage1_checkpoint=one, stage2_checkpoint=two)
    second = replace(options, stage2_checkpoint=two, overwrite=True)
    mixed = pytest.warns(UserWarning, match="stage 1 is that of .* --stage1-checkpoint")
    for asked, names in ((both, ["stage1", "stage2"]), (second, [str(model), "stage2"])):
        with mixed if asked is second else nullcontext():
            result = segment_file(tomogram, asked)
        used = None if asked is both else str(model)
        assert json.loads(result.provenance.read_text())["parameters"]["model"] == used
        weights = result.details["weights"]
        assert [entry["name"] for entry in weights] == names
        assert [entry["path"] for entry in weights] == [str(model / one), str(model / two)]
        with mrcfile.open(result.mask) as mask:
            label = mask.get_labels()[-1]
        assert label.endswith(" logits > -0.25") and " + ".join(names)[:40] in label


def test_results_go_into_a_folder_or_a_named_file(
    options: SegmentOptions, tomogram: Path, tmp_path: Path
) -> None:
    folder = segment_file(tomogram, replace(options, output=tmp_path / "a" / "b"))
    assert folder.mask == tmp_path / "a" / "b" / "TS_1_10.00Apx_membrane.mrc"
    named = segment_file(tomogram, replace(options, output=tmp_path / "mine.mrc"))
    assert named.mask.is_file() and named.provenance == tmp_path / "mine.json"


def test_wrong_input_is_refused_before_anything_is_written(
    options: SegmentOptions, tmp_path: Path, volume: np.ndarray
) -> None:
    with pytest.raises(FileNotFoundError):
        segment_file(tmp_path / "none.mrc", options)
    with pytest.raises(ValueError, match="constant"):
        segment_array(np.ones(SHAPE, np.float32), options, output_path=tmp_path / "x.npy")
    with pytest.raises(ValueError, match="shape"):
        segment_array(volume[0], options)
    with pytest.raises(ValueError, match="device"):
        segment_array(volume, replace(options, device="abacus"))
    with pytest.raises(ValueError, match="prompt"):
        segment_array(volume, replace(options, stage1_prompt="etsam_stage1_partial"))
    swapped = options.model / "stage1.safetensors"
    with pytest.raises(ValueError, match="of stage 2, whose .* seems to be of stage 1"):
        segment_array(volume, replace(options, stage2_checkpoint=swapped))
    assert not list(tmp_path.iterdir())


def test_a_mask_larger_than_the_disk_is_refused_before_grey_values_are_measured(
    options: SegmentOptions, tomogram: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tomogram.parent)
    needed = 40 * 30 * (4 * 4 + 4 * 6 + 6)  # stage 1 tracks 4 of 6 slices
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=needed - 1))
    monkeypatch.setattr(polarity, "settle_polarity", lambda *_: pytest.fail("measured"))
    with pytest.raises(OSError, match=r"TS_1_10\.00Apx_membrane\.mrc needs 55,200 bytes"):
        segment_file(tomogram, options)
    assert list(tomogram.parent.iterdir()) == [tomogram]


def test_outputs_are_checked_before_the_work(
    options: SegmentOptions, volume: np.ndarray, tomogram: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "in.npy", volume)
    (tmp_path / "folder.npy").mkdir()
    tomogram.rename(tmp_path / "mrc.npy")
    mapped = np.load(tmp_path / "in.npy", mmap_mode="r")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    wrong = [(volume, name) for name in ("x.mrc", "folder/", "folder.npy")]
    wrong += [(mapped, "in.npy"), (mapped[1:], "in.npy"), (tmp_path / "mrc.npy", "mrc.npy")]
    for array, name in wrong:
        with pytest.raises(ValueError, match="output_path"):
            segment_array(array, options, progress=cancel_at(0), output_path=f"{tmp_path}/{name}")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before

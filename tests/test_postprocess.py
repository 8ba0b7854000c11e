"""Cleaning a mask, in memory and on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import find_objects, label

from etsam.postprocess import CleaningOptions, clean_mask, postprocess
from etsam.volume import create_volume, open_tomogram, tomogram_from_array


def blob_spans(mask: np.ndarray) -> list[int]:
    labels, _ = label(mask, np.ones((3, 3, 3)))
    return [box[0].stop - box[0].start for box in find_objects(labels)]


@pytest.fixture
def membranes() -> np.ndarray:
    """Two parallel walls through 20 slices, joined by rungs in 6 of them, and two scraps."""
    mask = np.zeros((20, 60, 70), np.int8)
    mask[:, 20:23] = mask[:, 28:31] = 1
    mask[5:11, 23:28, 40:43] = 1
    mask[3:12, 50:53, 10:14] = 1  # 9 slices
    mask[2:12, 50:53, 30:34] = 1  # 10 slices
    return mask


def write(path: Path, mask: np.ndarray, dtype: str = "int8") -> Path:
    like = tomogram_from_array(mask, voxel_spacing=13.6)
    with create_volume(path, like, dtype=dtype, label="test") as writer:  # type: ignore[arg-type]
        for z, data in enumerate(mask):
            writer.write_slice(z, data)
    return path


def test_cuts_rungs_and_drops_blobs_of_nine_slices_but_not_of_ten(membranes: np.ndarray) -> None:
    before = membranes.copy()
    cleaned, summary = clean_mask(membranes)
    assert np.array_equal(membranes, before)
    assert cleaned.dtype == membranes.dtype
    assert not cleaned[:, 23:28].any()
    assert cleaned[:, 20:23].all()
    assert cleaned[:, 28:31].all()
    assert not cleaned[:, 50:53, 10:14].any()
    assert cleaned[2:12, 50:53, 30:34].all()
    assert sorted(blob_spans(cleaned)) == [10, 20, 20]
    assert (summary.blobs, summary.blobs_dropped, summary.rungs_cut) == (4, 1, 6)
    assert summary.voxels_before == before.sum()
    assert summary.voxels_after == cleaned.sum()


def test_a_scrap_hanging_on_a_membrane_by_a_rung_is_judged_by_itself() -> None:
    mask = np.zeros((20, 60, 70), bool)
    mask[:, 20:23] = True
    mask[5:9, 28:31, 20:60] = mask[5:9, 23:28, 39:42] = True
    cleaned, summary = clean_mask(mask)
    assert summary.rungs_cut == 4
    assert cleaned.dtype == bool
    assert blob_spans(cleaned) == [20]


def test_options_switch_each_step_off(membranes: np.ndarray) -> None:
    assert np.array_equal(
        clean_mask(membranes, CleaningOptions(min_slices=0, max_rung=0))[0], membranes
    )
    only_blobs, summary = clean_mask(membranes, CleaningOptions(max_rung=0))
    assert (summary.rungs_cut, summary.blobs_dropped) == (0, 1)
    assert only_blobs[5:11, 23:28, 40:43].all()
    spurred = membranes.copy()
    spurred[:, 31:35, 10:12] = 1
    cleaned, summary = clean_mask(spurred, CleaningOptions(max_spur=6))
    assert summary.spurs_removed == 20
    assert not cleaned[:, 32:35, 10:12].any()


def test_thin_volumes_keep_what_goes_all_the_way_through() -> None:
    mask = np.zeros((4, 20, 20), bool)
    mask[:, 5] = mask[1:3, 10] = True
    cleaned, summary = clean_mask(mask)
    assert summary.blobs_dropped == 1
    assert np.array_equal(np.unique(np.argwhere(cleaned)[:, 1]), [5])


@settings(max_examples=25, deadline=None)
@given(arrays(bool, (9, 14, 15), elements=st.booleans()), st.integers(1, 9))
def test_never_adds_and_leaves_no_short_blob(mask: np.ndarray, min_slices: int) -> None:
    cleaned, summary = clean_mask(mask, CleaningOptions(min_slices=min_slices))
    assert not (cleaned & ~mask).any()
    assert all(span >= min_slices for span in blob_spans(cleaned))
    assert summary.voxels_after == cleaned.sum()


@pytest.mark.parametrize("suffix", [".mrc", ".zarr"])
def test_writes_beside_the_mask_with_its_geometry(
    tmp_path: Path, membranes: np.ndarray, suffix: str
) -> None:
    path = write(tmp_path / f"TS_1_10.00Apx_membrane{suffix}", membranes)
    seen = []
    done = postprocess(path, progress=lambda *step: seen.append(step))
    assert done.path == tmp_path / f"TS_1_10.00Apx_membrane_postprocessed{suffix}"
    with open_tomogram(done.path) as result:
        assert result.dtype == np.int8
        assert result.voxel_spacing == pytest.approx((13.6,) * 3)
        assert np.array_equal(result.read_slices(0, 20), clean_mask(membranes)[0])
    assert done.summary == clean_mask(membranes)[1]
    assert seen[-1] == ("write", 20, 20)
    assert ("clean", 20, 20) in seen


def test_a_json_says_how_it_was_made(tmp_path: Path, membranes: np.ndarray) -> None:
    path = write(tmp_path / "mask.mrc", membranes)
    done = postprocess(path, options=CleaningOptions(max_rung=3))
    assert done.provenance == tmp_path / "mask_postprocessed.json"
    told = json.loads(done.provenance.read_text(encoding="utf-8"))
    assert told["command"] == "postprocess" and told["results"] == asdict(done.summary)
    assert told["parameters"] == {"min_slices": 10, "max_rung": 3, "max_spur": 0}
    assert told["inputs"][0]["path"] == str(path)
    (tmp_path / "notes.json").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.json is there already"):
        postprocess(path, tmp_path / "notes.mrc")
    assert not (tmp_path / "notes.mrc").exists()


def test_keeps_header_origin_and_names_itself_in_it(tmp_path: Path, membranes: np.ndarray) -> None:
    path = write(tmp_path / "mask.mrc", membranes)
    with mrcfile.open(path, "r+") as file:
        file.header.origin = (10, 20, 30)
    postprocess(path, tmp_path / "clean.mrc", CleaningOptions(min_slices=5))
    with mrcfile.open(tmp_path / "clean.mrc") as file:
        assert file.header.origin.tolist() == (10, 20, 30)
        assert any("postprocess min_slices=5 max_rung=5" in line for line in file.get_labels())
    assert not list(tmp_path.glob("*.partial"))


def test_an_open_mask_stays_open_and_a_folder_may_be_the_output(
    tmp_path: Path, membranes: np.ndarray
) -> None:
    path = write(tmp_path / "mask.mrc", membranes)
    with open_tomogram(path) as mask:
        done = postprocess(mask, tmp_path / "out")
        assert np.array_equal(mask.read_slice(0), membranes[0])
    assert done.path == tmp_path / "out" / "mask_postprocessed.mrc"
    with pytest.raises(FileExistsError, match="there already"):
        postprocess(path, tmp_path / "out")
    assert postprocess(path, tmp_path / "out", overwrite=True).summary == done.summary
    with pytest.raises(ValueError, match="an output file"):
        postprocess(tomogram_from_array(membranes), tmp_path / "none")
    with pytest.raises(ValueError, match="not a mask"):
        postprocess(write(tmp_path / "x.mrc", membranes * 2 + 1), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["clean.mrc", "clean.mrc.gz", "clean.zarr"])
def test_two_processes_may_write_one_result(
    tmp_path: Path, membranes: np.ndarray, name: str
) -> None:
    path = write(tmp_path / "mask.mrc", membranes)
    target = tmp_path / name
    command = [sys.executable, "-m", "etsam", "postprocess", str(path), "-o", str(target)]
    other = postprocess(path, tmp_path / "other.mrc").path
    with (
        open_tomogram(path) as like,
        create_volume(target, like, dtype="int8", label="slow") as slow,
    ):
        slow.write_slice(0, membranes[0])
        subprocess.run(command, check=True, capture_output=True)
        with open_tomogram(target) as fast, open_tomogram(other) as expected:
            assert np.array_equal(fast.read_slices(0, 20), expected.read_slices(0, 20))
        for z in range(1, 20):
            slow.write_slice(z, membranes[z])
    with open_tomogram(target) as result:
        assert np.array_equal(result.read_slices(0, 20), membranes)
    left = {path.name for path in tmp_path.iterdir()} - {"other.json", "clean.json"}
    assert left == {"mask.mrc", "other.mrc", name}


def test_refuses_two_labels_that_never_meet_in_a_batch(
    membranes: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etsam.postprocess.BATCH", 4)
    membranes[12:] *= 3
    with pytest.raises(ValueError, match="not a mask.*1 and 3"):
        clean_mask(membranes)


def test_refuses_what_is_not_a_mask(tmp_path: Path, membranes: np.ndarray) -> None:
    logits = write(tmp_path / "logits.mrc", membranes.astype(np.float32) * 9 - 4, "float32")
    labels = membranes.astype(np.int16)
    labels[12:] *= 3
    with pytest.raises(ValueError, match="not a mask.*-4 and 5.*threshold"):
        postprocess(logits)
    with pytest.raises(ValueError, match="not a mask.*1 and 3"):
        postprocess(write(tmp_path / "labels.mrc", labels, "int16"))
    with pytest.raises(ValueError, match="not a mask"):
        clean_mask(-membranes)
    with pytest.raises(ValueError, match=r"\(Z, Y, X\) mask"):
        clean_mask(membranes[0])
    with pytest.raises(ValueError, match=r"\(Z, Y, X\) mask"):
        clean_mask(membranes.astype(np.float32))
    with pytest.raises(ValueError, match=r"\(3, 0, 5\) .* \(Z, Y, X\) mask"):
        clean_mask(np.zeros((3, 0, 5), np.int8))
    assert {path.name for path in tmp_path.iterdir()} == {"logits.mrc", "labels.mrc"}


def test_processes_change_nothing(
    tmp_path: Path, membranes: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etsam.postprocess.WORTH_A_PROCESS", 10_000)
    path = write(tmp_path / "mask.mrc", np.concatenate([membranes, membranes]))
    one, two = (postprocess(path, tmp_path / f"{count}.mrc", workers=count) for count in (1, 2))
    assert one.summary == two.summary and one.summary.rungs_cut == 12
    assert one.path.read_bytes() == two.path.read_bytes()
    with pytest.raises(ValueError, match="not a mask"):
        postprocess(write(tmp_path / "x.mrc", membranes * 2 + 1), tmp_path / "y.mrc", workers=2)
    assert not (tmp_path / "y.mrc").exists()


def test_refuses_bad_names_and_options(tmp_path: Path, membranes: np.ndarray) -> None:
    path = write(tmp_path / "mask.mrc", membranes)
    with pytest.raises(FileNotFoundError):
        postprocess(tmp_path / "none.mrc")
    with pytest.raises(ValueError, match="mask itself"):
        postprocess(path, path, overwrite=True)
    with pytest.raises(ValueError, match="no name"):
        postprocess(tomogram_from_array(membranes))
    for option in ("min_slices", "max_rung", "max_spur"):
        with pytest.raises(ValueError, match=f"{option} is -1"):
            CleaningOptions(**{option: -1})


@pytest.mark.parametrize("name", ["membrain_v1_T1S2M15", "midsurfer_Fig13B", "midsurfer_Fig13A"])
def test_leaves_real_membranes_alone(shared: Path, name: str) -> None:
    mask = np.load(shared / "masks" / f"{name}.npz")["labels"] > 0
    cleaned, summary = clean_mask(mask)
    assert summary.rungs_cut == 0
    assert np.array_equal(cleaned, mask)

"""What a user names as input: each tomogram once, no result taken for one, nonsense refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from etsam.cli.command import refuse_same_targets
from etsam.inputs import find_tomograms, refuse_same_results, shard
from test_cli import Run, assert_one_line


@pytest.fixture
def tomograms(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "data" / f"TS_{n}.mrc" for n in range(3)]
    touch(*paths)
    return paths


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()


def test_names_become_tomograms(tmp_path: Path, tomograms: list[Path]) -> None:
    folder = tomograms[0].parent
    for name in ("TS_0_membrane.mrc", "TS_0_membrane_logits.mrc", ".hidden.mrc", "notes.md"):
        (folder / name).touch()
    (folder / "b.ome.zarr").mkdir()
    inside = [*tomograms, folder / "b.ome.zarr"]
    assert list(find_tomograms([folder])) == inside
    matching = find_tomograms([str(folder / "TS_[02].mrc"), tomograms[0]])
    assert list(matching) == [tomograms[0], tomograms[2]]
    assert set(find_tomograms([f"{tmp_path}/**/TS_*"])) == set(tomograms)
    text = tmp_path / "list.txt"
    names = f"data/TS_1.mrc\n# mine\n\n{tomograms[2]}\ndata/absent.mrc\ndata\n"
    text.write_text(names, "utf-8")
    absent = tmp_path / "data" / "absent.mrc"
    named = [tomograms[1], tomograms[2], absent, tomograms[0], folder / "b.ome.zarr"]
    assert list(find_tomograms([text])) == named
    text.write_text(names, "utf-8-sig")  # as Windows' editor saves it
    assert list(find_tomograms([text])) == named
    text.write_text("data/TS_1.mrc # good\n", "utf-8")  # a name may hold it
    assert list(find_tomograms([text])) == [tmp_path / "data" / "TS_1.mrc # good"]
    odd = tmp_path / "a [1] é.x.mrc"
    touch(odd)
    assert find_tomograms([odd]) == {odd: None}


@pytest.mark.parametrize("name", ["empty", "*.rec", "empty.txt", "nested.txt", "binary.txt"])
def test_names_that_mean_nothing_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "nested.txt").write_text("nested.txt\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises((FileNotFoundError, ValueError), match=r"empty|rec|nested|binary"):
        find_tomograms([tmp_path / name])


@pytest.mark.parametrize("text", [b"a.mrc\nb\0c.mrc\n", "a.mrc\n".encode("utf-16-be")])
def test_a_list_with_zero_bytes_is_named(run: Run, tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(text)
    for verb in ("segment", "inspect"):
        code, out, err = run(verb, path)
        assert (code, out) == (1, "")
        assert_one_line(err, f"{path} is not a list of tomograms: it is no UTF-8 text")


def test_an_empty_name_is_not_the_current_folder(
    run: Run, tomograms: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tomograms[0].parent)
    for verb in ("segment", "inspect"):
        code, out, err = run(verb, "")
        assert (code, out) == (1, "")
        assert_one_line(err, "name is empty")


def test_shards_part_the_tomograms() -> None:
    paths = [Path(f"{n}.mrc") for n in range(10)]
    parts = [shard(paths, f"{i}/4") for i in range(1, 5)]
    assert sorted(path for part in parts for path in part) == sorted(paths)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for wrong in ("0/4", "5/4", "1", "a/b", "-1/2", "1/0", "", f"1/{'9' * 5000}"):
        with pytest.raises(ValueError, match="i/N"):
            shard(paths, wrong)


def test_two_tomograms_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of names that are one on a Mac: results that are not there yet cannot be asked."""
    with pytest.raises(ValueError, match="would both become"):
        refuse_same_results({Path("a/x.mrc"): Path("m/x.mrc"), Path("b/x.mrc"): Path("m/x.mrc")})
    tomograms = [Path("a/x\u00e9.mrc"), Path("b/Xe\u0301.mrc")]
    masks = {path: Path("m", path.name) for path in tomograms}
    refuse_same_results(masks)
    refuse_same_targets(tomograms, masks.__getitem__)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ValueError, match="would both become"):
        refuse_same_results(masks)
    with pytest.raises(ValueError, match="would both become"):
        refuse_same_targets(tomograms, masks.__getitem__)


RESULTS = """
a_membrane a_membrane_logits a_membrane_postprocessed a_membrane_instances a_membrane_labels
a_membranes mine_logits mine_postprocessed mine_instances mine_labels a_components
a_ridge a_ridge_logits a_truth a_target_mask a_scores a_best.ckpt_segmented a_semantic a_CNN
a_etsam_predicted_mask a_etsam_predicted_logits a_etsam_predicted_post_processed_mask
"""
TOMOGRAMS = """
TS_1_10.00Apx tomo_bin4 TS_026_rec grid1-denoised lam8_ts004_IsoNet_corrected membrane_prep_3
truth labels ridge scores mitochondria_SIRT_8.45A semantics.2 1
"""


def test_no_result_is_taken_for_a_tomogram(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    named = [folder / f"{name}.mrc" for name in TOMOGRAMS.split()]
    touch(*named, *(folder / f"{name}.mrc" for name in RESULTS.split()))
    assert list(find_tomograms([folder])) == sorted(named)
    assert list(find_tomograms([folder / "*.mrc"])) == sorted(named)
    assert list(find_tomograms([folder / "a_ridge.mrc"])) == [folder / "a_ridge.mrc"]


def test_tilt_series_beside_tomograms_are_taken_only_by_name(
    tmp_path: Path, tomograms: list[Path]
) -> None:
    folder = tomograms[0].parent
    series = [folder / f"TS_0{end}" for end in (".st", ".ali", ".preali", ".ST", ".ali.gz")]
    touch(*series)
    assert list(find_tomograms([folder])) == tomograms
    assert list(find_tomograms([folder / "TS_*"])) == tomograms
    (tmp_path / "list.txt").write_text("data/TS_0.st\n")
    assert list(find_tomograms([tmp_path / "list.txt", *series])) == series
    with pytest.raises(FileNotFoundError, match=r"tilt series \(\.st, .* named themselves"):
        find_tomograms([folder / "*.st"])


def test_a_tomogram_named_in_two_ways_is_taken_once(tmp_path: Path, tomograms: list[Path]) -> None:
    link = tomograms[0].with_name("link.mrc")
    link.symlink_to(tomograms[0])
    (tmp_path / "other").symlink_to("data")
    again = [tmp_path / "data" / ".." / "data" / "TS_0.mrc", tmp_path / "other" / "TS_0.mrc"]
    assert list(find_tomograms([tomograms[0], *again, link])) == [tomograms[0], link]

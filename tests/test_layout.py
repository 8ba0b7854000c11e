"""From what `etsam download` fetched to scores: the folders are enough."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from etsam.inputs import choose_masks, find_tomograms
from etsam.layout import run_of_mask
from etsam.pairing import find_pairings, read_pairings
from etsam.projects import select
from etsam.tables import read_table
from test_cli import Run, assert_one_line, write_mrc

LABELS = np.random.default_rng(0).integers(-1, 2, (4, 12, 14)).astype(np.int8)
RUNS = {("10000", "245"): "TS_026", ("10001", "258"): "TS_026", ("emdb", "4603"): "emd_4603"}


@pytest.fixture
def fetched(tmp_path: Path) -> Path:
    """Three runs as they are downloaded; the tomograms of two have one name, and all masks have."""
    for place in ("data", "masks"):
        (tmp_path / place).mkdir()
    for (dataset, run), stem in RUNS.items():
        folder = tmp_path / "data" / dataset / run
        for part in ("tomogram", "target_mask"):
            (folder / part).mkdir(parents=True)
        write_mrc(folder / "tomogram" / f"{stem}.mrc", LABELS.astype(np.float32))
        write_mrc(folder / "target_mask" / "truth.mrc", LABELS)
    return tmp_path / "data"


def test_what_was_downloaded_is_segmented_and_scored_by_its_folders(
    fetched: Path, tmp_path: Path, run: Run
) -> None:
    found = find_tomograms([fetched])
    assert [path.name for path in found] == ["TS_026.mrc", "TS_026.mrc", "emd_4603.mrc"]
    masks = choose_masks(found, tmp_path / "masks", copick=False)
    names = [mask.name for mask in masks.values()]
    assert names == [f"{dataset}_{run}_membrane.mrc" for dataset, run in RUNS]
    for mask in masks.values():
        write_mrc(mask, (LABELS > 0).astype(np.int8))
    table = tmp_path / "scores.csv"
    code, _, err = run("evaluate", tmp_path / "masks", "-t", fetched, "-o", table)
    assert code == 0 and "warning" not in err, err
    rows = [row for row in read_table(table) if row.metric == "dice"]
    assert [row.tomogram for row in rows] == list(RUNS)
    assert {row.value for row in rows} == {1.0}
    run_folder = fetched / "emdb" / "4603"
    assert list(find_tomograms([run_folder])) == [run_folder / "tomogram" / "emd_4603.mrc"]
    with pytest.raises(FileNotFoundError, match="there are no projects"):
        select(found, "*")
    code, _, err = run("segment", fetched)
    assert code == 1
    assert_one_line(err, "take a mask beside", "give --output")


def test_results_named_after_a_fetched_tomogram_find_its_truth(
    fetched: Path, tmp_path: Path
) -> None:
    scores = write_mrc(tmp_path / "masks" / "emd_4603_scores.mrc", LABELS.astype(np.float32))
    (pair,) = find_pairings([scores.parent], [fetched])
    assert (pair.dataset, pair.run) == ("emdb", "4603")
    table = tmp_path / "pairs.csv"
    table.write_text("prediction,truth\nmasks/x.mrc,data/emdb/4603/target_mask/truth.mrc\n")
    assert [(item.dataset, item.run) for item in read_pairings(table)] == [("emdb", "4603")]
    scores.rename(scores.with_name("TS_026_scores.mrc"))
    with pytest.raises(ValueError, match=r"several truths for it \(runs: 10000_245, 10001_258\)"):
        find_pairings([scores.parent], [fetched])


def test_masks_are_scored_without_their_tomograms_but_one_a_run(
    fetched: Path, tmp_path: Path
) -> None:
    shutil.rmtree(fetched / "10001" / "258" / "tomogram")
    write_mrc(tmp_path / "masks" / "10001_258_scores.mrc", LABELS.astype(np.float32))
    (pair,) = find_pairings([tmp_path / "masks"], [fetched])
    assert pair.truth == fetched / "10001" / "258" / "target_mask" / "truth.mrc"
    write_mrc(pair.truth.with_name("other_truth.mrc"), LABELS)
    assert run_of_mask(pair.truth) is None  # many of a kind in a folder that is called so
    with pytest.raises(ValueError, match=r"258 has 2 membrane annotations .*`etsam prepare`"):
        find_pairings([tmp_path / "masks"], [fetched])


def test_masks_of_the_portals_runs_are_scored_by_their_folders(tmp_path: Path, run: Run) -> None:
    for name in ("TS_026", "TS_027"):
        place = tmp_path / "data" / "10000" / name / "Reconstructions" / "VoxelSpacing13.480"
        for part in ("Tomograms/100", "Annotations/100", "Annotations/101"):
            (place / part).mkdir(parents=True)
        write_mrc(place / "Tomograms" / "100" / f"{name}.mrc", LABELS.astype(np.float32), 13.48)
        truth = write_mrc(
            place / "Annotations" / "100" / "membrane-1.0_segmentationmask.mrc", LABELS, 13.48
        )
        write_mrc(truth.parents[1] / "101" / "ribosome-1.0_segmentationmask.mrc", LABELS, 13.48)
    data, masks = tmp_path / "data", tmp_path / "masks"
    masks.mkdir()
    for mask in choose_masks(find_tomograms([data]), masks, copick=False).values():
        write_mrc(mask, (LABELS > 0).astype(np.int8), 13.48)
    table = tmp_path / "scores.csv"
    code, _, err = run("evaluate", masks, "-t", data, "-o", table)
    assert code == 0 and "warning" not in err, err
    rows = [row for row in read_table(table) if row.metric == "dice"]
    assert [row.tomogram for row in rows] == [("10000", "TS_026"), ("10000", "TS_027")]
    assert {row.value for row in rows} == {1.0}
    (pair,) = find_pairings([next(masks.glob("TS_027*"))], [data / "10000" / "TS_027"])
    assert (pair.truth, pair.dataset, pair.run) == (truth, "10000", "TS_027")
    write_mrc(truth.with_name("inner_membrane-1.0_segmentationmask.mrc"), LABELS, 13.48)
    assert run_of_mask(truth) is None
    code, _, err = run("evaluate", masks, "-t", data)
    assert code == 1
    assert_one_line(err, "VoxelSpacing13.480 has 2 membrane annotations", "`etsam prepare`")

"""What there is to fetch: the sets of the paper, runs and DOIs, chosen files, names from servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_servers import DATAVERSE_DOI, RECORD, ZENODO_DOI, DataServers, options
from etsam.download import download
from etsam.fetch import RemoteFile
from etsam.listing import Item, check_names, list_items
from etsam.published import SETS, PublishedRun, find_runs
from etsam.repositories import doi_of


def test_the_sets_are_what_the_paper_names(shared: Path) -> None:
    assert {name: len(item.runs()) for name, item in SETS.items()} == {
        "train": 83,
        "test": 10,
        "test-17": 17,
        "unseen": 5,
    }
    lines = (shared / "train_runs.csv").read_text().splitlines()[1:]
    wanted = {tuple(line.split(",")[:3]) for line in lines}
    runs = SETS["train"].runs()
    assert {(r.dataset, r.run, "|".join(map(str, r.annotations))) for r in runs} == wanted
    assert len({run.dataset for run in runs}) == 25
    assert all(run.voxel_spacing and run.shape and run.truth == "portal" for run in runs)
    scored = (shared / "paper" / "published_scores.csv").read_text().splitlines()[1:]
    assert {run.name for run in SETS["test"].runs()} == {
        "/".join(line.split(",")[:2]) for line in scored
    }
    every = [run.name for name in ("train", "test-17", "unseen") for run in SETS[name].runs()]
    assert len(every) == len(set(every)) == 105  # nothing of one set is in another


def test_names_of_runs_and_dois() -> None:
    assert find_runs("10444/16674")[0].annotations == (32927,)
    assert find_runs("cdp:7/8") == [PublishedRun("cdp", "7", "8")]
    for bad in ("tests", "10000", "emdb/4603/x", "../../x", ""):
        with pytest.raises(ValueError, match="is no data: expected train, test"):
            find_runs(bad)
    for text in (DATAVERSE_DOI, f"doi:{DATAVERSE_DOI}", f"https://doi.org/{DATAVERSE_DOI}"):
        assert doi_of(text) == DATAVERSE_DOI
    assert doi_of("10000/245") is None


def test_the_tomogram_is_the_one_of_the_set_or_the_one_with_masks(server: DataServers) -> None:
    server.add_tomogram(16674, "10444/TS_9/binned", b"binned", 1, 9.98)
    server.add_tomogram(245, "10000/TS_026/binned", b"binned", 2, 20.0)
    items = list_items(["10444/16674", "10000/245"], options(server, masks="portal").selection)
    names = [item.name for item in items if "/tomogram/" in item.name]
    assert names == ["10000/245/tomogram/TS_026.mrc", "10444/16674/tomogram/TS_9.mrc"]


def test_masks_count_as_truth_or_are_recommended_or_all(server: DataServers) -> None:
    server.add_run(1, 2, "R", tomogram=b"t", a7=b"x", a8=b"y", a9=b"z")
    annotations = {item["id"]: item for item in server.portal["annotations"]}

    def masks() -> list[str]:
        items = list_items(["1/2"], options(server).selection)
        return [item.name.split("/")[-1].split("_")[0] for item in items if "mask" in item.name]

    assert masks() == ["7", "8", "9"]
    annotations[8]["isCuratorRecommended"] = True
    assert masks() == ["8"]
    annotations[9]["groundTruthStatus"] = True
    assert masks() == ["9"]
    annotations[9]["objectName"] = "ribosome"
    assert masks() == ["8"]


def test_a_converted_table_is_taken_as_uploaded(server: DataServers, tmp_path: Path) -> None:
    server.add_dataverse(
        "list.tab",
        b"a,b\n",
        originalFileFormat="text/csv",
        originalFileName="list.csv",
        originalFileSize=4,
        filesize=9,
    )
    chosen = options(server, match=("list*",))
    (item,) = list_items([DATAVERSE_DOI], chosen.selection)
    assert item.parts[0].url.endswith("?format=original")
    assert item.parts[0].checksum is None
    (outcome,) = download([DATAVERSE_DOI], tmp_path, chosen)
    assert outcome.error is None
    assert (tmp_path / "list.csv").read_bytes() == b"a,b\n"


HOSTILE = [
    "../evil", "a/../../evil", "/etc/evil", "a\\..\\evil", "C:/evil", "", ".", "a//b", "a/./b",
    "a\nb",
]  # fmt: skip
LEADS_OUT, OURS = "could lead out", "named while they are fetched: leave it out with --match"
REASONS = dict.fromkeys(HOSTILE, LEADS_OUT) | {"x.mrc.partial": OURS, "x.partial/y": OURS}


@pytest.mark.parametrize("name", REASONS)
def test_names_that_lead_out_are_refused(server: DataServers, tmp_path: Path, name: str) -> None:
    server.zenodo[RECORD] = {name: b"evil"}
    with pytest.raises(ValueError, match=REASONS[name]):
        list(download([ZENODO_DOI], tmp_path / "out", options(server)))
    server.dataverse[0] |= {"directoryLabel": "..", "label": "evil"}
    with pytest.raises(ValueError, match="could lead out of the folder"):
        list(download([DATAVERSE_DOI], tmp_path / "out", options(server)))
    assert [
        path for path in tmp_path.rglob("*") if path.is_file() and "lock" not in path.name
    ] == []
    with pytest.raises(ValueError, match=REASONS[name]):
        check_names([Item("a.zarr", (RemoteFile("http://x", "ok"), RemoteFile("http://x", name)))])


@pytest.mark.parametrize(
    "name",
    [
        "ab:c",
        "a?.mrc",
        "a*",
        'a"',
        "<a",
        "a>",
        "a|b",
        "a.",
        "a /b",
        "d./a",
        "NUL",
        "con.mrc",
        "d/Com1 .x/a",
        "lpt³",
    ],
)
def test_names_that_windows_keeps_are_refused_there(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    kept = [Item(name, (RemoteFile("http://x", ""),))]
    others = ["console.mrc", "a.nul", "com10", "d/.a b.mrc", "com"]
    check_names(kept)
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(ValueError, match="which Windows does not allow: leave it out with --match"):
        check_names(kept)
    check_names([Item(other, (RemoteFile("http://x", ""),)) for other in others])

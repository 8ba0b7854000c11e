"""The page of a tomogram: what it holds, what it says, and that it runs in a browser without a network."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import mrcfile
import numpy as np
import pytest
from PIL import Image

from etsam.membrane import Membrane, load_membrane
from etsam.report import ReportOptions, report_file, write_index
from etsam.report.numbers import measure
from etsam.report.pack import pack_volume
from etsam.report.page import PageSource, page_html
from etsam.report.recorded import read_recorded
from etsam.volume import open_tomogram, tomogram_from_array

pytest.importorskip("fast_simplification")

SHAPE = (24, 48, 56)
SPACING = 10.0


def shell(shape: tuple[int, int, int] = SHAPE, radius: float = 15.0) -> np.ndarray:
    """Logits of a spherical membrane that the top and bottom of the volume cut, 5 voxels thick."""
    axes = [np.arange(side) - side / 2 + 0.5 for side in shape]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return (2.5 - np.abs(np.sqrt(z**2 + y**2 + x**2) - radius)).astype(np.float32)


def write(path: Path, data: np.ndarray) -> Path:
    with mrcfile.new(path) as mrc:
        mrc.set_data(data)
        mrc.voxel_size = SPACING
        mrc.header.origin = (300.0, 200.0, 100.0)
    return path


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    logits = shell()
    noise = np.random.default_rng(0).normal(0, 1, SHAPE)
    write(folder / "a&b.mrc", (noise - 2 * (logits > -0.25)).astype(np.float32))
    write(folder / "a&b_membrane_logits.mrc", logits)
    recorded = {"etsam": "0", "parameters": {"logit_threshold": -0.25}, "note": "</script><b>"}
    (folder / "a&b_membrane.json").write_text(json.dumps(recorded))
    report_file(folder / "a&b.mrc")
    return folder


@pytest.fixture(scope="module")
def page(segmented: Path) -> str:
    return (segmented / "a&b_report.html").read_text(encoding="utf-8")


def script(page: str, name: str) -> dict:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


def test_page_is_one_file_without_addresses(page: str) -> None:
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page)
    assert not re.findall(r"https?://", page)
    assert "default-src 'none'" in page
    assert "a&amp;b.mrc" in page and "</script><b>" not in page


def test_levels_give_back_the_mask(page: str) -> None:
    meta = script(page, "meta")
    mask = shell() > -0.25
    assert meta["shape"] == list(SHAPE) and meta["above"][64] == mask.sum()
    for z in range(SHAPE[0]):
        texts = re.search(rf'id="s{z}">([^|]*)\|([^<]*)<', page)
        assert texts is not None
        grey, level = (
            np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("L"))
            for text in texts.groups()
        )
        assert grey.shape == SHAPE[1:]
        np.testing.assert_array_equal(level > 64, mask[z])
        np.testing.assert_array_equal(level > 68, shell()[z] >= -0.25 + 5 * meta["levelStep"])


def test_mesh_lies_in_the_box(page: str) -> None:
    meta, mesh = script(page, "meta"), script(page, "mesh")
    np.testing.assert_allclose(meta["box"][0], [300, 200, 100])
    np.testing.assert_allclose(meta["box"][1], [300 + 550, 200 + 470, 100 + 230])
    assert (np.array(mesh["low"]) >= np.array(meta["box"][0]) - SPACING).all()
    assert mesh["count"][1] > 1000


def test_numbers_are_those_of_the_shell(segmented: Path) -> None:
    membrane = load_membrane(segmented / "a&b_membrane_logits.mrc")
    with open_tomogram(segmented / "a&b.mrc") as tomogram:
        measured = measure(membrane, tomogram)
    height = SHAPE[0] * SPACING  # of the zone of the sphere that is inside
    zone = 2 * math.pi * 15 * SPACING * height / 1e8
    assert measured.rows["membrane_area_um2"] == pytest.approx(zone, rel=0.08)
    assert measured.rows["thickness_nm"] == pytest.approx(5.5, abs=0.3)
    assert measured.rows["membranes"] == 1
    assert measured.rows["membrane_volume_um3"] == pytest.approx(membrane.mask.sum() * 1e3 / 1e12)
    assert measured.membranes[0]["slices"] == [0, SHAPE[0] - 1]


def flags(mask: np.ndarray, grey: np.ndarray | None = None) -> set[str]:
    from etsam.frame import Frame

    membrane = Membrane(mask, None, Frame(mask.shape, (SPACING,) * 3))
    data = np.zeros(mask.shape, np.float32) if grey is None else grey
    return {flag.name for flag in measure(membrane, tomogram_from_array(data)).flags}


def test_flags() -> None:
    whole = shell((44, 48, 56)) > -0.25
    assert flags(np.zeros(SHAPE, bool)) == {"empty"}
    assert flags(whole) == set()
    assert flags(whole[:, :, 12:]) == {"touches border"}
    specks = whole.copy()
    specks[2:-2:6, 2:-2:6, 2:-2:6] = True
    assert "noisy" in flags(specks)
    noise = np.random.default_rng(1).normal(0, 1, whole.shape).astype(np.float32)
    assert "bright membranes" in flags(whole, noise + 2 * whole)
    assert "bright membranes" not in flags(whole, noise - 2 * whole)
    slab = np.zeros_like(whole)
    slab[-2:, 8:40, 8:40] = True
    assert "top of volume" in flags(whole | slab)


def test_a_mask_without_a_surface_has_no_area_rather_than_none_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from etsam.frame import Frame

    grey = tomogram_from_array(np.zeros((44, 48, 56), np.float32))
    whole, speck = shell(grey.shape) > -0.25, np.zeros(grey.shape, bool)
    speck[20, 20, 20] = True
    monkeypatch.setattr("etsam.report.numbers.PAGE_FACES", 100)
    monkeypatch.setitem(sys.modules, "fast_simplification", None)
    for mask, reason in ((speck, "too small to be smoothed."), (whole, '"etsam[export]".')):
        membrane = Membrane(mask, None, Frame(mask.shape, (SPACING,) * 3))
        measured = measure(membrane, grey)
        assert measured.mesh is None and measured.rows["membrane_area_um2"] is None
        assert {row["area_um2"] for row in measured.membranes} <= {None}
        (flag,) = (flag for flag in measured.flags if flag.name == "no surface")
        assert flag.text.startswith("No 3-D view, and no area: ") and flag.text.endswith(reason)
        source = PageSource("a", membrane.frame, 0.0, False, None)
        page = page_html(source, measured, pack_volume(grey, membrane), None)
        assert '<th scope="row">membrane area</th><td>unknown</td>' in page


def test_large_tomograms_are_binned_into_the_budget() -> None:
    rng = np.random.default_rng(2)
    grey = rng.normal(0, 1, (4, 700, 650)).astype(np.float32)
    from etsam.frame import Frame

    field = np.clip(np.rint(rng.normal(-10, 20, grey.shape)), -127, 127).astype(np.int8)
    membrane = Membrane(field > 0, field, Frame(grey.shape, (SPACING,) * 3))
    packed = pack_volume(tomogram_from_array(grey), membrane, budget=150_000)
    assert packed.binning == (1, 2, 2) and packed.shape == (4, 350, 325)
    assert sum(len(text) for text in packed.grey) * 3 / 4 < 150_000
    assert packed.above[64] == membrane.mask.sum()


def test_masks_without_logits_and_an_index(segmented: Path, tmp_path: Path, run) -> None:
    for name in ("one", "two"):
        write(tmp_path / f"{name}.mrc", shell())
        write(tmp_path / f"{name}_membrane.mrc", (shell() > 0).astype(np.int8))
    code, out, err = run("report", tmp_path / "one.mrc", tmp_path / "two.mrc")
    assert code == 0, err
    assert [Path(line).name for line in out.split()] == [
        "one_report.html",
        "two_report.html",
        "index.html",
    ]
    index = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert index.count("<tr>") == 3 and 'href="two_report.html"' in index
    assert not script((tmp_path / "one_report.html").read_text(encoding="utf-8"), "meta")["logits"]
    code, _, err = run("report", tmp_path / "one.mrc")
    assert code == 1 and "--overwrite" in err


DAMAGED = {
    "not json": "not JSON",
    "[" * 100_000: "not JSON",
    '{"a":' * 100_000 + "1" + "}" * 100_000: "not JSON",
    "[]": "expected an object",
    '{"parameters": [1]}': "`parameters`",
    '{"parameters": {"logit_threshold": [1]}}': "`logit_threshold`",
    '{"parameters": {"logit_threshold": NaN}}': "`logit_threshold`",
    '{"parameters": {"logit_threshold": 1e999}}': "`logit_threshold`",
    '{"weights": [1]}': "`weights`",
    '{"weights": 5}': "`weights`",
}


@pytest.mark.parametrize("text", DAMAGED, ids=lambda text: text[:40])
def test_a_damaged_json_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "one_membrane.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"one_membrane.json is .*{DAMAGED[text]}"):
        read_recorded(path)


def test_a_damaged_json_costs_one_page(tmp_path: Path, run) -> None:
    for name in ("one", "two"):
        write(tmp_path / f"{name}.mrc", shell())
        write(tmp_path / f"{name}_membrane.mrc", (shell() > 0).astype(np.int8))
    (tmp_path / "one_membrane.json").write_text('{"weights": [1]}')
    code, out, err = run("report", tmp_path / "one.mrc", tmp_path / "two.mrc")
    assert code == 1
    assert out.split() == [f"{tmp_path}/two_report.html", f"{tmp_path}/index.html"]
    assert [line for line in err.split("\n") if line.startswith("etsam: error: ")] == [
        line for line in err.split("\n") if "one_membrane.json is damaged: `weights`" in line
    ]


def test_what_a_json_does_not_know_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "one.mrc", shell())
    write(tmp_path / "one_membrane.mrc", (shell() > 0).astype(np.int8))
    for number, parameters in enumerate((None, {"logit_threshold": None})):
        recorded = {"parameters": parameters, "weights": [{"name": "a"}], "seconds": math.inf}
        (tmp_path / "one_membrane.json").write_text(json.dumps(recorded))
        report_file(tmp_path / "one.mrc", ReportOptions(output=tmp_path / str(number)))


def test_logits_of_another_run_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "one.mrc", shell())
    write(tmp_path / "one_membrane.mrc", (shell() > 1).astype(np.int8))
    write(tmp_path / "one_membrane_logits.mrc", shell())
    for stored in (True, False):
        recorded = {"parameters": {"store_logits": stored}}
        (tmp_path / "one_membrane.json").write_text(json.dumps(recorded))
        options = ReportOptions(overwrite=True)
        if stored:
            row = report_file(tmp_path / "one.mrc", options)
        else:
            with pytest.warns(UserWarning, match="one_membrane_logits.mrc is of another run"):
                row = report_file(tmp_path / "one.mrc", options)
        meta = script((tmp_path / row.page).read_text(encoding="utf-8"), "meta")
        assert meta["logits"] == stored
        assert meta["above"][64] == (shell() > (-0.25 if stored else 1)).sum()


@pytest.mark.parametrize("spacing", [(20.0, 20.0, 20.0), (1.0, 1.0, 1.0)], ids=["other", "unknown"])
def test_the_tomogram_says_how_large_voxels_are(
    tmp_path: Path, spacing: tuple[float, float, float]
) -> None:
    path = write(tmp_path / "one.mrc", shell())
    mask = write(tmp_path / "one_membrane.mrc", (shell() > 0).astype(np.int8))
    for name, size in ((path, (10.0, 10.0, 20.0)), (mask, spacing)):  # x, y, z
        with mrcfile.open(name, "r+") as mrc:
            mrc.voxel_size = size
    told = pytest.warns(UserWarning, match="20 x 20 x 20 Å, the tomogram 20 x 10 x 10 Å")
    with told if spacing[0] > 1 else contextlib.nullcontext():
        row = report_file(path)
    volume = (shell() > 0).sum() * 2000 / 1e12
    assert row.numbers["membrane_volume_um3"] == pytest.approx(volume)


def test_refusals(segmented: Path, tmp_path: Path) -> None:
    write(tmp_path / "bare.mrc", shell())
    with pytest.raises(FileNotFoundError, match="etsam segment"):
        report_file(tmp_path / "bare.mrc")
    write(tmp_path / "bare_membrane.mrc", np.zeros((8, 8, 8), np.int8))
    with pytest.raises(ValueError) as error:  # as `etsam export` says it
        report_file(tmp_path / "bare.mrc")
    assert str(error.value) == (
        f"{tmp_path / 'bare_membrane.mrc'} has shape (8, 8, 8), {tmp_path / 'bare.mrc'} {SHAPE}: "
        "they do not belong together"
    )
    assert not list(tmp_path.glob("*.html*"))


def segmented_as(path: Path) -> Path:
    """A tomogram with a mask beside it."""
    path.parent.mkdir(exist_ok=True)
    write(path.with_name(f"{path.stem}_membrane.mrc"), (shell() > 0).astype(np.int8))
    return write(path, shell())


def test_links_of_an_index_lead_to_the_pages(tmp_path: Path, run) -> None:
    names = ("a/one.mrc", "b/two.mrc", "b/what? #3 50%.mrc", "a/c:d.mrc")
    code, _, err = run("report", *(segmented_as(tmp_path / name) for name in names))
    assert code == 0, err
    index = tmp_path / "a" / "index.html"
    links = re.findall(r'href="(?!data:)([^"]*)"', index.read_text(encoding="utf-8"))
    assert len(links) == 4
    for link, name in zip(links, names, strict=True):
        address = urlsplit(urljoin(index.as_uri(), link))
        assert not address.query and not address.fragment
        page = tmp_path / name.replace(".mrc", "_report.html")
        assert page.is_file() and Path(unquote(address.path)) == page


def test_an_index_that_is_there_is_kept(tmp_path: Path, run) -> None:
    paths = [segmented_as(tmp_path / f"{name}.mrc") for name in "abcd"]
    index = tmp_path / "index.html"
    index.write_text("precious")
    code, out, err = run("report", *paths[:2], "--overwrite")
    assert (code, out) == (1, "") and err.count("\n") == 1 and "no index of ours" in err
    assert index.read_text() == "precious"
    index.unlink()
    assert run("report", *paths[:2])[0] == 0
    first = index.read_bytes()
    code, out, err = run("report", *paths[2:])
    assert (code, out) == (1, "") and "index.html is there already: give --overwrite" in err
    assert index.read_bytes() == first
    assert run("report", *paths[2:], "--overwrite")[0] == 0
    assert b"c_report.html" in index.read_bytes()


def test_an_index_leads_to_a_page_that_was_there(tmp_path: Path, run) -> None:
    paths = [segmented_as(tmp_path / f"{name}.mrc") for name in "ab"]
    assert run("report", paths[0])[0] == 0
    before = (tmp_path / "a_report.html").read_bytes()
    code, out, err = run("report", *paths)
    assert code == 1 and "a_report.html is there already" in err
    assert [Path(line).name for line in out.split()] == ["b_report.html", "index.html"]
    assert (tmp_path / "a_report.html").read_bytes() == before
    index = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'href="a_report.html"' in index and 'href="b_report.html"' in index
    assert index.count('<img class="thumb"') == 1 and index.count("page of before") == 1


def test_index_of_nothing_is_a_page(tmp_path: Path) -> None:
    assert "0 tomograms" in write_index([], tmp_path).read_text(encoding="utf-8")


def test_options_name_the_page(segmented: Path, tmp_path: Path) -> None:
    row = report_file(
        segmented / "a&b.mrc", ReportOptions(output=tmp_path, threshold=0.5, results=segmented)
    )
    page = (tmp_path / row.page).read_text(encoding="utf-8")
    assert script(page, "meta")["threshold"] == 0.5
    assert script(page, "meta")["above"][64] == (shell() > 0.5).sum()


def contrast(one: str, other: str) -> float:
    """Contrast of two colours (WCAG 2.2), from 1 to 21."""
    light = []
    for colour in (one, other):
        digits = colour.lstrip("#")
        digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)
    return max(light) / min(light)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_stands_out(page: str, scheme: int) -> None:
    blocks = re.findall(r":root\{([^}]*--warnbg[^}]*)\}", page)
    colours = dict(re.findall(r"--(\w+):(#\w+)", blocks[scheme]))
    for ink in ("ink", "mute", "accent"):
        for ground in ("paper", "soft"):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
    assert contrast(colours["warn"], colours["warnbg"]) >= 4.5


def test_page_runs_in_a_browser(segmented: Path, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--use-gl=angle",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=600000",
        "--dump-dom",
    ]
    page = (segmented / "a&b_report.html").as_uri()
    done = subprocess.run(
        [chromium, *options, page], capture_output=True, text=True, timeout=900, check=True
    )
    assert 'data-loaded="all"' in done.stdout
    assert re.search(r'data-surface="\d{4,}"', done.stdout)
    voxels = f"{(shell() > -0.25).sum():,} voxels above the threshold"
    assert voxels in done.stdout

"""The command line: help, exit codes, and one line for every expected error."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import mrcfile
import numpy as np
import pytest

from etsam import __version__, cli
from etsam.cli import command, progress

Run = Callable[..., tuple[int, str, str]]


def write_mrc(path: Path, data: np.ndarray, voxel_spacing: float = 10.0) -> Path:
    with mrcfile.new(path) as mrc:
        mrc.set_data(data)
        mrc.voxel_size = voxel_spacing
    return path


def assert_one_line(err: str, *parts: str) -> None:
    assert err.startswith("etsam: error: "), err
    assert err.count("\n") == 1, err
    for part in parts:
        assert part in err


def test_help_and_version(run: Run) -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    verbs = ["segment", "postprocess", "simulate", "train", "weights"]
    places = [out.index(f"\n  {verb} ") for verb in verbs]
    assert places == sorted(places)
    assert run()[:2] == (0, out)
    assert run("--version")[1] == f"etsam, version {__version__}\n"
    module = subprocess.run([sys.executable, "-m", "etsam", "--version"], capture_output=True)
    assert module.stdout.decode().split() == ["etsam,", "version", __version__]
    for verb in verbs:
        assert run(verb, "--help")[0] == 0


@pytest.mark.parametrize(
    "args",
    [
        ("frobnicate",),
        ("--frobnicate",),
        ("segment",),
        ("segment", "a.mrc", "--sample"),
        ("segment", "a.mrc", "--logit-threshold", "high"),
        ("segment", "a.mrc", "--logit-threshold", "1e300"),
        ("report", "a.mrc", "--logit-threshold", "-1e300"),
        ("export", "a.mrc", "--as", "points", "--point-spacing", "1e300"),
        ("baseline", "a.mrc", "--threshold", "1e39"),
        ("segment", "a.mrc", "--stage1-prompt", "etsam_stage1_partial"),
        ("segment", "a.mrc", "--normalize-method", "none"),
        ("segment", "a.mrc", "--interval", "0"),
        ("segment", "a.mrc", "--dtype", "int8"),
        ("postprocess",),
        ("postprocess", "a.mrc", "--max-rung", "-1"),
        ("segment", "a.mrc", "--shard", "0/3"),
        ("segment", "a.mrc", "--shard", "one"),
        ("segment", "a.mrc", "-o", "out.tif"),
        ("segment", "a.mrc", "-o", ""),
        ("postprocess", "a.mrc", "-o", ""),
        ("postprocess", "a.mrc", "-o", "out.png"),
        ("postprocess", "a.mrc", "-o", "/dev/null"),
        ("export", "a.mrc", "--output", ""),
        ("simulate", ""),
        ("train", "", "-o", "run"),
        ("train", "data"),
        ("weights", "fetch"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(run: Run, args: tuple[str, ...]) -> None:
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert_one_line(err)


@pytest.mark.parametrize("name", ["one.mrc", "one.mrc.gz", "ONE.REC.bz2", "one.ome.zarr"])
@pytest.mark.parametrize("verb", ["segment", "postprocess"])
def test_several_inputs_are_not_written_into_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(verb, "a.mrc", "b.mrc", "-o", name)
    assert (code, out) == (2, "")
    assert_one_line(err, f"--output {name} is not a folder: 2 inputs need one")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("group", "verb"), [("weights", "fetch"), ("figures", "scores")])
def test_a_group_alone_shows_its_help(run: Run, group: str, verb: str) -> None:
    code, out, err = run(group)
    assert (code, out) == (2, "")
    assert err == run(group, "--help")[1] and f"\n  {verb} " in err


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (("simulate", "out", "--seeds", "a:b"), "expected a number, or FIRST:LAST"),
        (("simulate", "out", "--shape", "64,64"), "three whole numbers Z,Y,X"),
        (
            ("simulate", "out", "--shape", f"64,64,{'9' * 5000}"),
            "...': expected three whole numbers",
        ),
        (("weights", "fetch", "nonesuch"), "expected one of compact, etsam-v1, sam2.1-tiny"),
        (("weights", "where", "nonesuch"), "expected one of compact, etsam-v1"),
        (("postprocess", "absent.mrc"), "absent.mrc"),
        (("train", "absent", "-o", "run"), "absent"),
        (("prepare", "a", "-o", "out", "--smooth", "1e-300"), "expected 0 (off), or 0.1 or more"),
        (("simulate", "out", "--contrast-to-noise", "1e-300"), "expected 0.001 to 1000"),
    ],
)
def test_wrong_values_are_one_line_and_exit_1(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*args)
    assert (code, out) == (1, "")
    assert_one_line(err, part)
    assert not list(tmp_path.rglob("*.mrc"))


def test_shapes_are_of_the_suite(run: Run, tmp_path: Path) -> None:
    code, out, err = run("simulate", tmp_path / "out", "--shapes", tmp_path)
    assert (code, out) == (2, "")
    assert_one_line(err, "give --suite too, or leave them out")
    assert not list(tmp_path.iterdir())


def test_weights_are_listed_and_located(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ETSAM_CACHE", str(tmp_path))
    listed = run("weights", "list")[1]
    assert "compact  (" in listed
    assert "etsam-v1  (not here)" in listed
    assert "sam2.1-tiny  (not here)" in listed
    assert run("weights", "where")[1] == f"{tmp_path}\n"
    folder = Path(run("weights", "where", "sam2.1-tiny")[1].rstrip("\n"))
    folder.mkdir()
    (folder / "sam2.1_hiera_tiny.pt").touch()
    listed = run("weights", "list")[1]
    assert "sam2.1-tiny  (here)" in listed and "sam2.1-small  (not here)" in listed
    assert run("weights", "where", "etsam-v1")[1] == f"{tmp_path / 'etsam-v1'}\n"


def test_postprocess_goes_on_after_a_failure(run: Run, tmp_path: Path) -> None:
    mask = np.zeros((14, 20, 20), np.int8)
    mask[1:13, 4:7] = 1
    mask[2, 15, 15] = 1
    good = write_mrc(tmp_path / "good_membrane.mrc", mask)
    code, out, err = run("postprocess", tmp_path / "absent.mrc", good)
    assert code == 1
    result = Path(out.strip())
    assert result == tmp_path / "good_membrane_postprocessed.mrc"
    with mrcfile.open(result) as mrc:
        assert mrc.data.sum() == mask.sum() - 1
    errors = [line for line in err.splitlines() if line.startswith("etsam: error")]
    assert len(errors) == 1
    assert "absent.mrc" in errors[0]
    code, out, err = run("postprocess", good)
    assert (code, out) == (1, "")
    assert "good_membrane_postprocessed.mrc" in err
    assert run("postprocess", good, "--overwrite")[0] == 0
    folder = tmp_path / "new" / "cleaned"
    assert run("postprocess", good, "-o", folder)[1] == f"{folder / result.name}\n"


def test_simulate_writes_pairs(run: Run, tmp_path: Path) -> None:
    code, out, err = run("simulate", tmp_path, "--seeds", "3:4", "--shape", "16,32,32")
    assert (code, err) == (0, "")
    tomogram = Path(out.strip())
    assert tomogram == tmp_path / "sim_000003.mrc"
    with mrcfile.open(tomogram) as grey, mrcfile.open(tmp_path / "sim_000003_membrane.mrc") as mask:
        assert grey.data.shape == mask.data.shape == (16, 32, 32)
        assert set(np.unique(mask.data)) <= {-1, 0, 1}


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (FileNotFoundError(2, "No such file or directory", "a.mrc"), "a.mrc: No such file"),
        (PermissionError(13, "Permission denied", "out"), "out: Permission denied"),
        (FileNotFoundError(2, "No such file", "no/.y.mrc.0a24b5c6.partial"), "no/y.mrc: No such"),
        (NotADirectoryError(20, "Not a directory", "f/.t.mrc.partial"), "f/t.mrc: Not a dir"),
        (OSError(28, "No space left", "f/.t.mrc.partial/stage1.f32"), "f/t.mrc: No space"),
        (OSError(27, "File too large"), "File too large"),
        (OSError("plain words"), "plain words"),
        (MemoryError(), "not enough memory"),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates"), "a name that is no Unicode"),
        (MemoryError("4 GiB"), "not enough memory: 4 GiB"),
        (ValueError(), "ValueError"),
    ],
)
def test_an_error_becomes_one_line(error: Exception, line: str) -> None:
    text = command.one_line(error)
    assert text.startswith(line)
    assert "\n" not in text
    assert "Errno" not in text


def test_interruption_is_one_line_and_exit_130(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("etsam.postprocess.postprocess", interrupt)
    code, _, err = run("postprocess", tmp_path / "a.mrc")
    assert code == 130
    assert_one_line(err, "interrupted")


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: object, **options: object) -> None:
        raise KeyError("bug")

    monkeypatch.setattr("etsam.postprocess.postprocess", fail)
    with pytest.raises(KeyError, match="bug"):
        cli.main(["postprocess", str(tmp_path / "a.mrc")])


def test_progress_without_a_terminal_is_a_line_per_stage() -> None:
    stream = io.StringIO()
    with progress.StageProgress(stream=stream) as bar:
        for z in range(3):
            bar.message((z + 1) / 6, f"stage 1 of 2: slice {z + 1} of 3")
        bar.message(0.5, "fetch etsam_stage1_v1.pt")
    assert stream.getvalue().startswith("stage 1 of 2: 3 slices in 0.")
    assert stream.getvalue().count("\n") == 1


def test_progress_tells_no_rate_of_what_was_there_before() -> None:
    stream = io.StringIO()
    with progress.StageProgress("MB", stream) as bar:
        bar("fetch", 4, 8)
        bar("fetch", 8, 8)
    assert stream.getvalue() == "fetch: 8 MB in 0.0 s\n"


class Terminal(io.StringIO):
    """What says that it is a terminal; its width is in COLUMNS."""

    def isatty(self) -> bool:
        return True


def test_progress_in_a_terminal_shows_rate_and_remaining_time() -> None:
    stream = Terminal()
    with progress.StageProgress(stream=stream) as bar:
        bar("stage 1", 1, 4)
        bar("stage 1", 2, 4)
    assert "stage 1" in stream.getvalue()
    assert "slices/s" in stream.getvalue()
    assert "2/4" in stream.getvalue()


def test_bars_of_stages_that_are_over_are_full() -> None:
    stream = Terminal()
    with progress.StageProgress(stream=stream) as bar:
        bar.fraction(0, "dark or bright membranes?")
        bar("stage 1", 1, 4)
    dark, stage, _ = stream.getvalue().splitlines()[-3:]
    assert "100/100" in dark and "1/4" in stage


def test_a_narrow_terminal_keeps_count_and_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    with progress.StageProgress(stream=stream) as bar:
        bar.fraction(0, "dark or bright membranes?")
        bar("stage 1 of 2", 0, 1200)
        bar("stage 1 of 2", 617, 1200)
    shown = re.sub(r"\x1b\[\S*?[a-zA-Z]", "", stream.getvalue())
    assert re.search(r"stage 1 of 2 +617/1200 left -:--:--", shown)
    assert "…" not in shown and max(map(len, shown.splitlines())) <= 40


def test_slow_progress_is_in_seconds_a_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 64.2])
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    stream = io.StringIO()
    with progress.StageProgress("tomograms", stream) as bar:
        bar("batch", 0, 3)
        bar("batch", 3, 3)
    assert stream.getvalue() == "batch: 3 tomograms in 64.2 s, 21.4 s/tomogram\n"


@pytest.mark.parametrize("verb", ["postprocess", "export", "report", "baseline"])
def test_two_inputs_of_one_name_do_not_go_into_one_folder(
    run: Run, tmp_path: Path, verb: str
) -> None:
    masks = [tmp_path / folder / "m.mrc" for folder in ("a", "b")]
    for mask in masks:
        mask.parent.mkdir()
        write_mrc(mask, np.zeros((8, 16, 16), np.int8))
    code, out, err = run(verb, *masks, "-o", tmp_path / "out", "--overwrite")
    assert (code, out) == (1, "") and not (tmp_path / "out").exists()
    assert_one_line(err, str(masks[0]), str(masks[1]), "would both become", "--output")
    for outs in ([], ["-o", tmp_path / "out"]):
        _, out, err = run(
            verb, masks[0], masks[0].parent / ".." / "a" / "m.mrc", "--overwrite", *outs
        )
        assert "would both become" not in err
        assert err.count(str(masks[0])) + out.count("\n") == 1  # one result or one failure


@pytest.mark.parametrize(
    "args",
    [
        ("postprocess", "bad.mrc", "none.mrc"),
        ("baseline", "bad.mrc", "none.mrc"),
        ("export", "bad.mrc", "none.mrc"),
        ("export", "mask.mrc", "--as", "points", "--point-spacing", "1"),
        ("report", "bad.mrc", "none.mrc"),
        ("simulate", "--shape", "1,2,3"),
    ],
    ids=lambda args: args[0],
)
def test_bad_input_leaves_no_folder(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_mrc(tmp_path / "mask.mrc", np.ones((8, 16, 16), np.int8))
    (tmp_path / "bad.mrc").write_bytes(b"no volume")
    place = ("out",) if args[0] == "simulate" else ("-o", "out")
    code, out, err = run(*args, *place)
    assert (code, out) == (1, "") and "etsam: error: " in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["segment", "postprocess", "baseline"])
def test_an_mrc_and_a_zarr_of_one_name_do_not_share_a_json(
    run: Run, tmp_path: Path, verb: str
) -> None:
    mrc = write_mrc(tmp_path / "m.mrc", np.zeros((8, 16, 16), np.int8))
    (tmp_path / "m.zarr").mkdir()  # refused by its name already
    code, out, err = run(verb, mrc, tmp_path / "m.zarr", "-o", tmp_path / "out", "--overwrite")
    assert (code, out) == (1, "") and not list(tmp_path.glob("out/*"))
    assert_one_line(err, "m.mrc and", "m.zarr would both become", ".json")

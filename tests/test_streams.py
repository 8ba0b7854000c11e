"""Messages that nobody reads, that have no room or characters that their encoding has not, end no run."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from etsam import __main__
from etsam.cli.streams import PatientFile
from test_cli import write_mrc

CODE = "from etsam.__main__ import main; main()"


@pytest.fixture
def masks(tmp_path: Path) -> list[Path]:
    mask = np.ones((12, 8, 8), np.int8)
    return [write_mrc(tmp_path / f"{name}_membrane.mrc", mask) for name in "abcd"]


def clean(masks: list[Path], redirection: str) -> subprocess.CompletedProcess[str]:
    """Post-process masks with the streams where a shell's redirection sends them."""
    run = ["sh", "-c", f'"$@" {redirection}', "sh", sys.executable, "-c", CODE, "postprocess"]
    return subprocess.run([*run, *map(str, masks)], capture_output=True, text=True)


def made(masks: list[Path]) -> list[bool]:
    return [mask.with_name(f"{mask.stem}_postprocessed.mrc").is_file() for mask in masks]


@pytest.mark.parametrize("redirection", ["2>&-", ">&-", "2>/dev/full", ">&- 2>&-", "| head -c 1"])
def test_a_run_goes_on_without_its_messages(masks: list[Path], redirection: str) -> None:
    done = clean(masks, redirection)
    assert done.returncode == 0 and all(made(masks))
    assert "Traceback" not in done.stderr and "error" not in done.stderr


def test_ctrl_c_while_the_command_is_loaded_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Loading(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "etsam.cli", Loading("etsam.cli"))
    with pytest.raises(SystemExit) as stop:
        __main__.main()
    assert stop.value.code == 130
    assert capsys.readouterr().err == "etsam: error: interrupted\n"


def test_errors_that_nobody_reads_still_count(masks: list[Path]) -> None:
    masks[1].write_bytes(b"no volume")
    done = clean(masks, "2>/dev/full")
    assert done.returncode == 1 and made(masks) == [True, False, True, True]


def test_a_full_standard_output_is_told_at_the_end(masks: list[Path]) -> None:
    done = clean(masks, ">/dev/full")
    assert done.returncode == 1 and all(made(masks))
    line = done.stderr.splitlines()[-1]
    assert line == (
        "etsam: error: standard output: No space left on device: what was printed is incomplete"
    )


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are Unicode there")
@pytest.mark.parametrize("encoding", ["cp932", "cp936", "cp1252"])
def test_what_an_encoding_has_not_is_a_question_mark(masks: list[Path], encoding: str) -> None:
    """On standard output; bytes of names that are no Unicode stay."""
    folder = masks[0].parent / "膜"
    folder.mkdir()
    name = os.fsdecode(b"\xff_membrane.mrc")
    masks[0].rename(folder / name)
    given = {"env": {**os.environ, "PYTHONIOENCODING": encoding}, "capture_output": True}
    done = subprocess.run([sys.executable, "-c", CODE, "postprocess", folder / name], **given)
    assert done.returncode == 0 and b"error" not in done.stderr
    shown = "膜".encode(encoding, "replace")
    assert done.stdout.endswith(b"/" + shown + b"/\xff_membrane_postprocessed.mrc\n")
    done = subprocess.run([sys.executable, "-c", CODE, "evaluate", "--help"], **given)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"--voxel-spacing " + "Å ".encode(encoding, "replace") in done.stdout


@pytest.mark.parametrize("platform, is_cut", [("win32", False), ("linux", True)])
def test_a_pipe_that_nobody_reads_has_two_errors_on_windows(
    monkeypatch: pytest.MonkeyPatch, platform: str, is_cut: bool
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    file = PatientFile(os.devnull, "wb")
    file.failure = OSError(errno.EINVAL, "Invalid argument")
    assert file.is_cut == is_cut
    file.failure = OSError(errno.EPIPE, "Broken pipe")
    assert not file.is_cut
    file.failure = OSError(errno.ENOSPC, "No space left on device")
    assert file.is_cut
    file.close()

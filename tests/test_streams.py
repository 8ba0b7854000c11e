"""Messages that nobody reads, or that have no room, end no run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from etsam import __main__
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

"""Names with ``*``, ``?`` or ``[``: each verb itself says what they stand for, also where no shell does."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import click.core
import numpy as np
import pytest

from etsam import cli
from etsam.cli import options
from test_cli import Run, assert_one_line, write_mrc


@pytest.fixture
def masks(tmp_path: Path) -> list[Path]:
    mask = np.ones((12, 8, 8), np.int8)
    names = ("a_membrane", "b_membrane", "c[1]_membrane")
    return [write_mrc(tmp_path / f"{name}.mrc", mask) for name in names]


def made(mask: Path) -> Path:
    return mask.with_name(f"{mask.stem}_postprocessed.mrc")


def test_a_pattern_in_quotes_is_what_it_matches(run: Run, masks: list[Path]) -> None:
    """In order; a file of that very name is that file."""
    folder = masks[0].parent
    code, out, _ = run("postprocess", folder / "[ab]_membrane.mrc", masks[2])
    assert code == 0 and out.splitlines() == [str(made(mask)) for mask in masks]
    code, out, _ = run("verify", masks[2], masks[0])
    assert code == 0 and out.endswith("they overlay\n")


def test_a_pattern_that_matches_nothing_is_refused(run: Run, masks: list[Path]) -> None:
    code, out, err = run("postprocess", masks[0], masks[0].parent / "*.rec")
    assert (code, out) == (2, "") and not made(masks[0]).exists()
    assert_one_line(err, f"'MASK...': no file matches {masks[0].parent / '*.rec'}")


def test_what_a_pattern_matches_must_be_of_the_right_kind(run: Run, masks: list[Path]) -> None:
    folder = masks[0].parent
    code, _, err = run("train", folder / "*", "-o", folder / "run")
    assert code == 2
    assert_one_line(err, f"Directory '{masks[0]}' is a file")


def test_every_verb_for_several_files_takes_patterns() -> None:
    """Those that take tomograms leave out results among them."""
    figures = cli.figures.commands
    several = {
        name: argument.callback
        for name, verb in (cli.etsam.commands | figures).items()
        for argument in verb.params
        if isinstance(argument, click.Argument) and argument.nargs == -1
    }
    own = {name for name, callback in several.items() if callback is not options._matched}
    assert own == {"download", "inspect", "segment"}
    assert len(several) == 13


def test_click_leaves_patterns_alone_on_windows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], masks: list[Path]
) -> None:
    """So that results are not taken for tomograms, whose names the verb would never see."""

    class Windows(ModuleType):
        name = "nt"

        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

    monkeypatch.setattr(click.core, "os", Windows("os"))
    pattern = str(masks[0].parent / "*.mrc")
    monkeypatch.setattr(sys, "argv", ["etsam", "inspect", "--no-timing", pattern])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    assert_one_line(capsys.readouterr().err, f"no tomogram matches {pattern}")

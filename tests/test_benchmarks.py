"""The scripts that measure leave nothing where they are called."""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def test_volumes_to_measure_with_lie_in_the_systems_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    here.mkdir()
    temporary.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(BENCHMARKS)
    script = importlib.import_module("memory")
    made: list[Path] = []

    def stop(path: Path, depth: int, sides: tuple[int, int]) -> None:
        made.append(path)
        raise SystemExit

    monkeypatch.setattr(script, "make_volume", stop)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(sys, "argv", ["memory.py"])
    with pytest.raises(SystemExit):
        script.main()
    assert made[0].is_relative_to(temporary)
    assert not list(here.iterdir())

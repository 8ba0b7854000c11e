"""The script that sets up and segments, where programs of an environment lie elsewhere."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "quickstart.sh"


@pytest.mark.skipif(os.name == "nt", reason="needs sh")
@pytest.mark.parametrize("folder", ["bin", "Scripts"])
def test_an_environment_of_python_for_windows_is_found(tmp_path: Path, folder: str) -> None:
    programs = tmp_path / folder
    programs.mkdir()
    for name, line in (("python", "exit 0"), ("etsam", 'echo "$0" "$@"')):
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    environment = {**os.environ, "ETSAM_VENV": str(tmp_path), "PYTHON": "false"}
    done = subprocess.run(
        ["sh", SCRIPT, "a.mrc"], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(programs / "etsam"), "segment", "--show", "a.mrc"]

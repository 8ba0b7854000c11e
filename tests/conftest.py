"""Fixtures every test file may use."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import windows

if TYPE_CHECKING:
    from data_servers import DataServers
    from etsam.dataset import SliceStore

Run = Callable[..., tuple[int, str, str]]

SHARED = Path(__file__).resolve().parents[2] / "shared"

windows.watch()


@pytest.fixture(autouse=True)
def _nothing_that_windows_refuses() -> Iterator[None]:
    """No file is replaced while it is open, in any test."""
    windows.refused.clear()
    yield
    assert not windows.refused


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of reference data beside the checkout; the test is skipped where there is none."""
    if not (SHARED / "README.md").is_file():
        pytest.skip("no reference data beside the checkout (../shared)")
    return SHARED


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``etsam ARGS`` here and return (exit code, stdout, stderr)."""
    from etsam import cli

    def run(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        code = caught.value.code
        assert isinstance(code, int)
        return code, out, err

    return run


@pytest.fixture
def store() -> Iterator[SliceStore]:
    """Room in memory for slices of training pairs."""
    from etsam.dataset import SliceStore

    with closing(SliceStore(1)) as store:
        yield store


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.name != "posix" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[DataServers]:
    """Servers on loopback that speak as Zenodo, the Dataverse and the portal do, with a few files."""
    from data_servers import stocked

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with stocked() as server:
        yield server

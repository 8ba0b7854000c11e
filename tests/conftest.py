"""Fixtures every test file may use."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of reference data beside the checkout; the test is skipped where there is none."""
    if not (SHARED / "README.md").is_file():
        pytest.skip("no reference data beside the checkout (../shared)")
    return SHARED

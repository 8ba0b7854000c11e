"""Downloads listen to Ctrl-C on Windows too, where a wait without end lets none through before Python 3.14."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from data_servers import RECORD, ZENODO_DOI, DataServers, options
from etsam.download import download
from etsam.listing import list_items
from test_download import fetched


def test_no_wait_for_a_file_is_without_end(
    monkeypatch: pytest.MonkeyPatch, server: DataServers, tmp_path: Path
) -> None:
    waits: list[float | None] = []
    wait = threading.Condition.wait

    def noted(self: threading.Condition, timeout: float | None = None) -> bool:
        is_start = sys._getframe(2).f_code.co_name == "start"  # of a thread, at once
        if threading.current_thread() is threading.main_thread() and not is_start:
            waits.append(timeout)
        return wait(self, timeout)

    server.zenodo[RECORD] = {"a.mrc": bytes(200_000)}
    server.faults[f"/api/records/{RECORD}/files/a.mrc/content"] = [("slow", 0.2)]
    items = list_items([ZENODO_DOI], options(server).selection)
    monkeypatch.setattr("etsam.download.list_items", lambda *_: items)
    monkeypatch.setattr("etsam.download.TICK_SECONDS", 0.05)
    monkeypatch.setattr(threading.Condition, "wait", noted)
    assert fetched(download([ZENODO_DOI], tmp_path, options(server))) == {"a.mrc": False}
    assert len(waits) > 1 and None not in waits

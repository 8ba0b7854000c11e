"""Work in several processes: in order, a few ahead, and nothing is left behind."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from etsam.in_order import AHEAD, WorkerKilledError, in_order

LEFT_ALONE = """
import time
from etsam.in_order import in_order

if __name__ == "__main__":
    import os, sys
    for pid in in_order(os.getpgid, [0] * 50, 2):
        print(pid, flush=True)
        time.sleep(0.2)
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_order_and_batches_are_read_as_they_are_needed(processes: int) -> None:
    read = 0

    def batches() -> Iterator[int]:
        nonlocal read
        for number in range(20):
            read += 1
            yield number

    with closing(in_order(math.sqrt, batches(), processes)) as results:
        assert next(results) == 0
        assert read <= 1 + AHEAD * 2
        assert list(results) == [math.sqrt(number) for number in range(1, 20)]


def test_what_goes_wrong_in_a_process_is_said() -> None:
    with pytest.raises(ValueError, match="math domain|nonnegative"):
        list(in_order(math.sqrt, [1, -1, 1], 2))
    with pytest.raises(OSError, match="--workers 1"):
        list(in_order(os._exit, [9], 2))


def hold(path: Path) -> Path:
    """Keep a file for as long as this works: no time for the first of them, a minute for the others."""
    end = time.monotonic() + (0 if path.name == "0" else 60)
    try:
        path.touch()
        while time.monotonic() < end:
            time.sleep(0.05)
    finally:
        path.unlink()
    return path


def test_who_stops_does_not_wait_for_what_is_at_work(tmp_path: Path) -> None:
    """It is interrupted and tidies up; what waits is not begun."""
    batches = [tmp_path / str(number) for number in range(6)]
    results = in_order(hold, batches, 2)
    assert next(results) == batches[0]
    end = time.monotonic() + 60
    while not any(path.exists() for path in batches) and time.monotonic() < end:
        time.sleep(0.05)
    began = time.monotonic()
    results.close()
    assert time.monotonic() - began < 30
    assert list(tmp_path.iterdir()) == []


def stop_this(_: int) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_process_that_is_stopped_is_no_interruption_of_the_caller() -> None:
    with pytest.raises(WorkerKilledError, match="--workers 1"):
        list(in_order(stop_this, [0], 2))


@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
def test_processes_end_with_the_first_one() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LEFT_ALONE],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as first:
        assert first.stdout is not None
        group = int(first.stdout.readline())
        assert group == first.pid
        first.kill()
    for _ in range(200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)
    pytest.fail("processes outlived the first one")

"""Work on batches in several processes: results in order, only a few batches ahead."""

from __future__ import annotations

import _thread
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from threading import Thread, main_thread
from types import FrameType
from typing import TypeVar

Batch = TypeVar("Batch")
Result = TypeVar("Result")

KILLED = (
    "a worker process was killed, or the script that asked for it does not start from "
    '`if __name__ == "__main__":`'
)


class WorkerKilledError(OSError):
    """A process ended though its work had not."""


MOST = 61 if sys.platform == "win32" else 10_000
"""Processes that a pool may have."""
TICK = 0.5  # seconds between two times that Ctrl-C is heard, where waiting is deaf to it
GRACE = 10.0  # seconds that work without a caller has to tidy up
AHEAD = 2  # batches that wait for each process


def in_order(
    work: Callable[[Batch], Result], batches: Iterable[Batch], processes: int
) -> Generator[Result, None, None]:
    """Yield `work` of every batch, done by `processes` processes; by this one where it is 1.

    `work` and batches must be picklable, and a script that asks for more than one process must
    start from ``if __name__ == "__main__":``. The processes end with this one, however it ends; who is
    interrupted or closes the generator does not wait for batches that are at work, which get a
    KeyboardInterrupt to tidy up at.

    Raises
    ------
    WorkerKilledError
        A process was killed.
    """
    if processes <= 1:
        yield from map(work, batches)
        return
    context = multiprocessing.get_context("spawn")
    processes = min(processes, MOST)
    until, open_while_wanted = context.Pipe(duplex=False)
    with until, ProcessPoolExecutor(processes, context, _serve, (until,)) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for batch in batches:
                waiting.append(pool.submit(_do, work, batch))
                if len(waiting) > AHEAD * processes:
                    yield _result(waiting.popleft())
            while waiting:
                yield _result(waiting.popleft())
        except BrokenProcessPool:
            raise WorkerKilledError(f"{KILLED}: try again with --workers 1") from None
        finally:
            open_while_wanted.close()
            pool.shutdown(cancel_futures=True)


def _result(future: Future[Result]) -> Result:
    """Wait for a result, so that Ctrl-C is heard (on Windows waiting is deaf to it before Python 3.14)."""
    while not future.done():
        wait([future], TICK)
    try:
        return future.result()
    except KeyboardInterrupt:  # of the process at work, which somebody stopped
        raise BrokenProcessPool from None


@dataclass
class _Worker:
    """What a worker process is about."""

    busy: bool = False
    stopping: bool = False

    def stop(self, _number: int, _frame: FrameType | None) -> None:
        """Interrupt a batch at work; between two the process waits quietly for its end."""
        self.stopping = True
        if self.busy:
            raise KeyboardInterrupt


_worker = _Worker()


def _do(work: Callable[[Batch], Result], batch: Batch) -> Result:
    if _worker.stopping:
        raise KeyboardInterrupt
    _worker.busy = True
    try:
        return work(batch)
    finally:
        _worker.busy = False


def _serve(until: Connection) -> None:
    """Leave Ctrl-C to the first process, stop when it wants nothing more, and end when it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _worker.stop)
    Thread(target=_end_with_parent, args=(until,), daemon=True).start()


def _end_with_parent(until: Connection) -> None:
    with suppress(OSError):  # on Windows where the other end is closed already
        until.poll(None)  # until it is
    if sys.platform == "win32":
        _thread.interrupt_main(signal.SIGTERM)  # seen by the main thread once it runs Python
    else:
        signal.pthread_kill(main_thread().ident or 0, signal.SIGTERM)  # also ends waiting
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    end = time.monotonic() + GRACE
    while _worker.busy and time.monotonic() < end:
        time.sleep(0.05)
    os._exit(1)

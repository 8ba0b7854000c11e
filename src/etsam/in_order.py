"""Work on batches in several processes: results in order, only a few batches ahead."""

from __future__ import annotations

import _thread
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection
from threading import Thread, main_thread
from types import FrameType
from typing import TypeVar

Batch = TypeVar("Batch")
Result = TypeVar("Result")


class WorkerKilledError(OSError):
    """A process ended though its work had not."""


MOST = 61  # processes that Windows lets a pool have
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
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise WorkerKilledError(
                "a worker process was killed: try again with --workers 1"
            ) from None
        finally:
            open_while_wanted.close()
            pool.shutdown(cancel_futures=True)


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
    until.poll(None)  # until the other end is closed
    if sys.platform == "win32":
        _thread.interrupt_main(signal.SIGTERM)  # seen by the main thread once it runs Python
    else:
        signal.pthread_kill(main_thread().ident or 0, signal.SIGTERM)  # also ends waiting
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

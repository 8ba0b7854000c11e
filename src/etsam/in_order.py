"""Work on batches in several processes: results in order, only a few batches ahead."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from threading import Thread
from typing import TypeVar

Batch = TypeVar("Batch")
Result = TypeVar("Result")

AHEAD = 2  # batches that wait for each process


def in_order(
    work: Callable[[Batch], Result], batches: Iterable[Batch], processes: int
) -> Generator[Result, None, None]:
    """Yield `work` of every batch, done by `processes` processes; by this one where it is 1.

    `work` and batches must be picklable, and a script that asks for more than one process must
    start from ``if __name__ == "__main__":``. The processes end with this one, however it ends.

    Raises
    ------
    OSError
        A process was killed.
    """
    if processes <= 1:
        yield from map(work, batches)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_serve) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for batch in batches:
                waiting.append(pool.submit(work, batch))
                if len(waiting) > AHEAD * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise OSError("a worker process was killed: try again with --workers 1") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _serve() -> None:
    """Leave Ctrl-C to the first process, and end when that is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

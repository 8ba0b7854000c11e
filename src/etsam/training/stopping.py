"""Signals that ask a run to stop, SIGTERM and Ctrl-C, wait until the step at work is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

from etsam.training.parallel import Team


class Stops:
    """Holds such signals back from `begin` to `end` of a step; a second one stops at once.

    Of several processes each steps on until all know of it, so that all stop after the same step.
    Where a program has no way of its own with a signal, that stays the system's.
    """

    def __init__(self, team: Team) -> None:
        self.whole = True  # no step is at work
        self._team = team
        self._came: tuple[int, FrameType | None] | None = None
        self._ways: dict[int, Any] = {}

    def begin(self) -> None:
        """Begin a step."""
        self.whole = False

    def end(self) -> None:
        """End a step, and stop if that was asked for meanwhile.

        Raises
        ------
        KeyboardInterrupt
            It was, here or of another process.
        """
        self.whole = True
        came, self._came = self._came, None
        asked = self._team.any(came is not None)
        if came is not None:
            self._ways[came[0]](*came)
        if asked and self._team.size > 1:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        waits = self.whole and self._team.size == 1
        if waits or self._came is not None:
            self._ways[number](number, frame)
        else:
            self._came = number, frame

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            ways = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
            self._ways = {number: way for number, way in ways.items() if callable(way)}
            for number in self._ways:
                signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, way in self._ways.items():
            signal.signal(number, way)

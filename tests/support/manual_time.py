"""A loop whose time only the test moves. For parts that are given their loop and ask it for time and timers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any


class ManualTimer:
    """What `call_later` gives."""

    def __init__(self, due_s: float, number: int, callback: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        self.due_s = due_s
        self.number = number
        self._callback = callback
        self._arguments = arguments
        self.is_cancelled = False

    def cancel(self) -> None:
        """It will not be called."""
        self.is_cancelled = True

    def run(self) -> None:
        self._callback(*self._arguments)


class ManualTime:
    """Everything but time is the real loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._now_s = 1000.0
        self._numbers = itertools.count()
        self._timers: list[ManualTimer] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def time(self) -> float:
        """As the loop's."""
        return self._now_s

    def call_later(self, delay_s: float, callback: Callable[..., object], *arguments: Any) -> ManualTimer:
        """As the loop's."""
        timer = ManualTimer(self._now_s + delay_s, next(self._numbers), callback, arguments)
        self._timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        """So much time passes; what is due is called in its order, at its time."""
        end_s = self._now_s + seconds
        while due := [timer for timer in self._timers if not timer.is_cancelled and timer.due_s <= end_s]:
            timer = min(due, key=lambda one: (one.due_s, one.number))
            self._timers.remove(timer)
            self._now_s = max(self._now_s, timer.due_s)
            timer.run()
        self._now_s = end_s

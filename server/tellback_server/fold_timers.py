"""Fold timers: the save strategy on a clock: when which chat's files are brought up to the log next.

Rules of this module (BEHAVIOUR K2, K8):
- When is decided by `save_strategy`; this room only keeps the time, one timer a chat.
- A write costs nothing here while a timer runs, unless it cannot wait; what came is looked at when that one strikes.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from tellback_server.save_strategy import Dirt, Reason, Strategy, next_fold

if TYPE_CHECKING:
    from tellback_server.actor import Actor
    from tellback_server.clock import Clock

__all__ = ["FoldTimers"]


class _Watch(msgspec.Struct):
    """One chat."""

    timer: asyncio.TimerHandle | None = None
    due_s: float = 0.0
    commits: int = 0
    """How many waited when it was looked at last."""
    last_s: float = 0.0
    """When more had come."""
    folded_s: float = float("-inf")
    work_s: float = 0.0


class FoldTimers:
    """See the module. Loop thread."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Clock, strategy: Strategy,
        fold: Callable[[Actor, Reason], None],
    ) -> None:
        self._loop = loop
        self._clock = clock
        self.strategy = strategy
        self._fold = fold
        self._watches: dict[Actor, _Watch] = {}
        self._swept_s = clock.monotonic_s()
        self._stopped = False

    def dirty(self, actor: Actor) -> None:
        """Something waits for the files of a chat, or something more that cannot wait."""
        now_s = self._clock.monotonic_s()
        if actor.dirty_since_s is None:
            actor.dirty_since_s = now_s
        if actor.folding or self._stopped:
            # The end of that checkpoint asks again.
            return
        watch = self._watches.setdefault(actor, _Watch())
        pending = None if actor.file is None else actor.file.pending
        if pending is None:
            return
        if watch.timer is not None and not pending.is_urgent:
            return
        batch = self.strategy.batch_commits
        pending.full_at = batch if pending.commits < batch else sys.maxsize
        if pending.commits != watch.commits or watch.timer is None:
            watch.commits, watch.last_s = pending.commits, now_s
        self._arm(actor, watch, now_s)

    def _arm(self, actor: Actor, watch: _Watch, now_s: float) -> None:
        pending = None if actor.file is None else actor.file.pending
        if pending is None or actor.dirty_since_s is None:
            return
        dirt = Dirt(
            since_s=actor.dirty_since_s, last_s=watch.last_s, commits=pending.commits, events=pending.events,
            folded_s=watch.folded_s, work_s=watch.work_s,
        )
        due_s, reason = next_fold(self.strategy, dirt, now_s)
        if watch.timer is not None:
            if watch.due_s <= due_s:
                return
            watch.timer.cancel()
        watch.due_s = due_s
        watch.timer = self._loop.call_later(max(0.0, due_s - now_s), self._struck, actor, watch, reason)

    def _struck(self, actor: Actor, watch: _Watch, reason: Reason) -> None:
        watch.timer = None
        pending = None if actor.file is None else actor.file.pending
        if reason == "debounce" and pending is not None and pending.commits > watch.commits:
            # More came meanwhile: the burst is not over.
            watch.commits, watch.last_s = pending.commits, self._clock.monotonic_s()
            self._arm(actor, watch, watch.last_s)
            return
        self._fold(actor, reason)

    def retry(self, actor: Actor, delay_s: float) -> None:
        """A checkpoint failed: once more after so long."""
        if self._stopped:
            return
        watch = self._watches.setdefault(actor, _Watch())
        if watch.timer is not None:
            watch.timer.cancel()
        watch.due_s = self._clock.monotonic_s() + delay_s
        watch.timer = self._loop.call_later(delay_s, self._struck, actor, watch, "retry")

    def begun(self, actor: Actor) -> None:
        """A checkpoint begins: what the timer waited for happens now."""
        watch = self._watches.get(actor)
        if watch is not None:
            watch.commits = 0
            if watch.timer is not None:
                watch.timer.cancel()
                watch.timer = None

    def done(self, actor: Actor, work_s: float) -> None:
        """A checkpoint ended that took so long."""
        watch = self._watches.setdefault(actor, _Watch())
        watch.folded_s, watch.work_s = self._clock.monotonic_s(), work_s

    def closed(self, actor: Actor) -> bool:
        """Nobody has the chat open any more: whether that is a reason to fold what waits."""
        return actor.dirty_since_s is not None and not actor.folding and "close" in self.strategy.events and (
            (watch := self._watches.get(actor)) is None
            or self._clock.monotonic_s() >= watch.folded_s + watch.work_s
        )

    def is_sweep_due(self) -> bool:
        """Whether it is time to fold everything that waits; asked again it is not."""
        now_s = self._clock.monotonic_s()
        if now_s - self._swept_s < self.strategy.sweep_s:
            return False
        self._swept_s = now_s
        for actor in [actor for actor in self._watches if actor.state == "ended"]:
            self.forget(actor)
        return True

    def forget(self, actor: Actor) -> None:
        """The chat leaves memory."""
        self.begun(actor)
        self._watches.pop(actor, None)

    def stop(self) -> None:
        """No timer strikes any more."""
        self._stopped = True
        for watch in self._watches.values():
            if watch.timer is not None:
                watch.timer.cancel()

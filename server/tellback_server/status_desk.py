"""Status desk: how a user's connections and live owners stand at one moment.

Rules of this module (BEHAVIOUR C12):
- Nothing of another user but what `/metrics` tells everybody.
- It looks and waits for nothing: numbers of commits are told, never the version of one that a crash could undo.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections.abc import Callable, Iterable
from typing import Final

from tellback_protocol.status import ConnectionStatus, LogStatus, OwnerStatus, StatusFrame, StatusGet
from tellback_server.actor import Actor
from tellback_server.hub import Hub
from tellback_server.tab import Tab

__all__ = ["StatusDesk"]

NAMES_MAX: Final = 16
"""Of what one connection has open."""
SYNC_BOUNDS_MS: Final = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]


class StatusDesk:
    """See the module. Loop thread."""

    def __init__(self, hub: Hub, lag_s: Callable[[], float]) -> None:
        self._hub = hub
        self._lag_s = lag_s

    def answer(self, tab: Tab, request: StatusGet) -> StatusFrame:
        """The frame that answers. Cost: all connections and live owners, once."""
        user, limit = tab.user, request.limit
        tabs = [one for one in self._hub.tabs if one.user == user and one.is_open]
        actors = [one for one in self._hub.actors if one.user == user and one.state in ("ready", "busy")]
        slowest = heapq.nsmallest(limit, tabs, key=lambda one: (-one.behind, not one.connection.write_paused,
                                                                -one.outbox.waiting_bytes, -one.connected_ms))
        furthest = heapq.nsmallest(limit, actors, key=lambda one: (-_outside_files(one), one.name))
        return StatusFrame(
            [_of_connection(one) for one in slowest], len(tabs), [self._of_owner(one) for one in furthest], len(actors),
            self._of_log(), request.id,
        )

    def _of_owner(self, actor: Actor) -> OwnerStatus:
        since_s = actor.dirty_since_s
        age_s = 0.0 if since_s is None else self._hub.clock.monotonic_s() - since_s
        return OwnerStatus(
            actor.name, actor.live_stream.head.seq, actor.audience.durable_head.seq, _checkpointed(actor),
            len(actor.audience.subscriptions), int(1000 * age_s), bool(actor.live_stream.damage),
        )

    def _of_log(self) -> LogStatus:
        log = self._hub.log
        return LogStatus(
            log.segment_count, log.uncommitted_bytes, len(self._hub.releases), int(1000 * log.stalled_s),
            int(1000 * self._lag_s()), SYNC_BOUNDS_MS, _counts(1000 * one_s for one_s in log.stats.sync_s.copy()),
        )


def _of_connection(tab: Tab) -> ConnectionStatus:
    return ConnectionStatus(
        tab.session_id, tab.peer.address, tab.connected_ms, tab.client, len(tab.chats),
        sorted(actor.name for actor in itertools.islice(tab.chats, NAMES_MAX)), len(tab.producing),
        tab.session.in_flight, tab.outbox.waiting_bytes, tab.connection.write_paused, tab.behind,
    )


def _checkpointed(actor: Actor) -> int:
    return 0 if actor.file is None else actor.file.head.seq


def _outside_files(actor: Actor) -> int:
    return actor.live_stream.head.seq - _checkpointed(actor)


def _counts(durations_ms: Iterable[float]) -> list[int]:
    counts = [0] * (len(SYNC_BOUNDS_MS) + 1)
    for duration_ms in durations_ms:
        counts[bisect.bisect_left(SYNC_BOUNDS_MS, duration_ms)] += 1
    return counts

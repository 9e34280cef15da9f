"""When to ask whether the peer is still there, and when to wait before connecting again.

Rules of this module:
- Any frame proves that the peer lives; only silence is answered with `ping` (SCENARIOS 4.7).
- A half-dead connection is found by our own clock, not by the operating system's (R33).
- Waiting is drawn between nothing and a growing bound (full jitter), and the bound falls back only after useful work,
  so that a server that accepts and drops is not hammered.
"""

from __future__ import annotations

from collections.abc import Callable

PONG_TIMEOUT_S = 10.0
"""A mobile network can stall for some seconds; ten are a connection nobody wants to wait for."""
BACKOFF_FIRST_S = 0.25
BACKOFF_MAX_S = 30.0


class Heartbeat:
    """The silence of one connection. Times are of a monotonic clock."""

    __slots__ = ("_asked_at_s", "_heard_at_s", "idle_s", "timeout_s")

    def __init__(self, now_s: float, idle_s: float, timeout_s: float = PONG_TIMEOUT_S) -> None:
        self.idle_s = idle_s
        self.timeout_s = timeout_s
        self._heard_at_s = now_s
        self._asked_at_s: float | None = None
        """When `ping` was sent; None when the last ping was followed by any frame."""

    def heard(self, now_s: float) -> None:
        """A frame arrived."""
        self._heard_at_s = now_s
        self._asked_at_s = None

    def due(self, now_s: float) -> bool:
        """Whether silence asks for a ping now: said once, and counts as sent."""
        is_due = self._asked_at_s is None and now_s >= self.deadline_s
        if is_due:
            self._asked_at_s = now_s
        return is_due

    def is_dead(self, now_s: float) -> bool:
        """True when a ping had no answer in time. Only asks: a ping that is due stays due."""
        return self._asked_at_s is not None and now_s >= self.deadline_s

    @property
    def deadline_s(self) -> float:
        """When `due` or `is_dead` is true, if nothing is heard until then."""
        if self._asked_at_s is not None:
            return self._asked_at_s + self.timeout_s
        return self._heard_at_s + self.idle_s


class Backoff:
    """How long to wait before the next attempt to connect. `draw` gives a number from 0 up to 1."""

    __slots__ = ("_attempts", "_draw", "first_s", "max_s")

    def __init__(
        self, draw: Callable[[], float], first_s: float = BACKOFF_FIRST_S, max_s: float = BACKOFF_MAX_S
    ) -> None:
        self._draw = draw
        self.first_s = first_s
        self.max_s = max_s
        self._attempts = 0

    def next_s(self) -> float:
        """Seconds to wait now."""
        bound = min(self.max_s, self.first_s * 2.0 ** min(self._attempts, 32))
        self._attempts += 1
        return self._draw() * bound

    def worked(self) -> None:
        """The connection was of use: a chat was opened or a write answered."""
        self._attempts = 0

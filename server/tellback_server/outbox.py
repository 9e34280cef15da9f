"""What waits to be sent to one connection: bounded, in order, and fair.

Five classes (BEHAVIOUR D2-D5, T12):

    urgent     heartbeats, goaway, behind             ahead of everything; never dropped, with a reserve of their own
    answers    acks, conflicts, errors, reads         never dropped; their reserve exceeded closes the connection
    commits    integrity frames of what is open       over the bound (1 MiB) the fullest chat is demoted: `behind`
    parts      pieces of snapshots                    one at a time, made when there is room
    deltas     text of generations                    made when nothing else waits, at least 40 ms apart

Rules of this module:
- While the socket takes what it is given nothing waits here: a frame goes straight to the connection.
- Within one lane (an owner) answers and commits keep their order; lanes take turns; parts come last.
- A connection that reads slowly costs its own bound of memory and nobody else's time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import Protocol

from tellback_protocol.ids import Version

COMMIT_BYTES_MAX = 1 << 20
"""When nothing else was set."""
ANSWER_BYTES_MAX = 16 << 20
"""Reads can be large; a peer that asks and never reads is closed (4008)."""
URGENT_BYTES_MAX = 1 << 20
"""As `ANSWER_BYTES_MAX`, for one that asks for heartbeats and never reads; all that it has open may fall behind."""
PUMP_BYTES = 64 << 10
"""Given to the socket at once; then its fill level is looked at again."""
DELTA_PAUSE_S = 0.04
"""Between the deltas for a connection that reads slowly; what comes meanwhile travels in one frame."""


class Wire(Protocol):
    """What the outbox needs of a connection; `WebSocketConnection` is one."""

    @property
    def write_paused(self) -> bool: ...

    def send_frame(self, frame: bytes) -> None: ...

    def send_now(self, frames: bytes) -> bool: ...

    def flush(self) -> None: ...


class _Lane:
    __slots__ = ("commit_bytes", "frames")

    def __init__(self) -> None:
        self.frames: deque[tuple[bytes, Version | None]] = deque()
        """Frame and, for a commit, the version before it."""
        self.commit_bytes = 0


class Outbox:
    """The frames of one connection. `demoted(lane, last version sent)` is called when a lane lost its commits."""

    __slots__ = (
        "_answer_bytes", "_commit_bytes", "_commit_bytes_max", "_delta_timer", "_deltas", "_demoted", "_lanes",
        "_loop", "_overfull", "_parts",
        "_pumping", "_urgent", "_urgent_bytes", "is_waiting", "wire",
    )

    def __init__(
        self,
        wire: Wire,
        loop: asyncio.AbstractEventLoop,
        demoted: Callable[[Hashable, Version], None],
        overfull: Callable[[], None],
        commit_bytes_max: int = COMMIT_BYTES_MAX,
    ) -> None:
        self.wire = wire
        """Where frames go at once while `is_waiting` is false."""
        self._loop = loop
        self._demoted = demoted
        self._overfull = overfull
        self._urgent: deque[bytes] = deque()
        self._urgent_bytes = 0
        """Given to us since the socket last took something, of urgent frames."""
        self._lanes: dict[Hashable, _Lane] = {}
        self._parts: deque[tuple[Hashable, Iterator[bytes]]] = deque()
        self._deltas: dict[tuple[Hashable, str], Callable[[], bytes | None]] = {}
        """By lane and generation, what makes the frame when it can be sent."""
        self._delta_timer: asyncio.TimerHandle | None = None
        self._commit_bytes = 0
        self._commit_bytes_max = commit_bytes_max
        self._answer_bytes = 0
        self._pumping = False
        self.is_waiting = False
        """True while frames wait here: the next one has to queue behind them."""

    @property
    def is_clear(self) -> bool:
        """True when a frame goes straight to the socket."""
        return not self.is_waiting and not self.wire.write_paused

    def send_now(self, frames: bytes) -> bool:
        """One or more whole frames straight to the socket, without a flush. False: nothing was sent, queue them."""
        return not self.is_waiting and self.wire.send_now(frames)

    def send(self, frames: bytes) -> None:
        """One or more whole frames, when `is_clear`."""
        self.wire.send_frame(frames)

    def urgent(self, frame: bytes) -> None:
        """A frame ahead of all data."""
        if self.is_waiting:
            self._urgent.append(frame)
        else:
            self.wire.send_frame(frame)
            if not self.wire.write_paused:
                return
        self._urgent_bytes += len(frame)
        if self._urgent_bytes > URGENT_BYTES_MAX:
            self._overfull()

    def answer(self, lane: Hashable, frame: bytes) -> None:
        """A frame that is never dropped, in the order of its lane."""
        if not self.is_waiting and not self.wire.write_paused:
            self.wire.send_frame(frame)
            return
        self._lane(lane).frames.append((frame, None))
        self._answer_bytes += len(frame)
        if self._answer_bytes > ANSWER_BYTES_MAX:
            self._overfull()

    def commit(self, lane: Hashable, frame: bytes, previous: Version) -> None:
        """An integrity frame; `previous` is the version before it, where a demoted tab stands."""
        if not self.is_waiting and not self.wire.write_paused:
            self.wire.send_frame(frame)
            return
        waiting = self._lane(lane)
        waiting.frames.append((frame, previous))
        waiting.commit_bytes += len(frame)
        self._commit_bytes += len(frame)
        if self._commit_bytes > self._commit_bytes_max:
            self._demote()

    @property
    def is_free(self) -> bool:
        """True when a delta goes straight to the socket."""
        return not self._deltas and self.is_clear

    def delta(self, key: tuple[Hashable, str], make: Callable[[], bytes | None]) -> None:
        """Text of a generation: lane and id, and what makes the frame. When not `is_free`."""
        self._deltas[key] = make
        if not self.is_waiting and not self.wire.write_paused:
            self._deltas_soon()

    def _deltas_soon(self) -> None:
        if self._delta_timer is None:
            self._delta_timer = self._loop.call_later(DELTA_PAUSE_S, self._send_deltas)

    def _send_deltas(self) -> None:
        """As far as the socket takes them; the rest when it is free again."""
        self._delta_timer = None
        while self._deltas and self.is_clear:
            key = next(iter(self._deltas))
            frame = self._deltas.pop(key)()
            if frame is not None:
                self.wire.send_frame(frame)
                self.wire.flush()

    def parts(self, lane: Hashable, frames: Iterator[bytes]) -> None:
        """Pieces of a snapshot, each made when there is room for it."""
        self._parts.append((lane, frames))
        self.is_waiting = True
        self._pump_soon()

    def forget(self, lane: Hashable) -> None:
        """The chat was closed: its commits and parts are not wanted any more, its answers are."""
        waiting = self._lanes.get(lane)
        if waiting is not None:
            self._drop_commits(waiting)
        if self._parts:
            self._parts = deque(entry for entry in self._parts if entry[0] != lane)
        for key in [key for key in self._deltas if key[0] == lane]:
            del self._deltas[key]

    def flush(self) -> None:
        """Give what was sent to the socket in one write."""
        self.wire.flush()

    def writable(self) -> None:
        """The socket takes more."""
        self._urgent_bytes = sum(map(len, self._urgent))
        if self.is_waiting:
            self._pump_soon()
        elif self._deltas:
            self._deltas_soon()

    @property
    def waiting_bytes(self) -> int:
        """Bytes of frames that wait here."""
        return self._commit_bytes + self._answer_bytes + sum(map(len, self._urgent))

    def _lane(self, lane: Hashable) -> _Lane:
        if not self.is_waiting:
            self.is_waiting = True
            # The socket may be free and only this turn's share used up: then nobody else wakes us.
            self._pump_soon()
        found = self._lanes.get(lane)
        if found is None:
            found = self._lanes[lane] = _Lane()
        return found

    def _demote(self) -> None:
        fullest = max(self._lanes, key=lambda lane: self._lanes[lane].commit_bytes)
        waiting = self._lanes[fullest]
        first = next(previous for _, previous in waiting.frames if previous is not None)
        self._drop_commits(waiting)
        self._demoted(fullest, first)

    def _drop_commits(self, waiting: _Lane) -> None:
        waiting.frames = deque(entry for entry in waiting.frames if entry[1] is None)
        self._commit_bytes -= waiting.commit_bytes
        waiting.commit_bytes = 0

    def _pump_soon(self) -> None:
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Send while the socket takes it: urgent, then the lanes in turn, then at most one part."""
        self._pumping = False
        wire = self.wire
        wire.flush()
        while not wire.write_paused:
            sent = 0
            while self._urgent and sent < PUMP_BYTES:
                frame = self._urgent.popleft()
                self._urgent_bytes -= len(frame)
                sent += len(frame)
                wire.send_frame(frame)
            while self._lanes and sent < PUMP_BYTES:
                lane, waiting = next(iter(self._lanes.items()))
                del self._lanes[lane]
                if not waiting.frames:
                    continue
                frame, previous = waiting.frames.popleft()
                if previous is None:
                    self._answer_bytes -= len(frame)
                else:
                    self._commit_bytes -= len(frame)
                    waiting.commit_bytes -= len(frame)
                sent += len(frame)
                wire.send_frame(frame)
                if waiting.frames:
                    self._lanes[lane] = waiting  # Behind the others: lanes take turns.
            if sent:
                wire.flush()
                continue
            if not self._parts:
                break
            lane, frames = self._parts.popleft()
            part = next(frames, None)
            if part is None:
                continue
            wire.send_frame(part)
            wire.flush()
            self._parts.append((lane, frames))
            # One part a turn of the loop: making it costs time that others wait for.
            self._pump_soon()
            return
        self.is_waiting = bool(self._urgent or self._lanes or self._parts)
        if self._deltas and self.is_clear:
            self._deltas_soon()

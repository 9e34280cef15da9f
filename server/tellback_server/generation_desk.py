"""What all generations of this server share: the beat of the journal, the watch over producers, the limits of users.

Rules of this module (BEHAVIOUR T9 to T12, T18):
- Text that one turn of the loop brought goes out at its end, joined by chat and tab: one write a connection.
- One beat journals every chat that has new text, so that they share a write and a sync.
- Nothing runs while no generation does.
- A user's limits refuse what is new; nothing that runs is ended for them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from tellback_protocol.errors import Refused
from tellback_server.generation import ChatGenerations

if TYPE_CHECKING:
    from tellback_protocol.decide import Fresh
    from tellback_protocol.frames import Limits
    from tellback_server.hub import Hub
    from tellback_server.metrics import Counters
    from tellback_server.producers import Producers
    from tellback_server.tab import Tab

__all__ = ["GenerationDesk", "GenerationLimits"]

log = structlog.get_logger()

BEAT_S: Final = 0.18
"""Text waits at most so long for the log; with the sync it is durable within 250 ms."""
SWEEP_S: Final = 0.5
UNCOMMITTED_BYTES_MAX: Final = 32 << 20
"""With so much waiting for the disk, text waits for the next beat."""


class GenerationLimits(msgspec.Struct, frozen=True):
    """What a person can set."""

    lease_s: float = 30.0
    """How long a generation waits for a producer that is gone, when its start does not say."""
    silence_s: float = 600.0
    """How long a producer may say nothing."""
    running_max: int = 256
    """Generations of a user at a time."""
    running_bytes_max: int = 64 << 20
    """Their texts together."""


class _Used:
    """What a user has running."""

    __slots__ = ("bytes", "count")

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0


class GenerationDesk:
    """See the module. Owned by the hub; loop thread."""

    def __init__(self, hub: Hub, limits: GenerationLimits) -> None:
        self._hub = hub
        self.lease_s = limits.lease_s
        self._silence_s = limits.silence_s
        self._running_max = limits.running_max
        self._running_bytes_max = limits.running_bytes_max
        self._chats: dict[ChatGenerations, None] = {}
        """With a generation that runs."""
        self._unsent: dict[ChatGenerations, None] = {}
        self._unjournaled: dict[ChatGenerations, None] = {}
        self._used: dict[str, _Used] = {}
        self._is_sending = False
        self._beat: asyncio.TimerHandle | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._is_stopped = False

    # -- what chats ask ----------------------------------------------------------------------------------------------

    @property
    def counters(self) -> Counters:
        return self._hub.counters

    @property
    def limits(self) -> Limits:
        return self._hub.limits

    @property
    def document_bytes(self) -> int:
        """What a message may have, and so a text."""
        return self._hub.limits.document_bytes

    @property
    def producers(self) -> Producers:
        """Who streams replies from model servers."""
        return self._hub.producers

    def now_s(self) -> float:
        return self._hub.clock.monotonic_s()

    def fresh(self) -> Fresh:
        """See Hub."""
        return self._hub.fresh()

    def admit(self) -> None:
        """Raises Refused when a write could not be stored now."""
        self._hub.admit()

    @property
    def may_journal(self) -> bool:
        """False while the log has no room or is behind: text is kept, and less of it is durable."""
        journal = self._hub.log
        return journal.storage_error is None and journal.uncommitted_bytes <= UNCOMMITTED_BYTES_MAX

    def check_start(self, user: str) -> None:
        """Raises Refused when the user has no room for one more."""
        used = self._used.get(user)
        if used is None:
            return
        if used.count >= self._running_max:
            raise Refused(
                "overloaded", f"At most {self._running_max} generations of a user run at a time.",
                details={"after_ms": 1000},
            )
        self.check_room(user, 1)

    def check_room(self, user: str, size_bytes: int) -> None:
        """Raises Refused when the user's texts would be too large together."""
        used = self._used.get(user)
        if used is not None and used.bytes + size_bytes > self._running_bytes_max:
            raise Refused(
                "overloaded", f"The texts of a user's generations have at most {self._running_bytes_max} bytes.",
                details={"after_ms": 1000},
            )

    def began(self, chat: ChatGenerations, size_bytes: int) -> None:
        """A generation runs."""
        self._chats[chat] = None
        used = self._used.setdefault(chat.user, _Used())
        used.count += 1
        used.bytes += size_bytes
        self.counters.generations_started += 1
        if self._sweeper is None and not self._is_stopped:
            self._sweeper = self._hub.loop.call_later(min(SWEEP_S, self.lease_s / 4), self._sweep)

    def left(self, chat: ChatGenerations, size_bytes: int) -> None:
        """A generation runs no more; its text had this size."""
        used = self._used[chat.user]
        used.count -= 1
        used.bytes -= size_bytes
        if not used.count:
            del self._used[chat.user]
        if not chat.live:
            self._chats.pop(chat, None)

    def ended(self, state: str) -> None:
        """For the metrics."""
        self.counters.generation_ended(state)

    def grew(self, chat: ChatGenerations, size_bytes: int) -> None:
        """There is more text."""
        self._used[chat.user].bytes += size_bytes
        self.mark(chat)
        self.journal_soon(chat)

    def mark(self, chat: ChatGenerations) -> None:
        """Somebody may have to hear of text, at the end of this turn of the loop."""
        self._unsent[chat] = None
        if not self._is_sending:
            self._is_sending = True
            self._hub.loop.call_soon(self._send)

    def send_now(self, chat: ChatGenerations) -> None:
        """As `mark`, without waiting for the end of the turn."""
        self._unsent.pop(chat, None)
        touched: set[Tab] = set()
        chat.send(touched)
        for tab in touched:
            tab.outbox.flush()

    def journal_soon(self, chat: ChatGenerations) -> None:
        """There is something for the log."""
        self._unjournaled[chat] = None
        if self._beat is None and not self._is_stopped:
            self._beat = self._hub.loop.call_later(BEAT_S, self._on_beat)

    # -- what the server asks ----------------------------------------------------------------------------------------

    @property
    def running_count(self) -> int:
        return sum(used.count for used in self._used.values())

    @property
    def running_bytes(self) -> int:
        return sum(used.bytes for used in self._used.values())

    def stop(self) -> None:
        """Everything that came goes into the log; the next start goes on from there."""
        self._is_stopped = True
        for timer in (self._beat, self._sweeper):
            if timer is not None:
                timer.cancel()
        self._journal()

    # -- time --------------------------------------------------------------------------------------------------------

    def _send(self) -> None:
        self._is_sending = False
        unsent, self._unsent = self._unsent, {}
        touched: set[Tab] = set()
        for chat in unsent:
            try:
                chat.send(touched)
            except Exception:
                log.exception("deltas-not-sent")
        for tab in touched:
            tab.outbox.flush()

    def _on_beat(self) -> None:
        self._beat = None
        self._journal()
        if self._unjournaled:
            self._beat = self._hub.loop.call_later(BEAT_S, self._on_beat)

    def _journal(self) -> None:
        waiting, self._unjournaled = self._unjournaled, {}
        for chat in waiting:
            try:
                chat.journal()
                chat.keep_strays()
                chat.commit_acks()
            except Exception:
                log.exception("generations-not-journaled")
            if chat.waits_for_beat:
                self._unjournaled[chat] = None

    def _sweep(self) -> None:
        self._sweeper = None
        now_s = self.now_s()
        for chat in list(self._chats):
            try:
                chat.sweep(now_s, self._silence_s)
            except Exception:
                log.exception("generations-not-swept")
        if self._chats and not self._is_stopped:
            self._sweeper = self._hub.loop.call_later(min(SWEEP_S, self.lease_s / 4), self._sweep)

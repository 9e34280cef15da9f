"""One generation that runs: its text, its producer, how much of it is durable, and its frames.

Rules of this module (BEHAVIOUR T10, T11, T16):
- A delta is written out once for all tabs that are at the same place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Raw

from tellback_protocol import codec
from tellback_protocol.generation_requests import GenerationError
from tellback_protocol.generations import Generation, Running, units_of
from tellback_server.websocket import text_frame

if TYPE_CHECKING:
    from tellback_protocol.ids import Version
    from tellback_server.tab import Tab

__all__ = ["JOURNAL_BYTES", "LiveGeneration", "Place", "ended_frame"]

JOURNAL_BYTES: Final = 8 << 10
"""Text that came since the last record; with so much of it the next one does not wait for the beat."""
Place = tuple[int, int]
"""Units of the text, units of the reasoning."""


class LiveGeneration:
    """One that runs."""

    __slots__ = (
        "active_s", "began_s", "body", "built", "durable", "first_position", "id", "is_told", "journaled", "lease_s",
        "lost_s", "producer", "producer_json", "running", "unjournaled_bytes", "upstream",
    )

    def __init__(self, generation_id: str, running: Running, lease_s: float, now_s: float) -> None:
        self.id = generation_id
        self.running = running
        self.lease_s = lease_s
        self.producer: Tab | None = None
        """The connection of the session that produces the text; None while it is gone."""
        self.producer_json = b""
        """`"chat":...` as the producer says it."""
        self.upstream = False
        """This server produces the text."""
        self.body: Raw | None = None
        """What the model server will be asked; None when it was, or when a session produces the text."""
        self.lost_s: float | None = now_s
        """Since when no producer is known to go on."""
        self.active_s = now_s
        """When the last text came."""
        self.began_s = now_s
        self.is_told = False
        """Its start is durable."""
        self.journaled: Place = (0, 0)
        """What was given to the log."""
        self.durable: Place = (0, 0)
        self.unjournaled_bytes = 0
        self.first_position = 0
        """Of the record of its start; 0 when that was before this server began."""
        self.built: tuple[Place, Place, bytes, bytes] = ((-1, -1), (-1, -1), b"", b"")
        """The delta that was written out last: from where to where, for whom, and the frame."""

    @property
    def place(self) -> Place:
        """Where the text ends."""
        return self.running.text.units, self.running.reasoning.units

    def produced_by(self, tab: Tab, owner_json: bytes) -> None:
        """The producer is (again) at this connection."""
        self.producer, self.producer_json, self.lost_s = tab, owner_json, None

    def thought(self, text: str, now_s: float) -> None:
        """`text` came. When it is the first behind reasoning, that took until now."""
        running = self.running
        is_first = bool(text) and running.text.units == units_of(text) and running.reasoning.units > 0
        # Of what was found at the start of this server nobody knows.
        if is_first and self.first_position:
            running.provenance.reasoning_ms = round(1000 * (now_s - self.began_s))

    def delta(self, owner_json: bytes, since: Place) -> bytes:
        """The frame with everything behind `since`. Cost: what is new; for the next tab at the same place nothing."""
        built = self.built
        if built[0] == since and built[1] == self.place and built[2] == owner_json:
            return built[3]
        text, reasoning = self.running.text.since(since[0]), self.running.reasoning.since(since[1])
        body = b'"generation":%b,"offset":%d,"text":%b,"durable":%d' % (
            codec.encode(self.id), since[0], codec.encode(text or ""), self.durable[0]
        )
        if reasoning:
            body += b',"reasoning_offset":%d,"reasoning":%b' % (since[1], codec.encode(reasoning))
        frame = text_frame(b'{"type":"generation-delta",%b,%b}' % (owner_json, body))
        self.built = (since, self.place, owner_json, frame)
        return frame

    def durability(self) -> bytes:
        """To the producer: how much is durable."""
        body = b'"generation":%b,"offset":%d,"text":"","durable":%d' % (
            codec.encode(self.id), self.place[0], self.durable[0]
        )
        if self.durable[1]:
            body += b',"reasoning_durable":%d' % self.durable[1]
        return text_frame(b'{"type":"generation-delta",%b,%b}' % (self.producer_json, body))

    def started(
        self, entry: Generation, owner_json: bytes, request_id: int | None = None, *, is_new: bool = False
    ) -> bytes:
        """The `generation-started` with the text so far; one that `is_new` has none: what came follows as deltas."""
        place = (0, 0) if is_new else self.place
        body = b'"generation":%b,"target":%b,"message":%b,"state":"running","by":%b' % (
            codec.encode(self.id), codec.encode(entry.target), codec.encode(entry.message), codec.encode(entry.by)
        )
        body += b',"text":%b,"offset":%d,"durable":%d' % (
            codec.encode("" if is_new else str(self.running.text)), place[0], min(self.durable[0], place[0])
        )
        if place[1]:
            body += b',"reasoning":%b,"reasoning_offset":%d' % (codec.encode(str(self.running.reasoning)), place[1])
        if isinstance(entry.supersedes, str):
            body += b',"supersedes":%b' % codec.encode(entry.supersedes)
        if request_id is not None:
            body += b',"id":%d' % request_id
        return b'{"type":"generation-started",%b,%b}' % (owner_json, body)


def ended_frame(generation_id: str, entry: Generation, version: Version, owner_json: bytes) -> bytes:
    """The one frame that ends a generation (BEHAVIOUR T16)."""
    body = b'"generation":%b,"state":"%b","version":%b' % (
        codec.encode(generation_id), entry.state.encode(), version.encoded()
    )
    if entry.is_stored:
        body += b',"message":%b' % codec.encode(entry.message)
        if isinstance(entry.swipe, int):
            body += b',"swipe":%d' % entry.swipe
    if isinstance(entry.error, GenerationError):
        body += b',"error":%b' % codec.encode(entry.error)
    kind = b"generation-stored" if entry.is_stored else b"generation-done"
    return b'{"type":"%b",%b,%b}' % (kind, owner_json, body)

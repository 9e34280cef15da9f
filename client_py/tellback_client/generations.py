"""The generations of one open chat as this client knows them, without I/O: frames in; texts, results and frames out.

    unknown --commit, opened, generation-started--> running --the commit that ends it--> ended
                                                       `--the chat is gone, or knows nothing of it--> lost

Rules of this module:
- What became of a generation is read from the chat's document, in the commit that says so; a frame that says it first
  only makes this look. So a result is there when the replica holds it, and is acknowledged then.
- Text has an offset. What is there already is left out, a gap is filled by attaching, another text replaces ours.
- Own text goes out behind what the server said it has on this connection; the end goes out behind all of it.
- Text in progress is no part of the confirmed chat.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

from msgspec import UNSET, UnsetType

from tellback_protocol import swipes
from tellback_protocol.chat import Chat
from tellback_protocol.codec import encode
from tellback_protocol.effects import Effect
from tellback_protocol.errors import Refused
from tellback_protocol.frames import (
    Error,
    GenerationDeltaFrame,
    GenerationDone,
    GenerationStarted,
    GenerationStored,
    Opened,
)
from tellback_protocol.generation_requests import (
    GenerationAck,
    GenerationAttach,
    GenerationDelta,
    GenerationError,
    GenerationTarget,
    Salvage,
)
from tellback_protocol.generations import NAMESPACE, Generation, Running, StreamedText, entries_told, units_of
from tellback_protocol.ids import Version

from . import events
from .errors import TellbackError, error_of, refused
from .followed import Followed, GenerationResult, Sending
from .own_write import OwnWrite, Unbased
from .replica import Replica

__all__ = ["Generations"]

PAUSE_S: Final = 0.01
"""Own text that comes faster goes together: a hundred frames a second are as smooth as a screen."""
CHUNK_CHARS: Final = 16 << 10
"""Of one frame; as JSON at most six times as many bytes, far below a frame's limit."""
SALVAGE_CHARS_MAX: Final = 256 << 10
ENDED_MAX: Final = 64
"""Generations that have ended and are still known here, the newest."""


class Generations:
    """Those of one chat."""

    def __init__(self, session: str, tell: Callable[[events.Event], None]) -> None:
        self._session = session
        self._tell = tell
        self.known: dict[str, Followed] = {}
        """In the order in which they were heard of."""
        self._missing: set[str] = set()
        """What became of them is to be looked up in the document."""
        self._to_attach: set[str] = set()
        self._to_ack: dict[str, str] = {}
        """Integrities of the commits that ended them."""

    @property
    def running(self) -> list[Followed]:
        """Those that run, as far as it is known here."""
        return [one for one in self.known.values() if not one.is_over]

    @property
    def produced(self) -> list[Followed]:
        """Those that run and whose text comes from here."""
        return [one for one in self.running if one.sending is not None]

    # -- what the server tells ---------------------------------------------------------------------------------------

    def opened(self, frame: Opened) -> None:
        """The chat is being opened: what runs, and results that this session has not acknowledged."""
        listed = {one.id: one for one in frame.generations}
        for one_id, listing in listed.items():
            one = self._heard_of(one_id, listing.target, listing.message, listing.by, listing.supersedes,
                                 runs=listing.state == "running")
            if listing.state == "running":
                self._text_so_far(one, _text(listing.text), _text(listing.reasoning), listing.durable)
                if one.sending is not None and one.sending.sent == one.place:
                    # The next text may be long in coming: the server hears that it comes from here.
                    self._to_attach.add(one_id)
            elif one.result is None:
                one.offered = True
                self._missing.add(one_id)
            elif isinstance(listing.integrity, str):
                # What was acknowledged did not arrive.
                self._to_ack[one_id] = listing.integrity
        self._missing.update(one.id for one in self.running if one.id not in listed)
        for one_id in self._missing:
            sending = self.known[one_id].sending
            if sending is not None:
                # Nobody waits for more of its text.
                sending.is_over = True

    def started(self, frame: GenerationStarted) -> None:
        """One has begun, or is attached to."""
        one = self._heard_of(frame.generation, frame.target, frame.message, frame.by, frame.supersedes)
        if not one.is_over:
            self._text_so_far(one, frame.text, _text(frame.reasoning), frame.durable)

    def delta(self, frame: GenerationDeltaFrame) -> None:
        """More text; to the producer, how much of it is durable."""
        one = self.known.get(frame.generation)
        if one is None:
            self._to_attach.add(frame.generation)
            return
        if one.is_over:
            return
        one.durable = max(one.durable, frame.durable)
        if one.sending is not None:
            return
        offset = frame.reasoning_offset if isinstance(frame.reasoning_offset, int) else 0
        try:
            added = one.running.add(frame.offset, frame.text, offset, _text(frame.reasoning))
        except Refused:
            # A gap, or another text than ours: the whole text tells.
            self._to_attach.add(one.id)
            return
        if added:
            one.changed()

    def ended(self, frame: GenerationStored | GenerationDone) -> bool:
        """One has ended. True when the commit did not say so and it has to be looked up."""
        one = self.known.get(frame.generation)
        if one is None or one.is_over:
            return False
        self._missing.add(one.id)
        return True

    def refused(self, frame: Error, now_s: float) -> None:
        """Text, a question or an acknowledgement was refused; none of them has a number."""
        one = self.known.get(frame.generation) if isinstance(frame.generation, str) else None
        if one is None or one.is_over or frame.code == "version-unknown":
            return
        one.is_attaching = False
        sending = one.sending
        if frame.code in ("generation-ended", "generation-unknown"):
            # The commit that ended it is on its way.
            if sending is not None:
                sending.is_over = True
            if frame.code == "generation-unknown":
                self._missing.add(one.id)
        elif sending is None:
            if one.salvaged is not None:
                one.salvaged, one.gave_up = None, True
                self._to_attach.add(one.id)
        elif frame.code in ("generation-gap", "overloaded") or frame.retry in ("backoff", "now"):
            after_ms = frame.after_ms if isinstance(frame.after_ms, int) else 0
            sending.paused_until_s = max(sending.paused_until_s, now_s + after_ms / 1000)
            self.realign(one)
        else:
            sending.refusal = error_of(frame)
            one.changed()

    def realign(self, one: Followed) -> None:
        """Ask how much of the own text the server has, and go on from there."""
        if one.sending is not None:
            one.sending.is_aligned = False
        self._to_attach.add(one.id)

    # -- commits -----------------------------------------------------------------------------------------------------

    def before(self, effects: list[Effect], chat: Chat) -> dict[str, str]:
        """What messages say now that a commit to come goes on with, by generation; for `committed`."""
        found: dict[str, str] = {}
        for one_id, entry in entries_told(effects).items():
            if entry is not None and entry.state != "running" and entry.target.kind == "continue":
                text = _said(chat, entry)[0]
                if text is not None:
                    found[one_id] = text
        return found

    def committed(self, version: Version, effects: list[Effect], chat: Chat, before: dict[str, str]) -> None:
        """The replica has installed a commit."""
        for one_id, entry in entries_told(effects).items():
            if entry is None:
                if one_id in self.known:
                    self._lose(self.known[one_id], _unknown())
            elif entry.state == "running":
                self._heard_of(one_id, entry.target, entry.message, entry.by, entry.supersedes)
            else:
                one = self._heard_of(one_id, entry.target, entry.message, entry.by, entry.supersedes)
                self._settle(one, entry, version, chat, before.get(one_id))

    def live(self, replica: Replica) -> bool:
        """The replica holds what the server does. True when the document has to be asked for."""
        self._missing = {one_id for one_id in self._missing if not self.known[one_id].is_over}
        if not self._missing:
            return False
        if NAMESPACE not in replica.stream.states:
            return True
        self.look_up(replica)
        return False

    def look_up(self, replica: Replica) -> None:
        """The document is there: what became of those that are missing."""
        version = replica.stream.states[NAMESPACE].version
        if version is not None and not replica.knows(version):
            # It was asked for and is newer than the replica: the commits that come tell.
            return
        missing, self._missing = self._missing, set()
        entries = replica.stream.generations
        for one in [self.known[one_id] for one_id in missing]:
            entry = entries.get(one.id)
            if one.is_over:
                continue
            if entry is None:
                self._lose(one, _unknown())
            elif entry.state == "running":
                if one.sending is not None:
                    one.sending.is_over = False
                self.realign(one)
            else:
                self._settle(one, entry, replica.head, replica.chat, None)

    def not_found(self, error: Exception) -> None:
        """The document cannot be read."""
        missing, self._missing = self._missing, set()
        for one_id in missing:
            self._lose(self.known[one_id], error)

    def _settle(self, one: Followed, entry: Generation, version: Version, chat: Chat, before: str | None) -> None:
        integrity = entry.integrity if isinstance(entry.integrity, str) else ""
        if entry.by == self._session and self._session not in entry.acked and integrity:
            self._to_ack[one.id] = integrity
        if one.is_over:
            return
        swipe = entry.swipe if entry.is_stored and isinstance(entry.swipe, int) else None
        if entry.is_stored:
            self._final_text(one, entry, chat, before)
        one.result = GenerationResult(
            entry.state, version, integrity, entry.is_stored, entry.message if entry.is_stored else None, swipe,
            entry.error if isinstance(entry.error, GenerationError) else None,
        )
        self._tell(events.GenerationEnded(one.id, one.result, one.offered))
        one.changed()

    @staticmethod
    def _final_text(one: Followed, entry: Generation, chat: Chat, before: str | None) -> None:
        text, reasoning = _said(chat, entry)
        if entry.target.kind == "continue" and entry.message == entry.target.message:
            text = text[len(before) :] if text is not None and before is not None and text.startswith(before) else None
            reasoning = None
        _become(one.running, text, reasoning)

    def _lose(self, one: Followed, error: Exception) -> None:
        if not one.is_over:
            one.error = error
            one.changed()

    # -- sending -----------------------------------------------------------------------------------------------------

    def began(self, generation_id: str, target: GenerationTarget, message: str) -> None:
        """The own start was accepted on this connection, and its text comes from here."""
        one = self._heard_of(generation_id, target, message, self._session, UNSET)
        one.sending = Sending()
        one.sending.is_aligned = True

    def resumed(self, one: Followed) -> None:
        """Text of this session comes from here again, behind what the server has."""
        one.sending = Sending()
        one.sending.is_fresh = True
        self.realign(one)

    def collect(self, address: str, now_s: float) -> list[bytes]:
        """Frames to send now; the chat is open on this connection."""
        frames = [encode(GenerationAck(address, one_id, integrity)) for one_id, integrity in self._to_ack.items()]
        self._to_ack.clear()
        for one_id in sorted(self._to_attach):
            one = self.known.get(one_id)
            if one is None or not (one.is_over or one.is_attaching):
                frames.append(encode(GenerationAttach(address, one_id, self._salvage(one))))
                if one is not None:
                    one.is_attaching = True
        self._to_attach.clear()
        for one in self.produced:
            sending = one.sending
            assert sending is not None, "asked just now"
            if sending.can_send(now_s) and (sending.is_closing or now_s >= sending.sent_at_s + PAUSE_S):
                frames += self._deltas(one, sending, address, now_s)
        return frames

    @staticmethod
    def _deltas(one: Followed, sending: Sending, address: str, now_s: float) -> list[bytes]:
        frames: list[bytes] = []
        while sending.sent != one.place:
            units, reasoning_units = sending.sent
            text = (one.running.text.since(units, CHUNK_CHARS) or "")[:CHUNK_CHARS]
            reasoning = (one.running.reasoning.since(reasoning_units, CHUNK_CHARS) or "")[:CHUNK_CHARS]
            frames.append(encode(GenerationDelta(address, one.id, units, text, reasoning_units, reasoning)))
            sending.sent = (units + units_of(text), reasoning_units + units_of(reasoning))
            sending.sent_at_s = now_s
        return frames

    @staticmethod
    def _salvage(one: Followed | None) -> Salvage | UnsetType:
        """What a crash took from the server and this client still has."""
        if one is None or one.salvaged is None or one.sending is not None:
            return UNSET
        text = one.running.text.since(one.salvaged[0]) or ""
        reasoning = one.running.reasoning.since(one.salvaged[1]) or ""
        given = Salvage(one.salvaged[0], text, _sha256_before(one.running.text, text))
        if reasoning:
            given.reasoning_offset, given.reasoning = one.salvaged[1], reasoning
            given.reasoning_prefix_sha256 = _sha256_before(one.running.reasoning, reasoning)
        return given

    def may_send(self, write: OwnWrite | None) -> bool:
        """False while text has to go before it."""
        one = self.known.get(write.generation) if isinstance(write, Unbased) else None
        if one is None or one.sending is None or one.is_over:
            return True
        return one.sending.is_over or one.sending.refusal is not None or (
            one.sending.is_aligned and one.sending.sent == one.place
        )

    @property
    def deadlines_s(self) -> list[float]:
        """When own text that waits can go."""
        waiting = [(one, one.sending) for one in self.produced]
        return [
            max(sending.sent_at_s + PAUSE_S, sending.paused_until_s)
            for one, sending in waiting if sending is not None and sending.is_aligned and sending.sent != one.place
        ]

    # -- the connection ----------------------------------------------------------------------------------------------

    def disconnected(self) -> None:
        """The next `opened` says where everything stands."""
        self._to_attach.clear()
        self._to_ack.clear()
        for one in self.running:
            one.is_attaching = False
            if one.sending is not None:
                one.sending.is_aligned = False
                one.sending.paused_until_s = 0.0

    def fail(self, error: Exception) -> None:
        """The chat is gone."""
        for one in self.running:
            self._lose(one, error)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _heard_of(
        self, one_id: str, target: GenerationTarget, message: str, by: str, supersedes: str | UnsetType, *,
        runs: bool = True,
    ) -> Followed:
        known = self.known.get(one_id)
        if known is not None:
            return known
        ended = [one for one in self.known.values() if one.is_over]
        if len(ended) >= ENDED_MAX:
            del self.known[ended[0].id]
        one = self.known[one_id] = Followed(
            one_id, target, message, by, supersedes if isinstance(supersedes, str) else None
        )
        if runs:
            self._tell(events.GenerationStarted(one_id, message, by))
        return one

    def _text_so_far(self, one: Followed, text: str, reasoning: str, durable: int | UnsetType) -> None:
        one.is_attaching = False
        one.durable = durable if isinstance(durable, int) else 0
        mine = str(one.running.text), str(one.running.reasoning)
        sending = one.sending
        if sending is not None:
            if sending.is_fresh:
                one.running.text, one.running.reasoning = StreamedText(text), StreamedText(reasoning)
            elif not (mine[0].startswith(text) and mine[1].startswith(reasoning)):
                sending.refusal = refused("generation-mismatch", "The server has another text than this program sent.")
            sending.sent = units_of(text), units_of(reasoning)
            sending.is_aligned, sending.is_fresh = True, False
        else:
            lost_chars = max(0, len(mine[0]) - len(text)) + max(0, len(mine[1]) - len(reasoning))
            keeps = not one.gave_up and lost_chars <= SALVAGE_CHARS_MAX
            one.gave_up, one.salvaged = False, None
            _become(
                one.running, None if keeps and mine[0].startswith(text) else text,
                None if keeps and mine[1].startswith(reasoning) else reasoning,
            )
            told = units_of(text), units_of(reasoning)
            if one.place != told:
                one.salvaged = told
                self._to_attach.add(one.id)
        one.changed()


def _become(running: Running, text: str | None, reasoning: str | None) -> None:
    """Take a whole text for ours; None leaves it as it is. Cost: the text."""
    if text is not None and text != str(running.text):
        running.text = StreamedText(text)
    if reasoning is not None and reasoning != str(running.reasoning):
        running.reasoning = StreamedText(reasoning)


def _sha256_before(whole: StreamedText, rest: str) -> str:
    """Of what comes before the `rest` of a text."""
    text = str(whole)
    return hashlib.sha256(text[: len(text) - len(rest)].encode()).hexdigest()


def _said(chat: Chat, entry: Generation) -> tuple[str | None, str | None]:
    """Text and reasoning of the message, or of its swipe, that a generation was stored in; None for what is not there.
    """
    if entry.message not in chat.messages:
        return None, None
    return swipes.said(chat.value(entry.message), entry.swipe if isinstance(entry.swipe, int) else None)


def _text(value: str | UnsetType) -> str:
    return value if isinstance(value, str) else ""


def _unknown() -> TellbackError:
    return refused("generation-unknown", "The chat knows nothing of this generation any more.")

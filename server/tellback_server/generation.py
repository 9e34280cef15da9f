"""The generations of one live chat: their text comes in, goes out to every tab, and into the log.

Rules of this module (BEHAVIOUR T5 to T20):
- Text goes out before it is durable; every frame says how much of it is.
- A tab is told of a generation once, with the text so far; every delta begins where the frame before it ended.
- What waits for a slow tab is a place in the text, not the text: it costs no memory and nobody else's time.
- What a generation comes to is decided by `decide` and told behind its commit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
from msgspec import UNSET, Raw

from tellback_protocol import codec
from tellback_protocol.decide import Committed, decide_acks, decide_end
from tellback_protocol.errors import Refused
from tellback_protocol.frames import ListedGeneration
from tellback_protocol.generation_requests import (
    Generate,
    GenerationAck,
    GenerationAttach,
    GenerationDelta,
    GenerationError,
    GenerationTarget,
    Salvage,
)
from tellback_protocol.generations import Generation
from tellback_server import records
from tellback_server.failpoint import failpoint
from tellback_server.live_generation import JOURNAL_BYTES, LiveGeneration, Place, ended_frame
from tellback_server.log import LogError
from tellback_server.producers import ProducerKey
from tellback_server.releases import Release, refusal_frame
from tellback_server.reply import Reply
from tellback_server.stray_texts import keep_strays
from tellback_server.websocket import text_frame

if TYPE_CHECKING:
    from tellback_protocol.generation_work import Ending
    from tellback_protocol.ids import Version
    from tellback_protocol.requests import Unnumbered
    from tellback_protocol.stream import Stream
    from tellback_server.actor import Actor
    from tellback_server.generation_desk import GenerationDesk
    from tellback_server.releases import Subscription
    from tellback_server.tab import Tab

__all__ = ["ChatGenerations"]

log = structlog.get_logger()


class ChatGenerations:
    """Those of one chat. Made with its actor, which hands it what concerns generations."""

    __slots__ = ("_actor", "_bodies", "_desk", "_held", "live")

    def __init__(self, actor: Actor, desk: GenerationDesk) -> None:
        self._actor = actor
        self._desk = desk
        self.live: dict[str, LiveGeneration] = {}
        self._held: dict[str, list[str]] = {}
        """Sessions whose acknowledgement is not committed yet, by generation."""
        self._bodies: dict[str, Raw] = {}
        """What model servers will be asked for generations whose start is being decided."""

    def __bool__(self) -> bool:
        return bool(self.live or self._held or self.is_stray)

    @property
    def is_stray(self) -> bool:
        """There is text whose generation another program took away."""
        stream = self._actor.stream
        return stream is not None and bool(stream.stray)

    @property
    def waits_for_beat(self) -> bool:
        """Not everything that the log shall have was given to it."""
        return bool(self._held or self.is_stray or any(one.place != one.journaled for one in self.live.values()))

    def keep_strays(self) -> None:
        """Put such text into the chat, once the tabs know of the other program (BEHAVIOUR T23)."""
        if self.is_stray and self._actor.state == "ready":
            keep_strays(self._actor, self._desk)

    @property
    def user(self) -> str:
        return self._actor.user

    @property
    def first_position(self) -> int | None:
        """The oldest record in the log that says which generations run; None when none does."""
        return min((one.first_position for one in self.live.values()), default=None)

    # -- what the actor tells ----------------------------------------------------------------------------------------

    def loaded(self, stream: Stream) -> None:
        """The chat was read. Those that ran before have a lease that begins now."""
        for generation_id in self.live.keys() - stream.running.keys():
            self._forget(generation_id)
        now_s = self._desk.now_s()
        for generation_id, running in stream.running.items():
            known = self.live.get(generation_id)
            if known is not None:
                known.running = running
                continue
            entry = stream.generations[generation_id]
            one = self.live[generation_id] = LiveGeneration(generation_id, running, self._lease_s(entry), now_s)
            one.is_told = True
            one.journaled = one.durable = one.place
            if isinstance(entry.upstream, str):
                # Nobody goes on where this server was cut off.
                one.lease_s = 0.0
            self._desk.began(self, running.size_bytes)
            log.info("generation-found", chat=self._actor.name, generation=generation_id, units=one.place[0])
        if stream.stray:
            self._desk.journal_soon(self)

    def committed(
        self, decision: Committed, tab: Tab | None, owner_json: bytes, position: int
    ) -> Callable[[set[Tab]], None] | None:
        """A commit changed the document: what is to be told behind it, or None."""
        stream = self._stream
        begun = [one for one in stream.running if one not in self.live]
        over = [one for one in self.live if one not in stream.running]
        if not begun and not over:
            return None
        if begun:
            failpoint("generation.after_start")
        now_s = self._desk.now_s()
        started: list[LiveGeneration] = []
        for generation_id in begun:
            entry = stream.generations[generation_id]
            one = LiveGeneration(generation_id, stream.running[generation_id], self._lease_s(entry), now_s)
            one.first_position = position
            if isinstance(entry.upstream, str):
                one.upstream, one.lost_s = True, None
                one.body = self._bodies.pop(generation_id, None)
            elif tab is not None and tab.is_open:
                self._produced_by(one, tab, owner_json)
            self.live[generation_id] = one
            started.append(one)
            self._desk.began(self, 0)
            log.info("generation-started", chat=self._actor.name, generation=generation_id,
                     target=entry.target.kind, session=entry.by[:8])
        if over:
            failpoint("generation.after_end")
            # What the same turn of the loop brought is heard before the end of it.
            self._desk.send_now(self)
        ended: list[tuple[LiveGeneration, Generation]] = []
        for generation_id in over:
            # An entry that is no more was taken away by another program.
            entry = stream.generations.get(generation_id) or Generation("orphaned", GenerationTarget(), "", "", 0)
            one = self.live[generation_id]
            ended.append((one, entry))
            self._forget(generation_id)
            self._desk.ended(entry.state)
            log.info("generation-ended", chat=self._actor.name, generation=generation_id, state=entry.state,
                     units=one.place[0], duration_ms=round(1000 * (now_s - one.began_s)))
        return lambda touched: self._tell(started, ended, decision.version, touched)

    def listed(self, session: str) -> tuple[list[ListedGeneration], dict[str, Place]]:
        """What `opened` says of them, and where deltas to that tab begin."""
        stream = self._stream
        found: list[ListedGeneration] = []
        heard: dict[str, Place] = {}
        for generation_id, entry in stream.generations.items():
            listed = ListedGeneration(
                generation_id, entry.target, entry.message, entry.state, entry.by, supersedes=entry.supersedes
            )
            one = self.live.get(generation_id)
            if one is not None:
                heard[generation_id] = place = one.place
                listed.text, listed.offset, listed.durable = str(one.running.text), place[0], one.durable[0]
                if place[1]:
                    listed.reasoning, listed.reasoning_offset = str(one.running.reasoning), place[1]
            elif entry.by == session and session not in entry.acked:
                listed.integrity, listed.error, listed.stored = entry.integrity, entry.error, entry.is_stored
            else:
                continue
            found.append(listed)
        return found, heard

    def returned(self, tab: Tab, owner_json: bytes) -> None:
        """A session opened the chat: if it produces something here, it may go on, and the lease begins anew."""
        for generation_id, one in self.live.items():
            if one.producer is not tab and self._stream.generations[generation_id].producer == tab.session_id:
                self._produced_by(one, tab, owner_json)
                one.lost_s = self._desk.now_s()

    def lost(self, tab: Tab) -> None:
        """A connection is gone, and with it what it produced."""
        for one in self.live.values():
            if one.producer is tab:
                one.producer, one.lost_s = None, self._desk.now_s()
                log.info("generation-producer-lost", chat=self._actor.name, generation=one.id, lease_s=one.lease_s)

    def clear(self) -> None:
        """The chat is not here any more."""
        self._held.clear()
        if self._actor.stream is not None:
            self._actor.stream.stray = {}
        for generation_id in list(self.live):
            self._forget(generation_id)

    # -- requests ----------------------------------------------------------------------------------------------------

    def handle(self, tab: Tab, request: Unnumbered, owner_json: bytes, size_bytes: int) -> None:
        """A frame without an op number."""
        self.take(tab, request, owner_json)
        tab.answered(size_bytes)

    def take(self, tab: Tab, request: Unnumbered, owner_json: bytes) -> None:
        """`handle` for what was not counted as in flight."""
        try:
            if type(request) is GenerationDelta:
                self._delta(tab, request, owner_json)
            elif isinstance(request, GenerationAttach):
                self._attach(tab, request, owner_json)
            elif isinstance(request, GenerationAck):
                self._ack(tab, request)
        except Refused as refusal:
            self._desk.counters.refused(refusal.code)
            refusal.details = {"generation": request.generation, **(refusal.details or {})}
            tab.outbox.answer(self._actor, text_frame(refusal_frame(request, owner_json, refusal)))
            tab.outbox.flush()

    def _one(self, generation_id: str) -> tuple[LiveGeneration, Generation]:
        one, entry = self.live.get(generation_id), self._stream.generations.get(generation_id)
        if entry is None:
            raise Refused("generation-unknown", "The chat has no such generation.", pointer="/generation")
        if one is None:
            raise Refused("generation-ended", "This generation has ended.", pointer="/generation",
                          details={"state": entry.state})
        return one, entry

    def asks(self, request: Generate) -> None:
        """A `generate` was accepted; its commit comes next."""
        self._bodies[request.generation] = request.body

    def _delta(self, tab: Tab, request: GenerationDelta, owner_json: bytes) -> None:
        one, entry = self._one(request.generation)
        if one.producer is not tab:
            if entry.producer != tab.session_id:
                raise Refused("not-producer", "Another session produces this text.", pointer="/generation")
            self._produced_by(one, tab, owner_json)
        one.lost_s = None
        self._desk.counters.generation_deltas += 1
        self.add(one, request.offset, request.text, request.reasoning_offset, request.reasoning)

    def add(self, one: LiveGeneration, offset: int, text: str, reasoning_offset: int, reasoning: str) -> None:
        """Install a delta and pass it on. Raises Refused."""
        if self._stream.contradiction:
            raise self._stream.undecided()
        desk = self._desk
        before = one.running.size_bytes
        desk.check_room(self.user, len(text) + len(reasoning))
        reply = self._stream.generations[one.id].reply
        room_bytes = desk.document_bytes - (len(reply) if isinstance(reply, Raw) else 0)
        added = one.running.add(offset, text, reasoning_offset, reasoning, room_bytes)
        one.active_s = desk.now_s()
        if added:
            failpoint("generation.after_text")
            one.thought(added.text, desk.now_s())
            grown = one.running.size_bytes - before
            one.unjournaled_bytes += grown
            desk.grew(self, grown)
            if one.unjournaled_bytes >= JOURNAL_BYTES:
                self.journal()

    def _attach(self, tab: Tab, request: GenerationAttach, owner_json: bytes) -> None:
        actor = self._actor
        subscription = actor.audience.subscriptions.get(tab)
        if subscription is None:
            raise Refused("not-open", "Open the chat first.", pointer="/chat")
        one, entry = self._one(request.generation)
        if isinstance(request.salvage, Salvage):
            self._salvage(one, request.salvage)
        if entry.producer == tab.session_id:
            self._produced_by(one, tab, owner_json)
        place = one.place
        frame = one.started(entry, owner_json, request.id)

        def attach(_touched: set[Tab]) -> None:
            if subscription.active:
                subscription.heard[one.id] = place
                self._desk.mark(self)

        actor.audience.release_later(Release(actor.last_position, actor, tab, frame, then=attach))

    def _salvage(self, one: LiveGeneration, salvage: Salvage) -> None:
        before = one.place
        one.running.check_given_back(salvage)
        self.add(one, salvage.offset, salvage.text, salvage.reasoning_offset, salvage.reasoning)
        log.info("generation-salvaged", chat=self._actor.name, generation=one.id, units=one.place[0] - before[0],
                 reasoning_units=one.place[1] - before[1])

    def _ack(self, tab: Tab, request: GenerationAck) -> None:
        entry = self._stream.generations.get(request.generation)
        if entry is None:
            raise Refused("generation-unknown", "The chat has no such generation.", pointer="/generation")
        if entry.integrity != request.integrity:
            raise Refused("version-unknown", "This is not the version that ended it.", pointer="/integrity")
        if self._stream.contradiction:
            raise self._stream.undecided()
        if tab.session_id not in entry.acked:
            self._held.setdefault(request.generation, []).append(tab.session_id)
            self._desk.journal_soon(self)

    # -- out ---------------------------------------------------------------------------------------------------------

    def send(self, touched: set[Tab]) -> None:
        """What came since the last time, to everybody who has the chat open."""
        for one in self.live.values():
            if not one.is_told:
                continue
            for tab, subscription in self._actor.audience.subscriptions.items():
                if tab is one.producer or subscription.backlog is not None:
                    continue
                since = subscription.heard.get(one.id)
                if since is None or since == one.place:
                    continue
                outbox = tab.outbox
                if outbox.is_free:
                    outbox.send(one.delta(subscription.owner_json, since))
                    subscription.heard[one.id] = one.place
                    self._desk.counters.generation_deltas_sent += 1
                    touched.add(tab)
                else:
                    outbox.delta((self._actor, one.id), self._delta_for(one, subscription))

    def _delta_for(self, one: LiveGeneration, subscription: Subscription) -> Callable[[], bytes | None]:
        """What makes the frame when the tab has room; nothing when the generation has ended by then."""

        def make() -> bytes | None:
            since = subscription.heard.get(one.id)
            if since is None or since == one.place or not subscription.active or self.live.get(one.id) is not one:
                return None
            frame = one.delta(subscription.owner_json, since)
            subscription.heard[one.id] = one.place
            self._desk.counters.generation_deltas_sent += 1
            return frame

        return make

    def _tell(
        self, started: list[LiveGeneration], ended: list[tuple[LiveGeneration, Generation]], version: Version,
        touched: set[Tab],
    ) -> None:
        """The commit is durable and was told."""
        actor = self._actor
        for one in started:
            one.is_told = True
            if self.live.get(one.id) is one:
                self._ask_model(one)
            entry = self._stream.generations.get(one.id)
            for tab, subscription in list(actor.audience.subscriptions.items()):
                subscription.heard[one.id] = (0, 0)
                if tab is not one.producer and entry is not None:
                    actor.audience.tell(tab, one.started(entry, subscription.owner_json, is_new=True), touched)
            self._desk.mark(self)
        if ended:
            failpoint("generation.before_tell")
        for one, entry in ended:
            for tab, subscription in list(actor.audience.subscriptions.items()):
                subscription.heard.pop(one.id, None)
                actor.audience.tell(tab, ended_frame(one.id, entry, version, subscription.owner_json), touched)
            producer = one.producer
            if producer is not None and producer.is_open and producer not in actor.audience.subscriptions:
                actor.audience.tell(producer, ended_frame(one.id, entry, version, one.producer_json), touched)

    # -- durability --------------------------------------------------------------------------------------------------

    def journal(self) -> None:
        """Give the log what it has not got yet. What fails now is tried again at the next beat."""
        actor = self._actor
        stream = actor.stream
        if stream is None or stream.contradiction or not self._desk.may_journal or actor.state == "ended":
            return
        for one in self.live.values():
            if one.place == one.journaled:
                continue
            since, place = one.journaled, one.place
            text, reasoning = one.running.text.since(since[0]), one.running.reasoning.since(since[1])
            body = codec.encode(records.Deltas(one.id, since[0], text or "", since[1], reasoning or ""))
            try:
                position = actor.writes.journal(body)
            except LogError as error:
                log.error("generation-not-journaled", chat=actor.name, generation=one.id, error=str(error))
                return
            failpoint("generation.after_journal")
            one.journaled = place
            one.unjournaled_bytes = 0
            actor.audience.release_later(Release(position, actor, then=self._durable(one, place)))

    def _durable(self, one: LiveGeneration, place: Place) -> Callable[[set[Tab]], None]:
        def told(touched: set[Tab]) -> None:
            one.durable = place
            producer = one.producer
            if producer is None or not producer.is_open or self.live.get(one.id) is not one:
                return
            if producer.outbox.is_free:
                producer.outbox.send(one.durability())
                touched.add(producer)
            else:
                producer.outbox.delta((self._actor, one.id), one.durability)

        return told

    def commit_acks(self) -> None:
        """What was acknowledged since the last beat becomes durable."""
        if not self._held or self._actor.state != "ready":
            return
        try:
            self._desk.admit()
            decision = decide_acks(self._stream, self._held, self._desk.fresh(), self._desk.limits)
        except Refused:
            # The session acknowledges again when it is offered the result again.
            self._held.clear()
            return
        self._held.clear()
        if decision is not None:
            self._actor.writes.commit_own(decision)

    def sweep(self, now_s: float, silence_s: float) -> None:
        """End those that nobody goes on with."""
        for one in list(self.live.values()):
            is_lost = one.lost_s is not None and now_s - one.lost_s >= one.lease_s
            if is_lost or (now_s - one.active_s >= silence_s and not one.upstream):
                self.end(one.id, "orphaned")

    def end(self, generation_id: str, state: Ending, error: GenerationError | None = None) -> bool:
        """The server ends a generation. False when it cannot now, and should be tried again."""
        return self._actor.state == "ready" and self._end(generation_id, state, error)

    def cancel_all(self) -> bool:
        """End all, while the actor stands still for a deletion. True when something ran."""
        return any([self._end(generation_id, "cancelled") for generation_id in list(self.live)])

    def _end(self, generation_id: str, state: Ending, error: GenerationError | None = None) -> bool:
        if self._stream.damage:
            return False
        if generation_id not in self.live:
            return True
        try:
            self._desk.admit()
            decision = decide_end(
                self._stream, generation_id, state, self._desk.fresh(), self._desk.limits,
                UNSET if error is None else error,
            )
            self._actor.writes.commit_own(decision)
        except (Refused, LogError) as problem:
            log.warning("generation-not-ended", chat=self._actor.name, generation=generation_id, error=str(problem))
            return False
        return True

    # -- small questions ---------------------------------------------------------------------------------------------

    @property
    def _stream(self) -> Stream:
        stream = self._actor.stream
        assert stream is not None, "a live chat"
        return stream

    def _lease_s(self, entry: Generation) -> float:
        return float(entry.lease_s) if isinstance(entry.lease_s, int) else self._desk.lease_s

    def _produced_by(self, one: LiveGeneration, tab: Tab, owner_json: bytes) -> None:
        one.produced_by(tab, owner_json)
        tab.producing.add(self)

    def _key(self, generation_id: str) -> ProducerKey:
        return self.user, self._actor.chat_id, generation_id

    def _ask_model(self, one: LiveGeneration) -> None:
        """The start is durable: now the model server is asked, once (BEHAVIOUR U1)."""
        body, one.body = one.body, None
        entry = self._stream.generations[one.id]
        if body is not None and isinstance(entry.upstream, str):
            self._desk.producers.start(self._key(one.id), entry.upstream, bytes(body), Reply(self, one.id))

    def _forget(self, generation_id: str) -> None:
        one = self.live.pop(generation_id)
        if one.upstream:
            self._desk.producers.stop(self._key(generation_id))
        producer = one.producer
        if producer is not None and all(other.producer is not producer for other in self.live.values()):
            producer.producing.discard(self)
        self._desk.left(self, one.running.size_bytes)

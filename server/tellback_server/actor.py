"""One owner's actor: requests come in, and are answered when what they led to is durable.

    loading --load--> ready <--> busy (an outside edit is adopted, a life write is carried out)
       |                |          |
       +--> missing     +--idle--> ended <--idle-- gone (in the trash: answers what it answered before)

It holds the mailbox and the state; what is done in them has four rooms: `reads`, `writes`, `generations`, and the
`audience` that is told.

Rules of this module:
- One owner, one mailbox, one order. A step runs to its end without awaiting, so nobody sees half of it (BEHAVIOUR L1).
- What shows a version waits until that version is durable: acks, refusals, conflicts, reads, broadcasts (L2).
- A request that arrives while the actor cannot answer waits in a bounded mailbox; past the bound it is refused (L3).
- An actor that ended answers nobody; who held on to it asks the hub for its successor (L4).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Literal

from tellback_protocol import codec
from tellback_protocol.chat import Chat
from tellback_protocol.decide import answered
from tellback_protocol.errors import Refused
from tellback_protocol.frames import Reset
from tellback_protocol.ids import StateOwner, Version, parse_place
from tellback_protocol.requests import Append, ChatCreate, Malformed, Open, Request, Unnumbered, Write
from tellback_protocol.stream import Stream
from tellback_server import records
from tellback_server.audience import Audience
from tellback_server.generation import ChatGenerations
from tellback_server.reads import Reads
from tellback_server.releases import Envelope, Release, refusal_frame
from tellback_server.writes import Writes

if TYPE_CHECKING:
    from tellback_protocol.generation_requests import GenerationDelta
    from tellback_server.hub import Hub
    from tellback_server.loading import LoadedStream
    from tellback_server.store.held import FileState
    from tellback_server.tab import Tab

MAILBOX_MAX = 256
"""Requests that wait for one actor; more are answered `overloaded`."""
MAILBOX_BYTES_MAX = 64 << 20
"""Their bytes; one request always fits."""
State = Literal["loading", "missing", "ready", "busy", "gone", "ended"]


class Actor:
    """Everything about one chat that is live in this process."""

    __slots__ = (
        "_hub", "_mailbox", "answers", "audience", "chat_id", "dirty_since_s", "file", "folding", "generations",
        "idle_since_s", "is_chat", "kept_seq", "key", "last_position", "looked_around", "name", "reads", "settling",
        "state", "stream", "turn", "user", "writes",
    )

    def __init__(self, hub: Hub, user: str, name: str) -> None:
        self._hub = hub
        self.user = user
        self.name = name
        """The owner's one text: `character:...`, `group:...` or `preset:...`."""
        self.is_chat = not isinstance(parse_place(name), StateOwner)
        """False for a character or preset: it has state documents only."""
        self.chat_id = ""
        self.key = ""
        """The log's owner key, set when the chat is known."""
        self.state: State = "loading"
        self.stream: Stream | None = None
        self.file: FileState | None = None
        """What the chat's files hold, and what they do not hold yet."""
        self.last_position = 0
        """Of this actor's last record in the log."""
        self.dirty_since_s: float | None = None
        """When the oldest commit that is not in the files was made."""
        self.folding = False
        """True while a checkpoint runs."""
        self.looked_around = False
        """The folder was just listed for who waits."""
        self.settling: Envelope | None = None
        """The life write that it stands still for, until its files are brought up."""
        self.turn = 0
        """Rises whenever the actor goes on. Who made it stand still, and awaited something, may let it go only in the
        same turn: else somebody else has made it stand still since."""
        self.idle_since_s: float | None = None
        self.kept_seq = -1
        """The stream's seq when a backup was taken, or tried, before a write that loses something."""
        self._mailbox: deque[Envelope] = deque()
        self.answers: Stream | None = None
        """Of a chat that another program deleted: what its ops led to."""
        self.audience = Audience(self, hub)
        self.reads = Reads(self, hub)
        self.writes = Writes(self, hub)
        self.generations = ChatGenerations(self, hub.generations)

    # -- requests ----------------------------------------------------------------------------------------------------

    def submit(self, tab: Tab, request: Request | Malformed, owner_json: bytes, size_bytes: int) -> None:
        """Handle a request, now or when the actor can. `size_bytes` counts as in flight until it is answered."""
        if self.state in ("ready", "gone") and not self._mailbox:
            self.handle(tab, request, owner_json, size_bytes)
        elif self.state == "missing":
            self._handle_missing(tab, request, owner_json, size_bytes)
        elif len(self._mailbox) >= MAILBOX_MAX or (
            self._mailbox and size_bytes + sum(letter.size_bytes for letter in self._mailbox) > MAILBOX_BYTES_MAX
        ):
            self.refuse(
                tab, request, owner_json, size_bytes,
                Refused("overloaded", "Too many requests wait for this chat.", details={"after_ms": 500}),
            )
        else:
            self._mailbox.append(Envelope(tab, request, owner_json, size_bytes))

    def submit_appends(self, tab: Tab, requests: list[Append], owner_json: bytes, sizes: list[int]) -> None:
        """`submit` for the appends of one read."""
        while requests:
            done = 0
            if self.state == "ready" and not self._mailbox and not self.reads.held:
                done = self.writes.append_plain(tab, requests, owner_json, sizes)
                if done == len(requests):
                    return
            # Odd ones come together: to look at all that are behind each of them again would cost their square.
            behind = done + 1 if done else len(requests)
            for request, size_bytes in zip(requests[done:behind], sizes[done:behind], strict=True):
                self.submit(tab, request, owner_json, size_bytes)
            requests, sizes = requests[behind:], sizes[behind:]

    def take_text(self, tab: Tab, delta: GenerationDelta, owner_json: bytes) -> bool:
        """`submit` for the most frequent frame, which has no answer to wait for. False when it has to wait."""
        if self.state != "ready" or self._mailbox or self.reads.held:
            return False
        self.generations.take(tab, delta, owner_json)
        return True

    def drain(self) -> None:
        """Handle what waited, in order, as far as the state allows."""
        while self._mailbox and self.state in ("ready", "missing", "gone"):
            letter = self._mailbox.popleft()
            if self.state != "missing":
                self.handle(letter.tab, letter.request, letter.owner_json, letter.size_bytes)
            else:
                self._handle_missing(letter.tab, letter.request, letter.owner_json, letter.size_bytes)
        if self.state == "missing":
            self._hub.end(self)

    def handle(self, tab: Tab, request: Request | Malformed, owner_json: bytes, size_bytes: int) -> None:
        """One step: no await from here to the end."""
        held = self.reads.held
        if tab in held:
            held[tab].append(Envelope(tab, request, owner_json, size_bytes))
        elif isinstance(request, Write | Malformed):
            self.writes.handle(tab, request, owner_json, size_bytes)
        elif self.state == "gone":
            stream = self.live_stream
            deleted = Refused(
                "deleted", stream.in_trash(),
                details={"chat_id": self.chat_id, "next_op": stream.next_op(tab.session_id)},
            )
            self.refuse(tab, request, owner_json, size_bytes, deleted)
        elif isinstance(request, Unnumbered):
            self.generations.handle(tab, request, owner_json, size_bytes)
        else:
            self.reads.handle(tab, request, owner_json, size_bytes)

    def _handle_missing(self, tab: Tab, request: Request | Malformed, owner_json: bytes, size_bytes: int) -> None:
        is_making = isinstance(request, Open) and request.create and request.since is None
        if is_making and self.is_chat and self._hub.lives.former(self.user, self.name) is None:
            assert isinstance(request, Open), "asked just above"
            full = tab.no_room_for(self, request)
            if full is not None:
                self.refuse(tab, request, owner_json, size_bytes, full)
                return
            self._hub.create(self, tab, request, owner_json, size_bytes)
            return
        if isinstance(request, Write) and self.answers is not None:
            outcome = answered(self.answers, request, tab.session_id)
            if outcome is not None:
                self.writes.answer_again(Envelope(tab, request, owner_json, size_bytes), outcome)
                return
        former = self._hub.lives.former(self.user, self.name)
        if isinstance(request, ChatCreate):
            self._hub.lives.create(self, Envelope(tab, request, owner_json, size_bytes))
            return
        if former is not None:
            self._hub.lives.answer_former(self, Envelope(tab, request, owner_json, size_bytes), former)
            return
        refusal = Refused("not-found", "There is no such chat.", pointer="/chat")
        if not self.is_chat:
            refusal = Refused("not-found", "There is no such character or preset.", pointer="/owner")
        elif isinstance(request, Open) and request.create:
            refusal = Refused("create-with-since", "create works only with since null.", pointer="/since")
        self.refuse(tab, request, owner_json, size_bytes, refusal)

    def put_back(self, *letters: Envelope) -> None:
        """They come again, in this order, before everything else that waits."""
        self._mailbox.extendleft(reversed(letters))

    async def hand_on(self) -> None:
        """This actor ended: what waits in its mailbox goes to its successor."""
        while self._mailbox:
            await self._hub.submit_again(self, self._mailbox.popleft())

    def answer(self, tab: Tab, frame: bytes, size_bytes: int = 0) -> None:
        """A frame for one tab; it leaves when everything that it may speak of is durable."""
        self.audience.release_later(Release(self.last_position, self, tab, frame, size_bytes))

    def refuse(
        self, tab: Tab, request: Request | Malformed, owner_json: bytes, size_bytes: int, refusal: Refused
    ) -> None:
        """Answer a request with an error that is not an outcome."""
        self.answer(tab, refusal_frame(request, owner_json, refusal), size_bytes)

    def refuse_letter(self, letter: Envelope, refusal: Refused) -> None:
        """As `refuse`."""
        self.refuse(letter.tab, letter.request, letter.owner_json, letter.size_bytes, refusal)

    # -- life --------------------------------------------------------------------------------------------------------

    def loaded(self, loaded: LoadedStream) -> None:
        """The chat was read: answer what waited."""
        self.made(loaded)
        self.generations.loaded(loaded.stream)
        self.resume()

    def adopted(self, loaded: LoadedStream) -> None:
        """An outside edit became our history: every tab opens again. The reset leaves when the adoption is durable."""
        reset = Reset("outside-edit", loaded.stream.head)
        if loaded.adoption is not None and loaded.adoption.recovered:
            reset.recovered = loaded.adoption.recovered
        if loaded.adoption is not None and loaded.adoption.backups:
            reset.kept = True
        self.made(loaded)
        self.generations.loaded(loaded.stream)
        self._reset_all(reset)
        self.resume()

    def resumed(self, loaded: LoadedStream) -> None:
        """The files turned out to be ours after all: nobody notices."""
        self.file = loaded.file
        self.resume()

    def resume(self, state: Literal["ready", "gone"] = "ready") -> None:
        """It stood still, and goes on."""
        self.state = state
        self.turn += 1
        self.drain()

    def created(self, loaded: LoadedStream, tab: Tab, request: Open, size_bytes: int) -> None:
        """The chat that an `open` asked for begins. Raises LogError."""
        self.made(loaded)
        self.writes.begin()
        self.state = "ready"
        self.reads.opened(tab, request, codec.owner_member(request.chat), size_bytes, created=True)
        self._hub.shelf.became_dirty(self)

    def made(self, loaded: LoadedStream) -> None:
        """What was read, or begins here, is the owner's from here on. Raises LogError."""
        self._become(loaded.stream)
        self.file = loaded.file
        self.writes.anchored = loaded.anchored
        self.writes.record(loaded)

    def not_made(self) -> None:
        """The chat could not be made: whoever waited for it learns that it is not there."""
        self.state = "missing"
        self.drain()

    def missing(self, answers: Stream | None) -> None:
        """There is no file; `answers` tells what the ops of the chat led to that stood there."""
        self.answers = answers
        if answers is not None:
            self.key = records.owner_key(self.user, answers.chat_id)
        self.not_made()

    def departed(self, stream: Stream) -> None:
        """What is known of a chat in the trash was read."""
        self._become(stream)
        self.writes.anchored = True
        self.state = "gone"
        self.drain()

    def leave(self) -> None:
        """The chat is in the trash and everybody was told: nobody hears more of it, and its documents are let go."""
        self.audience.dismiss()
        self.generations.clear()
        stream = self.live_stream
        stream.chat = Chat(stream.chat.version)
        stream.states = {}
        stream.damage = []
        self.file = None
        self.state = "gone"
        self.drain()

    def restored(self, version: Version) -> None:
        """The files are those of a backup: every tab opens again. This actor ends."""
        self._reset_all(Reset("restored", version))

    def repaired(self) -> None:
        """A repair wrote its files: every tab opens again. This actor ends."""
        self._reset_all(Reset("outside-edit", self.audience.durable_head))

    def lost(self) -> None:
        """The chat is gone from under its tabs: they are told, and open again or learn that it is not there."""
        self._reset_all(Reset("failed", self.audience.durable_head))

    def failed(self, refusal: Refused) -> None:
        """The chat cannot be loaded: tell everybody who waits, and end."""
        self.state = "ended"
        while self._mailbox:
            letter = self._mailbox.popleft()
            self.refuse_letter(letter, refusal)

    def _reset_all(self, reset: Reset) -> None:
        for tab, subscription in list(self.audience.subscriptions.items()):
            self.answer(tab, codec.of_owner(reset, subscription.owner_json))
            self.audience.unsubscribe(tab)

    def _become(self, stream: Stream) -> None:
        self.stream = stream
        self.chat_id = stream.chat_id
        self.key = records.owner_key(self.user, stream.chat_id)
        self.audience.durable_head = stream.head

    # -- small questions ---------------------------------------------------------------------------------------------

    @property
    def quiet(self) -> bool:
        """True when nobody has the chat open and nothing waits to leave."""
        audience = self.audience
        return not (
            audience.subscriptions or audience.unreleased or self._mailbox or self.reads.held or self.generations
        )

    @property
    def live_stream(self) -> Stream:
        """The stream of an owner that was read."""
        assert self.stream is not None, "it was read"
        return self.stream

    @property
    def live_file(self) -> FileState:
        """What the files hold of an owner that was read and is not in the trash."""
        assert self.file is not None, "it was read"
        return self.file

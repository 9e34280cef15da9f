"""One owner's actor: requests in, decisions made, answers out when they are durable.

    loading --load--> ready <--> busy (an outside edit is adopted, a life write is carried out)
       |                |          |
       +--> missing     +--idle--> ended <--idle-- gone (in the trash: answers what it answered before)

Rules of this module:
- One owner, one mailbox, one order. A step runs to its end without awaiting, so nobody sees half of it (BEHAVIOUR L1).
- What shows a version waits until that version is durable: acks, refusals, conflicts, reads, broadcasts (L2).
- A request that arrives while the actor cannot answer waits in a bounded mailbox; past the bound it is refused (L3).
- An actor that ended answers nobody; who held on to it asks the hub for its successor (L4).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Literal

import msgspec
import structlog
from msgspec import UNSET, Raw

from tellback_protocol import codec
from tellback_protocol.appending import append_plain
from tellback_protocol.chat import Chat
from tellback_protocol.decide import (
    Committed,
    Duplicate,
    Fresh,
    Stored,
    conflict_body,
    decide,
    fingerprint,
    install,
    install_commit,
)
from tellback_protocol.effects import Commit
from tellback_protocol.errors import Refused
from tellback_protocol.floors import LOG_SUFFIX
from tellback_protocol.frames import Behind, Closed, Reset, StateFrame, StateValue
from tellback_protocol.generation_requests import Generate, GenerationStart
from tellback_protocol.generations import NAMESPACE as GENERATIONS
from tellback_protocol.ids import StateOwner, Version, namespace_problem, parse_place
from tellback_protocol.outcomes import Outcome, is_short
from tellback_protocol.requests import (
    Append,
    Batch,
    BatchedFloorUpdate,
    BatchedStateDelete,
    BatchedStateUpdate,
    ChatBranch,
    ChatCreate,
    Close,
    FloorUpdate,
    History,
    LifeWrite,
    Malformed,
    Open,
    Request,
    StateDelete,
    StateGet,
    StateUpdate,
    Unnumbered,
    Write,
)
from tellback_protocol.stream import Stream
from tellback_server import records
from tellback_server.backlog import AT_ONCE_BYTES, Backlog
from tellback_server.generation import ChatGenerations
from tellback_server.log import LogError, RecordTooLarge
from tellback_server.opening import answer_open
from tellback_server.owner_past import long_answer
from tellback_server.releases import Envelope, Following, Release, Run, Subscription, Told, followed_by, refusal_frame
from tellback_server.replay import Missed, is_beyond_memory
from tellback_server.store.jsonl import header_now
from tellback_server.websocket import text_frame, text_frames

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tellback_server.hub import Hub
    from tellback_server.loading import LoadedStream
    from tellback_server.outbox import Outbox
    from tellback_server.store.held import FileState
    from tellback_server.tab import Tab

log = structlog.get_logger()

UNCOMMITTED_BYTES_MAX = 64 << 20
"""Records that may wait for the disk; more is answered `overloaded`."""
MAILBOX_MAX = 256
"""Requests that wait for one actor; more are answered `overloaded`."""
MAILBOX_BYTES_MAX = 64 << 20
"""Their bytes; one request always fits."""
StatesWrite = StateUpdate | StateDelete | FloorUpdate | Batch
"""What may touch state documents."""
State = Literal["loading", "missing", "ready", "busy", "gone", "ended"]


class Actor:
    """Everything about one chat that is live in this process."""

    __slots__ = (
        "_answers", "_author", "_held", "_hub", "_last_position", "_mailbox", "_told", "_unreleased", "anchored",
        "chat_id", "dirty_since_s", "durable_head", "file", "folding", "generations", "idle_since_s", "is_chat", "key",
        "looked_around", "name", "settling", "state", "stream", "subscriptions", "user",
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
        self.subscriptions: dict[Tab, Subscription] = {}
        self.durable_head = Version(1, 0, "")
        """The version up to which everybody may know."""
        self.anchored = False
        """True when the log knows which file this actor's records stand on."""
        self.dirty_since_s: float | None = None
        """When the oldest commit that is not in the files was made."""
        self.folding = False
        """True while a checkpoint runs."""
        self.looked_around = False
        """The folder was just listed for who waits."""
        self.settling: Envelope | None = None
        """The life write that waits for a checkpoint."""
        self.idle_since_s: float | None = None
        self._mailbox: deque[Envelope] = deque()
        self._held: dict[Tab, deque[Envelope]] = {}
        """Tabs whose `open` waits for the log, and what they asked behind it; everybody else goes on."""
        self._unreleased = 0
        self._told: list[Told] = []
        """Commits of the batch that is being released, all by `_author`."""
        self._author: Tab | None = None
        self._answers: Stream | None = None
        """Of a chat that another program deleted: what its ops led to."""
        self._last_position = 0
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
            self._refuse(
                tab, request, owner_json, size_bytes,
                Refused("overloaded", "Too many requests wait for this chat.", details={"after_ms": 500}),
            )
        else:
            self._mailbox.append(Envelope(tab, request, owner_json, size_bytes))

    def submit_appends(self, tab: Tab, requests: list[Append], owner_json: bytes, sizes: list[int]) -> None:
        """`submit` for the appends of one read."""
        while requests:
            done = 0
            if self.state == "ready" and not self._mailbox and not self._held:
                done = self._append_plain(tab, requests, owner_json, sizes)
                if done == len(requests):
                    return
            self.submit(tab, requests[done], owner_json, sizes[done])
            requests, sizes = requests[done + 1 :], sizes[done + 1 :]

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
        if tab in self._held:
            self._held[tab].append(Envelope(tab, request, owner_json, size_bytes))
        elif isinstance(request, Write | Malformed):
            self._write(tab, request, owner_json, size_bytes)
        elif self.state == "gone":
            deleted = Refused(
                "deleted", self._stream.in_trash(),
                details={"chat_id": self.chat_id, "next_op": self._stream.next_op(tab.session_id)},
            )
            self._refuse(tab, request, owner_json, size_bytes, deleted)
        elif isinstance(request, Open):
            # Another program may have changed the files since they were looked at last.
            if self._hub.shelf.look(self, around=True):
                self._mailbox.appendleft(Envelope(tab, request, owner_json, size_bytes))
            else:
                self._open(tab, request, owner_json, size_bytes)
        elif isinstance(request, Unnumbered):
            self.generations.handle(tab, request, owner_json, size_bytes)
        elif isinstance(request, StateGet):
            self._state_get(tab, request, owner_json, size_bytes)
        elif isinstance(request, History):
            self._hub.spawn(self._history(tab, request, owner_json, size_bytes))
        else:
            self._close(tab, request, owner_json, size_bytes)

    def _append_plain(self, tab: Tab, requests: list[Append], owner_json: bytes, sizes: list[int]) -> int:
        """The most frequent write, without the detours of the others. How many there were before one not that plain."""
        stream, file, hub = self.stream, self.file, self._hub
        assert stream is not None, "ready means loaded"
        assert file is not None, "ready means loaded"
        clock, journal = hub.clock, hub.log
        ops = stream.sessions.get(tab.session_id)
        if ops is None or not self.anchored or not hub.is_open or journal.uncommitted_bytes > UNCOMMITTED_BYTES_MAX:
            return 0
        commits = append_plain(
            stream, ops, tab.session_json, requests, clock.integrity, clock.message_id, clock.now_ms(), hub.limits
        )
        if not commits:
            return 0
        bodies: list[bytes] = []
        acks: list[bytes] = []
        for commit in commits:
            bodies.append(commit.record)
            body = commit.body if hub.is_synced else hub.durability(commit.body)
            acks.append(codec.ack(commit.request_id, owner_json, commit.op, body))
        try:
            position = journal.append_run(records.COMMIT, self.key, commits[0].version.seq, bodies)
        except LogError:
            for request, size_bytes in zip(requests, sizes, strict=True):
                self._storage_failed(tab, request, owner_json, size_bytes)
            return len(requests)
        count = len(commits)
        self._last_position = position
        file.pending.add_plain(commits)
        hub.counters.commits += count
        self._unreleased += count
        size_bytes = sum(sizes if count == len(sizes) else sizes[:count])
        releases = hub.releases
        run = releases[-1] if releases else None
        # What the writer has not got yet becomes durable together with these records.
        if type(run) is Run and run.tab is tab and run.actor is self and run.position > journal.handed:
            run.position = position
            run.size_bytes += size_bytes
            run.acks += acks
            run.commits += commits
        else:
            releases.append(Run(position, self, tab, size_bytes, acks, commits))
        if self.dirty_since_s is None:
            hub.shelf.became_dirty(self)
        return count

    def _write(self, tab: Tab, request: Write | Malformed, owner_json: bytes, size_bytes: int) -> None:
        stream = self.stream
        assert stream is not None, "ready means loaded"
        hub = self._hub
        clock = hub.clock
        session = tab.session_id
        if isinstance(request, LifeWrite) and request.op == stream.next_op(session):
            hub.lives.begin(self, Envelope(tab, request, owner_json, size_bytes))
            return
        if isinstance(request, StatesWrite) and request.op == stream.next_op(session):
            # A state that another program made is not written over as if there was none.
            unknown = [
                namespace for namespace in namespaces_of(request)
                if (known := stream.states.get(namespace)) is None or known.data is None
            ]
            if unknown and hub.shelf.look(self, unknown):
                self._mailbox.appendleft(Envelope(tab, request, owner_json, size_bytes))
                return
        try:
            hub.admit()
            if isinstance(request, GenerationStart | Generate) and request.op == stream.next_op(session):
                hub.generations.check_start(self.user)
            fresh = Fresh(clock.integrity(), clock.random_bits(64), clock.now_ms())
            decision = decide(stream, request, session, fresh, hub.limits, models=hub.producers.models)
        except Refused as refusal:
            hub.counters.refused(refusal.code)
            self._refuse(tab, request, owner_json, size_bytes, refusal)
            return
        op = request.op
        assert isinstance(op, int), "decide refuses a write without op"
        if isinstance(decision, Duplicate):
            self.answer_again(Envelope(tab, request, owner_json, size_bytes), decision.outcome)
            return
        try:
            self._carry_out(tab, request, op, decision, owner_json, size_bytes, fresh.now_ms)
        except RecordTooLarge:
            large = Refused("too-large", "The change and its way back do not fit into one record of the log.")
            self._refuse(tab, request, owner_json, size_bytes, large)
        except LogError:
            self._storage_failed(tab, request, owner_json, size_bytes)

    def _carry_out(
        self, tab: Tab, request: Write | Malformed, op: int, decision: Committed | Stored, owner_json: bytes,
        size_bytes: int, now_ms: int,
    ) -> None:
        """Log and install a decision; its answer leaves when the record is durable. Raises LogError."""
        stream, hub, session = self._stream, self._hub, tab.session_id
        if not self.anchored:
            self._anchor()
        body = decision.outcome.body
        if isinstance(decision, Committed):
            position = hub.log.append(records.COMMIT, self.key, decision.version.seq, decision.record)
            install(stream, session, op, decision, now_ms)
            self._file.note(decision.effects)
            hub.counters.commits += 1
            if isinstance(request, Generate):
                self.generations.asks(request)
            frame = codec.answer("ack", request.id, owner_json, op, hub.durability(body))
            release = Release(position, self, tab, frame, size_bytes, decision)
            if GENERATIONS in decision.states:
                release.then = self.generations.committed(decision, tab, owner_json, position)
        else:
            position = hub.log.append(records.STORED, self.key, stream.head.seq, decision.record)
            install(stream, session, op, decision, now_ms)
            self._count_stored(decision)
            if decision.outcome.kind == "conflict":
                body = conflict_body(stream, decision.outcome, self._owner_json(tab))
            frame = codec.answer(decision.outcome.kind, request.id, owner_json, op, body)
            release = Release(position, self, tab, frame, size_bytes)
        self._last_position = position
        self._release(release)
        if self.dirty_since_s is None:
            hub.shelf.became_dirty(self)

    def commit_own(self, decision: Committed) -> None:
        """Log and install what the server did by itself; it is told when the record is durable. Raises LogError."""
        hub = self._hub
        if not self.anchored:
            self._anchor()
        position = hub.log.append(records.COMMIT, self.key, decision.version.seq, decision.record)
        install_commit(self._stream, decision)
        self._file.note(decision.effects)
        hub.counters.commits += 1
        self._last_position = position
        then = self.generations.committed(decision, None, b"", position)
        self._release(Release(position, self, commit=decision, then=then))
        if self.dirty_since_s is None:
            hub.shelf.became_dirty(self)

    def journal(self, deltas: bytes) -> int:
        """Log text of a generation; its position. Raises LogError."""
        if not self.anchored:
            self._anchor()
        self._last_position = self._hub.log.append(records.DELTAS, self.key, self._stream.head.seq, deltas)
        return self._last_position

    def answer_again(self, letter: Envelope, outcome: Outcome) -> None:
        """The outcome that an op already had."""
        tab, request = letter.tab, letter.request
        assert isinstance(request, Write | Malformed), "only writes have outcomes"
        assert isinstance(request.op, int), "an outcome has a number"
        self._hub.counters.duplicates += 1
        body = outcome.body if not is_short(outcome) else long_answer(self._hub.log, self.key, outcome)
        if outcome.kind == "conflict":
            stream = self.stream or self._answers
            assert stream is not None, "an outcome is somebody's"
            body = conflict_body(stream, outcome, self._owner_json(tab))
        frame = codec.answer(
            outcome.kind, request.id, letter.owner_json, request.op, self._hub.durability(body), True
        )
        self._release(Release(self._last_position, self, tab, frame, letter.size_bytes))

    def _storage_failed(self, tab: Tab, request: Write | Malformed, owner_json: bytes, size_bytes: int) -> None:
        """The log takes nothing more. What this actor holds may be ahead of it, so it answers nobody from here on."""
        self._hub.refuse_all("storage-failed", "The disk failed.")
        self._hub.end(self)
        refusal = Refused("storage-failed", "The disk failed; whether this op is stored is not known.")
        if tab.is_open:
            tab.answer_refusal(request, owner_json, size_bytes, refusal)

    def _count_stored(self, decision: Stored) -> None:
        if decision.outcome.kind == "conflict":
            self._hub.counters.conflicts += 1
        else:
            self._hub.counters.refused(msgspec.json.decode(b"{" + decision.outcome.body + b"}")["code"])

    def _anchor(self) -> None:
        """Before the first record: say which file the commits stand on."""
        self._hub.log.append(records.ANCHOR, self.key, self._stream.head.seq, self._file.anchor(self._stream))
        self.anchored = True

    def _open(self, tab: Tab, request: Open, owner_json: bytes, size_bytes: int) -> None:
        stream = self._stream
        if not self.is_chat and (request.create or request.tail is not UNSET):
            field = "create" if request.create else "tail"
            refusal = Refused("bad-frame", f"{field!r} is for chats.", pointer=f"/{field}")
            self._refuse(tab, request, owner_json, size_bytes, refusal)
            return
        if request.create and request.since is not None:
            refusal = Refused("create-with-since", "create works only with since null.", pointer="/since")
            self._refuse(tab, request, owner_json, size_bytes, refusal)
            return
        if is_beyond_memory(stream, request.since):
            self._held[tab] = deque()
            self._hub.spawn(self._look_back(Envelope(tab, request, owner_json, size_bytes), request))
            return
        self._answer_open(tab, request, owner_json, size_bytes)

    def _answer_open(
        self, tab: Tab, request: Open, owner_json: bytes, size_bytes: int, missed: Missed | None = None
    ) -> None:
        self.generations.returned(tab, owner_json)
        listed, heard = self.generations.listed(tab.session_id)
        opened, frame, following = answer_open(
            self._stream, request, tab.session_id, missed=missed, generations=listed, header=self._header(request)
        )
        if isinstance(opened.reset, str):
            self._hub.counters.reset(opened.reset)
        subscription = Subscription(tab, owner_json)
        subscription.heard = heard
        release = Release(self._last_position, self, tab, frame, size_bytes, None, subscription, following)
        self.idle_since_s = None
        self._release(release)

    def _header(self, request: Open) -> bytes | None:
        """The first line of the chat's file, for who asked for it."""
        if not request.header or self.file is None:
            return None
        stream = self._stream
        return header_now(self.file.image, stream.chat.metadata, stream.chat_id, self._hub.clock.now_ms())

    async def _look_back(self, letter: Envelope, request: Open) -> None:
        """Read what the stream does not remember from the log, then answer; the tab's later requests keep their place.

        Nobody else waits: what is committed meanwhile is in the answer, and what comes later is told behind it.
        """
        tab = letter.tab
        missed: Missed | None = None
        try:
            missed = await self._hub.shelf.missed(self, request)
        except Exception:
            # Whatever the log holds, the snapshot needs nothing of it; and who waits here must get an answer.
            log.exception("look-back-failed", chat=self.name)
        held = self._held.pop(tab)
        if self.state == "ready":
            self._answer_open(tab, request, letter.owner_json, letter.size_bytes, missed)
            for later in held:
                self.submit(tab, later.request, later.owner_json, later.size_bytes)
        elif self.state == "ended":
            for later in (letter, *held):
                await self._hub.submit_again(self, later)
        else:
            # What this tab has in the mailbox came later: it was put there when the actor was busy already.
            self._mailbox.extendleft((*reversed(held), letter))

    async def _history(self, tab: Tab, request: History, owner_json: bytes, size_bytes: int) -> None:
        """Only what is durable is shown, so the answer waits for nothing more.

        Parts count as in flight until the last one is sent: a tab that asks and never reads keeps no more of them.
        """
        parts: Iterator[bytes] | None = None
        try:
            frame, parts = await self._hub.shelf.history(self, request)
        except Refused as refusal:
            frame = refusal_frame(request, owner_json, refusal)
        if not tab.is_open:
            return
        tab.outbox.answer(self, text_frame(frame))
        if parts is None:
            tab.answered(size_bytes)
        else:
            tab.outbox.parts(object(), followed_by(parts, lambda: tab.answered(size_bytes)))
        tab.outbox.flush()

    def _close(self, tab: Tab, request: Close, owner_json: bytes, size_bytes: int) -> None:
        self.unsubscribe(tab)
        frame = codec.of_owner(Closed(id=request.id), owner_json)
        self._release(Release(self._last_position, self, tab, frame, size_bytes))

    def _state_get(self, tab: Tab, request: StateGet, owner_json: bytes, size_bytes: int) -> None:
        stream = self._stream
        wanted = list(stream.states) if request.namespaces is UNSET else request.namespaces
        assert isinstance(wanted, list)
        missing = [
            namespace for namespace in wanted
            if ((known := stream.states.get(namespace)) is None or known.data is None)
            and namespace_problem(namespace) is None
        ]
        # Another program may have made it since the owner was read; that must not look like no state.
        is_all = request.namespaces is UNSET
        if (missing or is_all) and self._hub.shelf.look(self, () if is_all else missing, around=is_all):
            self._mailbox.appendleft(Envelope(tab, request, owner_json, size_bytes))
            return
        states: dict[str, StateValue | None] = {}
        for index, namespace in enumerate(wanted):
            problem = namespace_problem(namespace)
            document = stream.states.get(namespace)
            if problem or (document is not None and document.corrupt):
                refusal = (
                    Refused("namespace-illegal", f"{problem}.", pointer=f"/namespaces/{index}") if problem
                    else Refused("state-corrupt", f"The file of {namespace!r} is no JSON; it is kept as it is.")
                )
                self._refuse(tab, request, owner_json, size_bytes, refusal)
                return
            data = None if document is None else document.data
            if document is None or data is None or document.version is None:
                if request.namespaces is not UNSET:
                    states[namespace] = None
            else:
                states[namespace] = StateValue(document.version, Raw(data), document.skipped or UNSET)
        frame = codec.encode(StateFrame(request.owner, states, request.id))
        self._release(Release(self._last_position, self, tab, frame, size_bytes))

    def _handle_missing(self, tab: Tab, request: Request | Malformed, owner_json: bytes, size_bytes: int) -> None:
        is_making = isinstance(request, Open) and request.create and request.since is None
        if is_making and self.is_chat and self._hub.lives.former(self.user, self.name) is None:
            assert isinstance(request, Open), "asked just above"
            self._hub.create(self, tab, request, owner_json, size_bytes)
            return
        if isinstance(request, Write) and self._answers is not None:
            ops = self._answers.sessions.get(tab.session_id)
            outcome = None if ops is None or not isinstance(request.op, int) else ops.outcomes.get(request.op)
            if outcome is not None and outcome.fingerprint == fingerprint(request):
                self.answer_again(Envelope(tab, request, owner_json, size_bytes), outcome)
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
        self._refuse(tab, request, owner_json, size_bytes, refusal)

    # -- life --------------------------------------------------------------------------------------------------------

    def loaded(self, loaded: LoadedStream) -> None:
        """The chat was read: answer what waited."""
        self._take(loaded)
        self._append(loaded)
        self.generations.loaded(loaded.stream)
        self.state = "ready"
        self.drain()

    def adopted(self, loaded: LoadedStream) -> None:
        """An outside edit became our history: every tab opens again. The reset leaves when the adoption is durable."""
        self._take(loaded)
        head = self._stream.head
        reset = Reset("outside-edit", head)
        if loaded.adoption is not None and loaded.adoption.recovered:
            reset.recovered = loaded.adoption.recovered
        if loaded.adoption is not None and loaded.adoption.backups:
            reset.kept = True
        self._append(loaded)
        self.generations.loaded(loaded.stream)
        for subscription in list(self.subscriptions.values()):
            frame = codec.of_owner(reset, subscription.owner_json)
            self._release(Release(self._last_position, self, subscription.tab, frame))
            self.unsubscribe(subscription.tab)
        self.state = "ready"
        self.drain()

    def resumed(self, loaded: LoadedStream) -> None:
        """The files turned out to be ours after all: nobody notices."""
        self.file = loaded.file
        self.resume()

    def resume(self) -> None:
        """It stood still for a look, and nothing has changed."""
        self.state = "ready"
        self.drain()

    def created(self, loaded: LoadedStream, tab: Tab, request: Open, size_bytes: int) -> None:
        """The chat begins with a commit of its own, so that nobody hears of a chat_id that a crash could undo."""
        self._take(loaded)
        self._append(loaded)
        stream = self._stream
        commit = Commit(Version(1, 1, self._hub.clock.integrity()), stream.head.integrity, [])
        record = b'{"version":%b,"previous":"%b","ops":[]}' % (commit.version.encoded(), commit.previous.encode())
        self._last_position = self._hub.log.append(records.COMMIT, self.key, 1, record)
        stream.fold(commit)
        stream.chat.version = self.durable_head = commit.version
        self._file.note(commit.ops)
        self._hub.counters.commits += 1
        self.state = "ready"
        header = self._header(request)
        _, frame, following = answer_open(stream, request, tab.session_id, created=True, header=header)
        subscription = Subscription(tab, codec.owner_member(request.chat))
        self._release(Release(self._last_position, self, tab, frame, size_bytes, None, subscription, following))
        self._hub.shelf.became_dirty(self)

    # -- life writes: steps of `lifecycle`, none of which waits ------------------------------------------------------

    def put_back(self, letter: Envelope) -> None:
        """The request comes again before everything else that waits."""
        self._mailbox.appendleft(letter)

    def life_refused(self, letter: Envelope, refusal: Refused) -> None:
        """Not carried out, and not an outcome."""
        self._refuse(letter.tab, letter.request, letter.owner_json, letter.size_bytes, refusal)

    def life_decided(
        self, letter: Envelope, decision: Committed | Stored | Duplicate, now_ms: int, operation: bytes
    ) -> Release | None:
        """Log and install a decision, its operation before it. The release of a commit is let go by the caller, when
        the files are moved. Raises LogError.
        """
        tab, request, stream, hub = letter.tab, letter.request, self._stream, self._hub
        assert isinstance(request, LifeWrite), "nothing else comes here"
        assert isinstance(request.op, int), "decide refuses a write without op"
        if not isinstance(decision, Committed):
            assert isinstance(decision, Stored), "the op is a new one"
            self._carry_out(tab, request, request.op, decision, letter.owner_json, letter.size_bytes, now_ms)
            return None
        if not self.anchored:
            self._anchor()
        if operation:
            hub.log.append(records.OPERATION, self.key, decision.version.seq, operation)
        position = hub.log.append(records.COMMIT, self.key, decision.version.seq, decision.record)
        install(stream, tab.session_id, request.op, decision, now_ms)
        if self.file is not None and isinstance(request, ChatBranch | ChatCreate):
            self.file.note(decision.effects)
            if self.dirty_since_s is None:
                hub.shelf.became_dirty(self)
        hub.counters.commits += 1
        self._last_position = position
        self._unreleased += 1
        frame = codec.answer("ack", request.id, letter.owner_json, request.op, hub.durability(decision.outcome.body))
        return Release(position, self, tab, frame, letter.size_bytes, decision)

    def told_by_the_server(self, commit: Commit, record: bytes, told: Told) -> Release:
        """Log and install a commit that nobody asked of this owner; the release is the caller's. Raises LogError."""
        if not self.anchored:
            self._anchor()
        position = self._last_position = self._hub.log.append(
            records.COMMIT, self.key, commit.version.seq, record
        )
        self._stream.fold(commit)
        self._hub.counters.commits += 1
        self._unreleased += 1
        return Release(position, self, None, None, 0, told)

    def made(self, loaded: LoadedStream) -> None:
        """The chat begins; its first commit follows in the same step."""
        self._take(loaded)
        self._append(loaded)

    def not_made(self) -> None:
        """The chat could not be made: whoever waited for it learns that it is not there."""
        self.state = "missing"
        self.drain()

    def missing(self, answers: Stream | None) -> None:
        """There is no file; `answers` tells what the ops of the chat led to that stood there."""
        self._answers = answers
        if answers is not None:
            self.key = records.owner_key(self.user, answers.chat_id)
        self.state = "missing"
        self.drain()

    def departed(self, stream: Stream) -> None:
        """What is known of a chat in the trash was read."""
        self._become(stream)
        self.durable_head = stream.head
        self.anchored = True
        self.state = "gone"
        self.drain()

    def leave(self) -> None:
        """The chat is in the trash and everybody was told: nobody hears more of it, and its documents are let go."""
        for subscription in list(self.subscriptions.values()):
            self.unsubscribe(subscription.tab)
        self.generations.clear()
        stream = self._stream
        stream.chat = Chat(stream.chat.version)
        stream.states = {}
        stream.damage = []
        self.file = None
        self.state = "gone"
        self.drain()

    def log_failed(self, letter: Envelope) -> None:
        """The log takes nothing more: whether the op is stored is not known."""
        assert isinstance(letter.request, Write | Malformed), "only writes are logged"
        self._storage_failed(letter.tab, letter.request, letter.owner_json, letter.size_bytes)

    async def hand_on(self) -> None:
        """This actor ended: what waits in its mailbox goes to its successor."""
        while self._mailbox:
            await self._hub.submit_again(self, self._mailbox.popleft())

    def _append(self, loaded: LoadedStream) -> None:
        """What loading wants in the log before anything is shown."""
        for record in loaded.records:
            self._last_position = self._hub.log.append(record.kind, record.owner, record.seq, record.body)

    def lost(self) -> None:
        """The chat is gone from under its tabs: they are told, and open again or learn that it is not there."""
        for subscription in list(self.subscriptions.values()):
            frame = codec.of_owner(Reset("failed", self.durable_head), subscription.owner_json)
            self._release(Release(self._last_position, self, subscription.tab, frame))
            self.unsubscribe(subscription.tab)

    def failed(self, refusal: Refused) -> None:
        """The chat cannot be loaded: tell everybody who waits, and end."""
        self.state = "ended"
        while self._mailbox:
            letter = self._mailbox.popleft()
            self._refuse(letter.tab, letter.request, letter.owner_json, letter.size_bytes, refusal)

    def unsubscribe(self, tab: Tab) -> None:
        """`tab` hears nothing more of this chat."""
        subscription = self.subscriptions.pop(tab, None)
        if subscription is not None:
            subscription.active = False
            tab.outbox.forget(self)
            if subscription.backlog is not None:
                for frame in subscription.backlog.answers():
                    tab.outbox.answer(self, frame)
            tab.chats.discard(self)
            if not self.subscriptions:
                self.idle_since_s = self._hub.clock.monotonic_s()

    def fell_behind(self, tab: Tab, last: Version) -> None:
        """`tab` reads too slowly for this chat: it gets no more of it, and one frame that says so."""
        subscription = self.subscriptions.get(tab)
        if subscription is None:
            return
        self._hub.counters.behind += 1
        behind = Behind(last, self.durable_head)
        tab.outbox.urgent(text_frame(codec.of_owner(behind, subscription.owner_json)))
        self.unsubscribe(tab)

    @property
    def quiet(self) -> bool:
        """True when nobody has the chat open and nothing waits to leave."""
        return not (self.subscriptions or self._unreleased or self._mailbox or self._held or self.generations)

    @property
    def last_position(self) -> int:
        """The position of this actor's last record in the log."""
        return self._last_position

    # -- answers -----------------------------------------------------------------------------------------------------

    def release(self, release: Release, touched: set[Tab]) -> bool:
        """`release.position` is durable: tell whom it concerns. `touched` collects the tabs that must be flushed.

        True when a commit waits for `broadcast`, which the hub calls before anything else of this actor is released
        to somebody who did not see it, and at the end of the batch.
        """
        self._unreleased -= 1
        tab = release.tab
        if tab is not None and tab.is_open:
            if release.subscribe is not None and tab in self.subscriptions:
                self.unsubscribe(tab)
            if release.answer is not None:
                self._answer(tab, [release.answer], touched)
            if release.size_bytes:
                tab.answered(release.size_bytes)
            if release.subscribe is not None:
                self.broadcast(touched)
                self._subscribe(release.subscribe)
                if release.following is not None:
                    self._follow(tab, release.subscribe, release.following)
                    touched.add(tab)
        waits = release.commit is not None and self._tell([release.commit], tab, touched)
        if release.then is not None:
            self.broadcast(touched)
            release.then(touched)
            return False
        return waits

    def tell(self, tab: Tab, frame: bytes, touched: set[Tab]) -> None:
        """A frame that is never dropped, in the order of the stream."""
        self._queue_answer(tab, text_frame(frame))
        touched.add(tab)

    def release_run(self, run: Run, touched: set[Tab]) -> bool:
        """As `release`, for plain appends that became durable together."""
        acks, tab = run.acks, run.tab
        self._unreleased -= len(acks)
        if tab.is_open:
            self._answer(tab, acks, touched)
            tab.answered(run.size_bytes, len(acks))
        return self._tell(run.commits, tab, touched)

    def _answer(self, tab: Tab, answers: list[bytes], touched: set[Tab]) -> None:
        if self._told and self._author is not tab and tab in self.subscriptions:
            # The order of the stream: what others committed before travels before this answer.
            self.broadcast(touched)
        frames = text_frames(answers)
        # All the answers that are due go at once; else they are joined with others into one write.
        if tab.session.in_flight != len(answers) or not tab.outbox.send_now(frames):
            self._queue_answer(tab, frames)
            touched.add(tab)

    def _tell(self, commits: Sequence[Told], author: Tab | None, touched: set[Tab]) -> bool:
        """True when the commits wait for `broadcast`."""
        if not self.subscriptions:
            self.durable_head = commits[-1].version
            return False
        if self._told and self._author is not author:
            # One author at a time: his own tab gets only acks.
            self.broadcast(touched)
        self._author = author
        self._told += commits
        return True

    def broadcast(self, touched: set[Tab]) -> None:
        """Tell the commits of one author to everybody else, each frame built once for all."""
        told = self._told
        if not told:
            return
        self._told = []
        author = self._author
        before = self.durable_head
        self.durable_head = told[-1].version
        frames: bytes | None = None
        built_for = b""
        for tab, subscription in list(self.subscriptions.items()):
            if tab is author:
                continue
            outbox = tab.outbox
            if frames is None or subscription.owner_json != built_for:
                built_for = subscription.owner_json
                frames = text_frames([codec.integrity(built_for, commit.core) for commit in told])
            if not outbox.is_waiting and outbox.wire.send_now(frames):
                continue
            touched.add(tab)
            if outbox.is_clear:
                outbox.send(frames)
            else:
                self._tell_one_by_one(outbox, subscription, told, before)

    def _tell_one_by_one(
        self, outbox: Outbox, subscription: Subscription, told: list[Told], before: Version
    ) -> None:
        """To a tab that reads slowly: each frame is counted, and the tab may be demoted at any of them."""
        for commit in told:
            if not subscription.active:
                return
            frame = text_frame(codec.integrity(subscription.owner_json, commit.core))
            version = commit.version
            if subscription.backlog is None:
                outbox.commit(self, frame, before)
            else:
                subscription.backlog.commit(frame, version)
                self._bound(subscription)
            before = version

    def _queue_answer(self, tab: Tab, frame: bytes) -> None:
        """An answer that has to wait its turn: behind a long replay, or in the outbox."""
        subscription = self.subscriptions.get(tab)
        if subscription is None or subscription.backlog is None:
            tab.outbox.answer(self, frame)
        else:
            subscription.backlog.answer(frame)
            self._bound(subscription)

    def _bound(self, subscription: Subscription) -> None:
        backlog = subscription.backlog
        if backlog is not None and backlog.waiting_bytes > self._hub.outbox_bytes_max:
            self.fell_behind(subscription.tab, backlog.last)

    def release_later(self, release: Release) -> None:
        """Let something leave when its position is durable."""
        self._release(release)

    def _release(self, release: Release) -> None:
        self._unreleased += 1
        self._hub.release(release)

    def _refuse(
        self, tab: Tab, request: Request | Malformed, owner_json: bytes, size_bytes: int, refusal: Refused
    ) -> None:
        self._release(Release(self._last_position, self, tab, refusal_frame(request, owner_json, refusal), size_bytes))

    def _subscribe(self, subscription: Subscription) -> None:
        subscription.active = True
        self.subscriptions[subscription.tab] = subscription
        subscription.tab.chats.add(self)
        self.idle_since_s = None

    def _follow(self, tab: Tab, subscription: Subscription, following: Following) -> None:
        """A replay is made of ordinary integrity frames; they keep their order with what is committed meanwhile."""
        previous = following.since
        if sum(len(past.core) for past in following.replay) > AT_ONCE_BYTES:
            assert previous is not None, "a replay begins somewhere"

            def done() -> None:
                subscription.backlog = None
                self._hub.generations.mark(self.generations)

            subscription.backlog = Backlog(subscription.owner_json, previous, following.replay, done)
            tab.outbox.parts(self, subscription.backlog.pieces())
            return
        for past in following.replay:
            assert previous is not None, "a replay begins somewhere"
            tab.outbox.commit(self, text_frame(codec.integrity(subscription.owner_json, past.core)), previous)
            previous = Version(previous.epoch, past.seq, past.integrity)
            if not subscription.active:
                return
        if following.parts is not None:
            tab.outbox.parts(self, following.parts)

    def _take(self, loaded: LoadedStream) -> None:
        self._become(loaded.stream)
        self.file = loaded.file
        self.anchored = loaded.anchored
        self.durable_head = loaded.stream.head

    def _become(self, stream: Stream) -> None:
        self.stream = stream
        self.chat_id = stream.chat_id
        self.key = f"{self.user}/{stream.chat_id}"

    @property
    def _stream(self) -> Stream:
        assert self.stream is not None, "ready means loaded"
        return self.stream

    @property
    def _file(self) -> FileState:
        assert self.file is not None, "ready means loaded"
        return self.file

    def _owner_json(self, tab: Tab) -> bytes:
        """The owner member with the name that `tab` knows it by."""
        subscription = self.subscriptions.get(tab)
        return codec.owner_member(self.name) if subscription is None else subscription.owner_json


def namespaces_of(request: StatesWrite) -> list[str]:
    """The namespaces that a write of states touches."""
    found: list[str] = []
    for one in request.requests if isinstance(request, Batch) else [request]:
        if isinstance(one, FloorUpdate | BatchedFloorUpdate):
            found += (one.namespace, one.namespace + LOG_SUFFIX)
        elif isinstance(one, StateUpdate | StateDelete | BatchedStateUpdate | BatchedStateDelete):
            found.append(one.namespace)
    return [namespace for namespace in found if namespace_problem(namespace) is None]

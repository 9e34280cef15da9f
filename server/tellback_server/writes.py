"""The writes of one owner: decided, given their place in the log, installed; told when that is durable.

Rules of this module:
- Only `decide` knows what a write means; a decision is logged first and installed then, in one step (BEHAVIOUR L1).
- The first record says which file the commits stand on.
- A write that cannot be logged ends the actor: what it holds may be ahead of the log.
- Plain appends, the most frequent write, take a way of their own to the same bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tellback_protocol import codec
from tellback_protocol.appending import append_plain
from tellback_protocol.decide import (
    Committed,
    Duplicate,
    Stored,
    conflict_body,
    decide,
    install,
    install_commit,
)
from tellback_protocol.effects import Commit
from tellback_protocol.errors import Refused
from tellback_protocol.floors import LOG_SUFFIX
from tellback_protocol.generation_requests import Generate, GenerationStart
from tellback_protocol.generations import NAMESPACE as GENERATIONS
from tellback_protocol.ids import Version, namespace_problem
from tellback_protocol.outcomes import Outcome, is_short
from tellback_protocol.past import wire_core
from tellback_protocol.requests import (
    Append,
    Batch,
    BatchedFloorUpdate,
    BatchedStateDelete,
    BatchedStateUpdate,
    ChatBranch,
    ChatCreate,
    Delete,
    FloorUpdate,
    LifeWrite,
    Malformed,
    Patch,
    StateDelete,
    StateUpdate,
    Write,
)
from tellback_server import records
from tellback_server.log import LogError, RecordTooLarge
from tellback_server.owner_past import long_answer
from tellback_server.releases import Envelope, OwnCommit, Release, Run

if TYPE_CHECKING:
    from tellback_server.actor import Actor
    from tellback_server.hub import Hub
    from tellback_server.loading import LoadedStream
    from tellback_server.tab import Tab

__all__ = ["UNCOMMITTED_BYTES_MAX", "Writes"]

UNCOMMITTED_BYTES_MAX = 64 << 20
"""Records that may wait for the disk; more is answered `overloaded`."""
StatesWrite = StateUpdate | StateDelete | FloorUpdate | Batch
"""What may touch state documents."""
_DELETING = (Delete, Patch, Batch)
"""What may delete messages."""


class Writes:
    """See the module. Made with its actor."""

    __slots__ = ("_actor", "_hub", "anchored")

    def __init__(self, actor: Actor, hub: Hub) -> None:
        self._actor = actor
        self._hub = hub
        self.anchored = False
        """True when the log knows which file this actor's records stand on."""

    # -- requests ----------------------------------------------------------------------------------------------------

    def append_plain(self, tab: Tab, requests: list[Append], owner_json: bytes, sizes: list[int]) -> int:
        """The most frequent write, without the detours of the others. How many there were before one not that plain."""
        actor, hub = self._actor, self._hub
        stream, file = actor.stream, actor.file
        assert stream is not None, "ready means loaded"
        assert file is not None, "ready means loaded"
        clock, journal = hub.clock, hub.log
        ops = stream.sessions.get(tab.session_id)
        if ops is None or not self.anchored or not hub.is_open or journal.uncommitted_bytes > UNCOMMITTED_BYTES_MAX:
            return 0
        done = append_plain(
            stream, ops, tab.session_json, requests, owner_json, clock.integrity, clock.message_id, clock.now_ms(),
            hub.limits,
        )
        if done is None:
            return 0
        commits = done.pasts
        acks = done.acks
        if not hub.is_synced:
            acks = [hub.durability(answer) for answer in acks]
        try:
            position = journal.append_run(records.COMMIT, actor.key, commits[0].version.seq, done.records)
        except LogError:
            for request, size_bytes in zip(requests, sizes, strict=True):
                self._storage_failed(tab, request, owner_json, size_bytes)
            return len(requests)
        count = len(commits)
        actor.last_position = position
        pending = file.pending
        pending.add_plain(done.ids)
        hub.counters.commits += count
        actor.audience.unreleased += count
        size_bytes = sum(sizes if count == len(sizes) else sizes[:count])
        releases = hub.releases
        run = releases[-1] if releases else None
        # What the writer has not got yet becomes durable together with these records.
        if type(run) is Run and run.tab is tab and run.actor is actor and run.position > journal.handed:
            run.position = position
            run.size_bytes += size_bytes
            run.acks += acks
            run.commits += commits
        else:
            releases.append(Run(position, actor, tab, size_bytes, acks, commits))
        if actor.dirty_since_s is None or pending.commits >= pending.full_at:
            hub.shelf.became_dirty(actor)
        return count

    def handle(self, tab: Tab, request: Write | Malformed, owner_json: bytes, size_bytes: int) -> None:
        """Decide a write and carry it out."""
        actor, hub = self._actor, self._hub
        stream, session = actor.live_stream, tab.session_id
        if isinstance(request, LifeWrite) and request.op == stream.next_op(session):
            hub.lives.begin(actor, Envelope(tab, request, owner_json, size_bytes))
            return
        if isinstance(request, StatesWrite) and request.op == stream.next_op(session):
            # A state that another program made is not written over as if there was none.
            unknown = [
                namespace for namespace in _namespaces_of(request)
                if (known := stream.states.get(namespace)) is None or not known.exists
            ]
            if unknown and hub.shelf.look(actor, unknown):
                actor.put_back(Envelope(tab, request, owner_json, size_bytes))
                return
        try:
            hub.admit()
            if isinstance(request, GenerationStart | Generate) and request.op == stream.next_op(session):
                hub.generations.check_start(actor.user)
            fresh = hub.fresh()
            decision = decide(stream, request, session, fresh, hub.limits, models=hub.producers.models)
        except Refused as refusal:
            hub.counters.refused(refusal.code)
            if hub.is_stalled and refusal.code == "overloaded":
                # It says nothing of the chat, and who has to wait must not wait for being told so.
                tab.answer_refusal(request, owner_json, size_bytes, refusal)
                return
            actor.refuse(tab, request, owner_json, size_bytes, refusal)
            return
        op = request.op
        assert isinstance(op, int), "decide refuses a write without op"
        if isinstance(decision, Duplicate):
            self.answer_again(Envelope(tab, request, owner_json, size_bytes), decision.outcome)
            return
        if isinstance(decision, Committed) and (decision.forced or type(request) in _DELETING):
            letter = Envelope(tab, request, owner_json, size_bytes)
            if hub.shelf.keep_first(actor, letter, decision):
                return
        try:
            self._carry_out(tab, request, op, decision, owner_json, size_bytes, fresh.now_ms)
        except RecordTooLarge:
            large = Refused("too-large", "The change and its way back do not fit into one record of the log.")
            actor.refuse(tab, request, owner_json, size_bytes, large)
        except LogError:
            self._storage_failed(tab, request, owner_json, size_bytes)

    def answer_again(self, letter: Envelope, outcome: Outcome) -> None:
        """The outcome that an op already had."""
        actor, tab, request = self._actor, letter.tab, letter.request
        assert isinstance(request, Write | Malformed), "only writes have outcomes"
        assert isinstance(request.op, int), "an outcome has a number"
        self._hub.counters.duplicates += 1
        body = outcome.body if not is_short(outcome) else long_answer(self._hub.log, actor.key, outcome)
        if outcome.kind == "conflict":
            stream = actor.stream or actor.answers
            assert stream is not None, "an outcome is somebody's"
            body = conflict_body(stream, outcome, actor.audience.owner_json(tab))
        frame = codec.answer(
            outcome.kind, request.id, letter.owner_json, request.op, self._hub.durability(body), True
        )
        actor.answer(tab, frame, letter.size_bytes)

    def log_failed(self, letter: Envelope) -> None:
        """The log takes nothing more: whether the op is stored is not known."""
        assert isinstance(letter.request, Write | Malformed), "only writes are logged"
        self._storage_failed(letter.tab, letter.request, letter.owner_json, letter.size_bytes)

    # -- the log -----------------------------------------------------------------------------------------------------

    def _carry_out(
        self, tab: Tab, request: Write | Malformed, op: int, decision: Committed | Stored, owner_json: bytes,
        size_bytes: int, now_ms: int,
    ) -> None:
        """Log and install a decision; its answer leaves when the record is durable. Raises LogError."""
        actor, hub, session = self._actor, self._hub, tab.session_id
        stream = actor.live_stream
        body = decision.outcome.body
        if isinstance(decision, Committed):
            position = self._log(records.COMMIT, decision.version.seq, decision.record)
            install(stream, session, op, decision, now_ms)
            actor.live_file.note(decision.effects)
            hub.counters.commits += 1
            if isinstance(request, Generate):
                actor.generations.asks(request)
            frame = codec.answer("ack", request.id, owner_json, op, hub.durability(body))
            release = Release(position, actor, tab, frame, size_bytes, decision)
            if GENERATIONS in decision.states:
                release.then = actor.generations.committed(decision, tab, owner_json, position)
        else:
            position = self._log(records.STORED, stream.head.seq, decision.record)
            install(stream, session, op, decision, now_ms)
            self._count_stored(decision)
            if decision.outcome.kind == "conflict":
                body = conflict_body(stream, decision.outcome, actor.audience.owner_json(tab))
            frame = codec.answer(decision.outcome.kind, request.id, owner_json, op, body)
            release = Release(position, actor, tab, frame, size_bytes)
        actor.audience.release_later(release)
        self._dirty()

    def commit_own(self, decision: Committed) -> None:
        """Log and install what the server did by itself; it is told when the record is durable. Raises LogError."""
        actor, hub = self._actor, self._hub
        position = self._log(records.COMMIT, decision.version.seq, decision.record)
        install_commit(actor.live_stream, decision)
        actor.live_file.note(decision.effects)
        hub.counters.commits += 1
        then = actor.generations.committed(decision, None, b"", position)
        actor.audience.release_later(Release(position, actor, commit=decision, then=then))
        self._dirty()

    def _dirty(self) -> None:
        """A commit waits for the files, perhaps one that shall not wait long."""
        actor = self._actor
        if actor.dirty_since_s is None or (actor.file is not None and actor.file.pending.is_urgent):
            self._hub.shelf.became_dirty(actor)

    def journal(self, deltas: bytes) -> int:
        """Log text of a generation; its position. Raises LogError."""
        return self._log(records.DELTAS, self._actor.live_stream.head.seq, deltas)

    def record(self, loaded: LoadedStream) -> None:
        """What loading wants in the log before anything is shown. Raises LogError."""
        for record in loaded.records:
            self._actor.last_position = self._hub.log.append(record.kind, record.owner, record.seq, record.body)

    def _log(self, kind: int, seq: int, body: bytes) -> int:
        """A record of this owner, behind its anchor; its position. Raises LogError."""
        actor, journal = self._actor, self._hub.log
        if not self.anchored:
            stream = actor.live_stream
            journal.append(records.ANCHOR, actor.key, stream.head.seq, actor.live_file.anchor(stream))
            self.anchored = True
        position = actor.last_position = journal.append(kind, actor.key, seq, body)
        return position

    def _storage_failed(self, tab: Tab, request: Write | Malformed, owner_json: bytes, size_bytes: int) -> None:
        """The log takes nothing more. What the actor holds may be ahead of it, so it answers nobody from here on."""
        self._hub.refuse_all("storage-failed", "The disk failed.")
        self._hub.end(self._actor)
        refusal = Refused("storage-failed", "The disk failed; whether this op is stored is not known.")
        if tab.is_open:
            tab.answer_refusal(request, owner_json, size_bytes, refusal)

    def _count_stored(self, decision: Stored) -> None:
        if decision.outcome.kind == "conflict":
            self._hub.counters.conflicts += 1
        else:
            self._hub.counters.refused(msgspec.json.decode(b"{" + decision.outcome.body + b"}")["code"])

    # -- making, moving and ending: steps of `lifecycle`, none of which waits ----------------------------------------

    def begin(self) -> None:
        """A chat begins with a commit of its own, so that nobody hears of a chat_id that a crash could undo."""
        actor, hub = self._actor, self._hub
        stream = actor.live_stream
        commit = Commit(Version(1, 1, hub.clock.integrity()), stream.head.integrity, [])
        self._log(records.COMMIT, 1, b"{%b}" % wire_core(commit))
        stream.fold(commit)
        stream.chat.version = actor.audience.durable_head = commit.version
        actor.live_file.note(commit.ops)
        hub.counters.commits += 1

    def life_decided(
        self, letter: Envelope, decision: Committed | Stored | Duplicate, now_ms: int, operation: bytes
    ) -> Release | None:
        """Log and install a decision, its operation before it. The release of a commit is let go by the caller, when
        the files are moved. Raises LogError.
        """
        actor, tab, request, hub = self._actor, letter.tab, letter.request, self._hub
        assert isinstance(request, LifeWrite), "nothing else comes here"
        assert isinstance(request.op, int), "decide refuses a write without op"
        if not isinstance(decision, Committed):
            assert isinstance(decision, Stored), "the op is a new one"
            self._carry_out(tab, request, request.op, decision, letter.owner_json, letter.size_bytes, now_ms)
            return None
        if operation:
            self._log(records.OPERATION, decision.version.seq, operation)
        position = self._log(records.COMMIT, decision.version.seq, decision.record)
        install(actor.live_stream, tab.session_id, request.op, decision, now_ms)
        if actor.file is not None and isinstance(request, ChatBranch | ChatCreate):
            actor.file.note(decision.effects)
            if actor.dirty_since_s is None:
                hub.shelf.became_dirty(actor)
        hub.counters.commits += 1
        actor.audience.unreleased += 1
        frame = codec.answer("ack", request.id, letter.owner_json, request.op, hub.durability(decision.outcome.body))
        return Release(position, actor, tab, frame, letter.size_bytes, decision)

    def told_by_the_server(self, commit: Commit) -> Release:
        """Log and install a commit that nobody asked of this owner; the release is the caller's. Raises LogError."""
        actor, core = self._actor, wire_core(commit)
        position = self._log(records.COMMIT, commit.version.seq, b"{%b}" % core)
        actor.live_stream.fold(commit)
        self._hub.counters.commits += 1
        actor.audience.unreleased += 1
        return Release(position, actor, commit=OwnCommit(core, commit.version))


def _namespaces_of(request: StatesWrite) -> list[str]:
    """The namespaces that a write of states touches."""
    found: list[str] = []
    for one in request.requests if isinstance(request, Batch) else [request]:
        if isinstance(one, FloorUpdate | BatchedFloorUpdate):
            found += (one.namespace, one.namespace + LOG_SUFFIX)
        elif isinstance(one, StateUpdate | StateDelete | BatchedStateUpdate | BatchedStateDelete):
            found.append(one.namespace)
    return [namespace for namespace in found if namespace_problem(namespace) is None]

"""The own writes to one chat, from the wish to the outcome: asked, refused, asked again, or left to a person.

    submit --> lane --ack--> settled
                 |---conflict, parent refused--> asked again | conflict
                 |---refused--> settled with an error
                 `---overloaded, gap--> stays, and is sent again

Rules of this module:
- A write has exactly one outcome, whatever happens to the connection.
- Asking again takes a new number and a new base; the old number keeps its outcome (DESIGN section 5, op ids).
- What an earlier process asked for has nobody who waits: when it is refused, a person decides.
- What cannot be asked yet waits in order: for a state document (`stalled`), or for answers (`blocked`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence

from msgspec import UnsetType

from tellback_protocol.chat import Chat
from tellback_protocol.errors import ERRORS
from tellback_protocol.frames import Error, IntegrityFrame, StateFrame
from tellback_protocol.generation_requests import GenerationEnd
from tellback_protocol.ids import Version, namespace_problem
from tellback_protocol.requests import UNREADING, DocumentWrite, StateDelete, StateUpdate, owner_named
from tellback_protocol.stream import Stream

from .conflict import Conflict
from .errors import ConflictError, OutcomeUnknownError, TellbackError, error_of, refused
from .events import Conflicted, Event
from .generations import Generations
from .heartbeat import Backoff
from .intents import RecordedIntent, Unfetched, is_function, to_write
from .lane import Entangled, Lane, targets_of_request
from .outbox import Entry, PendingWrite, Record, WriteResult, added, conflicted, done
from .own_write import Unbased
from .replica import Replica, show

ATTEMPTS_MAX = 16
"""Automatic repetitions of one write; more means that others write faster than this client can read."""
FUNCTION_ATTEMPTS_MAX = 10_000
"""Of a wish given as a function, which means the same on anything: each lost attempt is somebody else's success, and
two tabs that count as fast as they can may let one of them lose a hundred times in a row."""

LOST_MAX = 256
"""Errors that wait for a program to ask; one that never does is not to fill its memory."""

StateWaiter = Callable[[Exception | None], None]


class Writes(ABC):
    """What the user asked of one chat, and the replica it was asked on."""

    def __init__(self, name: str, session: str, new_request_id: Callable[[], int], backoff: Backoff) -> None:
        self.name = name
        """As the user gave it."""
        self.is_chat = isinstance(owner_named(name).chat, str)
        """False for a character or preset: it has state documents only, and is always called by its name."""
        self.chat_id: str | None = None
        """Set by the first `opened`; never changed."""
        self.replica: Replica | None = None
        """Set by the first snapshot."""
        self.lane = Lane()
        self.stalled: list[PendingWrite] = []
        """Writes that wait for a state document before they can be asked."""
        self.blocked: deque[PendingWrite] = deque()
        """Writes, in order, that wait until those they are entangled with have their answers."""
        self.conflicts: list[Conflict] = []
        self.read_only = False
        self.error: TellbackError | None = None
        """Why the chat is gone."""
        self.lost: deque[Exception] = deque(maxlen=LOST_MAX)
        """What became of writes that nobody waits for and that are no conflicts, until `saved` told it."""
        self.paused_until_s = 0.0
        """Writes wait until then, because the server asked for it."""
        self.events: list[Event] = []
        self.generations = Generations(session, lambda event: self.events.append(event))
        self.left_behind: list[Entry] = []
        """What an earlier process left for this owner."""
        self._left_conflicted: set[int] = set()
        """Request ids of conflicts that an earlier process could not solve."""
        self.records: list[Record] = []
        """For the outbox file, in order."""
        self.wanted_states: dict[str, list[StateWaiter]] = {}
        """Namespaces to ask for, each with who waits."""
        self.asked_states: set[str] = set()
        """Asked on this connection."""
        self.lone_states: set[str] = set()
        """Namespaces to ask for alone, because a question with several was refused."""
        self.session = session
        self._new_request_id = new_request_id
        self._backoff = backoff
        self._view: Stream | None = None
        """The chat with the own writes on top; None when it has to be made."""

    @abstractmethod
    def resync(self) -> None:
        """Open the chat again on this connection, if it is not being opened already."""

    @property
    def owner(self) -> str:
        """How writes name the owner. A chat is known by its id once it is open."""
        assert self.chat_id is not None, "an owner is opened before it is written"
        return f"id:{self.chat_id}" if self.is_chat else self.name

    @property
    def outbox_key(self) -> str:
        """How the outbox file names the owner."""
        assert self.chat_id is not None, "an owner is opened before it is written"
        return self.chat_id if self.is_chat else self.name

    # -- what an earlier process asked ---------------------------------------------------------------------------------

    def restore(self, entries: list[Entry]) -> None:
        """Take over what an earlier process left behind. Called before the first `opened`."""
        for entry in entries:
            pending = PendingWrite(RecordedIntent(entry.write))
            pending.write = entry.write
            pending.data = entry.data
            pending.request_id = entry.request_id
            pending.number = entry.write.op if isinstance(entry.write.op, int) else 0
            pending.journaled = pending.kept = True
            pending.targets = targets_of_request(entry.write)
            if entry.conflicted:
                self.stalled.append(pending)
            else:
                self.lane.writes.append(pending)
                self.lane.next_number = max(self.lane.next_number, pending.number + 1)
        self.left_behind = entries
        self._left_conflicted = {entry.request_id for entry in entries if entry.conflicted}

    def take_over(self, others: Sequence[Writes], address: str) -> None:
        """The owner was gone when what is kept for it was to be sent, and is back (a chat by `address`, its id)."""
        for other in others:
            left = other.left_behind if other.error is not None and other.replica is None else []
            if left and other.name in (self.name, address):
                other.left_behind = []
                other.lost.clear()
                self.restore(left)

    # -- what the user asks ------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Own writes without an answer."""
        return len(self.lane) + len(self.stalled) + len(self.blocked)

    def view(self) -> Stream:
        """The confirmed chat with the own writes on top; not to be changed."""
        replica = self._opened_replica()
        shown = self.lane.shown()
        if not shown:
            return replica.stream
        if self._view is None:
            self._view = replica.view(shown)
        return self._view

    def submit(self, pending: PendingWrite) -> None:
        """Take a write on. Its outcome comes through `on_settled`, now or later."""
        if self.error is not None:
            self._settle(pending, self.error)
        elif self.read_only and not isinstance(getattr(pending.intent, "write", None), UNREADING):
            self._settle(pending, refused("read-only", "The chat is damaged and served read-only.", retry="after-sync"))
        elif self.blocked:
            self.blocked.append(pending)
        else:
            self._carry_out(pending)

    def want_state(self, namespace: str, waiter: StateWaiter) -> None:
        """Ask for a state document; `waiter` gets None when it is there, or an error."""
        if self.error is not None:
            waiter(self.error)
        elif not _is_text(namespace):
            waiter(refused("namespace-illegal", "The namespace holds half of a surrogate pair."))
        elif self._is_absent(namespace):
            self._opened_replica().install_state(namespace, None)
            self._view = None
            waiter(None)
        else:
            self.wanted_states.setdefault(namespace, []).append(waiter)

    def _is_absent(self, namespace: str) -> bool:
        """True when `opened` and the commits since say that there is no such document: nobody need be asked."""
        replica = self.replica
        return (
            not self.is_chat and replica is not None and namespace not in replica.versions
            and namespace_problem(namespace) is None
        )

    def tell_later(self, error: Exception) -> None:
        """Nobody waits for what this tells: `saved` does, once. A conflict is told until it is decided."""
        if error not in self.lost and not isinstance(error, ConflictError):
            self.lost.append(error)

    # -- refusals ----------------------------------------------------------------------------------------------------

    def write_refused(self, pending: PendingWrite, frame: Error, now_s: float) -> None:
        """An own write was answered with an error."""
        kind = ERRORS.get(frame.code)
        pointer = text_or_none(frame.pointer)
        if frame.code == "generation-gap" and isinstance(pending.write, GenerationEnd):
            self._end_refused(pending, pending.write, frame)
        elif frame.code == "op-gap":
            pending.sent = False
            first = self.lane.by_number(frame.expected) if isinstance(frame.expected, int) else None
            if first is None or first.sent:
                self.resync()
        elif frame.code == "not-open":
            pending.sent = False
            self.resync()
        elif frame.retry in ("backoff", "now", "after-auth"):
            pending.sent = False
            after_s = frame.after_ms / 1000 if isinstance(frame.after_ms, int) else self._backoff.next_s()
            self.paused_until_s = max(self.paused_until_s, now_s + after_s)
        elif frame.code == "op-mismatch" and pending.kept:
            self.lane.misnumber(pending)
            self.resync()
        elif (
            frame.code == "renamed" and isinstance(frame.to, str) and not self.is_chat
            and isinstance(pending.write, StateUpdate | StateDelete) and pending.write.owner != owner_named(frame.to)
        ):
            before = pending.request_id
            self.lane.respell(pending, frame.to, self._new_request_id())
            self.records.append(added(frame.to, pending, before))
        elif frame.code == "op-forgotten":
            self.lane.remove(pending)
            self._settle(pending, OutcomeUnknownError(pending.number))
        elif frame.code == "parent-refused" or (frame.code == "base-illegal" and (pointer or "").endswith("/base/op")):
            self.lane.remove(pending)
            self._repeat(pending, "the write it builds on was refused", None, None)
        else:
            used = frame.code == "op-mismatch" or kind is None or kind.outcome
            error = error_of(frame)
            error.op = pending.number
            self._refuse(pending, error, used=used)
            if kind is None:
                # Whether it was counted is not known here: writes behind it keep their distance until the server says.
                self.resync()
        self._view = None
        self._unblock()

    def _end_refused(self, pending: PendingWrite, write: GenerationEnd, frame: Error) -> None:
        """The server has less of the text than the end says."""
        one = self.generations.known.get(write.generation)
        if one is not None and one.sending is not None:
            pending.sent = False
            self.generations.realign(one)
        else:
            # The text was in a process that is gone; what the server has of it is stored when the lease is over.
            self._refuse(pending, refused(frame.code, frame.message, op=pending.number), used=False)

    def refuse_locally(self, pending: PendingWrite, code: str, message: str) -> None:
        """A write that cannot be sent at all."""
        self._refuse(pending, refused(code, message, op=pending.number), used=False)
        self._unblock()

    def _refuse(self, pending: PendingWrite, error: TellbackError, *, used: bool) -> None:
        """The write failed for good; `used` tells whether the server counted its number."""
        self.lane.doom_children(pending)
        if used:
            self.lane.remove(pending)
        elif not self.lane.give_back(pending):
            self.resync()
        self._view = None
        self._settle(pending, error)

    # -- repeating ---------------------------------------------------------------------------------------------------

    def _carry_out(self, pending: PendingWrite) -> None:
        """Ask for what `pending` intends, on what is there now."""
        before = pending.request_id
        try:
            parts = pending.intent.parts(self.view)
        except Unfetched as unfetched:
            self.stalled.append(pending)
            self.want_state(unfetched.namespace, lambda error: self._resume(pending, error))
            return
        except Exception as error:
            # The user's own function failed, or there is nothing that could be asked: theirs to know.
            self._settle(pending, error)
            return
        if not parts:
            shown = self.view()
            self._settle(pending, WriteResult(shown.chat.version if self.is_chat else shown.head, changed=False))
            return
        view = self._view
        write = to_write(self.owner, parts)
        try:
            self.lane.add(pending, write, self._new_request_id(), self._opened_replica())
        except Entangled:
            self.blocked.append(pending)
            return
        except TellbackError as error:
            self._settle(pending, error)
            return
        self.records.append(added(self.outbox_key, pending, before))
        if view is not None and pending.write is not None:
            show(view, pending.write)

    def _unblock(self) -> None:
        """Ask for what waited, in order, as far as it goes."""
        while self.blocked and self.error is None:
            waiting, self.blocked = self.blocked, deque()
            self._carry_out(waiting.popleft())
            stuck = bool(self.blocked)
            self.blocked.extend(waiting)
            if stuck:
                return

    def _resume(self, pending: PendingWrite, error: Exception | None) -> None:
        if pending not in self.stalled:
            # It was settled when the owner was lost.
            return
        self.stalled.remove(pending)
        if error is None:
            self._carry_out(pending)
        else:
            self._settle(pending, error)

    def _repeat(
        self, pending: PendingWrite, reason: str, version: Version | None, missed: list[IntegrityFrame] | None
    ) -> None:
        """A stale write: ask again when it still means the same, or leave it to a person."""
        self.lane.doom_children(pending)
        self._view = None
        effects = None if missed is None else [effect for commit in missed for effect in commit.ops]
        attempts_max = FUNCTION_ATTEMPTS_MAX if is_function(pending.intent) else ATTEMPTS_MAX
        if pending.attempts < attempts_max and pending.intent.repeatable(self.view, effects):
            self._carry_out(pending)
        else:
            self._conflict(pending, reason, version, missed, None)

    def _conflict(
        self,
        pending: PendingWrite,
        reason: str,
        version: Version | None,
        missed: list[IntegrityFrame] | None,
        mine: Chat | None,
    ) -> None:
        if mine is None:
            own = [pending.write] if isinstance(pending.write, DocumentWrite) else []
            writes: list[DocumentWrite] = [*self.lane.shown(), *own]
            mine = self._opened_replica().view(writes).chat
        conflict = Conflict(
            op=pending.number, request_id=pending.request_id, intent=pending.intent, reason=reason, version=version,
            missed=missed, mine=mine,
        )
        self.conflicts.append(conflict)
        self.records.append(conflicted(pending.request_id))
        self.events.append(Conflicted(conflict))
        if pending.on_settled is not None:
            pending.on_settled(ConflictError(conflict))

    def solved(self, conflict: Conflict) -> None:
        """An exit was taken."""
        if conflict in self.conflicts:
            self.conflicts.remove(conflict)
            self.records.append(done(conflict.request_id))

    def _settle(self, pending: PendingWrite, outcome: WriteResult | Exception) -> None:
        if isinstance(outcome, Exception) and _is_kept(pending):
            # Whoever asked for it is gone with the process, so nobody would hear of it.
            self._conflict(pending, str(outcome), None, None, None)
            return
        if pending.request_id:
            self.records.append(done(pending.request_id))
        if pending.on_settled is not None:
            pending.on_settled(outcome)

    # -- states ------------------------------------------------------------------------------------------------------

    def states_received(self, frame: StateFrame) -> None:
        """The answer to `state-get`."""
        for namespace, value in frame.states.items():
            if value is not None and isinstance(value.error, str):
                # All were asked for; whoever waits for this one asked for it by its name, and gets an error of its own.
                continue
            self.asked_states.discard(namespace)
            self.lone_states.discard(namespace)
            if self.replica is not None and namespace not in self.replica.stream.states:
                self.replica.install_state(namespace, value)
                self._view = None
            for waiter in self.wanted_states.pop(namespace, []):
                waiter(None)

    def states_refused(self, namespaces: list[str], error: TellbackError) -> None:
        """`state-get` was answered with an error."""
        self.asked_states.difference_update(namespaces)
        if len(namespaces) > 1:
            # One of them is to blame; the others are not to suffer for having been asked for with it.
            self.lone_states.update(namespaces)
            return
        for namespace in namespaces:
            self.lone_states.discard(namespace)
            for waiter in self.wanted_states.pop(namespace, []):
                waiter(error)

    def _opened_replica(self) -> Replica:
        assert self.replica is not None, "the handle is given out after the chat was opened"
        return self.replica


def _is_kept(pending: PendingWrite) -> bool:
    """True for what an earlier process asked for, but not for the end of a reply: what there is of that is stored."""
    recorded = isinstance(pending.intent, RecordedIntent) and not isinstance(pending.write, Unbased)
    return recorded and pending.request_id > 0 and pending.on_settled is None


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def text_or_none(value: str | UnsetType) -> str | None:
    """A field of a frame that may be left out."""
    return value if isinstance(value, str) else None

"""One chat's half of the conversation, without I/O: frames in; replica, outbox lane and wishes out.

    closed --open sent--> opening --opened--> parts --last part--> live
                                          \\-> replaying --head reached--> live
    any --disconnected or gap--> closed            any --the chat cannot be opened--> gone

Rules of this module:
- Steps are synchronous; nothing here waits, and no frame is ever answered later than it can be.
- A commit that does not follow is never installed and never skipped: the chat is opened again from its head (R40).
- Unacknowledged writes go out again after `opened`, in order, with their numbers and bytes (SCENARIOS 4.5 rule 5).
- An answer about a version that the replica has not reached waits until it has, so that whoever awaited a write reads
  its own write (R39).
- When history was changed (another epoch, or a server that knows less than this client), writes that the server has
  not seen become conflicts; nothing is pushed onto a chat that nobody here has looked at (SCENARIOS 4.5 rule 7).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from msgspec import UnsetType

from tellback_protocol.chat import Chat, message_id_of
from tellback_protocol.effects import AppendEffect, DeletedEffect, Effect, InsertEffect, RenamedEffect
from tellback_protocol.frames import (
    Ack,
    Error,
    GenerationDeltaFrame,
    GenerationDone,
    GenerationStarted,
    GenerationStored,
    IntegrityFrame,
    Opened,
    Reset,
    SnapshotPart,
)
from tellback_protocol.frames import (
    Conflict as ConflictFrame,
)
from tellback_protocol.generation_requests import GenerationCancel, GenerationStart
from tellback_protocol.generations import NAMESPACE
from tellback_protocol.ids import Version
from tellback_protocol.requests import Close, Open, owner_named

from .errors import DeletedError, RefusedError, TellbackError, error_of
from .events import ChatDeleted, ChatRenamed, Committed, Gone, Replaced
from .heartbeat import Backoff
from .intents import RecordedIntent
from .outbox import PendingWrite, WriteResult, added
from .replica import GenerationFrame, Replica, asked_effects
from .writes import Writes

Phase = Literal["closed", "opening", "parts", "replaying", "live", "gone"]
Answer = Ack | ConflictFrame


class Subscription(Writes):
    """A chat that is to be kept open."""

    def __init__(
        self, name: str, session: str, new_request_id: Callable[[], int], backoff: Backoff, *, create: bool = False
    ) -> None:
        super().__init__(name, session, new_request_id, backoff)
        self.create = create
        self.phase: Phase = "closed"
        self.open_at_s = 0.0
        self.on_opened: list[Callable[[Exception | None], None]] = []
        self._deferred: list[tuple[PendingWrite, Answer]] = []
        self._waiting: list[IntegrityFrame] = []
        """Commits that came between the parts of a snapshot."""
        self._snapshot: tuple[Opened, list[bytes], Chat | None] | None = None
        self._target: Version | None = None
        """Head of the last `opened`: what a replay leads to."""
        self._reset_reason: str | None = None
        self._reset: Reset | None = None
        """The last one, until the chat is there again."""
        self._by_name = False
        """The chat_id was not found; the name is tried before giving up."""

    @property
    def address(self) -> str:
        """How frames name the chat."""
        return self.name if self.chat_id is None or self._by_name else self.owner

    # -- opening -----------------------------------------------------------------------------------------------------

    @property
    def wants_open(self) -> bool:
        """True when `open` is to be sent."""
        return self.phase == "closed"

    @property
    def may_send(self) -> bool:
        """True when writes may be sent: numbers are in line, and no half snapshot could turn out to be another chat."""
        return self.phase in ("replaying", "live")

    def open_frame(self, request_id: int) -> Open:
        """The request to open the chat from where the replica stands."""
        self.phase = "opening"
        since = None if self.replica is None or self._reset_reason is not None else self.replica.head
        if not self.is_chat:
            return Open(owner=owner_named(self.name), since=since, id=request_id)
        return Open(
            chat=self.address, since=since, id=request_id, create=self.create and self.replica is None
        )

    def close_frame(self, request_id: int) -> Close:
        """The request to end the subscription."""
        if not self.is_chat:
            return Close(owner=owner_named(self.name), id=request_id)
        return Close(self.address, id=request_id)

    def disconnected(self) -> None:
        """The connection is gone; everything without an answer will be asked again."""
        if self.phase != "gone":
            self.phase = "closed"
        self._deferred.clear()
        self._waiting.clear()
        self._snapshot = None
        self._target = None
        self.asked_states.clear()
        self.paused_until_s = 0.0
        for pending in self.lane:
            pending.sent = False
        self.generations.disconnected()

    def resync(self) -> None:
        """Open the chat again on this connection, from the replica's head."""
        if self.phase in ("parts", "replaying", "live"):
            self.phase = "closed"
            self._snapshot = None
            self._waiting.clear()

    def open_refused(self, frame: Error, now_s: float) -> None:
        """`open` was answered with an error."""
        if frame.retry in ("backoff", "now"):
            after_s = frame.after_ms / 1000 if isinstance(frame.after_ms, int) else self._backoff.next_s()
            self.phase = "closed"
            self.open_at_s = now_s + after_s
        elif frame.code == "renamed" and isinstance(frame.to, str):
            self.events.append(ChatRenamed(self.name, frame.to))
            self.name = frame.to
            self.phase = "closed"
        elif frame.code == "not-found" and self.address != self.name:
            # A chat that was never written to has its id from its name; the server may know only the name.
            self._by_name = True
            self.phase = "closed"
        else:
            self.fail(error_of(frame))

    def fail(self, error: TellbackError) -> None:
        """The chat is gone: waiting openers and readers get the error, own writes become conflicts."""
        if self.phase == "gone":
            return
        self.phase = "gone"
        self.error = error
        writes = [*self.lane.writes, *self.stalled, *self.blocked]
        if isinstance(error, RefusedError):
            self.events.append(Gone(error.code, error.message))
            if self.replica is not None and writes:
                mine = self.view().chat
                for pending in writes:
                    self._conflict(pending, f"the chat cannot be opened: {error}", None, None, mine)
                writes = []
        if writes:
            self.tell_later(error)
        for pending in writes:
            if pending.on_settled is not None:
                pending.on_settled(error)
        self.lane.writes.clear()
        self.stalled.clear()
        self.blocked.clear()
        self._tell_opened(error)
        for waiters in self.wanted_states.values():
            for waiter in waiters:
                waiter(error)
        self.wanted_states.clear()
        self.generations.fail(error)

    def opened(self, frame: Opened) -> None:
        """The answer to `open`."""
        if self.phase == "gone":
            return
        self._backoff.worked()
        self._by_name = False
        self.read_only = frame.read_only is True
        self._target = frame.head
        self._waiting.clear()
        self._snapshot = None
        if self.replica is not None and self.chat_id not in (None, _id_in(frame)):
            # The name leads to another chat now; its history is not ours.
            self._reset_reason = "epoch"
        self.chat_id = self.chat_id or _id_in(frame)
        self.generations.opened(frame)
        if frame.mode == "snapshot":
            self._begin_snapshot(frame)
            return
        if self.replica is None or (frame.mode == "current" and not self.replica.knows(frame.head)):
            # The server answers to a position that this client did not give.
            self._reset_reason = "ahead"
            self.phase = "closed"
            return
        self.phase = "replaying"
        self._reconcile(frame.next_op)
        self._caught_up()

    def opened_beside(self, frame: Opened) -> None:
        """Somebody here asked to look at the file's header: for the server that took the place of the open before, so
        what of that one was not sent yet will not come.
        """
        if self.phase in ("parts", "replaying") or (
            self.phase == "live" and self.replica is not None and not self.replica.knows(frame.head)
        ):
            self.resync()

    def _begin_snapshot(self, frame: Opened) -> None:
        lines = [bytes(raw) for raw in frame.messages] if not isinstance(frame.messages, UnsetType) else []
        mine: Chat | None = None
        reset = frame.reset if not isinstance(frame.reset, UnsetType) else self._reset_reason
        if self.replica is not None and (self._is_other_history(frame.head) or _id_in(frame) != self.chat_id):
            reset = reset or "epoch"
            mine = self.view().chat
        if isinstance(frame.parts, int) and frame.parts > 0:
            self.phase = "parts"
            self._snapshot = (frame, lines, mine)
            return
        self._install_snapshot(frame, lines, mine)

    def _is_other_history(self, head: Version) -> bool:
        assert self.replica is not None, "asked only for a chat that was open before"
        known = self.replica.head
        return (
            head.epoch != known.epoch
            or head.seq < known.seq
            or (head.seq == known.seq and head.integrity != known.integrity)
        )

    def part(self, frame: SnapshotPart) -> None:
        """Messages of a large snapshot."""
        if self._snapshot is None or self.phase != "parts":
            return
        opened, lines, mine = self._snapshot
        lines.extend(bytes(raw) for raw in frame.messages)
        if frame.part == frame.of:
            self._snapshot = None
            self._install_snapshot(opened, lines, mine)

    def _install_snapshot(self, frame: Opened, lines: list[bytes], mine: Chat | None) -> None:
        metadata = b"{}" if isinstance(frame.metadata, UnsetType) else bytes(frame.metadata)
        messages = {message_id_of(line): line for line in lines}
        before = self.replica
        assert self.chat_id is not None, "opened gave it"
        # What a character or preset has of a chat is empty, for ever at its first version.
        version = frame.version if isinstance(frame.version, Version) else frame.head
        self.replica = Replica(self.name, self.chat_id, Chat(version, metadata, messages), frame.head)
        if isinstance(frame.states, dict):
            self.replica.versions.update(frame.states)
        self._view = None
        reason = frame.reset if not isinstance(frame.reset, UnsetType) else self._reset_reason
        self._reset_reason = None
        if before is not None:
            told, self._reset = self._reset, None
            self.events.append(Replaced(
                frame.head, reason or ("epoch" if mine is not None else "snapshot"),
                told.recovered if told is not None and isinstance(told.recovered, list) else [],
                told is not None and told.kept is True,
            ))
            # Own writes with an outcome are in the snapshot, or were refused.
            for pending in self.lane:
                pending.installed = pending.number < frame.next_op and not pending.misnumbered
        if mine is not None:
            unseen = [one for one in self.lane if one.number >= frame.next_op or one.misnumbered]
            for pending in unseen:
                self.lane.remove(pending)
                self._conflict(pending, f"the chat was replaced ({reason or 'epoch'})", version, None, mine)
            while self.blocked:
                pending = self.blocked.popleft()
                self._conflict(pending, f"the chat was replaced ({reason or 'epoch'})", version, None, mine)
        self.phase = "replaying"
        self._reconcile(frame.next_op)
        waiting, self._waiting = self._waiting, []
        for commit in waiting:
            self.commit(commit)
        self._caught_up()

    def _reconcile(self, next_op: int) -> None:
        """Numbers as the server counts them; then everything that is not in flight can be sent."""
        renumbered, orphans = self.lane.reconcile(next_op, self._new_request_id)
        for pending, before in renumbered:
            self.records.append(added(self.outbox_key, pending, before))
        self._view = None
        for pending in orphans:
            # Its number may be another write's by now, so nothing is looked up by it.
            pending.number = 0
            self._repeat(pending, "the write it builds on was refused", None, None)

    def _caught_up(self) -> None:
        """Live as soon as the replica holds the head that `opened` named."""
        if self.phase != "replaying" or self._target is None or self.replica is None:
            return
        if not self.replica.knows(self._target):
            return
        self.phase = "live"
        deferred, self._deferred = self._deferred, []
        for pending, answer in deferred:
            if pending in self.lane.writes:
                self._settle_answer(pending, answer)
        self._restore_conflicts()
        self._tell_opened(None)
        self.look_up()
        self._unblock()

    def _restore_conflicts(self) -> None:
        """What an earlier process could not solve waits for a person again."""
        for pending in [pending for pending in self.stalled if pending.request_id in self._left_conflicted]:
            self.stalled.remove(pending)
            self._conflict(pending, "left unsolved by an earlier process", None, None, None)

    def _tell_opened(self, error: Exception | None) -> None:
        waiting, self.on_opened = self.on_opened, []
        for waiter in waiting:
            waiter(error)

    # -- commits and answers -----------------------------------------------------------------------------------------

    def commit(self, frame: IntegrityFrame) -> None:
        """Somebody's commit, live or replayed."""
        if self.replica is None or self.phase in ("closed", "gone"):
            return
        if self.phase == "parts":
            self._waiting.append(frame)
            return
        if self.replica.knows(frame.version):
            return
        if not self.replica.follows(frame.version, frame.previous):
            # While `open` is on its way its answer brings what is missing.
            self.resync()
            return
        mine = frame.by is not None and frame.by.session == self.session
        pending = self.lane.by_number(frame.by.op) if mine and frame.by is not None else None
        if pending is not None:
            pending.installed = True
        self._install(frame.version, frame.ops)
        self.events.append(Committed(
            frame.version, frame.ops, frame.by, mine, pending.intent if pending is not None else None))
        self._caught_up()
        self._follow(frame.ops)

    def reset(self, frame: Reset) -> None:
        """What is open was replaced."""
        if self.phase != "gone":
            self.resync()
            self._reset_reason = frame.reason
            self._reset = frame

    def answered(self, pending: PendingWrite, frame: Answer) -> None:
        """An ack or a conflict for an own write."""
        self._backoff.worked()
        assert self.replica is not None, "nothing was written before the chat was open"
        version = frame.version
        ready = self.phase != "parts" and (
            version is None or self.replica.knows(version) or (isinstance(frame, Ack) and self.replica.follows(version))
        )
        if ready and isinstance(frame, Ack) and self.replica.follows(frame.version):
            # What it did is not told any more, or was never told: the chat is a backup's now.
            ready = frame.resync is not True and isinstance(frame.restored, UnsetType)
        if ready:
            self._settle_answer(pending, frame)
            self._caught_up()
            self._unblock()
            return
        self._deferred.append((pending, frame))
        if self.phase == "live":
            self.resync()

    def _settle_answer(self, pending: PendingWrite, frame: Answer) -> None:
        assert self.replica is not None, "answered after it was opened"
        assert pending.write is not None, "answered after it was asked"
        if isinstance(frame, ConflictFrame):
            missed = frame.missed if not isinstance(frame.missed, UnsetType) else None
            self.lane.remove(pending)
            self._repeat(pending, "somebody else was faster", frame.version, missed)
            return
        effects = asked_effects(pending.write, frame, self.replica.stream.states)
        self.lane.remove(pending)
        self._view = None
        if self.replica.follows(frame.version):
            self._install(frame.version, effects)
            self.events.append(Committed(frame.version, effects, None, True, pending.intent))
        if isinstance(pending.write, GenerationStart):
            self._began(pending, pending.write, frame)
        self._settle(pending, _result(frame, effects))
        self._follow(effects)

    def _follow(self, effects: list[Effect]) -> None:
        """The chat has another name, or is gone."""
        for effect in effects:
            if isinstance(effect, RenamedEffect):
                self.events.append(ChatRenamed("" if self.name.startswith("id:") else self.name, effect.to))
                if not self.name.startswith("id:"):
                    self.name = effect.to
                    # What the server calls by the old name may be another chat soon.
                    self.resync()
            elif isinstance(effect, DeletedEffect):
                self.events.append(ChatDeleted(self.chat_id or ""))
                error = DeletedError("deleted", "The chat is in the trash.")
                error.chat_id = self.chat_id or ""
                self.fail(error)

    def _install(self, version: Version, effects: list[Effect]) -> None:
        assert self.replica is not None, "checked by the callers"
        before = self.generations.before(effects, self.replica.chat)
        self.replica.install(version, effects)
        self._view = None
        self.generations.committed(version, effects, self.replica.chat, before)

    # -- generations -------------------------------------------------------------------------------------------------

    def generation(self, frame: GenerationFrame) -> None:
        """Text of a reply, and where it begins and ends."""
        match frame:
            case GenerationDeltaFrame():
                self.generations.delta(frame)
            case GenerationStarted():
                self.generations.started(frame)
            case GenerationStored() | GenerationDone():
                if self.generations.ended(frame):
                    self.look_up()

    def _began(self, pending: PendingWrite, write: GenerationStart, frame: Ack) -> None:
        if isinstance(pending.intent, RecordedIntent):
            # Whoever wanted to produce it died before it began: nobody will.
            self.submit(PendingWrite(RecordedIntent(GenerationCancel("", write.generation))))
        else:
            message = frame.message if isinstance(frame.message, str) else ""
            self.generations.began(write.generation, write.target, message)

    def look_up(self) -> None:
        """Find out what became of generations whose end was not heard."""
        if self.phase == "live" and self.replica is not None and self.generations.live(self.replica):
            self.want_state(NAMESPACE, self._looked_up)

    def _looked_up(self, error: Exception | None) -> None:
        if error is not None:
            self.generations.not_found(error)
        else:
            self.generations.look_up(self._opened_replica())



def _id_in(frame: Opened) -> str:
    """The permanent id that `opened` gave."""
    given = frame.chat_id if isinstance(frame.chat_id, str) else frame.owner_id
    return given if isinstance(given, str) else ""


def _result(frame: Ack, effects: list[Effect]) -> WriteResult:
    return WriteResult(
        frame.version,
        [
            message_id_of(bytes(raw))
            for effect in effects if isinstance(effect, (AppendEffect, InsertEffect)) for raw in effect.messages
        ],
        frame.rebased is True,
        frame.duplicate is True,
        None if isinstance(frame.branch, UnsetType) else frame.branch,
        [] if isinstance(frame.linked_from, UnsetType) else frame.linked_from,
    )

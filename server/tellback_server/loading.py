"""Loading: a chat's file, its sidecars and its log become a Stream.

    load_chat(files, log, user, place, now_ms=..., chat_id=None, ours=None) -> LoadedStream | ChatMissing
        in a thread; raises FileUnsafe, FileUnreadable (as they are), OSError, LogCorrupt
    adopt(files, log, stream, held, now_ms)  the same for a live stream whose files were changed; flush the log first
    needs_adoption(files, user, held)        in a thread: a stat differs, so look closer by `adopt`
    create_chat(user, place, chat_id, version, now_ms)    in the loop: a chat that has no file yet

    LoadedStream.stream     pending commits folded in
                .file       FileState: `file.note(effects)` for each commit; `file.anchor(stream)` is the ANCHOR body
                .anchored   False: append the ANCHOR before the first COMMIT or STORED
                .records    NewRecord(kind, owner, seq, body): append (and make durable) before anything is shown
                .adoption   what an outside edit led to, or None

Rules of this module (STORAGE "User files"):
- A chat without a history of ours is only read: not a byte is written, not a record (F1).
- The base is the last ANCHOR, CHECKPOINT or ADOPT of the log, else the session file, else chat_sync. Files that match
  it, or match an INTENT behind it, or are the base with a torn piece of our append, are ours (F8).
- Everything else is an outside edit: adopted, with epoch + 1, after what would be lost was kept (F7, F9).
- Chat, sidecars and head move together: an outside edit of one sidecar raises the epoch too, so that nobody replays
  past it.
- A damaged file is served read-only and never written (F4).
"""

from __future__ import annotations

from msgspec import Raw

from tellback_protocol.chat import Chat
from tellback_protocol.effects import ChatEffect, Commit, Effect, StateEffect, encode_effects, versions_chat
from tellback_protocol.frames import Damage
from tellback_protocol.generations import NAMESPACE as GENERATIONS
from tellback_protocol.generations import as_line, generations_of
from tellback_protocol.ids import ChatName, Integrity, Place, StateOwner, Version
from tellback_protocol.stream import Stream
from tellback_server.adoption import Decision, decide_adoption, known_from_log
from tellback_server.claims import Claim, find_claim
from tellback_server.loaded import AdoptionReport, ChatMissing, LoadedStream, NewRecord
from tellback_server.owner_past import LogReader, OwnerPast
from tellback_server.records import (
    ADOPT,
    ANCHOR,
    Adopted,
    Anchor,
    encode,
    owner_key,
)
from tellback_server.sessions import read_sessions
from tellback_server.store.files import FileStore
from tellback_server.store.found import (
    Content,
    States,
    find_content,
    find_states,
    no_content,
    parse_file,
    state_effect,
)
from tellback_server.store.groups import inherited_metadata
from tellback_server.store.held import FileState, Pending, quick_check
from tellback_server.store.jsonl import new_header
from tellback_server.store.keeping import keep_recovered, plain_file, settle_swap

__all__ = [
    "AdoptionReport",
    "ChatMissing",
    "LoadedStream",
    "LogReader",
    "NewRecord",
    "adopt",
    "create_chat",
    "keep_unfolded",
    "load_chat",
    "needs_adoption",
]

# -- the calls -------------------------------------------------------------------------------------------------------


def load_chat(
    files: FileStore,
    log: LogReader,
    user: str,
    place: Place,
    *,
    now_ms: int,
    chat_id: str | None = None,
    ours: Stream | None = None,
) -> LoadedStream | ChatMissing:
    """The chat of a file, or what a character or preset owns, with everything the log knows about it.

    `chat_id` is what the log's names tell, for a chat without a chat_sync; `ours` is the live stream at its head when
    there is one. Blocks; writes only on an outside edit of a chat with a history of ours (backups, recovered chats) and
    for what a crash left of a swap.
    """
    claim = find_claim(
        files, log, user, place, now_ms=now_ms, named=chat_id, ours=ours,
        keep_unfolded=lambda named: keep_unfolded(files, log, user, place, named, now_ms),
    )
    return _Loading(files, user, place, now_ms, claim, ours).run()


def keep_unfolded(
    files: FileStore, log: LogReader, user: str, place: Place, chat_id: str, now_ms: int
) -> ChatMissing:
    """Backups of what no file ever held of a chat whose place is another's now (F9). Blocks."""
    saved = read_sessions(files, user, chat_id)
    base = saved.base if saved is not None else None
    past = OwnerPast.read(log, owner_key(user, chat_id), base, saved, now_ms, outcomes=False)
    return _Loading(files, user, place, now_ms, Claim(chat_id, past), None).missing()


def adopt(files: FileStore, log: LogReader, stream: Stream, held: FileState, now_ms: int) -> LoadedStream | ChatMissing:
    """A live chat read anew after an outside edit. Every commit of `stream` must be durable; nothing may be decided
    meanwhile. When the files turn out to be ours after all, `adoption` is None and no record is needed.
    """
    return load_chat(files, log, stream.user, held.place, now_ms=now_ms, chat_id=stream.chat_id, ours=stream)


def needs_adoption(files: FileStore, user: str, held: FileState) -> bool:
    """Whether a stat differs from what we know; `adopt` then finds out what happened. Blocks for a few stats."""
    return not quick_check(files, user, held)


def create_chat(user: str, place: ChatName, chat_id: str, version: Version, now_ms: int) -> LoadedStream:
    """A chat that has no file yet. `files.check_free` comes before; the ANCHOR is in `records`."""
    header = new_header(b"{}", chat_id, now_ms)
    parsed = parse_file(place, header + b"\n")
    stream = Stream(user, str(place), chat_id, Chat(version), version)
    held = FileState(place, None, parsed.image, version, version, {}, {}, 0, Pending())
    held.pending.rewrite = True
    record = NewRecord(ANCHOR, owner_key(user, chat_id), version.seq, held.anchor(stream, header))
    return LoadedStream(stream=stream, file=held, anchored=True, records=[record], adoption=None)


# -- the work --------------------------------------------------------------------------------------------------------


class _Loading:
    """One loading. What is found is kept in fields, in the order of the methods."""

    def __init__(
        self,
        files: FileStore,
        user: str,
        place: Place,
        now_ms: int,
        claim: Claim,
        ours: Stream | None,
    ) -> None:
        self.files = files
        self.user = user
        self.place = place
        self.name = str(place)
        self.now_ms = now_ms
        self.claim = claim
        self.chat_id = claim.chat_id
        self.past = claim.past
        self.ours = ours
        self._our_version = Chat(Version(1, 0, ""))
        """All we acknowledged, as far as it is known; set by an adoption."""

    def run(self) -> LoadedStream | ChatMissing:
        """All of it."""
        past = self.past
        if isinstance(self.place, StateOwner):
            return self._judged(no_content(past)) if self.files.has_owner(self.user, self.place) else self.missing()
        if past.has_history and not self._is_held:
            settle_swap(self.files, self.user, self.place, self.chat_id, past, self.now_ms)
        loaded = self.files.read_chat(self.user, self.place)
        base = past.base
        # A chat of ours begins with a commit: the record of a creation without one was cut off by a crash.
        is_begun = isinstance(base, Anchor) and base.created and base.file is None and bool(past.commits)
        if loaded is None and not is_begun:
            return self.missing()
        place = self.place
        return self._judged(find_content(
            place, loaded, past, lambda: inherited_metadata(self.files, self.user, place.chat)
        ))

    def _judged(self, found: Content) -> LoadedStream | ChatMissing:
        """With the chat's content, what becomes of it and of the sidecars."""
        past = self.past
        states = find_states(self.files.read_states(self.user, self.place), past, self.name)
        if not past.has_history:
            return self._fresh(found, states)
        states.remember_deleted(past.done())
        if self._is_held:
            return self._contradicted(found, states)
        self._sync(found, states)
        if found.is_edited or states.edited or self.claim.begins_anew:
            return self._adopted(found, states)
        return self._ours(found, states)

    @property
    def _is_held(self) -> bool:
        """Whether nothing may be written: chat_sync and the log contradict each other, and nobody has decided."""
        return bool(self.claim.contradiction) and not self.claim.begins_anew

    def _sync(self, found: Content, states: States) -> None:
        """A kill may have come between a write and its sync; what is told from now on must be on the disk."""
        if found.intent is not None:
            self.files.make_durable(self.files.owner_path(self.user, self.place))
        for namespace in states.after.keys() & states.identities.keys():
            self.files.make_durable(self.files.state_path(self.user, self.place, namespace))

    def missing(self) -> ChatMissing:
        """Deleted by another program, or never there. What only the log holds is kept as a backup (F9)."""
        past = self.past
        head = past.head(Version(1, 0, "")) if past.has_history else None
        pending = past.pending()
        backups: list[str] = []
        unfinished = self._unfinished()
        if head is not None and (pending or unfinished):
            if not isinstance(self.place, StateOwner):
                ours = known_from_log(Chat(head), past.done(), pending) if self.ours is None else self.ours.chat
                data = plain_file(ours) + b"".join(line + b"\n" for line in unfinished)
                backups.append(self.files.backup(self.user, self.chat_id, head.seq, self.now_ms, data))
            backups.extend(self._keep_states(pending, head.seq))
        return ChatMissing(
            user=self.user,
            name=self.name,
            chat_id=self.chat_id,
            head=head,
            pending=len(pending),
            backups=backups,
            answers=past.answers(self.user, self.chat_id) if past.base is not None else None,
        )

    def _unfinished(self) -> list[bytes]:
        """What there is of replies that were being written, as lines."""
        if self.ours is not None:
            known, running = self.ours.generations, self.ours.running
        else:
            running = self.past.running
            if not running:
                return []
            states = find_states(self.files.read_states(self.user, self.place), self.past, self.name)
            document = states.documents.get(GENERATIONS)
            known = generations_of(None if document is None else document.data)
        return [as_line(known.get(one_id), one) for one_id, one in running.items() if one.size_bytes]

    def _keep_states(self, pending: list[Commit], seq: int) -> list[str]:
        """Backups of the state documents that no sidecar holds, of an owner that is gone."""
        states = find_states(self.files.read_states(self.user, self.place), self.past, self.name)
        scratch = Stream(self.user, self.name, self.chat_id, Chat(Version(1, 0, "")))
        scratch.states = states.documents
        unwritten = Pending()
        touched: set[str] = set()
        for commit in pending:
            touched.update(effect.namespace for effect in commit.ops if isinstance(effect, StateEffect))
            states.fold(scratch, commit, unwritten)
        backups: list[str] = []
        for namespace in sorted(unwritten.states | (touched & states.edited)):
            data = scratch.states[namespace].data
            if namespace in states.edited or self.ours is not None:
                data = states.ours(namespace, self.ours, pending)
            if data is not None:
                ending = f".{namespace}.json"
                backups.append(self.files.backup(self.user, self.chat_id, seq, self.now_ms, data, ending))
        return backups

    # -- a chat that we never wrote

    def _fresh(self, found: Content, states: States) -> LoadedStream:
        integrity = found.integrity(1, 0, self.name)
        if isinstance(self.place, StateOwner):
            integrity = Integrity(states.integrity(1, 0, self.name, states.documents))
        version = Version(1, 0, integrity)
        stream = self._stream(found.chat(version), version, found, states)
        stream.settle_floors()
        stream.follow_generations()
        held = self._held(found, version, version, states)
        live = self.ours
        report: AdoptionReport | None = None
        if live is not None and not _is_same(live, stream):
            # Somebody changed what we only read: there is nothing of ours to keep, but the tabs must hear of it.
            report = AdoptionReport([], [], [], sorted(stream.states))
        return LoadedStream(stream=stream, file=held, anchored=False, records=[], adoption=report)

    # -- files as we left them

    def _ours(self, found: Content, states: States) -> LoadedStream:
        past = self.past
        base = past.base
        assert base is not None, "without a base, the file is another program's"
        file_head, file_version = found.versions(past, base)
        chat = found.chat(file_version)
        stream = self._stream(chat, past.head(base.head), found, states)
        held = self._held(found, file_version, file_head, states)
        pending = held.pending
        for commit in past.pending():
            effects = [effect for effect in commit.ops if isinstance(effect, ChatEffect)]
            if effects and not found.holds(commit):
                pending.add(effects)
                for effect in effects:
                    chat.apply(effect)
                    stream.follow(effect)
            if versions_chat(commit) and not found.holds(commit):
                chat.version = commit.version
            states.fold(stream, commit, pending)
        # Also when a crash came just behind the files: chat_sync and CHECKPOINT have yet to say what they hold.
        pending.commits = len(past.pending())
        stream.settle_floors()
        self._fold_outcomes(stream)
        return LoadedStream(
            stream=stream, file=held, anchored=past.in_log, records=[], adoption=None, saved=past.saved
        )

    # -- files and log that contradict each other

    def _contradicted(self, found: Content, states: States) -> LoadedStream:
        """What the files hold, read-only and in an epoch that nobody saw: what was told under the old one is not known
        (X13).
        """
        version = self._next_version(found, states)
        stream = self._stream(found.chat(version), version, found, states)
        stream.contradiction = self.claim.contradiction
        stream.damage = [Damage(0, self.claim.contradiction), *found.damage]
        states.adopt(stream, version)
        stream.settle_floors()
        held = self._held(found, version, version, states)
        held.pending = Pending()
        self._fold_outcomes(stream)
        stream.forget_history()
        is_new = self.ours is not None and not _is_same(self.ours, stream)
        report = AdoptionReport([], [], [], sorted(states.edited)) if is_new else None
        return LoadedStream(stream=stream, file=held, anchored=self.past.in_log, records=[], adoption=report)

    def _next_version(self, found: Content, states: States) -> Version:
        """Behind everything that was told, derived from what the files hold."""
        before = self.past.head(Version(1, 0, ""))
        told_epoch, told_seq = self.claim.told
        epoch, seq = max(before.epoch, told_epoch) + 1, max(before.seq, told_seq)
        if isinstance(self.place, StateOwner):
            return Version(epoch, seq, states.integrity(epoch, seq, self.name, states.documents))
        return Version(epoch, seq, found.integrity(epoch, seq, self.name))

    # -- an outside edit

    def _adopted(self, found: Content, states: States) -> LoadedStream:
        past = self.past
        before = past.head(Version(1, 0, ""))
        pending = past.pending()
        if found.is_edited or self.claim.begins_anew:
            head = version = self._next_version(found, states)
        else:
            epoch = before.epoch + 1
            base = past.base
            assert base is not None, "a file that is ours has a base"
            _file_head, version = found.versions(past, base)
            for commit in pending:
                if versions_chat(commit):
                    version = commit.version
            head = Version(epoch, before.seq, states.integrity(epoch, before.seq, self.name))
        decision = self._decide(found, version, pending)
        report = self._keep(found, states, decision, pending, before.seq)
        decision.chat.version = version
        stream = self._stream(decision.chat, head, found, states)
        held = self._held(found, version, head, states)
        for commit in pending:
            states.fold(stream, commit, held.pending)
        states.adopt(stream, head)
        stream.settle_floors()
        if self.ours is not None:
            held.pending.states.update(states.miscounted(stream))
        if decision.effects:
            held.pending.add(decision.effects)
        self._fold_outcomes(stream)
        stream.forget_history()
        dirty: list[Effect] = [state_effect(stream, namespace) for namespace in sorted(held.pending.states)]
        record = Adopted(
            user=self.user,
            name=self.name,
            chat_id=self.chat_id,
            file=held.identity,
            version=version,
            head=head,
            states=held.states,
            effects=Raw(encode_effects([*decision.effects, *dirty])),
            was=decision.was,
            recovered=report.recovered,
            backups=report.backups,
            cut=found.cut,
            rotten=found.rotten,
            inherited=found.parsed.image.inherited,
        )
        new = NewRecord(ADOPT, owner_key(self.user, self.chat_id), head.seq, encode(record))
        return LoadedStream(stream=stream, file=held, anchored=True, records=[new], adoption=report)

    def _decide(self, found: Content, version: Version, pending: list[Commit]) -> Decision:
        theirs = found.chat(version)
        is_damaged = bool(found.damage)
        if not found.is_edited:
            # The chat's file is ours; only a sidecar was changed.
            self._our_version = theirs
            wanted = [commit for commit in pending if not found.holds(commit)]
            return decide_adoption(theirs, Chat(version), wanted, theirs.metadata, is_damaged=is_damaged)
        live = self.ours
        self._our_version = live.chat if live is not None else known_from_log(theirs, self.past.done(), pending)
        return decide_adoption(theirs, self._our_version, pending, found.metadata_before, is_damaged=is_damaged)

    def _keep(
        self, found: Content, states: States, decision: Decision, pending: list[Commit], seq: int
    ) -> AdoptionReport:
        """Our version goes to a chat of its own or to a backup, before anything of it is given up."""
        recovered: list[str] = []
        backups: list[str] = []
        if decision.refused:
            assert not isinstance(self.place, StateOwner), "nothing of it is in a file that could be edited"
            theirs = found.chat(decision.chat.version) if self.ours is None else None
            recovered.append(keep_recovered(self.files, self.user, self.place, self._our_version, theirs))
        elif decision.lost:
            data = plain_file(self._our_version)
            backups.append(self.files.backup(self.user, self.chat_id, seq, self.now_ms, data))
        for namespace in states.edited:
            ours = states.ours(namespace, self.ours, pending)
            if ours is not None:
                ending = f".{namespace}.json"
                backups.append(self.files.backup(self.user, self.chat_id, seq, self.now_ms, ours, ending))
        return AdoptionReport(recovered, backups, decision.refused, sorted(states.edited))

    # -- what all of them share

    def _stream(self, chat: Chat, head: Version, found: Content, states: States) -> Stream:
        stream = Stream(self.user, self.name, self.chat_id, chat, head)
        stream.damage = found.damage
        stream.states = states.documents
        if not isinstance(self.place, StateOwner):
            stream.read_floors(None if self.ours is None else self.ours.floors)
        return stream

    def _held(self, found: Content, version: Version, head: Version, states: States) -> FileState:
        held = FileState(
            self.place,
            found.identity,
            found.parsed.image,
            version,
            head,
            states.marks,
            states.identities,
            len(found.parsed.messages),
            Pending(),
        )
        held.rotten = found.rotten
        held.pending.rewrite = found.needs_rewrite
        return held

    def _fold_outcomes(self, stream: Stream) -> None:
        """Outcomes of all retained ops, and the commits of this epoch that can be replayed."""
        if self.ours is not None:
            stream.sessions = self.ours.sessions
            stream.history = self.ours.history
            stream.history_bytes = self.ours.history_bytes
            stream.history_from = self.ours.history_from
            stream.take_texts(self.ours.running, self.ours.generations)
        else:
            self.past.give(stream)
            stream.take_texts(self.past.running, {})


def _is_same(live: Stream, stream: Stream) -> bool:
    """Whether two streams with nothing of ours that no file holds show the same."""

    def states(one: Stream) -> dict[str, Version | None]:
        return {namespace: document.version for namespace, document in one.states.items()}

    return live.head == stream.head and states(live) == states(stream)

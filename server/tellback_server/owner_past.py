"""OwnerPast: what the log tells of one owner, sorted by what it is for.

Rules of this module:
- The base is the newest of the log's ANCHOR, CHECKPOINT and ADOPT records and of what the files themselves tell
  (session file, chat_sync): the higher (epoch, seq) wins, the log when they are equal.
- Pending are the commits above the base, of its epoch.
- Outcomes are read back to where the session file begins to know them, and without one to the oldest record: an op that
  was answered is never forgotten for want of a file (BEHAVIOUR O9). Commits are kept as far as a stream remembers them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

import msgspec

from tellback_protocol.chat import Chat
from tellback_protocol.decide import fold_stored
from tellback_protocol.effects import Author, Commit, decode_commit, decode_effects
from tellback_protocol.errors import Refused
from tellback_protocol.generations import Running, states_told
from tellback_protocol.ids import Version
from tellback_protocol.outcomes import Outcome, version_of
from tellback_protocol.past import ack_body, past_of
from tellback_protocol.stream import HISTORY_COMMITS_MAX, Stream
from tellback_server.log import LogError, Position, Record
from tellback_server.records import (
    ADOPT,
    ANCHOR,
    CHECKPOINT,
    COMMIT,
    DELTAS,
    DONE,
    INTENT,
    OPERATION,
    STORED,
    Adopted,
    BaseRecord,
    Deltas,
    Intent,
    decode_base,
    decode_deltas,
    decode_intent,
)
from tellback_server.sessions import SessionFile, fold_sessions

__all__ = ["LogReader", "OwnerPast", "long_answer"]


REMEMBERED_BYTES_MAX = 16 << 20
"""Of commits that the base holds, those that are read again: 2,048 as large as they may be would be gigabytes."""


class LogReader(Protocol):
    """What loading needs of the log."""

    def records(self, owner: str, after_seq: int = 0) -> Iterator[tuple[Position, Record]]: ...

    def seq_within(self, owner: str, after_seq: int, until_seq: int, bytes_max: int) -> int: ...


class OwnerPast:
    """The records of one owner, sorted by what they are for."""

    def __init__(self, base: BaseRecord | None, saved: SessionFile | None, *, is_fixed: bool = False) -> None:
        """`is_fixed`: the base is what a store holds; what the log says of it only tells what the store should hold."""
        self.base = base
        self.newest: BaseRecord | None = saved.base if saved is not None else None
        """What is told last of what was folded."""
        self._is_fixed = is_fixed
        self.saved = saved
        self.in_log = False
        """The base is a record of the log, so that no ANCHOR is needed."""
        self.intents: list[Intent] = []
        """Behind the base, oldest first."""
        self.commits: list[Commit] = []
        """In log order: those above the base, and before them as many as a stream remembers."""
        self.end_seq = -1
        """The highest seq of a record that was read; -1 when none was."""
        self.end_epoch = 0
        """The highest epoch that a record told; 0 when none did."""
        self.kinds: set[int] = set()
        """Kinds of records that are not known here."""
        self.has_history = base is not None
        self._known_seq = 0 if base is None else base.head.seq
        self._answered = Stream("", "", "", Chat(Version(1, 0, "")))
        if saved is not None:
            fold_sessions(saved, self._answered)

    @classmethod
    def read(
        cls, log: LogReader, owner: str, base: BaseRecord | None, saved: SessionFile | None, now_ms: int, *,
        outcomes: bool = True, is_fixed: bool = False,
    ) -> OwnerPast:
        """Cost: what came since the session file was written (unless outcomes are not wanted), and what a stream
        remembers, up to 16 MiB of it.
        """
        past = cls(base, saved, is_fixed=is_fixed)
        remembered_seq = log.seq_within(
            owner, past._known_seq - HISTORY_COMMITS_MAX - 1, past._known_seq, REMEMBERED_BYTES_MAX
        )
        # An ANCHOR may stand at seq 0, and `records` gives what is above; a refusal stands at the seq of a commit.
        answered_seq = remembered_seq
        if outcomes:
            answered_seq = -1 if saved is None else saved.answered_seq - 1
        for _position, record in log.records(owner, max(-1, min(remembered_seq, answered_seq))):
            past.end_seq = max(past.end_seq, record.seq)
            if record.kind == COMMIT:
                past._commit(decode_commit(record.body), now_ms)
            elif record.kind == STORED:
                past.has_history = True
                fold_refusal(past._answered, record.body, now_ms)
            elif record.kind == DELTAS:
                past._deltas(decode_deltas(record.body))
            elif record.kind == INTENT:
                past.intents.append(decode_intent(record.body))
            elif record.kind in (ANCHOR, CHECKPOINT, ADOPT):
                past._stands_on(decode_base(record.body))
            elif record.kind not in (OPERATION, DONE):
                past.kinds.add(record.kind)
        return past

    def _deltas(self, deltas: Deltas) -> None:
        running = self._answered.running.setdefault(deltas.generation, Running())
        # What the session file held already is left out; it may hold more than the log.
        with contextlib.suppress(Refused):
            running.add(deltas.offset, deltas.text, deltas.reasoning_offset, deltas.reasoning)

    def _commit(self, commit: Commit, now_ms: int) -> None:
        self.has_history = True
        self.end_epoch = max(self.end_epoch, commit.version.epoch)
        for generation_id, state in states_told(commit.ops).items():
            if state != "running":
                self._answered.running.pop(generation_id, None)
        if commit.version.seq > self._known_seq - HISTORY_COMMITS_MAX - 1:
            self.commits.append(commit)
        if commit.by is not None and commit.by.op > self._answered.session(commit.by.session).last:
            self._answered.fold_outcome(commit, now_ms)

    def _stands_on(self, found: BaseRecord) -> None:
        self.end_epoch = max(self.end_epoch, found.head.epoch)
        if self.newest is None or _is_newer(found, self.newest):
            self.newest = found
        if self._is_fixed:
            self.has_history = self.in_log = True
            return
        # The newest in the log wins, unless a file knows of a later watermark of the same epoch or a later one.
        if self.base is not None and not self.in_log and not _is_newer(found, self.base):
            return
        self.base = found
        self.has_history = self.in_log = True
        self.intents.clear()
        self._known_seq = found.head.seq
        first = self._known_seq - HISTORY_COMMITS_MAX
        if self.commits and self.commits[0].version.seq < first - HISTORY_COMMITS_MAX:
            # Seldom, so that what it costs is shared by many.
            self.commits = [commit for commit in self.commits if commit.version.seq >= first]

    def answers(self, user: str, chat_id: str) -> Stream:
        """Head, outcomes and history, without documents."""
        assert self.base is not None, "an owner of ours"
        stream = Stream(user, self.base.name, chat_id, Chat(self.base.version), self.head(self.base.head))
        self.give(stream)
        return stream

    def give(self, stream: Stream) -> None:
        """The outcomes of all ops, and the commits of the stream's epoch that can be replayed, for its head."""
        stream.sessions = self._answered.sessions
        if self.saved is not None and self.saved.history_from.epoch == stream.head.epoch:
            stream.history_from = self._answered.history_from
            for past in self._answered.history:
                stream.remember((past,))
        for commit in self.commits:
            remember(stream, commit)
        newest = stream.history[-1].version.integrity if stream.history else stream.history_from.integrity
        if newest != stream.head.integrity:
            stream.forget_history()

    @property
    def running(self) -> dict[str, Running]:
        """The text of generations that did not end, by id."""
        return self._answered.running

    def pending(self) -> list[Commit]:
        """What the base's file does not hold: an adoption's own effects as one commit, then the commits above it."""
        base = self.base
        if base is None:
            return list(self.commits)
        pending = [commit for commit in self.commits if commit.version.seq > base.head.seq]
        if isinstance(base, Adopted):
            effects = decode_effects(bytes(base.effects))
            if effects:
                pending.insert(0, Commit(base.version, "", effects, was=base.was))
        return pending

    def done(self) -> list[Commit]:
        """Retained commits that the base's file held."""
        return [] if self.base is None else [c for c in self.commits if c.version.seq <= self.base.head.seq]

    def head(self, otherwise: Version) -> Version:
        """The version of the last commit."""
        version = otherwise if self.base is None else self.base.head
        for commit in self.commits:
            if commit.version.seq > version.seq:
                version = commit.version
        return version

    def ours(self) -> list[Intent]:
        """Intents that may have been carried out behind the base, newest first."""
        seq = 0 if self.base is None else self.base.head.seq
        return [intent for intent in reversed(self.intents) if intent.seq >= seq]


def _is_newer(found: BaseRecord, other: BaseRecord) -> bool:
    return (found.head.epoch, found.head.seq) >= (other.head.epoch, other.head.seq)


class _Authored(msgspec.Struct):
    by: Author


_decode_authored = msgspec.json.Decoder(_Authored).decode


def fold_refusal(stream: Stream, body: bytes, now_ms: int) -> None:
    """Install a stored conflict or refusal that the session file does not hold already."""
    by = _decode_authored(body).by
    if by.op > stream.session(by.session).last:
        fold_stored(stream, body, now_ms)


def remember(stream: Stream, commit: Commit) -> None:
    """Add a commit to the history when it continues it; a gap forgets what was before."""
    if commit.version.epoch != stream.head.epoch:
        return
    last = stream.history[-1].version if stream.history else None
    if last is not None and commit.version.seq <= last.seq:
        return
    if last is None and commit.version.seq <= stream.history_from.seq < stream.head.seq:
        return
    previous = stream.history_from.integrity if last is None else last.integrity
    if previous != commit.previous:
        stream.forget_history()
        stream.history_from = Version(commit.version.epoch, commit.version.seq - 1, commit.previous)
    stream.remember((past_of(commit),))


def long_answer(log: LogReader, owner: str, outcome: Outcome) -> bytes:
    """The body of an ack of which only a short form is kept, as long as the log holds its commit; else the short form.

    Cost: one record, of an op that is sent again.
    """
    version = version_of(outcome)
    try:
        for _position, record in log.records(owner, version.seq - 1):
            if record.seq > version.seq:
                break
            if record.kind == COMMIT:
                commit = decode_commit(record.body)
                if commit.version == version:
                    return ack_body(commit)
    except (LogError, OSError):
        # It was let go meanwhile, or cannot be read: the short form says so.
        pass
    return outcome.body

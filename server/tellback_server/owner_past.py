"""OwnerPast: what the log tells of one owner, sorted by what it is for.

Rules of this module:
- The base is the newest of the log's ANCHOR, CHECKPOINT and ADOPT records and of what the files themselves tell
  (session file, chat_sync): the higher (epoch, seq) wins, the log when they are equal.
- Pending are the commits above the base, of its epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from tellback_protocol.effects import Commit, decode_commit, decode_effects
from tellback_protocol.ids import Version
from tellback_server.log import Position, Record
from tellback_server.records import (
    ADOPT,
    ANCHOR,
    CHECKPOINT,
    COMMIT,
    INTENT,
    STORED,
    Adopted,
    BaseRecord,
    Intent,
    decode_base,
    decode_intent,
)
from tellback_server.sessions import SessionFile

__all__ = ["LogReader", "OwnerPast"]


class LogReader(Protocol):
    """What loading needs of the log."""

    def records(self, owner: str, after_seq: int = 0) -> Iterator[tuple[Position, Record]]: ...


class OwnerPast:
    """The records of one owner, sorted by what they are for."""

    def __init__(self, base: BaseRecord | None, saved: SessionFile | None) -> None:
        self.base = base
        self.saved = saved
        self.in_log = False
        """The base is a record of the log, so that no ANCHOR is needed."""
        self.intents: list[Intent] = []
        """Behind the base, oldest first."""
        self.commits: list[Commit] = []
        self.entries: list[Commit | bytes] = []
        """Commits and stored refusals, in log order."""

    @classmethod
    def read(
        cls, log: LogReader, owner: str, after_seq: int, base: BaseRecord | None, saved: SessionFile | None
    ) -> OwnerPast:
        past = cls(base, saved)
        for _position, record in log.records(owner, after_seq):
            if record.kind == COMMIT:
                commit = decode_commit(record.body)
                past.commits.append(commit)
                past.entries.append(commit)
            elif record.kind == STORED:
                past.entries.append(record.body)
            elif record.kind == INTENT:
                past.intents.append(decode_intent(record.body))
            elif record.kind in (ANCHOR, CHECKPOINT, ADOPT):
                found = decode_base(record.body)
                # The newest in the log wins, unless a file knows of a later watermark of the same epoch or a later one.
                if past.base is None or past.in_log or _is_newer(found, past.base):
                    past.base = found
                    past.in_log = True
                    past.intents.clear()
        return past

    @property
    def has_history(self) -> bool:
        return self.base is not None or bool(self.entries)

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

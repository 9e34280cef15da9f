"""Missed commits from the log, for a tab that was away longer than a stream remembers (BEHAVIOUR R7).

Rules of this module:
- A replay from the log begins where the log vouches for the tab's position: a retained commit with exactly its epoch,
  seq and integrity, or the commit right behind it that names it as the one before.
- It is an unbroken chain of `previous`; what does not continue it is never sent.
- Reading stops at the first byte over what a replay may have, so its cost is bounded by the snapshot's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

import msgspec

from tellback_protocol.effects import decode_commit
from tellback_protocol.ids import Version
from tellback_protocol.past import Past, past_of
from tellback_protocol.stream import Stream
from tellback_server.log import Position, Record
from tellback_server.records import COMMIT

REPLAY_BYTES_MIN = 64 << 10
"""A replay of this size is sent even when the snapshot would be smaller (BEHAVIOUR R2)."""


class LogReader(Protocol):
    """What a replay needs of the log."""

    def records(self, owner: str, after_seq: int = 0) -> Iterator[tuple[Position, Record]]: ...


class Missed(msgspec.Struct, gc=False):
    """What the log tells of the commits behind a position."""

    verdict: Literal["known", "replaced", "trimmed"]
    """Whether the log knows the position: exactly, under another integrity, or not at all any more."""
    last: Version
    """How far `commits` lead; the position itself when there are none."""
    commits: list[Past] = []
    size_bytes: int = 0
    is_too_large: bool = False
    """There is more than a replay may have; `commits` is not complete."""

    def extend(self, more: Missed) -> None:
        """Append what was read behind `last` later."""
        if more.verdict != "known":
            self.verdict = "trimmed" if self.commits else more.verdict
        self.last = more.last
        self.commits.extend(more.commits)
        self.size_bytes += more.size_bytes
        self.is_too_large = more.is_too_large


def is_beyond_memory(stream: Stream, since: Version | None) -> bool:
    """Whether only the log can tell what came after `since`."""
    return since is not None and since.epoch == stream.head.epoch and since.seq < stream.history_from.seq


def replay_bytes_max(stream: Stream) -> int:
    """How large a replay may be (R2). Cost: a step a message."""
    return max(REPLAY_BYTES_MIN, sum(map(len, stream.chat.messages.values())))


def is_replayable(stream: Stream, size_bytes: int) -> bool:
    """Whether a replay of this size is sent (R2). Cost: a step a message, for one of over 64 KiB."""
    return size_bytes <= REPLAY_BYTES_MIN or size_bytes <= replay_bytes_max(stream)


def missed_since(log: LogReader, key: str, since: Version, bytes_max: int) -> Missed:
    """The retained durable commits behind `since`, of its epoch, oldest first.

    Blocks: it reads the log. Raises LogCorrupt, RecordMissing (retention was faster), OSError.
    """
    missed = Missed("trimmed", since)
    for _position, record in log.records(key, since.seq - 1):
        if record.kind != COMMIT:
            continue
        commit = decode_commit(record.body)
        version, last = commit.version, missed.last
        if version.epoch != since.epoch:
            continue
        if version.seq == since.seq:
            if version.integrity != since.integrity:
                return Missed("replaced", since)
            missed.verdict = "known"
            continue
        if version.seq != last.seq + 1 or commit.previous != last.integrity:
            if version.seq == since.seq + 1:
                return Missed("replaced", since)
            # A hole: an older part of the log is gone, or another program's edit lies between.
            missed.verdict = "trimmed"
            return missed
        missed.verdict = "known"
        past = past_of(commit)
        missed.size_bytes += past.size_bytes
        if missed.size_bytes > bytes_max:
            missed.is_too_large = True
            return missed
        missed.commits.append(past)
        missed.last = version
    return missed

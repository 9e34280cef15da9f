"""Flush snapshot: an owner as it goes to a backup: taken in the loop, finished in a thread.

Rules of this module (STORAGE SM1):
- Taking costs a pointer a message. Lines of other programs without an id get theirs in the thread, once.
- Effects tell what was touched since the backup's head; where the log does not lead from there, there are none.
"""

from __future__ import annotations

from copy import copy
from functools import lru_cache
from typing import Final

import msgspec
from msgspec import Raw

from tellback_protocol.chat import with_id
from tellback_protocol.effects import Effect, StateEffect, decode_commit
from tellback_protocol.floors import LOG_SUFFIX
from tellback_protocol.ids import Version
from tellback_protocol.stream import Stream
from tellback_server.log import RecordMissing
from tellback_server.owner_past import LogReader
from tellback_server.records import COMMIT
from tellback_server.store.base import StoredChat
from tellback_server.store.held import FileState, Pending
from tellback_server.store.store_state import EFFECTS_MAX, StoreState, listing_of, value_now

__all__ = ["Snapshot"]

LINES_KEPT: Final = 20_000
_line_with_id = lru_cache(LINES_KEPT)(with_id)


class Snapshot(msgspec.Struct):
    """One owner at one version."""

    value: StoredChat
    file: FileState
    """What the primary holds, for the list."""
    bare: set[str]
    """Messages whose line has no id in it."""
    floors: list[str]
    """Namespaces of the logs of floor states."""

    @classmethod
    def take(cls, stream: Stream, held: FileState) -> Snapshot:
        """The owner now. Loop."""
        floors = [f"{name}{LOG_SUFFIX}" for name in stream.floors]
        return cls(value_now(stream), copy(held), set(stream.chat.bare), floors)

    def finish(self, now_ms: int) -> StoredChat:
        """The value as a store takes it."""
        messages = self.value.messages
        for message_id in self.bare & messages.keys():
            messages[message_id] = _line_with_id(messages[message_id], message_id)
        # What stands for a file of an owner in a store is none.
        identity = None if isinstance(self.file, StoreState) else self.file.identity
        self.value.summary = msgspec.json.encode(listing_of(self.file.image, self.value, now_ms, identity))
        self.bare = set()
        return self.value

    def effects_since(self, base: Version, log: LogReader, key: str) -> list[Effect] | None:
        """What led from the backup's head to here; None when the log does not tell. Cost: those records."""
        at, effects, pending = base, list[Effect](), Pending()
        try:
            for _position, record in log.records(key, base.seq):
                if record.kind != COMMIT or record.seq > self.value.head.seq:
                    continue
                commit = decode_commit(record.body)
                if (commit.version.epoch, commit.previous) != (at.epoch, at.integrity):
                    return None
                at = commit.version
                effects += commit.ops
                pending.add(commit.ops)
                if len(effects) > EFFECTS_MAX:
                    return None
        except RecordMissing:
            return None
        if at != self.value.head:
            return None
        if pending.reordered:
            # They count messages that have moved.
            for name in self.floors:
                document = self.value.states.get(name)
                if document is not None and document.version is not None and (data := document.data) is not None:
                    effects.append(StateEffect(name, document.version, None, data=Raw(data)))
        return effects

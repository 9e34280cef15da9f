"""Diverged: two copies of an owner of which neither continues the other; the one that gives way is kept first.

    diverged.are(user, chat_id, older, newer)     whether the log, or the versions alone, say so
    diverged.keep(user, value)                    where it is kept: a chat of its own, or files for states
    diverged.tell(...)                            once for each

Rules of this module (STORAGE SM10):
- A chat is kept as `<name> - recovered #n` beside the other one, in the primary, with its messages, metadata and
  states. Its id, and SillyTavern's `integrity`, are made of what it was, so that a crash or another look makes no
  second one.
- Characters and presets are not chats: their states are kept as backups, under the owner's id.
- It is durable before anything of it is given up.
"""

from __future__ import annotations

import msgspec
import structlog

from tellback_protocol.chat import with_integrity
from tellback_protocol.effects import decode_commit
from tellback_protocol.ids import Integrity, StateOwner, Version, derived_uuid, parse_place
from tellback_protocol.stream import StateDocument
from tellback_server.clock import Clock
from tellback_server.log import LogError
from tellback_server.names import Names
from tellback_server.owner_past import LogReader
from tellback_server.records import COMMIT, owner_key
from tellback_server.store.base import ListedOwner, StoredChat, StoreError
from tellback_server.store.files import STATE_ENDING, FileStore
from tellback_server.store.keeping import recovered_names
from tellback_server.store.multi import MultiStore
from tellback_server.store_index import StoreIndex

__all__ = ["Diverged"]

log = structlog.get_logger()


class Diverged:
    """See the module. Every method blocks and raises StoreError, OSError."""

    def __init__(
        self, stores: MultiStore, records: LogReader, files: FileStore, names: Names, index: StoreIndex, clock: Clock
    ) -> None:
        self._stores = stores
        self._records = records
        self._files = files
        self._names = names
        self._index = index
        self._clock = clock

    def are(self, user: str, chat_id: str, older: Version, newer: Version) -> bool:
        """Whether `newer` does not lead on from `older`. What the log does not tell any more is taken as led on.

        Cost: the owner's records behind `older`.
        """
        if older == newer:
            return False
        if (older.epoch, older.seq) == (newer.epoch, newer.seq):
            return True
        try:
            for _position, record in self._records.records(owner_key(user, chat_id), older.seq - 1):
                if record.kind == COMMIT and record.seq == older.seq:
                    version = decode_commit(record.body).version
                    if version.epoch == older.epoch:
                        return version != older
        except LogError:
            pass
        return False

    def keep(self, user: str, value: StoredChat) -> tuple[str, ListedOwner | None]:
        """Where it is, for people, and the chat that it is now. Durable on return; doing it twice keeps it once."""
        place = parse_place(value.name)
        if isinstance(place, str | StateOwner):
            now_ms = self._clock.now_ms()
            paths = [
                self._files.backup(
                    user, value.chat_id, value.head.seq, now_ms, data, f".{namespace}{STATE_ENDING}"
                ) for namespace, document in value.states.items() if (data := document.data) is not None
            ]
            return ", ".join(paths) or "nothing", None
        primary = self._stores.primary
        chat_id = derived_uuid("diverged", user, value.chat_id, value.head.epoch, value.head.seq, value.head.integrity)
        standing = primary.load(user, chat_id)
        if standing is not None:
            return standing.name, ListedOwner(chat_id, standing.name, standing.head, standing.summary)
        head = Version(1, 1, Integrity(derived_uuid(chat_id, 1, 1)))
        for other in recovered_names(place):
            name = str(other)
            if self._index.twin_of(user, name) is not None or self._names.id_of(user, name) is not None:
                continue
            kept = msgspec.structs.replace(
                value, chat_id=chat_id, name=name, head=head, version=head,
                metadata=with_integrity(value.metadata, chat_id),
                states={
                    namespace: StateDocument(head, one.data, corrupt=one.corrupt)
                    for namespace, one in value.states.items() if one.exists
                },
            )
            with self._stores.turn(user, chat_id):
                primary.save(user, None, None, kept)
            listed = ListedOwner(chat_id, name, head, value.summary)
            self._index.put(user, listed)
            return name, listed
        raise StoreError(f"there are too many recovered chats of {value.name}")

    def tell(self, user: str, name: str, winner: Version, loser: Version, kept: str) -> None:
        """For people."""
        self._stores.diverged += 1
        log.error(
            "stores-diverged", user=user, chat=name, seq=loser.seq, taken=winner.integrity, given_up=loser.integrity,
            kept=kept,
        )

"""Store restoring: a backup as an owner of a store: in place, out of the trash, or beside the chat as a new one.

Rules of this module (BEHAVIOUR Z7, Z9, Z10):
- Lines and states are those of the backup, all at one version, the first of an epoch of its own.
- States that the backup does not hold go; of a piece, which does not know them, they stay.
"""

from __future__ import annotations

import msgspec

from tellback_protocol.ids import Version
from tellback_protocol.life import Facts
from tellback_protocol.stream import Stream
from tellback_server.operations import Operation, StoredChange
from tellback_server.planning import place_of
from tellback_server.records import Checkpointed
from tellback_server.registrar import Registered, Registrar
from tellback_server.restoring import Chosen
from tellback_server.staged import Staged
from tellback_server.store.base import StoredChat
from tellback_server.store.filed import from_files
from tellback_server.store.store_state import value_now

__all__ = ["backup_operation", "base_of"]


def backup_operation(
    chosen: Chosen, facts: Facts, registrar: Registrar, staged: Staged, stream: Stream, version: Version, now_ms: int
) -> Operation:
    """What carries the commit at `version` out. Blocks: the owner is staged."""
    user, is_new = stream.user, chosen.kind == "beside"
    known = registrar.of(user, stream.chat_id)
    head = Version(1, 1, facts.integrity) if is_new else Version(version.epoch + 1, version.seq, facts.integrity)
    value = from_files(
        place_of(facts.to), chosen.chat.parsed, chosen.states,
        chat_id=facts.chat_id if is_new else stream.chat_id, version=head, now_ms=now_ms,
    )
    if chosen.manifest.is_piece and chosen.kind == "in-place":
        value.states = {**value_now(stream).states, **value.states}
    operation = Operation(
        what="branch" if is_new else "backup-restore", user=user, chat_id=stream.chat_id, name=stream.name,
        integrity=version.integrity, seq=version.seq, bases=[] if is_new else [base_of(user, value)],
        stored=StoredChange(staged=[staged.put(user, version.integrity, value)]),
    )
    if chosen.kind != "out-of-trash":
        return operation
    assert known is not None, "a deletion is registered"
    back = Registered(user=user, chat_id=stream.chat_id, name=facts.to, former=known.former_as(facts.to, now_ms))
    return msgspec.structs.replace(operation, what="restore", name=known.name, registered=[back])


def base_of(user: str, value: StoredChat) -> Checkpointed:
    """What tells that a store holds an owner."""
    return Checkpointed(
        user=user, name=value.name, chat_id=value.chat_id, file=None, version=value.version, head=value.head
    )

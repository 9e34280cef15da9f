"""Owner memory: what the log still knows of an owner's messages and states, for putting them back. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from tellback_protocol.chat import Chat, message_id_of
from tellback_protocol.effects import AppendEffect, Commit, DeleteEffect, InsertEffect, StateEffect
from tellback_protocol.errors import Refused
from tellback_protocol.ids import Version
from tellback_protocol.stream import Stream, documents_of
from tellback_server.adoption import known_from_log
from tellback_server.owner_past import OwnerPast
from tellback_server.repairs.chat_mending import Remembered

__all__ = ["remembered_messages", "remembered_states"]


def remembered_messages(past: OwnerPast, theirs: Chat) -> Remembered:
    """The messages that commits of the log made and that the base's file held, as they were then.

    Pending ones are not among them: loading puts those on top.
    """
    done = past.done()
    known = known_from_log(Chat(Version(1, 0, ""), theirs.metadata), done, [])
    # What was only patched is not whole: its beginning is not in the log any more.
    whole = {
        message_id_of(bytes(raw)) for commit in done for effect in commit.ops
        if isinstance(effect, AppendEffect | InsertEffect) for raw in effect.messages
    }
    gone = {
        one for commit in done for effect in commit.ops if isinstance(effect, DeleteEffect) for one in effect.messages
    }
    return Remembered({one: line for one, line in known.messages.items() if one in whole and one not in gone})


def remembered_states(past: OwnerPast, wanted: dict[str, list[tuple[int, int]]], chat: Chat) -> dict[str, bytes]:
    """State documents worked out from the log, as far as one has the size and CRC that it was written with.

    The log of a floor state counts the messages of `chat`.
    """
    scratch = Stream("", "", "", chat)
    found: dict[str, bytes] = {}

    def look(namespaces: Iterable[str]) -> None:
        for namespace in namespaces:
            document = scratch.states.get(namespace)
            data = document.data if document is not None else None
            if data is not None and (len(data), zlib.crc32(data)) in wanted.get(namespace, ()):
                found[namespace] = data

    for commit in _in_order(past):
        for effect in commit.ops:
            if isinstance(effect, StateEffect):
                try:
                    scratch.apply_state(effect)
                except (Refused, ValueError, KeyError, TypeError, AssertionError):
                    # Its beginning is not in the log any more.
                    scratch.states.pop(effect.namespace, None)
                look(documents_of(effect))
    return found


def _in_order(past: OwnerPast) -> list[Commit]:
    return sorted(past.commits, key=lambda commit: commit.version.seq)

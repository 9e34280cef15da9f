"""Served chat: a chat as a running server tells it, as its file would be. Pure.

Rules of this module:
- A message whose id was never written into its line gets its line back: the id tells of which bytes it is made.
"""

from __future__ import annotations

from msgspec import UNSET

from tellback_protocol.frames import Opened
from tellback_protocol.ids import ChatById, parse_chat
from tellback_protocol.values import dumps, loads
from tellback_server.store.filed import line_as_found
from tellback_server.transfer.anomalies import Notes
from tellback_server.transfer.item import Item

__all__ = ["item_of", "line_as_filed"]


def item_of(opened: Opened, changed_ms: int, states: dict[str, bytes]) -> Item:
    """What an opened chat would be imported or exported as. `states`: files by namespace."""
    place = parse_chat(str(opened.chat))
    assert not isinstance(place, str | ChatById), "a server tells names"
    messages = opened.messages if isinstance(opened.messages, list) else []
    lines = [line_as_filed(bytes(raw)) for raw in messages]
    if opened.header is not UNSET:
        lines.insert(0, bytes(opened.header))
    elif opened.metadata is not UNSET and (metadata := loads(bytes(opened.metadata))):
        lines.insert(0, dumps({"user_name": "unused", "character_name": "unused", "chat_metadata": metadata}))
    notes = Notes(str(place))
    for damage in opened.damage if isinstance(opened.damage, list) else []:
        notes.add("line-not-json", "left out; it stands in the server's file", detail=damage.problem, line=damage.line)
    data = b"\n".join(lines)
    return Item(
        source=str(place), target=place, data=data, mtime_ns=changed_ms * 1_000_000, size_bytes=len(data),
        messages=len(messages), states=states,
        notes=notes.take(),
    )


def line_as_filed(served: bytes) -> bytes:
    """A served message's line, without an id that was only derived from it."""
    try:
        message_id = loads(served)["id"]
    except (ValueError, KeyError, TypeError):
        return served
    return line_as_found(served, message_id) if isinstance(message_id, str) else served

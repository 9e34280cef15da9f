"""Listed: what a list shows of one chat: from the index, from a live actor, from the trash.

Rules of this module:
- A live chat tells what was sequenced; whoever shows it waits until that is durable (BEHAVIOUR I2).
- Cost of a live chat: one line of it, and its metadata when that names a chat it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from tellback_protocol.catalog_frames import ListedChat
from tellback_protocol.ids import CharacterChat, GroupChat, parse_chat
from tellback_protocol.requests import ChatList, ChatSearch
from tellback_protocol.values import loads
from tellback_server.actor import Actor
from tellback_server.paging import Key
from tellback_server.store.chat_index import ChatEntry
from tellback_server.store.chat_summary import preview, whole
from tellback_server.store.jsonl import line_object

__all__ = ["Filter", "listed_live", "listed_stored", "live_chats", "live_key"]

_MS_NS: Final = 1_000_000
_GROUPS_ALL: Final = "*"


class Filter(msgspec.Struct, frozen=True):
    """Which chats are meant; checked and asked of one folder."""

    prefix: str
    """Of the addresses."""
    group: str | None = None
    """A group's id; None when the prefix decides alone."""

    @classmethod
    def of(cls, request: ChatList | ChatSearch) -> Filter:
        """What a request asks for."""
        if isinstance(request.character, str):
            return cls(f"character:{request.character}/")
        if isinstance(request.group, str):
            return cls("group:", None if request.group == _GROUPS_ALL else request.group)
        return cls("")

    def takes(self, chat: str, group_of: Mapping[str, str]) -> bool:
        """Whether a chat is meant."""
        if not chat.startswith(self.prefix):
            return False
        return self.group is None or group_of.get(chat.removeprefix("group:")) == self.group


def live_chats(actors: Iterable[Actor], user: str) -> dict[str, Actor]:
    """A user's chats whose truth is in memory, by address. One that comes out of the trash has its truth in files."""
    return {
        actor.name: actor for actor in actors
        if actor.user == user and actor.state in ("ready", "busy") and None not in (actor.stream, actor.file)
        and isinstance(parse_chat(actor.name), CharacterChat | GroupChat)
    }


def live_key(actor: Actor) -> Key:
    """Where a live chat stands in the order: as its file, or where its last op puts it until that is in the file."""
    held, stream = actor.file, actor.stream
    assert held is not None, "a live chat"
    assert stream is not None, "a live chat"
    changed_ns = held.identity.mtime_ns if held.identity is not None else 0
    if held.pending or changed_ns == 0:
        changed_ns = max(changed_ns, max((ops.used_ms for ops in stream.sessions.values()), default=0) * _MS_NS)
    return changed_ns, actor.name


def listed_stored(
    entry: ChatEntry, chat_id: str | None, group_of: Mapping[str, str], deleted_ms: int | UnsetType = UNSET,
    deleted_with: str | UnsetType = UNSET,
) -> ListedChat:
    """A chat that nobody has open, or one in the trash."""
    summary = entry.summary
    return ListedChat(
        entry.chat, entry.mark.size_bytes, summary.count, entry.mark.mtime_ns // _MS_NS, summary.preview,
        UNSET if chat_id is None else chat_id, *_owner(entry.chat, group_of),
        UNSET if summary.main_chat is None else summary.main_chat, summary.damaged, deleted_ms, deleted_with,
    )


def listed_live(actor: Actor, key: Key, group_of: Mapping[str, str]) -> ListedChat:
    """A chat that is live, as it is sequenced."""
    stream, held = actor.stream, actor.file
    assert stream is not None, "a live chat"
    assert held is not None, "a live chat"
    messages = stream.chat.messages
    last = line_object(messages[next(reversed(messages))])[0] if messages else None
    main_chat: str | UnsetType = UNSET
    if b'"main_chat"' in stream.chat.metadata:
        name = loads(stream.chat.metadata).get("main_chat")
        main_chat = whole(name) if isinstance(name, str) and name else UNSET
    return ListedChat(
        actor.name, 0 if held.identity is None else held.identity.size_bytes, len(messages), key[0] // _MS_NS,
        preview(last) if last is not None else "", actor.chat_id if stream.head.seq > 0 else UNSET,
        *_owner(actor.name, group_of), main_chat, bool(stream.damage),
    )


def _owner(chat: str, group_of: Mapping[str, str]) -> tuple[str | UnsetType, str | UnsetType]:
    """The character or the group of a chat."""
    kind, _colon, rest = chat.partition(":")
    if kind == "character":
        return rest.partition("/")[0], UNSET
    return UNSET, group_of.get(rest, UNSET)

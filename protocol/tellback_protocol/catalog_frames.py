"""What is told of no single owner: lists, what a search found, active chats, characters and groups."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from .fields import ObjectJson


class ListedChat(msgspec.Struct, omit_defaults=True):
    """A chat as the index knows it, without opening it."""

    chat: str
    """Its address, as `open` takes it."""
    size_bytes: int
    count: int
    """Messages."""
    changed_ms: int
    """Since 1970."""
    preview: str
    """The beginning of the last message, at most 400 characters."""
    chat_id: str | UnsetType = UNSET
    """Left out while nobody wrote to the chat."""
    character: str | UnsetType = UNSET
    group: str | UnsetType = UNSET
    """Id of the group that a group chat belongs to."""
    main_chat: str | UnsetType = UNSET
    """The chat that this one was branched from."""
    damaged: bool = False
    deleted_ms: int | UnsetType = UNSET
    """Of a chat in the trash."""
    deleted_with: str | UnsetType = UNSET
    """The character that it went to the trash with: `owner-restore` brings both back, `chat-restore` does not."""


class ChatListFrame(msgspec.Struct, tag="chat-list", tag_field="type"):
    """A page; `cursor` asks for the next one, null when there is none."""

    chats: list[ListedChat]
    cursor: str | None
    total: int
    id: int | None = None


class FoundMessage(msgspec.Struct):
    """A message that holds every word that was searched for, or a chat whose name does."""

    chat: str
    snippet: str
    """Of the message, or the chat's name."""
    ranges: list[tuple[int, int]]
    """Where the words stand in `snippet`, begin and end in UTF-16 units."""
    message: str | UnsetType = UNSET
    """Left out when it is the name that holds the words."""
    index: int | UnsetType = UNSET


class ChatSearchFrame(msgspec.Struct, tag="chat-search", tag_field="type"):
    """A page of what was found; a page may be short or empty and still have a `cursor`."""

    found: list[FoundMessage]
    cursor: str | None
    searched: int
    """Chats that were read for this page."""
    id: int | None = None


class ActiveChatFrame(msgspec.Struct, tag="active-chat", tag_field="type"):
    """The active chat; null when there is none."""

    chat: str | None
    chat_id: str | None
    character: str | UnsetType = UNSET
    group: str | UnsetType = UNSET
    id: int | None = None


class Character(msgspec.Struct):
    """A character: its card is `<avatar>` in the folder of characters."""

    character: str
    """As owners and chats name it."""
    name: str
    """As the card says."""
    avatar: str
    chat: str | None
    """The active chat's name."""
    chats: int


class CharacterListFrame(msgspec.Struct, tag="character-list", tag_field="type"):
    """A page; `cursor` asks for the next one, null when there is none."""

    characters: list[Character]
    cursor: str | None
    total: int
    id: int | None = None


class GroupListFrame(msgspec.Struct, tag="group-list", tag_field="type"):
    """A page of groups as their files hold them; `cursor` asks for the next one, null when there is none."""

    groups: list[ObjectJson]
    cursor: str | None
    total: int
    id: int | None = None

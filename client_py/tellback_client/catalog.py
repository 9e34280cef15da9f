"""The catalog: lists, search, active chats, characters and groups: what is asked of no single chat.

    chats = await client.list_chats(character="Alice")          all of them, the one changed last first
    async for found in client.search_chats("lost letter"): ...  page by page, as far as one reads

Rules of this module:
- Questions are asked again on the next connection when one ends first. Setting an active chat is one of them: set
  twice is set once, and the last one that arrives counts.
- Pages are joined here: a chat that changed while one reads is told once, as it was when it was told first.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar, cast

from msgspec import UNSET, UnsetType

from tellback_protocol.catalog_frames import (
    ActiveChatFrame,
    Character,
    CharacterListFrame,
    ChatListFrame,
    ChatSearchFrame,
    FoundMessage,
    GroupListFrame,
    ListedChat,
)
from tellback_protocol.requests import ActiveChat, CharacterList, ChatList, ChatSearch, GroupList
from tellback_protocol.status import StatusFrame, StatusGet
from tellback_protocol.values import loads

from .asking import Asking

__all__ = ["Catalog", "Pages"]

T = TypeVar("T")
LIST_PAGE = 200
SEARCH_PAGE = 50
NAMES_PAGE = 1000


class Pages(Generic[T]):
    """Everything that was asked for, in pages. `async for` reads as far as one goes; `await` gives all as a list."""

    def __init__(
        self, page: Callable[[str | None], Awaitable[tuple[list[T], str | None]]], key: Callable[[T], object]
    ) -> None:
        self._page = page
        self._key = key

    async def __aiter__(self) -> AsyncIterator[T]:
        told: set[object] = set()
        cursor: str | None = None
        while True:
            entries, cursor = await self._page(cursor)
            for entry in entries:
                key = self._key(entry)
                if key not in told:
                    told.add(key)
                    yield entry
            if cursor is None:
                return

    def __await__(self) -> Generator[Any, None, list[T]]:
        return self.all().__await__()

    async def all(self) -> list[T]:
        """All of it."""
        return [entry async for entry in self]


class Catalog(Asking):
    """The part of `Client` that asks. All methods raise RefusedError, ConnectionLost, ClientClosed."""

    def list_chats(
        self, *, character: str | None = None, group: str | None = None, deleted: bool = False,
        page_size: int = LIST_PAGE,
    ) -> Pages[ListedChat]:
        """Chats, the one changed last first; of a character, of a group (by its id; `*`: all group chats), or all.

        `deleted`: what is in the trash instead, what was deleted last first.
        """

        async def page(cursor: str | None) -> tuple[list[ListedChat], str | None]:
            found = await self.chat_page(
                character=character, group=group, deleted=deleted, limit=page_size, cursor=cursor
            )
            return found.chats, found.cursor

        return Pages(page, lambda chat: (chat.chat, chat.deleted_ms))

    async def chat_page(
        self, *, character: str | None = None, group: str | None = None, deleted: bool = False,
        limit: int = LIST_PAGE, cursor: str | None = None,
    ) -> ChatListFrame:
        """One page: `chats`, `total`, and the `cursor` that asks for the next one, None after the last."""
        request = ChatList(_or_unset(character), _or_unset(group), deleted, limit, cursor)
        return cast(ChatListFrame, await self._ask(request))

    def search_chats(
        self, query: str, *, character: str | None = None, group: str | None = None, page_size: int = SEARCH_PAGE
    ) -> Pages[FoundMessage]:
        """Messages that hold every word of `query`, and chats whose name does, whatever the case."""

        async def page(cursor: str | None) -> tuple[list[FoundMessage], str | None]:
            found = await self.search_page(query, character=character, group=group, limit=page_size, cursor=cursor)
            return found.found, found.cursor

        return Pages(page, lambda hit: (hit.chat, hit.message))

    async def search_page(
        self, query: str, *, character: str | None = None, group: str | None = None, limit: int = SEARCH_PAGE,
        cursor: str | None = None,
    ) -> ChatSearchFrame:
        """One page, which may be short or empty and still have a `cursor`."""
        request = ChatSearch(query, _or_unset(character), _or_unset(group), limit, cursor)
        return cast(ChatSearchFrame, await self._ask(request))

    async def active_chat(self, *, character: str | None = None, group: str | None = None) -> str | None:
        """Address of the chat last worked on with a character, or in a group by its id; None when there is none."""
        request = ActiveChat(_or_unset(character), _or_unset(group))
        return cast(ActiveChatFrame, await self._ask(request)).chat

    async def set_active_chat(
        self, chat: str | None, *, character: str | None = None, group: str | None = None
    ) -> str | None:
        """Remember which chat is worked on; durable on return. The character is known from the chat's address."""
        if character is None and group is None and chat is not None and chat.startswith("character:"):
            character = chat.removeprefix("character:").partition("/")[0]
        request = ActiveChat(_or_unset(character), _or_unset(group), chat)
        return cast(ActiveChatFrame, await self._ask(request)).chat

    async def characters(self) -> list[Character]:
        """The user's characters, by their pictures, in the order of their names."""

        async def page(cursor: str | None) -> tuple[list[Character], str | None]:
            found = cast(CharacterListFrame, await self._ask(CharacterList(NAMES_PAGE, cursor)))
            return found.characters, found.cursor

        return await Pages(page, lambda character: character.character)

    async def groups(self) -> list[dict[str, Any]]:
        """The user's groups as their files hold them, in the order of their ids."""
        groups: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            found = cast(GroupListFrame, await self._ask(GroupList(NAMES_PAGE, cursor)))
            groups.extend(loads(bytes(raw)) for raw in found.groups)
            cursor = found.cursor
            if cursor is None:
                return groups

    async def server_status(self, limit: int = LIST_PAGE) -> StatusFrame:
        """How the user's connections and live owners stand now, and the log below them."""
        return cast(StatusFrame, await self._ask(StatusGet(limit)))


def _or_unset(value: str | None) -> str | UnsetType:
    return UNSET if value is None else value

"""Activity: which chat is the active one of a character or group, worked out from what is remembered and what is there.

Rules of this module (BEHAVIOUR I10, I11):
- What was chosen counts as long as that chat is there, under whatever name: it is known by its immutable id.
- Else SillyTavern's own memory (the card's `chat`, the group's `chat_id`), else the chat that changed last.
- Working it out writes nothing. Values in, values out: it may run in any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from tellback_protocol.errors import Refused, illegal
from tellback_protocol.ids import ChatById, parse_chat
from tellback_server.active_chats import Remembered
from tellback_server.paging import BOTTOM, Key
from tellback_server.store.chat_index import Folder

__all__ = ["Activity", "LiveChat"]


class LiveChat(msgspec.Struct, frozen=True):
    """What is needed of a chat in memory."""

    chat_id: str
    key: Key


class Activity:
    """One user's chats at one moment."""

    def __init__(
        self,
        folder: Folder,
        live: Mapping[str, LiveChat],
        remembered: Mapping[str, Remembered],
        new_id: Callable[[str], str],
    ) -> None:
        """`live` by address; `remembered` by scope; `new_id` gives the id of a chat that nobody ever wrote to."""
        self._folder = folder
        self._live = live
        self._remembered = remembered
        self._new_id = new_id
        self._live_by_id = {chat.chat_id: name for name, chat in live.items()}
        self._newest: dict[str, Key] | None = None

    def counts(self) -> dict[str, int]:
        """How many chats each character has."""
        counts: dict[str, int] = {}
        for name in self._folder.chats.keys() | self._live.keys():
            scope = self._scope(name)
            if scope is not None and scope.startswith("character:"):
                character = scope.partition(":")[2]
                counts[character] = counts.get(character, 0) + 1
        return counts

    def of(self, scope: str) -> tuple[str, str] | None:
        """Address and id of the active chat of `character:<name>` or `group:<id>`; None when there is none."""
        chosen = self._remembered.get(scope)
        if chosen is not None and chosen.chat_id is None:
            return None
        name = self._located(chosen) if chosen is not None else None
        if name is None or self._scope(name) != scope:
            name = self._followed(scope) or self._sillytavern(scope) or self._changed_last(scope)
        return None if name is None else (name, self._id_of(name))

    def find(self, scope: str, wanted: str) -> tuple[str, str]:
        """Address and id of a chat that somebody names. Raises: Refused."""
        address = parse_chat(wanted)
        if isinstance(address, str):
            raise illegal("name-illegal", address, "/chat")
        name = self._by_id(address.chat_id) if isinstance(address, ChatById) else str(address)
        if name is None or not self._is_there(name):
            raise Refused("not-found", "There is no such chat.", pointer="/chat")
        if self._scope(name) != scope:
            raise Refused("bad-frame", "That chat belongs to another character or group.", pointer="/chat")
        return name, self._id_of(name)

    def _is_there(self, name: str) -> bool:
        return name in self._live or name in self._folder.chats

    def _scope(self, name: str) -> str | None:
        kind, _colon, rest = name.partition(":")
        if kind == "character":
            return f"character:{rest.partition('/')[0]}"
        group = self._folder.group_of.get(rest)
        return None if group is None else f"group:{group}"

    def _id_of(self, name: str) -> str:
        live = self._live.get(name)
        return live.chat_id if live is not None else self._folder.chat_id(name) or self._new_id(name)

    def _by_id(self, chat_id: str) -> str | None:
        name = self._live_by_id.get(chat_id) or self._folder.by_id.get(chat_id)
        if name is not None:
            return name
        # Nobody ever wrote to it: its id follows from its name.
        return next((name for name in self._folder.chats if self._id_of(name) == chat_id), None)

    def _located(self, chosen: Remembered) -> str | None:
        """Where a remembered chat is now."""
        chat_id, name = chosen.chat_id, chosen.name
        assert chat_id is not None, "asked of a choice that names a chat"
        known = self._live_by_id.get(chat_id) or self._folder.by_id.get(chat_id)
        if known is None and name is not None and self._is_there(name) and self._id_of(name) == chat_id:
            known = name
        return known

    def _followed(self, scope: str) -> str | None:
        """A chat that was chosen under another scope and is in this one now: its character was renamed."""
        if scope in self._remembered:
            return None
        found = [
            (chosen.at_ms, chosen.seq, name) for chosen in self._remembered.values()
            if chosen.chat_id is not None and (name := self._located(chosen)) is not None
            and self._scope(name) == scope
        ]
        return max(found)[2] if found else None

    def _sillytavern(self, scope: str) -> str | None:
        kind, _colon, rest = scope.partition(":")
        if kind == "character":
            card = self._folder.cards.get(rest)
            name = f"character:{rest}/{card.card.chat}" if card is not None else ""
        else:
            group = self._folder.groups.get(rest)
            name = f"group:{group.chat}" if group is not None else ""
        return name if self._is_there(name) else None

    def _changed_last(self, scope: str) -> str | None:
        if self._newest is None:
            newest: dict[str, Key] = {}
            for key in self._folder.order:
                of = self._scope(key[1])
                if of is not None and key[1] not in self._live:
                    newest[of] = key
            for name, chat in self._live.items():
                of = self._scope(name)
                if of is not None:
                    newest[of] = max(chat.key, newest.get(of, BOTTOM))
            self._newest = newest
        found = self._newest.get(scope)
        return None if found is None else found[1]

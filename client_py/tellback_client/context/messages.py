"""The messages of the shown chat: read, added, updated, deleted.

Rules of this module:
- A verb returns when its whole batch is one durable commit; its events follow, in the order of the commits.
- An index is resolved to a message id when the verb is called; from there on the id counts.
- A wrong index is an error before anything is sent, never skipped.
- `silent` keeps this context's listeners out; other tabs are told, and floor state settles, all the same.
- When somebody else was faster with the same fields, the write is a `ConflictError` with its three exits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

from tellback_protocol.chat import Chat as ChatDocument

from ..chat import new_message_id
from ..errors import refused
from ..intents import AppendIntent, BatchIntent, DeleteIntent, Intent, SwipeIntent
from .base import ContextBase, Held
from .merges import MergeMessageIntent
from .views import ChatView, ReadOnlyDict, freeze

Message = dict[str, Any]
Key = int | str
"""A message's index, or its id."""
Keys = list[int] | list[str] | list[Key] | tuple[Key, ...]


class MessagesOfContext(ContextBase):
    """The verbs of messages."""

    @property
    def chat(self) -> ChatView:
        """The messages of the shown chat, read-only; empty when none is shown. Own writes show at once."""
        return ChatView(self._held.chat.messages if self._held is not None and self._shown else None)

    def get_message(self, index: Key) -> ReadOnlyDict | None:
        """The message at an index or with an id, read-only at every depth; None when there is none."""
        if self._held is None or not self._shown:
            return None
        document = self._document(self._held)
        message_id = id_at(document, index)
        return None if message_id is None else ReadOnlyDict(freeze(document.value(message_id)))

    def get_message_count(self) -> int:
        """How many messages the shown chat has."""
        return len(self.chat)

    @overload
    async def add_messages(self, messages: Mapping[str, Any], *, scroll: bool = ..., silent: bool = ...) -> int: ...
    @overload
    async def add_messages(
        self, messages: Sequence[Mapping[str, Any]], *, scroll: bool = ..., silent: bool = ...
    ) -> list[int]: ...
    async def add_messages(
        self, messages: Mapping[str, Any] | Sequence[Mapping[str, Any]], *, scroll: bool = True, silent: bool = False
    ) -> int | list[int]:
        """Put one message or several at the end, as one commit. Returns the index, or the indexes of a list.

        No field is filled in but `id`. Events: MESSAGE_SENT for `is_user`, else MESSAGE_RECEIVED, one a message.
        `scroll` is a front end's business and does nothing here. An index is that of the commit; -1 when the answer
        came by way of a snapshot in which somebody had deleted the message already.
        """
        many = [messages] if isinstance(messages, Mapping) else list(messages)
        if not all(isinstance(message, Mapping) for message in many):
            raise TypeError("a message is an object")
        held = self._current()
        if not many:
            return []
        intent = AppendIntent(many, new_message_id)
        ids = (await self._write(held, intent, silent=silent)).message_ids
        positions = held.indexes.get(intent)
        if positions is None:
            document = self._document(held)
            positions = {message_id: position_of(document, message_id) for message_id in ids}
        indexes = [positions.get(message_id, -1) for message_id in ids]
        return indexes[0] if isinstance(messages, Mapping) else indexes

    async def update_messages(
        self,
        updates: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        rerender: bool = True,
        silent: bool = False,
        deep: bool = True,
    ) -> None:
        """Merge `patch` into messages, `{"index" or "id": ..., "patch": {...}}` each, all of them as one commit.

        `deep` merges objects at every depth; without it a member takes the place of the whole old one, as
        `Object.assign` does. Null and arrays always take the place of what was there. The server keeps the active
        swipe in step. Events: MESSAGE_EDITED and MESSAGE_UPDATED, of messages that did change. `rerender` is a front
        end's business and does nothing here.
        """
        many = [updates] if isinstance(updates, Mapping) else list(updates)
        held = self._current()
        document = self._document(held)
        intents: list[Intent] = []
        for number, update in enumerate(many):
            key = update.get("id", update.get("index"))
            patch = update.get("patch")
            if not isinstance(patch, Mapping):
                raise TypeError("an update is an object with `patch`, an object, and with `index` or `id`")
            message_id = self._known(document, key, f"/updates/{number}")
            intents.append(MergeMessageIntent(message_id, patch, deep=deep))
        if intents:
            await self._write(held, intents[0] if len(intents) == 1 else BatchIntent(intents), silent=silent)

    @overload
    async def delete_messages(self, index: Key, *, swipe: int | None = ..., silent: bool = ...) -> Message: ...
    @overload
    async def delete_messages(
        self, index: Keys, *, swipe: int | None = ..., silent: bool = ...
    ) -> list[Message]: ...
    async def delete_messages(
        self, index: Key | Keys, *, swipe: int | None = None, silent: bool = False
    ) -> Message | list[Message]:
        """Take messages out, by index or id, as one commit. Returns them; of a list in the order of the chat.

        Naming a message twice deletes it once. Events: MESSAGE_DELETED for each. With `swipe` only that swipe of one
        message goes (MESSAGE_SWIPE_DELETED), never the last one, and the message is returned as it is then.
        """
        single = isinstance(index, (int, str))
        if not single and not isinstance(index, Iterable):
            raise TypeError("a message is named by its index, an integer, or by its id, a string; or a list of them")
        keys: list[Key] = [index] if isinstance(index, (int, str)) else list(index)
        held = self._current()
        document = self._document(held)
        ids = {self._known(document, key, f"/index/{number}"): None for number, key in enumerate(keys)}
        if swipe is not None:
            if len(ids) != 1:
                raise ValueError("`swipe` goes with one message")
            (message_id,) = ids
            message = document.value(message_id)
            await self._write(held, SwipeIntent(message_id, "delete", swipe=swipe), silent=silent)
            after = self._document(held)
            message = after.value(message_id) if message_id in after.messages else message
            return message if single else [message]
        # The document lives: what goes is read before it goes.
        in_order = ids if len(ids) < 2 else [message_id for message_id in document.order() if message_id in ids]
        deleted = [document.value(message_id) for message_id in in_order]
        if ids:
            await self._write(held, DeleteIntent(list(ids)), silent=silent)
        return deleted[0] if single else deleted

    @staticmethod
    def _document(held: Held) -> ChatDocument:
        """The chat with the own writes on top; not to be changed."""
        return held.chat.subscription.view().chat

    def _known(self, document: ChatDocument, key: object, pointer: str) -> str:
        """The id of a message that is there. Raises: TypeError, RefusedError `message-unknown`."""
        message_id = id_at(document, key)
        if message_id is None:
            count = len(document.messages)
            raise refused("message-unknown", f"There is no message {key!r}; the chat has {count}.", pointer=pointer)
        return message_id


def id_at(document: ChatDocument, key: object) -> str | None:
    """The id of the message at an index or with an id; None when there is none. Raises: TypeError."""
    if isinstance(key, str):
        return key if key in document.messages else None
    if isinstance(key, bool) or not isinstance(key, int):
        raise TypeError("a message is named by its index, an integer, or by its id, a string")
    return document.order()[key] if 0 <= key < len(document.messages) else None


def position_of(document: ChatDocument, message_id: str) -> int:
    """The index of a message, looked for from the end; -1 when there is none."""
    order = document.order()
    for index in range(len(order) - 1, -1, -1):
        if order[index] == message_id:
            return index
    return -1

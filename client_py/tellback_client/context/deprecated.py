"""The low-level names that the seed keeps and advises against, each in terms of the one to use instead."""

from __future__ import annotations

import warnings
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from ..outbox import WriteResult
from .messages import Key, Message, MessagesOfContext


def _instead(old: str, new: str) -> None:
    """Warns at the call, not at the await, so that the line told is the caller's, in a task too."""
    warnings.warn(f"{old}() is deprecated, use {new}", DeprecationWarning, stacklevel=3)


class DeprecatedOfContext(MessagesOfContext):
    """Aliases; every call warns."""

    def add_one_message(self, message: Mapping[str, Any], **_options: Any) -> Coroutine[Any, Any, int]:
        """Use `add_messages`."""
        _instead("add_one_message", "add_messages()")
        return self.add_messages(message)

    def delete_last_message(self) -> Coroutine[Any, Any, Message]:
        """Use `delete_messages`."""
        _instead("delete_last_message", "delete_messages(len(chat) - 1)")
        return self.delete_messages(self.get_message_count() - 1)

    def delete_message(self, index: Key, swipe: int | None = None, **_options: Any) -> Coroutine[Any, Any, Message]:
        """Use `delete_messages`."""
        _instead("delete_message", "delete_messages()")
        return self.delete_messages(index, swipe=swipe)

    def update_message_block(
        self, index: int, message: Mapping[str, Any], **_options: Any
    ) -> Coroutine[Any, Any, None]:
        """Use `update_messages`. Stores the members of `message`; drawing is a front end's business."""
        _instead("update_message_block", "update_messages()")
        return self.update_messages({"index": index, "patch": message})

    def patch_chat_messages(self, operations: Sequence[Mapping[str, Any]]) -> Coroutine[Any, Any, WriteResult]:
        """Use `update_messages` and `delete_messages`. RFC 6902 on the array of messages: `/5/mes`."""
        _instead("patch_chat_messages", "update_messages() or delete_messages()")
        return self._current().chat.patch(None, [
            {**operation, **{key: f"/messages{operation[key]}" for key in ("path", "from") if key in operation}}
            for operation in operations
        ])

    def append_chat_messages(self, messages: Sequence[Mapping[str, Any]]) -> Coroutine[Any, Any, list[int]]:
        """Use `add_messages`."""
        _instead("append_chat_messages", "add_messages()")
        return self.add_messages(messages)

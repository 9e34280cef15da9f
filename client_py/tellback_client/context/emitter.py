"""Events by name, and who listens to them.

Rules of this module:
- Listeners are called one after the other, in the order they came, and awaited when they are asynchronous.
- A listener that fails is logged and stands alone: the others and the emitter go on (R44).
- As in JavaScript a listener gets only as many of the arguments as it asks for: one for each parameter without a
  default, all of them for `*arguments`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from enum import StrEnum
from typing import Any

logger = logging.getLogger("tellback_client.context")

Listener = Callable[..., Any]


class EventTypes(StrEnum):
    """The names of events, with SillyTavern's values; the last three are tellback's own."""

    MESSAGE_SENT = "message_sent"
    """(index, info): a user's message is stored."""
    MESSAGE_RECEIVED = "message_received"
    """(index, info): any other message is stored."""
    MESSAGE_EDITED = "message_edited"
    """(index, info): a message has other content."""
    MESSAGE_UPDATED = "message_updated"
    """(index, info): a message changed in any way; after what it was."""
    MESSAGE_DELETED = "message_deleted"
    """(new_length, info): one message is gone; once for each."""
    MESSAGE_SWIPED = "message_swiped"
    """(index, info): a message shows another swipe."""
    MESSAGE_SWIPE_DELETED = "message_swipe_deleted"
    """(index, info): a swipe is gone."""
    CHAT_CHANGED = "chat_id_changed"
    """(chat_id): another chat is shown, or this one was read again; None when there is none."""
    CHAT_CREATED = "chat_created"
    """(chat_id): this context made a chat."""
    GROUP_CHAT_CREATED = "group_chat_created"
    """(chat_id): this context made a group chat."""
    CHAT_RENAMED = "chat_renamed"
    """(old, new): the shown chat has another name."""
    CHAT_DELETED = "chat_deleted"
    """(chat_id): the shown chat, or one that this context deleted, is in the trash."""
    GROUP_CHAT_DELETED = "group_chat_deleted"
    """(chat_id): the same for a group's chat."""
    CHAT_BRANCH_CREATED = "chat_branch_created"
    """(info): a chat was branched from the shown one."""
    ONLINE_STATUS_CHANGED = "online_status_changed"
    """(status): the connection."""
    CHAT_METADATA_CHANGED = "tellback_chat_metadata_changed"
    """(): the metadata of the shown chat changed."""
    CHAT_STATE_CHANGED = "tellback_chat_state_changed"
    """(namespace): a state document of the shown chat changed."""
    WRITE_CONFLICTED = "tellback_write_conflicted"
    """(conflict): a write waits for a decision."""


class EventSource:
    """Listeners by event name. Any string is a name; `EventTypes` holds those that tellback emits."""

    def __init__(self) -> None:
        self._listeners: dict[str, list[tuple[Listener, int | None, bool]]] = {}

    def on(self, event: str, listener: Listener) -> None:
        """Call `listener` with every `event`. The same listener twice is called twice."""
        self._listeners.setdefault(str(event), []).append((listener, arity_of(listener), False))

    def once(self, event: str, listener: Listener) -> None:
        """Call `listener` with the next `event` only."""
        self._listeners.setdefault(str(event), []).append((listener, arity_of(listener), True))

    def off(self, event: str, listener: Listener) -> None:
        """Stop calling `listener`; nothing happens when it does not listen."""
        entries = self._listeners.get(str(event), [])
        for entry in entries:
            # Methods are made anew at every access: equal, not identical.
            if entry[0] == listener:
                entries.remove(entry)
                break

    remove_listener = off

    async def emit(self, event: str, *arguments: Any) -> None:
        """Call every listener of `event` and wait for it. What listeners raise is logged, not raised."""
        for entry in list(self._listeners.get(str(event), ())):
            listener, arity, once = entry
            if once:
                entries = self._listeners[str(event)]
                if entry not in entries:
                    continue
                entries.remove(entry)
            try:
                result = listener(*arguments[:arity])
                if inspect.isawaitable(result):
                    await result
            except Exception:
                logger.exception("a listener of %s failed", event)


def arity_of(function: Callable[..., Any]) -> int | None:
    """How many positional arguments a function asks for; None when it takes any, or when nobody can tell."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return None
    return sum(
        parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
        for parameter in parameters
    )

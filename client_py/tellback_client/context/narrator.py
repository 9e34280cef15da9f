"""What commits mean in the words of extensions: from effects to named events, with the indexes of the moment.

Rules of this module:
- It sees every commit of a chat, in order, in the step that installed it; so an index is that of the chat right after
  the commit, however late a listener looks.
- It reads the effects that the server wrote and knows no rule of its own (DESIGN section 3).
- A snapshot says what the chat is, not what happened: `CHAT_CHANGED`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Raw

from tellback_protocol.chat import message_id_of
from tellback_protocol.effects import (
    AppendEffect,
    DeletedEffect,
    DeleteEffect,
    Effect,
    InsertEffect,
    MetadataEffect,
    PatchEffect,
    RenamedEffect,
    StateEffect,
)
from tellback_protocol.links import is_all
from tellback_protocol.values import loads

from ..events import Committed
from .emitter import EventTypes

Told = tuple[str, tuple[Any, ...]]
"""An event's name and its arguments."""


class _Speaker(msgspec.Struct):
    is_user: Any = None
    role: Any = None


_decode_speaker = msgspec.json.Decoder(_Speaker).decode


class Narrator:
    """One chat's order of messages, kept up with its commits."""

    def __init__(self, message_ids: Sequence[str], name: str, *, of_group: bool = False) -> None:
        self._order = list(message_ids)
        self._positions: dict[str, int] | None = None
        """Made when it is first needed after an insertion or deletion."""
        self.name = name
        """The chat's name alone; follows renames."""
        self._of_group = of_group

    def replaced(self, message_ids: Sequence[str]) -> None:
        """The chat was replaced by a snapshot."""
        self._order = list(message_ids)
        self._positions = None

    def position(self, message_id: str) -> int | None:
        """The index of a message, or None."""
        if self._positions is None:
            # Most of what is asked for stands near the end.
            for back in range(1, min(32, len(self._order)) + 1):
                if self._order[-back] == message_id:
                    return len(self._order) - back
            self._positions = {known: index for index, known in enumerate(self._order)}
        return self._positions.get(message_id)

    def tell(self, event: Committed) -> list[Told]:
        """What a commit means. Cost: that of the commit; of the whole order after an insertion or deletion."""
        before = {
            message_id: position
            for effect in event.effects if isinstance(effect, DeleteEffect) for message_id in effect.messages
            if (position := self.position(message_id)) is not None
        }
        for effect in event.effects:
            self._install(effect)
        told: list[Told] = []
        # The server alone makes a link follow a chat that has another name: nothing was branched, nothing edited.
        is_link = not event.mine and event.by is None and is_all(event.effects)
        for effect in event.effects:
            match effect:
                case AppendEffect() | InsertEffect():
                    for raw in effect.messages:
                        self._tell_added(bytes(raw), told)
                case PatchEffect():
                    position = self.position(effect.message)
                    if position is not None and is_link:
                        told.append((EventTypes.MESSAGE_UPDATED, (position, {"message_id": effect.message})))
                    elif position is not None:
                        tell_patched(position, effect.message, loads(bytes(effect.patch)), told)
                case DeleteEffect():
                    ids = list(effect.messages)
                    told.extend(
                        (EventTypes.MESSAGE_DELETED, (len(self._order), {
                            "index": before[message_id], "message_id": message_id, "message_ids": ids,
                        }))
                        for message_id in ids if message_id in before
                    )
                case MetadataEffect():
                    told.append((EventTypes.CHAT_METADATA_CHANGED, ()))
                case StateEffect():
                    told.append((EventTypes.CHAT_STATE_CHANGED, (effect.namespace,)))
                case RenamedEffect():
                    told.extend(self.renamed(effect.to))
                case DeletedEffect():
                    told.append(self.deleted())
        return told

    def renamed(self, to: str) -> list[Told]:
        """The chat has this address now; nothing is told when its name is the same."""
        old, self.name = self.name, name_alone(to)
        return [] if old == self.name else [(EventTypes.CHAT_RENAMED, (old, self.name))]

    def deleted(self) -> Told:
        """The chat is in the trash."""
        return (EventTypes.GROUP_CHAT_DELETED if self._of_group else EventTypes.CHAT_DELETED, (self.name,))

    def _install(self, effect: Effect) -> None:
        match effect:
            case AppendEffect():
                for message_id in self._new(effect.messages):
                    if self._positions is not None:
                        self._positions[message_id] = len(self._order)
                    self._order.append(message_id)
            case InsertEffect():
                position = -1 if effect.after is None else self.position(effect.after)
                at = len(self._order) if position is None else position + 1
                self._order[at:at] = self._new(effect.messages)
                self._positions = None
            case DeleteEffect():
                gone = set(effect.messages)
                self._order = [message_id for message_id in self._order if message_id not in gone]
                self._positions = None
            case _:
                pass

    def _new(self, lines: Sequence[Raw]) -> list[str]:
        """Ids of added messages; what came between the parts of a snapshot stands in the order already."""
        ids = [message_id_of(bytes(line)) for line in lines]
        return [message_id for message_id in ids if self.position(message_id) is None]

    def _tell_added(self, line: bytes, told: list[Told]) -> None:
        message_id = message_id_of(line)
        position = self.position(message_id)
        if position is None:
            # The same commit took it out again.
            return
        name = EventTypes.MESSAGE_SENT if is_users(line) else EventTypes.MESSAGE_RECEIVED
        told.append((name, (position, {"message_id": message_id})))


def is_users(line: bytes) -> bool:
    """True for a message of the user, in SillyTavern's or the role/content shape."""
    try:
        speaker = _decode_speaker(line)
    except msgspec.MsgspecError:
        value = loads(line)
        speaker = _Speaker(value.get("is_user"), value.get("role"))
    return speaker.is_user is True or (speaker.is_user is None and speaker.role == "user")


def name_alone(address: str) -> str:
    """The chat's name out of `character:<character>/<chat>`, `group:<chat>` or the name itself."""
    return address.rpartition("/")[2] if address.startswith("character:") else address.removeprefix("group:")


def tell_patched(position: int, message_id: str, operations: list[dict[str, Any]], told: list[Told]) -> None:
    """What a patch of one message means."""
    shown: int | None = None
    removed: list[int] = []
    links: list[tuple[str, str]] = []
    content = False
    for operation in operations:
        path = operation["path"]
        link = branch_link(operation)
        if link is not None:
            links.append(link)
        elif not path.startswith("/swipe") and (path, operation.get("value")) != ("/extra", {}):
            content = True
        if path == "/swipe_id" and operation["op"] in ("add", "replace"):
            shown = operation["value"]
        elif operation["op"] == "remove" and path.startswith("/swipes/") and path[8:].isdecimal():
            removed.append(int(path[8:]))
    info: dict[str, Any] = {"message_id": message_id}
    for swipe in removed:
        told.append((EventTypes.MESSAGE_SWIPE_DELETED, (position, {
            **info, "swipe_id": swipe, **({} if shown is None else {"new_swipe_id": shown}),
        })))
    if not removed:
        if shown is not None:
            told.append((EventTypes.MESSAGE_SWIPED, (position, {**info, "swipe_id": shown})))
        elif content:
            told.append((EventTypes.MESSAGE_EDITED, (position, info)))
    told.append((EventTypes.MESSAGE_UPDATED, (position, info)))
    told.extend(
        (EventTypes.CHAT_BRANCH_CREATED, ({"index": position, **info, "branch": name, "kind": kind},))
        for kind, name in links
    )


def branch_link(operation: dict[str, Any]) -> tuple[str, str] | None:
    """Kind and name of the chat that an operation links a message to; None when it does not."""
    path, value = operation["path"], operation.get("value")
    if operation["op"] not in ("add", "replace"):
        return None
    if path == "/extra/bookmark_link" and isinstance(value, str):
        return "checkpoint", value
    if path == "/extra/branches" and isinstance(value, list) and len(value) == 1:
        (value,) = value
        path = "/extra/branches/-"
    if path.startswith("/extra/branches/") and isinstance(value, str):
        return "branch", value
    return None

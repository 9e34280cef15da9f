"""Floor states worked out the naive way: what happened to messages and swipes is written down, and everything is done
again from the beginning whenever somebody asks. Shares nothing with the code under test but the `jsonpatch` library.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import jsonpatch


@dataclass
class Message:
    """A message by id. Each swipe is an object of its own, so deleting one needs no renumbering here."""

    id: str
    swipes: list[object] = field(default_factory=lambda: [object()])
    shown: int = 0


@dataclass
class Entry:
    """A commit: whose swipe it belongs to, and what it does."""

    message: Message
    swipe: object
    patch: list[dict[str, Any]]


class FloorOracle:
    """A chat and the floor states that hang on it."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.logs: dict[str, list[Entry]] = {}

    def message(self, message_id: str) -> Message:
        return next(message for message in self.messages if message.id == message_id)

    def append(self, message_id: str) -> None:
        self.messages.append(Message(message_id))

    def delete(self, ids: list[str]) -> None:
        self.messages = [message for message in self.messages if message.id not in ids]

    def move(self, index: int, to: int) -> None:
        self.messages.insert(to, self.messages.pop(index))

    def swipe_add(self, message_id: str, *, select: bool) -> None:
        message = self.message(message_id)
        message.swipes.append(object())
        if select:
            message.shown = len(message.swipes) - 1

    def swipe_select(self, message_id: str, ordinal: int) -> None:
        self.message(message_id).shown = ordinal

    def swipe_delete(self, message_id: str, ordinal: int) -> None:
        message = self.message(message_id)
        shown = message.swipes[message.shown]
        del message.swipes[ordinal]
        kept = [index for index, swipe in enumerate(message.swipes) if swipe is shown]
        message.shown = kept[0] if kept else min(ordinal, len(message.swipes) - 1)

    def update(self, namespace: str, patch: list[dict[str, Any]], message_id: str, ordinal: int) -> None:
        message = self.message(message_id)
        self.logs.setdefault(namespace, []).append(Entry(message, message.swipes[ordinal], copy.deepcopy(patch)))

    def forget(self, namespace: str) -> None:
        self.logs.pop(namespace, None)

    def state(self, namespace: str) -> tuple[dict[str, Any], int]:
        """The state by replaying everything that is shown, and how many commits did not fit."""
        state: Any = {}
        skipped = 0
        for entry in self.logs.get(namespace, []):
            if entry.message not in self.messages or entry.message.swipes[entry.message.shown] is not entry.swipe:
                continue
            try:
                state = jsonpatch.apply_patch(copy.deepcopy(state), copy.deepcopy(entry.patch))
            except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException, TypeError, KeyError):
                skipped += 1
        return state, skipped

    def kept(self, namespace: str) -> int:
        """Commits whose message and swipe are there, shown or not."""
        return sum(
            entry.message in self.messages and any(swipe is entry.swipe for swipe in entry.message.swipes)
            for entry in self.logs.get(namespace, [])
        )

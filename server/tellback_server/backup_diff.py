"""Backup diff: what lies between two contents of a chat. Pure.

Rules of this module:
- Messages are the same when their ids are: one that moved is not gone and new.
- Of what changed, every JSON path that differs is told with both values, in the order of the paths.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from tellback_protocol.values import equal

__all__ = ["Change", "ChatContent", "ChatDiff", "MessageChange", "diff_chats", "diff_values"]

VALUES_MAX = 200
"""Paths told of one document; a document that differs in more was replaced."""


class ChatContent(msgspec.Struct):
    """A chat with its states, as values."""

    messages: dict[str, dict[str, Any]]
    """By id, in their order."""
    metadata: Any
    states: dict[str, Any]


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """One path that differs; without `before` it came, without `after` it went."""

    path: str
    before: Any | UnsetType = UNSET
    after: Any | UnsetType = UNSET


class MessageChange(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message that came, went, changed or moved."""

    what: Literal["added", "removed", "changed", "moved"]
    id: str
    index: int
    """Where it stands, or stood."""
    message: dict[str, Any]
    """As it is, or as it was when it is gone."""
    changes: list[Change] = []


class ChatDiff(msgspec.Struct, omit_defaults=True):
    """What leads from one content to another."""

    messages: list[MessageChange] = []
    metadata: list[Change] = []
    states: dict[str, list[Change]] = {}
    """By namespace; a state that came or went has the one path that is empty."""

    @property
    def is_empty(self) -> bool:
        return not (self.messages or self.metadata or self.states)


def diff_chats(before: ChatContent, after: ChatContent) -> ChatDiff:
    """Cost: both once."""
    diff = ChatDiff(metadata=diff_values(before.metadata, after.metadata))
    places = {message_id: index for index, message_id in enumerate(before.messages)}
    for message_id, index in places.items():
        if message_id not in after.messages:
            diff.messages.append(MessageChange("removed", message_id, index, before.messages[message_id]))
    moved = _moved([places[one] for one in after.messages if one in places])
    for index, (message_id, message) in enumerate(after.messages.items()):
        old = before.messages.get(message_id)
        if old is None:
            diff.messages.append(MessageChange("added", message_id, index, message))
            continue
        changes = diff_values(old, message)
        if changes:
            diff.messages.append(MessageChange("changed", message_id, index, message, changes))
        elif places[message_id] in moved:
            diff.messages.append(MessageChange("moved", message_id, index, message))
    for namespace in sorted({*before.states, *after.states}):
        changes = _diff_members(before.states, after.states, namespace)
        if changes:
            diff.states[namespace] = changes
    return diff


def _diff_members(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> list[Change]:
    if name not in before:
        return [Change("", after=after[name])]
    if name not in after:
        return [Change("", before=before[name])]
    return diff_values(before[name], after[name])


def _moved(places: list[int]) -> set[int]:
    """Old places of what is out of order: what no longest rising row of the others holds. Cost: n log n."""
    tails: list[int] = []
    last_of: list[int] = []
    before: list[int] = [-1] * len(places)
    for at, place in enumerate(places):
        slot = bisect_left(tails, place)
        before[at] = last_of[slot - 1] if slot else -1
        if slot == len(tails):
            tails.append(place)
            last_of.append(at)
        else:
            tails[slot] = place
            last_of[slot] = at
    at, row = (last_of[-1] if last_of else -1), set[int]()
    while at >= 0:
        row.add(places[at])
        at = before[at]
    return {place for place in places if place not in row}


def diff_values(before: Any, after: Any) -> list[Change]:
    """The paths in which two JSON values differ, at most VALUES_MAX of them; else the whole."""
    changes: list[Change] = []
    for change in _differences("", before, after):
        changes.append(change)
        if len(changes) > VALUES_MAX:
            return [Change("", before, after)]
    return changes


def _differences(path: str, before: Any, after: Any) -> Iterator[Change]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*before, *(key for key in after if key not in before)]:
            inner = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
            if key not in after:
                yield Change(inner, before=before[key])
            elif key not in before:
                yield Change(inner, after=after[key])
            else:
                yield from _differences(inner, before[key], after[key])
    elif isinstance(before, list) and isinstance(after, list):
        for index in range(max(len(before), len(after))):
            inner = f"{path}/{index}"
            if index >= len(after):
                yield Change(inner, before=before[index])
            elif index >= len(before):
                yield Change(inner, after=after[index])
            else:
                yield from _differences(inner, before[index], after[index])
    elif not equal(before, after):
        yield Change(path, before, after)

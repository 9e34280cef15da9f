"""Difference: what the effects of a save touched, without what a chat is made of besides. Pure.

Rules of this module:
- Effects tell what was touched and where; what it became stands in the value that is saved.
- Cost: that of the effects, never that of the chat.
- What cannot be told from effects alone is no difference: the value is written whole then. `leads_to` is asked of the
  number of messages before anything is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

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
from tellback_protocol.stream import documents_of
from tellback_server.store.base import StoredChat

__all__ = ["POSITION_STEP", "Difference", "difference_of", "placed", "position_at"]

POSITION_STEP: Final = 1 << 20
"""Between the positions of neighbours: room for twenty insertions at one place, and for 2^33 messages in a double."""


class Difference(msgspec.Struct, gc=False):
    """What to do to what stands there: place, remove, then write lines and states."""

    removed: list[str] = []
    """Ids that are taken out, when they are there; some are placed anew."""
    changed: list[str] = []
    """Ids that stay where they are and have another line."""
    after: dict[str | None, list[str]] = {}
    """New ids by the id that stood there before and that they come behind; None: before everything."""
    appended: list[str] = []
    """New ids behind everything, those of `after` included."""
    namespaces: list[str] = []
    """State documents that are written anew."""

    def placed(self) -> int:
        """How many ids are new."""
        return len(self.appended) + sum(len(ids) for ids in self.after.values())


class _Placing:
    """Where new messages stand among those that were there, which are known by name only."""

    def __init__(self) -> None:
        self.after: dict[str | None, list[str]] = {}
        self.appended: list[str] = []
        self.runs: dict[str, list[str]] = {}
        """New ids and the list each stands in."""
        self.removed: dict[str, None] = {}
        self.changed: dict[str, None] = {}

    def append(self, ids: Sequence[str]) -> None:
        self._put(self.appended, len(self.appended), ids)

    def insert(self, after: str | None, ids: Sequence[str]) -> None:
        run = self.runs.get(after) if after is not None else None
        if run is not None and after is not None:
            self._put(run, run.index(after) + 1, ids)
        elif after in self.removed:
            # Behind a message that is gone: at the end, as Chat.apply does.
            self.append(ids)
        else:
            self._put(self.after.setdefault(after, []), 0, ids)

    def remove(self, message_id: str) -> None:
        self.changed.pop(message_id, None)
        run = self.runs.pop(message_id, None)
        if run is None:
            self.removed[message_id] = None
        else:
            run.remove(message_id)

    def change(self, message_id: str) -> None:
        if message_id not in self.runs:
            self.changed[message_id] = None

    def _put(self, run: list[str], at: int, ids: Sequence[str]) -> None:
        new = [message_id for message_id in ids if message_id not in self.runs]
        run[at:at] = new
        for message_id in new:
            self.changed.pop(message_id, None)
            self.runs[message_id] = run


def difference_of(effects: Sequence[Effect], value: StoredChat) -> Difference | None:
    """What the effects touched on the way to `value`; None when it holds less than they brought."""
    placing = _Placing()
    namespaces: dict[str, None] = {}
    for effect in effects:
        match effect:
            case AppendEffect():
                placing.append([message_id_of(bytes(raw)) for raw in effect.messages])
            case InsertEffect():
                placing.insert(effect.after, [message_id_of(bytes(raw)) for raw in effect.messages])
            case DeleteEffect():
                for message_id in effect.messages:
                    placing.remove(message_id)
            case PatchEffect():
                placing.change(effect.message)
            case StateEffect():
                namespaces.update(dict.fromkeys(documents_of(effect)))
            case MetadataEffect() | RenamedEffect() | DeletedEffect():
                pass
    if any(message_id not in value.messages for message_id in (*placing.runs, *placing.changed)):
        return None
    return Difference(
        list(placing.removed), list(placing.changed), {after: ids for after, ids in placing.after.items() if ids},
        placing.appended, list(namespaces),
    )


def position_at(index: int) -> int:
    """The position of a message in a chat that is written whole."""
    return index * POSITION_STEP


def _places_between(below: int | None, above: int | None, count: int) -> list[int] | None:
    """Positions for `count` messages between two that stand there (None: there is none on that side), in order; None
    when there is no room.
    """
    if above is None:
        start = -POSITION_STEP if below is None else below
        return [start + POSITION_STEP * (index + 1) for index in range(count)]
    if below is None:
        return [above - POSITION_STEP * (count - index) for index in range(count)]
    step = (above - below) // (count + 1)
    return [below + step * (index + 1) for index in range(count)] if step else None


def placed(
    difference: Difference, end: int | None, known: Mapping[str, int], above: Callable[[int | None], int | None]
) -> list[tuple[str, int]] | None:
    """New ids and their positions, from what stands there before anything is removed; None when there is no room or a
    neighbour is missing. `end` is the last position, `known` has those of the neighbours, and `above` tells the first
    one behind a position, of None the very first; None when there is none.
    """
    places: list[tuple[str, int]] = []
    for after, ids in difference.after.items():
        if after is not None and after not in known:
            return None
        below = None if after is None else known[after]
        between = _places_between(below, above(below), len(ids))
        if between is None:
            return None
        places.extend(zip(ids, between, strict=True))
        end = between[-1] if end is None else max(end, between[-1])
    behind = _places_between(end, None, len(difference.appended))
    return None if behind is None else [*places, *zip(difference.appended, behind, strict=True)]

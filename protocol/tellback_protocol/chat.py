"""The chat document: metadata and messages, and what an effect does to them.

Rules of this module:
- A message is kept as its bytes and parsed only when something inside it is wanted (PERFORMANCE hot path 3).
- `apply` installs an effect and never fails; server, replicas, recovery and stores share it (BEHAVIOUR E1).
- A message whose line carries no usable id is *bare*: its id is known, and written only when the message changes
  (BEHAVIOUR M3).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec

from .effects import AppendEffect, DeleteEffect, Effect, InsertEffect, MetadataEffect, PatchEffect, StateEffect
from .ids import Version
from .patch import apply_patch
from .values import dumps, loads, servable

EMPTY_METADATA = b"{}"


def with_integrity(metadata: bytes, integrity: str) -> bytes:
    """The metadata of a chat that is made of another one, with SillyTavern's `integrity` where that one has it.

    SillyTavern refuses to save a chat over one with another `integrity`, so each has its own.
    """
    value = loads(metadata)
    if not isinstance(value, dict) or "integrity" not in value:
        return metadata
    return dumps({**value, "integrity": integrity})


class Chat:
    """Metadata and an ordered list of messages, at a version.

    `messages` maps id to line, in the order of the chat. Cost of `append` and of a patch: that of the message alone.
    """

    __slots__ = ("_order", "bare", "messages", "metadata", "odd", "version")

    def __init__(
        self,
        version: Version,
        metadata: bytes = EMPTY_METADATA,
        messages: dict[str, bytes] | None = None,
        *,
        bare: set[str] | None = None,
        odd: set[str] | None = None,
    ) -> None:
        self.version = version
        self.metadata = metadata
        self.messages: dict[str, bytes] = {} if messages is None else messages
        self.bare: set[str] = set() if bare is None else bare
        """Ids of messages whose line does not hold the id."""
        self.odd: set[str] = set() if odd is None else odd
        """Ids of messages whose line holds half a surrogate pair and is served with U+FFFD instead."""
        self._order: list[str] | None = None

    @classmethod
    def from_values(cls, version: Version, metadata: object, messages: Iterable[Mapping[str, Any]]) -> Chat:
        """A chat of parsed values, each message with its id."""
        return cls(version, dumps(metadata), {message["id"]: dumps(message) for message in messages})

    def copy(self) -> Chat:
        """A chat that can be changed without this one noticing. Cost: one pointer a message."""
        return Chat(self.version, self.metadata, dict(self.messages), bare=set(self.bare), odd=set(self.odd))

    def order(self) -> list[str]:
        """The ids by index. Kept between appends and rebuilt after an insertion or deletion; do not change it."""
        if self._order is None:
            self._order = list(self.messages)
        return self._order

    def served(self, message_id: str) -> bytes:
        """The message as JSON with its id, as it travels."""
        line = self.messages[message_id]
        if message_id in self.odd:
            line = servable(line)
        if message_id in self.bare:
            return with_id(line, message_id)
        return line

    def served_all(self, ids: Iterable[str] | None = None) -> Iterator[bytes]:
        """Messages as they travel, in order."""
        if not self.bare and not self.odd and ids is None:
            return iter(self.messages.values())
        return (self.served(message_id) for message_id in (self.messages if ids is None else ids))

    def value(self, message_id: str) -> dict[str, Any]:
        """A fresh parsed copy of a message, its id first when the line holds none."""
        value: dict[str, Any] = loads(self.messages[message_id])
        if message_id in self.bare:
            value.pop("id", None)
            value = {"id": message_id, **value}
        return value

    def values(self) -> list[dict[str, Any]]:
        """All messages, parsed. Cost: the whole chat."""
        return [self.value(message_id) for message_id in self.messages]

    def metadata_value(self) -> Any:
        """A fresh parsed copy of the metadata."""
        return loads(self.metadata)

    # -- what effects do ---------------------------------------------------------------------------------------------

    def apply(self, effect: Effect, known: Mapping[str, bytes] | None = None) -> None:
        """Install an effect. `known` holds lines that `decide` already worked out, by message id.

        An effect on something that is not there changes nothing: effects come from a log that is the truth, and a
        replica that misses a message asks for a snapshot, it does not guess.
        """
        match effect:
            case AppendEffect():
                for raw in effect.messages:
                    line = bytes(raw)
                    self._append(message_id_of(line), line)
            case PatchEffect():
                line_or_none = known.get(effect.message) if known else None
                if line_or_none is None:
                    if effect.message not in self.messages:
                        return
                    value = apply_patch(self.value(effect.message), loads(bytes(effect.patch))).value
                    line_or_none = dumps(value)
                self._set(effect.message, line_or_none)
            case MetadataEffect():
                self.metadata = dumps(apply_patch(self.metadata_value(), loads(bytes(effect.patch))).value)
            case DeleteEffect():
                for message_id in effect.messages:
                    if self.messages.pop(message_id, None) is not None:
                        self.bare.discard(message_id)
                        self.odd.discard(message_id)
                self._order = None
            case InsertEffect():
                self._insert(effect.after, [bytes(raw) for raw in effect.messages])
            case StateEffect():
                pass

    def appended(self, ids: Iterable[str]) -> None:
        """Messages with their ids in the lines were put at the end of `messages`, new in this chat."""
        if self._order is not None:
            self._order.extend(ids)

    def _append(self, message_id: str, line: bytes) -> None:
        if message_id in self.messages:
            return
        self.messages[message_id] = line
        if self._order is not None:
            self._order.append(message_id)

    def _set(self, message_id: str, line: bytes) -> None:
        self.messages[message_id] = line
        self.bare.discard(message_id)
        if b"\\u" in line and servable(line) != line:
            self.odd.add(message_id)
        else:
            self.odd.discard(message_id)

    def _insert(self, after: str | None, lines: list[bytes]) -> None:
        if after is not None and after not in self.messages:
            for line in lines:
                self._append(message_id_of(line), line)
            return
        new = {message_id: line for line in lines if (message_id := message_id_of(line)) not in self.messages}
        if after is None:
            self.messages = {**new, **self.messages}
        else:
            merged: dict[str, bytes] = {}
            for message_id, line in self.messages.items():
                merged[message_id] = line
                if message_id == after:
                    merged.update(new)
            self.messages = merged
        self._order = None


class _Identified(msgspec.Struct):
    id: str


_decode_id = msgspec.json.Decoder(_Identified).decode


def message_id_of(line: bytes) -> str:
    """The id inside a message's line. Effects carry only messages that have one."""
    try:
        return _decode_id(line).id
    except msgspec.MsgspecError:
        return str(loads(line)["id"])


def with_id(line: bytes, message_id: str) -> bytes:
    """The line of a bare message with its id in it; the rest keeps its bytes unless an unusable `id` stands there."""
    start = line.find(b"{") + 1
    if b'"id"' in line or b"\\u00" in line:
        value = loads(line)
        if "id" in value:
            del value["id"]
            return dumps({"id": message_id, **value})
    rest = line[start:]
    comma = b"" if rest.lstrip()[:1] == b"}" else b","
    return line[:start] + b'"id":' + msgspec.json.encode(message_id) + comma + rest

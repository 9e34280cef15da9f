"""Redis rows: what stands in the keys of an owner, and the commands that bring it from one value to the next.

Rules of this module:
- Reads come before `multi`, commands after it: what is returned here only writes.
- Structs are persisted as MessagePack behind a CRC-32: a field keeps its place, new ones come last and have a default.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from tellback_protocol.ids import Version
from tellback_protocol.stream import StateDocument
from tellback_protocol.values import UNDECODABLE
from tellback_server.store.base import StoreDamaged, StoredChat
from tellback_server.store.difference import Difference, placed, position_at

__all__ = [
    "Keys", "Line", "Listed", "Owner", "Pipeline", "difference_writes", "document_of", "octets", "read", "text",
    "whole_writes", "written",
]

_T = TypeVar("_T")
Pipeline = Any
"""redis-py's pipeline; its types say less than they seem to."""
_PIECE: Final = 1000  # Fields in one command: what a server does at once stays short.


class Owner(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What stands in an owner's key. Persisted: keep stable."""

    name: bytes
    head: Version
    version: Version
    metadata: bytes
    summary: bytes
    messages: int
    states: int


class Listed(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What stands in a user's list. Persisted: keep stable."""

    name: bytes
    head: Version
    summary: bytes


class Line(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Persisted: keep stable."""

    position: int
    line: bytes


class _State(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Persisted: keep stable."""

    version: Version | None
    data: bytes | None
    corrupt: bool


class Keys(msgspec.Struct, frozen=True, kw_only=True):
    """Where an owner is."""

    user: bytes
    """The field in `meta`."""
    field: bytes
    """The field in `listed`."""
    listed: bytes
    owner: bytes
    lines: bytes
    order: bytes
    states: bytes


_Write = Callable[[Pipeline], object]


def whole_writes(keys: Keys, value: StoredChat) -> list[_Write]:
    places = [(message_id, position_at(index)) for index, message_id in enumerate(value.messages)]
    return [*_put_lines(keys, places, value), *_put_states(keys, value.states, value)]


def difference_writes(
    pipe: Pipeline, keys: Keys, old: Owner, difference: Difference, value: StoredChat
) -> list[_Write] | None:
    """None when what stands there and the difference do not make the value: then it is written whole."""
    places = _places(pipe, keys, difference)
    if places is None:
        return None
    writes: list[_Write] = []
    touched = [*difference.removed, *difference.changed, *(message_id for message_id, _ in places)]
    known = _positions(pipe, keys, touched)
    removed = [message_id for message_id in difference.removed if message_id in known]
    gone = set(removed)
    if any(message_id in known and message_id not in gone for message_id, _ in places):
        return None
    if old.messages - len(removed) + len(places) != len(value.messages):
        return None
    if any(message_id not in known for message_id in difference.changed):
        return None
    writes.extend(partial(_remove_lines, keys, ids) for ids in _pieces(removed))
    changed = [(message_id, known[message_id]) for message_id in difference.changed]
    writes.extend(_put_lines(keys, [*places, *changed], value))
    put = [namespace for namespace in difference.namespaces if namespace in value.states]
    lost = [octets(namespace) for namespace in difference.namespaces if namespace not in value.states]
    if difference.namespaces:
        there = {text(namespace) for namespace in pipe.hkeys(keys.states)}
        if (there - set(difference.namespaces)) | set(put) != value.states.keys():
            return None
    if lost:
        writes.append(lambda pipe: pipe.hdel(keys.states, *lost))
    writes.extend(_put_states(keys, put, value))
    return writes


def _places(pipe: Pipeline, keys: Keys, difference: Difference) -> list[tuple[str, int]] | None:
    """New ids and their positions; None when there is no room or a neighbour is missing."""
    if not difference.placed():
        return []
    end = _score(pipe.zrange(keys.order, -1, -1, withscores=True))
    known = _positions(pipe, keys, [after for after in difference.after if after is not None])

    def above(below: int | None) -> int | None:
        if below is None:
            return _score(pipe.zrange(keys.order, 0, 0, withscores=True))
        return _score(pipe.zrangebyscore(keys.order, f"({below}", "+inf", 0, 1, withscores=True))

    return placed(difference, end, known, above)


def _positions(pipe: Pipeline, keys: Keys, ids: Sequence[str]) -> dict[str, int]:
    known: dict[str, int] = {}
    for piece in _pieces(ids):
        scores = pipe.zmscore(keys.order, [octets(message_id) for message_id in piece])
        known.update({
            message_id: int(score) for message_id, score in zip(piece, scores, strict=True) if score is not None
        })
    return known


def _score(found: Sequence[tuple[bytes, float]]) -> int | None:
    return int(found[0][1]) if found else None


def _put_lines(keys: Keys, places: Sequence[tuple[str, int]], value: StoredChat) -> list[_Write]:
    writes: list[_Write] = []
    for piece in _pieces(places):
        lines = {octets(one): written(Line(at, value.messages[one])) for one, at in piece}
        order = {octets(one): at for one, at in piece}
        writes.append(partial(_add_lines, keys, lines, order))
    return writes


def _add_lines(keys: Keys, lines: dict[bytes, bytes], order: dict[bytes, int], pipe: Pipeline) -> None:
    pipe.hset(keys.lines, mapping=lines)
    pipe.zadd(keys.order, order)


def _remove_lines(keys: Keys, ids: Sequence[str], pipe: Pipeline) -> None:
    fields = [octets(message_id) for message_id in ids]
    pipe.hdel(keys.lines, *fields)
    pipe.zrem(keys.order, *fields)


def _put_states(keys: Keys, namespaces: Iterable[str], value: StoredChat) -> list[_Write]:
    states = {}
    for namespace in namespaces:
        document = value.states[namespace]
        states[octets(namespace)] = written(_State(document.version, document.data, document.corrupt))
    return [lambda pipe: pipe.hset(keys.states, mapping=states)] if states else []


def _pieces(items: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), _PIECE):
        yield items[start : start + _PIECE]


def document_of(data: bytes, whose: str) -> StateDocument:
    state = read(data, _State, whose)
    return StateDocument(state.version, state.data, corrupt=state.corrupt)


def written(what: msgspec.Struct) -> bytes:
    body = msgspec.msgpack.encode(what)
    return zlib.crc32(body).to_bytes(4, "big") + body


def read(data: bytes, kind: type[_T], whose: str) -> _T:
    if zlib.crc32(data[4:]) != int.from_bytes(data[:4], "big"):
        raise StoreDamaged(f"{whose}: a value does not match its checksum")
    try:
        return msgspec.msgpack.decode(data[4:], type=kind)
    except UNDECODABLE as error:
        raise StoreDamaged(f"{whose}: {error}") from error


def octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def text(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogatepass")

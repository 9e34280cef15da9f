"""The shortest way of the most frequent write: one new message at the end, on a base that holds.

Rules of this module:
- It decides exactly as the general way would, or returns None and leaves the decision to it; a test compares the two.
- The received bytes are checked once and then only joined: nothing is serialised again (PERFORMANCE hot path 2).
"""

from __future__ import annotations

import msgspec
from msgspec import Raw

from .decision import Committed, Fresh
from .effects import AppendEffect
from .frames import Limits
from .ids import Version
from .requests import Append
from .stream import Outcome, Stream
from .values import read_payload

_encode = msgspec.json.encode
_TARGETS = ("a",)
_NOTHING: dict[str, bytes] = {}
_NO_STATES: dict[str, bytes | None] = {}


def plain_append(
    stream: Stream, request: Append, session: str, op: int, print_: int, fresh: Fresh, limits: Limits
) -> Committed | None:
    """The decision about an append of one message without an id, or None when it is not that plain.

    Raises: Refused for a payload that the general way refuses as well.
    """
    chat = stream.chat
    base = request.base
    if (base != "*" and base != chat.version.integrity) or len(request.messages) != 1:
        return None
    data = bytes(request.messages[0])
    value = read_payload(data, "/messages/0", limits.depth)
    if (
        type(value) is not dict or not value or "id" in value or data[0] != 0x7B or len(data) > limits.document_bytes
        or b"\n" in data or b"\r" in data
    ):
        return None
    message_id = f"{fresh.id_seed & 0xFFFFFFFFFFFFFFFF:016x}"
    if message_id in chat.messages:
        return None
    id_json = message_id.encode()
    line = b'{"id":"%b",%b' % (id_json, data[1:])
    head = stream.head
    integrity = fresh.integrity
    version = Version(head.epoch, head.seq + 1, integrity)
    version_json = b'"version":{"epoch":%d,"seq":%d,"integrity":"%b"},' % (
        head.epoch, head.seq + 1, integrity.encode()
    )
    core = b'%b"previous":"%b","by":{"session":%b,"op":%d},"ops":[{"op":"append","messages":[%b]}]' % (
        version_json, head.integrity.encode(), _encode(session), op, line,
    )
    record = b'{%b,"fingerprint":%d,"plain":true}' % (core, print_)
    body = b'%b"durable":"fsync","messages":["%b"]' % (version_json, id_json)
    return Committed(
        version, [AppendEffect([Raw(line)])], core, record, Outcome("ack", print_, body, integrity), _TARGETS,
        _NOTHING, None, _NO_STATES, (message_id, line),
    )

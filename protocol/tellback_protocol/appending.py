"""The shortest way of the most frequent write: one new message at the end, on a base that holds.

    PlainAppend     what the general way would have committed, as the bytes that log, sender and others get

Rules of this module:
- It does exactly what `decide` and `install` would do, or returns None, changes nothing and leaves it to them; a test
  holds the two against each other, byte for byte (BEHAVIOUR E8).
- The received bytes are checked once and then only joined: nothing is serialised again (PERFORMANCE hot path 2).
- Straight code, few calls: each one costs as much as joining a frame does.
"""

from __future__ import annotations

import zlib

import msgspec

from .frames import Limits
from .ids import Version
from .requests import Append
from .stream import Outcome, Past, SessionOps, Stream
from .values import is_anonymous_object

_TARGETS = ("a",)
_OBJECT = b'{"'
"""How an object with members begins when nobody put spaces into it."""
_LF, _CR = b"\n\r"


class PlainAppend(msgspec.Struct, gc=False):
    """One message was appended."""

    version: Version
    core: bytes
    """What the others are told, without type and owner."""
    record: bytes
    """What the log keeps."""
    body: bytes
    """The ack without its envelope."""
    message_id: str


def append_plain(
    stream: Stream, ops: SessionOps, session_json: bytes, request: Append, integrity: str, id_seed: int, now_ms: int,
    limits: Limits,
) -> PlainAppend | None:
    """Decide about and install an append of one message without an id; None when it is not that plain.

    `ops` and `session_json` are of the session that asks; the other arguments are those of `Fresh`.
    Raises: Refused for a payload that cannot be read; nothing was changed.
    """
    chat = stream.chat
    base = request.base
    op = request.op
    messages = request.messages
    if (
        op != ops.last + 1 or type(base) is not str or (base != "*" and base != chat.version.integrity)
        or len(messages) != 1 or request.force or request.on_conflict != "refuse" or stream.damage
    ):
        return None
    data = bytes(messages[0])
    size = len(data)
    if (
        size > limits.document_bytes or not data.startswith(_OBJECT) or _LF in data or _CR in data
        or not is_anonymous_object(data, "/messages/0", limits.depth)
    ):
        return None
    message_id = f"{id_seed & 0xFFFFFFFFFFFFFFFF:016x}"
    if message_id in chat.messages:
        return None
    id_json = message_id.encode()
    line = b'{"id":"%b",%b' % (id_json, data[1:])
    head = stream.head
    seq = head.seq + 1
    version = Version(head.epoch, seq, integrity)
    version_json = b'"version":{"epoch":%d,"seq":%d,"integrity":"%b"},' % (head.epoch, seq, integrity.encode())
    core = b'%b"previous":"%b","by":{"session":%b,"op":%d},"ops":[{"op":"append","messages":[%b]}]' % (
        version_json, head.integrity.encode(), session_json, op, line,
    )
    # As `fingerprint` works it out for an append.
    print_ = zlib.crc32(data, zlib.crc32(base.encode())) | (size & 0xFFFFF) << 32
    body = b'%b"durable":"fsync","messages":["%b"]' % (version_json, id_json)
    chat.append_line(message_id, line)
    chat.version = version
    stream.head = version
    stream.remember(Past(seq, integrity, core, _TARGETS))
    ops.add(op, Outcome("ack", print_, body, integrity), now_ms)
    return PlainAppend(version, core, b'{%b,"fingerprint":%d,"plain":true}' % (core, print_), body, message_id)

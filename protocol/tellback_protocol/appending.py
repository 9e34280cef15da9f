"""The shortest way of the most frequent write: one new message at the end, on a base that holds.

    PlainAppend     what the general way would have committed, as the bytes that log, sender and others get

Rules of this module:
- It does exactly what `decide` and `install` would do, or changes nothing and leaves it to them; a test holds the two
  against each other, byte for byte (BEHAVIOUR E8).
- The received bytes are checked once and then only joined: nothing is serialised again (PERFORMANCE hot path 2).
- Straight code, few calls, and what several requests share is done once: a call costs as much as joining a frame does.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import msgspec

from .errors import Refused
from .frames import Limits
from .ids import Version
from .outcomes import Outcome, SessionOps
from .requests import Append
from .stream import Past, Stream
from .values import is_anonymous_object

_TARGETS = ("a",)
_OBJECT = b'{"'
"""How an object with members begins when nobody put spaces into it."""
_LF, _CR = b"\n\r"


class PlainAppend(msgspec.Struct, gc=False):
    """One message was appended."""

    request_id: int | None
    op: int
    version: Version
    core: bytes
    """What the others are told, without type and owner."""
    record: bytes
    """What the log keeps."""
    body: bytes
    """The ack without its envelope."""
    message_id: str


def append_plain(
    stream: Stream, ops: SessionOps, session_json: bytes, requests: list[Append], new_integrity: Callable[[], str],
    new_message_id: Callable[[], str], now_ms: int, limits: Limits,
) -> list[PlainAppend]:
    """Decide about and install appends of one message without an id each, in order, up to the first that is not that
    plain: that one and those behind it changed nothing.

    `ops` and `session_json` are of the session that asks. `new_integrity` and `new_message_id` give for each request
    what `Fresh` would hold.
    """
    chat = stream.chat
    head = stream.head
    epoch, seq, previous = head.epoch, head.seq, head.integrity
    current = chat.version.integrity
    last = ops.last
    done: list[PlainAppend] = []
    for request in requests:
        base = request.base
        messages = request.messages
        if (
            request.op != last + 1 or type(base) is not str or (base != "*" and base != current) or len(messages) != 1
            or request.force or request.on_conflict != "refuse" or stream.damage
        ):
            break
        data = bytes(messages[0])
        size = len(data)
        if size > limits.document_bytes or not data.startswith(_OBJECT) or _LF in data or _CR in data:
            break
        try:
            if not is_anonymous_object(data, "/messages/0", limits.depth):
                break
        except Refused:
            break
        message_id = new_message_id()
        if message_id in chat.messages:
            break
        integrity = new_integrity()
        seq += 1
        last += 1
        id_json = message_id.encode()
        line = b'{"id":"%b",%b' % (id_json, data[1:])
        version = Version(epoch, seq, integrity)
        version_json = b'"version":{"epoch":%d,"seq":%d,"integrity":"%b"},' % (epoch, seq, integrity.encode())
        core = b'%b"previous":"%b","by":{"session":%b,"op":%d},"ops":[{"op":"append","messages":[%b]}]' % (
            version_json, previous.encode(), session_json, last, line,
        )
        # As `fingerprint` works it out for an append.
        print_ = zlib.crc32(data, zlib.crc32(base.encode())) | (size & 0xFFFFF) << 32
        body = b'%b"durable":"fsync","messages":["%b"]' % (version_json, id_json)
        chat.append_line(message_id, line)
        stream.remember(Past(seq, integrity, core, _TARGETS))
        ops.add(last, Outcome("ack", print_, body, integrity), now_ms)
        record = b'{%b,"fingerprint":%d,"plain":true}' % (core, print_)
        done.append(PlainAppend(request.id, last, version, core, record, body, message_id))
        previous = current = integrity
        chat.version = stream.head = version
    return done

"""The shortest way of the most frequent write: one new message at the end, on a base that holds.

    PlainAppends    what the general way would have committed, as the bytes that log, sender and others get

Rules of this module:
- It does exactly what `decide` and `install` would do, or changes nothing and leaves it to them; a test holds the two
  against each other, byte for byte (BEHAVIOUR E8).
- The received bytes are checked once and then only joined: nothing is serialised again (PERFORMANCE hot path 2).
- Straight code, few calls, and what several requests share is done once: a call costs as much as joining a frame does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from zlib import crc32

import msgspec

from .frames import Limits
from .ids import Version
from .outcomes import OUTCOME_BYTES_MAX, SessionOps, Telling
from .past import Past
from .requests import Append
from .stream import Stream
from .values import OBJECT, anonymous_objects, is_anonymous_object

_TARGETS = ("a",)
_ANY_BASE_CRC = crc32(b"*")
# The words of both ways below.
_VERSION = b'"version":{"epoch":%d,"seq":%d,"integrity":"%b"},'
_LINE = b'{"id":"%b",%b'
_FRONT = b'%b"previous":"%b","by":{"session":%b,"op":%d},"ops":[{"op":"append","messages":['
_RECORD = b'{%b%b]}],"fingerprint":%d,"plain":true}'
_ACK = b'{"type":"ack","id":%d,%b,"op":%d,%b"durable":"fsync","messages":["%b"]}'
_ACK_UNASKED = b'{"type":"ack","id":null,%b,"op":%d,%b"durable":"fsync","messages":["%b"]}'


class PlainAppends(msgspec.Struct, gc=False):
    """Appends of one message each, one right behind the other. Lists are in their order."""

    pasts: list[Past]
    records: list[bytes]
    """What the log keeps."""
    acks: list[bytes]
    """What is answered."""
    ids: list[str]
    """Of the messages."""


def append_plain(
    stream: Stream, ops: SessionOps, session_json: bytes, requests: list[Append], owner_json: bytes,
    new_integrity: Callable[[], str], new_message_id: Callable[[], str], now_ms: int, limits: Limits,
) -> PlainAppends | None:
    """Decide about and install appends of one message without an id each, in order, up to the first that is not that
    plain: that one and those behind it changed nothing. None when the first is not.

    `ops` and `session_json` are of the session that asks, `owner_json` is the owner member of its acks.
    `new_integrity` and `new_message_id` give for each request what `Fresh` would hold.
    """
    if len(requests) == 1:
        return _append_one(
            stream, ops, session_json, requests[0], owner_json, new_integrity, new_message_id, now_ms, limits
        )
    payloads: list[bytes] = []
    if not stream.damage:
        for request in requests:
            messages = request.messages
            if (
                len(messages) != 1 or request.force or request.on_conflict != "refuse"
                or not isinstance(request.base, str)
            ):
                break
            payload = bytes(messages[0])
            if len(payload) > limits.document_bytes or not payload.startswith(OBJECT):
                break
            payloads.append(payload)
    count = anonymous_objects(payloads, limits.depth)
    if not count:
        return None

    chat = stream.chat
    all_messages = chat.messages
    epoch, seq = stream.head.epoch, stream.head.seq
    previous_json = stream.head.integrity.encode()
    current = chat.version.integrity
    op = ops.last
    base, base_crc = "*", _ANY_BASE_CRC
    has_long = False
    pasts: list[Past] = []
    records: list[bytes] = []
    acks: list[bytes] = []
    ids: list[str] = []
    # What is not plain, and all behind it, has no payload.
    if count < len(payloads):
        del payloads[count:]
    for request, payload in zip(requests, payloads, strict=False):
        if request.base != base:
            base = str(request.base)
            base_crc = crc32(base.encode())
        message_id = new_message_id()
        if request.op != op + 1 or (base != "*" and base != current) or message_id in all_messages:
            break
        integrity = new_integrity()
        seq += 1
        op += 1
        id_json = message_id.encode()
        integrity_json = integrity.encode()
        version = Version(epoch, seq, integrity)
        version_json = _VERSION % (epoch, seq, integrity_json)
        line = _LINE % (id_json, payload[1:])
        front = _FRONT % (version_json, previous_json, session_json, op)
        # As `fingerprint` works it out for an append.
        print_ = crc32(payload, base_crc) | (len(payload) & 0xFFFFF) << 32
        # Nothing behind the last break can fail, so that what is installed stays.
        all_messages[message_id] = line
        ids.append(message_id)
        pasts.append(Past(version, front, _TARGETS, line, print_))
        records.append(_RECORD % (front, line, print_))
        acks.append(
            _ACK_UNASKED % (owner_json, op, version_json, id_json) if request.id is None
            else _ACK % (request.id, owner_json, op, version_json, id_json)
        )
        if len(line) > OUTCOME_BYTES_MAX:
            has_long = True
        previous_json = integrity_json
        current = integrity
    if not pasts:
        return None
    chat.appended(ids)
    stream.remember(pasts)
    # An outcome holds on to its line when the message is another one long since: only a short one may.
    told: Sequence[Telling] = pasts
    if has_long:
        told = [past.outcome() if len(past.line) > OUTCOME_BYTES_MAX else past for past in pasts]
    ops.add_short(told, now_ms)
    chat.version = stream.head = pasts[-1].version
    return PlainAppends(pasts, records, acks, ids)


def _append_one(
    stream: Stream, ops: SessionOps, session_json: bytes, request: Append, owner_json: bytes,
    new_integrity: Callable[[], str], new_message_id: Callable[[], str], now_ms: int, limits: Limits,
) -> PlainAppends | None:
    """`append_plain` of the one append that a read mostly brings: what several share is two fifths of its time."""
    chat, op, base, messages = stream.chat, request.op, request.base, request.messages
    if (
        op != ops.last + 1 or len(messages) != 1 or stream.damage or request.force or request.on_conflict != "refuse"
    ):
        return None
    if base == "*":
        base_crc = _ANY_BASE_CRC
    elif isinstance(base, str) and base == chat.version.integrity:
        base_crc = crc32(base.encode())
    else:
        return None
    payload = bytes(messages[0])
    if (
        len(payload) > limits.document_bytes or not payload.startswith(OBJECT)
        or not is_anonymous_object(payload, limits.depth)
    ):
        return None
    message_id = new_message_id()
    if message_id in chat.messages:
        return None
    integrity = new_integrity()
    head = stream.head
    epoch, seq = head.epoch, head.seq + 1
    id_json = message_id.encode()
    version_json = _VERSION % (epoch, seq, integrity.encode())
    line = _LINE % (id_json, payload[1:])
    front = _FRONT % (version_json, head.integrity.encode(), session_json, op)
    print_ = crc32(payload, base_crc) | (len(payload) & 0xFFFFF) << 32
    version = Version(epoch, seq, integrity)
    past = Past(version, front, _TARGETS, line, print_)
    pasts, ids = [past], [message_id]
    chat.messages[message_id] = line
    chat.appended(ids)
    chat.version = stream.head = version
    stream.remember(pasts)
    ops.add_short(pasts if len(line) <= OUTCOME_BYTES_MAX else [past.outcome()], now_ms)
    ack = (
        _ACK_UNASKED % (owner_json, op, version_json, id_json) if request.id is None
        else _ACK % (request.id, owner_json, op, version_json, id_json)
    )
    return PlainAppends(pasts, [_RECORD % (front, line, print_)], [ack], ids)

"""What became of a request, as values, and as the bytes that log, sender and others get of it.

Rules of this module:
- An outcome is one body of bytes; the envelope around it (type, id, owner, op) belongs to the frame that carries it.
- The log keeps what the wire carries, and beside it what leads back (`undo`), what it was made from (`was`) and the
  fingerprint of the request.
"""

from __future__ import annotations

import zlib
from typing import Any

import msgspec
from msgspec import Raw, UnsetType

from . import codec
from .chat import Chat
from .effects import Effect
from .errors import Refused
from .ids import Version
from .outcomes import Outcome
from .requests import Append, Malformed, Write
from .stream import Stream

_encode = msgspec.json.encode
MISSED_BYTES_MAX = 32 << 10
"""Missed commits that a conflict carries; more is answered with `resync` (DESIGN section 5)."""


class Fresh(msgspec.Struct, frozen=True, gc=False):
    """What only a shell can know: an integrity for the commit, a seed for message ids, the time."""

    integrity: str
    id_seed: int
    """64 random bits: new messages are called seed, seed + 1, ... in hexadecimal."""
    now_ms: int


class Committed(msgspec.Struct, gc=False):
    """An accepted request."""

    version: Version
    effects: list[Effect]
    core: bytes
    """What the others are told, without type and owner."""
    record: bytes
    """What the log keeps."""
    outcome: Outcome
    targets: tuple[str, ...]
    known: dict[str, bytes]
    """Lines worked out while deciding, by message id."""
    chat: Chat | None
    """The chat after several effects, when there was more than one step."""
    states: dict[str, bytes | None]
    """State documents after the commit."""
    forced: bool = False
    """Something was overwritten that its author had not seen."""

    def frame(self, owner: bytes) -> bytes:
        """What the others are told; `owner` from `codec.owner_member`."""
        return codec.integrity(owner, self.core)


class Stored(msgspec.Struct, gc=False):
    """A conflict or refusal that is an outcome."""

    outcome: Outcome
    record: bytes


class Duplicate(msgspec.Struct, gc=False):
    """This op already has an outcome."""

    outcome: Outcome


Decision = Committed | Stored | Duplicate


def fingerprint(request: Write | Malformed) -> int:
    """A number that tells two bodies apart; the request number and the owner's spelling do not count.

    32 bits of CRC and the length: it guards a client against its own mistakes, not against an attacker.
    """
    if type(request) is Append and not request.force and request.on_conflict == "refuse":
        crc = zlib.crc32(request.base.encode("utf-8", "surrogatepass") if isinstance(request.base, str) else b"?")
        size = 0
        for raw in request.messages:
            crc = zlib.crc32(raw, crc)
            size += len(raw)
        if isinstance(request.base, (str, UnsetType)):
            return crc | (size & 0xFFFFF) << 32
    if isinstance(request, Malformed):
        body = request.body
    else:
        anonymous: Any = msgspec.structs.replace(request, id=None, op=1)
        if hasattr(anonymous, "chat"):
            anonymous.chat = ""
        else:
            anonymous.owner = None
        body = _encode(anonymous)
    return zlib.crc32(body) | (len(body) & 0xFFFFF) << 32


def answered(stream: Stream, request: Write | Malformed, session: str) -> Outcome | None:
    """The outcome that exactly this op already had."""
    ops = stream.sessions.get(session)
    outcome = None if ops is None or not isinstance(request.op, int) else ops.outcome(request.op)
    return outcome if outcome is not None and outcome.fingerprint == fingerprint(request) else None


def conflict_body(stream: Stream, outcome: Outcome, owner: bytes) -> bytes:
    """The body of a conflict with the commits that its base missed, as far as they are still remembered.

    `owner` is the owner member as the tab knows it (`codec.owner_member`). Cost: the missed commits, at most 32 KiB.
    """
    stored = msgspec.json.decode(outcome.body)
    since = stored.pop("since", None)
    body = _encode(stored)[1:-1]
    version = stored["version"]
    missed = stream.since_integrity(since) if since is not None and version is not None else None
    if missed is None:
        return body + b',"resync":true'
    frames: list[bytes] = []
    size = 0
    for past in missed:
        if past.version.seq > version["seq"]:
            break
        size += past.size_bytes
        if size > MISSED_BYTES_MAX:
            return body + b',"resync":true'
        frames.append(past.frame(owner))
    return body + b',"missed":[' + b",".join(frames) + b"]"


class Conflicting(Exception):
    """The base of a request is not the version of its document."""

    def __init__(self, version: Version | None, since: str | None, namespace: str | None) -> None:
        super().__init__(version, since, namespace)
        self.version = version
        self.since = since
        self.namespace = namespace


def stored_conflict(conflict: Conflicting, session: str, op: int, print_: int) -> Stored:
    """The outcome of a base that is not the version of its document."""
    body = b'{"version":%b' % _encode(conflict.version)
    if conflict.namespace is not None:
        body += b',"namespace":%b' % _encode(conflict.namespace)
    if conflict.since is not None:
        body += b',"since":%b' % _encode(conflict.since)
    return _stored("conflict", body + b"}", session, op, print_)


def stored_refusal(refusal: Refused, session: str, op: int, print_: int) -> Stored:
    """The outcome of a request that is refused for ever."""
    return _stored("error", refusal_json(refusal), session, op, print_)


def refusal_json(refusal: Refused) -> bytes:
    """Code, sentence, retry class and pointer of a refusal, as one object."""
    body: dict[str, object] = {"code": refusal.code, "message": refusal.message, "retry": refusal.retry}
    if refusal.pointer is not None:
        body["pointer"] = refusal.pointer
    body.update(refusal.details or {})
    return _encode(body)


def _stored(kind: str, answer: bytes, session: str, op: int, print_: int) -> Stored:
    record = b'{"by":{"session":%b,"op":%d},"fingerprint":%d,"kind":"%b","answer":%b}' % (
        _encode(session), op, print_, kind.encode(), answer,
    )
    body = answer if kind == "conflict" else answer[1:-1]
    return Stored(Outcome(kind, print_, body), record)


class StoredRecord(msgspec.Struct, gc=False):
    """A conflict or refusal as the log keeps it."""

    by: dict[str, Any]
    fingerprint: int
    kind: str
    answer: Raw


_decode_stored = msgspec.json.Decoder(StoredRecord).decode


def fold_stored(stream: Stream, record: bytes, now_ms: int = 0) -> None:
    """Install a conflict or refusal from the log."""
    stored = _decode_stored(record)
    answer = bytes(stored.answer)
    body = answer if stored.kind == "conflict" else answer[1:-1]
    stream.session(stored.by["session"]).add(stored.by["op"], Outcome(stored.kind, stored.fingerprint, body), now_ms)

"""Bytes to frames and back, with limits.

Rules of this module:
- A frame is decoded once; payloads stay bytes (PERFORMANCE hot path 2).
- A frame that cannot be read is answered with what it said of itself: `id`, owner and `op` (BEHAVIOUR W3).
- A write that names its owner and op but is otherwise unreadable becomes `Malformed`: its refusal is an outcome (O4).
- Frames on the hot path are joined from bytes; a test decodes every one of them with the structs of `frames`.
"""

from __future__ import annotations

import json
import re
from typing import Any, get_args

import msgspec
import orjson

from .errors import Refused
from .frames import ClientFrame, Limits, Opened, ServerFrame
from .ids import WIRE_INTEGER_MAX
from .requests import Malformed, OwnerName, Write, owner_named, owner_text
from .values import UNDECODABLE

_decode_client = msgspec.json.Decoder(ClientFrame).decode
_decode_server = msgspec.json.Decoder(ServerFrame).decode
encode = msgspec.json.encode

WRITES = frozenset(member.__struct_config__.tag for member in get_args(Write))
TYPES = frozenset(member.__struct_config__.tag for member in get_args(ClientFrame))
SERVER_TYPES = frozenset(member.__struct_config__.tag for member in get_args(ServerFrame))

_AT = re.compile(r" - at `\$(.*)`$")
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+|\.\.\.)\]")


class FrameProblem(Exception):
    """A message that is no usable frame: the refusal, and what the message said of itself."""

    def __init__(self, refusal: Refused, echo: dict[str, Any]) -> None:
        super().__init__(refusal, echo)
        self.refusal = refusal
        self.echo = echo
        """`id`, `op`, `chat`, `owner`, as far as they were readable."""


def decode_client(data: bytes, limits: Limits) -> ClientFrame | Malformed:
    """The frame in one text message.

    Raises: FrameProblem. Cost: one pass over `data`; a second one only for a bad frame.
    """
    if len(data) > limits.frame_bytes:
        raise FrameProblem(
            Refused("too-large", f"A frame has at most {limits.frame_bytes} bytes, this one has {len(data)}."),
            _echo_of_oversize(data),
        )
    try:
        frame: ClientFrame = _decode_client(data)
        return frame
    except UNDECODABLE as error:
        return _explain(data, error)


def decode_server(data: bytes) -> ServerFrame:
    """A frame from the server; for clients and tests. Raises: msgspec.MsgspecError."""
    frame: ServerFrame = _decode_server(data)
    return frame


def _explain(data: bytes, error: Exception) -> Malformed:
    if isinstance(error, RecursionError):
        raise FrameProblem(Refused("too-deep", "The frame is nested too deeply."), echo_in(data)) from None
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as problem:
        text = str(problem)
        refusal = Refused("bad-json", f"The message is not JSON: {text[:120]}.")
        if "depth limit" in text:
            refusal = Refused("too-deep", "The frame is nested too deeply.")
        elif "infinity" in text:
            refusal = Refused("bad-json", "A number is too large for a double.")
        elif "surrogate" in text:
            refusal = Refused("bad-json", f"A string holds half of a surrogate pair: {text[:120]}.")
        raise FrameProblem(refusal, echo_in(data)) from None
    if not isinstance(value, dict):
        raise FrameProblem(Refused("bad-json", "A frame is one JSON object."), {})
    echo = echo_of(value)
    kind = value.get("type")
    if not isinstance(kind, str):
        raise FrameProblem(Refused("bad-frame", "A frame has a type, a string.", pointer="/type"), echo)
    if kind not in TYPES:
        raise FrameProblem(
            Refused("unknown-type", f"There is no frame of type {kind[:64]!r}.", pointer="/type"), echo
        )
    sentence, pointer = _sentence(str(error))
    refusal = Refused("bad-frame", sentence, pointer=pointer)
    chat, owner = echo.get("chat"), OwnerName(**echo.get("owner", {}))
    named = chat if isinstance(chat, str) else owner_text(owner)
    if kind in WRITES and named and "op" in echo:
        for envelope in ("id", "chat", "owner"):
            value.pop(envelope, None)
        try:
            body = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
        except TypeError:
            # orjson writes at most 254 levels.
            raise FrameProblem(Refused("too-deep", "The frame is nested too deeply."), echo) from None
        malformed = Malformed("", "bad-frame", sentence, pointer, body, echo.get("id"), echo["op"])
        if isinstance(chat, str) or isinstance(owner.chat, str):
            malformed.chat = named
        else:
            malformed.owner = owner
        return malformed
    raise FrameProblem(refusal, echo)


def _sentence(text: str) -> tuple[str, str | None]:
    """msgspec's complaint as a sentence of ours, and its path as a JSON pointer."""
    match = _AT.search(text)
    pointer = None
    if match:
        text = text[: match.start()]
        steps = [name or index for name, index in _STEP.findall(match.group(1))]
        pointer = "".join("/" + step for step in steps if step != "...")
    missing = re.fullmatch(r"Object missing required field `([^`]+)`", text)
    if missing:
        return f"The field {missing.group(1)!r} is missing.", f"{pointer or ''}/{missing.group(1)}"
    return text.replace("`", "'")[:200] + ".", pointer


def echo_of(value: dict[str, Any]) -> dict[str, Any]:
    """`id`, `op`, `chat` and `owner` of a JSON object, where they have the right type."""
    echo: dict[str, Any] = {}
    request_id = value.get("id")
    if type(request_id) is int and 0 <= request_id <= WIRE_INTEGER_MAX:
        echo["id"] = request_id
    op = value.get("op")
    if type(op) is int and 1 <= op <= WIRE_INTEGER_MAX:
        echo["op"] = op
    chat = value.get("chat")
    if isinstance(chat, str) and len(chat) <= 1024:
        echo["chat"] = chat
    owner = value.get("owner")
    if isinstance(owner, dict) and all(isinstance(name, str) and len(name) <= 1024 for name in owner.values()):
        echo["owner"] = {key: owner[key] for key in ("chat", "character", "preset") if key in owner}
    return echo


def echo_in(data: bytes) -> dict[str, Any]:
    """What a message that is refused as a whole said of itself, so that its sender knows which request it was.

    The standard library reads half surrogate pairs, NaN and any number; what it cannot read says nothing.
    """
    try:
        value = json.loads(data)
    except RecursionError:
        return _echo_of_oversize(data)
    except ValueError:
        return {}
    if not isinstance(value, dict):
        return {}
    echo = echo_of(value)
    names = {"chat": [echo.get("chat", "")], "owner": echo.get("owner", {}).values()}
    for member, texts in names.items():
        if any(not _is_text(text) for text in texts):
            del echo[member]
    return echo


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_EARLY = re.compile(rb'"(id|op)"\s*:\s*(\d{1,16})\b')


def _echo_of_oversize(data: bytes) -> dict[str, Any]:
    """The request number and op of a frame too large to be parsed, when they stand at its beginning."""
    return {match.group(1).decode(): int(match.group(2)) for match in _EARLY.finditer(data[:512])}


# -- frames to the client --------------------------------------------------------------------------------------------


def chat_json(chat: str) -> bytes:
    """`"chat":"..."`: the owner member of answers and broadcasts."""
    return b'"chat":' + encode(chat)


def owner_json(owner: OwnerName) -> bytes:
    """`"owner":{...}`: the owner member of answers to state frames."""
    return b'"owner":' + encode(owner)


def owner_member(text: str) -> bytes:
    """The owner member of what is told to everybody: `"chat":"..."`, or `"owner":{...}` of an owner without messages.

    `text` is the owner's one text (`requests.owner_text`).
    """
    owner = owner_named(text)
    return chat_json(text) if isinstance(owner.chat, str) else owner_json(owner)


def of_owner(frame: msgspec.Struct, member: bytes) -> bytes:
    """A frame without its owner, with `member` put in."""
    return encode(frame)[:-1] + b"," + member + b"}"


def answer(kind: str, request_id: int | None, owner: bytes, op: int, body: bytes, duplicate: bool = False) -> bytes:
    """An `ack`, `conflict` or `error` for an op. `owner` is from `chat_json` or `owner_json`."""
    return b'{"type":"%b","id":%b,%b,"op":%d,%b%b}' % (
        kind.encode(), b"null" if request_id is None else b"%d" % request_id, owner, op, body,
        b',"duplicate":true' if duplicate else b"",
    )


def error(refusal: Refused, echo: dict[str, Any]) -> bytes:
    """An `error` with what the request said of itself."""
    frame: dict[str, Any] = {
        "type": "error", "id": echo.get("id"), "code": refusal.code, "message": refusal.message,
        "retry": refusal.retry,
    }
    for key in ("op", "chat", "owner"):
        if key in echo:
            frame[key] = echo[key]
    if refusal.pointer is not None:
        frame["pointer"] = refusal.pointer
    frame.update(refusal.details or {})
    return encode(frame)


def integrity(owner: bytes, core: bytes) -> bytes:
    """A broadcast: `owner` from `owner_member`, `core` of the commit."""
    return b'{"type":"integrity",%b,%b}' % (owner, core)


def opened(
    frame: Opened, metadata: bytes | None = None, messages: list[bytes] | None = None, header: bytes | None = None
) -> bytes:
    """An `opened`; metadata, messages and header are put in as they are."""
    head = encode(frame)
    if header is not None:
        head = head[:-1] + b',"header":' + header + b"}"
    if metadata is not None:
        head = head[:-1] + b',"metadata":' + metadata + b"}"
    if messages is not None:
        head = head[:-1] + b',"messages":[' + b",".join(messages) + b"]}"
    return head


def snapshot_part(chat: bytes, part: int, of: int, messages: list[bytes]) -> bytes:
    """Messages `part` (from 1) of `of`."""
    return b'{"type":"snapshot-part",%b,"part":%d,"of":%d,"messages":[%b]}' % (chat, part, of, b",".join(messages))

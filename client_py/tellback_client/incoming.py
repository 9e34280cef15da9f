"""What comes from the server: bytes to a frame, and which request an error answers that names none.

Rules of this module:
- A frame of a type that nobody here knows is nothing; a broken one of a known type ends the connection.
- No request waits for ever: an error whose request the server could not read belongs to the one that waits alone.
"""

from __future__ import annotations

import msgspec
import orjson

from tellback_protocol.codec import SERVER_TYPES, decode_server
from tellback_protocol.frames import Error, ServerFrame

from .errors import ProtocolViolation
from .subscription import Subscription

__all__ = ["frame_in", "is_of_generation", "is_unnamed", "request_of"]

UNREADABLE = frozenset(("bad-json", "bad-frame", "too-large", "too-deep", "number-range", "unknown-type"))
"""Codes of errors about a frame that the server may have read nothing of."""


def frame_in(data: bytes) -> ServerFrame | None:
    """The frame in a text message; None for one of a later protocol. Raises: ProtocolViolation."""
    try:
        return decode_server(data)
    except msgspec.MsgspecError as error:
        problem = error
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise ProtocolViolation("the server sent what is no JSON") from None
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in SERVER_TYPES:
        return None
    raise ProtocolViolation(f"the server sent a broken {str(kind)[:32]} frame: {problem}")


def is_unnamed(frame: Error) -> bool:
    """True for an error that answers a request of which the server could not read the number."""
    return not is_of_generation(frame) and frame.id is None and frame.retry == "never" and frame.code in UNREADABLE


def is_of_generation(frame: Error) -> bool:
    """True for an error that answers text, attaching or an acknowledgement: these have no number."""
    return frame.id is None and isinstance(frame.generation, str) and isinstance(frame.chat, str)


def request_of(frame: Error, subscription: Subscription | None, waiting: list[int]) -> int | None:
    """The number of the request that an unnamed error answers; `waiting` are those without an answer. None: unknown."""
    if subscription is not None and isinstance(frame.op, int):
        pending = subscription.lane.by_number(frame.op)
        if pending is not None:
            return pending.request_id
    return waiting[0] if len(waiting) == 1 else None

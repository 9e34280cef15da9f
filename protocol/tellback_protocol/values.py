"""JSON values and their bytes: what is accepted from the wire, and how users' old lines are read and served.

Rules of this module:
- From the wire: strict. No NaN, no half surrogates, no integer beyond 64 bits, nesting within the limit (BEHAVIOUR W4).
- From a user's file: lenient. Whatever the standard library can read is kept as it stands (BEHAVIOUR F5).
- Of duplicate keys the last one counts, for every reader.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec
import orjson

from .errors import Refused

DEPTH_MAX = 64
INTEGER_MIN = -(2**63)
INTEGER_MAX = 2**64 - 1

# Digits become 0, opening brackets {, E becomes e, CR becomes LF, so that one pass serves all screens below.
_SHAPE = bytes.maketrans(b"123456789[E\r", b"000000000{e\n")
_SHAPELESS = bytes(sorted(set(range(256)) - set(b'0123456789[{eE "-.:,\r\n')))
"""What may be left out of a shape: it can only bring digits together that were apart."""
_LONG_DIGITS = b"0" * 19
_LARGE_EXPONENT = b"0e000"
"""A double ends at 1e308: beyond it is only what has three digits of exponent, or so many others that they are long."""

OBJECT = b'{"'
"""How an object with members begins when nobody put spaces into it."""

UNDECODABLE: Final = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
"""What a decoder of msgspec raises for bytes that are not what it decodes."""


class NestedTooDeeply(ValueError):
    """Stored JSON that Python cannot walk."""


def read_payload(data: bytes, pointer: str, depth_max: int = DEPTH_MAX) -> Any:
    """The value of a payload from the wire.

    Raises: Refused `bad-json`, `number-range` or `too-deep`, with `pointer` to the frame's field.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        text = str(error)
        if "depth limit" in text:
            raise Refused("too-deep", "The payload is nested far too deeply.", pointer=pointer) from None
        if "infinity" in text:
            raise Refused("number-range", "A number is too large for a double.", pointer=pointer) from None
        raise Refused("bad-json", f"The payload is not JSON: {text[:120]}.", pointer=pointer) from None
    # Cheap screens first: only a payload that could break a limit pays for a walk.
    shape = data.translate(_SHAPE)
    if shape.count(b"{") > depth_max and depth(value, depth_max + 1) > depth_max:
        raise Refused("too-deep", f"The payload is nested deeper than {depth_max} levels.", pointer=pointer)
    if _LONG_DIGITS in shape:
        _check_integers(data, pointer)
    return value


class _Identified(msgspec.Struct):
    id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode_identified = msgspec.json.Decoder(_Identified).decode


def anonymous_objects(payloads: list[bytes], depth_max: int = DEPTH_MAX) -> int:
    """How many of the payloads are `is_anonymous_object`, from the first on: what they share is looked at once."""
    if not _is_harmless(b"".join(payloads), depth_max + len(payloads) - 1):
        # Somebody's: whose, is found out one by one.
        odd = (n for n, payload in enumerate(payloads) if not is_anonymous_object(payload, depth_max))
        return next(odd, len(payloads))
    count = 0
    try:
        for payload in payloads:
            if _decode_identified(payload).id is not msgspec.UNSET:
                break
            count += 1
    except UNDECODABLE:
        pass
    return count


def is_anonymous_object(payload: bytes, depth_max: int = DEPTH_MAX) -> bool:
    """Whether a payload, which begins as an OBJECT, is one without an `id` that `read_payload` takes, seen at a glance:
    False for one that looks odd, whether it is one or not. A fraction of the time of `read_payload`.

    msgspec checks all of JSON but depth and the size of numbers.
    """
    try:
        return _is_harmless(payload, depth_max) and _decode_identified(payload).id is msgspec.UNSET
    except UNDECODABLE:
        return False


def _is_harmless(data: bytes, brackets_max: int) -> bool:
    """Whether nothing in it can be odd but what msgspec tells."""
    shape = data.translate(_SHAPE, _SHAPELESS)
    # What is left when a character is taken out tells its count in a third of the time of `count`.
    return (
        len(shape) - len(shape.replace(b"{", b"")) <= brackets_max
        and shape.find(b"\n") < 0 and shape.find(_LARGE_EXPONENT) < 0 and shape.find(_LONG_DIGITS) < 0
    )


def has_long_digits(data: bytes) -> bool:
    """True when 19 digits stand together: perhaps an integer of over 64 bits. Cheaper than a regular expression."""
    return _LONG_DIGITS in data.translate(_SHAPE)


def _check_integers(data: bytes, pointer: str) -> None:
    def integer(text: str) -> int:
        # Python refuses to convert over 4,300 digits, so the length decides first.
        if len(text) > 21 or not INTEGER_MIN <= int(text) <= INTEGER_MAX:
            raise Refused("number-range", "An integer has more than 64 bits.", pointer=pointer)
        return 0

    json.loads(data, parse_int=integer)


def depth(value: Any, limit: int) -> int:
    """Levels of nesting, counted up to `limit`; without recursion."""
    level = [value]
    levels = 0
    while level and levels < limit:
        deeper: list[Any] = []
        containers = False
        for item in level:
            if isinstance(item, dict):
                containers = True
                deeper.extend(item.values())
            elif isinstance(item, list):
                containers = True
                deeper.extend(item)
        if not containers:
            break
        levels += 1
        level = deeper
    return levels


def loads(data: bytes) -> Any:
    """The value of bytes that are already stored. Exact for every integer; half surrogates become one character each.

    Raises: ValueError when the standard library cannot read it either.
    """
    if not has_long_digits(data):
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError:
            pass
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise NestedTooDeeply("nested too deeply") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def dumps(value: Any) -> bytes:
    """Compact JSON. What orjson refuses (an old half surrogate, an integer of over 64 bits) goes the slow way."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode()


_HALF_SURROGATE_ESCAPE = re.compile(
    rb"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)


def servable(line: bytes) -> bytes:
    """`line` with every half surrogate replaced by U+FFFD, and not one other byte changed."""

    def replace(match: re.Match[bytes]) -> bytes:
        found = match.group()
        return rb"\ufffd" if len(found) == 6 else found

    return _HALF_SURROGATE_ESCAPE.sub(replace, line)


def equal(left: Any, right: Any) -> bool:
    """Equality of JSON values (RFC 6902 section 4.6): numbers by value, and true is not 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict):
        return (
            isinstance(right, dict)
            and left.keys() == right.keys()
            and all(equal(value, right[key]) for key, value in left.items())
        )
    if isinstance(left, list):
        return (
            isinstance(right, list)
            and len(left) == len(right)
            and all(equal(one, other) for one, other in zip(left, right, strict=True))
        )
    if isinstance(left, (int, float)):
        return isinstance(right, (int, float)) and left == right
    return type(left) is type(right) and bool(left == right)

"""What a caller hands over to be stored, as JSON; checked before anything is queued.

Rules of this module:
- What the server would refuse as unreadable (BEHAVIOUR W4) is refused here, with a pointer to the place; a write that
  cannot be stored takes no number and holds up no other (R18, R23).
- Nothing is altered in silence: NaN does not become null.
- A value that orjson writes as it is pays for one screen of its bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson

from tellback_protocol.values import DEPTH_MAX, INTEGER_MAX, INTEGER_MIN, NestedTooDeeply, depth, dumps, loads

from .errors import RefusedError, refused

__all__ = ["payload", "text", "value_of"]


def payload(value: Any, pointer: str) -> bytes:
    """Compact JSON of `value`, which stands at `pointer` in the request.

    Raises: RefusedError `bad-json`, `number-range` or `too-deep`; TypeError for what is no JSON at all.
    """
    try:
        data = orjson.dumps(value)
    except TypeError:
        flaw = _flaw(value, pointer, 0)
        if flaw is not None:
            raise flaw from None
        data = dumps(value)
    # orjson writes NaN and the infinities as null.
    if b"null" in data:
        flaw = _flaw(value, pointer, 0)
        if flaw is not None:
            raise flaw
    if data.count(b"{") + data.count(b"[") > DEPTH_MAX and depth(orjson.loads(data), DEPTH_MAX + 1) > DEPTH_MAX:
        raise _too_deep(pointer)
    return data


def value_of(value: Any) -> Any:
    """A copy of `value` as JSON holds it. What a user's file held before may be in it; only what is no number at all is
    refused. Raises: RefusedError `bad-json`, `too-deep`; TypeError for what is no JSON at all.
    """
    try:
        data = dumps(value)
        if b"null" in data or b"NaN" in data or b"Infinity" in data:
            flaw = _flaw(value, "", 0, only_numbers=True)
            if flaw is not None:
                raise flaw
        return loads(data)
    except (RecursionError, NestedTooDeeply):
        raise _too_deep("") from None


def text(value: str, pointer: str) -> str:
    """A name or an id as it is. Raises: RefusedError `bad-json` when it holds half of a surrogate pair."""
    flaw = _flaw(value, pointer, 0)
    if flaw is not None:
        raise flaw
    return value


def _flaw(value: Any, pointer: str, level: int, *, only_numbers: bool = False) -> RefusedError | None:
    """What is wrong with the first value in `value` that the wire cannot carry; None when nothing is."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            if only_numbers:
                return None
            return refused("bad-json", "The text holds half of a surrogate pair (a cut emoji).", pointer=pointer)
    elif isinstance(value, float):
        if not math.isfinite(value):
            return refused("bad-json", f"{value!r} is no JSON.", pointer=pointer)
    elif isinstance(value, int) and not isinstance(value, bool):
        if not only_numbers and not INTEGER_MIN <= value <= INTEGER_MAX:
            return refused("number-range", "An integer has more than 64 bits.", pointer=pointer)
    elif isinstance(value, (Mapping, list, tuple)):
        if level >= DEPTH_MAX and not only_numbers:
            return _too_deep(pointer)
        if isinstance(value, Mapping):
            inner = [(_step(key), key, item) for key, item in value.items()]
        else:
            inner = [(str(index), None, item) for index, item in enumerate(value)]
        for step, key, item in inner:
            found = None if key is None else _flaw(key, f"{pointer}/{step}", level + 1, only_numbers=only_numbers)
            found = found or _flaw(item, f"{pointer}/{step}", level + 1, only_numbers=only_numbers)
            if found is not None:
                return found
    return None


def _step(key: Any) -> str:
    return str(key).encode("utf-8", "replace").decode().replace("~", "~0").replace("/", "~1")


def _too_deep(pointer: str) -> RefusedError:
    return refused("too-deep", f"The value is nested deeper than {DEPTH_MAX} levels.", pointer=pointer)

"""RFC 6902, atomic, with budgets, and with the way back.

Rules of this module:
- `apply_patch` works on a value that the caller owns and may throw away; it never touches a shared one (BEHAVIOUR P1).
- The first operation that does not fit refuses the whole patch and names its index (BEHAVIOUR P2).
- Growth is bounded before it happens: 24 copy operations can otherwise fill a machine's memory (RELIABILITY fact 5).
- The evaluator is our own because it returns the inverse and is strict where `jsonpatch` is lenient (`true` is not 1,
  `01` is no index); `jsonpatch` makes our diffs, and a fuzz test holds the two against each other.
"""

from __future__ import annotations

from typing import Any, Final

import jsonpatch

from .errors import Refused
from .values import depth, dumps, equal

POINTER_TOKENS_MAX = 64
POINTER_CHARS_MAX = 4096
COPIED_NODES_MAX = 200_000
"""Values that all copy operations of one patch may make: about 20 ms of work."""

RESULT_DEPTH_MAX = 128
"""A value of 64 levels behind a path of 64 parts; orjson writes at most 254."""

_MISSING: Final = object()
Operation = dict[str, Any]


def parse_pointer(pointer: str, where: str) -> list[str]:
    """The reference tokens of an RFC 6901 pointer.

    Raises: Refused `patch-illegal`.
    """
    if not pointer:
        return []
    if len(pointer) > POINTER_CHARS_MAX:
        raise Refused("patch-too-large", f"A path has at most {POINTER_CHARS_MAX} characters.", pointer=where)
    if pointer[0] != "/":
        raise Refused("patch-illegal", "A path is empty or begins with a slash.", pointer=where)
    tokens = pointer[1:].split("/")
    if len(tokens) > POINTER_TOKENS_MAX:
        raise Refused("patch-too-large", f"A path has at most {POINTER_TOKENS_MAX} parts.", pointer=where)
    if "~" in pointer:
        for token in tokens:
            if "~" in token.replace("~0", "").replace("~1", ""):
                raise Refused("patch-illegal", "In a path, ~ stands only in ~0 and ~1.", pointer=where)
        tokens = [token.replace("~1", "/").replace("~0", "~") for token in tokens]
    return tokens


def join_pointer(tokens: list[str]) -> str:
    """The pointer of reference tokens."""
    return "".join("/" + token.replace("~", "~0").replace("/", "~1") for token in tokens)


def check_operations(operations: object, where: str, operations_max: int = 10_000) -> list[Operation]:
    """The operations, each of a known kind with the members it needs.

    Raises: Refused `patch-illegal` or `patch-too-large`.
    """
    if not isinstance(operations, list):
        raise Refused("patch-illegal", "A patch is an array of operations.", pointer=where)
    if len(operations) > operations_max:
        raise Refused(
            "patch-too-large", f"A patch has at most {operations_max} operations, this one has {len(operations)}.",
            pointer=where,
        )
    for index, operation in enumerate(operations):
        at = f"{where}/{index}"
        if not isinstance(operation, dict):
            raise Refused("patch-illegal", "An operation is an object.", pointer=at)
        kind = operation.get("op")
        if kind in ("add", "replace", "test"):
            if "value" not in operation:
                raise Refused("patch-illegal", f"{kind} needs a value.", pointer=at)
        elif kind in ("move", "copy"):
            if "from" not in operation:
                raise Refused("patch-illegal", f"{kind} needs from.", pointer=at)
        elif kind != "remove":
            raise Refused("patch-illegal", "op is add, remove, replace, move, copy or test.", pointer=f"{at}/op")
        if "path" not in operation:
            raise Refused("patch-illegal", "An operation needs a path.", pointer=at)
        if not isinstance(operation["path"], str):
            raise Refused("patch-illegal", "A path is a string.", pointer=f"{at}/path")
        if kind in ("move", "copy") and not isinstance(operation["from"], str):
            raise Refused("patch-illegal", "A path is a string.", pointer=f"{at}/from")
    return operations


_CONTAINERS = (dict, list)


class Patched:
    """The result of a patch: the new `value`, and `undo`, operations that lead back to the old one."""

    __slots__ = ("copied_nodes", "undo", "value")

    def __init__(self, value: Any, undo: list[Operation], copied_nodes: int) -> None:
        self.value = value
        self.undo = undo
        self.copied_nodes = copied_nodes
        """How much of `copied_nodes_max` was used."""


def apply_patch(
    value: Any, operations: list[Operation], where: str = "/patch", *, copied_nodes_max: int = COPIED_NODES_MAX
) -> Patched:
    """Apply checked operations to `value` in place; on a refusal `value` is half done and must be thrown away.

    Values of `operations` become part of the result, and later operations may change them there.

    Raises: Refused `patch-failed` (an operation does not fit), `patch-illegal` (a bad path), `patch-too-large`,
    `too-deep` (the result, when operations moved or copied).
    Cost: what the operations touch, not the size of the value, except for `move` and `copy` of large parts.
    """
    try:
        patched = _apply(value, operations, where, copied_nodes_max)
        relocated = any(operation["op"] in ("move", "copy") for operation in operations)
        if relocated and depth(patched.value, RESULT_DEPTH_MAX + 1) > RESULT_DEPTH_MAX:
            raise Refused("too-deep", f"The result is nested deeper than {RESULT_DEPTH_MAX} levels.", pointer=where)
        return patched
    except RecursionError:
        # Copies and moves can nest a value deeper than Python compares or copies, long before the end.
        raise Refused("too-deep", "The patch nests values too deeply.", pointer=where) from None


def _apply(value: Any, operations: list[Operation], where: str, copied_nodes_max: int) -> Patched:
    undo: list[Operation] = []
    copied = 0
    for index, operation in enumerate(operations):
        at = f"{where}/{index}"
        kind = operation["op"]
        tokens = parse_pointer(operation["path"], f"{at}/path")
        if kind == "test":
            if not equal(_get(value, tokens, at), operation["value"]):
                raise Refused("patch-failed", "The test does not hold.", pointer=at)
            continue
        if kind == "remove":
            value, old = _remove(value, tokens, at)
            undo.append({"op": "add", "path": operation["path"], "value": old})
        elif kind == "replace":
            value, old = _replace(value, tokens, operation["value"], at)
            undo.append({"op": "replace", "path": operation["path"], "value": old})
        elif kind == "add":
            value = _add(value, tokens, operation["value"], at, undo)
        else:
            source = parse_pointer(operation["from"], f"{at}/from")
            if kind == "move" and tokens == source:
                _get(value, source, at)
                continue
            if kind == "move" and tokens[: len(source)] == source:
                raise Refused("patch-failed", "A value cannot be moved into itself.", pointer=at)
            upwards = source[: len(tokens)] == tokens
            if kind == "copy" or upwards:
                original = _get(value, source, at)
                copied += count_nodes(original, copied_nodes_max - copied + 1)
                if copied > copied_nodes_max:
                    raise Refused("patch-too-large", "The copies of this patch exceed its budget.", pointer=at)
            if kind == "copy":
                value = _add(value, tokens, deep_copy(original), at, undo)
            elif upwards:
                value = _move_upwards(value, source, tokens, at, undo)
            else:
                value = _move(value, source, tokens, at, undo)
    undo.reverse()
    return Patched(value, undo, copied)


def make_patch(old: Any, new: Any) -> list[Operation]:
    """RFC 6902 operations that lead from `old` to `new`. Cost: the size of both values."""
    operations: list[Operation] = jsonpatch.make_patch(old, new).patch
    return operations


def difference(old: Any, new: Any, path: str = "") -> list[Operation]:
    """As `make_patch`, exact by construction: members one by one, and of a list the middle that differs.

    Cost: the size of both values; the operations hold only what changed.
    """
    operations: list[Operation] = []
    _difference(old, new, path, operations)
    return operations


def _difference(old: Any, new: Any, path: str, operations: list[Operation]) -> None:
    if old is new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old:
            if key not in new:
                operations.append({"op": "remove", "path": path + join_pointer([key])})
        for key, value in new.items():
            inner = path + join_pointer([key])
            if key in old:
                _difference(old[key], value, inner, operations)
            else:
                operations.append({"op": "add", "path": inner, "value": value})
    elif isinstance(old, list) and isinstance(new, list):
        shorter = min(len(old), len(new))
        start = 0
        while start < shorter and dumps(old[start]) == dumps(new[start]):
            start += 1
        end = 0
        while end < shorter - start and dumps(old[-1 - end]) == dumps(new[-1 - end]):
            end += 1
        inside = shorter - end - start
        for index in range(start, start + inside):
            _difference(old[index], new[index], f"{path}/{index}", operations)
        for index in range(len(old) - end - 1, start + inside - 1, -1):
            operations.append({"op": "remove", "path": f"{path}/{index}"})
        for index in range(start + inside, len(new) - end):
            operations.append({"op": "add", "path": f"{path}/{index}", "value": new[index]})
    elif type(old) is not type(new) or not equal(old, new):
        operations.append({"op": "replace", "path": path, "value": new})


def merge_to_patch(target: Any, merge: Any, path: str = "") -> list[Operation]:
    """RFC 7386 merge patch, written out as RFC 6902 operations on `target`. Cost: the size of `merge`."""
    if not isinstance(merge, dict) or not isinstance(target, dict):
        return [{"op": "replace", "path": path, "value": _without_nulls(merge)}]
    operations: list[Operation] = []
    for key, wanted in merge.items():
        inner = f"{path}/{key.replace('~', '~0').replace('/', '~1')}"
        if wanted is None:
            if key in target:
                operations.append({"op": "remove", "path": inner})
        elif isinstance(wanted, dict) and isinstance(target.get(key), dict):
            operations.extend(merge_to_patch(target[key], wanted, inner))
        elif key not in target or not equal(target[key], wanted):
            operations.append({"op": "add", "path": inner, "value": _without_nulls(wanted)})
    return operations


def _without_nulls(value: Any) -> Any:
    """RFC 7386 section 2: a patch that lands where there was no object loses its nulls."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return value


def count_nodes(value: Any, limit: int) -> int:
    """Values inside `value`, itself included, counted up to `limit`. A string counts a node for every 64 characters."""
    count = 0
    waiting: list[Any] = [(value,)]
    while waiting and count < limit:
        items = waiting.pop()
        count += len(items)
        for item in items:
            kind = item.__class__
            if kind is str:
                count += len(item) >> 6
            elif kind is dict:
                waiting.append(item.values())
            elif kind is list:
                waiting.append(item)
    return count


def deep_copy(value: Any) -> Any:
    """A copy of a JSON value; strings and numbers are shared. Depth is bounded by the payload's limit."""
    # Scalars are looked at in place: they are most of a document, and a call costs more than they do.
    if isinstance(value, dict):
        return {
            key: deep_copy(inner) if inner.__class__ in _CONTAINERS else inner for key, inner in value.items()
        }
    if isinstance(value, list):
        return [deep_copy(inner) if inner.__class__ in _CONTAINERS else inner for inner in value]
    return value


def _index(token: str, size: int, at: str) -> int:
    """An array index below `size` (RFC 6901 section 4: digits without a leading zero)."""
    if not (token.isascii() and token.isdigit()) or (token[0] == "0" and len(token) > 1):
        raise Refused("patch-failed", f"{token[:32]!r} is no index of an array.", pointer=at)
    if len(token) > 12 or int(token) >= size:
        raise Refused("patch-failed", f"The array has no index {token[:32]}.", pointer=at)
    return int(token)


def _step(value: Any, token: str, at: str) -> Any:
    if isinstance(value, dict):
        found = value.get(token, _MISSING)
        if found is _MISSING:
            raise Refused("patch-failed", f"There is no member {token[:64]!r}.", pointer=at)
        return found
    if isinstance(value, list):
        return value[_index(token, len(value), at)]
    raise Refused("patch-failed", f"{token[:64]!r} points into a value that is no object or array.", pointer=at)


def _get(value: Any, tokens: list[str], at: str) -> Any:
    for token in tokens:
        value = _step(value, token, at)
    return value


def _remove(value: Any, tokens: list[str], at: str) -> tuple[Any, Any]:
    if not tokens:
        return None, value
    parent = _get(value, tokens[:-1], at)
    last = tokens[-1]
    old = _step(parent, last, at)
    if isinstance(parent, dict):
        del parent[last]
    else:
        del parent[int(last)]
    return value, old


def _replace(value: Any, tokens: list[str], new: Any, at: str) -> tuple[Any, Any]:
    if not tokens:
        return new, value
    parent = _get(value, tokens[:-1], at)
    last = tokens[-1]
    old = _step(parent, last, at)
    parent[last if isinstance(parent, dict) else int(last)] = new
    return value, old


def _move(value: Any, source: list[str], tokens: list[str], at: str, undo: list[Operation]) -> Any:
    """The way back moves too: the moved value itself may be changed by later operations."""
    value, moved = _remove(value, source, at)
    added: list[Operation] = []
    value = _add(value, tokens, moved, at, added)
    (back,) = added
    if back["op"] == "replace":
        undo.append({"op": "add", "path": back["path"], "value": back["value"]})
    undo.append({"op": "move", "from": back["path"], "path": join_pointer(source)})
    return value


def _move_upwards(value: Any, source: list[str], tokens: list[str], at: str, undo: list[Operation]) -> Any:
    """A move to where something around the value stands: no move leads back into it, so the way back holds a copy."""
    value, moved = _remove(value, source, at)
    undo.append({"op": "add", "path": join_pointer(source), "value": deep_copy(moved)})
    return _add(value, tokens, moved, at, undo)


def _add(value: Any, tokens: list[str], new: Any, at: str, undo: list[Operation]) -> Any:
    path = join_pointer(tokens)
    if not tokens:
        undo.append({"op": "replace", "path": "", "value": value})
        return new
    parent = _get(value, tokens[:-1], at)
    last = tokens[-1]
    if isinstance(parent, dict):
        if last in parent:
            undo.append({"op": "replace", "path": path, "value": parent[last]})
        else:
            undo.append({"op": "remove", "path": path})
        parent[last] = new
    elif isinstance(parent, list):
        position = len(parent) if last == "-" else _index(last, len(parent) + 1, at)
        undo.append({"op": "remove", "path": join_pointer([*tokens[:-1], str(position)])})
        parent.insert(position, new)
    else:
        raise Refused("patch-failed", f"{last[:64]!r} points into a value that is no object or array.", pointer=at)
    return value

"""What a write touches, and whether the indexes in it still mean what they meant at its base.

    m:<message id>  M:<metadata path>  s:<namespace>  a  appended at the end  x  a message named by its index

Rules of this module (BEHAVIOUR B5, B9, B10):
- An index is a view of the order that the base showed; a write that names messages by index is carried out only when
  each of its indexes means the same message now.
- `"*"` is for patches that overwrite nothing that they have not tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Raw

from .errors import Refused
from .frames import Limits
from .patch import Operation, apply_patch, join_pointer
from .requests import BatchedMetadataUpdate, MetadataUpdate
from .values import read_payload
from .work import operations_of


def overwrites_only_tested(value: Any, operations: list[Operation]) -> bool:
    """True when every path that is replaced, removed or read was tested before. `value`, a copy, is used up."""
    tested: set[str] = set()
    for operation in operations:
        kind = operation["op"]
        if kind == "test":
            tested.add(operation["path"])
            continue
        read = operation["path"] if kind in ("replace", "remove") else operation.get("from")
        if read is not None and kind != "add" and read not in tested:
            return False
    try:
        undo = apply_patch(value, operations).undo
    except Refused:
        # It will not be carried out, and its own refusal says more.
        return True
    # What the way back puts there again was overwritten, whatever the operation is called.
    return all(back["path"] in tested for back in undo if back["op"] in ("add", "replace"))


def chat_targets(order: Sequence[str], operations: list[Operation]) -> tuple[str, ...]:
    """What a patch of the whole chat touches: later operations see what earlier ones did to the order."""
    targets: list[str] = []
    messages: list[str | None] = list(order)
    for operation in operations:
        moved: str | None = None
        for member in ("from", "path"):
            path = operation.get(member)
            if not isinstance(path, str):
                continue
            parts = path.split("/")
            if len(parts) > 1 and parts[1] == "metadata":
                targets.append("M:" + path[len("/metadata"):])
                continue
            index = _index(parts)
            adding = member == "path" and len(parts) == 3 and operation["op"] in ("add", "copy", "move")
            if index is None:
                if adding and parts[2] == "-":
                    messages.append(moved)
                continue
            targets.append("x")
            if adding:
                messages.insert(index, moved)
            elif index < len(messages):
                message = messages[index]
                if message is not None:
                    targets.append(f"m:{message}")
                if len(parts) == 3 and (operation["op"] == "remove" or (member, operation["op"]) == ("from", "move")):
                    moved = messages.pop(index)
    return tuple(targets)


def places_hold(operations: list[Operation], count: int) -> bool:
    """Whether every index of a patch of the whole chat lies among the `count` messages that its base showed, as the
    operations add and take away: behind them stand others' messages now."""
    known = count
    for operation in operations:
        kind = operation["op"]
        for member in ("from", "path"):
            parts = str(operation.get(member, "")).split("/")
            index = _index(parts)
            if index is None:
                continue
            if member == "path" and len(parts) == 3 and kind in ("add", "copy", "move"):
                if index > known:
                    return False
                known += 1
                continue
            if index >= known:
                return False
            if len(parts) == 3 and (kind == "remove" or (member, kind) == ("from", "move")):
                known -= 1
    return True


def metadata_targets(request: MetadataUpdate | BatchedMetadataUpdate, limits: Limits) -> tuple[str, ...]:
    """The metadata paths that a request touches."""
    if isinstance(request.patch, Raw):
        return patched_metadata(operations_of(request.patch, limits))
    if isinstance(request.merge, Raw):
        return merged_metadata(read_payload(bytes(request.merge), "/merge", limits.depth))
    return ("M:",)


def patched_metadata(operations: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The metadata paths that operations touch."""
    members = ("path", "from")
    return tuple(f"M:{operation[member]}" for operation in operations for member in members if member in operation)


def merged_metadata(merge: Any) -> tuple[str, ...]:
    """The metadata paths that a merge touches. Its names decide: a member that is taken away is touched as well."""
    return tuple("M:" + join_pointer([key]) for key in merge) if isinstance(merge, dict) else ("M:",)


def _index(parts: list[str]) -> int | None:
    """The index in a path below `/messages`."""
    if len(parts) < 3 or parts[1] != "messages":
        return None
    digits = parts[2]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 12 else None

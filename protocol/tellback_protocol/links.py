"""Links between chats: by name, as SillyTavern keeps them: `main_chat`, `extra.branches`, `extra.bookmark_link`.

Rules of this module (BEHAVIOUR J8, J12):
- A link is looked for by bytes first: a line that does not hold the name is never parsed.
- Links stand in a message and in each of its swipes; all of them follow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from typing import Any, Final

from .effects import Effect, MetadataEffect, PatchEffect
from .patch import Operation
from .values import dumps, loads
from .work import Work

__all__ = ["MAIN_CHAT", "follow", "holds", "is_all", "spellings"]

MAIN_CHAT: Final = "main_chat"
_LINK: Final = "bookmark_link"
_BRANCHES: Final = "branches"


def spellings(names: Iterable[str]) -> list[bytes]:
    """How a line spells these names, in either of the two ways of writing JSON."""
    return list(dict.fromkeys(
        json.dumps(name, ensure_ascii=plain).encode("utf-8", "surrogatepass")
        for name in names for plain in (True, False)
    ))


def holds(lines: Iterable[bytes], spelled: list[bytes]) -> bool:
    """Whether one of the lines may hold a link to one of the names."""
    return any(name in line for line in lines for name in spelled)


def follow(work: Work, names: Collection[str], to: str) -> None:
    """Whatever leads to a chat by one of `names` leads to it as `to`. Cost: a look at each line."""
    metadata = work.chat.metadata_value()
    if isinstance(metadata, dict) and _is_one(metadata.get(MAIN_CHAT), names):
        operations: list[Operation] = [{"op": "replace", "path": f"/{MAIN_CHAT}", "value": to}]
        work.patch_metadata(dumps(operations), operations, "/metadata")
    spelled = spellings(names)
    for message_id, line in list(work.chat.messages.items()):
        if any(name in line for name in spelled):
            operations = list(_in_message(work.chat.value(message_id), names, to))
            if operations:
                work.patch_message(message_id, dumps(operations), operations, "/message")


_METADATA_LINK: Final = re.compile(f"/{MAIN_CHAT}")
_MESSAGE_LINK: Final = re.compile(rf"(/swipe_info/\d+)?/extra/({_LINK}|{_BRANCHES}/\d+)")


def is_all(effects: Iterable[Effect]) -> bool:
    """Whether these effects change nothing but where links lead."""
    for effect in effects:
        if not isinstance(effect, MetadataEffect | PatchEffect):
            return False
        place = _METADATA_LINK if isinstance(effect, MetadataEffect) else _MESSAGE_LINK
        for operation in loads(bytes(effect.patch)):
            if operation["op"] != "replace" or not place.fullmatch(operation["path"]):
                return False
    return True


def _is_one(value: Any, names: Collection[str]) -> bool:
    return isinstance(value, str) and value in names


def _in_message(message: dict[str, Any], names: Collection[str], to: str) -> Iterable[Operation]:
    yield from _in_extra(message.get("extra"), "/extra", names, to)
    swipes = message.get("swipe_info")
    for index, swipe in enumerate(swipes if isinstance(swipes, list) else []):
        if isinstance(swipe, dict):
            yield from _in_extra(swipe.get("extra"), f"/swipe_info/{index}/extra", names, to)


def _in_extra(extra: Any, path: str, names: Collection[str], to: str) -> Iterable[Operation]:
    if not isinstance(extra, dict):
        return
    if _is_one(extra.get(_LINK), names):
        yield {"op": "replace", "path": f"{path}/{_LINK}", "value": to}
    branches = extra.get(_BRANCHES)
    for index, branch in enumerate(branches if isinstance(branches, list) else []):
        if _is_one(branch, names):
            yield {"op": "replace", "path": f"{path}/{_BRANCHES}/{index}", "value": to}

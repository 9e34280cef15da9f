"""The swipes of a message: alternatives side by side, and the working copy that shows one of them.

    {"mes": "b", "swipe_id": 1, "swipes": ["a", "b"], "swipe_info": [{...}, {"send_date": ..., "extra": {}}]}

Rules of this module (BEHAVIOUR Y1 to Y9):
- `mes`, `send_date`, `gen_started`, `gen_finished` and `extra` of the message are a working copy of the active swipe.
- What stands on disk may be sparse, too short or out of range; it is read as it was meant, and put right only in a
  commit that changes the message anyway.
- Every change is RFC 6902 operations on the message that name what changed, so nobody else needs these rules.
- A message without a text `mes`, or with a `swipes` that is no list, has another shape and is left alone.
"""

from __future__ import annotations

from typing import Any

from .errors import Refused
from .patch import Operation, apply_patch, deep_copy, difference, join_pointer
from .values import equal

INFO_KEYS = ("send_date", "gen_started", "gen_finished", "extra")
"""What of a message belongs to its active swipe, beside the text."""
_COPY_KEYS = ("mes", *INFO_KEYS)
_UNFINISHED = ("", "...")
"""What a front end shows while the text of a new swipe is not there yet."""
_NOTHING: Any = object()


def active(message: dict[str, Any]) -> int:
    """The ordinal of the swipe that is shown. Cost: a step, unless `swipe_id` is out of range."""
    swipes = message.get("swipes")
    if not isinstance(swipes, list) or not swipes:
        return 0
    wanted = _ordinal(message.get("swipe_id"))
    if wanted < len(swipes):
        return wanted
    return len(swipes) if _is_unlisted(message, swipes) else len(swipes) - 1


def count(message: dict[str, Any]) -> int:
    """How many swipes there are; a message without any is its own only one."""
    swipes = message.get("swipes")
    if not isinstance(swipes, list) or not swipes:
        return 1
    return max(len(swipes), active(message) + 1)


def said(message: dict[str, Any], ordinal: int | None) -> tuple[str | None, str | None]:
    """Text and reasoning of a message, or of one of its swipes; None for what is not there."""
    text = next((message[member] for member in ("mes", "content") if isinstance(message.get(member), str)), None)
    info: Any = message
    if ordinal is not None and ordinal != active(message):
        swipes, infos = message.get("swipes"), message.get("swipe_info")
        text = swipes[ordinal] if isinstance(swipes, list) and ordinal < len(swipes) else None
        info = infos[ordinal] if isinstance(infos, list) and ordinal < len(infos) else None
    extra = info.get("extra") if isinstance(info, dict) else None
    reasoning = extra.get("reasoning") if isinstance(extra, dict) else None
    return text if isinstance(text, str) else None, reasoning if isinstance(reasoning, str) else None


def _ordinal(value: object) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _is_unlisted(message: dict[str, Any], swipes: list[Any]) -> bool:
    """True when the working copy behind an out of range `swipe_id` is a text that stands nowhere else: a swipe that was
    saved before it was listed."""
    text = message.get("mes")
    return isinstance(text, str) and text not in _UNFINISHED and text not in swipes


class SwipeChange:
    """A message being changed in place: its `value`, the `operations` that did it, and `undo`, which lead back."""

    __slots__ = ("_clamped", "active", "operations", "undo", "value")

    def __init__(self, value: dict[str, Any]) -> None:
        self.value = value
        self.operations: list[Operation] = []
        self.undo: list[Operation] = []
        self.active = active(value)
        swipes = value.get("swipes")
        self._clamped = bool(swipes) and _ordinal(value.get("swipe_id")) > self.active
        """The working copy belongs to a swipe that is not there and holds nothing of its own."""

    @property
    def count(self) -> int:
        return len(self.value["swipes"])

    def own_copy(self) -> None:
        """The text of the working copy was just written: it is that of the swipe shown now, wherever else it stands."""
        self._clamped = False

    def do(self, *operations: Operation) -> None:
        if operations:
            # What later operations change must neither change the values of earlier ones nor one another.
            self.operations.extend(deep_copy(operation) for operation in operations)
            patched = apply_patch(self.value, [deep_copy(operation) for operation in operations])
            self.value = patched.value
            self.undo[:0] = deep_copy(patched.undo)

    def put(self, path: list[str], value: Any) -> None:
        """Give a member its value; `_NOTHING` takes it away."""
        parent: Any = self.value
        for token in path[:-1]:
            parent = parent[int(token)] if isinstance(parent, list) else parent[token]
        last = path[-1]
        if isinstance(parent, list):
            old = parent[int(last)] if int(last) < len(parent) else _NOTHING
        else:
            old = parent.get(last, _NOTHING)
        pointer = join_pointer(path)
        if value is _NOTHING:
            if old is not _NOTHING:
                self.do({"op": "remove", "path": pointer})
        elif old is _NOTHING:
            self.do({"op": "add", "path": pointer, "value": value})
        else:
            self.do(*difference(old, value, pointer))

    def repair(self) -> None:
        """Put the parallel fields right: texts, as many infos, an ordinal within them."""
        if not self.value.get("swipes"):
            self.put(["swipes"], [self.value["mes"]])
            self.put(["swipe_info"], [self._working_info()])
            self.put(["swipe_id"], 0)
            return
        if self.active == self.count:
            self.put(["swipes", str(self.active)], self.value["mes"])
        for index, text in enumerate(self.value["swipes"]):
            if not isinstance(text, str):
                mine = index == self.active and not self._clamped
                self.put(["swipes", str(index)], self.value["mes"] if mine else "")
        infos = self.value.get("swipe_info")
        if not isinstance(infos, list):
            self.put(["swipe_info"], [self._new_info(index) for index in range(self.count)])
        else:
            for index in range(len(infos) - 1, self.count - 1, -1):
                self.put(["swipe_info", str(index)], _NOTHING)
            for index in range(self.count):
                if index >= len(infos) or not isinstance(infos[index], dict):
                    self.put(["swipe_info", str(index)], self._new_info(index))
        self.put(["swipe_id"], self.active)
        if self._clamped:
            self.load(self.active)
            self._clamped = False

    def _working_info(self) -> dict[str, Any]:
        info = {key: self.value[key] for key in INFO_KEYS if key in self.value}
        info.setdefault("extra", {})
        return info

    def _new_info(self, index: int) -> dict[str, Any]:
        return self._working_info() if index == self.active and not self._clamped else {"extra": {}}

    def write_back(self) -> None:
        """The working copy goes to the active swipe. What the working copy lacks, the swipe keeps."""
        for key in _COPY_KEYS:
            if key in self.value:
                self.mirror(key, self.value[key], self.active)

    def mirror(self, key: str, field: Any, ordinal: int) -> None:
        """A field of the working copy into a swipe."""
        if key == "mes":
            self.put(["swipes", str(ordinal)], field)
        else:
            self.put(["swipe_info", str(ordinal), key], field)

    def load(self, ordinal: int) -> None:
        """The working copy becomes that of a swipe."""
        for key in _COPY_KEYS:
            self.load_field(key, ordinal)
        self.put(["swipe_id"], ordinal)
        self.active = ordinal

    def load_field(self, key: str, ordinal: int) -> None:
        """One field of the working copy from a swipe. A swipe without a date leaves the message its own."""
        if key == "mes":
            self.put(["mes"], self.value["swipes"][ordinal])
            return
        info = self.value["swipe_info"][ordinal]
        if key in info:
            self.put([key], info[key])
        elif key in self.value and key != "send_date":
            self.put([key], {} if key == "extra" else _NOTHING)


# -- requests --------------------------------------------------------------------------------------------------------


def add(message: dict[str, Any], content: dict[str, Any], *, select: bool) -> SwipeChange:
    """One more swipe behind the others. `message` is changed. Raises: Refused `swipe-illegal`."""
    _check_shape(message)
    if not isinstance(content.get("mes"), str):
        raise Refused("swipe-illegal", "The content of a swipe has a text `mes`.", pointer="/content/mes")
    for key, value in content.items():
        pointer = join_pointer(["content", key])
        if key not in _COPY_KEYS:
            raise Refused("swipe-illegal", f"A swipe has no member {key[:64]!r}.", pointer=pointer)
        if key == "extra" and not isinstance(value, dict):
            raise Refused("swipe-illegal", "extra is a JSON object.", pointer=pointer)
    change = SwipeChange(message)
    change.repair()
    change.write_back()
    new = change.count
    change.put(["swipes", str(new)], content["mes"])
    info = {key: content[key] for key in INFO_KEYS if key in content}
    change.put(["swipe_info", str(new)], {"extra": {}, **info})
    if select:
        change.load(new)
    return change


def select(message: dict[str, Any], ordinal: int) -> SwipeChange:
    """Show a swipe; what was edited in the one shown before goes back to it first. `message` is changed.

    Raises: Refused `swipe-illegal`, `swipe-unknown`.
    """
    _check_known(message, ordinal)
    change = SwipeChange(message)
    if message.get("swipes"):
        change.repair()
        change.write_back()
        if ordinal != change.active:
            change.load(ordinal)
    return change


def delete(message: dict[str, Any], ordinal: int) -> SwipeChange:
    """Take a swipe away. `message` is changed. Raises: Refused `swipe-illegal`, `swipe-unknown`, `swipe-last`."""
    _check_known(message, ordinal)
    if count(message) == 1:
        raise Refused("swipe-last", "The only swipe of a message cannot be deleted; delete the message.",
                      pointer="/swipe")
    change = SwipeChange(message)
    change.repair()
    if ordinal != change.active:
        change.write_back()
    change.put(["swipes", str(ordinal)], _NOTHING)
    change.put(["swipe_info", str(ordinal)], _NOTHING)
    if ordinal == change.active:
        change.load(min(ordinal, change.count - 1))
    elif ordinal < change.active:
        change.put(["swipe_id"], change.active - 1)
    return change


def _check_known(message: dict[str, Any], ordinal: int) -> None:
    _check_shape(message)
    if ordinal >= count(message):
        raise Refused(
            "swipe-unknown", f"The message has no swipe {ordinal}: it has {count(message)}.", pointer="/swipe"
        )


def _check_shape(message: dict[str, Any]) -> None:
    if not isinstance(message.get("mes"), str) or not isinstance(message.get("swipes", []), list):
        raise Refused(
            "swipe-illegal", "Swipes need a message with a text `mes`, and `swipes` that is a list if there.",
            pointer="/message",
        )


# -- edits -----------------------------------------------------------------------------------------------------------


def follow(before: dict[str, Any], after: dict[str, Any]) -> SwipeChange | None:
    """What an edit from `before` to `after` has still to do, so that working copy and active swipe are in step; `after`
    is changed. None when the message is of another shape.

    Another `swipe_id` means select. Of a field of the working copy and that of the active swipe, the one that the edit
    changed leads; the working copy, when it changed both.
    """
    swipes = after.get("swipes")
    if not isinstance(swipes, list) or not swipes or not isinstance(after.get("mes"), str):
        return None
    old_swipes = before.get("swipes")
    if not isinstance(old_swipes, list):
        old_swipes = []
    old_active = active(before)
    edited = [key for key in _COPY_KEYS if _differ(before.get(key, _NOTHING), after.get(key, _NOTHING))]
    moved = bool(old_swipes) and _ordinal(before.get("swipe_id")) != _ordinal(after.get("swipe_id"))
    change = SwipeChange(after)
    if moved and change.active == len(swipes) and "mes" not in edited:
        # A swipe that is not there, and nobody wrote a text for it.
        change.active = len(swipes) - 1
    if "mes" in edited and after["mes"] not in _UNFINISHED:
        change.own_copy()
    now = change.active
    led = [
        key for key in _COPY_KEYS
        if key not in edited and (field := _field(after, key, now)) is not _NOTHING
        and _differ(_field(before, key, now), field)
    ]
    kept_text = old_active < len(old_swipes) and old_active < len(swipes) and (
        not _differ(swipes[old_active], old_swipes[old_active])
    )
    change.repair()
    if moved and now != old_active:
        if kept_text:
            # Edits of the swipe shown before that stood in the working copy only.
            for key in _COPY_KEYS:
                if key in before:
                    change.mirror(key, before[key], old_active)
        led = [key for key in _COPY_KEYS if key not in edited]
    for key in led:
        change.load_field(key, now)
    for key in edited:
        change.mirror(key, change.value.get(key, _NOTHING), now)
    return change


def _field(message: dict[str, Any], key: str, ordinal: int) -> Any:
    """A swipe's own value of a field of the working copy."""
    parallel = message.get("swipes" if key == "mes" else "swipe_info")
    if not isinstance(parallel, list) or ordinal >= len(parallel):
        return _NOTHING
    if key == "mes":
        return parallel[ordinal]
    return parallel[ordinal].get(key, _NOTHING) if isinstance(parallel[ordinal], dict) else _NOTHING


def _differ(one: Any, other: Any) -> bool:
    return one is not other and (one is _NOTHING or other is _NOTHING or not equal(one, other))

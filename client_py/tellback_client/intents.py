"""What the user wants: the thing that outlives a request, so that it can be asked again on a changed chat.

    Intent --parts(view)--> requests --to_write--> one frame

Rules of this module:
- An intent given as a function is carried out again on what is there now; it sees only its own document
  (SDK ergonomics: `update(ns, fn)` with automatic rebase).
- An intent given as data is repeated only when what it touches is still as it was when it was asked; otherwise it is a
  conflict, for a person to decide.
- Asking for nothing new makes no request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec
from msgspec import UNSET, Raw

from tellback_protocol.effects import Effect
from tellback_protocol.errors import Refused
from tellback_protocol.past import overlap, targets_of
from tellback_protocol.patch import apply_patch, make_patch
from tellback_protocol.requests import (
    Append,
    Batch,
    Batched,
    BatchedAppend,
    BatchedDelete,
    BatchedFloorUpdate,
    BatchedMetadataUpdate,
    BatchedPatch,
    BatchedStateDelete,
    BatchedStateUpdate,
    BatchedSwipe,
    Delete,
    DocumentWrite,
    FloorUpdate,
    MetadataUpdate,
    OwnerDelete,
    OwnerRename,
    Patch,
    StateDelete,
    StateUpdate,
    Swipe,
    owner_named,
)
from tellback_protocol.stream import Stream
from tellback_protocol.values import dumps, equal, loads

from .errors import refused
from .own_write import LiveWrite, OwnWrite
from .payload import payload, value_of
from .replica import copied, show

Json = Any
Message = dict[str, Any]
Updater = Callable[[Any], Any]
"""Gets a copy that it may change; returns the new value, or None when it changed the copy."""
View = Callable[[], Stream]
"""Gives the chat with the own writes so far. Calling it costs one pointer a message while writes wait."""

_MISSING = object()


class Unfetched(Exception):
    """The state document was not asked for yet; ask, and then the intent can be carried out."""

    def __init__(self, namespace: str) -> None:
        super().__init__(namespace)
        self.namespace = namespace


class Intent(Protocol):
    """One wish of the user about one chat."""

    def parts(self, view: View) -> Sequence[Batched | LiveWrite]:
        """The requests that carry it out on `view`; none when there is nothing to do.

        Raises: Unfetched, RefusedError when it cannot be asked at all, and what the user's function raises.
        """

    def repeatable(self, view: View, missed: Sequence[Effect] | None) -> bool:
        """True when it still means the same on `view`. `missed` are the effects since, None when they are unknown."""


class AppendIntent:
    """Messages at the end; each has its id from here on, so that it is the same message before and after its ack."""

    def __init__(self, messages: Sequence[Mapping[str, Any]], new_id: Callable[[], str]) -> None:
        self.lines = [
            Raw(payload(
                dict(message) if "id" in message else {"id": new_id(), **message}, f"/messages/{index}"
            ))
            for index, message in enumerate(messages)
        ]

    def parts(self, view: View) -> list[Batched]:
        return [BatchedAppend(self.lines)] if self.lines else []

    def repeatable(self, view: View, missed: Sequence[Effect] | None) -> bool:
        return True


class PatchIntent:
    """RFC 6902 operations on one message, or on the whole chat when `message_id` is None."""

    def __init__(self, message_id: str | None, operations: Sequence[Mapping[str, Any]]) -> None:
        self._message_id = message_id
        self._operations = Raw(payload(list(operations), "/patch"))
        self._seen: bytes | None = None

    def parts(self, view: View) -> list[Batched]:
        if self._message_id is None:
            return [BatchedPatch(self._operations)]
        self._seen = view().chat.messages.get(self._message_id)
        return [BatchedPatch(self._operations, self._message_id)]

    def repeatable(self, view: View, missed: Sequence[Effect] | None) -> bool:
        # Operations on the whole chat name messages by index; any change may have moved them.
        return self._message_id is not None and _same_line(self._seen, view().chat.messages.get(self._message_id))


class UpdateMessageIntent:
    """A function from a message to what it shall be."""

    def __init__(self, message_id: str, update: Updater) -> None:
        self._message_id = message_id
        self._update = update

    def parts(self, view: View) -> list[Batched]:
        chat = view().chat
        if self._message_id not in chat.messages:
            raise refused("message-unknown", f"The chat has no message {self._message_id!r}.", pointer="/message")
        old = chat.value(self._message_id)
        new = updated(self._update, chat.value(self._message_id))
        operations = difference(old, new)
        return [BatchedPatch(Raw(payload(operations, "/patch")), self._message_id)] if operations else []

    def repeatable(self, view: View, missed: Sequence[Effect] | None) -> bool:
        return True


class DeleteIntent:
    """Messages to take out, as they were seen."""

    def __init__(self, message_ids: Sequence[str]) -> None:
        self._ids = list(message_ids)
        self._seen: list[bytes | None] = []

    def parts(self, view: View) -> list[Batched]:
        messages = view().chat.messages
        self._seen = [messages.get(message_id) for message_id in self._ids]
        return [BatchedDelete(self._ids)] if self._ids else []

    def repeatable(self, view: View, missed: Sequence[Effect] | None) -> bool:
        messages = view().chat.messages
        return all(
            _same_line(seen, messages.get(message_id))
            for seen, message_id in zip(self._seen, self._ids, strict=True)
        )


class SwipeIntent:
    """A swipe of one message: put one behind the others, show one, or take one away."""

    def __init__(
        self, message_id: str, action: Literal["add", "select", "delete"], *, swipe: int | None = None,
        content: Mapping[str, Any] | None = None, select: bool = True,
    ) -> None:
        self._message_id = message_id
        self._request = BatchedSwipe(
            message_id, action, UNSET if swipe is None else swipe,
            UNSET if content is None else Raw(payload(dict(content), "/content")), select,
        )
        self._seen: bytes | None = None

    def parts(self, view: View) -> list[Batched]:
        swipe = self._request.swipe
        if isinstance(swipe, bool) or (isinstance(swipe, int) and swipe < 0):
            raise refused("swipe-unknown", f"There is no swipe {swipe!r}.", pointer="/swipe")
        self._seen = view().chat.messages.get(self._message_id)
        return [msgspec.structs.replace(self._request)]

    def repeatable(self, view: View, missed: Sequence[Effect] | None) -> bool:
        now = view().chat.messages.get(self._message_id)
        # One more swipe goes behind whatever is there; an ordinal means another swipe when the message has changed.
        return now is not None and (self._request.action == "add" or _same_line(self._seen, now))


class MetadataIntent:
    """Exactly one of a function, `set`, `merge` (RFC 7386) and `patch` (RFC 6902), for the chat's metadata."""

    def __init__(
        self, *, update: Updater | None = None, set: Json = _MISSING, merge: Json = _MISSING, patch: Json = _MISSING
    ) -> None:
        self._update = update
        self._set = set
        self._merge = merge
        self._patch = patch
        self._seen: Json = None

    def parts(self, view: View) -> list[Batched]:
        if self._update is not None:
            chat = view().chat
            old = chat.metadata_value()
            operations = difference(old, updated(self._update, chat.metadata_value()))
            # The function saw all of the metadata, so all of it is what must not have changed.
            seen = {"op": "test", "path": "", "value": old}
            return [BatchedMetadataUpdate(patch=Raw(payload([seen, *operations], "/patch")))] if operations else []
        self._seen = view().chat.metadata_value()
        if self._set is not _MISSING:
            return [BatchedMetadataUpdate(set=Raw(payload(self._set, "/set")))]
        if self._merge is not _MISSING:
            return [BatchedMetadataUpdate(merge=Raw(payload(self._merge, "/merge")))]
        return [BatchedMetadataUpdate(patch=Raw(payload(self._patch, "/patch")))]

    def repeatable(self, view: View, missed: Sequence[Effect] | None) -> bool:
        if self._update is not None:
            return True
        now = view().chat.metadata_value()
        if self._merge is not _MISSING:
            return _same_where_merged(self._seen, now, self._merge)
        return equal(self._seen, now)


class StateIntent:
    """Exactly one of a function, `set`, `merge`, `patch` and `delete`, for one state document."""

    def __init__(
        self,
        namespace: str,
        *,
        update: Updater | None = None,
        set: Json = _MISSING,
        merge: Json = _MISSING,
        patch: Json = _MISSING,
        delete: bool = False,
    ) -> None:
        self.namespace = namespace
        self._update = update
        self._set = set
        self._merge = merge
        self._patch = patch
        self._delete = delete
        self._seen: Json = None

    def parts(self, view: View) -> list[Batched]:
        document = view().states.get(self.namespace)
        if document is None:
            raise Unfetched(self.namespace)
        data = document.data
        old = loads(data) if data is not None else None
        self._seen = old
        if self._delete:
            return [BatchedStateDelete(self.namespace)] if data is not None else []
        if self._set is not _MISSING:
            return [BatchedStateUpdate(self.namespace, set=Raw(payload(self._set, "/set")))]
        if self._merge is not _MISSING:
            return [BatchedStateUpdate(self.namespace, merge=Raw(payload(self._merge, "/merge")))]
        if self._patch is not _MISSING:
            return [BatchedStateUpdate(self.namespace, patch=Raw(payload(self._patch, "/patch")))]
        assert self._update is not None, "exactly one of the five is given"
        new = updated(self._update, loads(data) if data is not None else {})
        if data is None:
            return [BatchedStateUpdate(self.namespace, set=Raw(payload(new, "/set")))]
        operations = difference(old, new)
        if not operations:
            return []
        whole, patch = dumps(new), payload(operations, "/patch")
        if len(whole) <= len(patch):
            return [BatchedStateUpdate(self.namespace, set=Raw(whole))]
        return [BatchedStateUpdate(self.namespace, patch=Raw(patch))]

    def repeatable(self, view: View, missed: Sequence[Effect] | None) -> bool:
        if self._update is not None:
            return True
        document = view().states.get(self.namespace)
        if document is None:
            return False
        now = loads(document.data) if document.data is not None else None
        if self._merge is not _MISSING:
            return _same_where_merged(self._seen, now, self._merge)
        return _same(self._seen, now)


class BatchIntent:
    """Several intents, all or nothing, as one commit; each sees what those before it did."""

    def __init__(self, intents: Sequence[Intent]) -> None:
        self.intents = list(intents)

    def parts(self, view: View) -> list[Batched]:
        draft = copied(view())
        parts: list[Batched] = []
        for intent in self.intents:
            mine = [part for part in intent.parts(lambda: draft) if not isinstance(part, LiveWrite)]
            for part in mine:
                show(draft, to_document_write(f"id:{draft.chat_id}", [part]))
            parts.extend(mine)
        return parts

    def repeatable(self, view: View, missed: Sequence[Effect] | None) -> bool:
        return all(intent.repeatable(view, missed) for intent in self.intents)


class RecordedIntent:
    """A write from the outbox file of an earlier process: only the request is left of what was wanted."""

    def __init__(self, write: OwnWrite) -> None:
        self._parts: Sequence[Batched | LiveWrite] = (
            [write] if isinstance(write, LiveWrite) else to_parts(write)
        )

    def parts(self, view: View) -> Sequence[Batched | LiveWrite]:
        return self._parts

    def repeatable(self, view: View, missed: Sequence[Effect] | None) -> bool:
        """Appends always; patches and deletions of messages when it is known that nobody touched them."""
        if all(isinstance(part, BatchedAppend) for part in self._parts):
            return True
        if missed is None:
            return False
        mine: list[str] = []
        for part in self._parts:
            match part:
                case BatchedPatch(message=str(message)):
                    mine.append(f"m:{message}")
                case BatchedDelete():
                    mine.extend(f"m:{message_id}" for message_id in part.messages)
                case BatchedAppend():
                    mine.append("a")
                case _:
                    return False
        return not any(overlap(one, other) for one in mine for other in targets_of(list(missed)))


def is_function(intent: Intent) -> bool:
    """True for a wish given as a function of what is there, and for data that knows all by itself when to give up."""
    if isinstance(intent, BatchIntent):
        return all(is_function(part) for part in intent.intents)
    return getattr(intent, "_update", None) is not None or getattr(intent, "exact", False)


# -- requests --------------------------------------------------------------------------------------------------------


def to_write(owner: str, parts: Sequence[Batched | LiveWrite]) -> OwnWrite:
    """The frame for some requests to an owner (its one text): their own when there is one, a batch otherwise."""
    if len(parts) == 1 and isinstance(parts[0], LiveWrite):
        if isinstance(parts[0], OwnerRename | OwnerDelete):
            return msgspec.structs.replace(parts[0], owner=owner_named(owner))
        return msgspec.structs.replace(parts[0], chat=owner)
    return to_document_write(owner, [part for part in parts if not isinstance(part, LiveWrite)])


def to_document_write(owner: str, parts: Sequence[Batched]) -> DocumentWrite:
    """As `to_write`, for what can be part of a batch."""
    if len(parts) != 1:
        return Batch(owner, list(parts))
    (part,) = parts
    match part:
        case BatchedAppend():
            return Append(owner, part.messages)
        case BatchedPatch():
            return Patch(owner, part.patch, part.message)
        case BatchedDelete():
            return Delete(owner, part.messages)
        case BatchedMetadataUpdate():
            return MetadataUpdate(owner, part.set, part.merge, part.patch)
        case BatchedStateUpdate():
            return StateUpdate(owner_named(owner), part.namespace, part.set, part.merge, part.patch)
        case BatchedStateDelete():
            return StateDelete(owner_named(owner), part.namespace)
        case BatchedSwipe():
            return Swipe(owner, part.message, part.action, part.swipe, part.content, part.select)
        case BatchedFloorUpdate():
            return FloorUpdate(owner, part.namespace, part.patch, part.at)


def to_parts(write: DocumentWrite) -> list[Batched]:
    """The requests of a frame, without their bases."""
    match write:
        case Append():
            return [BatchedAppend(write.messages)]
        case Patch():
            return [BatchedPatch(write.patch, write.message)]
        case Delete():
            return [BatchedDelete(write.messages)]
        case MetadataUpdate():
            return [BatchedMetadataUpdate(write.set, write.merge, write.patch)]
        case StateUpdate():
            return [BatchedStateUpdate(write.namespace, write.set, write.merge, write.patch)]
        case StateDelete():
            return [BatchedStateDelete(write.namespace)]
        case Swipe():
            return [BatchedSwipe(write.message, write.action, write.swipe, write.content, write.select)]
        case FloorUpdate():
            return [BatchedFloorUpdate(write.namespace, write.patch, write.at)]
        case Batch():
            for request in write.requests:
                request.base = UNSET
            return list(write.requests)


# -- values ----------------------------------------------------------------------------------------------------------


def updated(update: Updater, copy: Json) -> Json:
    """What the user's function makes of its own copy."""
    result = update(copy)
    return copy if result is None else result


def difference(old: Json, new: Json) -> list[dict[str, Any]]:
    """RFC 6902 operations from `old` to `new`; none when they are equal. Cost: the size of both."""
    new = value_of(new)
    if equal(old, new):
        return []
    operations = make_patch(old, new)
    try:
        if equal(apply_patch(loads(dumps(old)), loads(dumps(operations))).value, new):
            return operations
    except Refused:
        pass
    # The differ and the evaluator are different programs; where they disagree, the whole value is right.
    return [{"op": "replace", "path": "", "value": new}]


def _same_line(one: bytes | None, other: bytes | None) -> bool:
    if one is None or other is None:
        return False
    return one == other or equal(loads(one), loads(other))


def _same(one: Json, other: Json) -> bool:
    return one is other if one is None or other is None else equal(one, other)


def _same_where_merged(seen: Json, now: Json, merge: Json) -> bool:
    """True when everything that `merge` touches is in `now` as it was in `seen`."""
    if not isinstance(merge, Mapping) or not isinstance(seen, dict) or not isinstance(now, dict):
        return _same(seen, now)
    for key, wanted in merge.items():
        one, other = seen.get(key, _MISSING), now.get(key, _MISSING)
        if one is _MISSING or other is _MISSING:
            if one is not other:
                return False
        elif isinstance(wanted, Mapping):
            if not _same_where_merged(one, other, wanted):
                return False
        elif not _same(one, other):
            return False
    return True

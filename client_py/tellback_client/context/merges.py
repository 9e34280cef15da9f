"""What extensions ask for as data: fields merged into a message or the metadata, and reducers of chat state.

Rules of this module:
- Data is asked for again only while the fields it names are as they were seen; otherwise it is a conflict. Fields that
  it does not name belong to whoever changes them.
- A reducer is run again on what is there now, so its result is always bound to the version that it saw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import Raw

from tellback_protocol.effects import Effect
from tellback_protocol.requests import Batched, BatchedMetadataUpdate, BatchedPatch
from tellback_protocol.values import equal, loads

from ..errors import refused
from ..intents import StateIntent, Unfetched, View, difference
from ..payload import payload, value_of

_MISSING = object()


def merged(old: Any, patch: Any) -> Any:
    """Objects merged at every depth; everything else, null and arrays included, takes the place of what was there."""
    if not isinstance(patch, dict) or not isinstance(old, dict):
        return patch
    return {**old, **{key: merged(old.get(key), value) for key, value in patch.items()}}


def same_where(seen: Any, now: Any, patch: Any, *, deep: bool) -> bool:
    """True when everything that `patch` would change is now as it was seen."""
    if isinstance(patch, dict) and isinstance(seen, dict) and isinstance(now, dict):
        return all(
            same_where(seen.get(key, _MISSING), now.get(key, _MISSING), value if deep else None, deep=deep)
            for key, value in patch.items()
        )
    if seen is _MISSING or now is _MISSING:
        return seen is now
    return equal(seen, now)


class MergeMessageIntent:
    """Fields merged into one message."""

    exact = True

    def __init__(self, message_id: str, patch: Mapping[str, Any], *, deep: bool) -> None:
        self._message_id = message_id
        self._patch: dict[str, Any] = loads(payload(dict(patch), "/patch"))
        self._deep = deep
        self._seen: dict[str, Any] | None = None

    def parts(self, view: View) -> list[Batched]:
        chat = view().chat
        if self._message_id not in chat.messages:
            raise refused("message-unknown", f"The chat has no message {self._message_id!r}.", pointer="/message")
        old = self._seen = chat.value(self._message_id)
        new = merged(old, self._patch) if self._deep else {**old, **self._patch}
        operations = difference(old, new)
        return [BatchedPatch(Raw(payload(operations, "/patch")), self._message_id)] if operations else []

    def repeatable(self, view: View, missed: Sequence[Effect] | None) -> bool:
        chat = view().chat
        if self._message_id not in chat.messages or self._seen is None:
            return False
        return same_where(self._seen, chat.value(self._message_id), self._patch, deep=self._deep)


class AssignMetadataIntent:
    """Top-level members of the metadata, each replaced as a whole."""

    exact = True

    def __init__(self, members: Mapping[str, Any]) -> None:
        self._members: dict[str, Any] = loads(payload(dict(members), "/metadata"))
        self._seen: Any = None

    def parts(self, view: View) -> list[Batched]:
        old = self._seen = view().chat.metadata_value()
        operations = difference(old, {**old, **self._members})
        return [BatchedMetadataUpdate(patch=Raw(payload(operations, "/patch")))] if operations else []

    def repeatable(self, view: View, missed: Sequence[Effect] | None) -> bool:
        return same_where(self._seen, view().chat.metadata_value(), self._members, deep=False)


class ReduceStateIntent:
    """A function from a state document to the next; None means unchanged."""

    exact = True

    def __init__(self, namespace: str, reducer: Callable[[Any, int], Any], max_retries: int | None) -> None:
        self._namespace = namespace
        self._reducer = reducer
        self._max_retries = max_retries
        self.retries = 0
        self.state: Any = None
        """What the document holds after the last run; None when there is none."""

    def parts(self, view: View) -> list[Batched]:
        document = view().states.get(self._namespace)
        if document is None:
            raise Unfetched(self._namespace)
        data = document.data
        new = self._reducer({} if data is None else loads(data), self.retries)
        if new is None:
            self.state = None if data is None else loads(data)
            return []
        self.state = value_of(new)
        return StateIntent(self._namespace, update=lambda _old: new).parts(view)

    def repeatable(self, view: View, missed: Sequence[Effect] | None) -> bool:
        self.retries += 1
        return self._max_retries is None or self.retries <= self._max_retries

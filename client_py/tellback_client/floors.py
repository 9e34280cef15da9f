"""Floor states: state documents that follow the messages and swipes of a chat.

Rules of this module:
- A reducer runs here, on a copy; what it changed travels as RFC 6902 against the version it saw, and it runs again when
  somebody was faster.
- What a floor state becomes when messages or swipes change is worked out by the server, in the same commit; whoever
  reads, reads a settled state.
- A floor is an index for the caller; what is asked of the server is the message that stands there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import UNSET, Raw

from tellback_protocol.effects import Effect, SkippedCommit
from tellback_protocol.patch import difference
from tellback_protocol.requests import Batched, BatchedFloorUpdate, FloorTarget
from tellback_protocol.values import equal, loads

from .errors import refused
from .intents import Intent, Json, Unfetched, View
from .outbox import WriteResult
from .payload import payload, value_of

if TYPE_CHECKING:
    from .chat import Batch, Chat

Reducer = Callable[[Any], Any]
"""Gets the state, a copy, `{}` when there is none; returns the next state, an object. Anything else is no change."""
OPERATIONS_MAX = 10_000
"""Of one patch; a larger difference is told as one replacement of the whole state."""


class FloorIntent:
    """Exactly one of a reducer and operations, for one floor state and what it belongs to."""

    def __init__(
        self, namespace: str, *, update: Reducer | None = None, patch: Sequence[Mapping[str, Any]] | None = None,
        floor: int | None = None, swipe: int | None = None,
    ) -> None:
        self.namespace = namespace
        self._update = update
        self._patch = None if patch is None else payload(list(patch), "/patch")
        self._floor = floor
        self._swipe = swipe
        self._seen: Json = None

    def parts(self, view: View) -> list[Batched]:
        stream = view()
        at = self._target(stream.chat.order())
        document = stream.states.get(self.namespace)
        if document is None:
            raise Unfetched(self.namespace)
        data = document.data
        self._seen = loads(data) if data is not None else {}
        if self._patch is not None:
            if not loads(self._patch):
                return []
            return [BatchedFloorUpdate(self.namespace, Raw(self._patch), at)]
        assert self._update is not None, "exactly one of the two is given"
        new = self._update(loads(data) if data is not None else {})
        if not isinstance(new, dict):
            return []
        new = value_of(new)
        operations = difference(self._seen, new)
        if not operations:
            return []
        if len(operations) > OPERATIONS_MAX:
            operations = [{"op": "replace", "path": "", "value": new}]
        return [BatchedFloorUpdate(self.namespace, Raw(payload(operations, "/patch")), at)]

    def _target(self, order: list[str]) -> FloorTarget:
        """Raises: RefusedError."""
        for name, value in (("floor", self._floor), ("swipe", self._swipe)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
                raise refused("bad-frame", f"{name} is an integer from 0.", pointer=f"/at/{name}")
        if self._floor is not None and self._floor >= len(order):
            raise refused("message-unknown", f"The chat has no message {self._floor}.", pointer="/at/floor")
        if not order:
            raise refused("message-unknown", "The chat has no message that this could belong to.", pointer="/at")
        return FloorTarget(
            message=UNSET if self._floor is None else order[self._floor],
            swipe=UNSET if self._swipe is None else self._swipe,
        )

    def repeatable(self, view: View, missed: Sequence[Effect] | None) -> bool:
        if self._update is not None:
            return True
        document = view().states.get(self.namespace)
        if document is None:
            return False
        return equal(self._seen, loads(document.data) if document.data is not None else {})


class FloorState:
    """One floor state of a chat. Made by `Chat.floor_state`."""

    def __init__(self, chat: Chat, namespace: str) -> None:
        self._chat = chat
        self.namespace = plain_namespace(namespace)
        self._writing: set[asyncio.Task[WriteResult]] = set()
        self._destroyed = False

    async def get(self) -> Any:
        """The state with the own writes on top, a copy; None when there is none."""
        return await self._chat.state(self.namespace).get()

    async def update(self, reducer: Reducer, *, floor: int | None = None, swipe: int | None = None) -> WriteResult:
        """Change the state by a function of it.

        The change is kept with message number `floor` and its swipe number `swipe`; without them with the last message
        and the swipe it shows. Raises: RefusedError `message-unknown`, `swipe-unknown` or `bad-frame` when those are
        not there.
        """
        return await self._write(FloorIntent(self.namespace, update=reducer, floor=floor, swipe=swipe))

    async def patch(
        self, operations: Sequence[Mapping[str, Any]], *, floor: int | None = None, swipe: int | None = None
    ) -> WriteResult:
        """As `update`, with RFC 6902 operations that were made from what `get` gives."""
        return await self._write(FloorIntent(self.namespace, patch=operations, floor=floor, swipe=swipe))

    async def delete(self) -> WriteResult:
        """Take the state and everything it was made of away."""
        return await self._chat.state(self.namespace).delete()

    async def ready(self) -> None:
        """Wait until no write of this object is without its answer."""
        while self._writing:
            await asyncio.wait(set(self._writing))

    def destroy(self) -> None:
        """This object writes nothing any more; what is stored stays."""
        self._destroyed = True

    @property
    def skipped(self) -> list[SkippedCommit]:
        """Commits that are shown and do not fit what came before them, as far as the state was asked for."""
        document = self._chat.subscription.view().states.get(self.namespace)
        return [] if document is None else list(document.skipped)

    async def _write(self, intent: Intent) -> WriteResult:
        if self._destroyed:
            return WriteResult(self._chat.version, changed=False)
        writing: Coroutine[Any, Any, WriteResult] = self._chat.write(intent)
        task = asyncio.ensure_future(writing)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return await asyncio.shield(task)


class BatchedFloorState:
    """The writing verbs of a floor state inside a batch; the state must have been read before."""

    def __init__(self, batch: Batch, namespace: str) -> None:
        self._batch = batch
        self._namespace = plain_namespace(namespace)

    def update(self, reducer: Reducer, *, floor: int | None = None, swipe: int | None = None) -> None:
        """As `FloorState.update`."""
        self._batch._do(FloorIntent(self._namespace, update=reducer, floor=floor, swipe=swipe))

    def patch(
        self, operations: Sequence[Mapping[str, Any]], *, floor: int | None = None, swipe: int | None = None
    ) -> None:
        """As `FloorState.patch`."""
        self._batch._do(FloorIntent(self._namespace, patch=operations, floor=floor, swipe=swipe))


def plain_namespace(namespace: str) -> str:
    """As the seed's floor states spell it: without spaces around it, in lower case."""
    return namespace.strip().lower()

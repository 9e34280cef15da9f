"""State that follows the floors of the shown chat: the seed's floor state instances.

Rules of this module:
- An instance is bound to a namespace and follows whichever chat is shown; nothing about a chat is kept in it.
- The server keeps the state settled, in the commit that changes the structure; so whoever reads, in a listener too,
  reads a settled state.
- A wrong floor or swipe is False, as the seed has it, before anything is sent where that can be known.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tellback_protocol.ids import is_reserved_namespace, namespace_problem

from ..chat import Chat
from ..errors import RefusedError, refused
from ..floors import plain_namespace
from .base import ContextBase

_MISUSE = ("message-unknown", "swipe-unknown", "bad-frame")


class FloorState:
    """One namespace. Made by `create_floor_state`; its attributes cannot be set."""

    __slots__ = ("_context", "_destroyed", "namespace")
    _context: ContextBase
    _destroyed: bool
    namespace: str

    def __init__(self, context: ContextBase, namespace: str) -> None:
        object.__setattr__(self, "_context", context)
        object.__setattr__(self, "_destroyed", False)
        object.__setattr__(self, "namespace", namespace)

    def __setattr__(self, name: str, _value: object) -> None:
        raise AttributeError(f"a floor state is frozen: {name} cannot be set")

    __delattr__ = __setattr__  # type: ignore[assignment]

    async def update(
        self, reducer: Callable[[Any], Any], *, floor: int | None = None, swipe_id: int | None = None
    ) -> bool:
        """Change the state by a function of it; the difference becomes a commit of the floor.

        The function gets a copy, `{}` when there is no state, and returns the next state, an object; anything else is
        no change. It may run more than once. `floor` and `swipe_id` name what the commit belongs to; else it is the
        last message and the swipe that it shows. False when that is not there, or the instance is destroyed.
        """
        chat = self._chat(floor, swipe_id)
        if chat is None:
            return False

        def next_state(current: Any) -> Any:
            before = copy_of(current)
            after = reducer(current)
            if inspect.iscoroutine(after):
                after.close()
                raise TypeError("a reducer is no coroutine: it is run again whenever somebody was faster")
            return after if isinstance(after, dict) else before

        kept = chat.floor_state(self.namespace)
        return await self._accepted(kept.update(next_state, floor=floor, swipe=swipe_id))

    async def patch(
        self, operations: Sequence[Mapping[str, Any]], *, floor: int | None = None, swipe_id: int | None = None
    ) -> bool:
        """Make a commit of operations (RFC 6902) that lead on from what `get` gives. False as in `update`."""
        chat = self._chat(floor, swipe_id)
        if chat is None:
            return False
        kept = chat.floor_state(self.namespace)
        return await self._accepted(kept.patch(operations, floor=floor, swipe=swipe_id))

    async def get(self) -> Any:
        """The state of the shown chat, a copy; None when there is none."""
        return await self._context._current().chat.state(self.namespace).get()

    async def ready(self) -> None:
        """Wait until the own writes to the shown chat have their answers; there is never a rebuild to wait for."""
        held = self._context._held
        if held is not None:
            await held.chat.saved()

    def destroy(self) -> None:
        """Write no more: `update` and `patch` return False. What is stored stays."""
        object.__setattr__(self, "_destroyed", True)

    def _chat(self, floor: object, swipe: object) -> Chat | None:
        """The shown chat, when the floor can be one of it and the swipe a swipe."""
        held = self._context._held
        if self._destroyed or held is None:
            return None
        count = len(held.chat.subscription.view().chat.messages)
        if floor is None:
            if count == 0:
                return None
        elif isinstance(floor, bool) or not isinstance(floor, int) or not 0 <= floor < count:
            return None
        if swipe is not None and (isinstance(swipe, bool) or not isinstance(swipe, int) or swipe < 0):
            return None
        return held.chat

    async def _accepted(self, write: Any) -> bool:
        try:
            await write
        except RefusedError as error:
            if error.code in _MISUSE:
                return False
            raise
        return True


class FloorsOfContext(ContextBase):
    """How floor states are made."""

    async def create_floor_state(self, namespace: str | Mapping[str, Any]) -> FloorState:
        """A floor state of a namespace, in lower case as the seed spells it, for whichever chat is shown.

        `{"namespace": ...}`, the seed's options, is the same. Raises: TypeError, RefusedError `namespace-illegal` or
        `namespace-reserved`.
        """
        named = namespace.get("namespace") if isinstance(namespace, Mapping) else namespace
        if not isinstance(named, str):
            raise TypeError("a floor state is named by its namespace, a string, or by an object with it")
        namespace = plain_namespace(named)
        problem = namespace_problem(namespace)
        if problem is not None:
            raise refused("namespace-illegal", problem, pointer="/namespace")
        if is_reserved_namespace(namespace):
            raise refused("namespace-reserved", "Only the server writes this namespace.", pointer="/namespace")
        return FloorState(self, namespace)


def copy_of(value: Any) -> Any:
    """A JSON value of its own."""
    if isinstance(value, dict):
        return {key: copy_of(member) for key, member in value.items()}
    if isinstance(value, list):
        return [copy_of(member) for member in value]
    return value

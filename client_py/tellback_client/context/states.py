"""State of the shown chat and of others, by namespace; of characters and presets; and what follows the floors.

Rules of this module:
- A reducer's result is bound to the version that the reducer saw: when somebody was faster it runs again on what is
  there then, so no update is lost.
- Reading raises; updating answers with `ok`, as the seed's interface does, and `error` says why it is false. What the
  caller's own function raises is raised. So is the end of the client.
- Missing is None. Corrupt is an error, never None.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import ClientClosed, ConflictError, ConnectionLost, TellbackError
from ..handle import Handle
from .base import ContextBase
from .emitter import arity_of
from .merges import ReduceStateIntent

Updater = Callable[..., Any]
"""Gets the state, `{}` when there is none, and `{attempt, target, namespace}` if it takes two arguments; returns the
new state, or None for unchanged. It may run more than once."""

PAUSE_MAX_S = 0.05


class StateResult(NamedTuple):
    """What became of an update."""

    ok: bool
    state: Any
    """The document as this update left it; None when there is none, or when `ok` is false."""
    updated: bool
    """False when nothing had to change."""
    error: TellbackError | None = None
    """Why `ok` is false."""

    def __bool__(self) -> bool:
        return self.ok


class StatesOfContext(ContextBase):
    """The verbs of state."""

    async def get_chat_state(self, namespace: str, *, target: object = None) -> Any:
        """The state of a chat, a copy; None when there is none. Raises: RefusedError, also for a corrupt one."""
        chat = await self._target(target)
        return await chat.state(namespace).get()

    async def get_chat_state_batch(self, namespaces: Sequence[str], *, target: object = None) -> dict[str, Any]:
        """Several states of a chat by namespace, each as `get_chat_state` gives it, in one question to the server."""
        chat = await self._target(target)
        names = list(dict.fromkeys(namespaces))
        return dict(zip(names, await asyncio.gather(*(chat.state(name).get() for name in names)), strict=True))

    async def update_chat_state(
        self, namespace: str, updater: Updater, *, target: object = None, max_retries: int | None = None
    ) -> StateResult:
        """Change the state of a chat by a function of it.

        `max_retries` bounds how often the function runs again because somebody was faster; None means until it fits.
        """
        return await self._reduce(await self._target(target), namespace, updater, target, max_retries)

    async def patch_chat_state(
        self, namespace: str, operations: Sequence[Mapping[str, Any]], *, target: object = None
    ) -> StateResult:
        """RFC 6902 on the state of a chat as it is now, `{}` when there is none. `update_chat_state` is the better way.
        """
        state = (await self._target(target)).state(namespace)
        try:
            result = await state.patch(operations)
        except ConflictError as error:
            error.conflict.take_theirs()
            return StateResult(False, None, False, error)
        except (ConnectionLost, ClientClosed):
            raise
        except TellbackError as error:
            return StateResult(False, None, False, error)
        return StateResult(True, await state.get(), result.changed)

    async def delete_chat_state(self, namespace: str, *, target: object = None) -> StateResult:
        """Take a state of a chat away, whatever it holds by then."""
        return await self._delete_state(await self._target(target), namespace)

    # -- characters and presets --------------------------------------------------------------------------------------

    async def get_character_state(self, avatar: str, namespace: str) -> Any:
        """The state of a character, named by its avatar (`Alice.png`); None when there is none."""
        return await (await self._character_owner(avatar)).state(namespace).get()

    async def set_character_state(self, avatar: str, namespace: str, data: Any) -> None:
        """Replace the state of a character; None takes it away.

        Raises: RefusedError; ConflictError when somebody else changed it since it was known here.
        """
        state = (await self._character_owner(avatar)).state(namespace)
        if data is None:
            await state.delete()
        else:
            await state.set(data)

    async def update_character_state(
        self, avatar: str, namespace: str, updater: Updater, *, max_retries: int | None = None
    ) -> StateResult:
        """Change the state of a character by a function of it, as `update_chat_state` does."""
        return await self._reduce(await self._character_owner(avatar), namespace, updater, avatar, max_retries)

    async def get_preset_state(self, preset: str, namespace: str) -> Any:
        """The state of a preset, `<folder>/<preset>`; None when there is none."""
        return await (await self._owner(f"preset:{preset}")).state(namespace).get()

    async def update_preset_state(
        self, preset: str, namespace: str, updater: Updater, *, max_retries: int | None = None
    ) -> StateResult:
        """Change the state of a preset by a function of it, as `update_chat_state` does."""
        return await self._reduce(await self._owner(f"preset:{preset}"), namespace, updater, preset, max_retries)

    async def delete_preset_state(self, preset: str, namespace: str) -> StateResult:
        """Take a state of a preset away."""
        return await self._delete_state(await self._owner(f"preset:{preset}"), namespace)

    async def _character_owner(self, avatar: str) -> Handle:
        return await self._owner(f"character:{avatar.removesuffix('.png')}")

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _reduce(
        self, owner: Handle, namespace: str, updater: Updater, target: object, max_retries: int | None
    ) -> StateResult:
        retries = 0
        takes_info = (arity_of(updater) or 1) > 1

        def reduce(current: Any, again: int) -> Any:
            told = {"attempt": retries + again, "target": target, "namespace": namespace}
            new = updater(current, told) if takes_info else updater(current)
            if inspect.isawaitable(new):
                if inspect.iscoroutine(new):
                    new.close()
                raise TypeError("an updater is no coroutine: it is run again whenever somebody was faster")
            return new

        while True:
            intent = ReduceStateIntent(namespace, reduce, None if max_retries is None else max_retries - retries)
            try:
                result = await owner.write(intent)
            except ConflictError as error:
                error.conflict.take_theirs()
                # The link's own patience ends somewhere; a counter's does not.
                retries += max(1, intent.retries)
                if max_retries is not None and retries > max_retries:
                    return StateResult(False, None, False, error)
                await asyncio.sleep(random.random() * PAUSE_MAX_S)
                continue
            except (ConnectionLost, ClientClosed):
                raise
            except TellbackError as error:
                return StateResult(False, None, False, error)
            return StateResult(True, intent.state, result.changed)

    async def _delete_state(self, owner: Handle, namespace: str) -> StateResult:
        while True:
            try:
                result = await owner.state(namespace).delete()
            except ConflictError as error:
                # Whatever it holds: asked again on what is there now.
                error.conflict.take_theirs()
                await asyncio.sleep(random.random() * PAUSE_MAX_S)
                continue
            except (ConnectionLost, ClientClosed):
                raise
            except TellbackError as error:
                return StateResult(False, None, False, error)
            return StateResult(True, None, result.changed)

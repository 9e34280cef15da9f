"""Lookout: whether another program changed the files of a live owner (BEHAVIOUR K3).

    lookout.look(actor)                         its files; `around=True`: and files that were not there before
    lookout.look(actor, ["memory"])             files of namespaces of which no state is known
    await lookout.closer(actor)                 the actor stands still (folding): read the files and adopt what is new

Rules of this module:
- A look is a few stats in the loop; a listing is made in a thread, and only when the folder changed.
- While a look goes on the actor is busy, and what arrives waits: nothing is answered out of what was known before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import structlog

from tellback_server.actor import Actor
from tellback_server.hub import Hub
from tellback_server.loading import needs_adoption
from tellback_server.store.files import FileStore
from tellback_server.store.held import has_appeared, has_folder_changed, knows_all

__all__ = ["Lookout"]

log = structlog.get_logger()

POLL_S = 0.005


class Lookout:
    """See the module. Loop thread."""

    def __init__(
        self, hub: Hub, files: FileStore, adopt: Callable[[Actor], Awaitable[None]],
        became_dirty: Callable[[Actor], None],
    ) -> None:
        self._hub = hub
        self._files = files
        self._adopt = adopt
        self._became_dirty = became_dirty

    def look(self, actor: Actor, namespaces: Iterable[str] = (), *, around: bool = False) -> bool:
        """See Shelf. An open must not be overtaken by the writes behind it."""
        held = actor.file
        if actor.state != "ready" or held is None or (actor.folding and not namespaces):
            return False
        was_around, actor.looked_around = actor.looked_around, False
        work: Callable[[Actor], Awaitable[None]] | None = None
        try:
            if namespaces:
                if has_appeared(self._files, actor.user, held, namespaces):
                    work = self.closer
            elif needs_adoption(self._files, actor.user, held):
                work = self.closer
            elif around and not was_around and has_folder_changed(self._files, actor.user, held):
                work = self._around
        except OSError as error:
            log.warning("look-failed", chat=actor.name, error=str(error))
            return False
        if work is not None:
            actor.state = "busy"
            self._hub.spawn(self._looking(actor, work, actor.turn))
        return work is not None

    async def _looking(self, actor: Actor, work: Callable[[Actor], Awaitable[None]], turn: int) -> None:
        while actor.folding:  # noqa: ASYNC110  - It ends by itself, soon; nobody else waits for it.
            await asyncio.sleep(POLL_S)
        # Else the checkpoint found the same and adopted it.
        if actor.state == "busy" and actor.turn == turn:
            actor.folding = True
            await work(actor)

    async def _around(self, actor: Actor) -> None:
        held = actor.file
        assert held is not None, "a live owner"
        try:
            is_known = await self._hub.loop.run_in_executor(
                self._hub.executor, knows_all, self._files, actor.user, held
            )
        except OSError as error:
            log.warning("look-failed", chat=actor.name, error=str(error))
            is_known = True
        if not is_known:
            await self.closer(actor)
            return
        actor.folding = False
        # Whoever waits is answered now, and not when the folder stands still for once.
        actor.looked_around = True
        actor.resume()
        self._go_on(actor)

    async def closer(self, actor: Actor) -> None:
        """See the module."""
        try:
            await self._adopt(actor)
        finally:
            actor.folding = False
            self._go_on(actor)

    def _go_on(self, actor: Actor) -> None:
        """What was committed by those who waited found no checkpoint to wait for."""
        file = actor.file
        if actor.state == "ready" and file is not None and (file.pending or actor.dirty_since_s is not None):
            self._became_dirty(actor)

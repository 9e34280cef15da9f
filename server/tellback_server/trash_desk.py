"""Trash desk: what a user asks of the trash as a whole: what is in it, and to empty it.

Rules of this module (BEHAVIOUR Z12):
- An entry goes between two life writes, never during one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tellback_protocol.errors import Refused
from tellback_protocol.trash import TrashEmptied, TrashEmpty, TrashEntry, TrashList, TrashListFrame
from tellback_server.hub import Hub
from tellback_server.tab import Tab
from tellback_server.trash import Trash

__all__ = ["TrashDesk"]



class TrashDesk:
    """See the module. Loop thread; files are touched in threads."""

    def __init__(self, hub: Hub, trash: Trash, lock_of: Callable[[str], asyncio.Lock]) -> None:
        self._hub = hub
        self._trash = trash
        self._lock_of = lock_of

    async def answer(self, tab: Tab, request: TrashList | TrashEmpty) -> object:
        """The frame that answers. Raises Refused, OSError."""
        if isinstance(request, TrashList):
            return TrashListFrame(await self._hub.in_thread(lambda: self._entries(tab.user)), request.id)
        if isinstance(request.entries, list) == isinstance(request.before_ms, int):
            raise Refused("bad-frame", "Give entries or before_ms.", pointer="/entries")
        self._hub.admit()
        async with self._lock_of(tab.user):
            gone, size_bytes = await self._hub.in_thread(lambda: self._empty(tab.user, request))
        return TrashEmptied(gone, size_bytes, request.id)

    def _entries(self, user: str) -> list[TrashEntry]:
        return [
            TrashEntry(
                entry.folder, entry.name, entry.deleted_ms, entry.reason, self._trash.size_bytes(user, entry),
                entry.files,
            ) for entry in self._trash.entries(user)
        ]

    def _empty(self, user: str, request: TrashEmpty) -> tuple[list[str], int]:
        named = set(request.entries) if isinstance(request.entries, list) else None
        before_ms = request.before_ms if isinstance(request.before_ms, int) else 0
        gone: list[str] = []
        size_bytes = 0
        self._trash.sweep(user)
        for entry in self._trash.entries(user):
            if entry.folder in named if named is not None else entry.deleted_ms < before_ms:
                size_bytes += self._trash.size_bytes(user, entry)
                self._trash.remove(user, entry)
                gone.append(entry.folder)
        return gone, size_bytes

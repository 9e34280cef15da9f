"""Which chat is shown, and the life of chats: made, opened, renamed, deleted."""

from __future__ import annotations

from .base import ContextBase


class LivesOfContext(ContextBase):
    """The verbs of chats."""

    async def refresh(self) -> None:
        """Read the lists of characters and groups again."""

    async def open_chat(self, address: str, *, create: bool = False) -> None:
        async with self._switching:
            await self._show(address, create=create)

    async def select_character(self, character: str) -> None: ...

    async def select_group(self, group: str) -> None: ...

"""Backups and the trash, as a client asks about them.

    for backup in await client.backups(chat.chat_id):
        print(backup.backup, backup.reason, backup.count)
    content = await client.backup_content(chat.chat_id, "last")
    await chat.restore_backup("41-1763700000000")

Rules of this module:
- A chat is named by its address or as `id:<chat_id>`; also one in the trash.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import msgspec
from msgspec import UNSET, UnsetType

from tellback_protocol.backups import (
    BackedUpChat,
    BackupCreate,
    BackupCreated,
    BackupFrame,
    BackupGet,
    BackupList,
    BackupListFrame,
    ListedBackup,
)
from tellback_protocol.repairs import ChatRepair, ChatRepairFrame
from tellback_protocol.trash import TrashEmptied, TrashEmpty, TrashEntry, TrashList, TrashListFrame
from tellback_protocol.values import loads

from .asking import Asking

__all__ = ["BackupContent", "Backups"]


class BackupContent(msgspec.Struct):
    """What a backup holds, as values."""

    backup: ListedBackup
    messages: list[dict[str, Any]]
    metadata: Any
    states: dict[str, Any]
    """By namespace."""
    damaged: int = 0
    """Lines of its file that are no messages; they are restored with it."""


class Backups(Asking):
    """The part of `Client` that asks about backups. All methods raise NotFoundError, RefusedError, ConnectionLost."""

    async def backups(self, chat: str) -> list[ListedBackup]:
        """A chat's backups, the one taken last first."""
        found = cast(BackupListFrame, await self._ask(BackupList(chat)))
        return found.backups if isinstance(found.backups, list) else []

    async def backed_up_chats(self) -> list[BackedUpChat]:
        """The chats that have backups, also those that are in the trash, or gone from it."""
        found = cast(BackupListFrame, await self._ask(BackupList()))
        return found.chats if isinstance(found.chats, list) else []

    async def back_up(self, chat: str) -> ListedBackup:
        """A backup of the chat as it is now; the last one when nothing changed since."""
        return cast(BackupCreated, await self._ask(BackupCreate(chat))).backup

    async def backup_content(self, chat: str, backup: str = "last") -> BackupContent:
        """All of what a backup holds."""
        content: BackupContent | None = None
        cursor: str | None = None
        while True:
            page = cast(BackupFrame, await self._ask(BackupGet(chat, backup, cursor)))
            if content is None:
                metadata = {} if isinstance(page.metadata, UnsetType) else loads(bytes(page.metadata))
                content = BackupContent(page.backup, [], metadata, {}, page.damaged)
                # The one taken last may be another one by the next page.
                backup = page.backup.backup
            content.states.update((namespace, loads(bytes(raw))) for namespace, raw in page.states.items())
            content.messages += [loads(bytes(raw)) for raw in page.messages]
            cursor = page.cursor
            if cursor is None:
                return content

    async def repair(self, chat: str, *, apply: bool = False) -> ChatRepairFrame:
        """What is wrong with a chat's files and what the server can put right; with `apply`, do it. Every file is kept
        as it was, and replicas of the chat are reset.
        """
        return cast(ChatRepairFrame, await self._ask(ChatRepair(chat, apply)))

    async def trash(self) -> list[TrashEntry]:
        """Everything in the trash, what was deleted last first."""
        return cast(TrashListFrame, await self._ask(TrashList())).entries

    async def empty_trash(
        self, entries: Sequence[str] | None = None, *, before_ms: int | None = None
    ) -> list[str]:
        """Remove entries for good: those named, or those deleted before a moment. Which ones went."""
        request = TrashEmpty(
            UNSET if entries is None else list(entries), UNSET if before_ms is None else before_ms
        )
        return cast(TrashEmptied, await self._ask(request)).entries

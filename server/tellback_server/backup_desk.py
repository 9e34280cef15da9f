"""Backup desk: what a user asks of backups: which there are, one more, what one holds.

Rules of this module (BEHAVIOUR Z10, Z11):
- A chat is found by its name, its id, or the name that it had when it went to the trash; only its own user finds it.
- What a backup holds is told in pages; it is read and compared with its manifest once for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec import Raw

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
from tellback_protocol.chat import with_id
from tellback_protocol.errors import Refused
from tellback_protocol.ids import SIDECAR_MARK, ChatById, namespace_problem, parse_chat
from tellback_protocol.values import UNDECODABLE, servable
from tellback_server.backup_folder import BackupDamaged, Manifest, Taken
from tellback_server.backups import Backups
from tellback_server.fs import FileUnreadable, FileUnsafe
from tellback_server.hub import Hub
from tellback_server.store.files import CHAT_ENDING, STATE_ENDING
from tellback_server.store.held import OutsideEdit
from tellback_server.store.jsonl import ParsedChat
from tellback_server.store.jsonl import parse_chat as parse_lines
from tellback_server.tab import Tab

__all__ = ["BackupDesk"]

PAGE_BYTES: Final = 256 << 10
"""A page ends behind this; one message or state always fits."""


class _Held(msgspec.Struct):
    """The backup that was read last for a user."""

    chat_id: str
    manifest: Manifest
    parsed: ParsedChat | None
    states: dict[str, bytes]


class BackupDesk:
    """See the module. Loop thread; files are read in threads."""

    def __init__(self, hub: Hub, backups: Backups) -> None:
        self._hub = hub
        self._backups = backups
        self._held: dict[str, _Held] = {}

    async def answer(self, tab: Tab, request: BackupList | BackupCreate | BackupGet) -> object:
        """The frame that answers. Raises Refused, OSError."""
        match request:
            case BackupList():
                return await self._list(tab.user, request)
            case BackupCreate():
                return await self._create(tab.user, request)
            case BackupGet():
                return await self._get(tab.user, request)

    async def _list(self, user: str, request: BackupList) -> BackupListFrame:
        folder = self._backups.folder
        if isinstance(request.chat, str):
            chat_id = await self._chat_id(user, request.chat)
            found = await self._hub.in_thread(lambda: folder.entries(user, chat_id))
            return BackupListFrame(chat_id=chat_id, backups=[listed(one) for one in found], id=request.id)

        def chats() -> list[BackedUpChat]:
            rows: list[BackedUpChat] = []
            for chat_id in folder.owners(user):
                entries = folder.entries(user, chat_id)
                if entries:
                    # Files that several share count once.
                    sizes = {one.file: one.size_bytes for entry in entries for one in entry.files.values()}
                    last = next((one for one in entries if not one.is_piece), entries[0])
                    rows.append(BackedUpChat(chat_id, len(entries), sum(sizes.values()), listed(last)))
            return sorted(rows, key=lambda row: row.last.taken_ms, reverse=True)

        return BackupListFrame(chats=await self._hub.in_thread(chats), id=request.id)

    async def _create(self, user: str, request: BackupCreate) -> BackupCreated:
        taken = await self._taken(user, request)
        return BackupCreated(taken.manifest.chat_id, listed(taken.manifest), taken.is_new, request.id)

    async def _taken(self, user: str, request: BackupCreate) -> Taken:
        actor = await self._hub.settled_chat(user, request.chat)
        if actor is None or actor.stream is None or actor.state == "missing":
            raise Refused("not-found", "There is no such chat.", pointer="/chat")
        if actor.state == "gone":
            raise Refused("deleted", actor.stream.in_trash(), pointer="/chat", details={"chat_id": actor.chat_id})
        try:
            return await self._backups.keep(actor, "demand")
        except Refused:
            if actor.state != "ended":
                raise
            # It left memory meanwhile, or became another one; its successor answers.
            return await self._taken(user, request)
        except OutsideEdit:
            self._hub.shelf.look(actor)
            raise Refused(
                "unreadable", "Another program changed the chat just now; ask again.", details={"after_ms": 500}
            ) from None
        except FileUnsafe:
            raise Refused("unsafe-file", "A link or no regular file is in the way; it is not followed.") from None
        except FileUnreadable:
            raise
        except OSError:
            raise Refused("storage-full", "The backup could not be written; nothing else was touched.") from None

    async def _get(self, user: str, request: BackupGet) -> BackupFrame:
        chat_id = await self._chat_id(user, request.chat)
        held = self._held.get(user)
        if held is None or held.chat_id != chat_id or held.manifest.backup != request.backup or request.cursor is None:
            held = await self._hub.in_thread(lambda: self._read(user, chat_id, request.backup))
            self._held[user] = held
        frame = _page(held, request.cursor, request.id)
        if frame.cursor is None:
            del self._held[user]
        return frame

    def _read(self, user: str, chat_id: str, backup: str) -> _Held:
        folder = self._backups.folder
        manifest = folder.find(user, chat_id, backup)
        if manifest is None:
            raise Refused("backup-unknown", f"The chat has no backup {backup[:64]!r}.", pointer="/backup")
        try:
            contents = folder.read(user, manifest)
        except BackupDamaged as error:
            raise Refused("backup-damaged", f"{error}.", pointer="/backup") from None
        lines = contents.get(CHAT_ENDING)
        states = {
            namespace: data for ending, data in contents.items()
            if (namespace := namespace_of(ending)) is not None and _is_json(data)
        }
        headed = not manifest.name.startswith("group:")
        return _Held(chat_id, manifest, None if lines is None else parse_lines(lines, headed=headed), states)

    # -- whose -------------------------------------------------------------------------------------------------------

    async def _chat_id(self, user: str, chat: str) -> str:
        """The id of a chat, also of one that is not there any more and has backups."""
        address = parse_chat(chat)
        if isinstance(address, ChatById):
            chat_id = address.chat_id
            if chat_id in await self._hub.in_thread(lambda: self._backups.folder.owners(user)):
                return chat_id
        actor = await self._hub.settled_chat(user, chat)
        if actor is not None and actor.stream is not None and actor.chat_id:
            return actor.chat_id
        former = None if isinstance(address, ChatById) else self._hub.lives.former(user, chat)
        if former is not None and former.chat_id:
            return former.chat_id
        raise Refused("not-found", "There is no such chat.", pointer="/chat")


def listed(manifest: Manifest) -> ListedBackup:
    """A backup as users see it."""
    found = ListedBackup(manifest.backup, manifest.taken_ms, manifest.reason, manifest.size_bytes)
    if not manifest.is_piece:
        found.chat, found.version, found.count = manifest.name, manifest.version, manifest.count
    found.namespaces = sorted(filter(None, map(namespace_of, manifest.files)))
    return found


def namespace_of(ending: str) -> str | None:
    """The namespace of one of a backup's files; the states of a piece are named by it alone."""
    if not ending.endswith(STATE_ENDING):
        return None
    namespace = ending.removesuffix(STATE_ENDING).removeprefix(SIDECAR_MARK).removeprefix(".")
    return None if namespace_problem(namespace) is not None else namespace


def _is_json(data: bytes) -> bool:
    try:
        msgspec.json.decode(data)
    except UNDECODABLE:
        return False
    return True


def _page(held: _Held, cursor: str | None, request_id: int | None) -> BackupFrame:
    """States first, then messages; `cursor` counts both."""
    parsed = held.parsed
    messages = [] if parsed is None else list(parsed.messages.items())
    states = sorted(held.states.items())
    at = 0
    if cursor is not None:
        if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 12:
            raise Refused("bad-frame", "That cursor is not of this backup.", pointer="/cursor")
        at = int(cursor)
    frame = BackupFrame(held.chat_id, listed(held.manifest), None, id=request_id)
    if not at and parsed is not None:
        frame.metadata = Raw(servable(parsed.metadata))
        frame.damaged = len(parsed.damage)
    size_bytes = 0

    def rows() -> Iterator[tuple[int, str, bytes]]:
        for index in range(at, len(states)):
            yield index, *states[index]
        for index in range(max(0, at - len(states)), len(messages)):
            yield len(states) + index, *messages[index]

    for index, name, data in rows():
        if size_bytes > PAGE_BYTES:
            frame.cursor = str(index)
            break
        size_bytes += len(data)
        if index < len(states):
            frame.states[name] = Raw(servable(data))
        else:
            if not frame.messages:
                frame.first = index - len(states)
            frame.messages.append(Raw(_with_id(name, data, held)))
    return frame


def _with_id(message_id: str, line: bytes, held: _Held) -> bytes:
    parsed = held.parsed
    assert parsed is not None, "it has messages"
    return servable(with_id(line, message_id) if message_id in parsed.bare else line)

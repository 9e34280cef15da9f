"""Chat index: what each of a user's files tells, remembered by its stat, so that a list reads only what changed.

    index = ChatIndex(files, user)     in a thread, all of it
    folder = index.look()              every file is looked at, changed ones are read; a Folder never changes again
    index.save()                       `.tellback/index/<user>.jsonl`, atomically; derived data and never the truth

Rules of this module (BEHAVIOUR I1-I4):
- An entry holds for exactly one size, mtime and inode; anything else is read again.
- What is missing, damaged, of another format or of another user is rebuilt from the folders, with one line in the log.
- A file that cannot be read now is listed all the same, as damaged, and read again the next time.
- No link is followed; names that are no Unicode are left out, as everywhere.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Mapping
from typing import Any, Final, Literal

import msgspec
import structlog

from tellback_protocol.ids import SIDECAR_MARK, CharacterChat, GroupChat, existing_name_problem
from tellback_protocol.values import UNDECODABLE, loads, servable
from tellback_server.clock import Clock
from tellback_server.fs import FileMark, FileMissing, FsError
from tellback_server.store.card import Card, read_card
from tellback_server.store.chat_summary import ChatSummary, summarize
from tellback_server.store.files import CHAT_ENDING, STATE_ENDING, SYNC_NAMESPACE, FileStore

__all__ = ["ChatEntry", "ChatIndex", "Folder", "GroupEntry", "index_problem"]

log = structlog.get_logger()

FORMAT: Final = 1
_SYNC_ENDING: Final = f"{SIDECAR_MARK}{SYNC_NAMESPACE}{STATE_ENDING}"
CARD_ENDING: Final = ".png"
GROUP_ENDING: Final = ".json"
GROUP_BYTES_MAX: Final = 8 << 20
LOOKS_MAX: Final = 4
WORK_S: Final = 0.002
PAUSE_S: Final = 0.0003
"""Reading many files is paused this long after each piece of work, so that the loop is never kept for long."""


class ChatEntry(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A chat's file. Persisted in the index."""

    chat: str
    """The chat's address."""
    mark: FileMark
    summary: ChatSummary
    sync_inode: int = 0
    """The chat_sync beside it; 0 when there is none. It is replaced whole, so that another one is another inode."""
    sync_id: str | None = None
    """The chat_id and name that it tells."""
    sync_name: str | None = None


class CardEntry(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A character's picture. Persisted in the index."""

    avatar: str
    mark: FileMark
    card: Card


class GroupEntry(msgspec.Struct, frozen=True, gc=False):
    """A group's file."""

    file: str
    mark: FileMark
    raw: bytes
    """One JSON object as the wire takes it; empty when the file holds none."""
    id: str
    chat: str | None
    """The chat that SillyTavern has active."""
    chats: list[str]


class Folder(msgspec.Struct, frozen=True):
    """A user's files as they were at one moment. Shared between threads, so nothing in it changes."""

    chats: dict[str, ChatEntry]
    """By address."""
    cards: dict[str, CardEntry]
    """By the character's name."""
    groups: dict[str, GroupEntry]
    """By id."""
    group_of: dict[str, str]
    """The group's id by the chat's name."""
    by_id: dict[str, str]
    """Addresses by chat_id, of chats that we wrote to."""
    order: list[tuple[int, str]]
    """When each chat changed, in ns, and its address; sorted."""

    def chat_id(self, chat: str) -> str | None:
        """The permanent id of a chat that we wrote to.

        A chat_sync that names another chat which still exists was copied by hand.
        """
        entry = self.chats.get(chat)
        if entry is None or entry.sync_id is None:
            return None
        is_copied = entry.sync_name != chat and entry.sync_name in self.chats
        return None if is_copied else entry.sync_id


EMPTY: Final = Folder({}, {}, {}, {}, {}, [])


class _Head(msgspec.Struct):
    format: int
    user: str
    crc32: int


class ChatIndex:
    """One user's. One call at a time, from any thread; every method blocks."""

    def __init__(self, files: FileStore, user: str, clock: Clock) -> None:
        self._files = files
        self._fs = files.fs
        self._clock = clock
        self.user = user
        self.path = os.path.join(files.server_root, "index", f"{user}.jsonl")
        self.folder = EMPTY
        """As it was found last."""
        self.is_dirty = False
        """The index file does not hold what is known."""
        self._is_loaded = False
        self._worked_s = 0.0
        self._deleted: dict[str, ChatEntry] = {}
        """Of the trash, by path."""
        self._busy = threading.Lock()
        """Whoever asked may have left while a thread was still at work."""

    def look(self) -> Folder:
        """The user's files now. Cost: a stat a file, and a read of each one that changed. Raises FsError, OSError."""
        with self._busy:
            return self._look()

    def _look(self) -> Folder:
        if not self._is_loaded:
            self._load()
            self._is_loaded = True
        began_s = self._worked_s = self._clock.monotonic_s()
        before = self.folder
        try:
            root = self._files.user_root(self.user)
        except FileMissing:
            root = ""
        for _try in range(LOOKS_MAX):
            folders = self._fs.stat(os.path.join(root, "chats")) if root else None
            chats, read = self._chats(root, before.chats)
            # A character's folder that was renamed meanwhile was perhaps seen twice, or not at all.
            if not root or self._fs.stat(os.path.join(root, "chats")) == folders:
                break
        cards = self._cards(root, before.cards)
        groups = self._groups(root, before.groups)
        is_same = read == 0 and len(chats) == len(before.chats) and cards == before.cards and groups == before.groups
        if not is_same:
            self.folder = folder_of_chats(chats, cards, groups)
            self.is_dirty = True
            if read > 1:
                duration_ms = round((self._clock.monotonic_s() - began_s) * 1000, 3)
                log.info("index-refreshed", user=self.user, chats=len(chats), read=read, duration_ms=duration_ms)
        return self.folder

    # -- chats -------------------------------------------------------------------------------------------------------

    def _chats(self, root: str, known: Mapping[str, ChatEntry]) -> tuple[dict[str, ChatEntry], int]:
        found: dict[str, ChatEntry] = {}
        read = 0
        for character in self._folders(root, "chats"):
            folder = os.path.join(root, "chats", character)
            read += self._chats_in(folder, str(CharacterChat(character, "")), known, found)
        read += self._chats_in(os.path.join(root, "group chats"), str(GroupChat("")), known, found)
        return found, read

    def _chats_in(
        self, folder: str, prefix: str, known: Mapping[str, ChatEntry], found: dict[str, ChatEntry]
    ) -> int:
        marks, inodes = self._scan(folder, CHAT_ENDING)
        if not marks:
            return 0
        read = 0
        is_headed = prefix.startswith("character:")
        for name, mark in marks.items():
            chat = name[: -len(CHAT_ENDING)]
            address = prefix + chat
            sync_inode = inodes.get(chat + _SYNC_ENDING, 0)
            entry = known.get(address)
            if entry is not None and entry.mark == mark and entry.sync_inode == sync_inode:
                found[address] = entry
                continue
            if existing_name_problem(chat):
                continue
            read += 1
            found[address] = self._read_chat(os.path.join(folder, name), address, is_headed, sync_inode, entry, mark)
        return read

    def _read_chat(
        self, path: str, address: str, is_headed: bool, sync_inode: int, entry: ChatEntry | None, mark: FileMark
    ) -> ChatEntry:
        summary, now = self._summary(path, is_headed, mark, entry)
        sync_id = sync_name = None
        if sync_inode:
            sync_id, sync_name = self._sync(path.removesuffix(CHAT_ENDING) + _SYNC_ENDING)
        self._breathe()
        return ChatEntry(address, now, summary, sync_inode, sync_id, sync_name)

    def _summary(
        self, path: str, is_headed: bool, mark: FileMark, entry: ChatEntry | None = None
    ) -> tuple[ChatSummary, FileMark]:
        """What the file holds, and the stat that this is true for."""
        if entry is not None and entry.mark == mark:
            return entry.summary, mark
        try:
            with self._fs.open_read(path) as file:
                stat = file.stat()
                data = file.pread(stat.size_bytes, 0)
        except OSError as error:
            log.warning("index-unreadable", path=os.path.relpath(path, self._files.data_root), error=str(error))
            # A stat that no file has: the next look tries again.
            return ChatSummary(0, damaged=True), FileMark(mark.size_bytes, mark.mtime_ns, 0)
        return summarize(data, headed=is_headed), FileMark(stat.size_bytes, stat.mtime_ns, stat.inode)

    def _sync(self, path: str) -> tuple[str | None, str | None]:
        try:
            mark = loads(self._fs.read(path))["tellback"]
            chat_id, name = mark["chat_id"], mark["name"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None, None
        return (chat_id, name) if isinstance(chat_id, str) and isinstance(name, str) else (None, None)

    def read_deleted(self, path: str, chat: str) -> ChatEntry | None:
        """What a chat's file in the trash holds; None when it is not there. Remembered while this index is."""
        stat = self._fs.stat(path)
        if stat is None or not stat.is_regular:
            return None
        mark = FileMark(stat.size_bytes, stat.mtime_ns, stat.inode)
        entry = self._deleted.get(path)
        if entry is None or entry.mark != mark:
            self._breathe()
            summary, mark = self._summary(path, chat.startswith("character:"), mark)
            entry = self._deleted[path] = ChatEntry(chat, mark, summary)
        return entry

    # -- characters and groups ---------------------------------------------------------------------------------------

    def _cards(self, root: str, known: Mapping[str, CardEntry]) -> dict[str, CardEntry]:
        folder = os.path.join(root, "characters")
        marks, _inodes = self._scan(folder, CARD_ENDING)
        found: dict[str, CardEntry] = {}
        for avatar in sorted(marks):
            mark = marks[avatar]
            name = avatar.removesuffix(CARD_ENDING)
            if existing_name_problem(name):
                continue
            entry = known.get(name)
            if entry is None or entry.mark != mark:
                entry = CardEntry(avatar, mark, self._card(os.path.join(folder, avatar)))
                self._breathe()
            found[name] = entry
        return found

    def _card(self, path: str) -> Card:
        try:
            with self._fs.open_read(path) as file:
                return read_card(file, file.stat().size_bytes)
        except OSError:
            return Card()

    def _groups(self, root: str, known: Mapping[str, GroupEntry]) -> dict[str, GroupEntry]:
        folder = os.path.join(root, "groups")
        marks, _inodes = self._scan(folder, GROUP_ENDING)
        before = {entry.file: entry for entry in known.values()}
        found: dict[str, GroupEntry] = {}
        for file in sorted(marks):
            entry = before.get(file)
            if entry is None or entry.mark != marks[file]:
                entry = self._group(folder, file, marks[file])
            if entry is not None:
                found[entry.id] = entry
        return found

    def _group(self, folder: str, file: str, mark: FileMark) -> GroupEntry | None:
        try:
            raw = self._fs.read(os.path.join(folder, file)) if mark.size_bytes <= GROUP_BYTES_MAX else b""
            value: Any = loads(raw)
        except (OSError, ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            log.warning("group-unreadable", user=self.user, file=file)
            return None
        group_id = value.get("id")
        chat, chats = value.get("chat_id"), value.get("chats")
        names = [name for name in chats if isinstance(name, str)] if isinstance(chats, list) else []
        return GroupEntry(
            file, mark, servable(raw.removeprefix(b"\xef\xbb\xbf").strip()),
            group_id if isinstance(group_id, str) and group_id else file.removesuffix(GROUP_ENDING),
            chat if isinstance(chat, str) else None, names,
        )

    # -- looking -----------------------------------------------------------------------------------------------------

    def _folders(self, root: str, name: str) -> list[str]:
        path = os.path.join(root, name)
        if not root or not self._is_folder(path):
            return []
        return [inner for inner in self._fs.listdir(path) if _is_text(inner)]

    def _scan(self, folder: str, ending: str) -> tuple[dict[str, FileMark], dict[str, int]]:
        if not self._is_folder(folder):
            return {}, {}
        try:
            marks, inodes = self._fs.scan(folder, ending)
        except FileMissing:
            return {}, {}
        return {name: mark for name, mark in marks.items() if name != ending and _is_text(name)}, inodes

    def _is_folder(self, path: str) -> bool:
        found = self._fs.stat(path)
        return found is not None and found.is_directory

    def _breathe(self) -> None:
        if self._clock.monotonic_s() - self._worked_s > WORK_S:
            self._clock.pause(PAUSE_S)
            self._worked_s = self._clock.monotonic_s()

    # -- the file ----------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the index file when it is not up to date. Durable on return. Raises OSError."""
        with self._busy:
            if self.is_dirty:
                self._save()

    def _save(self) -> None:
        folder = self.folder
        self.is_dirty = False
        lines: list[bytes] = []
        for kind, entries in (("chat", folder.chats), ("card", folder.cards)):
            for number, entry in enumerate(entries.values()):
                lines.append(msgspec.json.encode((kind, entry)))
                if number % 500 == 0:
                    self._breathe()
        body = b"\n".join(lines)
        head = msgspec.json.encode(_Head(FORMAT, self.user, zlib.crc32(body)))
        self._fs.make_directories(os.path.dirname(self.path))
        try:
            self._fs.write_atomically(self.path, head + b"\n" + body, verify=False)
        except OSError:
            self.is_dirty = True
            raise

    def _load(self) -> None:
        reason: str | None = "missing"
        try:
            data = self._fs.read(self.path)
            reason = index_problem(data, self.user)
            if reason is None:
                self._restore(data.partition(b"\n")[2])
                return
        except FileMissing:
            pass
        except (FsError, *UNDECODABLE) as error:
            reason = f"damaged: {error}"[:200]
        log.info("index-rebuilt", user=self.user, reason=reason)

    def _restore(self, body: bytes) -> None:
        chats: dict[str, ChatEntry] = {}
        cards: dict[str, CardEntry] = {}
        self._worked_s = self._clock.monotonic_s()
        for number, line in enumerate(body.split(b"\n") if body else ()):
            _kind, entry = _decode_line(line)
            if isinstance(entry, ChatEntry):
                chats[entry.chat] = entry
            else:
                cards[entry.avatar.removesuffix(CARD_ENDING)] = entry
            if number % 500 == 0:
                self._breathe()
        self.folder = folder_of_chats(chats, cards, {})


def index_problem(data: bytes, user: str) -> str | None:
    """Why an index file cannot be used, or None."""
    head, _end, body = data.partition(b"\n")
    try:
        found = msgspec.json.decode(head, type=_Head)
    except UNDECODABLE as error:
        return f"damaged: {error}"[:200]
    if found.format != FORMAT or found.user != user:
        return "foreign"
    return None if found.crc32 == zlib.crc32(body) else "damaged"


def _decode_line(line: bytes) -> tuple[str, ChatEntry | CardEntry]:
    if line.startswith(b'["chat"'):
        return _decode_chat(line)
    return _decode_card(line)


_decode_chat = msgspec.json.Decoder(tuple[Literal["chat"], ChatEntry]).decode
_decode_card = msgspec.json.Decoder(tuple[Literal["card"], CardEntry]).decode


def folder_of_chats(chats: dict[str, ChatEntry], cards: dict[str, CardEntry], groups: dict[str, GroupEntry]) -> Folder:
    group_of = {chat: group.id for group in groups.values() for chat in (*group.chats, group.chat) if chat is not None}
    order = sorted((entry.mark.mtime_ns, chat) for chat, entry in chats.items())
    folder = Folder(chats, cards, groups, group_of, {}, order)
    for chat in chats:
        chat_id = folder.chat_id(chat)
        if chat_id is not None:
            folder.by_id[chat_id] = chat
    return folder


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True

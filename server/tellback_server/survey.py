"""Survey: what the folders say just before a life write is decided: which names are free, what belongs to a chat.

Rules of this module:
- Every function blocks and only reads; the lifecycle calls it in a thread, one life write of a user at a time.
- A name is free when no file stands under it, no state file belongs to it, and no other name differs from it only in
  case or Unicode form.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Final

import msgspec

from tellback_protocol.ids import SIDECAR_MARK, CharacterChat, ChatName, GroupChat
from tellback_protocol.values import loads
from tellback_server.fs import FileMissing, FileStat, FsError
from tellback_server.store.files import CHAT_ENDING, STATE_ENDING, SYNC_NAMESPACE, ChatSync, FileStore, twin_key
from tellback_server.store.groups import groups_with

__all__ = ["ChatFiles", "chat_files", "folder_of", "linked_from", "taken", "target_path"]

_LINE_BYTES: Final = 1 << 16
"""A header of ordinary size is read with one read."""


class ChatFiles(msgspec.Struct, kw_only=True):
    """Everything that belongs to a chat."""

    folder: str
    """Below the user's root."""
    chat: str
    files: dict[str, FileStat]
    """Names in the folder: the chat's file and all sidecars but chat_sync."""
    sync: ChatSync | None
    sync_stat: FileStat | None
    groups: list[str]
    """Paths of the groups that hold it."""

    def renamed(self, name: str, to: str) -> str:
        """The name of one of the files when the chat is called `to`."""
        return to + name[len(self.chat) :]

    @property
    def sync_name(self) -> str:
        return f"{self.chat}{SIDECAR_MARK}{SYNC_NAMESPACE}{STATE_ENDING}"


def folder_of(place: ChatName) -> str:
    """The chat's folder below the user's root."""
    return f"chats/{place.character}" if isinstance(place, CharacterChat) else "group chats"


def target_path(place: ChatName) -> str:
    """The chat's file below the user's root."""
    return f"{folder_of(place)}/{place.chat}{CHAT_ENDING}"


def _names(files: FileStore, user: str, folder: str) -> list[str]:
    with contextlib.suppress(FileMissing):
        return files.fs.listdir(files.checked_path(user, folder))
    return []


def chat_files(files: FileStore, user: str, place: ChatName) -> ChatFiles:
    """See ChatFiles. Raises FileUnsafe, OSError."""
    folder = folder_of(place)
    names = _names(files, user, folder)
    others = [name.removesuffix(CHAT_ENDING) for name in names if name.endswith(CHAT_ENDING)]
    start = place.chat + SIDECAR_MARK
    sync_name = f"{start}{SYNC_NAMESPACE}{STATE_ENDING}"
    found: dict[str, FileStat] = {}
    sync_stat: FileStat | None = None
    for name in names:
        is_state = name.startswith(start) and name.endswith(STATE_ENDING)
        if is_state:
            # A chat whose name goes on behind the mark has state files of its own.
            is_state = not any(
                len(other) > len(place.chat) and name.startswith(other + SIDECAR_MARK) for other in others
                if other.startswith(start)
            )
        if not is_state and name != place.chat + CHAT_ENDING:
            continue
        stat = files.fs.stat(files.checked_path(user, f"{folder}/{name}"))
        if stat is None or not stat.is_regular:
            continue
        if name == sync_name:
            sync_stat = stat
        else:
            found[name] = stat
    # The chat's own file first.
    found = dict(sorted(found.items(), key=lambda item: not item[0].endswith(CHAT_ENDING)))
    groups = [] if isinstance(place, CharacterChat) else groups_with(files, user, place.chat)
    return ChatFiles(
        folder=folder, chat=place.chat, files=found, sync=files.read_sync(user, place), sync_stat=sync_stat,
        groups=groups,
    )


def taken(files: FileStore, user: str, target: ChatName, own: ChatFiles | None = None) -> str | None:
    """Why `target` is not free, as a sentence, or None. What `own` holds is in nobody's way."""
    folder = folder_of(target)
    if isinstance(target, CharacterChat):
        for other in _names(files, user, "chats"):
            if other != target.character and twin_key(other) == twin_key(target.character):
                return "A character's folder whose name differs only in case or Unicode form is there."
    wanted = twin_key(target.chat + CHAT_ENDING)
    start = twin_key(target.chat + SIDECAR_MARK)
    mine = set() if own is None or own.folder != folder else {*own.files, own.sync_name}
    for name in _names(files, user, folder):
        if name in mine:
            continue
        key = twin_key(name)
        if name == target.chat + CHAT_ENDING:
            return "The name is taken."
        if key == wanted:
            return "A name that differs only in case or Unicode form is taken."
        if key.startswith(start) and key.endswith(STATE_ENDING):
            return "State files of another chat stand under that name."
    return None


def linked_from(
    files: FileStore, user: str, place: ChatName, main_chat: object, live: Mapping[str, tuple[bytes, list[bytes]]]
) -> list[str]:
    """Chats that link to this one: those branched from it, and the one that it was branched from.

    `live` are metadata and messages of chats that are open, by full name: their files may trail. Cost: the header of
    each chat beside it, and its parent's file.
    """
    folder = folder_of(place)
    spellings = _spellings(place.chat)
    found: list[str] = []
    for name in _names(files, user, folder):
        if not name.endswith(CHAT_ENDING) or name == place.chat + CHAT_ENDING:
            continue
        other = name.removesuffix(CHAT_ENDING)
        full = str(CharacterChat(place.character, other) if isinstance(place, CharacterChat) else GroupChat(other))
        with contextlib.suppress(FsError, OSError, ValueError):
            path = files.checked_path(user, f"{folder}/{name}")
            if full in live:
                metadata, lines = live[full]
                is_linked = _main_chat(b'{"chat_metadata":%b}' % metadata) == place.chat or (
                    other == main_chat and any(spelled in line for line in lines for spelled in spellings)
                )
            elif other == main_chat:
                # As every program spells it in a line: one of the two ways of writing JSON.
                data = files.fs.read(path)
                is_linked = any(spelled in data for spelled in spellings)
            else:
                is_linked = _main_chat(_first_line(files, path)) == place.chat
            if is_linked:
                found.append(full)
    return found


def _spellings(name: str) -> set[bytes]:
    return {json.dumps(name, ensure_ascii=plain).encode("utf-8", "surrogatepass") for plain in (True, False)}


def _first_line(files: FileStore, path: str) -> bytes:
    with files.fs.open_read(path) as file:
        data = file.pread(_LINE_BYTES, 0)
        while b"\n" not in data:
            more = file.pread(_LINE_BYTES, len(data))
            if not more:
                break
            data += more
    return data.split(b"\n", 1)[0].removeprefix(b"\xef\xbb\xbf")


def _main_chat(line: bytes) -> object:
    header = loads(line)
    for key in ("chat_metadata", "metadata"):
        metadata = header.get(key) if isinstance(header, dict) else None
        if isinstance(metadata, dict) and "main_chat" in metadata:
            return metadata["main_chat"]
    return None

"""File desk: what a user asks of files of other programs beside the chats: which there are, and their bytes.

Rules of this module (BEHAVIOUR I16):
- Cards, files of groups and presets, nothing else: chats and states are told by their owners, and what is the server's
  own is nobody's business.
- Links are not followed, and nothing outside the user's folder is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tellback_protocol.errors import Refused
from tellback_protocol.files import FileFrame, FileGet, FileList, FileListFrame, ListedFile
from tellback_protocol.ids import (
    CHARACTER_SIDECAR_MARK,
    PRESET_FOLDERS,
    SIDECAR_MARK,
    existing_name_problem,
)
from tellback_server.fs import FileMissing, FileStat
from tellback_server.hub import Hub
from tellback_server.store.files import FileStore
from tellback_server.store.groups import FOLDER as GROUPS
from tellback_server.store.place import CARD_ENDING, CHARACTERS, STATE_ENDING, is_text
from tellback_server.tab import Tab

__all__ = ["FileDesk"]

PIECE_BYTES: Final = 192 << 10
"""Of one frame; a quarter more in base64."""
_NS_MS: Final = 1_000_000
_ENDINGS: Final = {CHARACTERS: CARD_ENDING, GROUPS: STATE_ENDING, **dict.fromkeys(PRESET_FOLDERS, STATE_ENDING)}
"""How names end, by folder."""


class FileDesk:
    """See the module. Loop thread; files are read in threads."""

    def __init__(self, hub: Hub, files: FileStore) -> None:
        self._hub = hub
        self._files = files

    async def answer(self, tab: Tab, request: FileList | FileGet) -> object:
        """The frame that answers. Raises Refused, OSError."""
        if isinstance(request, FileGet):
            return await self._hub.in_thread(lambda: self._piece(tab.user, request))
        return await self._hub.in_thread(lambda: self._page(tab.user, request))

    def _page(self, user: str, request: FileList) -> FileListFrame:
        """Cost: listing the folders, and a look at each file of the page."""
        found: list[ListedFile] = []
        cursor: str | None = None
        for path in self._paths(user):
            if request.cursor is not None and path <= request.cursor:
                continue
            if len(found) == request.limit:
                cursor = found[-1].path
                break
            stat = self._stat(user, path)
            if stat is not None:
                found.append(_listed(path, stat))
        return FileListFrame(found, cursor, request.id)

    def _paths(self, user: str) -> Iterator[str]:
        for folder in sorted(_ENDINGS):
            try:
                names = self._files.fs.listdir(self._files.checked_path(user, f"{folder}/x").removesuffix("/x"))
            except FileMissing:
                continue
            yield from sorted(f"{folder}/{name}" for name in names if _is_told(folder, name))

    def _stat(self, user: str, path: str) -> FileStat | None:
        stat = self._files.fs.stat(self._files.checked_path(user, path))
        return stat if stat is not None and stat.is_regular else None

    def _piece(self, user: str, request: FileGet) -> FileFrame:
        folder, _slash, name = request.path.partition("/")
        missing = Refused("not-found", "There is no such card, group or preset.", pointer="/path")
        if not _is_told(folder, name):
            raise missing
        try:
            with self._files.fs.open_read(self._files.checked_path(user, request.path)) as file:
                return FileFrame(
                    _listed(request.path, file.stat()), request.offset, file.pread(PIECE_BYTES, request.offset),
                    request.id,
                )
        except FileMissing:
            raise missing from None


def _is_told(folder: str, name: str) -> bool:
    ending = _ENDINGS.get(folder)
    return (
        ending is not None and name.endswith(ending) and is_text(name) and existing_name_problem(name) is None
        and name[0] != "." and SIDECAR_MARK not in name
        and not (folder == CHARACTERS and CHARACTER_SIDECAR_MARK in name)
    )


def _listed(path: str, stat: FileStat) -> ListedFile:
    return ListedFile(path, stat.size_bytes, stat.mtime_ns // _NS_MS)

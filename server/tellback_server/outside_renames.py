"""Renames by another program, which move a chat's file and leave its states behind: they follow it.

    renames.follow(user, place)      before a chat without chat_sync is read
    renames.home_of(user, place)     where the file of left states went, before they go to the trash
    renames.bring(user, old, new)    the states take the new name

Rules of this module (BEHAVIOUR Q8, STORAGE "Trash"):
- Left states belong to the one file, in the folder that they are in, that begins with the bytes that their chat had,
  as its chat_sync or the log tells. More may have been appended since; one that was saved anew is not known again.
- Where several files or several chat_syncs would fit, or a place is taken, everything stays as it is.
- The chat_sync goes last, so that a move that was cut off anywhere is gone on with.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Collection

import structlog

from tellback_protocol.ids import CharacterChat, ChatName, Place, StateOwner, existing_name_problem, sidecar_name
from tellback_server.clock import Clock
from tellback_server.failpoint import failpoint
from tellback_server.fs import FileMissing, FileUnreadable, FileUnsafe
from tellback_server.owner_past import LogReader, OwnerPast
from tellback_server.records import owner_key
from tellback_server.sessions import read_sessions
from tellback_server.store.files import SYNC_NAMESPACE, FileStore
from tellback_server.store.place import CHAT_ENDING, file_of, is_nameable, is_text, state_of

__all__ = ["OutsideRenames"]

log = structlog.get_logger()

_Known = Collection[tuple[int, int]]
"""Length and CRC-32 of the bytes that a chat's file had."""


class OutsideRenames:
    """See the module. Every method blocks, and raises OSError, LogError."""

    def __init__(self, files: FileStore, records: LogReader, clock: Clock) -> None:
        self._files = files
        self._records = records
        self._clock = clock

    def follow(self, user: str, place: Place) -> None:
        """Brings the states of the chat that another program gave this name. Cost: a listing of its folder, of a chat
        without chat_sync; its file and what is known of them is read when left states might be its.
        """
        if isinstance(place, StateOwner):
            return
        folders, own = file_of(place)
        standing = self._standing(user, place)
        if own not in standing or sidecar_name(place, SYNC_NAMESPACE) in standing:
            return
        left = [
            owned[0] for name in standing
            if (owned := state_of(folders, name)) is not None and owned[1] == SYNC_NAMESPACE
            and file_of(owned[0])[1] not in standing
        ]
        found = [other for other in left if self._began_as(user, place, self._known_of(user, other))]
        if len(found) == 1:
            self.bring(user, found[0], place)

    def home_of(self, user: str, place: Place) -> ChatName | None:
        """The chat of another name in the same folder whose file is the one that left states here; None when there is
        none or several could be. Cost: a listing, and reading the chats without chat_sync that are as long.
        """
        known = () if isinstance(place, StateOwner) else self._known_of(user, place)
        if not known or isinstance(place, StateOwner):
            return None
        left = self._files.state_path(user, place, SYNC_NAMESPACE)
        found: list[ChatName] = []
        for name in self._standing(user, place):
            stem = name.removesuffix(CHAT_ENDING)
            if stem == name or existing_name_problem(stem):
                continue
            other = CharacterChat(place.character, stem) if isinstance(place, CharacterChat) else type(place)(stem)
            if not is_nameable(other, SYNC_NAMESPACE):
                continue
            # A move that was cut off leaves it under both names.
            is_free = self._is_free(left, self._files.state_path(user, other, SYNC_NAMESPACE))
            if is_free and self._began_as(user, other, known):
                found.append(other)
        return found[0] if len(found) == 1 else None

    def bring(self, user: str, old: Place, new: ChatName) -> bool:
        """Gives the states of `old` the name of `new`. False when a place is taken; then nothing was moved. Durable on
        return; again is harmless.
        """
        files = self._files
        folders, _own = file_of(old)
        owned = [
            found[1] for name in self._standing(user, old) if (found := state_of(folders, name)) and found[0] == old
        ]
        moves: list[tuple[str, str]] = []
        for namespace in sorted(owned, key=lambda one: (one == SYNC_NAMESPACE, one)):
            source = files.state_path(user, old, namespace)
            target = files.state_path(user, new, namespace) if is_nameable(new, namespace) else None
            if target is None or not self._is_free(source, target):
                log.warning("states-not-brought", owner=str(old), to=str(new), namespace=namespace)
                return False
            moves.append((source, target))
        with files.operation("bring-states", files.owner_path(user, new), owner=str(old), count=len(moves)):
            for source, target in moves:
                files.move(source, target)
                failpoint("outside_renames.after_move")
        log.info("states-brought", owner=str(old), to=str(new), count=len(moves))
        return True

    def _standing(self, user: str, place: Place) -> set[str]:
        fs = self._files.fs
        try:
            return {name for name in fs.listdir(os.path.dirname(self._files.owner_path(user, place))) if is_text(name)}
        except (FileMissing, FileUnsafe):
            return set()

    def _known_of(self, user: str, place: Place) -> _Known:
        """Of a chat that left its chat_sync: what that says, and the log, which knows of an edit taken over since."""
        try:
            sync = self._files.read_sync(user, place)
        except (FileUnreadable, FileUnsafe):
            return ()
        mark = None if sync is None else sync.mark
        if mark is None or not self._files.owns_mark(user, place, mark):
            return ()
        saved = read_sessions(self._files, user, mark.chat_id)
        past = OwnerPast.read(
            self._records, owner_key(user, mark.chat_id), None, saved, self._clock.now_ms(), outcomes=False
        )
        known = {(mark.watermark.bytes, mark.watermark.crc32)}
        if past.base is not None and past.base.file is not None:
            known.add((past.base.file.size_bytes, past.base.file.crc32))
        return {one for one in known if one[0]}

    def _began_as(self, user: str, place: Place, known: _Known) -> bool:
        try:
            stat = self._files.stat_owner(user, place)
            if stat is None or not stat.is_regular or not any(size <= stat.size_bytes for size, _crc32 in known):
                return False
            data = memoryview(self._files.read(self._files.owner_path(user, place)).data)
        except (FileMissing, FileUnreadable, FileUnsafe):
            return False
        return any(size <= len(data) and zlib.crc32(data[:size]) == crc32 for size, crc32 in known)

    def _is_free(self, source: str, target: str) -> bool:
        """Whether nothing stands there, or the file itself already does: a move was cut off."""
        standing = self._files.fs.stat(target)
        return standing is None or standing.is_file_of(self._files.fs.stat(source))

"""Renames by another program, which move a chat's file and leave its states behind: they follow it.

    follow(files, user, place)      before a chat without chat_sync is read
    home_of(files, user, place)     where the file of left states went, before they go to the trash
    bring(files, user, old, new)    the states take the new name

Rules of this module (BEHAVIOUR Q8, STORAGE "Trash"):
- Left states belong to the one file that begins with the bytes that their chat_sync says the chat had, in the folder
  that they are in. More may have been appended since; a file that was saved anew under the new name is not known again.
- Where several files or several chat_syncs would fit, or a place is taken, everything stays as it is.
- The chat_sync goes last, so that a move that was cut off anywhere is gone on with.
"""

from __future__ import annotations

import os
import zlib

import structlog

from tellback_protocol.ids import CharacterChat, ChatName, Place, StateOwner, existing_name_problem, sidecar_name
from tellback_server.failpoint import failpoint
from tellback_server.fs import FileMissing, FileUnreadable, FileUnsafe
from tellback_server.store.files import SYNC_NAMESPACE, FileStore, SyncMark
from tellback_server.store.place import CHAT_ENDING, file_of, is_nameable, is_text, state_of

__all__ = ["bring", "follow", "home_of"]

log = structlog.get_logger()


def follow(files: FileStore, user: str, place: Place) -> None:
    """Brings the states of the chat that another program gave this name. Cost: a listing of its folder, of a chat
    without chat_sync; its file is read when left states might be its. Raises OSError.
    """
    if isinstance(place, StateOwner):
        return
    folders, own = file_of(place)
    standing = _standing(files, user, place)
    if own not in standing or sidecar_name(place, SYNC_NAMESPACE) in standing:
        return
    left = [
        owned[0] for name in standing
        if (owned := state_of(folders, name)) is not None and owned[1] == SYNC_NAMESPACE
        and file_of(owned[0])[1] not in standing
    ]
    marks = [(other, mark) for other in left if (mark := _mark_of(files, user, other)) is not None]
    found = [other for other, mark in marks if _began_as(files, user, place, mark)]
    if len(found) == 1:
        bring(files, user, found[0], place)


def home_of(files: FileStore, user: str, place: Place) -> ChatName | None:
    """The chat of another name in the same folder whose file is the one that left states here; None when there is none
    or several could be. Cost: a listing, and reading the chats without chat_sync that are as long. Raises OSError.
    """
    mark = None if isinstance(place, StateOwner) else _mark_of(files, user, place)
    if mark is None or isinstance(place, StateOwner):
        return None
    left = files.state_path(user, place, SYNC_NAMESPACE)
    found: list[ChatName] = []
    for name in _standing(files, user, place):
        stem = name.removesuffix(CHAT_ENDING)
        if stem == name or existing_name_problem(stem):
            continue
        other = CharacterChat(place.character, stem) if isinstance(place, CharacterChat) else type(place)(stem)
        if not is_nameable(other, SYNC_NAMESPACE):
            continue
        # A move that was cut off leaves it under both names.
        if _is_free(files, left, files.state_path(user, other, SYNC_NAMESPACE)) and _began_as(files, user, other, mark):
            found.append(other)
    return found[0] if len(found) == 1 else None


def bring(files: FileStore, user: str, old: Place, new: ChatName) -> bool:
    """Gives the states of `old` the name of `new`. False when a place is taken; then nothing was moved. Durable on
    return; again is harmless. Raises OSError.
    """
    folders, _own = file_of(old)
    owned = [found[1] for name in _standing(files, user, old) if (found := state_of(folders, name)) and found[0] == old]
    moves: list[tuple[str, str]] = []
    for namespace in sorted(owned, key=lambda one: (one == SYNC_NAMESPACE, one)):
        source = files.state_path(user, old, namespace)
        target = files.state_path(user, new, namespace) if is_nameable(new, namespace) else None
        if target is None or not _is_free(files, source, target):
            log.warning("states-not-brought", owner=str(old), to=str(new), namespace=namespace)
            return False
        moves.append((source, target))
    with files.operation("bring-states", files.owner_path(user, new), owner=str(old), count=len(moves)):
        for source, target in moves:
            files.move(source, target)
            failpoint("outside_renames.after_move")
    log.info("states-brought", owner=str(old), to=str(new), count=len(moves))
    return True


def _standing(files: FileStore, user: str, place: Place) -> set[str]:
    try:
        return {name for name in files.fs.listdir(os.path.dirname(files.owner_path(user, place))) if is_text(name)}
    except (FileMissing, FileUnsafe):
        return set()


def _mark_of(files: FileStore, user: str, place: Place) -> SyncMark | None:
    """What a chat_sync without its chat says, when it speaks of that chat."""
    try:
        sync = files.read_sync(user, place)
    except (FileUnreadable, FileUnsafe):
        return None
    mark = None if sync is None else sync.mark
    return mark if mark is not None and mark.watermark.bytes and files.owns_mark(user, place, mark) else None


def _began_as(files: FileStore, user: str, place: Place, mark: SyncMark) -> bool:
    size_bytes = mark.watermark.bytes
    try:
        stat = files.stat_owner(user, place)
        if stat is None or not stat.is_regular or stat.size_bytes < size_bytes:
            return False
        data = files.read(files.owner_path(user, place)).data
    except (FileMissing, FileUnreadable, FileUnsafe):
        return False
    return len(data) >= size_bytes and zlib.crc32(memoryview(data)[:size_bytes]) == mark.watermark.crc32


def _is_free(files: FileStore, source: str, target: str) -> bool:
    """Whether nothing stands there, or the file itself already does: a move was cut off."""
    standing, own = files.fs.stat(target), files.fs.stat(source)
    return standing is None or (own is not None and (standing.inode, standing.device) == (own.inode, own.device))

"""Scope: which data folder a path belongs to, whose files are meant, and who serves it now. Reads only."""

from __future__ import annotations

import os
from typing import Final

import msgspec

from tellback_protocol.ids import PRESET_FOLDERS
from tellback_server.fs import DirectoryLocked, FileMissing, FileUnsafe, Fs, FsError
from tellback_server.store.files import DEFAULT_USER, SERVER_FOLDER, LayoutConflict

__all__ = ["Scope", "find_scope", "is_served"]

_CHATS: Final = ("chats", "group chats")
USER_FOLDERS: Final = (*_CHATS, "groups", "characters", *sorted(PRESET_FOLDERS), "backups", "trash")
"""What of a user's folder is ours to look at; of `backups` only `tellback`."""
_LOCKS: Final = "/proc/locks"


class Scope(msgspec.Struct, frozen=True):
    """What a path means."""

    data_root: str
    users: dict[str, str]
    """The folder of each user, by name."""
    only: str | None = None
    """The file or folder that was asked for, when it is not all of it."""

    @property
    def own_folder(self) -> str:
        """The server's."""
        return os.path.join(self.data_root, SERVER_FOLDER)

    def name_of(self, path: str) -> str:
        """As findings tell it: below the data folder."""
        return os.path.relpath(path, self.data_root)

    def holds(self, path: str) -> bool:
        """Whether a path is what was asked for, or in it."""
        return self.only is None or path == self.only or path.startswith(self.only + os.sep)


def find_scope(fs: Fs, path: str) -> Scope:
    """What `path` (absolute) means. Raises FileMissing; FileUnsafe for what belongs to no data folder;
    LayoutConflict.
    """
    if fs.stat(path) is None:
        raise FileMissing(path, "does not exist")
    level = path
    scopes: list[Scope] = []
    while True:
        scope = _at(fs, level)
        if scope is not None:
            scopes.append(scope)
        above = os.path.dirname(level)
        if above == level:
            break
        level = above
    for number, scope in enumerate(scopes):
        # What lies in the trash or among the backups looks like a user's folder, and is none.
        if not any(_keeps(outer, scope.data_root) for outer in scopes[number + 1 :]):
            return msgspec.structs.replace(scope, only=None if scope.data_root == path else path)
    raise FileUnsafe(path, "belongs to no data folder: nothing above it holds `chats/` or `group chats/`")


def _keeps(outer: Scope, folder: str) -> bool:
    """Whether a folder lies in the trash or among the backups of a user."""
    return any(
        (folder + os.sep).startswith(os.path.join(root, kept) + os.sep) for root in outer.users.values()
        for kept in ("trash", "backups")
    )


def _at(fs: Fs, folder: str) -> Scope | None:
    """The scope of a folder that is a data folder; a user's folder of many is not, its parent is."""
    stat = fs.stat(folder)
    if stat is None or not stat.is_directory:
        return None
    users = _users(fs, folder)
    if _has_chats(fs, folder):
        if users and _is_directory(fs, os.path.join(folder, SERVER_FOLDER)):
            raise LayoutConflict(folder, sorted(users))
        above = os.path.dirname(folder)
        if _is_directory(fs, os.path.join(above, SERVER_FOLDER)) and not _has_chats(fs, above):
            return None
        return Scope(folder, {DEFAULT_USER: folder})
    if users or _is_directory(fs, os.path.join(folder, SERVER_FOLDER)):
        return Scope(folder, users)
    return None


def _users(fs: Fs, folder: str) -> dict[str, str]:
    try:
        names = fs.listdir(folder)
    except FsError:
        return {}
    paths = {name: os.path.join(folder, name) for name in names if name[0] != "." and name not in USER_FOLDERS}
    return {name: path for name, path in paths.items() if _has_chats(fs, path)}


def _has_chats(fs: Fs, folder: str) -> bool:
    return any(_is_directory(fs, os.path.join(folder, name)) for name in _CHATS)


def _is_directory(fs: Fs, path: str) -> bool:
    stat = fs.stat(path)
    return stat is not None and stat.is_directory


def is_served(fs: Fs, data_root: str) -> bool:
    """Whether a process holds the lock on the data folder. Where the system does not tell, the lock is tried for a
    moment, as `tellback doctor` does.
    """
    stat = fs.stat(data_root)
    if stat is None:
        return False
    try:
        table = fs.read(_LOCKS).decode("ascii", "replace")
    except OSError:
        table = ""
    locks = [fields for line in table.splitlines() if len(fields := line.split()) > 5]
    if any(fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == str(stat.inode) for fields in locks):
        return True
    try:
        fs.lock_directory(data_root).release()
    except DirectoryLocked:
        return True
    except OSError:
        pass
    return False

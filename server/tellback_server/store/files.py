"""Files: users' folders on disk, in SillyTavern's and Luker's layout.

Rules of this module (STORAGE "User files"):
- Nothing outside the user's root is touched and no link is followed: every component below the root is looked at (F10).
- Reading writes nothing, not a folder, not a sidecar (F1).
- A file is made without overwriting anything, under a name that no other one equals but for case or Unicode form.
- Missing, unsafe and unreadable are different errors (FileMissing, FileUnsafe, FileUnreadable).
- Each operation that reads or changes a user's file is one log line: event "file".

Layout: `<data>/<user>/chats/...`, or `<data>/chats/...` for the one user `default-user`; never both (LayoutConflict).
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final, Protocol

import structlog

from tellback_protocol.errors import Refused
from tellback_protocol.ids import (
    PRESET_FOLDERS,
    CharacterChat,
    ChatName,
    GroupChat,
    Place,
    PresetOwner,
    StateOwner,
    existing_name_problem,
    namespace_problem,
    parse_place,
    provisional_chat_id,
    sidecar_name,
)
from tellback_protocol.values import dumps, loads
from tellback_server.clock import Clock
from tellback_server.failpoint import failpoint
from tellback_server.fs import TEMPORARY_SUFFIX, FileMissing, FileStat, FileTaken, FileUnsafe, Fs, FsError
from tellback_server.records import FileIdentity
from tellback_server.store.marks import (
    SYNC_NAMESPACE,
    ChatSync,
    LoadedFile,
    StateFile,
    SyncMark,
    Watermark,
    mark_fields,
    sync_of,
)
from tellback_server.store.place import (
    CHAT_ENDING,
    OWNER_FOLDERS,
    STATE_ENDING,
    file_of,
    is_nameable,
    is_text,
    twin_key,
)

__all__ = [
    "CHAT_ENDING", "DEFAULT_USER", "STATE_ENDING", "SYNC_NAMESPACE", "ChatSync", "FileStore", "LayoutConflict",
    "LoadedFile", "StateFile", "SyncMark", "Watermark", "is_corrupt", "twin_key",
]

DEFAULT_USER: Final = "default-user"
SERVER_FOLDER: Final = ".tellback"
SWAP_PREFIX: Final = ".tellback-swap-"
"""A temporary file with this prefix may hold another program's save; only loading its chat may remove it."""
READ_TRIES_MAX: Final = 8
"""How often a file that changes while it is read is read again."""


class LayoutConflict(Exception):
    """The data folder holds `chats/` itself and folders of users too: which one is meant cannot be known."""

    def __init__(self, data_root: str, users: Sequence[str]) -> None:
        super().__init__(data_root, users)
        self.data_root = data_root
        self.users = list(users)

    def __str__(self) -> str:
        owners = ", ".join(self.users)
        return f"{self.data_root} holds chats/ itself and also belongs to {owners}; move one of them away"


class Logger(Protocol):
    """What this module needs of structlog."""

    def info(self, event: str, /, **fields: Any) -> Any: ...


class FileStore:
    """The files of all users below one data folder. Every method blocks; call it from a thread."""

    def __init__(
        self,
        fs: Fs,
        data_root: str,
        users: Collection[str] | None = (DEFAULT_USER,),
        *,
        clock: Clock | None = None,
        logger: Logger | None = None,
    ) -> None:
        """`data_root` is absolute. `users` None: only the signer of tokens knows. Raises LayoutConflict."""
        self.fs = fs
        self._clock = clock if clock is not None else Clock()
        self.data_root = data_root
        self.server_root = os.path.join(data_root, SERVER_FOLDER)
        self._logger: Logger = logger if logger is not None else structlog.get_logger("tellback.files")
        self._users = None if users is None else frozenset(users)
        self.new_id: Callable[[str, str], str] = provisional_chat_id
        """The chat_id of a file that was never written by us; the registrar knows of names that changed hands."""
        self._single_root = False
        """The data folder holds `chats/` itself and is the one user's root."""
        if self._has_chats(data_root):
            self._single_root = True
            others = sorted(user for user in self._users or () if self._has_chats(os.path.join(data_root, user)))
            if others or self._users != frozenset((DEFAULT_USER,)):
                raise LayoutConflict(data_root, others or sorted(self._users or ("users of tokens",)))

    def _has_chats(self, root: str) -> bool:
        return any(self.fs.stat(os.path.join(root, folder)) is not None for folder in ("chats", "group chats"))

    def known_users(self) -> list[str]:
        """The users who have a folder. A user of tokens who never wrote has none."""
        if self._single_root:
            return [DEFAULT_USER]
        names = self._users if self._users is not None else self.fs.listdir(self.data_root)
        return sorted(name for name in names if name[0] != "." and self._has_chats(os.path.join(self.data_root, name)))

    # -- where -------------------------------------------------------------------------------------------------------

    def user_root(self, user: str) -> str:
        """The user's folder. Raises FileMissing for somebody who is not configured."""
        if (self._users is not None and user not in self._users) or existing_name_problem(user) or user[0] == ".":
            raise FileMissing(user, "is no configured user")
        return self.data_root if self._single_root else os.path.join(self.data_root, user)

    def chat_path(self, user: str, name: ChatName) -> str:
        """The path of a chat's file, each folder on the way checked. Raises FileUnsafe, FileMissing."""
        return self.owner_path(user, name)

    def owner_path(self, user: str, place: Place) -> str:
        """The path of the file without which an owner does not exist. Raises as `chat_path`."""
        for part in place.__struct_fields__:
            problem = existing_name_problem(getattr(place, part))
            if problem:
                raise FileUnsafe(str(place), problem)
        if isinstance(place, PresetOwner) and place.folder not in PRESET_FOLDERS:
            raise FileMissing(str(place), "is in no folder of presets")
        folders, name = file_of(place)
        return os.path.join(self._checked(self.user_root(user), folders), name)

    def state_path(self, user: str, place: Place, namespace: str) -> str:
        """The path of a state's sidecar."""
        return os.path.join(os.path.dirname(self.owner_path(user, place)), sidecar_name(place, namespace))

    def swap_path(self, user: str, name: Place, chat_id: str) -> str:
        """The one temporary name that a rewrite of this chat uses, so that a restart finds it."""
        folder = os.path.dirname(self.owner_path(user, name))
        return os.path.join(folder, f"{SWAP_PREFIX}{chat_id}{TEMPORARY_SUFFIX}")

    def checked_path(self, user: str, path: str) -> str:
        """A path below the user's root, given with slashes, each folder on the way checked. Raises FileUnsafe,
        FileMissing.
        """
        *folders, name = path.split("/")
        for part in (*folders, name):
            if part in ("", ".", ".."):
                raise FileUnsafe(path, "a path cannot leave the user's folder")
        return os.path.join(self._checked(self.user_root(user), folders), name)

    def _checked(self, root: str, folders: Sequence[str]) -> str:
        path = root
        for folder in folders:
            path = os.path.join(path, folder)
            found = self.fs.stat(path)
            # What is missing cannot lead anywhere.
            if found is not None and not found.is_directory:
                raise FileUnsafe(path, "is a link or no directory and is not followed")
        return path

    # -- reading -----------------------------------------------------------------------------------------------------

    def read(self, path: str) -> LoadedFile:
        """A file's bytes with a stat that belongs to them. Raises FileMissing, FileUnsafe, FileUnreadable."""
        with self.operation("read", path) as line:
            for _try in range(READ_TRIES_MAX):
                with self.fs.open_read(path) as file:
                    before = file.stat()
                    data = file.pread(before.size_bytes + 1, 0)
                    after = file.stat()
                if before == after and len(data) == before.size_bytes:
                    identity = FileIdentity(len(data), zlib.crc32(data), after.mtime_ns, after.inode)
                    line.update(size_bytes=len(data), crc32=identity.crc32)
                    return LoadedFile(data, identity, after)
            raise FsError(path, "changes faster than it can be read")

    def read_chat(self, user: str, name: ChatName) -> LoadedFile | None:
        """The chat's file, or None when there is none."""
        try:
            return self.read(self.chat_path(user, name))
        except FileMissing:
            return None

    def stat_chat(self, user: str, name: ChatName) -> FileStat | None:
        """What stands at the chat's path, without reading it."""
        return self.fs.stat(self.chat_path(user, name))

    def stat_owner(self, user: str, place: Place) -> FileStat | None:
        """What stands at the path of an owner's file; None when nothing does."""
        try:
            return self.fs.stat(self.owner_path(user, place))
        except FileMissing:
            return None

    def has_owner(self, user: str, place: StateOwner) -> bool:
        """Whether a character has a card or a preset a file. Raises FileUnsafe when it is something else."""
        stat = self.stat_owner(user, place)
        if stat is not None and not stat.is_regular:
            raise FileUnsafe(str(place), "is no regular file")
        return stat is not None

    def read_sync(self, user: str, name: Place) -> ChatSync | None:
        """The chat_sync sidecar; None when missing or unusable (it is derived data, the log knows better)."""
        if not is_nameable(name, SYNC_NAMESPACE):
            return None
        try:
            loaded = self.read(self.state_path(user, name, SYNC_NAMESPACE))
        except FileMissing:
            return None
        sync = sync_of(loaded.data)
        return None if sync is None else ChatSync(sync.fields, sync.mark, loaded.identity)

    def has_broken_sync(self, user: str, name: Place, sync: ChatSync | None) -> bool:
        """Whether a chat_sync of ours stands there that tells nothing; `sync` is what `read_sync` gave."""
        if sync is not None:
            return sync.mark is None and "tellback" in sync.fields
        if not is_nameable(name, SYNC_NAMESPACE):
            return False
        try:
            return self.fs.stat(self.state_path(user, name, SYNC_NAMESPACE)) is not None
        except FileMissing:
            return False

    def read_states(self, user: str, place: Place) -> dict[str, StateFile]:
        """Every state sidecar of an owner but chat_sync, by namespace. Raises FileUnsafe, FileUnreadable."""
        folder = os.path.dirname(self.owner_path(user, place))
        states: dict[str, StateFile] = {}
        for namespace in self.namespaces(user, place):
            if namespace == SYNC_NAMESPACE:
                continue
            loaded = self.read(os.path.join(folder, sidecar_name(place, namespace)))
            states[namespace] = StateFile(loaded.data, loaded.identity, is_corrupt(loaded.data))
        return states

    def namespaces(self, user: str, place: Place) -> list[str]:
        """The namespaces of an owner's sidecars, chat_sync among them. Cost: listing the owner's folder."""
        try:
            names = self.fs.listdir(os.path.dirname(self.owner_path(user, place)))
        except FileMissing:
            return []
        start = sidecar_name(place, "").removesuffix(STATE_ENDING)
        found = (
            name[len(start) : -len(STATE_ENDING)]
            for name in names
            if name.startswith(start) and name.endswith(STATE_ENDING)
        )
        return [namespace for namespace in found if namespace_problem(namespace) is None]

    def make_durable(self, path: str) -> None:
        """Syncs a file and its name: for one that a crash left written and perhaps not synced. Changes nothing."""
        with self.operation("sync", path):
            with self.fs.open_read(path) as file:
                file.fsync()
            self.fs.fsync_directory(os.path.dirname(path))

    # -- listing -----------------------------------------------------------------------------------------------------

    def names(self, user: str) -> list[ChatName]:
        """Every chat that has a file. Links and names that are no Unicode are left out."""
        root = self.user_root(user)
        found: list[ChatName] = []
        for character in self._listed(root, "chats"):
            found.extend(
                CharacterChat(character, chat) for chat in self._chats(os.path.join(root, "chats", character))
            )
        if self._listed(root, "group chats"):
            found.extend(GroupChat(chat) for chat in self._chats(os.path.join(root, "group chats")))
        return found

    def _listed(self, root: str, folder: str) -> list[str]:
        path = os.path.join(root, folder)
        found = self.fs.stat(path)
        if found is None or not found.is_directory:
            return []
        return [name for name in self.fs.listdir(path) if is_text(name)]

    def _chats(self, folder: str) -> Iterator[str]:
        found = self.fs.stat(folder)
        if found is None or not found.is_directory:
            return
        for name in self.fs.listdir(folder):
            if not name.endswith(CHAT_ENDING) or name == CHAT_ENDING or not is_text(name):
                continue
            stat = self.fs.stat(os.path.join(folder, name))
            if stat is not None and stat.is_regular:
                yield name.removesuffix(CHAT_ENDING)

    def chat_id_of(self, user: str, name: Place) -> str:
        """The owner's id as the files tell it: from chat_sync, else the provisional one.

        A chat_sync that names another chat which still exists belongs to a copy made by hand; the copy is a new chat.
        """
        sync = self.read_sync(user, name)
        if sync is not None and sync.mark is not None and self.owns_mark(user, name, sync.mark):
            return sync.mark.chat_id
        return self.new_id(user, str(name))

    def owns_mark(self, user: str, name: Place, mark: SyncMark) -> bool:
        """Whether a chat_sync beside `name` speaks of it, and not of the chat that it was copied from."""
        if mark.name == str(name):
            return True
        other = parse_place(mark.name)
        return isinstance(other, str) or self.stat_owner(user, other) is None

    def resolve(self, user: str, chat_id: str) -> ChatName | None:
        """The chat that has this id. Cost: one small file for each of the user's chats."""
        return next((name for name in self.names(user) if self.chat_id_of(user, name) == chat_id), None)

    # -- writing -----------------------------------------------------------------------------------------------------

    def check_free(self, user: str, name: ChatName) -> None:
        """Raises Refused `exists` when a chat could not be made: taken, or a twin in case or Unicode form is there."""
        folders, file = file_of(name)
        path = self.user_root(user)
        steps = [(folder, False) for folder in folders] + [(file, True)]
        for wanted, is_chat in steps:
            try:
                standing = self.fs.listdir(path)
            except FileMissing:
                return
            twins = [other for other in standing if twin_key(other) == twin_key(wanted)]
            if any(other != wanted for other in twins):
                raise Refused("exists", "A name that differs only in case or Unicode form is taken.")
            if is_chat and twins:
                raise Refused("exists", "The name is taken.")
            path = os.path.join(path, wanted)

    def make_folder(self, user: str, name: Place) -> str:
        """The folder of a chat, made when missing. Durable on return."""
        folders, _file = file_of(name)
        folder = self._checked(self.user_root(user), folders)
        self.fs.make_directories(folder)
        return folder

    def write_new(self, user: str, name: ChatName, data: bytes) -> FileStat:
        """Makes a chat's file, whole or not at all. Durable on return. Raises Refused `exists`, OSError."""
        self.check_free(user, name)
        self.make_folder(user, name)
        return self.publish_new(self.chat_path(user, name), data)

    def link(self, source: str, target: str) -> bool:
        """Gives a file another name; False when that is another file's. One that a crash left with both has it. Raises
        FileMissing, OSError.
        """
        try:
            self.fs.link(source, target)
        except FileTaken:
            stat = self.fs.stat(source)
            return stat is not None and stat.is_file_of(self.fs.stat(target))
        return True

    def move(self, source: str, target: str) -> None:
        """Gives a file another place, over nobody. Durable on return; one that was cut off is finished by the next.
        Nothing happens when there is no such file. Raises FileTaken, OSError.
        """
        if self.fs.stat(source) is None:
            return
        if not self.link(source, target):
            raise FileTaken(target, "exists already")
        failpoint("files.after_link")
        self.fs.fsync_directory(os.path.dirname(target))
        self.fs.unlink(source)
        self.fs.fsync_directory(os.path.dirname(source))

    def publish_new(self, path: str, data: bytes) -> FileStat:
        """Writes, syncs, verifies and names a file that must not exist. Raises FileTaken, FileNotVerified, OSError."""
        with self.operation("create", path, size_bytes=len(data), crc32=zlib.crc32(data)):
            temporary = self.fs.temporary_path(path)
            self.fs.write_atomically(temporary, data)
            try:
                self.fs.link(temporary, path)
            finally:
                with contextlib.suppress(FileMissing):
                    self.fs.unlink(temporary)
            self.fs.fsync_directory(os.path.dirname(path))
            found = self.fs.stat(path)
        if found is None:
            raise FileMissing(path, "was removed as soon as it was made")
        return found

    def write_state(self, path: str, data: bytes) -> FileStat:
        """Replaces a sidecar. Durable on return."""
        with self.operation("write-state", path, size_bytes=len(data), crc32=zlib.crc32(data)):
            return self.fs.write_atomically(path, data, keep_mode_of=self.fs.stat(path))

    def write_sync(self, user: str, name: Place, mark: SyncMark, now_ms: int) -> None:
        """Writes chat_sync; fields of other programs stay. An owner whose name is too long for one has none."""
        if not is_nameable(name, SYNC_NAMESPACE):
            return
        sync = self.read_sync(user, name)
        fields = dict(sync.fields) if sync is not None else {}
        fields["integrity"] = (mark.head if isinstance(name, StateOwner) else mark.version).integrity
        fields["updated_at"] = now_ms
        fields["tellback"] = mark_fields(mark)
        self.write_state(self.state_path(user, name, SYNC_NAMESPACE), dumps(fields))

    def backup(
        self, user: str, chat_id: str, seq: int, now_ms: int, data: bytes, ending: str = CHAT_ENDING
    ) -> str:
        """Keeps a chat's lines in `backups/tellback/<chat_id>/<seq>-<now_ms>.jsonl`; the path below the user's root.

        Durable on return. Idempotent: a backup of this seq with the same bytes is found again.
        """
        folder = self._checked(self.user_root(user), ("backups", "tellback", chat_id))
        self.fs.make_directories(folder)
        for name in self.fs.listdir(folder):
            path = os.path.join(folder, name)
            if name.startswith(f"{seq}-") and self.fs.read(path) == data:
                return os.path.relpath(path, self.user_root(user))
        while True:
            path = os.path.join(folder, f"{seq}-{now_ms}{ending}")
            try:
                self.publish_new(path, data)
                return os.path.relpath(path, self.user_root(user))
            except FileTaken:
                now_ms += 1

    def clean_temporaries(self, user: str) -> int:
        """Removes what a crash left half-written. Only while the data lock is held; returns how many.

        A swap file stays: it may hold another program's save, and loading its chat decides.
        """
        root = self.user_root(user)
        own = self.server_root
        folders = [os.path.join(root, name) for name in ("group chats", "groups", *OWNER_FOLDERS)]
        for above, below in ((root, "chats"), (os.path.join(root, "backups"), "tellback"), (root, "trash")):
            folders.extend(os.path.join(above, below, name) for name in self._listed(above, below))
        # Names, sessions and indexes: the log's folder is the log's business.
        folders.extend(
            os.path.join(own, name, user) for name in self._listed(os.path.dirname(own), SERVER_FOLDER) if name != "log"
        )
        count = 0
        for folder in folders:
            found = self.fs.stat(folder)
            if found is None or not found.is_directory:
                continue
            for name in self.fs.listdir(folder):
                if name.startswith(".") and name.endswith(TEMPORARY_SUFFIX) and not name.startswith(SWAP_PREFIX):
                    path = os.path.join(folder, name)
                    stat = self.fs.stat(path)
                    if stat is not None and stat.is_regular:
                        with self.operation("clean-temporary", path, size_bytes=stat.size_bytes):
                            self.fs.unlink(path)
                        count += 1
        return count

    # -- telling -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def operation(self, verb: str, path: str, **fields: Any) -> Iterator[dict[str, Any]]:
        """One log line about one file operation; the dict takes what is known only afterwards."""
        started_s = self._clock.monotonic_s()
        line: dict[str, Any] = {"op": verb, "path": os.path.relpath(path, self.data_root), **fields}
        outcome = "done"
        try:
            yield line
        except BaseException as error:
            outcome = type(error).__name__
            raise
        finally:
            line["duration_ms"] = round((self._clock.monotonic_s() - started_s) * 1000, 3)
            self._logger.info("file", **line, outcome=outcome)


def is_corrupt(data: bytes) -> bool:
    """Whether a state's file is no JSON."""
    try:
        loads(data)
    except ValueError:
        return True
    return False

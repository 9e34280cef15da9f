"""Folder: a store of plain files in SillyTavern's layout that only tellback writes, `files:///<absolute path>`.

    <path>/.tellback-store.json                       schema, data_id
    <path>/<user>/...                                 as a user's folder; chat_sync holds the record of the owner

Rules of this module:
- An owner is what its record says: sizes and CRC-32 of its files, and the moves that were decided and may not be done.
  Replacing the record is the one step that changes the owner; what comes before is invisible, what comes after is done
  again by whoever comes next (ST2). A record that moved forgets what it left before anybody else may go there.
- An append goes behind what the record counts and becomes part of the chat with the record: nothing else is written
  (ST7).
- A line ends a message, so a line feed between tokens of a message becomes a space; nothing else is altered.
- Names that another owner's files have, or that no file can have, are written with the owner's id; the record has the
  name itself.
"""

from __future__ import annotations

import contextlib
import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from typing import Final
from weakref import WeakValueDictionary

import msgspec

from tellback_protocol.chat import message_id_of
from tellback_protocol.effects import Effect, MetadataEffect
from tellback_protocol.ids import FILE_NAME_BYTES_MAX, PRESET_FOLDERS, Version, existing_name_problem
from tellback_protocol.stream import StateDocument
from tellback_protocol.values import UNDECODABLE
from tellback_server.fs import TEMPORARY_SUFFIX, FileMissing, Fs
from tellback_server.store.address import StoreAddress
from tellback_server.store.base import (
    ListedOwner,
    StoreBehind,
    StoreDamaged,
    StoredChat,
    StoreError,
    StoreForeign,
    StoreHealth,
    StoreUnavailable,
    StoreUnsafe,
    is_at_least,
)
from tellback_server.store.difference import difference_of
from tellback_server.store.folder_record import RECORD_ENDING, Home, Move, Piece, Record, StateEntry, homes_of

__all__ = ["FolderStore", "open_address"]

_Moves = list[Move]
_SCHEMA: Final = 1
_META: Final = ".tellback-store.json"
_HEADER_BEGINS: Final = b'{"chat_metadata":'
_HEADER_ENDS: Final = b',"user_name":"unused","character_name":"unused"}\n'


class _Meta(msgspec.Struct):
    """`.tellback-store.json`. Persisted: keep stable."""

    schema: int
    data_id: str = ""


def open_address(address: StoreAddress) -> FolderStore:
    """See schemes. Raises StoreUnsafe."""
    path = address.take_absolute_path()
    address.refuse_rest()
    return FolderStore(path)


class FolderStore:
    """See base.Store."""

    def __init__(self, path: str, fs: Fs | None = None) -> None:
        self.path = path
        self._fs = fs or Fs()
        self._records: dict[tuple[str, str], str] = {}
        """Where the record of an owner is, by user and id."""
        self._leaving: dict[tuple[str, str], str] = {}
        """Where its record was, while its moves may not be done: nobody else's yet."""
        self._awaited: set[str] | None = None
        """Unfinished files that a record will move; None once what no record moves was removed."""
        self._is_open = False
        self._lock = threading.Lock()
        """Held to look up and change `_records`, and for the store's own file."""
        self._busy: WeakValueDictionary[tuple[str, str], threading.Lock] = WeakValueDictionary()
        """Owners that a thread is busy with."""

    def check(self) -> StoreHealth:
        with self._told(), self._lock:
            self._fs.make_directories(self.path)
            meta = self._meta()
            if meta is None:
                if any(not name.endswith(TEMPORARY_SUFFIX) for name in self._fs.listdir(self.path)):
                    raise StoreUnsafe(f"{self.path}: is not empty and no store; name a folder of its own")
                self._fs.write_atomically(self._meta_path(), msgspec.json.encode(_Meta(_SCHEMA)))
            elif meta.schema > _SCHEMA:
                raise StoreUnsafe(f"{self.path}: has schema {meta.schema}, made by a newer tellback")
            is_new = not self._is_open
            if is_new:
                self._find_records()
                self._is_open = True
        if is_new:
            with self._told():
                for user, chat_id in list(self._leaving):
                    self._record(user, chat_id)
        return StoreHealth(backend="plain files", durability="store", settings={"sync": "fsync"})

    def load(self, user: str, chat_id: str) -> StoredChat | None:
        with self._alone(user, chat_id):
            record = self._record(user, chat_id)
            return None if record is None else self._loaded(user, record)

    def save(self, user: str, base: Version | None, effects: Sequence[Effect] | None, value: StoredChat) -> None:
        if problem := existing_name_problem(user):
            raise StoreError(f"{user!r} cannot be a folder: {problem}")
        with self._alone(user, value.chat_id):
            try:
                old = self._record(user, value.chat_id)
            except StoreDamaged:
                if effects is not None:
                    raise
                old = None
            head = None if old is None else old.head
            if is_at_least(head, value.head):
                return
            if effects is not None and head != base:
                raise StoreBehind(head, base)
            self._write(user, old, effects, value)

    def delete(self, user: str, chat_id: str, head: Version) -> None:
        with self._alone(user, chat_id):
            record = self._record(user, chat_id)
            if record is None or (record.head.epoch, record.head.seq) > (head.epoch, head.seq):
                return
            gone = [Move(path, "") for path in record.files()]
            self._put(user, msgspec.structs.replace(record, is_deleted=True, moves=gone), record.home)
            self._record(user, chat_id)

    def rename(self, user: str, chat_id: str, name: str) -> None:
        with self._alone(user, chat_id):
            record = self._record(user, chat_id)
            if record is not None and record.name != name:
                self._put(user, *self._moved(user, msgspec.structs.replace(record, name=name)))
                self._record(user, chat_id)

    def list(self, user: str) -> Iterator[ListedOwner]:
        with self._lock:
            ids = [chat_id for owner, chat_id in self._records if owner == user]
        listed = []
        for chat_id in ids:
            with self._alone(user, chat_id):
                record = self._record(user, chat_id)
            if record is not None:
                listed.append(ListedOwner(chat_id, record.name, record.head, record.summary))
        return iter(listed)

    def users(self) -> Sequence[str]:
        self._must_be_open()
        with self._lock:
            return list(dict.fromkeys(user for user, _ in self._records))

    def claim(self, data_id: str) -> None:
        with self._told(), self._lock:
            meta = self._meta()
            if meta is None:
                raise StoreDamaged(f"{self._meta_path()} is missing")
            if meta.data_id not in ("", data_id):
                raise StoreForeign(f"{self.path}: belongs to another data folder")
            meta.data_id = data_id
            self._fs.write_atomically(self._meta_path(), msgspec.json.encode(meta))

    def close(self) -> None:
        self._is_open = False

    # -- records -----------------------------------------------------------------------------------------------------

    def _meta_path(self) -> str:
        return f"{self.path}/{_META}"

    def _meta(self) -> _Meta | None:
        try:
            return msgspec.json.decode(self._fs.read(self._meta_path()), type=_Meta)
        except FileMissing:
            return None
        except UNDECODABLE as error:
            raise StoreDamaged(f"{self._meta_path()}: {error}") from error

    def _must_be_open(self) -> None:
        if not self._is_open:
            raise StoreError(f"{self.path}: the store was closed, or never checked")

    def _find_records(self) -> None:
        """Where every owner is. Cost: one small file an owner."""
        self._records.clear()
        self._leaving.clear()
        self._awaited = set()
        for user, folder, name in self._names():
            if name.endswith(RECORD_ENDING):
                self._find_record(user, f"{folder}/{name}")

    def _names(self) -> Iterator[tuple[str, str, str]]:
        """User, folder and name of everything where owners are."""
        for user in self._folders(self.path):
            root = f"{self.path}/{user}"
            folders = [f"chats/{one}" for one in self._folders(f"{root}/chats")]
            for folder in (*folders, "group chats", "characters", *sorted(PRESET_FOLDERS)):
                with contextlib.suppress(FileMissing):
                    for name in self._fs.listdir(f"{root}/{folder}"):
                        yield user, folder, name

    def _clean(self) -> None:
        """Removes what a save that was cut off left and no record speaks of: with the first save, since who writes is
        the only one that does.
        """
        with self._lock:
            if self._awaited is None:
                return
            for user, folder, name in self._names():
                path = f"{user}/{folder}/{name}"
                if name.startswith(".") and name.endswith(TEMPORARY_SUFFIX) and path not in self._awaited:
                    with contextlib.suppress(FileMissing):
                        self._fs.unlink(f"{self.path}/{path}")
            self._awaited = None

    def _folders(self, path: str) -> Sequence[str]:
        with contextlib.suppress(FileMissing):
            found = ((name, self._fs.stat(f"{path}/{name}")) for name in self._fs.listdir(path))
            return [name for name, stat in found if stat is not None and stat.is_directory]
        return []

    def _find_record(self, user: str, path: str) -> None:
        record = Record.read(self._fs.read(f"{self.path}/{user}/{path}"), path)
        if self._awaited is not None:
            self._awaited.update(f"{user}/{move.source}" for move in record.moves)
        owner = user, record.chat_id
        other = self._records.get(owner)
        if other is not None and record.replaces != other and self._leaving.get(owner) != path:
            raise StoreDamaged(f"{self.path}/{user}: {other} and {path} are records of one owner; take one away")
        if other is None or record.replaces == other:
            self._records[owner] = path
            if record.replaces:
                self._leaving[owner] = record.replaces

    def _record(self, user: str, chat_id: str) -> Record | None:
        """The owner's record, with what was decided done. Raises StoreDamaged."""
        self._must_be_open()
        with self._lock:
            path = self._records.get((user, chat_id))
        if path is None:
            return None
        root = f"{self.path}/{user}"
        try:
            record = Record.read(self._fs.read(f"{root}/{path}"), path)
        except FileMissing:
            raise StoreDamaged(f"{root}/{path} was taken away") from None
        folders: dict[str, None] = {}
        for move in record.moves:
            if self._fs.stat(f"{root}/{move.source}") is not None:
                if move.target:
                    self._fs.make_directories(os.path.dirname(f"{root}/{move.target}"))
                    self._fs.rename(f"{root}/{move.source}", f"{root}/{move.target}")
                    folders[os.path.dirname(move.target)] = None
                else:
                    self._fs.unlink(f"{root}/{move.source}")
                folders[os.path.dirname(move.source)] = None
        for folder in folders:
            self._fs.fsync_directory(f"{root}/{folder}")
        for gone in (record.replaces, path if record.is_deleted else ""):
            if gone and self._fs.stat(f"{root}/{gone}") is not None:
                self._fs.unlink(f"{root}/{gone}")
                self._fs.fsync_directory(os.path.dirname(f"{root}/{gone}"))
        if record.replaces:
            record.moves, record.replaces = [], ""
            self._fs.write_atomically(f"{root}/{path}", record.written())
            with self._lock:
                self._leaving.pop((user, chat_id), None)
        if not record.is_deleted:
            return record
        with self._lock:
            self._records.pop((user, chat_id), None)
        return None

    def _put(self, user: str, record: Record, home: Home) -> None:
        """The step that changes an owner."""
        with self._lock:
            self._fs.make_directories(f"{self.path}/{user}/{home.folder}")
            self._fs.write_atomically(f"{self.path}/{user}/{home.record}", record.written())
            self._records[user, record.chat_id] = home.record
            if record.replaces:
                self._leaving[user, record.chat_id] = record.replaces

    def _home(self, user: str, chat_id: str, name: str) -> Home:
        """Where the files of a name go: where nobody else's are."""
        with self._lock:
            taken = {
                path: owner for places in (self._leaving, self._records) for (of, owner), path in places.items()
                if of == user
            }
            for home in homes_of(name, chat_id):
                if len(os.path.basename(home.record).encode()) > FILE_NAME_BYTES_MAX:
                    continue
                if taken.get(home.record, chat_id) == chat_id:
                    return home
        raise AssertionError("unreachable: a home by the id is nobody else's")

    def _moved(self, user: str, record: Record) -> tuple[Record, Home]:
        """The record where its name belongs, with the moves that bring its files there."""
        home = self._home(user, record.chat_id, record.name)
        if home == record.home:
            return record, home
        moves = [Move(path, home.path_of(path, record.home)) for path in record.files()]
        return msgspec.structs.replace(record, home=home, moves=moves, replaces=record.home.record), home

    # -- files -------------------------------------------------------------------------------------------------------

    def _loaded(self, user: str, record: Record) -> StoredChat:
        root = f"{self.path}/{user}"
        states = {}
        for namespace, entry in record.states.items():
            data = None
            if entry.file is not None:
                data = self._checked(f"{root}/{record.home.state(namespace)}", entry.file)
            states[namespace] = StateDocument(entry.version, data, corrupt=entry.is_corrupt)
        metadata, messages = record.metadata, dict[str, bytes]()
        if record.chat is not None:
            header, *lines = self._checked(f"{root}/{record.home.chat}", record.chat).split(b"\n")[:-1]
            metadata = header[len(_HEADER_BEGINS) : 1 - len(_HEADER_ENDS)]
            messages = {message_id_of(line): line for line in lines}
            if len(messages) != record.messages:
                raise StoreDamaged(f"{record.home.chat}: {len(messages)} of {record.messages} messages are there")
        return StoredChat(
            chat_id=record.chat_id, name=record.name, head=record.head, version=record.version, metadata=metadata,
            messages=messages, states=states, summary=record.summary,
        )

    def _checked(self, path: str, piece: Piece) -> bytes:
        """What the record counts of a file. Raises StoreDamaged."""
        try:
            data = self._fs.read(path)[: piece.size_bytes]
        except FileMissing:
            raise StoreDamaged(f"{path} is missing") from None
        if len(data) != piece.size_bytes or zlib.crc32(data) != piece.crc32:
            raise StoreDamaged(f"{path} is not what was written: somebody changed it, or the disk did")
        return data

    def _write(self, user: str, old: Record | None, effects: Sequence[Effect] | None, value: StoredChat) -> None:
        home = self._home(user, value.chat_id, value.name) if old is None or old.name != value.name else old.home
        root = f"{self.path}/{user}"
        self._fs.make_directories(f"{root}/{home.folder}")
        record = Record(
            chat_id=value.chat_id, name=value.name, home=home, head=value.head, version=value.version,
            summary=value.summary, messages=len(value.messages),
        )
        difference = None if old is None or effects is None else difference_of(effects, value)
        is_append = (
            difference is not None and effects is not None and not (
                difference.removed or difference.changed or difference.after
                or any(isinstance(effect, MetadataEffect) for effect in effects)
            )
        )
        moves: _Moves = []
        if old is not None and old.home != home:
            record.replaces = old.home.record
        if not home.is_chat:
            record.metadata = value.metadata
        elif (
            is_append and difference is not None and old is not None and old.chat is not None
            and old.messages + len(difference.appended) == len(value.messages)
        ):
            added = b"".join(_line(value.messages[message_id]) for message_id in difference.appended)
            record.chat = self._appended(f"{root}/{old.home.chat}", old.chat, added)
            if old.home != home:
                moves.append(Move(old.home.chat, home.chat))
        else:
            lines = (_line(line) for line in value.messages.values())
            whole = b"".join((_HEADER_BEGINS, _spaced(value.metadata), _HEADER_ENDS, *lines))
            record.chat = self._made(root, home.chat, whole, value.head, moves)
        changed = set(value.states if difference is None else difference.namespaces)
        for namespace, document in value.states.items():
            entry = None if old is None else old.states.get(namespace)
            if entry is None or namespace in changed:
                piece = None
                if (data := document.data) is not None:
                    piece = self._made(root, home.state(namespace), data, value.head, moves)
                entry = StateEntry(document.version, document.corrupt, piece)
            elif entry.file is not None and old is not None and old.home != home:
                moves.append(Move(old.home.state(namespace), home.state(namespace)))
            record.states[namespace] = entry
        if old is not None:
            moved = {move.source for move in moves}
            moves.extend(Move(path, "") for path in old.files() if path not in {*record.files(), *moved})
        record.moves = moves
        if moves:
            self._fs.fsync_directory(f"{root}/{home.folder}")
        self._put(user, record, home)
        self._record(user, value.chat_id)

    def _appended(self, path: str, piece: Piece, added: bytes) -> Piece:
        if not added:
            return piece
        with self._fs.open_write(path) as file:
            if file.stat().size_bytes < piece.size_bytes:
                raise StoreDamaged(f"{path} is shorter than what was written")
            # Behind what the record counts stands nothing, or what a crash left of an append that was never counted.
            file.truncate(piece.size_bytes)
            file.pwrite(added, piece.size_bytes)
            file.fsync()
        return Piece(piece.size_bytes + len(added), zlib.crc32(added, piece.crc32))

    def _made(self, root: str, path: str, data: bytes, head: Version, moves: _Moves) -> Piece:
        """A file beside its place, to be moved there when the record says so."""
        self._clean()
        folder, name = os.path.split(path)
        # The whole integrity: those of one process begin alike, and what an older record moves must not be found here.
        temporary = f"{folder}/.{zlib.crc32(name.encode()):08x}-{head.integrity}{TEMPORARY_SUFFIX}"
        if self._fs.stat(f"{root}/{temporary}") is not None:
            self._fs.unlink(f"{root}/{temporary}")
        with self._fs.create(f"{root}/{temporary}") as file:
            file.pwrite(data, 0)
            file.fsync()
        moves.append(Move(temporary, path))
        return Piece(len(data), zlib.crc32(data))

    @contextlib.contextmanager
    def _alone(self, user: str, chat_id: str) -> Iterator[None]:
        """One thread at a time has an owner: who reads its record carries out what it says, which must be the newest,
        and reads the files that it speaks of."""
        with self._lock:
            lock = self._busy.setdefault((user, chat_id), threading.Lock())
        with lock, self._told():
            yield

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of the disk as ours."""
        try:
            yield
        except OSError as error:
            raise StoreUnavailable(str(error)) from error


def _line(line: bytes) -> bytes:
    return _spaced(line) + b"\n"


def _spaced(json: bytes) -> bytes:
    # Inside a string of JSON a line feed is always escaped.
    return json.replace(b"\n", b" ") if b"\n" in json else json

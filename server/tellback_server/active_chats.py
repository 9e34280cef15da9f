"""Active chats: which chat a user last worked on with each character and in each group.

    active = ActiveChats(log, files, clock)
    active.load(owners)              in a thread, before serving: files, and what the log holds behind them
    active.set(user, scope, chat)    loop; the answer leaves when the returned position is durable
    active.of(user)                  loop; what is remembered
    active.save()                    in a thread; the copies in `.tellback/sessions/<user>/active-chats.json`

Rules of this module (BEHAVIOUR I10-I12):
- A scope is `character:<name>` or `group:<id>`.
- The log makes a choice durable; the file is a second copy, written soon after, and lets the log forget. The newer one
  of the two counts, scope by scope by their seq, so that either may be lost.
- What is remembered is the chat's immutable id, and its name for people and for a chat that nobody ever wrote to.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

import msgspec
import structlog

from tellback_server.fs import FileMissing, FsError
from tellback_server.log import Position, Record
from tellback_server.records import ACTIVE
from tellback_server.sealed import seal, unseal
from tellback_server.store.files import FileStore

__all__ = ["OWNER_ENDING", "ActiveChats", "ActiveFile", "Remembered"]

log = structlog.get_logger()

OWNER_ENDING: Final = "/active-chats"
"""Record.owner is `<user>/active-chats`, Record.seq counts a user's choices."""
FILE: Final = "active-chats.json"


class Journal(Protocol):
    """What is needed of the log."""

    def append(self, kind: int, owner: str, seq: int, body: bytes) -> Position: ...

    def records(self, owner: str, after_seq: int = 0) -> Iterator[tuple[Position, Record]]: ...


class Remembered(msgspec.Struct, frozen=True, gc=False):
    """One choice. Persisted in the file: keep stable."""

    chat_id: str | None
    """None: the user wants no chat to be active."""
    name: str | None
    """The chat's address when it was chosen."""
    seq: int
    at_ms: int


class Choice(msgspec.Struct, frozen=True, gc=False):
    """The body of an ACTIVE record. Persisted: keep stable."""

    scope: str
    chat_id: str | None
    name: str | None
    at_ms: int


class ActiveFile(msgspec.Struct):
    """The file. Persisted: keep stable."""

    user: str
    seq: int
    chats: dict[str, Remembered]


class _User:
    __slots__ = ("chats", "saved_seq", "seq", "unsaved")

    def __init__(self) -> None:
        self.chats: dict[str, Remembered] = {}
        self.seq = 0
        self.saved_seq = 0
        self.unsaved: Position | None = None
        """The oldest record that the file does not hold."""


_decode_file = msgspec.json.Decoder(ActiveFile).decode
_decode_choice = msgspec.json.Decoder(Choice).decode


class ActiveChats:
    """Of all users."""

    def __init__(self, journal: Journal, files: FileStore) -> None:
        self._journal = journal
        self._files = files
        self._users: dict[str, _User] = {}
        self._writing = threading.Lock()

    def load(self, owners: Iterable[str]) -> None:
        """Read the files and what the log knows beyond them. `owners` are the log's. Raises LogCorrupt, OSError."""
        folder = os.path.join(self._files.server_root, "sessions")
        try:
            names = self._files.fs.listdir(folder)
        except FileMissing:
            names = []
        in_log = {owner.removesuffix(OWNER_ENDING) for owner in owners if owner.endswith(OWNER_ENDING)}
        for user in sorted({*names, *in_log}):
            known = self._read(user)
            for position, record in self._journal.records(user + OWNER_ENDING, known.saved_seq):
                if record.kind == ACTIVE:
                    self._install(known, record.seq, _decode_choice(record.body), position)
            if known.seq:
                self._users[user] = known

    def _read(self, user: str) -> _User:
        known = _User()
        try:
            unsealed = unseal(self._files.fs.read(self._path(user)))
            if unsealed is None:
                raise msgspec.DecodeError("the file does not match its checksum")
            found = _decode_file(unsealed[0])
        except FileMissing:
            return known
        except (FsError, msgspec.MsgspecError) as error:
            # The log still has the younger ones; for the others the newest chat is taken.
            log.warning("active-chats-unreadable", user=user, error=str(error)[:200])
            return known
        if found.user == user:
            known.chats, known.seq, known.saved_seq = found.chats, found.seq, found.seq
        return known

    def _path(self, user: str) -> str:
        return os.path.join(self._files.server_root, "sessions", user, FILE)

    def of(self, user: str) -> dict[str, Remembered]:
        """What is remembered, by scope; a copy. It may not be durable yet: flush the log before it is told."""
        known = self._users.get(user)
        return {} if known is None else dict(known.chats)

    def set(self, user: str, scope: str, chat_id: str | None, name: str | None, now_ms: int) -> Position:
        """Remember a choice; tell nobody before the position is durable. Raises LogError: then nothing changed."""
        known = self._users.get(user) or _User()
        choice = Choice(scope, chat_id, name, now_ms)
        position = self._journal.append(ACTIVE, user + OWNER_ENDING, known.seq + 1, msgspec.json.encode(choice))
        self._users[user] = known
        self._install(known, known.seq + 1, choice, position)
        return position

    @staticmethod
    def _install(known: _User, seq: int, choice: Choice, position: Position) -> None:
        known.seq = seq
        known.chats[choice.scope] = Remembered(choice.chat_id, choice.name, seq, choice.at_ms)
        if known.unsaved is None:
            known.unsaved = position

    @property
    def unsaved(self) -> Position | None:
        """The oldest record that the log must keep."""
        return min((known.unsaved for known in self._users.values() if known.unsaved is not None), default=None)

    def taken(self) -> list[tuple[str, int, bytes]]:
        """What `save` writes: user, seq and file. Loop; everything in it must be durable."""
        return [
            (user, known.seq, seal(msgspec.json.encode(ActiveFile(user, known.seq, known.chats))))
            for user, known in self._users.items() if known.unsaved is not None
        ]

    def save(self, taken: list[tuple[str, int, bytes]]) -> None:
        """Write the files. Durable on return. Blocks. Raises OSError."""
        with self._writing:
            for user, seq, data in taken:
                known = self._users[user]
                if seq <= known.saved_seq:
                    continue
                path = self._path(user)
                self._files.fs.make_directories(os.path.dirname(path))
                self._files.fs.write_atomically(path, data)
                known.saved_seq = seq

    def saved(self, taken: list[tuple[str, int, bytes]]) -> None:
        """The files are written. Loop."""
        for user, seq, _data in taken:
            known = self._users[user]
            if known.seq == seq:
                known.unsaved = None

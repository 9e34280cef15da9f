"""Sqlite: a store in one file, `sqlite:///<absolute path>`, with the standard library's driver.

    synchronous=full|extra     normal and off lose what they confirmed when the power goes (RELIABILITY fact 10)
    busy_timeout_ms=5000       how long another connection may hold the lock
    durability=store|log       log: any synchronous is taken, and only the log is believed

Rules of this module:
- One connection, one call at a time.
- Settings are asked back after they are set; what does not hold is refused (ST5).
- Errors of the disk end the store: a sync that failed is never followed by one that succeeds (RELIABILITY fact 1).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from tellback_protocol.effects import Effect
from tellback_protocol.ids import Version
from tellback_server.fs import FileTaken, Fs
from tellback_server.store.address import StoreAddress
from tellback_server.store.base import (
    Durability,
    ListedOwner,
    StoreDamaged,
    StoredChat,
    StoreError,
    StoreHealth,
    StoreUnavailable,
    StoreUnsafe,
)
from tellback_server.store.sql import Dialect, SqlOwners

__all__ = ["SqliteStore", "open_address"]

_SYNCHRONOUS: Final = {"off": 0, "normal": 1, "full": 2, "extra": 3}
_DIALECT: Final = Dialect(serial="INTEGER PRIMARY KEY AUTOINCREMENT", octets="BLOB")
_DAMAGED: Final = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FORMAT")
_PASSES: Final = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM")


def open_address(address: StoreAddress) -> SqliteStore:
    """See schemes. Raises StoreUnsafe."""
    path = address.take_absolute_path()
    durability = address.take_durability()
    busy_timeout_ms = address.take_number("busy_timeout_ms", 5000, 0, 600_000)
    synchronous = address.take("synchronous", "full", lambda text: text.lower(), "full or extra")
    address.refuse_rest()
    if synchronous not in _SYNCHRONOUS:
        raise StoreUnsafe(f"{address}: synchronous is full or extra, not {synchronous[:40]!r}")
    if _SYNCHRONOUS[synchronous] < _SYNCHRONOUS["full"] and durability == "store":
        raise StoreUnsafe(
            f"{address}: synchronous={synchronous} loses what it confirmed when the power goes; it has to be full or"
            " extra, or durability=log says that only the log is believed"
        )
    return SqliteStore(path, synchronous=synchronous, busy_timeout_s=busy_timeout_ms / 1000, durability=durability)


class SqliteStore:
    """See base.Store."""

    def __init__(
        self, path: str, *, synchronous: str = "full", busy_timeout_s: float = 5.0, durability: Durability = "store"
    ) -> None:
        self.path = path
        self._synchronous = synchronous
        self._busy_timeout_s = busy_timeout_s
        self._durability = durability
        self._owners = SqlOwners(_DIALECT)
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()
        self._ended = ""
        """Why nothing is done any more, once it is so."""

    def check(self) -> StoreHealth:
        with self._transaction() as statements:
            settings = {
                name: str(statements.run(f"PRAGMA {name}")[0][0]) for name in ("journal_mode", "synchronous")
            }
        return StoreHealth(backend=f"SQLite {sqlite3.sqlite_version}", durability=self._durability, settings=settings)

    def load(self, user: str, chat_id: str) -> StoredChat | None:
        with self._transaction("DEFERRED") as statements:
            return self._owners.load(statements, user, chat_id)

    def save(self, user: str, base: Version | None, effects: Sequence[Effect] | None, value: StoredChat) -> None:
        with self._transaction() as statements:
            self._owners.save(statements, user, base, effects, value)

    def delete(self, user: str, chat_id: str, head: Version) -> None:
        with self._transaction() as statements:
            self._owners.delete(statements, user, chat_id, head)

    def rename(self, user: str, chat_id: str, name: str) -> None:
        with self._transaction() as statements:
            self._owners.rename(statements, user, chat_id, name)

    def list(self, user: str) -> Iterator[ListedOwner]:
        with self._transaction("DEFERRED") as statements:
            return iter(self._owners.list(statements, user))

    def users(self) -> Sequence[str]:
        with self._transaction("DEFERRED") as statements:
            return self._owners.users(statements)

    def claim(self, data_id: str) -> None:
        with self._transaction() as statements:
            self._owners.claim(statements, data_id)

    def close(self) -> None:
        with self._lock:
            self._let_go()
            self._ended = self._ended or "the store was closed"

    # -- connection --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[_Statements]:
        with self._lock, self._told():
            if self._ended:
                raise StoreError(f"{self.path}: {self._ended}")
            if self._connection is None:
                self._connection = self._connected()
            connection = self._connection
            connection.execute(f"BEGIN {kind}")
            try:
                yield _Statements(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def _connected(self) -> sqlite3.Connection:
        self._make_file()
        connection = sqlite3.connect(
            self.path, timeout=self._busy_timeout_s, isolation_level=None, check_same_thread=False
        )
        try:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if tables and "tellback_meta" not in tables:
                raise StoreUnsafe(f"{self.path}: holds the tables of another program; name a file of its own")
            self._set(connection, "journal_mode", "wal", "wal")
            self._set(connection, "synchronous", self._synchronous, _SYNCHRONOUS[self._synchronous])
            if os.uname().sysname == "Darwin":
                self._set(connection, "fullfsync", "1", 1)
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            statements = _Statements(connection)
            if "tellback_meta" not in tables or not self._owners.is_prepared(statements):
                connection.execute("BEGIN IMMEDIATE")
                self._owners.prepare(statements)
                connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        return connection

    def _make_file(self) -> None:
        """The file, readable by nobody else. Raises StoreUnsafe, StoreDamaged, StoreUnavailable."""
        fs = Fs()
        try:
            stat = fs.stat(self.path)
            if stat is None:
                with contextlib.suppress(FileTaken):
                    fs.create(self.path).close()
                fs.fsync_directory(os.path.dirname(self.path))
            elif not stat.is_regular:
                raise StoreUnsafe(f"{self.path}: is not a regular file")
            elif stat.size_bytes == 0 and (wal := fs.stat(f"{self.path}-wal")) is not None and wal.size_bytes:
                # SQLite takes an empty file for a new database and throws the journal away.
                raise StoreDamaged(f"{self.path}: is empty, and its journal is not; restore the file from a backup")
        except OSError as error:
            raise StoreUnavailable(f"{self.path}: {error}") from error

    def _set(self, connection: sqlite3.Connection, name: str, wanted: str, expected: object) -> None:
        connection.execute(f"PRAGMA {name} = {wanted}")
        (found,) = connection.execute(f"PRAGMA {name}").fetchone()
        if found != expected:
            raise StoreUnsafe(f"{self.path}: {name} is {found}, it has to be {expected}; it may be on a network share")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """The driver's errors as ours."""
        try:
            yield
        except sqlite3.Error as error:
            name = getattr(error, "sqlite_errorname", "")
            sentence = f"{self.path}: {error}"
            if name.startswith(_DAMAGED):
                raise StoreDamaged(f"{sentence}; nothing was changed: keep the file, restore a backup") from error
            if name.startswith(_PASSES):
                # What stands at this path may be another file by then.
                self._let_go()
                raise StoreUnavailable(sentence) from error
            if name.startswith("SQLITE_IOERR"):
                self._ended = f"the disk failed ({name}); nothing is written there before a new start"
                self._let_go()
            raise StoreError(sentence) from error
        except UnicodeDecodeError as error:
            # The driver reads its own tables of tables as text, whatever the disk made of them.
            raise StoreDamaged(f"{self.path}: holds what is no text; keep the file, restore a backup") from error

    def _let_go(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None


class _Statements:
    """See sql.Sql."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def run(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement, tuple(values)).fetchall()

    def run_many(self, statement: str, rows: Iterable[Sequence[object]]) -> int:
        return self._connection.executemany(statement, rows).rowcount

"""Postgres: a store in a PostgreSQL database, `postgresql://<user>[:<password>]@<host>[:<port>]/<database>`.

    schema=tellback            whose tables they are; made when it is missing
    connections=4              in the pool
    connect_timeout_s=5        for a connection, new or from the pool
    statement_timeout_s=30     for one statement
    sslmode=...                as libpq knows it; so are PGPASSWORD and the password file
    durability=store|log       log: any settings are taken, and only the log is believed

Rules of this module:
- One call is one transaction. A connection that broke is replaced and the call is made again, once: every call of the
  port is harmless the second time.
- Settings are asked on every new connection, since a restart may have changed them (ST5).
"""

from __future__ import annotations

import contextlib
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

import psycopg
from psycopg import errors
from psycopg.conninfo import make_conninfo
from psycopg_pool import ConnectionPool, PoolTimeout

from tellback_protocol.effects import Effect
from tellback_protocol.ids import Version
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
from tellback_server.store.sql import Dialect, Sql, SqlOwners

__all__ = ["PostgresStore", "open_address"]

_T = TypeVar("_T")
_Connection = psycopg.Connection[tuple[Any, ...]]

_DIALECT: Final = Dialect(
    serial="BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY", octets="BYTEA", lock_row=" FOR UPDATE"
)
_SCHEMA_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_MIGRATION_LOCK: Final = 0x74656C6C  # An advisory lock's number: "tell".
_NEEDED: Final = {"fsync": ("on",), "full_page_writes": ("on",), "synchronous_commit": ("on", "remote_write",
                                                                                        "remote_apply", "local")}
_DAMAGED: Final = (errors.DataCorrupted, errors.IndexCorrupted)
_NOT_ALLOWED: Final = (errors.InsufficientPrivilege, errors.InvalidSchemaName)


def open_address(address: StoreAddress) -> PostgresStore:
    """See schemes. Raises StoreUnsafe."""

    def schema(text: str) -> str:
        if not _SCHEMA_NAME.fullmatch(text):
            raise ValueError(text)
        return text

    database = address.path.removeprefix("/")
    if not database or "/" in database:
        raise StoreUnsafe(f"{address}: wants a database, as in postgresql://tellback@localhost/tellback")
    connect_timeout_s = address.take_number("connect_timeout_s", 5, 1, 600)
    statement_timeout_s = address.take_number("statement_timeout_s", 30, 0.01, 3600)
    schema_name = address.take("schema", "tellback", schema, "a name of small letters, digits and _")
    parameters: dict[str, Any] = {
        "host": address.host or None, "port": address.port, "user": address.user or None,
        "password": address.password or None, "dbname": database,
        "sslmode": address.take("sslmode", None, str, "as libpq knows it"),
        "connect_timeout": max(2, round(connect_timeout_s)), "application_name": "tellback",
        "tcp_user_timeout": round(statement_timeout_s * 1000),
        "options": f"-c search_path={schema_name} -c statement_timeout={round(statement_timeout_s * 1000)}"
                   f" -c lock_timeout={round(statement_timeout_s * 1000)}"
                   f" -c idle_in_transaction_session_timeout={round(statement_timeout_s * 2000)}",
    }
    connections = int(address.take_number("connections", 4, 1, 100))
    durability = address.take_durability()
    address.refuse_rest()
    try:
        conninfo = make_conninfo(**{name: value for name, value in parameters.items() if value is not None})
    except psycopg.Error:
        # Its text may quote what it was given, password and all.
        raise StoreUnsafe(f"{address}: libpq cannot use this address") from None
    return PostgresStore(
        str(address), conninfo, schema=schema_name, connections=connections, connect_timeout_s=connect_timeout_s,
        durability=durability,
    )


class PostgresStore:
    """See base.Store."""

    def __init__(
        self, shown: str, conninfo: str, *, schema: str, connections: int, connect_timeout_s: float,
        durability: Durability,
    ) -> None:
        """`shown` stands in messages for the `conninfo`, which holds the password."""
        self._shown = shown
        self._conninfo = conninfo
        self._schema = schema
        self._timeout_s = connect_timeout_s
        self._durability = durability
        self._owners = SqlOwners(_DIALECT)
        self._pool: ConnectionPool[_Connection] = ConnectionPool(
            conninfo, min_size=1, max_size=connections, timeout=connect_timeout_s, open=False, name="tellback-store",
            reconnect_timeout=connect_timeout_s,
        )
        self._known: weakref.WeakKeyDictionary[_Connection, dict[str, str]] = weakref.WeakKeyDictionary()
        """Connections whose settings were asked."""
        self._is_closed = False

    def check(self) -> StoreHealth:
        if not self._is_closed and self._pool.closed:
            # The pool would only say that time went by; this says why.
            with self._told(), psycopg.connect(self._conninfo):
                pass
            self._pool.open()

        def prepare(connection: _Connection, sql: Sql) -> tuple[str, dict[str, str]]:
            sql.run(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
            if not sql.run("SELECT 1 FROM pg_namespace WHERE nspname = ?", (self._schema,)):
                sql.run(f"CREATE SCHEMA {self._schema}")
            self._owners.prepare(sql)
            ((version,),) = sql.run("SHOW server_version")
            return str(version), self._known[connection]

        version, settings = self._done(prepare)
        return StoreHealth(backend=f"PostgreSQL {version}", durability=self._durability, settings=settings)

    def load(self, user: str, chat_id: str) -> StoredChat | None:
        def load(_: _Connection, sql: Sql) -> StoredChat | None:
            sql.run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            return self._owners.load(sql, user, chat_id)

        return self._done(load)

    def save(self, user: str, base: Version | None, effects: Sequence[Effect] | None, value: StoredChat) -> None:
        self._done(lambda _, sql: self._owners.save(sql, user, base, effects, value))

    def delete(self, user: str, chat_id: str, head: Version) -> None:
        self._done(lambda _, sql: self._owners.delete(sql, user, chat_id, head))

    def rename(self, user: str, chat_id: str, name: str) -> None:
        self._done(lambda _, sql: self._owners.rename(sql, user, chat_id, name))

    def list(self, user: str) -> Iterator[ListedOwner]:
        return iter(self._done(lambda _, sql: self._owners.list(sql, user)))

    def users(self) -> Sequence[str]:
        return self._done(lambda _, sql: self._owners.users(sql))

    def claim(self, data_id: str) -> None:
        self._done(lambda _, sql: self._owners.claim(sql, data_id))

    def close(self) -> None:
        self._is_closed = True
        self._pool.close()

    # -- connections -------------------------------------------------------------------------------------------------

    def _done(self, what: Callable[[_Connection, Sql], _T]) -> _T:
        """What one transaction gives. Raises StoreError."""
        with self._told():
            try:
                return self._transaction(what)
            except psycopg.OperationalError as error:
                if isinstance(error, PoolTimeout) or (error.sqlstate is not None and not _ended(error)):
                    raise
                # The connection is gone: a restart, or somebody ended it. Others in the pool may be gone with it.
                self._pool.check()
                return self._transaction(what)

    def _transaction(self, what: Callable[[_Connection, Sql], _T]) -> _T:
        if self._is_closed or self._pool.closed:
            raise StoreError(f"{self._shown}: the store was closed, or never checked")
        with self._pool.connection() as connection:
            if connection not in self._known:
                self._known[connection] = self._asked(connection)
            with connection.transaction():
                return what(connection, _Statements(connection))

    def _asked(self, connection: _Connection) -> dict[str, str]:
        """The settings that durability rests on. Raises StoreUnsafe."""
        with connection.transaction():
            found = {name: str(_Statements(connection).run(f"SHOW {name}")[0][0]) for name in _NEEDED}
        for name, value in found.items():
            if value not in _NEEDED[name] and self._durability == "store":
                raise StoreUnsafe(
                    f"{self._shown}: {name} is {value} and has to be on, or what it confirmed is lost when the power"
                    " goes; durability=log says that only the log is believed"
                )
        return found

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """The driver's errors as ours."""
        try:
            yield
        except PoolTimeout:
            raise StoreUnavailable(f"{self._shown}: no connection within {self._timeout_s:g} s") from None
        except _DAMAGED as error:
            raise StoreDamaged(f"{self._shown}: {error}") from error
        except _NOT_ALLOWED as error:
            raise StoreUnsafe(f"{self._shown}: {error}") from error
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise StoreUnavailable(f"{self._shown}: {error}") from error
        except psycopg.Error as error:
            raise StoreError(f"{self._shown}: {error}") from error


def _ended(error: psycopg.OperationalError) -> bool:
    return isinstance(error, (errors.AdminShutdown, errors.CrashShutdown, errors.IdleInTransactionSessionTimeout))


class _Statements:
    """See sql.Sql."""

    def __init__(self, connection: _Connection) -> None:
        self._cursor = connection.cursor(binary=True)

    def run(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        self._cursor.execute(statement.replace("?", "%b").encode(), values)
        return self._cursor.fetchall() if self._cursor.description is not None else []

    def run_many(self, statement: str, rows: Iterable[Sequence[object]]) -> int:
        self._cursor.executemany(statement.replace("?", "%b").encode(), rows)
        return self._cursor.rowcount

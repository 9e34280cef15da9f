"""Sql: owners in the tables of an SQL database, statement by statement; a backend brings connection and transaction.

    tellback_meta      name, value                       schema, data_id
    tellback_owners    one row an owner: head, the chat document's version, metadata, summary, counts
    tellback_messages  one row a message: position (numbers with gaps), id, line
    tellback_states    one row a state document

Rules of this module:
- Every function runs inside one transaction that the backend opened; on any exception it rolls back.
- Names, ids and lines are bytes: text types of databases refuse or alter what a Python str can be.
- Rows carry a CRC-32 over what they hold and the owner counts its rows: what does not add up is StoreDamaged (ST9).
- An append writes its own rows and the owner's, whatever stands there besides (ST7).
- Statements are written with `?`; none holds a value.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Protocol

import msgspec

from tellback_protocol.effects import Effect
from tellback_protocol.ids import Version
from tellback_protocol.stream import StateDocument
from tellback_server.store.base import (
    ListedOwner,
    StoreBehind,
    StoreDamaged,
    StoredChat,
    StoreError,
    StoreForeign,
    StoreUnsafe,
    is_at_least,
)
from tellback_server.store.difference import Difference, difference_of, placed, position_at

__all__ = ["SCHEMA", "Dialect", "Sql", "SqlOwners"]

SCHEMA: Final = 1
"""The number of the newest migration."""
_IDS_MAX: Final = 500  # In one IN list; SQLite's bound on parameters was 999 for long.


class Sql(Protocol):
    """Statements inside a transaction."""

    def run(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The rows that come back."""
        ...

    def run_many(self, statement: str, rows: Iterable[Sequence[object]]) -> int:
        """How many rows were touched, all runs together."""
        ...


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """What databases call differently."""

    serial: str
    """Type of a key that counts up by itself."""
    octets: str
    """Type of bytes."""
    lock_row: str = ""
    """Ends a SELECT whose row nobody else may change meanwhile."""

    def migrations(self) -> list[list[str]]:
        """Statements by schema number, from 1. One that was released never changes."""
        return [[
            f"CREATE TABLE tellback_owners (owner {self.serial}, user_name {self.octets} NOT NULL,"
            f" chat_id {self.octets} NOT NULL, name {self.octets} NOT NULL, epoch BIGINT NOT NULL, seq BIGINT NOT NULL,"
            f" integrity {self.octets} NOT NULL, chat_epoch BIGINT NOT NULL, chat_seq BIGINT NOT NULL,"
            f" chat_integrity {self.octets} NOT NULL, metadata {self.octets} NOT NULL, summary {self.octets} NOT NULL,"
            " messages BIGINT NOT NULL, states BIGINT NOT NULL, crc32 BIGINT NOT NULL, UNIQUE (user_name, chat_id))",
            "CREATE TABLE tellback_messages (owner BIGINT NOT NULL, position BIGINT NOT NULL,"
            f" id {self.octets} NOT NULL, line {self.octets} NOT NULL, crc32 BIGINT NOT NULL,"
            " PRIMARY KEY (owner, position), UNIQUE (owner, id))",
            f"CREATE TABLE tellback_states (owner BIGINT NOT NULL, namespace {self.octets} NOT NULL, epoch BIGINT,"
            f" seq BIGINT, integrity {self.octets}, data {self.octets}, corrupt BIGINT NOT NULL, crc32 BIGINT NOT NULL,"
            " PRIMARY KEY (owner, namespace))",
        ]]


class _Row(msgspec.Struct, array_like=True, gc=False):
    """An owner's row, in the order of `_COLUMNS`."""

    name: bytes
    epoch: int
    seq: int
    integrity: bytes
    chat_epoch: int
    chat_seq: int
    chat_integrity: bytes
    metadata: bytes
    summary: bytes
    messages: int
    states: int

    def head(self) -> Version:
        return Version(self.epoch, self.seq, _text(self.integrity))

    def version(self) -> Version:
        return Version(self.chat_epoch, self.chat_seq, _text(self.chat_integrity))

    def values(self, key: _Key) -> tuple[Any, ...]:
        """As columns, with the checksum behind them."""
        columns = msgspec.structs.astuple(self)
        return *columns, _crc32((key, columns))

    @classmethod
    def read(cls, columns: Sequence[Any], key: _Key) -> _Row:
        """The row of what a SELECT of `_COLUMNS` and crc32 gave. Raises StoreDamaged."""
        plain = tuple(_plain(columns))
        if _crc32((key, plain[:-1])) != plain[-1]:
            raise StoreDamaged(f"{_shown(key[1])}: the row of the owner does not match its checksum")
        return cls(*plain[:-1])

    @classmethod
    def of(cls, value: StoredChat) -> _Row:
        return cls(
            _octets(value.name), value.head.epoch, value.head.seq, _octets(value.head.integrity), value.version.epoch,
            value.version.seq, _octets(value.version.integrity), value.metadata, value.summary, len(value.messages),
            len(value.states),
        )


_Key = tuple[bytes, bytes]
"""User and id of an owner."""

_COLUMNS: Final = (
    "name, epoch, seq, integrity, chat_epoch, chat_seq, chat_integrity, metadata, summary, messages, states"
)
_FIND: Final = (
    f"SELECT owner, user_name, chat_id, {_COLUMNS}, crc32 FROM tellback_owners"  # noqa: S608
    " WHERE user_name = ? AND chat_id = ?"
)
_LIST: Final = f"SELECT user_name, chat_id, {_COLUMNS}, crc32 FROM tellback_owners WHERE user_name = ?"  # noqa: S608
_ADD: Final = (
    f"INSERT INTO tellback_owners (user_name, chat_id, {_COLUMNS}, crc32)"  # noqa: S608
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING owner"
)
_MOVE: Final = (
    "UPDATE tellback_owners SET name = ?, epoch = ?, seq = ?, integrity = ?, chat_epoch = ?, chat_seq = ?,"
    " chat_integrity = ?, metadata = ?, summary = ?, messages = ?, states = ?, crc32 = ?"
    " WHERE owner = ? AND epoch = ? AND seq = ? AND integrity = ? RETURNING owner"
)
_PUT_LINE: Final = (
    "INSERT INTO tellback_messages (owner, position, id, line, crc32) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_PUT_STATE: Final = (
    "INSERT INTO tellback_states (owner, namespace, epoch, seq, integrity, data, corrupt, crc32)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (owner, namespace) DO UPDATE SET epoch = excluded.epoch,"
    " seq = excluded.seq, integrity = excluded.integrity, data = excluded.data, corrupt = excluded.corrupt,"
    " crc32 = excluded.crc32"
)


class SqlOwners:
    """What a store does, as statements."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect

    def prepare(self, sql: Sql) -> None:
        """Bring the schema up to date. Raises StoreUnsafe when a newer tellback made it."""
        sql.run("CREATE TABLE IF NOT EXISTS tellback_meta (name VARCHAR(40) PRIMARY KEY, value VARCHAR(200) NOT NULL)")
        found = sql.run("SELECT value FROM tellback_meta WHERE name = 'schema'")
        schema = int(found[0][0]) if found else 0
        if schema > SCHEMA:
            raise StoreUnsafe(f"the store has schema {schema}, made by a newer tellback; this one knows {SCHEMA}")
        for number, statements in enumerate(self._dialect.migrations(), 1):
            if number > schema:
                for statement in statements:
                    sql.run(statement)
        sql.run("DELETE FROM tellback_meta WHERE name = 'schema'")
        sql.run("INSERT INTO tellback_meta (name, value) VALUES ('schema', ?)", (str(SCHEMA),))

    def is_prepared(self, sql: Sql) -> bool:
        """Whether `prepare` has nothing to do; `tellback_meta` is there."""
        return sql.run("SELECT value FROM tellback_meta WHERE name = 'schema'") == [(str(SCHEMA),)]

    def claim(self, sql: Sql, data_id: str) -> None:
        """See base.Store."""
        sql.run("INSERT INTO tellback_meta (name, value) VALUES ('data_id', ?) ON CONFLICT DO NOTHING", (data_id,))
        if sql.run("SELECT value FROM tellback_meta WHERE name = 'data_id'") != [(data_id,)]:
            raise StoreForeign("the store belongs to another data folder; give this one a database of its own")

    def users(self, sql: Sql) -> list[str]:
        """See base.Store."""
        return [_text(name) for (name,) in sql.run("SELECT DISTINCT user_name FROM tellback_owners")]

    def list(self, sql: Sql, user: str) -> list[ListedOwner]:
        """See base.Store."""
        listed = []
        for user_name, chat_id, *columns in sql.run(_LIST, (_octets(user),)):
            row = _Row.read(columns, (_bytes(user_name), _bytes(chat_id)))
            listed.append(ListedOwner(_text(chat_id), _text(row.name), row.head(), row.summary))
        return listed

    def load(self, sql: Sql, user: str, chat_id: str) -> StoredChat | None:
        """See base.Store."""
        found = sql.run(_FIND, (_octets(user), _octets(chat_id)))
        if not found:
            return None
        owner, row = _found(found[0])
        messages: dict[str, bytes] = {}
        for position, message_id, line, crc32 in sql.run(
            "SELECT position, id, line, crc32 FROM tellback_messages WHERE owner = ? ORDER BY position", (owner,)
        ):
            if _line_crc32(position, _bytes(message_id), _bytes(line)) != crc32:
                raise StoreDamaged(f"{chat_id}: message {len(messages)} does not match its checksum")
            messages[_text(message_id)] = _bytes(line)
        states: dict[str, StateDocument] = {}
        for namespace, *columns in sql.run(
            "SELECT namespace, epoch, seq, integrity, data, corrupt, crc32 FROM tellback_states WHERE owner = ?",
            (owner,),
        ):
            read = _read_state(_bytes(namespace), columns, chat_id)
            states[_text(namespace)] = read
        if len(messages) != row.messages or len(states) != row.states:
            raise StoreDamaged(
                f"{chat_id}: {len(messages)} messages and {len(states)} states are there, {row.messages} and"
                f" {row.states} were saved"
            )
        return StoredChat(
            chat_id=chat_id, name=_text(row.name), head=row.head(), version=row.version(), metadata=row.metadata,
            messages=messages, states=states, summary=row.summary,
        )

    def save(
        self, sql: Sql, user: str, base: Version | None, effects: Sequence[Effect] | None, value: StoredChat
    ) -> None:
        """See base.Store."""
        key = _octets(user), _octets(value.chat_id)
        found = sql.run(_FIND + self._dialect.lock_row, key)
        row = _Row.of(value).values(key)
        owner, old = -1, None
        if found:
            try:
                owner, old = _found(found[0])
            except StoreDamaged:
                if effects is not None:
                    raise
                # A value without effects is how a damaged owner is written anew.
                _remove(sql, found[0][0])
        head = None if old is None else old.head()
        if is_at_least(head, value.head):
            return
        if effects is not None and head != base:
            raise StoreBehind(head, base)
        if old is None:
            _write_whole(sql, sql.run(_ADD, (*key, *row))[0][0], value)
            return
        difference = None if effects is None else difference_of(effects, value)
        if difference is None or not _install(sql, owner, old.messages, difference, value):
            _remove_rows(sql, owner)
            _write_whole(sql, owner, value)
        if not sql.run(_MOVE, (*row, owner, old.epoch, old.seq, old.integrity)):
            raise StoreError(f"{value.chat_id}: somebody else moved the owner while it was saved")

    def delete(self, sql: Sql, user: str, chat_id: str, head: Version) -> None:
        """See base.Store."""
        gone = sql.run(
            "DELETE FROM tellback_owners WHERE user_name = ? AND chat_id = ?"
            " AND (epoch < ? OR (epoch = ? AND seq <= ?)) RETURNING owner",
            (_octets(user), _octets(chat_id), head.epoch, head.epoch, head.seq),
        )
        for (owner,) in gone:
            _remove_rows(sql, owner)

    def rename(self, sql: Sql, user: str, chat_id: str, name: str) -> None:
        """See base.Store."""
        key = _octets(user), _octets(chat_id)
        found = sql.run(_FIND + self._dialect.lock_row, key)
        if found:
            owner, row = _found(found[0])
            row.name = _octets(name)
            sql.run(_MOVE, (*row.values(key), owner, row.epoch, row.seq, row.integrity))


def _found(columns: Sequence[Any]) -> tuple[int, _Row]:
    """An owner's number and row, of what `_FIND` gave."""
    return columns[0], _Row.read(columns[3:], (_bytes(columns[1]), _bytes(columns[2])))


def _remove(sql: Sql, owner: int) -> None:
    sql.run("DELETE FROM tellback_owners WHERE owner = ?", (owner,))
    _remove_rows(sql, owner)


def _remove_rows(sql: Sql, owner: int) -> None:
    sql.run("DELETE FROM tellback_messages WHERE owner = ?", (owner,))
    sql.run("DELETE FROM tellback_states WHERE owner = ?", (owner,))


def _write_whole(sql: Sql, owner: int, value: StoredChat) -> None:
    rows = (
        _line_row(owner, position_at(index), message_id, line)
        for index, (message_id, line) in enumerate(value.messages.items())
    )
    if value.messages and sql.run_many(_PUT_LINE, rows) != len(value.messages):
        raise StoreError(f"{value.chat_id}: not every message was taken")
    if value.states:
        sql.run_many(_PUT_STATE, [_state_row(owner, *item) for item in value.states.items()])


def _install(sql: Sql, owner: int, count: int, difference: Difference, value: StoredChat) -> bool:
    """False when what stands there and the difference do not make the value: then it is written whole."""
    places = _places(sql, owner, difference)
    if places is None:
        return False
    for ids in _in_pieces(difference.removed):
        count -= len(sql.run(
            f"DELETE FROM tellback_messages WHERE owner = ? AND id IN ({_marks(ids)}) RETURNING position",  # noqa: S608
            (owner, *ids),
        ))
    if count + len(places) != len(value.messages):
        return False
    if places and sql.run_many(
        _PUT_LINE, [_line_row(owner, at, message_id, value.messages[message_id]) for message_id, at in places]
    ) != len(places):
        return False
    if difference.changed and not _change(sql, owner, difference.changed, value):
        return False
    gone = [namespace for namespace in difference.namespaces if namespace not in value.states]
    if gone:
        sql.run_many(
            "DELETE FROM tellback_states WHERE owner = ? AND namespace = ?",
            [(owner, _octets(namespace)) for namespace in gone],
        )
    if put := [namespace for namespace in difference.namespaces if namespace in value.states]:
        sql.run_many(_PUT_STATE, [_state_row(owner, namespace, value.states[namespace]) for namespace in put])
    if not difference.namespaces:
        return True
    return sql.run("SELECT count(*) FROM tellback_states WHERE owner = ?", (owner,)) == [(len(value.states),)]


def _change(sql: Sql, owner: int, ids: Sequence[str], value: StoredChat) -> bool:
    known = _positions(sql, owner, ids)
    if len(known) != len(ids):
        return False
    rows = [_line_row(owner, known[message_id], message_id, value.messages[message_id]) for message_id in ids]
    sql.run_many(
        "UPDATE tellback_messages SET line = ?, crc32 = ? WHERE owner = ? AND position = ?",
        [(line, crc32, owner, at) for _, at, _, line, crc32 in rows],
    )
    return True


def _places(sql: Sql, owner: int, difference: Difference) -> list[tuple[str, int]] | None:
    """New ids and their positions, from what stands there before anything is removed; None when there is no room or a
    neighbour is missing.
    """
    if not difference.placed():
        return []
    ((last,),) = sql.run("SELECT max(position) FROM tellback_messages WHERE owner = ?", (owner,))
    known = _positions(sql, owner, [after for after in difference.after if after is not None])

    def above(below: int | None) -> int | None:
        first: int | None
        if below is None:
            ((first,),) = sql.run("SELECT min(position) FROM tellback_messages WHERE owner = ?", (owner,))
        else:
            ((first,),) = sql.run(
                "SELECT min(position) FROM tellback_messages WHERE owner = ? AND position > ?", (owner, below)
            )
        return first

    return placed(difference, last, known, above)


def _positions(sql: Sql, owner: int, ids: Sequence[str]) -> dict[str, int]:
    known: dict[str, int] = {}
    for piece in _in_pieces(ids):
        for message_id, position in sql.run(
            f"SELECT id, position FROM tellback_messages WHERE owner = ? AND id IN ({_marks(piece)})",  # noqa: S608
            (owner, *piece),
        ):
            known[_text(message_id)] = position
    return known


def _in_pieces(ids: Sequence[str]) -> Iterator[list[bytes]]:
    for start in range(0, len(ids), _IDS_MAX):
        yield [_octets(message_id) for message_id in ids[start : start + _IDS_MAX]]


def _marks(ids: Sequence[object]) -> str:
    return ", ".join("?" * len(ids))


def _line_row(owner: int, position: int, message_id: str, line: bytes) -> tuple[int, int, bytes, bytes, int]:
    octets = _octets(message_id)
    return owner, position, octets, line, _line_crc32(position, octets, line)


def _line_crc32(position: object, message_id: bytes, line: bytes) -> int:
    return zlib.crc32(line, zlib.crc32(b"%b %d %b " % (str(position).encode(), len(message_id), message_id)))


def _crc32(columns: object) -> int:
    return zlib.crc32(msgspec.msgpack.encode(columns))


def _state_row(owner: int, namespace: str, document: StateDocument) -> tuple[Any, ...]:
    version = document.version
    columns = (
        None if version is None else version.epoch, None if version is None else version.seq,
        None if version is None else _octets(version.integrity), document.data, int(document.corrupt),
    )
    return owner, _octets(namespace), *columns, _crc32((_octets(namespace), columns))


def _read_state(namespace: bytes, columns: Sequence[Any], whose: str) -> StateDocument:
    epoch, seq, integrity, data, corrupt, crc32 = _plain(columns)
    if _crc32((namespace, (epoch, seq, integrity, data, corrupt))) != crc32:
        raise StoreDamaged(f"{whose}: the state {_shown(namespace)} does not match its checksum")
    version = None if epoch is None else Version(epoch, seq, _text(integrity))
    return StateDocument(version, data, corrupt=bool(corrupt))


def _plain(columns: Sequence[Any]) -> list[Any]:
    return [bytes(one) if isinstance(one, memoryview) else one for one in columns]


def _bytes(column: Any) -> bytes:
    """Of a damaged row, anything; its checksum tells then."""
    return bytes(column) if isinstance(column, (bytes, memoryview)) else b""


def _shown(octets: bytes) -> str:
    return octets.decode("utf-8", "backslashreplace")


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(octets: bytes | memoryview) -> str:
    return bytes(octets).decode("utf-8", "surrogatepass")

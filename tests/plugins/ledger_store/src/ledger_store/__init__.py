"""A store of tellback in a package of its own: a ledger file of whole owners, each line synced before it counts.

    ledger:///srv/chats.ledger

It is small and it keeps the contract; a chat is written whole, so it suits short ones.
"""

from __future__ import annotations

import fcntl
import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from tellback_protocol.effects import Effect
from tellback_protocol.ids import Version
from tellback_protocol.stream import StateDocument
from tellback_server.store.address import StoreAddress
from tellback_server.store.base import (
    ListedOwner,
    StoreBehind,
    StoreDamaged,
    StoredChat,
    StoreForeign,
    StoreHealth,
    StoreUnavailable,
    StoreUnsafe,
    is_at_least,
)

__all__ = ["LedgerStore", "open_address"]


class LedgerStore:
    """See tellback_server.store.base.Store."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()

    def check(self) -> StoreHealth:
        with self._ledger():
            return StoreHealth(backend="ledger 1.0", durability="store", settings={"sync": "fsync"})

    def load(self, user: str, chat_id: str) -> StoredChat | None:
        with self._ledger() as ledger:
            found = ledger.owners.get((user, chat_id))
            return None if found is None else _value(found)

    def save(self, user: str, base: Version | None, effects: Sequence[Effect] | None, value: StoredChat) -> None:
        with self._ledger() as ledger:
            found = ledger.owners.get((user, value.chat_id))
            head = None if found is None else _value(found).head
            if is_at_least(head, value.head):
                return
            if effects is not None and head != base:
                raise StoreBehind(head, base)
            ledger.write(["save", _text(user), _text(value.chat_id), _fields(value)])

    def delete(self, user: str, chat_id: str, head: Version) -> None:
        with self._ledger() as ledger:
            found = ledger.owners.get((user, chat_id))
            if found is None:
                return
            held = _value(found).head
            if (held.epoch, held.seq) <= (head.epoch, head.seq):
                ledger.write(["delete", _text(user), _text(chat_id), None])

    def rename(self, user: str, chat_id: str, name: str) -> None:
        with self._ledger() as ledger:
            found = ledger.owners.get((user, chat_id))
            if found is not None:
                value = _value(found)
                value.name = name
                ledger.write(["save", _text(user), _text(chat_id), _fields(value)])

    def list(self, user: str) -> Iterator[ListedOwner]:
        with self._ledger() as ledger:
            values = [_value(found) for (of, _chat_id), found in ledger.owners.items() if of == user]
        return iter([ListedOwner(one.chat_id, one.name, one.head, one.summary) for one in values])

    def users(self) -> Sequence[str]:
        with self._ledger() as ledger:
            return list(dict.fromkeys(user for user, _chat_id in ledger.owners))

    def claim(self, data_id: str) -> None:
        with self._ledger() as ledger:
            if ledger.data_id not in (None, data_id):
                raise StoreForeign(f"{self._path} belongs to another data folder")
            if ledger.data_id is None:
                ledger.write(["claim", data_id, "", None])

    def close(self) -> None:
        """Every call opens the file anew."""

    def _ledger(self) -> _Ledger:
        return _Ledger(self._path, self._lock)


class _Ledger:
    """The file, locked and read, for one call."""

    def __init__(self, path: str, lock: threading.Lock) -> None:
        self._path = path
        self._lock = lock
        self.owners: dict[tuple[str, str], Any] = {}
        self.data_id: str | None = None

    def __enter__(self) -> _Ledger:
        self._lock.acquire()
        try:
            is_new = not os.path.exists(self._path)
            self._file = open(self._path, "a+b")
            fcntl.flock(self._file, fcntl.LOCK_EX)
            if is_new:
                folder = os.open(os.path.dirname(self._path), os.O_RDONLY)
                os.fsync(folder)
                os.close(folder)
            self._read()
        except OSError as error:
            self._lock.release()
            raise StoreUnavailable(f"{self._path}: {error.strerror}") from error
        except BaseException:
            self._file.close()
            self._lock.release()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        self._lock.release()

    def _read(self) -> None:
        self._file.seek(0)
        end = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                # A write that was cut off; nobody was told of it.
                self._file.truncate(end)
                break
            crc32, _space, body = line[:-1].partition(b" ")
            if crc32 != b"%08x" % zlib.crc32(body):
                raise StoreDamaged(f"{self._path}: the line at {end} is not what was written")
            self._take(msgspec.json.decode(body))
            end += len(line)

    def _take(self, entry: Any) -> None:
        what, user, chat_id, fields = entry
        if what == "claim":
            self.data_id = user
        elif what == "save":
            self.owners[_told(user), _told(chat_id)] = fields
        else:
            self.owners.pop((_told(user), _told(chat_id)), None)

    def write(self, entry: list[Any]) -> None:
        body = msgspec.json.encode(entry)
        try:
            self._file.write(b"%08x %b\n" % (zlib.crc32(body), body))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StoreUnavailable(f"{self._path}: {error.strerror}") from error


def _text(text: str) -> str:
    """Any text as one that JSON can hold."""
    return text.encode("utf-8", "surrogatepass").hex()


def _told(coded: str) -> str:
    return bytes.fromhex(coded).decode("utf-8", "surrogatepass")


def _fields(value: StoredChat) -> dict[str, Any]:
    return {
        "chat_id": _text(value.chat_id), "name": _text(value.name), "head": value.head, "version": value.version,
        "metadata": value.metadata, "messages": [[_text(key), line] for key, line in value.messages.items()],
        "states": {_text(key): [one.version, one.data, one.corrupt] for key, one in value.states.items()},
        "summary": value.summary,
    }


class _Fields(msgspec.Struct):
    chat_id: str
    name: str
    head: Version
    version: Version
    metadata: bytes
    messages: list[tuple[str, bytes]]
    states: dict[str, tuple[Version | None, bytes | None, bool]]
    summary: bytes


def _value(found: Any) -> StoredChat:
    one = msgspec.convert(found, _Fields)
    return StoredChat(
        chat_id=_told(one.chat_id), name=_told(one.name), head=one.head, version=one.version, metadata=one.metadata,
        messages={_told(key): line for key, line in one.messages},
        states={_told(key): StateDocument(at, data, corrupt=bad) for key, (at, data, bad) in one.states.items()},
        summary=one.summary,
    )


def open_address(address: StoreAddress) -> LedgerStore:
    """Raises StoreUnsafe."""
    if address.host or not address.path.startswith("/"):
        raise StoreUnsafe("a ledger is named by an absolute path, as in ledger:///srv/chats.ledger")
    address.refuse_rest()
    return LedgerStore(address.path)

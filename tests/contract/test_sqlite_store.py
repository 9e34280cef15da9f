"""SQLite keeps the contract; what its settings, its file and other connections can do to it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tellback_server.contract import Saved, StoreContract, same
from tellback_server.store.base import (
    Store,
    StoreBehind,
    StoreDamaged,
    StoredChat,
    StoreError,
    StoreUnavailable,
    StoreUnsafe,
)
from tellback_server.store.schemes import open_store
from tellback_server.store.sqlite import SqliteStore


class TestSqliteStore(StoreContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite://{tmp_path}/store.db"


@contextlib.contextmanager
def opened(path: Path, options: str = "") -> Iterator[Store]:
    with contextlib.closing(open_store(f"sqlite://{path}{options}")) as store:
        store.check()
        yield store


def filled(path: Path, count: int = 50) -> tuple[Saved, StoredChat]:
    saved = Saved()
    saved.append(count)
    with opened(path) as store:
        return saved, saved.save(store)


def test_st5_it_says_what_its_promise_rests_on(tmp_path: Path) -> None:
    with opened(tmp_path / "a.db") as store:
        health = store.check()
    assert health.durability == "store"
    assert health.settings == {"journal_mode": "wal", "synchronous": "2"}
    assert (tmp_path / "a.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("synchronous", ["normal", "off", "NORMAL"])
def test_st5_less_than_full_is_refused_unless_the_log_is_believed(tmp_path: Path, synchronous: str) -> None:
    with pytest.raises(StoreUnsafe, match="loses what it confirmed"):
        open_store(f"sqlite://{tmp_path}/a.db?synchronous={synchronous}")
    with opened(tmp_path / "a.db", f"?synchronous={synchronous}&durability=log") as store:
        assert store.check().durability == "log"


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("sqlite://host/a.db", "names a host"),
        ("sqlite:a.db", "absolute path"),
        ("sqlite:///", "absolute path"),
        ("sqlite:///srv/../etc/a.db", "absolute path"),
        ("sqlite:///srv/a.db?synchronus=full", "no option 'synchronus'"),
        ("sqlite:///srv/a.db?synchronous=maybe", "full or extra"),
        ("sqlite:///srv/a.db?busy_timeout_ms=-1", "a number from 0"),
        ("sqlite:///srv/a.db?busy_timeout_ms=nan", "a number from 0"),
        ("sqlite:///srv/a.db?busy_timeout_ms=1&busy_timeout_ms=2", "twice"),
        ("sqlite:///srv/a.db#x", "%23"),
    ],
)
def test_st5_a_url_that_cannot_be_used_says_why(url: str, sentence: str) -> None:
    with pytest.raises(StoreUnsafe, match=sentence):
        open_store(url)


def test_st7_an_append_costs_the_same_however_long_the_chat_is(tmp_path: Path) -> None:
    costs = []
    for count in (10, 10_000):
        saved, _ = filled(tmp_path / f"{count}.db", count)
        store = SqliteStore(str(tmp_path / f"{count}.db"))
        store.check()
        statements: list[str] = []
        assert store._connection is not None
        store._connection.set_trace_callback(statements.append)
        written = store._connection.total_changes
        saved.append()
        saved.save(store)
        costs.append((len(statements), store._connection.total_changes - written))
        store.close()
    assert costs[0] == costs[1]
    assert costs[0][1] == 2


def test_st9_a_store_that_is_locked_for_long_is_unavailable_and_nothing_else(tmp_path: Path) -> None:
    saved, value = filled(tmp_path / "a.db")
    with (
        opened(tmp_path / "a.db", "?busy_timeout_ms=50") as store,
        contextlib.closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        saved.append()
        newer = saved.value()
        with pytest.raises(StoreUnavailable, match="locked"):
            store.save("default-user", value.head, saved.effects, newer)
        other.execute("ROLLBACK")
        same(store.load("default-user", saved.chat_id), value)
        store.save("default-user", value.head, saved.effects, newer)
        same(store.load("default-user", saved.chat_id), newer)


def test_st9_every_flipped_byte_and_every_cut_is_told_or_harmless(tmp_path: Path) -> None:
    saved, value = filled(tmp_path / "a.db", 12)
    whole = (tmp_path / "a.db").read_bytes()
    damaged = tmp_path / "b.db"
    told = 0
    flips = [(at, 1 << at % 8) for at in range(0, len(whole), 47)]
    for at, bit in [*flips, *((cut, 0) for cut in range(0, len(whole), 2039))]:
        data = bytearray(whole)
        if bit:
            data[at] ^= bit
        else:
            del data[at:]
        for leftover in tmp_path.glob("b.db*"):
            leftover.unlink()
        damaged.write_bytes(data)
        try:
            with opened(damaged) as store:
                found = store.load("default-user", saved.chat_id)
        except StoreError:
            told += 1
            continue
        if found is None:
            # Only the key that leads there, or everything, is gone; the server knows what it saved (ST4).
            saved.append()
            with opened(damaged) as store, pytest.raises((StoreBehind, StoreError)):
                store.save("default-user", value.head, saved.effects[-1:], saved.value())
        else:
            same(found, value)
    assert told > 20


def test_st9_a_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as other:
        other.execute("CREATE TABLE theirs (x)")
        other.commit()
    before = (tmp_path / "a.db").read_bytes()
    with pytest.raises(StoreUnsafe, match="another program"), opened(tmp_path / "a.db"):
        pass
    assert (tmp_path / "a.db").read_bytes() == before
    (tmp_path / "b.db").write_bytes(b"no database at all, but some text" * 100)
    with pytest.raises(StoreDamaged), opened(tmp_path / "b.db"):
        pass


@pytest.mark.parametrize("kind", ["folder", "link", "missing folder", "empty beside a journal"])
def test_st9_what_is_no_file_to_write_to_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.db"
    match kind:
        case "folder":
            path.mkdir()
        case "link":
            path.symlink_to(tmp_path / "elsewhere.db")
        case "missing folder":
            path = tmp_path / "nowhere" / "a.db"
        case _:
            path.touch()
            (tmp_path / "a.db-wal").write_bytes(b"frames")
    with pytest.raises(StoreError), opened(path):
        pass
    assert not (tmp_path / "elsewhere.db").exists()


def test_st9_a_newer_schema_is_refused(tmp_path: Path) -> None:
    filled(tmp_path / "a.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as other:
        other.execute("UPDATE tellback_meta SET value = '999' WHERE name = 'schema'")
        other.commit()
    with pytest.raises(StoreUnsafe, match="newer tellback"), opened(tmp_path / "a.db"):
        pass


def test_st9_a_damaged_owner_is_written_anew_whole(tmp_path: Path) -> None:
    saved, value = filled(tmp_path / "a.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as other:
        other.execute("DELETE FROM tellback_messages WHERE position = 0")
        other.commit()
    with opened(tmp_path / "a.db") as store:
        with pytest.raises(StoreDamaged, match="49 messages and 0 states are there, 50 and 0 were saved"):
            store.load("default-user", saved.chat_id)
        saved.append()
        newer = saved.save(store, whole=True)
        same(store.load("default-user", saved.chat_id), newer)
    assert newer.head != value.head

"""PostgreSQL keeps the contract; what restarts, lost connections, unsafe settings and wrong addresses do to it."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import psycopg
import pytest

from tellback_server.contract import Saved, StoreContract, same
from tellback_server.store import postgres as postgres_store
from tellback_server.store.base import (
    Store,
    StoreDamaged,
    StoreError,
    StoreForeign,
    StoreUnavailable,
    StoreUnsafe,
)
from tellback_server.store.schemes import open_store
from tests.support.database_servers import PostgresProcess, free_port
from tests.support.store_kills import survives_kills


class TestPostgresStore(StoreContract):
    @pytest.fixture
    def url(self, postgres: PostgresProcess) -> str:
        return postgres.url(f"t{uuid.uuid4().hex}")


@pytest.fixture
def schema() -> str:
    return f"t{uuid.uuid4().hex}"


@pytest.fixture
def store(postgres: PostgresProcess, schema: str) -> Iterator[Store]:
    with contextlib.closing(open_store(postgres.url(schema, "&connect_timeout_s=10"))) as store:
        store.check()
        yield store


def test_st5_it_says_what_its_promise_rests_on(store: Store) -> None:
    health = store.check()
    assert health.backend.startswith("PostgreSQL ")
    assert health.durability == "store"
    assert health.settings == {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}


@pytest.mark.parametrize("name", ["fsync", "full_page_writes", "synchronous_commit"])
def test_st5_a_server_that_loses_what_it_confirmed_is_refused(
    postgres: PostgresProcess, store: Store, schema: str, name: str
) -> None:
    postgres.stop()
    postgres.settings[name] = "off"
    try:
        postgres.start()
        with pytest.raises(StoreUnsafe, match=f"{name} is off"):
            store.load("default-user", str(uuid.uuid4()))
        with contextlib.closing(open_store(postgres.url(schema, "&durability=log"))) as trusting:
            health = trusting.check()
            assert (health.durability, health.settings[name]) == ("log", "off")
    finally:
        postgres.stop()
        del postgres.settings[name]
        postgres.start()
    assert store.load("default-user", str(uuid.uuid4())) is None


def test_st1_a_killed_server_has_what_was_saved_and_the_store_finds_it_again(
    postgres: PostgresProcess, store: Store
) -> None:
    survives_kills(postgres, store)


def test_st1_ended_connections_are_replaced(postgres: PostgresProcess, store: Store) -> None:
    saved = Saved()
    for _ in range(3):
        saved.append()
        value = saved.save(store)
        with postgres.connect() as administrator:
            administrator.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tellback'"
            )
    same(store.load("default-user", saved.chat_id), value)


def test_st1_a_server_that_is_down_is_unavailable_and_not_empty(postgres: PostgresProcess, schema: str) -> None:
    saved = Saved()
    saved.append()
    with contextlib.closing(open_store(postgres.url(schema, "&connect_timeout_s=1"))) as store:
        store.check()
        value = saved.save(store)
        postgres.kill()
        try:
            for call in (
                lambda: store.load("default-user", saved.chat_id), lambda: list(store.list("default-user")),
                store.users, store.check,
            ):
                with pytest.raises(StoreUnavailable):
                    call()
        finally:
            postgres.start()
    with contextlib.closing(open_store(postgres.url(schema))) as store:
        store.check()
        same(store.load("default-user", saved.chat_id), value)


def test_st1_a_row_that_somebody_locked_is_unavailable(postgres: PostgresProcess, schema: str) -> None:
    saved = Saved()
    saved.append()
    with (
        contextlib.closing(open_store(postgres.url(schema, "&statement_timeout_s=0.2"))) as store,
        postgres.connect() as other,
    ):
        store.check()
        value = saved.save(store)
        saved.append()
        with other.transaction():
            other.execute(f"SELECT * FROM {schema}.tellback_owners FOR UPDATE".encode())
            with pytest.raises(StoreUnavailable, match="timeout"):
                store.save("default-user", value.head, saved.effects, saved.value())
        same(store.load("default-user", saved.chat_id), value)
        newer = saved.save(store)
        same(store.load("default-user", saved.chat_id), newer)


@pytest.mark.parametrize(
    ("wrong", "right"), [("s3cret%2Fword", "wr0ng%2Fword"), ("/postgres?", "/nowhere?"), ("tellback:", "nobody:")]
)
def test_st5_a_wrong_address_is_told_without_the_password(
    postgres: PostgresProcess, schema: str, wrong: str, right: str
) -> None:
    with (
        contextlib.closing(open_store(postgres.url(schema).replace(wrong, right))) as store,
        pytest.raises(StoreError) as failed,
    ):
        store.check()
    for text in (str(failed.value), repr(failed.value), repr(store)):
        assert "word@" not in text
        assert "s3cret" not in text
        assert "wr0ng" not in text


def test_st5_nobody_there_is_unavailable_soon(schema: str) -> None:
    url = f"postgresql://tellback:s3cret@127.0.0.1:{free_port()}/postgres?schema={schema}&connect_timeout_s=1"
    with contextlib.closing(open_store(url)) as store, pytest.raises(StoreUnavailable, match="refused"):
        store.check()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("postgresql://localhost", "wants a database"),
        ("postgresql://localhost/a/b", "wants a database"),
        ("postgresql://localhost/a?schema=A;drop", "a name of small letters"),
        ("postgresql://localhost/a?pool=3", "no option 'pool'"),
        ("postgresql://localhost/a?connections=0", "a number from 1"),
        ("postgresql://u:s3cret@localhost:port/a", "cannot be read"),
    ],
)
def test_st5_a_url_that_cannot_be_used_says_why(url: str, sentence: str) -> None:
    with pytest.raises(StoreUnsafe, match=sentence) as refused:
        open_store(url)
    assert "s3cret" not in str(refused.value)


def test_st7_an_append_costs_the_same_however_long_the_chat_is(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    run, run_many = postgres_store._Statements.run, postgres_store._Statements.run_many

    def counted_run(self: Any, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        rows = run(self, statement, values)
        # A connection that is new in the pool is asked for its settings first.
        if not statement.startswith("SHOW "):
            sent.append(len(rows))
        return rows

    def counted_run_many(self: Any, statement: str, rows: Iterable[Sequence[object]]) -> int:
        given = list(rows)
        sent.append(len(given))
        return run_many(self, statement, given)

    monkeypatch.setattr(postgres_store._Statements, "run", counted_run)
    monkeypatch.setattr(postgres_store._Statements, "run_many", counted_run_many)
    costs = []
    for count in (10, 5000):
        saved = Saved()
        saved.append(count)
        saved.save(store)
        saved.append()
        sent.clear()
        saved.save(store)
        costs.append(list(sent))
    assert costs[0] == costs[1]
    assert sum(costs[0]) == 4, "the owner's row and the last position are read; a line and the owner's row are written"


def test_st9_a_row_that_somebody_changed_is_told(postgres: PostgresProcess, store: Store, schema: str) -> None:
    saved = Saved()
    saved.append(3)
    saved.save(store)
    with postgres.connect() as other:
        other.execute(f"UPDATE {schema}.tellback_messages SET line = '{{}}' WHERE id = 'm2'".encode())
    with pytest.raises(StoreDamaged, match="message 1"):
        store.load("default-user", saved.chat_id)
    with postgres.connect() as other:
        other.execute(f"UPDATE {schema}.tellback_owners SET seq = 99".encode())
    with pytest.raises(StoreDamaged):
        list(store.list("default-user"))


def test_st10_two_servers_that_begin_at_once_make_one_schema(postgres: PostgresProcess, schema: str) -> None:
    told: list[object] = []

    def begin(data_id: str) -> None:
        with contextlib.closing(open_store(postgres.url(schema))) as store:
            try:
                store.check()
                store.claim(data_id)
                told.append(data_id)
            except StoreForeign as error:
                told.append(error)
            except psycopg.Error as error:
                told.append(repr(error))

    threads = [threading.Thread(target=begin, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(type(one).__name__ for one in told) == ["StoreForeign", "StoreForeign", "str"]
    assert {"a", "b", "c"} & {one for one in told if isinstance(one, str)}

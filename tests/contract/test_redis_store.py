"""Redis keeps the contract; what kills, torn files, evictions, unsafe settings and wrong addresses do to it."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Iterator

import pytest

from tellback_protocol.stream import StateDocument
from tellback_server.contract import Saved, StoreContract, same
from tellback_server.store.base import (
    Store,
    StoreDamaged,
    StoredChat,
    StoreError,
    StoreUnavailable,
    StoreUnsafe,
)
from tellback_server.store.schemes import open_store
from tests.support.database_servers import ValkeyProcess, free_port
from tests.support.store_kills import survives_kills


class TestRedisStore(StoreContract):
    @pytest.fixture
    def url(self, valkey: ValkeyProcess) -> str:
        return valkey.url(0, f"?prefix={uuid.uuid4().hex}")


@pytest.fixture
def prefix() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def store(valkey: ValkeyProcess, prefix: str) -> Iterator[Store]:
    with contextlib.closing(open_store(valkey.url(0, f"?prefix={prefix}"))) as store:
        store.check()
        yield store


def test_st5_it_says_what_its_promise_rests_on(store: Store) -> None:
    health = store.check()
    assert health.backend.startswith("Valkey ")
    assert health.durability == "store"
    assert health.settings == {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("appendonly", "no"), ("appendfsync", "everysec"), ("appendfsync", "no"), ("maxmemory-policy", "allkeys-lru")],
)
def test_st5_a_server_that_loses_what_it_confirmed_is_refused(
    valkey: ValkeyProcess, store: Store, prefix: str, name: str, value: str
) -> None:
    safe = valkey.settings[name]
    with valkey.connect() as administrator:
        administrator.config_set(name, value)
        try:
            with pytest.raises(StoreUnsafe, match=f"{name} is {value} and has to be {safe}"):
                store.check()
            with (
                contextlib.closing(open_store(valkey.url(0, f"?prefix={prefix}"))) as other,
                pytest.raises(StoreUnsafe, match=name),
            ):
                other.load("default-user", str(uuid.uuid4()))
            with contextlib.closing(open_store(valkey.url(0, f"?prefix={prefix}&durability=log"))) as trusting:
                health = trusting.check()
                assert (health.durability, health.settings[name]) == ("log", value)
        finally:
            administrator.config_set(name, safe)
        _settled(valkey)
    store.check()


def _settled(valkey: ValkeyProcess) -> None:
    """Wait until the append-only file holds everything again."""
    with valkey.connect() as administrator:
        while administrator.info("persistence")["aof_rewrite_in_progress"]:
            time.sleep(0.01)


def test_st5_an_append_only_file_that_is_only_being_begun_is_not_trusted(valkey: ValkeyProcess, prefix: str) -> None:
    """Switched on while running, the server says yes at once and confirms what is in no file before the first rewrite
    ends: a kill then loses it.
    """
    with valkey.connect() as administrator:
        administrator.mset({f"{prefix}:filler:{number}": 1 for number in range(40)})
        administrator.config_set("rdb-key-save-delay", 20_000)
        try:
            administrator.config_set("appendonly", "no")
            administrator.config_set("appendonly", "yes")
            assert administrator.config_get("appendonly") == {"appendonly": "yes"}
            with (
                contextlib.closing(open_store(valkey.url(0, f"?prefix={prefix}"))) as store,
                pytest.raises(StoreUnavailable, match="append-only file"),
            ):
                store.check()
        finally:
            administrator.config_set("rdb-key-save-delay", 0)
    _settled(valkey)
    with contextlib.closing(open_store(valkey.url(0, f"?prefix={prefix}"))) as store:
        assert store.check().durability == "store"


def test_st5_a_server_that_does_not_tell_its_settings_is_refused(valkey: ValkeyProcess, prefix: str) -> None:
    with valkey.connect() as administrator:
        administrator.execute_command("ACL", "SETUSER", "quiet", "on", ">quiet", "~*", "+@all", "-config")
    address = f"redis://quiet:quiet@127.0.0.1:{valkey.port}/0?prefix={prefix}"
    with contextlib.closing(open_store(address)) as store, pytest.raises(StoreUnsafe, match="CONFIG GET"):
        store.check()
    with contextlib.closing(open_store(f"{address}&durability=log")) as store:
        assert store.check().settings == {}


def test_st1_a_killed_server_has_what_was_saved_and_the_store_finds_it_again(
    valkey: ValkeyProcess, store: Store
) -> None:
    survives_kills(valkey, store)


def test_st9_a_torn_append_only_file_ends_with_a_whole_save() -> None:
    """The file is cut at many places inside the last saves, and the server started on it each time."""
    with ValkeyProcess() as server:
        saved = Saved()
        values = []
        sizes = []
        with contextlib.closing(open_store(server.url(0))) as store:
            store.check()
            (tail,) = (server.folder / "appendonlydir").glob("*.incr.aof")
            for _ in range(4):
                saved.append(2)
                values.append(saved.save(store))
                sizes.append(tail.stat().st_size)
        server.kill()
        whole = tail.read_bytes()
        for cut in range(sizes[0], sizes[-1], (sizes[-1] - sizes[0]) // 12):
            tail.write_bytes(whole[:cut])
            server.start()
            with contextlib.closing(open_store(server.url(0))) as store:
                store.check()
                expected = max(index for index, size in enumerate(sizes) if size <= cut)
                same(store.load("default-user", saved.chat_id), values[expected])
                assert [one.head for one in store.list("default-user")] == [values[expected].head]
            server.kill()


@pytest.mark.parametrize("kind", ["owner", "lines", "order", "states", "list", "meta"])
def test_st9_an_evicted_key_is_told(valkey: ValkeyProcess, store: Store, prefix: str, kind: str) -> None:
    saved = Saved()
    saved.append(3)
    saved.states["memory"] = StateDocument(saved.head, b"{}")
    saved.save(store)
    with valkey.connect() as other:
        (key,) = other.scan_iter(f"{prefix}:{kind}*")
        other.delete(key)
    asked = {"list": lambda: list(store.list("default-user")), "meta": store.users}
    with pytest.raises(StoreDamaged):
        asked.get(kind, lambda: store.load("default-user", saved.chat_id))()
    if kind not in ("owner", "meta"):
        saved.append()
        newer = saved.save(store, whole=True)
        same(store.load("default-user", saved.chat_id), newer)
        assert [one.head for one in store.list("default-user")] == [newer.head]


def test_st9_a_full_memory_refuses_and_keeps_what_is_there(valkey: ValkeyProcess, store: Store) -> None:
    saved = Saved()
    saved.append()
    value = saved.save(store)
    with valkey.connect() as administrator:
        administrator.config_set("maxmemory", "1mb")
        try:
            saved.append()
            with pytest.raises(StoreUnavailable, match="memory"):
                store.save("default-user", value.head, saved.effects, saved.value())
        finally:
            administrator.config_set("maxmemory", "0")
    same(store.load("default-user", saved.chat_id), value)
    newer = saved.save(store)
    same(store.load("default-user", saved.chat_id), newer)


def test_st9_a_server_that_became_a_replica_takes_nothing_and_says_so(valkey: ValkeyProcess, store: Store) -> None:
    saved = Saved()
    saved.append()
    value = saved.save(store)
    with valkey.connect() as administrator:
        administrator.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))
        try:
            saved.append()
            with pytest.raises(StoreUnavailable):
                store.save("default-user", value.head, saved.effects, saved.value())
        finally:
            administrator.execute_command("REPLICAOF", "NO", "ONE")
    same(store.load("default-user", saved.chat_id), value)
    newer = saved.save(store)
    same(store.load("default-user", saved.chat_id), newer)


def test_st9_a_changed_value_and_a_strange_type_are_told(valkey: ValkeyProcess, store: Store, prefix: str) -> None:
    saved = Saved()
    saved.append(2)
    saved.save(store)
    with valkey.connect() as other:
        (key,) = other.scan_iter(f"{prefix}:lines*")
        other.hset(key, "m1", b"\0\0\0\0changed")
        with pytest.raises(StoreDamaged, match="checksum"):
            store.load("default-user", saved.chat_id)
        other.delete(key)
        other.set(key, "somebody else's")
    with pytest.raises(StoreDamaged, match="somebody else uses the prefix"):
        store.load("default-user", saved.chat_id)


def test_st9_two_servers_on_one_owner_make_no_mixture(valkey: ValkeyProcess, store: Store, prefix: str) -> None:
    """Who loses the race is told that it stands elsewhere; nothing of it is kept."""
    saved = Saved()
    saved.append()
    first = saved.save(store)
    outcomes: list[object] = []
    values = []
    with contextlib.closing(open_store(valkey.url(0, f"?prefix={prefix}"))) as other:
        rivals = []
        for through in (store, other):
            rival = Saved(chat_id=saved.chat_id)
            rival.chat, rival.head, rival.base, rival.made = saved.chat.copy(), first.head, first.head, 1
            rival.append(5)
            values.append(rival.value())
            rivals.append((through, rival))

        def save(through: Store, rival: Saved) -> None:
            try:
                outcomes.append(rival.save(through))
            except StoreError as error:
                outcomes.append(error)

        threads = [threading.Thread(target=save, args=rival) for rival in rivals]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    (won,) = (one for one in outcomes if isinstance(one, StoredChat))
    assert [type(one).__name__ for one in outcomes if one is not won] == ["StoreBehind"]
    same(store.load("default-user", saved.chat_id), won)


@pytest.mark.parametrize(("wrong", "right"), [("s3cret%2Fword", "wr0ng%2Fword"), (":s3cret", "nobody:s3cret")])
def test_st5_a_wrong_address_is_told_without_the_password(
    valkey: ValkeyProcess, prefix: str, wrong: str, right: str
) -> None:
    url = valkey.url(0, f"?prefix={prefix}").replace(wrong, right)
    with contextlib.closing(open_store(url)) as store, pytest.raises(StoreUnsafe) as failed:
        store.check()
    for text in (str(failed.value), repr(failed.value), repr(store)):
        assert "s3cret" not in text
        assert "wr0ng" not in text


def test_st5_nobody_there_is_unavailable_soon(prefix: str) -> None:
    url = f"redis://:s3cret@127.0.0.1:{free_port()}/0?prefix={prefix}&timeout_s=1"
    with contextlib.closing(open_store(url)) as store, pytest.raises(StoreUnavailable, match="refused"):
        store.check()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("redis:///0", "wants a host"),
        ("redis://localhost/one", "the database is a number"),
        ("redis://localhost/0?db=1", "no option 'db'"),
        ("redis://localhost/0?timeout_s=0", "a number from"),
        ("redis://:s3cret@[::1/0", "cannot be read"),
    ],
)
def test_st5_a_url_that_cannot_be_used_says_why(url: str, sentence: str) -> None:
    with pytest.raises(StoreUnsafe, match=sentence) as refused:
        open_store(url)
    assert "s3cret" not in str(refused.value)


def test_st7_an_append_costs_the_same_however_long_the_chat_is(valkey: ValkeyProcess, store: Store) -> None:
    costs = []
    for count in (10, 5000):
        saved = Saved()
        saved.append(count)
        saved.save(store)
        saved.append()
        with valkey.connect() as administrator:
            # Integrities and numbers have one length here, so bytes say whether anything else was sent.
            before = administrator.info("stats")
            saved.save(store)
            after = administrator.info("stats")
        costs.append(after["total_commands_processed"] - before["total_commands_processed"])
        bytes_in = after["total_net_input_bytes"] - before["total_net_input_bytes"]
        assert bytes_in < 4000
    assert costs[0] == costs[1]

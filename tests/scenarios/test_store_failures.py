"""A store that is locked, killed and set back, under writers: acks go on, nothing is lost or doubled, and in the end
the store holds what was acknowledged, by integrity.

The number of kills is TELLBACK_STORE_KILLS (2).
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tellback_server import keeper
from tests.scenarios.test_import import run
from tests.support.database_servers import PostgresProcess, ServerProcess, ValkeyProcess
from tests.support.forked_server import ForkedServer
from tests.support.importing import write_files
from tests.support.oracle import Notes
from tests.support.server import Process, TabClient, running, texts
from tests.support.stored import caught_up, sqlite_url
from tests.support.under_writers import disturbed, goes_on
from tests.support.waiting import GUARD_S, until

KILLS = int(os.environ.get("TELLBACK_STORE_KILLS", "2"))
CHAT = "character:Alice/First meeting"
ASLEEP = "character:Alice/Asleep"


@pytest.fixture(params=["postgres", "valkey"])
def database(request: pytest.FixtureRequest) -> ServerProcess:
    server: ServerProcess = request.getfixturevalue(request.param)
    return server


def http(server: ForkedServer, path: str) -> tuple[int, str]:
    """A plain HTTP answer."""
    address = server.url.removeprefix("ws://").split("/")[0]
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=GUARD_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def gauge(metrics: str, name: str) -> float:
    return next(float(line.split()[-1]) for line in metrics.splitlines() if line.startswith(f"{name} "))


async def branched(tab: TabClient, ids: list[str]) -> None:
    """The log does not tell where a branch began, so it cannot be read without the store."""
    answer = await tab.write("chat-branch", CHAT, base="*", message=ids[2], to="Asleep")
    assert answer["type"] == "ack", answer


async def away(server: ForkedServer) -> None:
    """What is not live cannot be told, and nothing of it looks like an empty chat."""
    tab = await TabClient.join(server.url)
    for asked in (
        {"type": "open", "chat": ASLEEP, "since": None},
        {"type": "open", "chat": ASLEEP, "create": True, "since": None},
        {"type": "chat-search", "query": "two"},
    ):
        answer = await tab.ask(**asked)
        assert (answer.get("code"), answer.get("retry")) == ("storage-unavailable", "backoff"), (asked, answer)
    await tab.close()


@pytest.mark.timeout(120)
async def test_a_database_that_is_killed_keeps_nobody_waiting(database: ServerProcess, tmp_path: Path) -> None:
    """[SV3] [F29] [F31]: kill -9 of the database, kill -9 of the server while it is away, and both come back."""
    assert isinstance(database, PostgresProcess | ValkeyProcess)
    url = database.url("server", "&connect_timeout_s=1") if isinstance(database, PostgresProcess) else database.url(1)
    settings = {"store": url, "checkpoint_interval_s": 0.05, "checkpoint_debounce_s": 0.02, "idle_s": 0.1}
    async with ForkedServer(tmp_path / "data", **settings) as server:

        async def disturb(notes: Notes) -> None:
            await goes_on(notes)
            await until(lambda: gauge(http(server, "/metrics")[1], "tellback_actors") == 1)
            for round_ in range(KILLS):
                await goes_on(notes)
                await asyncio.to_thread(database.kill)
                await goes_on(notes)
                await away(server)
                if round_ % 2:
                    # Who starts without its store serves nobody who is not there yet, and loses nothing.
                    await server.kill()
                    await server.start()
                await asyncio.to_thread(database.start)
                await goes_on(notes)

        await disturbed(server, CHAT, [url], disturb, branched)
        assert await server.stop() == 0
    assert "Traceback" not in server.errors.read_text()


async def test_kill_9_of_the_server_on_a_store(tmp_path: Path) -> None:
    """[SV1] [D1] [O2]: what was acknowledged is there exactly once, whatever the store had of it."""
    url = sqlite_url(tmp_path / "store")
    async with ForkedServer(tmp_path / "data", store=url, checkpoint_interval_s=0.05) as server:

        async def disturb(notes: Notes) -> None:
            for _ in range(KILLS * 3):
                await goes_on(notes)
                await server.kill()
                await server.start()

        await disturbed(server, CHAT, [url], disturb, branched)
        assert await server.stop() == 0
    assert "Traceback" not in server.errors.read_text()


async def test_a_kill_does_not_change_the_version_of_a_chat_that_was_only_imported_sv1(tmp_path: Path) -> None:
    """[SV1]: its first commit wrote a state, which is no version of the chat, and is in the log alone."""
    data, url, chat = tmp_path / "data", sqlite_url(tmp_path / "store"), "character:A/x"
    source = write_files(tmp_path / "source", {"chats/A/x.jsonl": '{"chat_metadata":{}}\n{"mes":"hi"}\n'})
    code, _out, errors = await run("import", "luker", source, "--data", data, "--store", url)
    assert code == 0, errors
    async with Process(data, "--store", url, "--checkpoint-interval", "60") as server:
        tab = await TabClient.join(server.url)
        await tab.open(chat)
        await tab.write_state("state-update", chat, namespace="memory", base=None, set=1)
        was = await tab.open(chat)
        await server.kill()
        await server.start()
        again = await (await TabClient.join(server.url)).open(chat)
        assert (again["version"], again["head"]) == (was["version"], was["head"])
        assert (again["version"]["seq"], again["head"]["seq"]) == (0, 1)


async def test_a_locked_store_is_alarmed_and_bounded_and_catches_up(tmp_path: Path) -> None:
    """[SV3] [SV4]: acks go on; what is not live is `storage-unavailable`; past the bound nothing is admitted; then all
    is well.
    """
    url = sqlite_url(tmp_path / "store") + "?busy_timeout_ms=50"
    settings = {
        "store": url, "checkpoint_interval_s": 0.05, "checkpoint_debounce_s": 0.01, "log_segment_bytes": 64 << 10,
        "store_behind_bytes_max": 512 << 10, "idle_s": 0.2,
    }
    async with ForkedServer(tmp_path / "data", **settings) as server:
        tab = await TabClient.join(server.url)
        await tab.open(CHAT, create=True)
        await tab.open("character:Alice/Asleep", create=True)
        await tab.append("character:Alice/Asleep", "zzz")
        await tab.ask("close", chat="character:Alice/Asleep")
        await caught_up(url, tab, CHAT)
        await until(lambda: gauge(http(server, "/metrics")[1], "tellback_actors") == 1)
        locker = sqlite3.connect(tmp_path / "store/chats.db", isolation_level=None)
        locker.execute("BEGIN EXCLUSIVE")
        assert (await tab.append(CHAT, "while it is locked"))["type"] == "ack"
        await until(lambda: http(server, "/readyz")[1].startswith("degraded: the store has not been reached"))
        assert http(server, "/readyz")[0] == 200
        assert gauge(http(server, "/metrics")[1], "tellback_store_up") == 0
        # SQLite lets others read.
        assert texts((await tab.open("character:Alice/Asleep"))["messages"]) == ["zzz"]
        count = 0
        while (answer := await tab.append(CHAT, "x" * 20_000))["type"] == "ack":
            count += 1
            await asyncio.sleep(0.01 if count > 20 else 0)
        assert answer["code"] == "storage-full"
        assert 10 < count < 200
        assert http(server, "/readyz")[0] == 503
        locker.execute("ROLLBACK")
        locker.close()

        async def accepted() -> bool:
            return (await tab.append(CHAT, "after it"))["type"] == "ack"

        await until(accepted)
        found = await caught_up(url, tab, CHAT)
        assert len(found.messages) >= count + 2
        assert http(server, "/readyz") == (200, "ready\n")
    log = server.errors.read_text()
    assert "Traceback" not in log
    for event in ("store-unavailable", "store-too-far-behind", "store-reached", "store-caught-up"):
        assert log.count(f'"event": "{event}"') == 1, event


def copied(folder: Path) -> bytes:
    """The file of a store that nobody has open."""
    with sqlite3.connect(folder / "chats.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return (folder / "chats.db").read_bytes()


def set_back(folder: Path, content: bytes) -> None:
    """Somebody put an old copy in its place."""
    for name in ("chats.db-wal", "chats.db-shm"):
        (folder / name).unlink(missing_ok=True)
    (folder / "chats.db").write_bytes(content)


async def test_what_a_store_lost_comes_out_of_the_log(tmp_path: Path) -> None:
    """[SV2] [F34]: a store that was set back gets again what it had."""
    folder = tmp_path / "store"
    url = sqlite_url(folder)
    async with running(tmp_path / "data", store=url) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        await tab.append(CHAT, "one")
    early = copied(folder)
    async with running(tmp_path / "data", store=url) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT)
        await tab.append(CHAT, "two")
        # And while it runs: what is live is written whole.
        await caught_up(url, tab, CHAT)
    set_back(folder, early)
    async with running(tmp_path / "data", store=url) as app:
        tab = await TabClient.join(app.urls[0])
        assert texts((await tab.open(CHAT))["messages"]) == ["one", "two"]
        await tab.append(CHAT, "three")
        assert len((await caught_up(url, tab, CHAT)).messages) == 3


async def test_what_is_in_neither_is_an_error_and_never_an_empty_chat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[SV2] [F34]: the log was trimmed because the store had it all, and then the store was set back, or emptied."""
    monkeypatch.setattr(keeper, "COLLECT_S", 0.05)
    folder = tmp_path / "store"
    url = sqlite_url(folder)
    settings: dict[str, Any] = {"store": url, "log_segment_bytes": 16 << 10, "log_retain_bytes": 0, "idle_s": 0.1}
    async with running(tmp_path / "data", **settings) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        await tab.append(CHAT, "one")
    early = copied(folder)
    async with running(tmp_path / "data", **settings) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT)
        for number in range(20):
            await tab.append(CHAT, f"{number}" * 2000)
        await until(lambda: not (tmp_path / f"data/.tellback/log/{2:020}.log").exists())
        head = (await tab.open(CHAT))["head"]
    late = copied(folder)
    set_back(folder, early)
    async with running(tmp_path / "data", **settings) as app:
        tab = await TabClient.join(app.urls[0])
        opened = await tab.ask("open", chat=CHAT, since=None)
        assert (opened["type"], opened["code"]) == ("error", "unreadable")
        made = await tab.ask("open", chat=CHAT, create=True, since=None)
        assert made["code"] == "unreadable", "and nobody begins a new one in its place"
    set_back(folder, late)
    async with running(tmp_path / "data", **settings) as app:
        tab = await TabClient.join(app.urls[0])
        opened = await tab.open(CHAT)
        assert (opened["head"], opened["count"]) == (head, 21), "nothing was done to what was there"

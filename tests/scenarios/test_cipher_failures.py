"""Each way in which Cipher's multi-backend provider loses or doubles data (FIELD-FACTS 7.4), on real stores, and what
else happens to two stores: emptied, set back, too far behind, hanging at a stop.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tellback_client.history import HistoryProvider
from tellback_server import flusher, keeper
from tests.scenarios.test_multi_failures import CHAT, FAST, served
from tests.scenarios.test_store_failures import copied, http, set_back
from tests.support.database_servers import ValkeyProcess
from tests.support.forked_server import ForkedServer
from tests.support.server import TabClient, running, texts
from tests.support.stored import caught_up, sqlite_url, stored
from tests.support.waiting import until


async def seeded(server: ForkedServer, backup: str) -> str:
    """A chat of three messages that both have; its id."""
    tab = await TabClient.join(server.url)
    chat_id: str = (await tab.open(CHAT, create=True))["chat_id"]
    await tab.append(CHAT, "one", "two", "three")
    await caught_up(backup, tab, CHAT)
    await tab.close()
    return chat_id


async def test_a_primary_that_is_down_at_the_start(tmp_path: Path) -> None:
    """[SM3]: chats come from backup and log, writes go on, and the primary gets them when it is there."""
    backup = sqlite_url(tmp_path / "backup")
    with ValkeyProcess() as database:
        url = database.url(0, "?timeout_s=1")
        async with served(tmp_path, url, backup) as server:
            await seeded(server, backup)
            assert await server.stop() == 0
            database.kill()
            await server.start()
            tab = await TabClient.join(server.url)
            opened = await tab.open(CHAT)
            assert texts(opened["messages"]) == ["one", "two", "three"]
            assert (await tab.append(CHAT, "four"))["type"] == "ack"
            await tab.open("character:Alice/New", create=True)
            assert (await tab.append("character:Alice/New", "new"))["type"] == "ack"
            assert [one["chat"] for one in (await tab.ask("chat-list"))["chats"]].count(CHAT) == 1
            await caught_up(backup, tab, "character:Alice/New")
            database.start()
            await caught_up(url, tab, CHAT)
            await caught_up(url, tab, "character:Alice/New")


async def test_a_read_that_fails_is_answered_by_backup_and_log_and_never_older(tmp_path: Path) -> None:
    """[SM3]: what a client has seen is there, although the backup was behind when the primary went."""
    backup = sqlite_url(tmp_path / "backup")
    with ValkeyProcess() as database:
        url = database.url(0, "?timeout_s=1")
        async with served(tmp_path, url, backup, flush_interval_s=3600, flush_timeout_s=0) as server:
            tab = await TabClient.join(server.url)
            await tab.open(CHAT, create=True)
            await tab.append(CHAT, "one", "two")
            head = (await tab.open(CHAT))["head"]
            await caught_up(url, tab, CHAT)
            await server.kill()
            database.kill()
            await server.start()
            tab = await TabClient.join(server.url)
            opened = await tab.open(CHAT)
            assert opened["head"] == head
            assert texts(opened["messages"]) == ["one", "two"]
            missing = await tab.ask("open", chat="character:Alice/Never was", since=None)
            assert missing["type"] == "error"
            database.start()


async def test_a_slow_backup_never_gets_anything_twice_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    """[SM4]: ticks do not overlap although each takes 15 intervals."""
    primary, backup = sqlite_url(tmp_path / "primary"), sqlite_url(tmp_path / "backup")
    settings = {"flush_interval_s": 0.01, "failpoints": "flush.before_save=delay:100,flush.after_save=delay:50"}
    async with served(tmp_path, primary, backup, **settings) as server:
        notes_texts = [f"message {number}" for number in range(40)]
        tab = await TabClient.join(server.url)
        await tab.open(CHAT, create=True)
        for text in notes_texts:
            assert (await tab.append(CHAT, text))["type"] == "ack"
        found = await caught_up(backup, tab, CHAT)
        assert [json.loads(line)["mes"] for line in found.messages.values()] == notes_texts


async def test_a_backup_that_refuses_a_write_gets_it_at_the_next_tick(tmp_path: Path) -> None:
    """[SM4]: locked, it refuses; nothing counts as flushed before it said yes."""
    primary, backup = sqlite_url(tmp_path / "primary"), sqlite_url(tmp_path / "backup") + "?busy_timeout_ms=20"
    async with served(tmp_path, primary, backup) as server:
        chat_id = await seeded(server, backup)
        tab = await TabClient.join(server.url)
        await tab.open(CHAT)
        locker = sqlite3.connect(tmp_path / "backup/chats.db", isolation_level=None)
        locker.execute("BEGIN EXCLUSIVE")
        assert (await tab.append(CHAT, "four"))["type"] == "ack"
        await caught_up(primary, tab, CHAT)
        await until(lambda: 'tellback_store_up{store="backup"} 0.0' in http(server, "/metrics")[1])
        status = json.loads(http(server, "/statusz")[1])
        assert [(one["store"], one["state"]) for one in status["stores"]] == [("primary", "up"), ("backup", "away")]
        assert status["stores"][1]["pending_entries"] > 0
        assert http(server, "/readyz")[1].startswith("degraded: the backup has not been reached")
        locker.execute("ROLLBACK")
        locker.close()
        assert len((await caught_up(backup, tab, CHAT)).messages) == 4
        await until(lambda: http(server, "/readyz") == (200, "ready\n"))
        assert stored(primary, chat_id) is not None


async def test_a_clear_during_a_flush_stays_cleared(tmp_path: Path) -> None:
    """[SM5]: the provider's clear, and a deletion, while the copy of what they remove is on its way to the backup."""
    primary, backup = sqlite_url(tmp_path / "primary"), sqlite_url(tmp_path / "backup")
    async with served(tmp_path, primary, backup, failpoints="flush.before_save=delay:200") as server:
        provider = HistoryProvider(server.url)
        for number in range(5):
            await provider.save_message("s", {"role": "user", "content": f"{number}"})
        await provider.clear_history("s")
        await provider.save_message("s", {"role": "user", "content": "after"})
        tab = await TabClient.join(server.url)
        await tab.open("character:history/s")
        for url in (backup, primary):
            found = await caught_up(url, tab, "character:history/s")
            assert [json.loads(line)["content"] for line in found.messages.values()] == ["after"]
        chat_id = (await tab.open("character:history/s"))["chat_id"]
        base = (await tab.append("character:history/s", "pending"))["version"]["integrity"]
        await asyncio.sleep(0.1)
        assert (await tab.write("chat-delete", "character:history/s", base=base))["type"] == "ack"
        await until(lambda: stored(backup, chat_id) is None)
        await asyncio.sleep(0.5)
        assert stored(backup, chat_id) is None
        await provider.disconnect()


async def test_two_writers_of_a_session_lose_nothing(tmp_path: Path) -> None:
    """[SM4]: Cipher reads, changes and writes an array; here every save is an append of its own."""
    primary, backup = sqlite_url(tmp_path / "primary"), sqlite_url(tmp_path / "backup")
    async with served(tmp_path, primary, backup) as server:
        providers = [HistoryProvider(server.url), HistoryProvider(server.url)]
        await asyncio.gather(*(
            provider.save_message("s", {"role": "user", "content": f"{index}-{number}"})
            for index, provider in enumerate(providers) for number in range(20)
        ))
        history = await providers[0].get_history("s")
        assert sorted(one["content"] for one in history) == sorted(f"{i}-{n}" for i in range(2) for n in range(20))
        assert history == await providers[1].get_history("s")
        assert history[-3:] == await providers[1].get_history("s", limit=3)
        for provider in providers:
            await provider.disconnect()
        tab = await TabClient.join(server.url)
        await tab.open("character:history/s")
        found = await caught_up(backup, tab, "character:history/s")
        assert [json.loads(line)["content"] for line in found.messages.values()] == [one["content"] for one in history]


async def test_a_stop_flushes_and_says_what_is_left(tmp_path: Path) -> None:
    """[SM7]: what was acknowledged a moment before is in both; what a backup that is away lacks is in the log."""
    primary, backup = sqlite_url(tmp_path / "primary"), sqlite_url(tmp_path / "backup") + "?busy_timeout_ms=20"
    async with served(tmp_path, primary, backup, flush_interval_s=3600) as server:
        tab = await TabClient.join(server.url)
        chat_id = (await tab.open(CHAT, create=True))["chat_id"]
        await tab.append(CHAT, "the last word")
        assert await server.stop() == 0
        for url in (primary, backup):
            found = stored(url, chat_id)
            assert found is not None
            assert b"the last word" in next(iter(found.messages.values()))
        assert "stopped-behind" not in server.errors.read_text()
        await server.start()
        tab = await TabClient.join(server.url)
        await tab.open(CHAT)
        locker = sqlite3.connect(tmp_path / "backup/chats.db", isolation_level=None)
        locker.execute("BEGIN EXCLUSIVE")
        await tab.append(CHAT, "behind")
        assert await server.stop() == 0
        locker.execute("ROLLBACK")
        locker.close()
        assert '"event": "stopped-behind"' in server.errors.read_text()
        await server.start()
        tab = await TabClient.join(server.url)
        await tab.open(CHAT)
        assert len((await caught_up(backup, tab, CHAT)).messages) == 2


async def test_a_stop_does_not_wait_for_a_backup_that_hangs(tmp_path: Path) -> None:
    """[SM7]: it says what is left in time, and ends when the store's own limit is over."""
    primary = sqlite_url(tmp_path / "primary")
    with ValkeyProcess() as database:
        backup = database.url(0, "?timeout_s=1")
        async with served(tmp_path, primary, backup, flush_timeout_s=0.3) as server:
            tab = await TabClient.join(server.url)
            await tab.open(CHAT, create=True)
            await tab.append(CHAT, "one")
            await caught_up(backup, tab, CHAT)
            os.kill(database.pid, signal.SIGSTOP)
            await tab.append(CHAT, "two")
            assert await server.stop() == 0
            assert '"event": "stopped-behind"' in server.errors.read_text()
            os.kill(database.pid, signal.SIGCONT)
            await server.start()
            tab = await TabClient.join(server.url)
            await tab.open(CHAT)
            assert len((await caught_up(backup, tab, CHAT)).messages) == 2


async def test_a_backup_too_far_behind_lets_the_log_go_and_gets_wholes(tmp_path: Path) -> None:
    """[SM6]: bounded and alarmed: acks go on, the log does not grow without bound, the backup is equal in the end."""
    primary, backup = sqlite_url(tmp_path / "primary"), sqlite_url(tmp_path / "backup") + "?busy_timeout_ms=20"
    settings = {"log_segment_bytes": 16 << 10, "log_retain_bytes": 0, "store_behind_bytes_max": 64 << 10}
    async with served(tmp_path, primary, backup, **settings) as server:
        await seeded(server, backup)
        tab = await TabClient.join(server.url)
        await tab.open(CHAT)
        locker = sqlite3.connect(tmp_path / "backup/chats.db", isolation_level=None)
        locker.execute("BEGIN EXCLUSIVE")
        for number in range(40):
            assert (await tab.append(CHAT, f"{number}" * 2000))["type"] == "ack"
            await asyncio.sleep(0.01)
        await until(lambda: '"event": "backup-too-far-behind"' in server.errors.read_text())
        assert http(server, "/readyz")[0] == 200
        locker.execute("ROLLBACK")
        locker.close()
        await caught_up(backup, tab, CHAT)


@pytest.mark.parametrize("side", ["primary", "backup"])
async def test_a_store_that_was_emptied_while_it_ran_is_filled_from_the_other(
    side: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[SM8] [F31]: FLUSHALL; nobody sees an empty chat, and what nobody opens comes back as well."""
    monkeypatch.setattr(flusher, "RECOVERED_S", 0.1)
    file = sqlite_url(tmp_path / "other")
    with ValkeyProcess() as database:
        urls = {"primary": database.url(0), "backup": file}
        if side == "backup":
            urls = {"primary": file, "backup": database.url(0)}
        asleep = "character:Alice/Asleep"
        settings = {"store": "multi", **urls, **FAST, "idle_s": 0.2}
        async with running(tmp_path / "data", **settings) as app:
            tab = await TabClient.join(app.urls[0])
            for chat in (CHAT, asleep):
                await tab.open(chat, create=True)
                await tab.append(chat, "one")
                await caught_up(urls["backup"], tab, chat)
                await caught_up(urls["primary"], tab, chat)
            await tab.ask("close", chat=asleep)
            await until(lambda: len(app._hub.actors) == 1)
            with database.connect() as client:
                client.flushall()
            assert (await tab.append(CHAT, "two"))["type"] == "ack"
            assert texts((await tab.open(CHAT))["messages"]) == ["one", "two"]
            for chat in (CHAT, asleep):
                found = await caught_up(database.url(0), tab, chat)
                assert json.loads(next(iter(found.messages.values())))["mes"] == "one"


async def test_a_primary_that_was_set_back_does_not_show_an_old_chat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[SM3] [F34]: an old copy in its place, the log trimmed: the backup has the version that was told."""
    monkeypatch.setattr(keeper, "COLLECT_S", 0.05)
    primary, backup = sqlite_url(tmp_path / "primary"), sqlite_url(tmp_path / "backup")
    settings = {
        "store": "multi", "primary": primary, "backup": backup, **FAST, "log_segment_bytes": 16 << 10,
        "log_retain_bytes": 0, "idle_s": 0.1,
    }
    async with running(tmp_path / "data", **settings) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        await tab.append(CHAT, "one")
    early = copied(tmp_path / "primary")
    async with running(tmp_path / "data", **settings) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT)
        for number in range(20):
            await tab.append(CHAT, f"{number}" * 2000)
        head = (await tab.open(CHAT))["head"]
        await caught_up(backup, tab, CHAT)
        await until(lambda: not (tmp_path / f"data/.tellback/log/{2:020}.log").exists())
    set_back(tmp_path / "primary", early)
    async with running(tmp_path / "data", **settings) as app:
        tab = await TabClient.join(app.urls[0])
        opened = await tab.open(CHAT)
        assert (opened["head"], len(opened["messages"])) == (head, 21)
        await tab.append(CHAT, "and on")
        await caught_up(primary, tab, CHAT)


async def test_the_log_waits_for_the_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[SM6]: what only the backup lacks stays in the log, although the primary has it and the retention is over."""
    monkeypatch.setattr(keeper, "COLLECT_S", 0.05)
    primary, backup = sqlite_url(tmp_path / "primary"), sqlite_url(tmp_path / "backup") + "?busy_timeout_ms=20"
    settings = {
        "store": "multi", "primary": primary, "backup": backup, **FAST, "log_segment_bytes": 16 << 10,
        "log_retain_bytes": 0, "idle_s": 0.1,
    }
    first = tmp_path / f"data/.tellback/log/{2:020}.log"
    async with running(tmp_path / "data", **settings) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        await tab.append(CHAT, "one")
        await caught_up(backup, tab, CHAT)
        locker = sqlite3.connect(tmp_path / "backup/chats.db", isolation_level=None)
        locker.execute("BEGIN EXCLUSIVE")
        for number in range(20):
            await tab.append(CHAT, f"{number}" * 2000)
        await caught_up(primary, tab, CHAT)
        await asyncio.sleep(0.5)
        assert first.exists(), "ten times it could have been let go"
        locker.execute("ROLLBACK")
        locker.close()
        await caught_up(backup, tab, CHAT)
        await until(lambda: not first.exists())


def trimmed(tmp_path: Path, primary: str, backup: str) -> dict[str, Any]:
    """Settings of a server that keeps no log that nobody needs; with keeper.COLLECT_S small."""
    return {
        "store": "multi", "primary": primary, "backup": backup, **FAST, "log_segment_bytes": 16 << 10,
        "log_retain_bytes": 0, "idle_s": 0.1,
    }


async def filled(tab: TabClient, tmp_path: Path, urls: list[str], segment: int) -> dict[str, Any]:
    """Twenty messages in both stores, and no more in the log; the chat's head."""
    for number in range(20):
        await tab.append(CHAT, f"{number}" * 2000)
    head: dict[str, Any] = (await tab.open(CHAT))["head"]
    for url in urls:
        await caught_up(url, tab, CHAT)
    await tab.ask("close", chat=CHAT)
    await until(lambda: not (tmp_path / f"data/.tellback/log/{segment:020}.log").exists())
    return head


async def test_a_primary_that_is_down_at_the_start_with_a_log_that_was_trimmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[SM3]: the backup alone tells what the log does not tell any more; a name that only it knows is no free name."""
    monkeypatch.setattr(keeper, "COLLECT_S", 0.05)
    backup = sqlite_url(tmp_path / "backup")
    with ValkeyProcess() as database:
        primary = database.url(0, "?timeout_s=1")
        settings = trimmed(tmp_path, primary, backup)
        async with running(tmp_path / "data", **settings) as app:
            tab = await TabClient.join(app.urls[0])
            await tab.open(CHAT, create=True)
            head = await filled(tab, tmp_path, [primary, backup], 2)
        database.kill()
        async with running(tmp_path / "data", **settings) as app:
            tab = await TabClient.join(app.urls[0])
            opened = await tab.open(CHAT, create=True)
            assert (opened["head"], opened["count"]) == (head, 20)
            assert (await tab.append(CHAT, "and on"))["type"] == "ack"
            database.start()
            await caught_up(primary, tab, CHAT)


async def test_a_primary_that_is_set_back_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[SM3] [F34]: Valkey with its keys of an hour ago: the next who opens the chat gets what was told."""
    monkeypatch.setattr(keeper, "COLLECT_S", 0.05)
    backup = sqlite_url(tmp_path / "backup")
    with ValkeyProcess() as database:
        primary = database.url(0)
        async with running(tmp_path / "data", **trimmed(tmp_path, primary, backup)) as app:
            tab = await TabClient.join(app.urls[0])
            await tab.open(CHAT, create=True)
            await tab.append(CHAT, "one")
            await caught_up(primary, tab, CHAT)
            with database.connect() as client:
                early = {key: client.dump(key) for key in client.scan_iter()}
            head = await filled(tab, tmp_path, [primary, backup], 2)
            await until(lambda: not app._hub.actors)
            with database.connect() as client:
                client.flushall()
                for key, value in early.items():
                    client.restore(key, 0, value)
            opened = await tab.open(CHAT)
            assert (opened["head"], opened["count"]) == (head, 21)
            await tab.append(CHAT, "and on")
            await caught_up(primary, tab, CHAT)

"""From names to actors, and from the log back to everybody who waits; the disk is held up where it matters."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tellback_server.app import App
from tests.support.held_fs import HeldFs
from tests.support.server import TabClient, running, texts
from tests.support.waiting import GUARD_S, until

CHAT = "character:Alice/First meeting"
OTHER = "group:Friends"


@contextlib.asynccontextmanager
async def held(tmp_path: Path) -> AsyncIterator[tuple[App, HeldFs]]:
    fs = HeldFs()
    async with running(tmp_path, fs=fs, checkpoint_interval_s=600) as app:
        try:
            yield app, fs
        finally:
            fs.let_go()


async def test_L2_nothing_that_names_a_version_leaves_before_the_disk_has_it(tmp_path: Path) -> None:
    """[D1]: no ack, broadcast, conflict, refusal, read, or opened; heartbeats go on; then all of it, in order."""
    async with held(tmp_path) as (app, fs):
        tab = await TabClient.join(app.urls[0])
        opened = await tab.open(CHAT, create=True)
        await tab.open(OTHER, create=True)
        watcher = await TabClient.join(app.urls[0])
        await watcher.open(CHAT)
        newcomer = await TabClient.join(app.urls[0])
        fs.hold_syncs()
        stale = opened["head"]["integrity"]
        message = {"mes": "not durable yet"}
        requests: list[dict[str, Any]] = [
            {"type": "append", "chat": CHAT, "op": 1, "base": stale, "messages": [message]},
            {"type": "metadata-update", "chat": CHAT, "op": 2, "base": stale, "set": {}},
            {"type": "delete", "chat": CHAT, "op": 3, "base": {"op": 1}, "messages": ["nobody"]},
            {"type": "append", "chat": CHAT, "op": 1, "base": stale, "messages": [message]},
            {"type": "state-get", "owner": {"chat": CHAT}},
            {"type": "history", "chat": CHAT, "at": 2},
            {"type": "close", "chat": CHAT},
            {"type": "append", "chat": OTHER, "op": 1, "base": "*", "messages": [message]},
        ]
        for number, request in enumerate(requests):
            await tab.raw.send({**request, "id": 100 + number})
        await newcomer.raw.send({"type": "open", "id": 200, "chat": CHAT, "since": None})
        await newcomer.raw.send({"type": "open", "id": 201, "chat": CHAT, "since": opened["head"]})
        assert await asyncio.to_thread(fs.waits.wait, GUARD_S)
        # All of them were handled: what is asked behind them has its answer.
        for client in (tab, watcher, newcomer):
            pong = await client.ask("ping")
            assert pong["type"] == "pong"
        for client in (tab, watcher, newcomer):
            await client.raw.expect_silence(0.1)
        fs.let_go()
        answers = [await tab.raw.receive_until(id=100 + number) for number in range(len(requests))]
        assert [answer["type"] for answer in answers] == [
            "ack", "conflict", "error", "ack", "state", "history", "closed", "ack"]
        assert answers[1]["version"] == answers[0]["version"]
        assert answers[2]["code"] == "message-unknown"
        assert answers[3]["duplicate"] is True
        assert (await watcher.raw.receive_until(type="integrity"))["version"] == answers[0]["version"]
        first = await newcomer.raw.receive_until(id=200)
        assert texts(first["messages"]) == ["not durable yet"]
        second = await newcomer.raw.receive_until(id=201)
        assert second["mode"] == "replay"
        assert (await newcomer.raw.receive_until(type="integrity"))["version"] == answers[0]["version"]
        await newcomer.raw.expect_silence(0.02)


async def test_a_page_of_the_history_tells_only_what_the_disk_has(tmp_path: Path) -> None:
    """[H1] [D1]: it may come at once or wait, but what could still be undone is not in it."""
    async with held(tmp_path) as (app, fs):
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        first = await tab.append(CHAT, "on the disk")
        fs.hold_syncs()
        append = {"type": "append", "id": 100, "chat": CHAT, "op": 2, "base": "*", "messages": [{"mes": "not yet"}]}
        await tab.raw.send(append)
        await tab.raw.send({"type": "history", "id": 101, "chat": CHAT, "after": 0, "limit": 10})
        assert await asyncio.to_thread(fs.waits.wait, GUARD_S)
        assert (await tab.ask("ping"))["type"] == "pong"
        early = [frame for frame in tab.raw._kept if frame.get("id") == 101]
        fs.let_go()
        second = await tab.raw.receive_until(id=100)
        page = await tab.raw.receive_until(id=101)
        if early:
            assert page["commits"][-1]["version"] == first["version"]
        page = await tab.ask("history", chat=CHAT, after=0, limit=10)
        assert page["commits"][-1]["version"] == second["version"]


async def test_a_tab_that_opens_between_commit_and_sync_is_told_of_nothing_twice(tmp_path: Path) -> None:
    """[D3]: what its snapshot shows is not broadcast to it, what is sequenced behind its open is."""
    async with held(tmp_path) as (app, fs):
        writer = await TabClient.join(app.urls[0])
        await writer.open(CHAT, create=True)
        newcomer = await TabClient.join(app.urls[0])
        fs.hold_syncs()
        await writer.raw.send({"type": "append", "id": 1, "chat": CHAT, "op": 1, "base": "*",
                               "messages": [{"mes": "before"}]})
        assert (await writer.ask("ping"))["type"] == "pong"
        await newcomer.raw.send({"type": "open", "id": 2, "chat": CHAT, "since": None})
        assert (await newcomer.ask("ping"))["type"] == "pong"
        await writer.raw.send({"type": "append", "id": 3, "chat": CHAT, "op": 2, "base": "*",
                               "messages": [{"mes": "behind"}]})
        assert (await writer.ask("ping"))["type"] == "pong"
        fs.let_go()
        opened = await newcomer.raw.receive_until(type="opened")
        assert texts(opened["messages"]) == ["before"]
        told = await newcomer.raw.receive_until(type="integrity")
        assert told["previous"] == opened["head"]["integrity"]
        assert texts(told["ops"][0]["messages"]) == ["behind"]
        await newcomer.raw.expect_silence(0.05)


async def test_L1_one_actor_by_name_and_by_id_and_none_for_what_nobody_has(tmp_path: Path) -> None:
    """[N6]: two tabs that use different names for a chat write to one stream, each under its own name."""
    async with running(tmp_path) as app:
        one = await TabClient.join(app.urls[0])
        opened = await one.open(CHAT, create=True)
        by_id = f"id:{opened['chat_id']}"
        other = await TabClient.join(app.urls[0])
        assert (await other.open(by_id))["chat"] == by_id
        assert len(app._hub.actors) == 1
        ack = await one.append(CHAT, "by name")
        told = await other.raw.receive_until(type="integrity")
        assert (told["chat"], told["version"]) == (by_id, ack["version"])
        ack = await other.append(by_id, "by id")
        told = await one.raw.receive_until(type="integrity")
        assert (told["chat"], told["version"]) == (CHAT, ack["version"])
        # Names that lead nowhere leave no actor behind.
        for number in range(50):
            assert (await one.open(f"group:nobody {number}"))["code"] == "not-found"
        await until(lambda: len(app._hub.actors) == 1)


async def test_an_id_is_found_on_disk_after_a_restart_without_a_log_record(tmp_path: Path) -> None:
    """[N6]: the provisional id of a chat that was only ever read is good on the next day too."""
    folder = tmp_path / "default-user" / "chats" / "Alice"
    folder.mkdir(parents=True)
    (folder / "First meeting.jsonl").write_text('{"chat_metadata":{}}\n{"mes":"one"}\n')
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        chat_id = (await tab.open(CHAT))["chat_id"]
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        assert texts((await tab.open(f"id:{chat_id}"))["messages"]) == ["one"]


async def test_a_failed_task_is_logged_and_ends_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        async def fails() -> None:
            raise ValueError("on purpose")

        app._hub.spawn(fails())
        await until(lambda: not app._hub._tasks)
        tab = await TabClient.join(app.urls[0])
        assert (await tab.open(CHAT, create=True))["type"] == "opened"


async def test_L2_a_tab_that_was_cut_off_keeps_no_answer_and_no_broadcast_from_the_others(tmp_path: Path) -> None:
    """A transport whose peer is gone refuses writes before the server hears of the loss."""
    async with running(tmp_path) as app:
        writer = await TabClient.join(app.urls[0])
        await writer.open(CHAT, create=True)
        await writer.ask("close", chat=CHAT)
        for turn in range(25):
            cut, kept = await TabClient.join(app.urls[0]), await TabClient.join(app.urls[0])
            await cut.open(CHAT)
            await kept.open(CHAT)
            cut.raw.abort()
            assert (await writer.append(CHAT, f"turn {turn}"))["type"] == "ack"
            assert (await kept.raw.receive_until(type="integrity"))["by"]["session"] == writer.session
            await kept.close()

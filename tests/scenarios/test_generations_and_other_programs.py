"""Other programs take the chat, its name or its state away while a reply is written: the text ends up somewhere."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.test_generations import CHAT, Listener, delta, durable, end, messages, start, two
from tests.support.forked_server import ForkedServer
from tests.support.server import TabClient, texts
from tests.support.waiting import until

FOLDER = "default-user/chats/Alice"
FILE = f"{FOLDER}/First meeting.jsonl"
STATES = f"{FOLDER}/First meeting.luker-state.tellback_generations.json"
SYNC = f"{FOLDER}/First meeting.luker-state.chat_sync.json"


def kept(data: Path) -> list[str]:
    """What the messages of all chats and backups say."""
    found: list[str] = []
    for path in (data / "default-user").rglob("*.jsonl"):
        found += [json.loads(line).get("mes", "") for line in path.read_bytes().split(b"\n") if line]
    return found


async def folded(data: Path, generation: str = "g1") -> None:
    """Wait until the files hold the user's turn and the generation."""
    await until(lambda: (data / STATES).exists() and generation.encode() in (data / STATES).read_bytes())
    await until(lambda: (data / SYNC).exists() and b"And then" in (data / FILE).read_bytes())
    # Until chat_sync tells of the document, a restart writes it again.
    await until(lambda: b"tellback_generations" in (data / SYNC).read_bytes())


async def half_written(server: ForkedServer, data: Path) -> None:
    """A reply whose first half is durable and in the files."""
    producer = await TabClient.join(server.url)
    await producer.open(CHAT, create=True)
    await start(producer)
    await delta(producer, 0, "half a reply")
    await durable(producer, 12)
    await folded(data)


async def tab_shows(tab: TabClient, count: int) -> dict[str, Any]:
    """Wait until a newly opened chat has so many messages; its `opened`."""
    opened = await tab.open(CHAT)

    async def has_them() -> bool:
        nonlocal opened
        if len(opened["messages"]) != count:
            await tab.ask("close", chat=CHAT)
            opened = await tab.open(CHAT)
        return len(opened["messages"]) == count

    await until(has_them)
    return opened


@pytest.mark.parametrize("what", ["file", "folder"])
async def test_a_chat_that_another_program_deletes_leaves_the_text_in_a_backup(tmp_path: Path, what: str) -> None:
    """[T23] Also what was not in the log yet. The producer learns that there is no chat."""
    async with two(tmp_path, checkpoint_interval_s=0.02) as (app, producer, watcher):
        await start(producer)
        await delta(producer, 0, "half a reply")
        await Listener(watcher).until(12)
        await folded(tmp_path)
        if what == "file":
            (tmp_path / FILE).unlink()
        else:
            shutil.rmtree(tmp_path / FOLDER)

        async def is_gone() -> bool:
            return (await producer.open(CHAT)).get("code") == "not-found"

        # A checkpoint that is at work looks at the files itself.
        await until(is_gone)
        assert (await watcher.raw.receive_until(type="reset"))["reason"] == "failed"
        await delta(producer, 12, ", and more", id=5)
        assert (await producer.raw.receive_until(type="error", id=5))["code"] == "not-found"
        assert kept(tmp_path).count("half a reply") == 1
        assert app._hub.generations.running_count == 0


async def test_a_chat_that_is_deleted_while_the_server_is_down_leaves_the_text_in_a_backup(tmp_path: Path) -> None:
    """[T23] After a kill, and once, however often the server starts."""
    data = tmp_path / "data"
    async with ForkedServer(data, checkpoint_interval_s=0.02) as server:
        await half_written(server, data)
        await server.kill()
        for path in (FILE, STATES):
            (data / path).unlink()
        for _ in range(2):
            await server.start()
            tab = await TabClient.join(server.url)
            assert (await tab.open(CHAT))["code"] == "not-found"
            assert await server.stop() == 0
        assert kept(data).count("half a reply") == 1
        assert "And then?" in kept(data)
        assert "Traceback" not in server.errors.read_text()


@pytest.mark.parametrize(
    ("program", "end_of_server"), [("deletes", None), ("deletes", "kill"), ("empties", "kill"), ("ends", "stop")]
)
async def test_the_generations_file_is_taken_away(tmp_path: Path, program: str, end_of_server: str | None) -> None:
    """[T23] The text becomes a message, once; the chat is not stuck and goes on."""
    data = tmp_path / "data"
    async with ForkedServer(data, checkpoint_interval_s=0.02) as server:
        await half_written(server, data)
        if end_of_server is not None:
            await (server.kill() if end_of_server == "kill" else server.stop())
        document = data / STATES
        if program == "deletes":
            document.unlink()
        elif program == "empties":
            document.write_bytes(b"{}")
        else:
            document.write_bytes(document.read_bytes().replace(b'"running"', b'"stored"'))
        for _ in range(2):
            if end_of_server is not None:
                await server.start()
            tab = await TabClient.join(server.url)
            opened = await tab_shows(tab, 2)
            assert texts(opened["messages"]) == ["And then?", "half a reply"]
            assert [one["state"] for one in opened["generations"] if one["state"] == "running"] == []
            # A second start finds nothing to rescue.
            end_of_server = "stop"
            assert await server.stop() == 0
        await server.start()
        tab = await TabClient.join(server.url)
        await tab.open(CHAT)
        assert (await start(tab, "g2"))["type"] == "ack"
        assert "Traceback" not in server.errors.read_text()


async def test_a_generations_file_that_is_no_json_is_kept_and_the_text_comes_back_with_its_repair(
    tmp_path: Path,
) -> None:
    """[T23]"""
    data = tmp_path / "data"
    async with ForkedServer(data, checkpoint_interval_s=0.02) as server:
        await half_written(server, data)
        await server.kill()
        document = data / STATES
        document.write_bytes(b"not JSON")
        await server.start()
        tab = await TabClient.join(server.url)
        assert texts((await tab.open(CHAT))["messages"]) == ["And then?"]
        await asyncio.sleep(0.4)
        assert await server.stop() == 0
        assert document.read_bytes() == b"not JSON"
        document.unlink()
        await server.start()
        tab = await TabClient.join(server.url)
        assert texts((await tab_shows(tab, 2))["messages"]) == ["And then?", "half a reply"]


async def test_a_chat_that_another_program_renames_keeps_its_reply(tmp_path: Path) -> None:
    """[T3, T23] With its state files it is the same chat: the producer goes on by its id."""
    async with two(tmp_path, checkpoint_interval_s=0.02) as (_app, producer, watcher):
        await start(producer)
        await delta(producer, 0, "under ")
        await durable(producer, 6)
        await folded(tmp_path)
        chat_id = (await watcher.open(CHAT))["chat_id"]
        for path in list((tmp_path / FOLDER).iterdir()):
            os.rename(path, path.with_name(path.name.replace("First meeting", "Elsewhere")))
        assert (await watcher.open(CHAT))["code"] == "not-found"
        opened = await producer.open("character:Alice/Elsewhere")
        assert opened["chat_id"] == chat_id
        assert [(one["state"], one["text"]) for one in opened["generations"]] == [("running", "under ")]
        by_id = f"id:{chat_id}"
        await producer.open(by_id)
        await delta(producer, 6, "two names", chat=by_id)
        assert (await end(producer, chat=by_id, length=15))["type"] == "ack"
        assert texts(await messages(watcher, by_id)) == ["And then?", "under two names"]

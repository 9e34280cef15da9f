"""Two chats of one name: what another program deleted, and what was made in its place (STORAGE F13)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.forked_server import ForkedServer
from tests.support.server import TabClient, texts
from tests.support.waiting import until

CHAT = "character:Alice/First meeting"
FOLDER = "default-user/chats/Alice"


async def deleted_and_made_again(server: ForkedServer, data: Path) -> tuple[dict[str, Any], bytes, bytes]:
    """A chat, deleted by another program without its sidecars; then one made anew that no checkpoint has seen.

    Returns `opened` of the new chat, and file and chat_sync of the old one.
    """
    path, sync = data / FOLDER / "First meeting.jsonl", data / FOLDER / "First meeting.luker-state.chat_sync.json"
    tab = await TabClient.join(server.url)
    await tab.open(CHAT, create=True)
    await tab.append(CHAT, "old")
    await tab.write_state("state-update", CHAT, namespace="memory", base=None, set=[1])
    assert await server.stop() == 0
    before = path.read_bytes(), sync.read_bytes()
    path.unlink()
    await server.start()
    tab = await TabClient.join(server.url)
    opened = await tab.open(CHAT, create=True)
    assert (await tab.append(CHAT, "acknowledged"))["type"] == "ack"
    return opened, *before


@pytest.mark.parametrize("comes_back", [False, True], ids=["gone", "its chat_sync comes back"])
async def test_a_chat_made_in_the_place_of_a_deleted_one_survives_a_kill(tmp_path: Path, comes_back: bool) -> None:
    """[F13]: by name and by id, without the states of the deleted one."""
    data = tmp_path / "data"
    async with ForkedServer(data, checkpoint_interval_s=600) as server:
        opened, _, sync = await deleted_and_made_again(server, data)
        await server.kill()
        if comes_back:
            (data / FOLDER / "First meeting.luker-state.chat_sync.json").write_bytes(sync)
        for _ in range(2):
            await server.start()
            tab = await TabClient.join(server.url)
            by_id = await tab.open(f"id:{opened['chat_id']}")
            by_name = await tab.open(CHAT)
            for found in (by_id, by_name):
                assert (found["chat_id"], texts(found["messages"])) == (opened["chat_id"], ["acknowledged"])
            assert (await tab.ask("state-get", owner={"chat": CHAT}))["states"] == {}
            assert await server.stop() == 0


async def test_a_deleted_chat_that_comes_back_is_itself_and_what_was_made_meanwhile_is_kept(tmp_path: Path) -> None:
    """[F13] [F9]: both files are back as they were; the messages that no file ever held are in a backup."""
    data = tmp_path / "data"
    async with ForkedServer(data, checkpoint_interval_s=600) as server:
        opened, file, sync = await deleted_and_made_again(server, data)
        await server.kill()
        (data / FOLDER / "First meeting.jsonl").write_bytes(file)
        (data / FOLDER / "First meeting.luker-state.chat_sync.json").write_bytes(sync)
        await server.start()
        found = await (await TabClient.join(server.url)).open(CHAT)
        assert texts(found["messages"]) == ["old"]
        assert found["chat_id"] != opened["chat_id"]
        backups = data / "default-user/backups/tellback" / opened["chat_id"]
        await until(lambda: any(b"acknowledged" in path.read_bytes() for path in backups.glob("*.jsonl")))


@pytest.mark.parametrize("stopped", [False, True], ids=["live", "while stopped"])
async def test_a_chat_whose_file_was_emptied_keeps_what_we_know_of_it(tmp_path: Path, stopped: bool) -> None:
    """[F7] [F9]: a file of zero bytes, as a crash of another program leaves one: all of it is in a backup, and it is
    another history."""
    data = tmp_path / "data"
    path = data / FOLDER / "First meeting.jsonl"
    async with ForkedServer(data, checkpoint_interval_s=0.05) as server:
        tab = await TabClient.join(server.url)
        await tab.open(CHAT, create=True)
        for number in range(3):
            await tab.append(CHAT, f"message {number}")
        await until(lambda: path.exists() and b"message 2" in path.read_bytes())
        if stopped:
            assert await server.stop() == 0
        path.write_bytes(b"")
        if stopped:
            await server.start()
        tab = await TabClient.join(server.url)

        async def is_found() -> bool:
            return bool((await tab.open(CHAT))["head"]["epoch"] == 2)

        # A checkpoint that runs just now finds it by itself, a moment later.
        await until(is_found)
        opened = await tab.open(CHAT)
        assert (opened["head"]["epoch"], opened["count"]) == (2, 0)
        [backup] = (data / "default-user/backups/tellback" / opened["chat_id"]).glob("*.jsonl")
        assert [f"message {number}".encode() in backup.read_bytes() for number in range(3)] == [True] * 3

"""Lists and active chats while chats are renamed, deleted, restored and branched, and how long the loop is held up."""

from __future__ import annotations

import asyncio
import shutil
import urllib.request
from pathlib import Path
from typing import Any

from tests.server.test_catalog import listed, pages, write_chat
from tests.support.server import Process, TabClient, running, sillytavern_copy
from tests.support.waiting import GUARD_S


def loop_lag_s(port: int) -> float:
    """The longest the loop was held up since this was last asked."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=GUARD_S) as response:
        lines = response.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("tellback_loop_lag_seconds "))


async def test_reading_ten_thousand_chats_holds_up_the_loop_for_less_than_50_ms(tmp_path: Path) -> None:
    """[I14] Building the index, reading it back, listing, and searching all of it."""
    data = tmp_path / "data"
    for number in range(10_000):
        write_chat(data, f"chats/Char {number % 20}/Chat {number}.jsonl", *["hello " * 20] * 5)
    server = Process(data)

    async def lag_s() -> float:
        await server.start()
        tab = await TabClient.join(server.url)
        await asyncio.sleep(0.1)
        await asyncio.to_thread(loop_lag_s, server.port)
        assert (await tab.ask("chat-list"))["total"] == 10_000
        await pages(tab, limit=1000)
        await pages(tab, "chat-search", query="nowhere-at-all")
        found = await asyncio.to_thread(loop_lag_s, server.port)
        assert await server.stop() == 0
        return found

    try:
        for has_index in (False, True):
            lags = []
            # Twice the bound, and the best of some: others work on this machine; a step that is long is long each time.
            while min(lags, default=1) >= 0.1 and len(lags) < 5:
                if not has_index:
                    shutil.rmtree(data / ".tellback/index", ignore_errors=True)
                lags.append(await lag_s())
            assert min(lags) < 0.1, (has_index, lags)
    finally:
        await server.kill()


async def test_a_list_shows_a_chat_under_the_name_it_has(tmp_path: Path) -> None:
    """[I2] [I4] Renames, deletions and branches that were answered show in the next list; never both names."""
    data = sillytavern_copy(tmp_path)
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        old, new = "character:Pip/Pip - 2024-09-30@09h00m00s", "character:Pip/Renamed"
        before = await listed(tab)
        opened = await tab.open(old)
        ack = await tab.write("chat-rename", old, to="Renamed", base="*")
        assert ack["type"] == "ack", ack
        after = await listed(tab)
        assert after.keys() == (before.keys() - {old}) | {new}
        assert after[new]["count"] == before[old]["count"]
        assert after[new]["chat_id"] == opened["chat_id"]
        tab.ops[new] = tab.ops[old]
        ack = await tab.write("chat-branch", new, message=opened["messages"][3]["id"], base="*")
        branch = ack["branch"]["chat"]
        after = await listed(tab)
        assert (after[branch]["count"], after[branch]["main_chat"]) == (4, "Renamed")
        head = await tab.open(new)
        assert (await tab.write("chat-delete", new, base=head["version"]["integrity"]))["type"] == "ack"
        after = await listed(tab)
        assert new not in after
        gone = await listed(tab, deleted=True)
        assert {name: chat["chat_id"] for name, chat in gone.items()} == {new: opened["chat_id"]}
        assert gone[new]["count"] == before[old]["count"]
        ack = await tab.ask(
            "chat-restore", chat=f"id:{opened['chat_id']}", op=tab.ops[new] + 1
        )
        assert ack["type"] == "ack", ack
        assert (await listed(tab))[new]["chat_id"] == opened["chat_id"]
        assert await listed(tab, deleted=True) == {}


async def test_lists_and_renames_at_the_same_time_show_every_chat_once(tmp_path: Path) -> None:
    """[I2] [I5] While one tab renames without end, every list of another has exactly one name of the chat."""
    data = tmp_path / "data"
    for number in range(30):
        write_chat(data, f"chats/Alice/Chat {number}.jsonl", "hi")
    async with running(data) as app:
        renamer, reader = await TabClient.join(app.urls[0]), await TabClient.join(app.urls[0])
        opened = await renamer.open("character:Alice/Chat 7")
        chat = f"id:{opened['chat_id']}"
        done = False

        async def rename() -> None:
            for number in range(25):
                ack = await renamer.ask("chat-rename", chat=chat, to=f"Name {number}", op=number + 1, base="*")
                assert ack["type"] == "ack", ack

        async def read() -> int:
            lists = 0
            while not done:
                answer = await reader.ask("chat-list")
                names = [entry["chat"] for entry in answer["chats"]]
                mine = [name for name in names if "Name" in name or name.endswith("/Chat 7")]
                assert len(mine) == 1, mine
                assert len(names) == len(set(names)) == answer["total"] == 30
                lists += 1
            return lists

        reading = asyncio.create_task(read())
        await rename()
        done = True
        assert await reading > 5


async def test_the_active_chat_follows_renames_and_leaves_with_a_deletion(tmp_path: Path) -> None:
    """[I10] [I11] The same chat under its new name; its character's new name; when deleted, the newest one left."""
    data = sillytavern_copy(tmp_path)
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        old = "character:Pip/Pip - 2024-09-30@09h00m00s"

        async def active(character: str) -> Any:
            return (await tab.ask("active-chat", character=character))["chat"]

        opened = await tab.open(old)
        await tab.ask("active-chat", character="Pip", chat=old)
        assert (await tab.write("chat-rename", old, to="Renamed", base="*"))["type"] == "ack"
        assert await active("Pip") == "character:Pip/Renamed"
        by_id = await tab.ask("active-chat", character="Pip", chat=f"id:{opened['chat_id']}")
        assert by_id["chat"] == "character:Pip/Renamed"
        head = await tab.open(f"id:{opened['chat_id']}")
        ack = await tab.ask(
            "chat-delete", chat=f"id:{opened['chat_id']}", op=head["next_op"], base=head["version"]["integrity"]
        )
        assert ack["type"] == "ack", ack
        newest = (await tab.ask("chat-list", character="Pip", limit=1))["chats"][0]["chat"]
        assert await active("Pip") == newest
        ack = await tab.ask("chat-restore", chat=f"id:{opened['chat_id']}", op=head["next_op"] + 1)
        assert ack["type"] == "ack", ack
        assert await active("Pip") == "character:Pip/Renamed"
        ack = await tab.ask("owner-rename", owner={"character": "Pip"}, to="Philip", op=1, base="*")
        assert ack["type"] == "ack", ack
        assert await active("Philip") == "character:Philip/Renamed"
        assert {name.partition("/")[0] for name in await listed(tab, character="Philip")} == {"character:Philip"}
        assert await listed(tab, character="Pip") == {}
        found = {entry["character"]: entry for entry in (await tab.ask("character-list"))["characters"]}
        assert (found["Philip"]["chat"], found["Philip"]["chats"]) == ("Renamed", 3)
        assert "Pip" not in found

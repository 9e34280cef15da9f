"""Lists, search and active chats through the SDK, on a real server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tellback_client import BlockingClient, RefusedError, ServerProcess, connect
from tests.server.test_catalog import write_chat
from tests.support.real_data import COUNTS
from tests.support.server import Process, running, sillytavern_copy

ALICE = "character:Alice/First meeting"


async def test_lists_join_their_pages_and_tell_each_chat_once(tmp_path: Path) -> None:
    """[I5] `await` gives all, `async for` as far as one reads, a page what the frame holds."""
    data = sillytavern_copy(tmp_path)
    async with running(data) as app, connect(app.urls[0]) as client:
        chats = await client.list_chats(page_size=3)
        assert len({chat.chat for chat in chats}) == len(chats) == len(COUNTS)
        assert [chat.changed_ms for chat in chats] == sorted((chat.changed_ms for chat in chats), reverse=True)
        told = []
        async for chat in client.list_chats(page_size=2):
            told.append(chat.chat)
            if len(told) == 5:
                # What was told already is told once, whatever happens to it.
                opened = await client.open(told[0])
                await opened.append({"mes": "hi"})
        assert sorted(told) == sorted(chat.chat for chat in chats)
        page = await client.chat_page(character="Pip", limit=2)
        assert (len(page.chats), page.total) == (2, 3)
        assert page.cursor is not None
        rest = await client.chat_page(character="Pip", limit=2, cursor=page.cursor)
        assert {chat.character for chat in [*page.chats, *rest.chats]} == {"Pip"}
        assert await client.list_chats(deleted=True) == []
        assert len(await client.list_chats(group="*")) == 2
        with pytest.raises(RefusedError) as refused:
            await client.chat_page(cursor="nonsense")
        assert refused.value.code == "bad-frame"


async def test_search_active_chats_characters_and_groups(tmp_path: Path) -> None:
    """[I7] [I10] [I13] What the frames tell, as values."""
    data = sillytavern_copy(tmp_path)
    async with running(data) as app, connect(app.urls[0]) as client:
        chat = await client.open(ALICE, create=True)
        result = await chat.append({"name": "User", "mes": "A needle, in 😀 a haystack"})
        hits = await client.search_chats("NEEDLE haystack")
        assert [(hit.chat, hit.message, hit.index) for hit in hits] == [(ALICE, result.message_ids[0], 0)]
        assert hits[0].ranges == [(2, 8), (18, 26)]
        names = await client.search_chats("first meeting", character="Alice")
        assert [isinstance(hit.message, str) for hit in names] == [False]
        assert await client.active_chat(character="Alice") == ALICE
        other = await client.open("character:Alice/Second", create=True)
        await other.append({"mes": "newer"})
        assert await client.set_active_chat(ALICE) == ALICE
        assert await client.active_chat(character="Alice") == ALICE
        assert await client.set_active_chat(None, character="Alice") is None
        assert await client.active_chat(character="Alice") is None
        characters = {entry.character: entry for entry in await client.characters()}
        assert characters["Pip"].chats == 3
        groups = await client.groups()
        assert [group["name"] for group in groups] == ["Council of the Pier"]
        group = str(groups[0]["id"])
        assert await client.set_active_chat("group:2024-10-12@19h00m00s", group=group) == "group:2024-10-12@19h00m00s"
        with pytest.raises(RefusedError):
            await client.set_active_chat("group:2024-10-12@19h00m00s")


async def test_all_groups_come_however_many_frames_it_takes(tmp_path: Path) -> None:
    """[I15]"""
    folder = tmp_path / "data/default-user/groups"
    folder.mkdir(parents=True)
    (folder.parent / "chats").mkdir()
    for name in "abcde":
        (folder / f"{name}.json").write_text('{"name":"%s"}' % (name * 400_000))
    async with running(tmp_path / "data") as app, connect(app.urls[0]) as client:
        assert [group["name"][0] for group in await client.groups()] == list("abcde")


async def test_questions_are_asked_again_after_a_lost_connection(tmp_path: Path) -> None:
    """[I9] A server that is killed under a question answers it when it is back."""
    data = tmp_path / "data"
    for number in range(50):
        write_chat(data, f"chats/Alice/Chat {number}.jsonl", *["hay " * 20] * 500, "needle")
    server = await Process(data).start()
    try:
        async with connect(server.url) as client:
            asked = [
                asyncio.create_task(client.search_chats("needle").all()),
                asyncio.create_task(client.list_chats(page_size=10).all()),
                asyncio.create_task(client.set_active_chat("character:Alice/Chat 7")),
            ]
            await asyncio.sleep(0.02)
            await server.kill()
            await server.start()
            client.reconnect()
            found, listed, active = await asyncio.gather(*asked)
            assert len(found) == 50
            assert len(listed) == 50
            assert active == "character:Alice/Chat 7"
            assert await client.active_chat(character="Alice") == active
    finally:
        await server.kill()


async def test_switching_chats_mid_save_writes_to_the_chat_that_was_meant(tmp_path: Path) -> None:
    """[R27] [I10] Appends are not awaited while others are opened, chosen and closed; each lands in its own chat."""
    async with running(tmp_path / "data") as app, connect(app.urls[0]) as client:
        names = [f"character:Alice/Chat {number}" for number in range(3)]
        for name in names:
            await client.open(name, create=True)
        writes: list[asyncio.Task[object]] = []
        for number in range(30):
            name = names[number % 3]
            chat = await client.open(name, create=True)
            writes.append(asyncio.create_task(chat.append({"mes": f"{name} {number}"})))
            await asyncio.sleep(0)
            writes.append(asyncio.create_task(client.set_active_chat(names[(number + 1) % 3])))
            other = await client.open(names[(number + 2) % 3], create=True)
            await other.close()
        await asyncio.gather(*writes)
        async with connect(app.urls[0]) as reader:
            for name in names:
                chat = await reader.open(name)
                assert [message["mes"].rpartition(" ")[0] for message in chat.messages] == [name] * 10
            assert await reader.active_chat(character="Alice") == names[0]


def test_the_blocking_client_asks_the_same(tmp_path: Path) -> None:
    """[I5] [I7] [I10] Without a loop."""
    data = tmp_path / "data"
    write_chat(data, "chats/Alice/One.jsonl", "a needle", when_s=1_700_000_000)
    write_chat(data, "chats/Alice/Two.jsonl", "hay")
    with ServerProcess(data) as server, BlockingClient(server.url) as client:
        assert [chat.chat for chat in client.list_chats()] == ["character:Alice/Two", "character:Alice/One"]
        assert [hit.chat for hit in client.search_chats("needle")] == ["character:Alice/One"]
        assert client.active_chat(character="Alice") == "character:Alice/Two"
        assert client.set_active_chat("character:Alice/One") == "character:Alice/One"
        assert client.active_chat(character="Alice") == "character:Alice/One"
        assert client.characters() == []
        assert client.groups() == []
        assert client.server_status().connections_total == 1

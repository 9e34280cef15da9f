"""The real server on every store: what it acknowledged is in the store in the end, whoever was killed on the way."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from pathlib import Path

import pytest

from tellback_server.store.base import StoredChat
from tellback_server.store.schemes import open_store
from tests.support.database_servers import PostgresProcess, ServerProcess, ValkeyProcess
from tests.support.server import Process, TabClient

CHAT = "character:Alice/On a store"
Database = tuple[str, ServerProcess | None]


@pytest.fixture(params=["sqlite", "files", "postgresql", "redis"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    match request.param:
        case "postgresql":
            postgres: PostgresProcess = request.getfixturevalue("postgres")
            return postgres.url(f"t{uuid.uuid4().hex}", "&connect_timeout_s=2"), postgres
        case "redis":
            valkey: ValkeyProcess = request.getfixturevalue("valkey")
            return valkey.url(0, f"?prefix={uuid.uuid4().hex}&timeout_s=2"), valkey
        case scheme:
            return f"{scheme}://{tmp_path}/store", None


def stored(url: str) -> StoredChat:
    """The one chat of the store, read past the server."""
    with contextlib.closing(open_store(url)) as store:
        store.check()
        (listed,) = [one for one in store.list("default-user") if one.name == CHAT]
        found = store.load("default-user", listed.chat_id)
        assert found is not None
        return found


async def append(tab: TabClient, count: int, told: list[str]) -> None:
    for _ in range(count):
        text = f"message {len(told)} \u2028 half"
        ack = await tab.write("append", CHAT, base="*", messages=[{"mes": text, "n": 2**63 - 1}])
        assert ack["type"] == "ack", ack
        told.append(ack["messages"][0])


async def test_st1_acknowledged_messages_reach_the_store_through_kills(database: Database, tmp_path: Path) -> None:
    url, server = database
    data = tmp_path / "data"
    data.mkdir()
    told: list[str] = []
    process = Process(data, environment={"TELLBACK_STORE": url})
    async with process:
        tab = await TabClient.join(process.url)
        opened = await tab.open(CHAT, create=True)
        assert opened["type"] == "opened", opened
        await append(tab, 15, told)
        await process.kill()
        await process.start()
        tab = await TabClient.join(process.url)
        opened = await tab.open(CHAT)
        assert [message["id"] for message in opened["messages"]] == told
        assert {message["n"] for message in opened["messages"]} == {2**63 - 1}
        if server is not None:
            await asyncio.to_thread(server.kill)
            # The log takes what the store cannot.
            await append(tab, 10, told)
            await asyncio.to_thread(server.start)
        await append(tab, 5, told)
        assert await process.stop() == 0
    found = await asyncio.to_thread(stored, url)
    assert list(found.messages) == told
    async with Process(data, environment={"TELLBACK_STORE": url}) as process:
        tab = await TabClient.join(process.url)
        opened = await tab.open(CHAT)
        assert [message["id"] for message in opened["messages"]] == told
        assert opened["head"]["integrity"] == found.head.integrity


async def test_st10_a_second_data_folder_is_refused(database: Database, tmp_path: Path) -> None:
    url, _ = database
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    async with Process(tmp_path / "first", environment={"TELLBACK_STORE": url}) as process:
        tab = await TabClient.join(process.url)
        await tab.open(CHAT, create=True)
    second = Process(tmp_path / "second", environment={"TELLBACK_STORE": url})
    with pytest.raises(AssertionError, match="belongs to another data folder"):
        await second.start()
    assert await second.ended() == 78

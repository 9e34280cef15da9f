"""Characters and presets through the client: the same writes, watching, conflicts and reconnects as for chats."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from tellback_client import (
    BlockingClient,
    Client,
    Committed,
    ConflictError,
    NotFoundError,
    Owner,
    RefusedError,
    Replaced,
    ServerProcess,
    connect,
)
from tests.support.waiting import GUARD_S, until
from tests.support.warm_server import WarmServer

COUNTED = int(os.environ.get("TELLBACK_COUNTED", "300"))
"""Updates of each tab; 1,000 was run once."""
CHAT = "character:Alice/First meeting"
PRESET = "OpenAI Settings/Default"


def folder(server: ServerProcess) -> Path:
    """A user with a character and a preset."""
    user = server.data / "default-user"
    for name in ("characters", "OpenAI Settings"):
        (user / name).mkdir(parents=True, exist_ok=True)
    (user / "characters/Alice.png").write_bytes(b"a card")
    (user / f"{PRESET}.json").write_text("{}")
    return user


def cut(client: Client) -> None:
    """End the connection as a network does."""
    connection = client._connection
    assert connection is not None
    if connection._socket is not None:
        connection._socket.transport.abort()
    client.reconnect()


async def test_a_corrupt_state_takes_no_other_with_it(tellback_server: ServerProcess) -> None:
    """[Q6] Asked for all, its error stands in its place; asked for by name, it is raised."""
    user = folder(tellback_server)
    (user / "chats/Alice").mkdir(parents=True)
    (user / "chats/Alice/First meeting.jsonl").write_text('{"mes":"one"}')
    sidecars = {
        "chats/Alice/First meeting.luker-state.": CHAT, "characters/Alice.state.": "character",
    }
    for start in sidecars:
        for namespace, text in (("memory", '{"n":1}'), ("broken", '{"torn'), ("other", "[2]")):
            (user / f"{start}{namespace}.json").write_text(text)
    async with connect(tellback_server.url) as client:
        for owner in (await client.open(CHAT), await client.character("Alice")):
            states = await owner.state_get_many()
            error = states.pop("broken")
            assert isinstance(error, RefusedError)
            assert (error.code, states) == ("state-corrupt", {"memory": {"n": 1}, "other": [2]})
            assert await owner.state_get_many(["memory", "other"]) == states
            for read in (owner.state_get_many(["memory", "broken"]), owner.state_get("broken")):
                with pytest.raises(RefusedError, match="no JSON"):
                    await read
            with pytest.raises(RefusedError) as refused:
                await owner.set_state("broken", {})
            assert refused.value.code == "state-corrupt"


@pytest.mark.parametrize("kind", ["character", "preset"])
async def test_states_are_set_updated_read_and_deleted(tellback_server: ServerProcess, kind: str) -> None:
    """[Q1] [Q2] And the other tab hears of each."""
    folder(tellback_server)
    async with connect(tellback_server.url) as one, connect(tellback_server.url) as other:

        async def opened(client: Client) -> Owner:
            return await (client.character("Alice") if kind == "character" else client.preset(PRESET))

        mine, theirs = await opened(one), await opened(other)
        assert mine is await opened(one)
        assert mine.owner_id == theirs.owner_id
        queue = theirs.events()

        await mine.set_state("memory", {"n": 1})
        result = await mine.update_state("memory", lambda memory: {"n": memory["n"] + 1})
        assert await mine.state_get("memory") == {"n": 2}
        event = await anext(queue)
        while not (isinstance(event, Committed) and event.version == result.version):
            event = await anext(queue)
        assert not event.mine
        assert await theirs.state_get("memory") == {"n": 2}
        await theirs.set_state("other", [1])
        assert await mine.state_get_many() == {"memory": {"n": 2}, "other": [1]}
        assert await mine.state_get_many(["other", "none", "other"]) == {"other": [1], "none": None}
        assert set(mine.versions) == {"memory", "other"}
        unchanged = await mine.update_state("memory", lambda memory: None)
        assert not unchanged.changed

        await theirs.delete_state("memory")
        await until(lambda: "memory" not in mine.versions)
        assert await mine.state_get("memory") is None
        assert mine.status == "synced"
        await mine.close()


@pytest.mark.parametrize("owner", ["chat", "character"])
async def test_two_tabs_that_count_lose_nothing_under_reconnects(tellback_server: ServerProcess, owner: str) -> None:
    """The sum is exactly what was counted, however often the connections go."""
    folder(tellback_server)
    async with connect(tellback_server.url) as one, connect(tellback_server.url) as other:
        handles = [
            await (client.open(CHAT, create=True) if owner == "chat" else client.character("Alice"))
            for client in (one, other)
        ]

        async def count(handle: Any) -> None:
            for _ in range(COUNTED):
                await handle.update_state("count", lambda state: {"n": state.get("n", 0) + 1})

        async def disturb() -> None:
            while True:
                await asyncio.sleep(0.15)
                cut(one)
                await asyncio.sleep(0.11)
                cut(other)

        noise = asyncio.create_task(disturb())
        try:
            await asyncio.gather(*(count(handle) for handle in handles))
        finally:
            noise.cancel()
        await until(lambda: handles[0].status == handles[1].status == "synced" and handles[0].head == handles[1].head)
        for handle in handles:
            assert await handle.state_get("count") == {"n": 2 * COUNTED}


async def test_a_wish_given_as_data_becomes_a_conflict_and_has_its_exits(tellback_server: ServerProcess) -> None:
    folder(tellback_server)
    async with connect(tellback_server.url) as one, connect(tellback_server.url) as other:
        mine, theirs = await one.character("Alice"), await other.character("Alice")
        await mine.set_state("memory", {"n": 1})
        await until(lambda: "memory" in theirs.versions)
        assert await theirs.state_get("memory") == {"n": 1}

        results = await asyncio.gather(
            mine.set_state("memory", {"n": 2}), theirs.set_state("memory", {"n": 3}), return_exceptions=True
        )

        [conflict] = [result.conflict for result in results if isinstance(result, ConflictError)]
        loser = mine if mine.conflicts else theirs
        assert loser.status == "conflicted"
        with pytest.raises(RefusedError, match="Only a chat"):
            await conflict.save_mine_as("group:x")
        await conflict.apply_mine_again()
        assert loser.status == "synced"


async def test_a_kill_between_loses_no_acknowledged_state(tellback_server: ServerProcess, tmp_path: Path) -> None:
    """Unacknowledged writes go out again, also from the outbox file of a client that died."""
    user = folder(tellback_server)
    outbox = tmp_path / "outbox.jsonl"
    async with connect(tellback_server.url, outbox_path=outbox) as client:
        owner = await client.preset(PRESET)
        await owner.set_state("tuning", {"t": 1})
        tellback_server.kill()
        waiting = asyncio.create_task(owner.update_state("tuning", lambda tuning: {"t": tuning["t"] + 1}))
        later = asyncio.create_task(owner.set_state("other", "kept"))
        await asyncio.sleep(0.1)
        await client.aclose(flush_timeout_s=0)
        await asyncio.gather(waiting, later, return_exceptions=True)
    tellback_server.restart()
    async with connect(tellback_server.url, outbox_path=outbox) as client:
        await client.saved()
        owner = await client.preset(PRESET)
        await until(lambda: owner.pending == 0)
        assert await owner.state_get_many() == {"tuning": {"t": 2}, "other": "kept"}
    tellback_server.stop()
    assert (user / f"{PRESET}.luker-state.tuning.json").read_text() == '{"t":2}'


async def test_another_programs_edit_replaces_what_was_known(tmp_path: Path) -> None:
    """[K3] Found before the next checkpoint; the tab is told to read again."""
    with WarmServer(tmp_path / "data", arguments=["--checkpoint-interval", "0.1"]) as server:
        user = folder(server)
        side = user / "characters/Alice.state.memory.json"
        async with connect(server.url) as client:
            owner = await client.character("Alice")
            await owner.set_state("memory", {"n": 1})
            await until(side.exists)
            await asyncio.sleep(0.2)
            queue = owner.events()
            side.write_text('{"n": 10}')
            await owner.update_state("memory", lambda memory: {"n": memory["n"] + 1})
            async with asyncio.timeout(GUARD_S):
                while not isinstance(await anext(queue), Replaced):
                    pass
            assert await owner.state_get("memory") == {"n": 10}
        backups = list((user / "backups/tellback" / owner.owner_id).iterdir())
        assert [backup.read_text() for backup in backups] == ['{"n":2}']


async def test_who_is_not_there_cannot_be_opened(tellback_server: ServerProcess) -> None:
    folder(tellback_server)
    async with connect(tellback_server.url) as client:
        with pytest.raises(NotFoundError):
            await client.character("Nobody")
        with pytest.raises(RefusedError):
            await client.character("../Alice")
        with pytest.raises(RefusedError):
            await client.preset("Default")
        with pytest.raises(RefusedError, match="no chat"):
            await client.open("character:Alice")
        assert await (await client.character("Alice")).state_get("memory") is None


def test_without_an_event_loop(tellback_server: ServerProcess) -> None:
    folder(tellback_server)
    with BlockingClient(tellback_server.url) as client:
        alice = client.character("Alice")
        alice.set_state("memory", {"n": 1})
        alice.update_state("memory", lambda memory: {"n": memory["n"] + 1})
        assert alice.state_get("memory") == {"n": 2}
        assert alice.state("memory").get() == {"n": 2}
        assert client.preset(PRESET).state_get_many() == {}
        assert list(alice.versions) == ["memory"]
        alice.delete_state("memory")
        assert alice.state_get_many(["memory"]) == {"memory": None}
        alice.close()

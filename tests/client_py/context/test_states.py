"""Chat state of the extension API, on the real server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tellback_client import Client, Owner, RefusedError, ServerProcess, connect
from tellback_client.context import Context, EventTypes, create_context
from tests.support.contexts import CHAT, settled, two_contexts
from tests.support.server import sillytavern_copy
from tests.support.waiting import until
from tests.support.warm_server import WarmServer


def cut(client: Client) -> None:
    """End the connection as a network does."""
    connection = client._connection
    assert connection is not None
    if connection._socket is not None:
        connection._socket.transport.abort()
    client.reconnect()


async def test_state_is_read_updated_and_deleted(tellback_server: ServerProcess) -> None:
    async with two_contexts(tellback_server) as (mine, theirs):
        assert await mine.get_chat_state("memory") is None
        heard: list[str] = []
        theirs.event_source.on(EventTypes.CHAT_STATE_CHANGED, heard.append)

        result = await mine.update_chat_state("memory", lambda current: {**current, "n": 1})
        assert (result.ok, result.state, result.updated) == (True, {"n": 1}, True)
        assert (await mine.update_chat_state("memory", lambda current: None))[:3] == (True, {"n": 1}, False)
        assert (await mine.update_chat_state("memory", lambda current: current))[:3] == (True, {"n": 1}, False)

        def careless(current: dict[str, Any]) -> None:
            current["n"] = 99

        assert (await mine.update_chat_state("memory", careless)).state == {"n": 1}
        assert (await mine.update_chat_state("none", lambda current: None))[:3] == (True, None, False)
        await settled(mine, theirs)
        assert await theirs.get_chat_state_batch(["memory", "none", "memory"]) == {"memory": {"n": 1}, "none": None}
        assert heard == ["memory"]

        assert (await theirs.delete_chat_state("memory"))[:3] == (True, None, True)
        assert (await theirs.delete_chat_state("memory"))[:3] == (True, None, False)
        await settled(mine, theirs)
        assert await mine.get_chat_state("memory") is None
        assert heard == ["memory", "memory"]


async def test_an_updater_may_ask_which_attempt_it_is(tellback_server: ServerProcess) -> None:
    async with two_contexts(tellback_server) as (mine, theirs):
        seen: list[dict[str, Any]] = []

        def update(current: Any, info: dict[str, Any]) -> Any:
            seen.append(info)
            return {"n": current.get("n", 0) + 1}

        await asyncio.gather(*(
            context.update_chat_state("memory", update) for _ in range(5) for context in (mine, theirs)
        ))
        await settled(mine, theirs)

        assert await mine.get_chat_state("memory") == {"n": 10}
        assert seen[0] == {"attempt": 0, "target": None, "namespace": "memory"}
        assert max(info["attempt"] for info in seen) > 0


async def test_what_cannot_be_stored_says_so(tellback_server: ServerProcess) -> None:
    async with two_contexts(tellback_server) as (mine, _):
        for namespace in ("two words", "a/b", "chat_sync", "x__floor_log", "tellback_x", ""):
            result = await mine.update_chat_state(namespace, lambda current: {"a": 1})
            assert not result
            assert (result.ok, result.state, result.updated) == (False, None, False)
            assert isinstance(result.error, RefusedError)

        def fails(_current: Any) -> Any:
            raise ValueError("mine")

        async def later(_current: Any) -> Any:
            return {}

        with pytest.raises(ValueError, match="mine"):
            await mine.update_chat_state("memory", fails)
        with pytest.raises(TypeError, match="coroutine"):
            await mine.update_chat_state("memory", later)
        with pytest.raises(TypeError):
            await mine.update_chat_state("memory", lambda current: {"a": object()})
        assert await mine.get_chat_state("memory") is None
        assert mine._current().chat.conflicts == []


async def test_max_retries_bounds_how_often_an_updater_runs(tellback_server: ServerProcess) -> None:
    async with two_contexts(tellback_server) as (mine, theirs):
        await mine.update_chat_state("memory", lambda current: {"n": 0})
        runs = 0

        def update(current: Any) -> Any:
            nonlocal runs
            runs += 1
            return {"n": current["n"] + 1}

        results: list[Any] = []
        for _round in range(50):
            results += await asyncio.gather(*(
                context.update_chat_state("memory", update, max_retries=0)
                for _ in range(20) for context in (mine, theirs)
            ))
            if not all(results):
                # Two met; they need not, in one round.
                break
        await settled(mine, theirs)

        stored = [result for result in results if result]
        refusals = [result for result in results if not result]
        assert refusals
        assert all(result.error is not None and not result.updated for result in refusals)
        assert await mine.get_chat_state("memory") == {"n": len(stored)}
        assert mine._current().chat.conflicts == theirs._current().chat.conflicts == []
        assert mine._current().chat.status == "synced"


async def test_a_corrupt_state_is_an_error_and_is_kept(tellback_server: ServerProcess) -> None:
    async with two_contexts(tellback_server) as (mine, _):
        await mine.update_chat_state("memory", lambda current: {"n": 1})
        await mine.update_chat_state("fine", lambda current: {"n": 2})
    tellback_server.stop()
    (file,) = tellback_server.data.rglob("*.luker-state.memory.json")
    file.write_text('{"n": 1')
    await asyncio.to_thread(tellback_server.restart)

    async with connect(tellback_server.url) as client, await create_context(client, chat=CHAT) as context:
        with pytest.raises(RefusedError):
            await context.get_chat_state("memory")
        with pytest.raises(RefusedError):
            await context.get_chat_state_batch(["fine", "memory"])
        assert await context.get_chat_state_batch(["fine", "none"]) == {"fine": {"n": 2}, "none": None}
        assert await context.get_chat_state("fine") == {"n": 2}
        result = await context.update_chat_state("memory", lambda current: {"n": 2})
        assert not result.ok
        assert not await context.delete_chat_state("memory")
    assert file.read_text() == '{"n": 1'


async def test_one_bad_namespace_does_not_spoil_the_question_of_another(tellback_server: ServerProcess) -> None:
    async with two_contexts(tellback_server) as (_, theirs):
        await theirs.update_chat_state("fine", lambda current: {"n": 2})
        await theirs.update_chat_state("good", lambda current: {"n": 3})
        async with connect(tellback_server.url) as client, await create_context(client, chat=CHAT) as late:
            fine, bad, good = await asyncio.gather(
                late.get_chat_state("fine"), late.get_chat_state("two words"), late.get_chat_state("good"),
                return_exceptions=True,
            )
    assert (fine, good) == ({"n": 2}, {"n": 3})
    assert isinstance(bad, RefusedError)


async def test_a_target_is_another_chat(tellback_server: ServerProcess) -> None:
    async with two_contexts(tellback_server) as (mine, theirs):
        target = "character:Alice/Branch"
        await mine.client.open(target, create=True)
        await mine.update_chat_state("memory", lambda current: {"n": 1}, target=target)
        assert await mine.get_chat_state("memory") is None
        for same in (target, {"avatar_url": "Alice.png", "file_name": "Branch.jsonl"}):
            assert await theirs.get_chat_state("memory", target=same) == {"n": 1}
            assert await theirs.get_chat_state_batch(["memory"], target=same) == {"memory": {"n": 1}}
        assert await theirs.get_chat_state("memory", target=CHAT) is None
        assert (await theirs.delete_chat_state("memory", target=target)).updated
        with pytest.raises(RefusedError):
            await theirs.get_chat_state("memory", target="character:Alice/Nowhere")
        with pytest.raises(ValueError, match="target"):
            await theirs.get_chat_state("memory", target="Branch")
        assert theirs._current().address == CHAT


async def test_many_targets_do_not_stay_open_and_chats_of_others_do(
    tellback_server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tellback_client.context.base.TARGETS_MAX", 2)
    async with connect(tellback_server.url) as client:
        await client.open(CHAT, create=True)
        names = [f"character:Alice/{number}" for number in range(6)]
        async with connect(tellback_server.url) as other:
            for name in names:
                await other.open(name, create=True)
        held = await client.open(names[0])
        context = await create_context(client, chat=CHAT)
        for name in names:
            await context.update_chat_state("memory", lambda current: {"n": 1}, target=name)
        await until(lambda: len(client.chats) == 4)
        assert held in client.chats
        await context.aclose()
        assert {chat.name for chat in client.chats} == {CHAT, names[0]}


async def test_two_tabs_count_a_thousand_times_each_under_reconnects(tellback_server: ServerProcess) -> None:
    def count(current: dict[str, Any]) -> dict[str, Any]:
        return {**current, "n": current.get("n", 0) + 1}

    counted = 0

    async def counting(context: Context) -> None:
        nonlocal counted
        for _ in range(1000):
            result = await context.update_chat_state("counter", count)
            assert result.ok
            assert result.updated
            counted += 1

    async with two_contexts(tellback_server) as (mine, theirs):
        counters = [asyncio.create_task(counting(context)) for context in (mine, theirs)]
        # By progress and not by the clock: a slow machine is cut as often as a fast one.
        for turn, goal in enumerate(range(50, 2000, 100)):
            await until(lambda goal=goal: counted >= goal, 60)
            if turn % 5 == 2:
                tellback_server.kill()
                await asyncio.to_thread(tellback_server.restart)
            cut((mine, theirs)[turn % 2].client)
        await asyncio.gather(*counters)
        await settled(mine, theirs)

        assert await mine.get_chat_state("counter") == await theirs.get_chat_state("counter") == {"n": 2000}


async def test_state_of_characters_and_presets(tmp_path: Path) -> None:
    server = WarmServer(sillytavern_copy(tmp_path))
    server.start()
    try:
        async with (
            connect(server.url) as one, connect(server.url) as other,
            await create_context(one) as mine, await create_context(other) as theirs,
        ):
            avatar = mine.characters[0]["avatar"]
            assert await mine.get_character_state(avatar, "memory") is None
            await mine.set_character_state(avatar, "memory", {"list": [1]})
            assert await theirs.get_character_state(avatar, "memory") == {"list": [1]}

            def count(state: dict[str, Any]) -> dict[str, Any]:
                return {"n": state.get("n", 0) + 1}

            results = await asyncio.gather(*(
                context.update_character_state(avatar, "count", count) for _ in range(20) for context in (mine, theirs)
            ))
            assert all(results)
            assert max(result.state["n"] for result in results) == 40
            await mine.set_character_state(avatar, "memory", None)
            await mine.set_character_state(avatar, "memory", None)
            assert await mine.get_character_state(avatar, "memory") is None
            with pytest.raises(RefusedError):
                await mine.get_character_state("Nobody.png", "memory")
            with pytest.raises(RefusedError):
                await mine.set_character_state(avatar, "two words", {})

            preset = "TextGen Settings/Canal Steady"
            assert await mine.get_preset_state(preset, "memory") is None
            assert (await mine.update_preset_state(preset, "memory", count)).state == {"n": 1}
            assert (await theirs.update_preset_state(preset, "memory", count)).state == {"n": 2}
            assert (await theirs.delete_preset_state(preset, "memory")).updated
            owner = mine._owners[f"preset:{preset}"]
            assert isinstance(owner, Owner)
            await until(lambda: "memory" not in owner.versions)
            assert await mine.get_preset_state(preset, "memory") is None
    finally:
        server.close()


async def test_patching_a_state(tellback_server: ServerProcess) -> None:
    async with two_contexts(tellback_server) as (mine, _):
        operations = mine.build_object_patch_operations({}, {"a": {"b": 1}})
        assert (await mine.patch_chat_state("memory", operations))[:3] == (True, {"a": {"b": 1}}, True)
        failed = await mine.patch_chat_state("memory", [{"op": "remove", "path": "/none"}])
        assert not failed
        assert isinstance(failed.error, RefusedError)
        assert await mine.get_chat_state("memory") == {"a": {"b": 1}}

"""Replies that are written through the client, against the real server process: real sockets, a real disk, SIGKILL."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tellback_client import (
    BlockingClient,
    Chat,
    Client,
    ConflictError,
    Event,
    Generation,
    GenerationEnded,
    GenerationOver,
    GenerationResult,
    GenerationStarted,
    RefusedError,
    ServerProcess,
    SessionTakenOver,
    connect,
)
from tellback_client.events import EventQueue
from tests.support.sse_server import DONE, Exchange, SseServer, piece
from tests.support.waiting import GUARD_S, until
from tests.support.warm_server import WarmServer

CHAT = "character:Alice/First meeting"
TURN = {"name": "User", "is_user": True, "mes": "And then?"}
REPLY = {"name": "Alice", "is_user": False}


@pytest.fixture
def hasty_server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that waits one second for a producer that is gone."""
    with WarmServer(tmp_path / "data", arguments=["--create", "--generation-lease", "1"]) as server:
        yield server


@asynccontextmanager
async def two(server: ServerProcess) -> AsyncIterator[tuple[Client, Client, Chat, Chat]]:
    """Two sessions that have the chat open."""
    async with connect(server.url) as one, connect(server.url) as other:
        mine = await one.open(CHAT, create=True)
        yield one, other, mine, await other.open(CHAT)


def drop(client: Client) -> None:
    """End its connection as a network does."""
    assert client._connection is not None
    assert client._connection._socket is not None
    client._connection._socket.transport.abort()


async def first(chat: Chat, generation_id: str | None = None) -> Generation:
    """A generation that runs there, waited for."""
    await until(lambda: any(one.state == "running" and generation_id in (None, one.id) for one in chat.generations))
    return next(one for one in chat.generations if one.state == "running" and generation_id in (None, one.id))


async def read(generation: Generation) -> tuple[str, GenerationResult]:
    """What a listener gets, delta by delta, and what became of it."""
    texts = [text async for text in generation]
    assert all(texts)
    return "".join(texts), await generation.stored


async def test_t10_t13_t16_every_tab_reads_the_reply_also_who_comes_late(tellback_server: ServerProcess) -> None:
    """Identical tokens, emoji, and emoji that a model cut in two."""
    tokens = ["ha"] * 30 + ["\U0001f600", "\ud83d", "\ude80x", "", "ok", "ok", "\u200b", "e\u0301", "\ud83d"]
    whole = "ha" * 30 + "\U0001f600\U0001f680xokok\u200be\u0301\ufffd"
    heard: list[Event] = []
    async with two(tellback_server) as (one, _other, mine, theirs), connect(tellback_server.url) as late_client:
        stop = theirs.observe(heard.append)
        async with mine.generate(TURN, reply=REPLY) as reply:
            assert [message["mes"] for message in mine.messages] == ["And then?"]
            reading = asyncio.create_task(read(await first(theirs)))
            await reply.push(reasoning="Let me ")
            await reply.push(reasoning="see\u2026")
            for number, token in enumerate(tokens):
                await reply.push(token)
                if number == 20:
                    await until(lambda: len(theirs.generations[0].text) > 30)
                    late = await late_client.open(CHAT)
                    joined = asyncio.create_task(read(await first(late)))
                    shown = (await late.preview())[-1]
                    assert (shown["id"], shown["name"]) == (reply.message, "Alice")
                    assert shown["mes"].startswith("ha" * 15)
                    assert len(late.messages) == 1
            await until(lambda: reply.durable > 60)
        result = reply.result
        assert result is not None
        assert (reply.text, reply.state, result.message) == (whole, "stored", reply.message)
        assert await reading == await joined == (whole, result)
        assert (mine.messages[-1]["mes"], mine.messages[-1]["extra"]["reasoning"]) == (whole, "Let me see\u2026")
        assert mine.messages == theirs.messages == late.messages
        assert result.version == mine.version
        assert theirs.generations == late.generations == []
        assert theirs.generation(reply.id).reasoning == "Let me see\u2026"
        stop()
        told = [event for event in heard if isinstance(event, GenerationStarted | GenerationEnded)]
        assert told == [
            GenerationStarted(reply.id, reply.message, one.session), GenerationEnded(reply.id, result, False)
        ]


async def test_r10_r40_t11_t20_a_reply_goes_on_through_lost_connections_and_kills(
    tellback_server: ServerProcess
) -> None:
    """The producer never waits for the server; nobody misses a token, and nobody gets one twice."""
    async with two(tellback_server) as (one, other, mine, theirs):
        pushed: list[str] = []
        reading: asyncio.Task[Any] | None = None
        async with mine.generate(TURN, reply=REPLY) as reply:
            for number in range(240):
                await reply.push(f"{number}\U0001f600 ")
                pushed.append(f"{number}\U0001f600 ")
                if number == 5:
                    reading = asyncio.create_task(read(await first(theirs)))
                if number in (30, 150):
                    drop(one)
                if number == 60:
                    drop(other)
                if number in (90, 180):
                    tellback_server.kill()
                    restarted = asyncio.create_task(asyncio.to_thread(tellback_server.restart))
                if number in (110, 200):
                    await restarted
                    one.reconnect()
                    other.reconnect()
                await asyncio.sleep(0.004)
        assert reading is not None
        text, result = await reading
        assert text == reply.text == "".join(pushed)
        assert result.state == "stored"
        assert [message["mes"] for message in theirs.messages] == ["And then?", text]


async def test_r11_t8_any_tab_stops_a_reply_whose_producer_waits_for_its_model(tellback_server: ServerProcess) -> None:
    """The block is left at its await, without an exception; also after the server was killed in between."""
    async with two(tellback_server) as (one, other, mine, theirs):
        waited = False

        async def produce(text: str) -> tuple[str, GenerationResult | None]:
            nonlocal waited
            async with mine.generate(reply=REPLY) as reply:
                await reply.push(text)
                waited = True
                await asyncio.Event().wait()
            return reply.state, reply.result

        producing = asyncio.create_task(produce("half a senten"))
        generation = await first(theirs)
        await until(lambda: generation.text == "half a senten")
        result = await generation.cancel()
        assert await producing == ("cancelled", result)
        assert result == await generation.cancel()
        assert (theirs.messages[-1]["mes"], result.is_stored) == ("half a senten", True)

        producing = asyncio.create_task(produce("another"))
        generation = await first(theirs)
        await until(lambda: mine.generation(generation.id).durable == 7)
        tellback_server.kill()
        stopping = asyncio.create_task(generation.cancel())
        await asyncio.to_thread(tellback_server.restart)
        one.reconnect()
        other.reconnect()
        assert await producing == ("cancelled", await stopping)
        assert mine.messages[-1]["mes"] == "another"
        assert waited


async def test_an_exception_ends_it_as_failed_and_a_cancelled_task_as_cancelled(tellback_server: ServerProcess) -> None:
    async with two(tellback_server) as (_one, _other, mine, theirs):
        with pytest.raises(ValueError, match="sk-secret"):  # noqa: PT012 - the block is what raises.
            async with mine.generate(TURN, reply=REPLY) as reply:
                await reply.push("so far")
                raise ValueError("no answer from https://model/?key=sk-secret")
        result = await reply.stored
        assert result.error is not None
        assert (result.state, result.error.code, result.is_stored) == ("failed", "producer-failed", True)
        assert "sk-secret" not in str(await theirs.state_get("tellback_generations"))
        with pytest.raises(GenerationOver, match="failed"):
            await reply.push("late")

        async with mine.generate(reply=REPLY) as reply:
            await reply.push("then")
            await reply.fail("The model answered 503.", code="upstream")
        assert reply.generation.error is not None
        assert reply.generation.error.message == "The model answered 503."

        async def produce() -> None:
            async with mine.generate(reply=REPLY) as inner:
                replies.append(inner)
                await inner.push("stopped here")
                await asyncio.Event().wait()

        replies: list[Any] = []
        task = asyncio.create_task(produce())
        await until(lambda: bool(replies))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await replies[0].stored).state == "cancelled"
        await until(lambda: theirs.head == mine.head)
        assert [message["mes"] for message in theirs.messages] == ["And then?", "so far", "then", "stopped here"]

        starting = asyncio.create_task(produce())
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await mine.saved()
        assert mine.generations == []


PRODUCER = """
import asyncio, sys
from tellback_client import connect

async def main():
    async with connect(sys.argv[1], session="worker-of-the-test") as client:
        chat = await client.open(sys.argv[2])
        async with chat.generate({"mes": "And then?"}, reply={"name": "Alice"}, generation="g1") as reply:
            number = 0
            while True:
                await reply.push(f"{number}\\U0001f600 ")
                number += 1
                print(reply.durable, flush=True)
                await asyncio.sleep(0.005)

asyncio.run(main())
"""


async def produced_and_killed(server: ServerProcess, units: int) -> None:
    """Another process that writes a reply, until so much of it is durable; then it is killed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PRODUCER, server.url, CHAT, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    while int(await process.stdout.readline()) < units:
        pass
    process.send_signal(signal.SIGKILL)
    await process.wait()


async def test_r13_t9_what_a_killed_producer_had_written_is_stored_as_orphaned(hasty_server: ServerProcess) -> None:
    async with connect(hasty_server.url) as client:
        chat = await client.open(CHAT, create=True)
        reading = asyncio.create_task(asyncio.wait_for(produced_and_killed(hasty_server, 40), GUARD_S))
        generation = await first(chat)
        text, result = await read(generation)
        await reading
        assert (result.state, generation.id) == ("orphaned", "g1")
        assert len(text) >= 40
        assert text == generation.text == chat.messages[-1]["mes"]
        assert text.startswith("0\U0001f600 1\U0001f600 2\U0001f600 ")
        assert chat.generations == []


async def test_t20_a_worker_that_died_comes_back_and_writes_the_rest(tellback_server: ServerProcess) -> None:
    async with connect(tellback_server.url) as watcher:
        chat = await watcher.open(CHAT, create=True)
        await produced_and_killed(tellback_server, 40)
        with pytest.raises(RefusedError, match="not-producer"):
            chat.resume("g1")
        async with connect(tellback_server.url, session="worker-of-the-test") as client:
            mine = await client.open(CHAT)
            async with mine.resume("g1") as reply:
                before = reply.text
                assert before.startswith("0\U0001f600 ")
                await reply.push("and the rest")
            assert mine.messages[-1]["mes"] == before + "and the rest"
            with pytest.raises(RefusedError, match="generation-unknown"):
                mine.resume("g2")
        await until(lambda: len(chat.messages) == 2)
        assert chat.generation("g1").text == before + "and the rest"


async def test_r12_t15_u3_a_result_that_nobody_heard_is_offered_until_it_is_acknowledged(tmp_path: Path) -> None:
    """The server asks the model; the session that wanted the reply is gone by the time it is there."""
    go_on = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.start()
        await exchange.chunk(piece("Once "))
        await go_on.wait()
        for event in (piece("upon"), piece(finish="stop"), DONE):
            await exchange.chunk(event)
        await exchange.end()

    session = "session-of-the-test"
    async with SseServer(script) as model:
        server = WarmServer(tmp_path / "data", arguments=["--create", "--upstream", f"local={model.url}"])
        await asyncio.to_thread(server.start)
        try:
            async with connect(server.url, session=session) as client:
                assert [upstream.name for upstream in client.upstreams] == ["local"]
                chat = await client.open(CHAT, create=True)
                with pytest.raises(RefusedError, match="upstream-unknown"):
                    await chat.generate_from("other", {"messages": []})
                generation = await chat.generate_from("local", {"model": "m", "messages": []}, TURN, reply=REPLY)
                async for text in generation:
                    assert text == "Once "
                    break
                with pytest.raises(RefusedError) as refusal:
                    await chat.generate_from("local", {}, reply=REPLY)
                assert (refusal.value.code, refusal.value.generation) == ("generation-running", generation.id)
            go_on.set()
            async with connect(server.url) as watcher:
                seen = await watcher.open(CHAT)
                await until(lambda: len(seen.messages) == 2)
                # Offered to whoever began it, and to nobody else.
                assert [one for one in seen.generations if one.offered] == []
                for is_offered in (True, False):
                    async with connect(server.url, session=session) as client:
                        chat = await client.open(CHAT)
                        if not is_offered:
                            assert chat.generations == []
                            continue
                        (offered,) = chat.generations
                        result = await offered.stored
                        assert (offered.id, offered.offered, offered.text) == (generation.id, True, "Once upon")
                        assert (result.state, result.message) == ("stored", chat.messages[-1]["id"])
                        acked = seen.state("tellback_generations")
                        await until_acked(acked, generation.id, session)
        finally:
            await asyncio.to_thread(server.close)


async def until_acked(state: Any, generation_id: str, session: str) -> None:
    async def is_acked() -> bool:
        return bool((await state.get())[generation_id].get("acked") == [session])

    await until(is_acked)


async def test_t3_t4_a_swipe_a_continuation_and_another_try(tellback_server: ServerProcess) -> None:
    async with two(tellback_server) as (_one, _other, mine, theirs):
        async with mine.generate(TURN, reply=REPLY) as reply:
            await reply.push("one")
        message = reply.message
        async with mine.generate(swipe_of=message, supersedes=reply.generation) as again:
            await again.push("two")
            await until(lambda: [one.text for one in theirs.generations] == ["two"])
            shown = await theirs.preview()
            assert (shown[-1]["swipes"], shown[-1]["swipe_id"]) == (["one", "two"], 1)
            assert theirs.generations[0].supersedes == reply.id
        assert again.result is not None
        assert (again.result.swipe, mine.messages[-1]["mes"], again.text) == (1, "two", "two")
        reading = asyncio.create_task(read_next(theirs, theirs.events()))
        async with mine.generate(continuing=message) as more:
            await more.push(" and three")
        assert (mine.messages[-1]["mes"], more.text) == ("two and three", " and three")
        assert await reading == (" and three", more.result)
        with pytest.raises(TypeError):
            mine.generate(continuing=message, swipe_of=message)
        with pytest.raises(RefusedError, match="message-unknown"):
            async with mine.generate(swipe_of="nowhere"):
                raise AssertionError("not entered")
        assert mine.pending == 0


async def read_next(chat: Chat, events: EventQueue[Event]) -> tuple[str, GenerationResult]:
    """What comes of the next reply there, however short it is."""
    async for event in events:
        if isinstance(event, GenerationStarted):
            return await read(chat.generation(event.id))
    raise AssertionError("the chat is gone")


async def test_what_cannot_be_written_is_told_and_costs_nothing_else(tellback_server: ServerProcess) -> None:
    async with two(tellback_server) as (one, _other, mine, _theirs):
        with pytest.raises(RefusedError, match="bad-json"):  # noqa: PT012 - the block is what raises.
            async with mine.generate(reply=REPLY) as reply:
                await reply.push("before")
                await reply.push("a\ude00b")
        assert (await reply.stored).state == "failed"
        with pytest.raises(RefusedError, match="too-large"):  # noqa: PT012 - the block is what raises.
            async with mine.generate(reply=REPLY) as reply:
                await reply.push("x" * 100_000)
                await reply.push("y" * one.limits.document_bytes)
        assert (await reply.stored).is_stored
        assert mine.messages[-1]["mes"] == "x" * 100_000
        with pytest.raises(RefusedError, match="id-immutable"):  # noqa: PT012 - the block is what raises.
            async with mine.generate(reply=REPLY) as reply:
                await reply.push("kept")
                await reply.end({"id": "another"})
        assert (await reply.stored).is_stored
        assert [message["mes"][:6] for message in mine.messages] == ["before", "xxxxxx", "kept"]
        async with mine.generate(reply=REPLY) as reply:
            result = await reply.end({"mes": "Said otherwise.", "extra": {"usage": {"total_tokens": 3}}})
            assert reply.text == "Said otherwise."
        assert (mine.messages[-1]["extra"]["usage"], result.state) == ({"total_tokens": 3}, "stored")
        async with mine.generate(TURN, reply=REPLY) as reply:
            pass
        assert (reply.state, reply.result and reply.result.is_stored) == ("stored", False)
        assert mine.messages[-1]["mes"] == "And then?"
        with pytest.raises(RefusedError, match="bad-frame"):
            await mine.generate(reply=REPLY, lease_s=300.5).begin()
        async with mine.generate(reply=REPLY, lease_s=0.5) as reply:
            await reply.push("of half a second")
        assert mine.messages[-1]["mes"] == "of half a second"


async def test_r28_a_session_that_is_taken_over_writes_no_further(hasty_server: ServerProcess) -> None:
    session = "session-of-the-test"
    durable = asyncio.Event()

    async def produce() -> None:
        async with connect(hasty_server.url, session=session) as client:
            chat = await client.open(CHAT, create=True)
            async with chat.generate(TURN, reply=REPLY) as reply:
                await reply.push("mine")
                await until(lambda: reply.durable == 4)
                durable.set()
                await asyncio.Event().wait()

    producing = asyncio.create_task(produce())
    await durable.wait()
    async with connect(hasty_server.url, session=session) as client:
        chat = await client.open(CHAT)
        with pytest.raises(SessionTakenOver):
            await producing
        # Whoever holds the session now is the producer, and may go on.
        assert [one.text for one in chat.generations] == ["mine"]
    async with connect(hasty_server.url) as watcher:
        chat = await watcher.open(CHAT)
        await until(lambda: len(chat.messages) == 2)
        assert chat.messages[-1]["mes"] == "mine"


async def test_leaving_stops_what_is_produced_and_a_conflict_in_a_continuation_is_a_conflict(
    tellback_server: ServerProcess
) -> None:
    async with two(tellback_server) as (one, _other, mine, theirs):
        message = (await mine.append({"name": "Alice", "mes": "Once"})).message_ids[0]
        await until(lambda: len(theirs.messages) == 1)
        drop(one)
        producing = asyncio.create_task(mine.generate(continuing=message).begin())
        await theirs.patch(message, [{"op": "replace", "path": "/mes", "value": "Twice"}])
        with pytest.raises(ConflictError):
            await producing
        mine.conflicts[0].take_theirs()

        async def produce() -> str:
            async with mine.generate(reply=REPLY) as reply:
                await reply.push("as far as this")
                await asyncio.Event().wait()
            return reply.state

        task = asyncio.create_task(produce())
        await first(theirs)
        await one.aclose()
        assert await task == "cancelled"
        await until(lambda: len(theirs.messages) == 2)
        assert theirs.messages[-1]["mes"] == "as far as this"


def test_a_program_without_an_event_loop(tellback_server: ServerProcess) -> None:
    with BlockingClient(tellback_server.url) as one, BlockingClient(tellback_server.url) as other:
        mine, theirs = one.open(CHAT, create=True), other.open(CHAT)
        with mine.generate(TURN, reply=REPLY) as reply:
            reply.push("a ")
            reply.push("\U0001f600", reasoning="hm")
        assert reply.result is not None
        assert (reply.state, mine.messages[-1]["mes"]) == ("stored", "a \U0001f600")
        assert "".join(mine.generation(reply.generation.id)) == "a \U0001f600"
        with mine.generate(reply=REPLY) as reply:
            reply.push("b ")
            while not theirs.generations:
                pass
            assert theirs.generations[0].cancel().state == "cancelled"
            while reply.state == "running":
                pass
            assert [message["mes"] for message in mine.preview()][-1] == "b "
            reply.push("never")
            raise AssertionError("not reached")
        assert (reply.state, theirs.messages[-1]["mes"]) == ("cancelled", "b ")
        with pytest.raises(RefusedError, match="unsupported"):
            mine.generate_from("local", {})

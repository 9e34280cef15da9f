"""The whole client against the real server process: real sockets, a real disk, SIGKILL."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tellback_client import (
    BlockingClient,
    ClientClosed,
    Committed,
    ConflictError,
    ConnectionLost,
    NotFoundError,
    RefusedError,
    Replaced,
    ServerProcess,
    SessionTakenOver,
    WriteResult,
    connect,
)
from tellback_client.catching_up import reached
from tests.support.waiting import GUARD_S, until

CHAT = "character:Alice/First meeting"


async def test_a_write_is_told_to_the_other_tab(tellback_server: ServerProcess) -> None:
    async with connect(tellback_server.url) as one, connect(tellback_server.url) as other:
        mine = await one.open(CHAT, create=True)
        theirs = await other.open(CHAT)

        result = await mine.append({"name": "User", "is_user": True, "mes": "hi"})
        await until(lambda: len(theirs.messages) == 1)

        assert theirs.messages[0] == {"id": result.message_ids[0], "name": "User", "is_user": True, "mes": "hi"}
        assert mine.version == theirs.version == result.version
        assert mine.status == theirs.status == "synced"


async def test_the_header_of_a_chats_file_is_read_beside_everything_else(tellback_server: ServerProcess) -> None:
    """With the fields of other programs; while parts of the chat and others' writes are on their way nothing is missed.
    """
    folder = Path(tellback_server.data) / "default-user/chats/Alice"
    folder.mkdir(parents=True)
    message = '{"mes":"%s"}' % ("x" * 9_000)
    lines = ['{"user_name":"Anna","character_name":"Alice","chat_metadata":{"a":1},"odd":[1]}', *[message] * 100]
    (folder / "Long.jsonl").write_text("\n".join(lines))
    (folder / "Bare.jsonl").write_text('{"mes":"one"}')
    async with connect(tellback_server.url) as one, connect(tellback_server.url) as other:
        theirs = await other.open("character:Alice/Long")

        async def write() -> None:
            for number in range(60):
                await theirs.append({"mes": str(number)})

        writing = asyncio.create_task(write())
        chat = await one.open("character:Alice/Long")
        for _ in range(20):
            header = await chat.header()
            assert header is not None
            assert (header["user_name"], header["odd"], header["chat_metadata"]) == ("Anna", [1], {"a": 1})
            one.reconnect()
        await writing
        await chat.append({"mes": "mine"})
        await until(lambda: len(theirs.messages) == len(chat.messages) == 161)
        assert list(chat.messages) == list(theirs.messages)
        assert await (await one.open("character:Alice/Bare")).header() is None


async def test_r15_equal_messages_are_two_messages(tellback_server: ServerProcess) -> None:
    async with connect(tellback_server.url) as client:
        chat = await client.open(CHAT, create=True)

        await asyncio.gather(chat.append({"mes": "ok"}), chat.append({"mes": "ok"}))

        assert [message["mes"] for message in chat.messages] == ["ok", "ok"]


async def test_r28_r35_r40_r45_writes_go_on_through_kill_and_restart(tellback_server: ServerProcess) -> None:
    async with connect(tellback_server.url) as one, connect(tellback_server.url) as other:
        mine = await one.open(CHAT, create=True)
        theirs = await other.open(CHAT)
        second = await other.open("group:Round table", create=True)
        acknowledged: list[str] = []

        async def write(chat: Any, name: str) -> None:
            for number in range(60):
                result = await chat.append({"mes": f"{name} {number}"})
                acknowledged.extend(result.message_ids)
                await chat.state("memory").update(lambda memory: {"n": memory.get("n", 0) + 1})

        writers = [asyncio.create_task(write(mine, "one")), asyncio.create_task(write(theirs, "other"))]
        for _ in range(3):
            await asyncio.sleep(0.15)
            tellback_server.kill()
            await asyncio.sleep(0.05)
            await asyncio.to_thread(tellback_server.restart)
            one.reconnect()
            other.reconnect()
        await asyncio.gather(*writers)
        await until(lambda: mine.head == theirs.head and second.status == "synced")

        ids = mine.messages.ids()
        assert sorted(ids) == sorted(acknowledged)
        assert len(ids) == 120
        assert mine.messages == theirs.messages
        assert await mine.state("memory").get() == await theirs.state("memory").get() == {"n": 120}
        async with connect(tellback_server.url) as fresh:
            assert (await fresh.open(CHAT)).messages == mine.messages


async def test_functions_are_run_again_until_they_fit(tellback_server: ServerProcess) -> None:
    async with connect(tellback_server.url) as one, connect(tellback_server.url) as other:
        mine = await one.open(CHAT, create=True)
        message_id = (await mine.append({"mes": "hi"})).message_ids[0]
        theirs = await other.open(CHAT)

        def count(value: dict[str, Any]) -> None:
            value["n"] = value.get("n", 0) + 1

        await asyncio.gather(*[
            write for chat in (mine, theirs) for _ in range(25)
            for write in (
                chat.update_message(message_id, count), chat.update_metadata(count), chat.state("memory").update(count)
            )
        ])
        await until(lambda: mine.head == theirs.head)

        assert mine.messages[0]["n"] == 50
        assert mine.metadata["n"] == 50
        assert await theirs.state("memory").get() == {"n": 50}


async def test_a_conflict_has_three_exits(tellback_server: ServerProcess) -> None:
    async with connect(tellback_server.url) as one, connect(tellback_server.url) as other:
        mine = await one.open(CHAT, create=True)
        await mine.set_metadata({"integrity": "of the source", "note": "n"})
        message_id = (await mine.append({"mes": "hi"})).message_ids[0]
        theirs = await other.open(CHAT)
        losers = []
        for word in ("first", "second", "third"):
            results = await asyncio.gather(
                mine.patch(message_id, [{"op": "replace", "path": "/mes", "value": f"mine {word}"}]),
                theirs.patch(message_id, [{"op": "replace", "path": "/mes", "value": f"theirs {word}"}]),
                return_exceptions=True,
            )
            stored = [result for result in results if isinstance(result, WriteResult)]
            errors = [result for result in results if isinstance(result, ConflictError)]
            assert len(stored) == len(errors) == 1
            losers.append(errors[0].conflict)
            await until(lambda: mine.head == theirs.head)
        first, second, third = losers

        assert {mine.status, theirs.status} & {"conflicted"}
        assert first.missed is not None
        await third.save_mine_as("character:Alice/Mine")
        await second.apply_mine_again()
        first.take_theirs()

        assert mine.conflicts == theirs.conflicts == []
        copy = await one.open("character:Alice/Mine")
        assert copy.messages[0]["mes"].endswith("third")
        # SillyTavern tells chats apart by it.
        assert copy.metadata == {"integrity": copy.chat_id, "note": "n"}
        await until(lambda: mine.messages[0]["mes"].endswith("second") and mine.head == theirs.head)
        assert {mine.status, theirs.status} == {"synced"}
        with pytest.raises(RefusedError, match="exists"):
            await mine.save_mine_as(second, CHAT.replace("First meeting", "Mine"))


async def test_r18_r23_a_refused_write_fails_alone(tellback_server: ServerProcess) -> None:
    async with connect(tellback_server.url) as client:
        chat = await client.open(CHAT, create=True)

        results = await asyncio.gather(
            chat.append({"mes": "before"}),
            chat.append({"mes": "x" * (5 << 20)}),
            chat.patch("unknown", [{"op": "remove", "path": "/mes"}]),
            chat.append({"mes": "after"}),
            return_exceptions=True,
        )

        assert [getattr(result, "code", "stored") for result in results] == [
            "stored", "too-large", "message-unknown", "stored"
        ]
        assert [message["mes"] for message in chat.messages] == ["before", "after"]
        assert client.status == "connected"


async def test_r44_a_listener_may_write(tellback_server: ServerProcess) -> None:
    async with connect(tellback_server.url) as one, connect(tellback_server.url) as other:
        mine = await one.open(CHAT, create=True)
        theirs = await other.open(CHAT)

        async def answer() -> None:
            async for event in theirs.events():
                if isinstance(event, Committed) and not event.mine:
                    await theirs.append({"mes": "answer"})
                    await theirs.state("memory").get()
                    return

        answering = asyncio.create_task(answer())
        await asyncio.sleep(0)
        await mine.append({"mes": "question"})
        await asyncio.wait_for(answering, GUARD_S)
        await until(lambda: len(mine.messages) == 2)

        assert [message["mes"] for message in mine.messages] == ["question", "answer"]


async def test_r20_a_cancelled_caller_does_not_cancel_its_write(tellback_server: ServerProcess) -> None:
    async with connect(tellback_server.url) as client:
        chat = await client.open(CHAT, create=True)

        writing = asyncio.create_task(chat.append({"mes": "hi"}))
        await asyncio.sleep(0)
        writing.cancel()
        await chat.saved()

        assert chat.pending == 0
        assert [message["mes"] for message in chat.messages] == ["hi"]


async def test_r46_one_chat_is_one_subscription(tellback_server: ServerProcess) -> None:
    async with connect(tellback_server.url) as client:
        one, other = await asyncio.gather(client.open(CHAT, create=True), client.open(CHAT, create=True))
        by_id = await client.open(f"id:{one.chat_id}")

        assert one is other
        assert one is by_id


async def test_a_batch_is_one_commit(tellback_server: ServerProcess) -> None:
    async with connect(tellback_server.url) as client:
        chat = await client.open(CHAT, create=True)
        before = chat.head.seq
        await chat.state("memory").get()

        async with chat.batch() as batch:
            batch.append([{"mes": "one"}, {"mes": "two"}])
            batch.update_metadata({"mood": "calm"})
            batch.state("memory").merge({"n": 1})

        assert chat.head.seq == before + 1
        assert batch.result.message_ids == chat.messages.ids()
        assert chat.metadata["mood"] == "calm"
        assert await chat.state("memory").get() == {"n": 1}


async def test_a_large_chat_arrives_in_parts(tellback_server: ServerProcess) -> None:
    async with connect(tellback_server.url) as one, connect(tellback_server.url) as other:
        mine = await one.open(CHAT, create=True)
        await mine.append([{"mes": "y" * 1000, "number": number} for number in range(1000)])

        theirs = await other.open(CHAT)

        assert theirs.messages == mine.messages
        assert theirs.messages[-1]["number"] == 999
        assert [message["number"] for message in theirs.messages[10:12]] == [10, 11]


async def test_missing_and_taken_over_and_unreachable_are_different_errors(tellback_server: ServerProcess) -> None:
    async with connect(tellback_server.url, session="one-session-for-two") as client:
        with pytest.raises(NotFoundError):
            await client.open("character:Nobody/Nothing")
        chat = await client.open(CHAT, create=True)
        async with connect(tellback_server.url, session="one-session-for-two"):
            await until(lambda: client.status == "closed")
            assert isinstance(client.error, SessionTakenOver)
            with pytest.raises(SessionTakenOver):
                await chat.append({"mes": "too late"})
    async with connect(tellback_server.url) as client:
        chat = await client.open(CHAT)
    with pytest.raises(ClientClosed):
        await chat.append({"mes": "too late"})
    tellback_server.stop()
    with pytest.raises(ConnectionLost):
        async with connect(tellback_server.url, connect_timeout_s=0.3):
            pass


def test_the_blocking_client_is_the_same_client(tellback_server: ServerProcess) -> None:
    with BlockingClient(tellback_server.url) as client, BlockingClient(tellback_server.url) as other:
        chat = client.open(CHAT, create=True)
        theirs = other.open(CHAT)
        events = theirs.events()

        result = chat.append({"mes": "hi"})
        event = next(event for event in events if isinstance(event, Committed))
        chat.update_message(result.message_ids[0], lambda message: message.update(mes="hello"))
        chat.state("memory").set({"n": 1})
        chat.batch(lambda batch: batch.append({"mes": "in a batch"}))
        chat.saved()

        assert event.version == result.version
        assert [message["mes"] for message in chat.messages] == ["hello", "in a batch"]
        assert chat.state("memory").get() == {"n": 1}
        assert (chat.status, chat.pending, chat.conflicts) == ("synced", 0, [])


async def test_waiting_for_what_others_stored_ends_with_the_client_although_a_conflict_waits(
    tellback_server: ServerProcess,
) -> None:
    async with connect(tellback_server.url) as one, connect(tellback_server.url) as other:
        chats = [await one.open(CHAT, create=True), await other.open(CHAT)]
        await chats[0].append({"id": "a", "mes": "a"})
        await until(lambda: chats[1].messages)
        await asyncio.gather(
            *(chat.patch("a", [{"op": "replace", "path": "/mes", "value": str(number)}])
              for number, chat in enumerate(chats)), return_exceptions=True)
        [loser] = [chat for chat in chats if chat.conflicts]
        waiting = asyncio.create_task(reached(loser, loser.head.seq + 100))
        await asyncio.sleep(0)
        for client in (one, other):
            await client.aclose()
        with pytest.raises(ClientClosed):
            async with asyncio.timeout(GUARD_S):
                await waiting


WRITER = """
import asyncio, sys
from tellback_client import connect

async def main(url, outbox_path):
    async with connect(url, outbox_path=outbox_path, connect_timeout_s=0) as client:
        await client.wait_connected(10)
        chat = await client.open("character:Alice/First meeting", create=True)
        await chat.append({"mes": "acknowledged"})
        print("ready", flush=True)
        sys.stdin.readline()
        writes = [asyncio.create_task(chat.append({"mes": f"while away {n}"})) for n in range(5)]
        while (chat.pending, chat.status) != (5, "offline"):
            await asyncio.sleep(0.01)
        print("offline", flush=True)
        await asyncio.gather(*writes)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_r45_the_outbox_file_survives_the_client_process(tellback_server: ServerProcess, tmp_path: Path) -> None:
    outbox_path = tmp_path / "outbox.jsonl"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITER, tellback_server.url, str(outbox_path),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    tellback_server.kill()
    process.stdin.write(b"go\n")
    await process.stdin.drain()
    assert await process.stdout.readline() == b"offline\n"
    await until(lambda: outbox_path.read_bytes().count(b"while away") == 5)
    process.send_signal(signal.SIGKILL)
    await process.wait()
    process.stdin.close()
    await asyncio.to_thread(tellback_server.restart)

    for _ in range(2):
        # The second time there is nothing left to send.
        async with connect(tellback_server.url, outbox_path=outbox_path) as client:
            await client.saved()
            chat = await client.open(CHAT)
            assert [message["mes"] for message in chat.messages] == [
                "acknowledged", *(f"while away {number}" for number in range(5))
            ]
            assert chat.pending == 0
            await chat.append({"mes": "more"})
            await chat.delete(chat.messages[-1]["id"])


async def test_r05_an_edit_by_another_program_reaches_the_open_tab(tellback_server: ServerProcess) -> None:
    async with connect(tellback_server.url) as client, connect(tellback_server.url) as other:
        chat = await client.open(CHAT, create=True)
        events = chat.events()
        await chat.append({"mes": "hi"})
        path = tellback_server.data / "default-user" / "chats" / "Alice" / "First meeting.jsonl"
        await until(path.exists)
        await asyncio.sleep(0.5)
        with path.open("a", encoding="utf-8") as file:
            file.write('{"name":"another program","mes":"outside"}\n')
        await other.open(CHAT)

        replaced = [event async for event in first_of(events, Replaced)]

        assert replaced[0].version.epoch == 2
        assert [message["mes"] for message in chat.messages] == ["hi", "outside"]
        await chat.append({"mes": "after"})
        assert len(chat.messages) == 3


async def first_of(events: Any, kind: type[Any]) -> Any:
    async with asyncio.timeout(GUARD_S):
        async for event in events:
            if isinstance(event, kind):
                yield event
                return


def test_the_package_loads_nothing_before_it_is_used() -> None:
    code = (
        "import sys, tellback_client.pytest_plugin;"
        "heavy = {'websockets', 'anyio', 'msgspec', 'tellback_protocol', 'tellback_server'} & set(sys.modules);"
        "import tellback_client as package;"
        "missing = [name for name in package.__all__ if not hasattr(package, name)];"
        "print(sorted(heavy), missing, 'tellback_server' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[] [] False\n"


async def test_thousands_of_writes_can_wait_at_once(tellback_server: ServerProcess) -> None:
    async with connect(tellback_server.url) as client:
        chat = await client.open(CHAT, create=True)

        await asyncio.gather(*[chat.append({"number": number}) for number in range(3000)])

        assert [message["number"] for message in chat.messages] == list(range(3000))


async def test_closing_flushes(tellback_server: ServerProcess) -> None:
    async with connect(tellback_server.url) as client:
        chat = await client.open(CHAT, create=True)
        writes = [asyncio.create_task(chat.append({"mes": str(number)})) for number in range(20)]
        await asyncio.sleep(0)
    assert all(isinstance(result, WriteResult) for result in await asyncio.gather(*writes))
    async with connect(tellback_server.url) as client:
        assert len((await client.open(CHAT)).messages) == 20


async def test_a_chat_that_is_closed_and_opened_again_at_once_is_open(tellback_server: ServerProcess) -> None:
    async with connect(tellback_server.url) as one, connect(tellback_server.url) as other:
        theirs = await other.open(CHAT, create=True)
        mine = await one.open(CHAT)
        for number in range(5):
            closing = asyncio.create_task(one.close_chat(mine))
            await asyncio.sleep(0)
            mine = await one.open(CHAT)
            await closing
            await theirs.append({"mes": f"after {number}"})
            await until(lambda now=mine, count=number + 1: len(now.messages) == count)


LOOP_THAT_ENDS = """
import asyncio, sys
from tellback_client import connect

async def closing(client, chat):
    try:
        await asyncio.sleep(60)
    finally:
        await client.close_chat(chat)

async def main():
    client = connect(sys.argv[1])
    await client.start()
    chat = await client.open("character:Alice/First meeting", create=True)
    asyncio.create_task(closing(client, chat))
    await asyncio.sleep(0)

asyncio.run(main())
"""


async def test_a_loop_ends_although_a_chat_is_closed_while_everything_is_cancelled(
    tellback_server: ServerProcess,
) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", LOOP_THAT_ENDS, tellback_server.url)
    async with asyncio.timeout(GUARD_S):
        assert await process.wait() == 0

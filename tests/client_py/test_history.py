"""Cipher's provider API, on the real server."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from tellback_client import ConnectionLost, HistoryProvider, RefusedError, ServerProcess, connect


def contents(messages: list[dict[str, Any]]) -> list[str]:
    return [message["content"] for message in messages]


async def test_messages_come_back_in_order_and_limited(tellback_server: ServerProcess) -> None:
    provider = HistoryProvider(tellback_server.url)
    assert await provider.get_history("one") == []
    ids = [await provider.save_message("one", {"role": "user", "content": str(number)}) for number in range(5)]
    await provider.save_message("other", {"role": "user", "content": "other"})

    messages = await provider.get_history("one")
    assert contents(messages) == list("01234")
    assert [message["id"] for message in messages] == ids
    assert contents(await provider.get_history("one", 2)) == ["3", "4"]
    assert contents(await provider.get_history("one", 99)) == list("01234")
    assert await provider.get_history("one", 0) == []
    for wrong in (-1, True, 1.5, "2"):
        with pytest.raises(ValueError):
            await provider.get_history("one", wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        await provider.save_message("one", "text")  # type: ignore[arg-type]

    await provider.clear_history("one")
    await provider.clear_history("never was")
    await provider.disconnect()
    await provider.disconnect()

    assert await provider.get_history("one") == []
    assert len(await provider.get_history("other")) == 1
    await provider.disconnect()


async def test_what_is_handed_out_is_the_callers(tellback_server: ServerProcess) -> None:
    provider = HistoryProvider(tellback_server.url)
    message: dict[str, Any] = {"role": "tool", "content": "x", "tool": {"arguments": [1, None, 2.5]}}
    await provider.save_message("one", message)
    (got,) = await provider.get_history("one")
    assert {key: value for key, value in got.items() if key != "id"} == message
    got["tool"]["arguments"].clear()

    assert (await provider.get_history("one"))[0]["tool"] == {"arguments": [1, None, 2.5]}
    await provider.disconnect()


async def test_reading_makes_no_chat(tellback_server: ServerProcess) -> None:
    provider = HistoryProvider(tellback_server.url)
    await provider.get_history("one")
    await provider.clear_history("one")
    await provider.disconnect()
    tellback_server.stop()

    assert not list(tellback_server.data.rglob("one*"))


@pytest.mark.parametrize("session_id", ["", "a/b", "../x", "a\x00b", "x" * 300, "a.luker-state.b"])
async def test_an_illegal_session_id_is_an_error(tellback_server: ServerProcess, session_id: str) -> None:
    provider = HistoryProvider(tellback_server.url)
    with pytest.raises(RefusedError):
        await provider.save_message(session_id, {"content": "x"})
    await provider.disconnect()
    tellback_server.stop()
    assert not list(tellback_server.data.rglob("*.jsonl"))


async def test_r25_an_unreachable_server_is_an_error_and_not_an_empty_history(tellback_server: ServerProcess) -> None:
    provider = HistoryProvider(tellback_server.url, connect_timeout_s=2, flush_timeout_s=0.5)
    await provider.save_message("one", {"content": "a"})
    tellback_server.kill()

    with pytest.raises(ConnectionLost):
        await provider.get_history("one")
    await provider.disconnect()
    with pytest.raises(ConnectionLost):
        await provider.get_history("one")


async def test_a_message_is_saved_once_through_kill_and_restart(tellback_server: ServerProcess) -> None:
    provider = HistoryProvider(tellback_server.url)
    await provider.save_message("one", {"content": "first"})
    saving = [asyncio.create_task(provider.save_message("one", {"content": "same"})) for _ in range(20)]
    await asyncio.sleep(0.005)
    tellback_server.kill()
    await asyncio.to_thread(tellback_server.restart)
    ids = await asyncio.gather(*saving)

    history = await provider.get_history("one")
    assert contents(history) == ["first", *["same"] * 20]
    assert {message["id"] for message in history[1:]} == set(ids)
    await provider.disconnect()


async def test_a_corrupt_history_is_an_error_and_not_an_empty_one(tellback_server: ServerProcess) -> None:
    provider = HistoryProvider(tellback_server.url)
    await provider.save_message("one", {"content": "a"})
    await provider.disconnect()
    tellback_server.stop()
    (file,) = tellback_server.data.rglob("one.jsonl")
    file.write_bytes(file.read_bytes() + b'{"content": "torn\n')
    await asyncio.to_thread(tellback_server.restart)

    assert contents(await provider.get_history("one")) == ["a"]
    with pytest.raises(RefusedError, match="read-only"):
        await provider.save_message("one", {"content": "b"})
    await provider.disconnect()


async def test_a_session_in_the_trash_is_an_error_and_not_an_empty_one(tellback_server: ServerProcess) -> None:
    provider = HistoryProvider(tellback_server.url)
    await provider.save_message("one", {"content": "a"})
    async with connect(tellback_server.url) as client:
        chat = await client.open("character:history/one")
        chat_id = chat.chat_id
        await chat.remove()
        for _ in range(2):
            for call in (provider.get_history("one"), provider.save_message("one", {}), provider.clear_history("one")):
                with pytest.raises(RefusedError, match="deleted"):
                    await call
        await client.restore_chat(chat_id)
    assert contents(await provider.get_history("one")) == ["a"]
    await provider.disconnect()


async def test_reading_and_saving_a_new_session_at_once(tellback_server: ServerProcess) -> None:
    provider = HistoryProvider(tellback_server.url)
    for number in range(5):
        empty, _, _ = await asyncio.gather(
            provider.get_history(f"new {number}"), provider.save_message(f"new {number}", {"content": "a"}),
            provider.clear_history(f"new {number + 100}"),
        )
        assert len(empty) <= 1
        assert contents(await provider.get_history(f"new {number}")) == ["a"]
    await provider.disconnect()


async def test_more_sessions_than_a_connection_may_have_open(
    tellback_server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tellback_client.history.SESSIONS_OPEN_MAX", 4)
    provider = HistoryProvider(tellback_server.url)
    await asyncio.gather(*(
        provider.save_message(f"s{number % 30}", {"content": str(number)}) for number in range(60)
    ))
    assert len(provider._open) <= 4
    for number in range(30):
        assert contents(await provider.get_history(f"s{number}")) == [str(number), str(number + 30)]
    await provider.disconnect()


async def test_a_saved_message_is_seen_and_cleared_by_everybody_at_once(tellback_server: ServerProcess) -> None:
    one, other = HistoryProvider(tellback_server.url), HistoryProvider(tellback_server.url)
    await other.save_message("one", {"content": "warm"})
    await one.get_history("one")
    for number in range(50):
        await one.save_message("one", {"content": str(number)})
        assert contents(await other.get_history("one", 1)) == [str(number)]
    await other.clear_history("one")
    assert await one.get_history("one") == []
    await asyncio.gather(*(
        call for number in range(20)
        for call in (one.save_message("one", {"content": str(number)}), other.save_message("one", {"content": "x"}))
    ))
    await one.clear_history("one")
    assert await other.get_history("one") == []
    await one.disconnect()
    await other.disconnect()


WRITER = """
import asyncio, sys
from tellback_client import HistoryProvider
async def main():
    provider = HistoryProvider(sys.argv[1])
    for number in range(100):
        await provider.save_message("shared", {"role": "user", "content": f"{sys.argv[2]} {number}"})
    await provider.disconnect()
asyncio.run(main())
"""


async def test_processes_share_a_session_and_lose_nothing(tellback_server: ServerProcess) -> None:
    writers = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, tellback_server.url, name)
        for name in ("a", "b", "c")
    ]
    assert await asyncio.gather(*(writer.wait() for writer in writers)) == [0, 0, 0]

    provider = HistoryProvider(tellback_server.url)
    saved = contents(await provider.get_history("shared"))
    await provider.disconnect()
    assert len(saved) == 300
    for name in ("a", "b", "c"):
        assert [text for text in saved if text.startswith(name)] == [f"{name} {number}" for number in range(100)]


async def test_a_session_is_an_ordinary_chat(tellback_server: ServerProcess) -> None:
    provider = HistoryProvider(tellback_server.url)
    await provider.save_message("one", {"role": "user", "content": "hi"})
    async with connect(tellback_server.url) as client:
        chat = await client.open("character:history/one")
        await chat.append({"role": "assistant", "content": "hello"})
        assert contents(await provider.get_history("one")) == ["hi", "hello"]
    await provider.disconnect()

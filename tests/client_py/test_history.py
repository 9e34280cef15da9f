"""Cipher's provider API, on the real server."""

from __future__ import annotations

import asyncio

import pytest

from tellback_client import Client, ConnectionLost, HistoryProvider, ServerProcess, connect


async def test_messages_come_back_in_order_and_limited(tellback_server: ServerProcess) -> None:
    provider = HistoryProvider(tellback_server.url)
    assert await provider.get_history("one") == []
    for number in range(5):
        await provider.save_message("one", {"role": "user", "content": str(number)})
    await provider.save_message("other", {"role": "user", "content": "other"})

    assert [message["content"] for message in await provider.get_history("one")] == list("01234")
    assert [message["content"] for message in await provider.get_history("one", 2)] == ["3", "4"]
    assert await provider.get_history("one", 0) == []

    await provider.clear_history("one")
    await provider.clear_history("never was")
    await provider.disconnect()

    assert await provider.get_history("one") == []
    assert len(await provider.get_history("other")) == 1
    await provider.disconnect()


async def test_reading_makes_no_chat(tellback_server: ServerProcess) -> None:
    provider = HistoryProvider(tellback_server.url)
    await provider.get_history("one")
    await provider.disconnect()
    tellback_server.stop()

    assert not list(tellback_server.data.rglob("one*"))


async def test_r25_an_unreachable_server_is_an_error_and_not_an_empty_history(tellback_server: ServerProcess) -> None:
    tellback_server.stop()
    provider = HistoryProvider(tellback_server.url, connect_timeout_s=0.2)

    with pytest.raises(ConnectionLost):
        await provider.get_history("one")


async def lose_connection(client: Client) -> None:
    assert client._connection is not None
    assert client._connection._socket is not None
    client._connection._socket.transport.abort()


async def test_a_long_chat_as_it_was_is_read_in_parts_also_across_a_lost_connection(
    tellback_server: ServerProcess,
) -> None:
    """[H4]: what came of the parts before the connection was lost is not mixed with what comes after."""
    async with connect(tellback_server.url) as client:
        chat = await client.open("group:Long", create=True)
        result = await chat.append([{"mes": f"{number} " + "y" * 2000} for number in range(300)])
        await chat.delete(result.message_ids[::2])
        for lose in (False, True):
            asking = asyncio.create_task(chat.at(result.version.seq))
            if lose:
                await asyncio.sleep(0.005)
                await lose_connection(client)
            past = await asking
            assert list(past.messages) == result.message_ids
            assert past.value(result.message_ids[7])["mes"].startswith("7 ")

"""The raw client against a server that is not ours, since every other test leans on it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.support.raw_client import RawClient


@pytest.fixture
async def url() -> AsyncIterator[str]:
    """A server that sends what it is asked to: a list of frames, or {"close": code}."""

    async def answer(connection: ServerConnection) -> None:
        async for message in connection:
            wish = json.loads(message)
            if isinstance(wish, list):
                for frame in wish:
                    await connection.send(json.dumps(frame))
            else:
                await connection.close(wish["close"], "as asked")

    async with serve(answer, "127.0.0.1", 0, subprotocols=[Subprotocol("tellback.v1")]) as server:
        yield f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/"


async def test_what_was_passed_over_comes_later_in_its_order(url: str) -> None:
    a, b, c, d = {"type": "a"}, {"type": "ack", "id": 1}, {"type": "c"}, {"type": "ack", "id": 2}
    async with await RawClient.connect(url) as client:
        await client.send([a, b, c, d])
        assert await client.receive_until(id=2) == d
        assert await client.receive_until(type="c") == c
        assert await client.receive() == a
        assert await client.receive_until(type="ack", id=1) == b
        await client.expect_silence(0.02)


async def test_a_frame_that_does_not_come_is_a_timeout_that_says_what_came(url: str) -> None:
    async with await RawClient.connect(url) as client:
        await client.send([{"type": "error", "id": 7}])
        with pytest.raises(TimeoutError, match="'error', 7"):
            await client.receive_until(type="ack", timeout_s=0.05)
        with pytest.raises(AssertionError, match="silence"):
            await client.expect_silence(0.02)


async def test_the_servers_close_is_seen_with_code_and_reason(url: str) -> None:
    client = await RawClient.connect(url)
    await client.send([{"type": "last"}])
    await client.send({"close": 4501})
    assert await client.wait_closed() == 4501
    assert client.close_reason == "as asked"
    assert await client.receive() == {"type": "last"}
    with pytest.raises(ConnectionClosed):
        await client.receive()

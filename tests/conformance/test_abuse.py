"""Hostile handshakes and frames over real sockets (RELIABILITY's abuse matrix, groups handshake and RFC 6455).

The cases are data. In both files a text is latin-1, one character a byte, and [x, n] stands for n times x.

- handshake.jsonl: `request`, and the `status` of the answer. The server runs as without configured users.
- frames.jsonl: `frames` after a handshake, and the close `code` of the server; null: the connection stays open.
  `delivered` messages come back as echoes before that. The message limit is 8192 bytes.

For each: the answer comes within a second, nobody logs a traceback, and another connection goes on as if nothing
had happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tellback_server.gateway import Gateway
from tellback_server.http import FrontDoor, HttpResponse
from tellback_server.websocket import TransportLimits
from tests.support.echo import echo_gateway
from tests.support.raw_client import RawClient
from tests.support.waiting import until
from tests.support.websocket_frames import CLOSE, MASK, TEXT, client_frame, handshake, server_frames

ANSWER_TIMEOUT_S = 8.0
"""Less than the ten seconds after which the server would have closed anyway."""
CANARY = "canary-token"


def cases(name: str) -> list[Any]:
    """The lines of a case file as pytest parameters."""
    lines = Path(__file__).with_name(name).read_text().splitlines()
    return [pytest.param(case, id=case["name"]) for case in map(json.loads, lines)]


@pytest.fixture(params=[True, False], ids=["fast", "library"])
async def gateway(request: pytest.FixtureRequest) -> AsyncIterator[Gateway]:
    """An echo server as it stands without configured users, with one more origin."""
    door = FrontDoor.configured(
        extra_origins=["https://app.example.com"],
        loopback_only=True,
        routes={"/healthz": lambda: HttpResponse(200, b"ok\n")},
    )
    limits = TransportLimits(close_timeout_s=0.5)
    async with echo_gateway(front_door=door, limits=limits, fast_path=request.param) as running:
        yield running


@pytest.fixture
async def bystander(gateway: Gateway) -> AsyncIterator[RawClient]:
    """Another tab. It is there before the abuse and must be served after it."""
    host, port = gateway.addresses[0]
    async with await RawClient.connect(f"ws://{host}:{port}/ws") as client:
        yield client
        await client.send({"still": "here"})
        assert await client.receive(ANSWER_TIMEOUT_S) == {"still": "here"}


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No traceback, no error and no secret in any log, ours or asyncio's."""
    with capture_logs() as logs:
        yield
    assert [entry for entry in logs if entry["log_level"] == "error" or "exc_info" in entry] == []
    assert [record for record in caplog.records if record.levelno >= logging.WARNING or record.exc_info] == []
    assert CANARY not in repr(logs)
    assert all(
        len(value) <= 256 and value.isprintable() for entry in logs for value in entry.values() if type(value) is str
    )


async def answer_to(port: int, request: bytes) -> bytes:
    """Send `request`; return what comes until the server ends its half, or a handshake is accepted."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            writer.write(request)
            # A server that has refused already may reset what it will not read.
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            return head if head.startswith(b"HTTP/1.1 101 ") else head + await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize("case", cases("handshake.jsonl"))
async def test_a_hostile_handshake_gets_a_clean_answer(
    case: dict[str, Any], gateway: Gateway, bystander: RawClient
) -> None:
    port = gateway.addresses[0][1]
    parts = [part if isinstance(part, str) else part[0] * part[1] for part in case["request"]]
    answer = await answer_to(port, "".join(parts).replace("{port}", str(port)).encode("latin-1"))
    status_line, _, rest = answer.partition(b"\r\n")
    assert status_line.split(b" ")[:2] == [b"HTTP/1.1", str(case["status"]).encode()]
    if case["status"] != 101:
        assert b"\r\nConnection: close\r\n" in answer
        assert b"HTTP/1.1" not in rest.replace(b"needs HTTP/1.1", b""), "more than one answer"
        assert b"Traceback" not in answer
        assert (b"\r\nUpgrade: websocket\r\n" in answer) == (case["status"] == 426)
        assert CANARY.encode() not in answer


def frame_bytes(spec: Any) -> bytes:
    """One entry of `frames` as bytes."""
    if isinstance(spec, list):
        return frame_bytes(spec[0]) * int(spec[1])
    fields = dict(spec)
    opcode, payload = fields.pop("opcode"), fields.pop("payload").encode("latin-1")
    mask = MASK if fields.pop("masked", True) else None
    return client_frame(opcode, payload, mask=mask, **fields)


@pytest.mark.parametrize("case", cases("frames.jsonl"))
async def test_hostile_frames_get_a_defined_close(case: dict[str, Any], gateway: Gateway, bystander: RawClient) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.addresses[0][1])
    stream = b"".join(map(frame_bytes, case["frames"]))
    if case["code"] is None:
        # Proof that the connection stays open: it still answers, and then closes as asked.
        stream += client_frame(TEXT, b"end") + client_frame(CLOSE, b"\x03\xe8")
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            writer.write(handshake() + stream)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            await reader.readuntil(b"\r\n\r\n")
            sent = server_frames(await reader.read())
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    opcode, payload = sent[-1]
    assert opcode == CLOSE
    assert [opcode for opcode, _ in sent].count(CLOSE) == 1
    echoes = [payload for opcode, payload in sent if opcode < CLOSE]
    code = int.from_bytes(payload[:2], "big") if payload else 1005
    if case["code"] is None:
        assert code == 1000
        assert echoes.pop() == b"end"
    else:
        assert code == case["code"]
    assert len(echoes) == case["delivered"]


async def test_hundreds_of_half_open_connections_harm_nobody(gateway: Gateway, bystander: RawClient) -> None:
    port = gateway.addresses[0][1]
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(300)]
    for _, writer in opened[::2]:
        writer.write(b"GET /ws HTTP/1.1\r\nHost:")
    await bystander.send({"in": "between"})
    assert await bystander.receive(ANSWER_TIMEOUT_S) == {"in": "between"}
    for _, writer in opened:
        writer.transport.abort()
    await until(lambda: gateway.connection_count <= 1)


async def test_a_message_that_comes_byte_by_byte_is_ended_with_4408() -> None:
    limits = TransportLimits(assembly_timeout_s=0.1)
    async with echo_gateway(limits=limits) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.addresses[0][1])
        writer.write(handshake())
        await reader.readuntil(b"\r\n\r\n")
        for byte in client_frame(TEXT, b"x" * 100)[:30]:
            writer.write(bytes((byte,)))
            await asyncio.sleep(0.01)
        [(opcode, payload)] = server_frames(await asyncio.wait_for(reader.read(), ANSWER_TIMEOUT_S))
        assert (opcode, payload[:2]) == (CLOSE, (4408).to_bytes(2, "big"))
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

"""The gateway on real sockets, under asyncio and uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from structlog.testing import capture_logs

from tellback_server import gateway as gateway_module
from tellback_server.gateway import REFUSALS_MAX, Gateway
from tellback_server.websocket import TransportLimits
from tests.support.echo import EchoHandler, echo_gateway
from tests.support.raw_client import RawClient
from tests.support.waiting import GUARD_S, until

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine on one kind of loop, with asyncio's debug checks on."""
    return lambda coroutine: request.param(coroutine, debug=True)


def url(gateway: Gateway) -> str:
    """Where the first socket of a gateway is."""
    host, port = gateway.addresses[0]
    return f"ws://[{host}]:{port}/ws" if ":" in host else f"ws://{host}:{port}/ws"


async def status_of(gateway: Gateway) -> int:
    """Connect without a word and read the status of what is answered."""
    reader, writer = await asyncio.open_connection(*gateway.addresses[0])
    try:
        line = await asyncio.wait_for(reader.readline(), GUARD_S)
        await reader.read()
        return int(line.split(b" ")[1])
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def test_messages_of_every_size_come_back_in_order(run: Run) -> None:
    async def scenario() -> None:
        for fast_path in (True, False):
            async with echo_gateway(fast_path=fast_path) as gateway, await RawClient.connect(url(gateway)) as client:
                assert client.connection.subprotocol == "tellback.v1"
                frames = [
                    {"n": number, "text": "ü" * size} for number, size in enumerate([0, 50, 200, 70_000, 2_000_000])
                ]
                for frame in frames:
                    await client.send(frame)
                assert [await client.receive() for _ in frames] == frames

    run(scenario())


def test_a_peer_that_reads_slowly_holds_up_itself_and_nobody_else(run: Run) -> None:
    async def scenario() -> None:
        async with echo_gateway() as gateway, await RawClient.connect(url(gateway)) as other:
            slow = await RawClient.connect(url(gateway))
            slow.connection.transport.pause_reading()
            sending = asyncio.create_task(flood(slow))
            await until(lambda: any(connection.write_paused for connection in gateway.connections))
            await asyncio.sleep(0.1)
            [paused] = [connection for connection in gateway.connections if connection.write_paused]
            buffered = paused.write_buffer_bytes
            assert buffered < 4 * 1024 * 1024
            await asyncio.sleep(0.1)
            assert paused.write_buffer_bytes == buffered  # It is not read from either.
            await other.send({"a": 1})
            assert await other.receive() == {"a": 1}
            slow.connection.transport.resume_reading()
            for number in range(100):
                assert (await slow.receive())["n"] == number
            await sending
            await slow.close()

    async def flood(client: RawClient) -> None:
        for number in range(100):
            await client.send({"n": number, "text": "x" * 100_000})

    run(scenario())


def test_closing_all_tells_everybody_and_waits(run: Run) -> None:
    async def scenario() -> None:
        async with echo_gateway() as gateway:
            clients = [await RawClient.connect(url(gateway)) for _ in range(5)]
            silent = [await asyncio.open_connection(*gateway.addresses[0]) for _ in range(2)]
            await until(lambda: gateway.connection_count == 7)
            gateway.stop_accepting()
            assert gateway.addresses == []
            await gateway.close_all(1001, "the server stops", GUARD_S)
            assert gateway.connection_count == 0
            for client in clients:
                assert await client.wait_closed() == 1001
                assert client.close_reason == "the server stops"
            for _, writer in silent:
                writer.close()

    run(scenario())


def test_closing_all_without_patience_cuts_even_callers_that_were_just_accepted(run: Run) -> None:
    async def scenario() -> None:
        async with echo_gateway() as gateway:
            callers = [await asyncio.open_connection(*gateway.addresses[0]) for _ in range(5)]
            await asyncio.sleep(0)
            await gateway.close_all(1001, "", 0)
            gateway.stop_accepting()
            for _, writer in callers:
                writer.close()

    run(scenario())


def test_closing_all_cuts_who_does_not_answer(run: Run) -> None:
    async def scenario() -> None:
        async with echo_gateway() as gateway:
            client = await RawClient.connect(url(gateway))
            client.connection.transport.pause_reading()
            await gateway.close_all(1001, "", 0.05)
            assert gateway.connection_count == 0
            client.abort()

    run(scenario())


def test_over_the_cap_callers_are_told_503_and_then_not_accepted_until_one_leaves(run: Run) -> None:
    async def scenario() -> None:
        async with echo_gateway(connections_max=2) as gateway:
            first = await RawClient.connect(url(gateway))
            second = await RawClient.connect(url(gateway))
            assert await status_of(gateway) == 503
            # Callers that take their 503 and do not hang up fill the room for refusals.
            stubborn = [await asyncio.open_connection(*gateway.addresses[0]) for _ in range(REFUSALS_MAX + 10)]
            await until(lambda: gateway.connection_count == 2 + REFUSALS_MAX)
            await asyncio.sleep(0.05)
            assert gateway.connection_count == 2 + REFUSALS_MAX
            await first.send({"still": "served"})
            assert await first.receive() == {"still": "served"}
            for _, writer in stubborn:
                writer.transport.abort()
            await until(lambda: gateway.connection_count == 2)
            await first.close()
            await until(lambda: gateway.connection_count == 1)
            async with await RawClient.connect(url(gateway)):
                assert gateway.connection_count == 2
            await second.close()

    run(scenario())


def test_one_address_cannot_take_the_whole_server(run: Run) -> None:
    async def scenario() -> None:
        async with echo_gateway(connections_per_address_max=1) as gateway:
            port = gateway.addresses[0][1]
            async with await RawClient.connect(url(gateway)):
                assert await status_of(gateway) == 503
                reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
                writer.write(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await reader.readline()).startswith(b"HTTP/1.1 404 ")
                writer.close()
            await until(lambda: gateway.connection_count == 0)
            async with await RawClient.connect(url(gateway)):
                assert gateway.connection_count == 1

    run(scenario())


def test_the_cap_leaves_descriptors_for_the_files(run: Run) -> None:
    async def scenario() -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        gateway = Gateway(handler_factory=EchoHandler, connections_max=10**9)
        await gateway.start()
        assert gateway.connections_max == soft - gateway_module.FILES_RESERVED
        gateway.stop_accepting()

    run(scenario())


def test_a_name_with_two_addresses_gets_one_port(run: Run) -> None:
    async def scenario() -> None:
        async with echo_gateway(host="localhost") as gateway:
            assert len({port for _, port in gateway.addresses}) == 1
            for host, port in gateway.addresses:
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await reader.readline()).startswith(b"HTTP/1.1 404 ")
                writer.close()

    run(scenario())


def test_a_port_that_is_taken_is_an_error_and_leaves_nothing_behind(run: Run) -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            gateway = Gateway(handler_factory=EchoHandler, port=taken.getsockname()[1])
            with pytest.raises(OSError, match="in use"):
                await gateway.start()
            assert gateway.addresses == []

    run(scenario())


def test_a_port_can_be_bound_again_right_after_a_stop(run: Run) -> None:
    async def scenario() -> None:
        async with echo_gateway() as gateway:
            port = gateway.addresses[0][1]
            client = await RawClient.connect(url(gateway))
            gateway.stop_accepting()
            await gateway.close_all(1001, "", 1)
            second = Gateway(handler_factory=EchoHandler, port=port)
            await second.start()
            second.stop_accepting()
            await client.close()

    run(scenario())


def test_a_caller_that_resets_at_once_leaves_no_trace(run: Run) -> None:
    async def scenario() -> None:
        async with echo_gateway(limits=TransportLimits()) as gateway:
            with capture_logs() as logs:
                for _ in range(50):
                    with socket.create_connection(gateway.addresses[0]) as caller:
                        # Closing with linger 0 sends RST instead of FIN.
                        caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                await asyncio.sleep(0.05)
                await until(lambda: gateway.connection_count == 0)
            assert logs == []

    run(scenario())


OUT_OF_DESCRIPTORS = """
import asyncio, os, resource, sys, uvloop
from tests.support.echo import echo_gateway
from tests.support.waiting import GUARD_S, until

async def main():
    async with echo_gateway() as gateway:
        # Lowered only now, as an administrator does with prlimit: the cap does not know.
        open_now = len(os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 10, open_now + 10))
        print(gateway.addresses[0][1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        print("END", flush=True)

{"asyncio": asyncio.run, "uvloop": uvloop.run}[sys.argv[1]](main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_running_out_of_descriptors_is_one_log_line_and_harms_nobody(loop: str) -> None:
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", OUT_OF_DESCRIPTORS, loop),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert server.stdin is not None
    assert server.stdout is not None
    port = int(await server.stdout.readline())
    client = await RawClient.connect(f"ws://127.0.0.1:{port}/ws")
    callers = [await asyncio.open_connection("127.0.0.1", port) for _ in range(40)]
    await asyncio.sleep(1.2)  # Two pauses of accepting.
    await client.send({"still": "served"})
    assert await client.receive() == {"still": "served"}
    for _, writer in callers:
        writer.transport.abort()
    async with await RawClient.connect(f"ws://127.0.0.1:{port}/ws") as late:
        await late.send({"a": 1})
        assert await late.receive() == {"a": 1}
    await client.close()
    server.stdin.write(b"\n")
    output = (await asyncio.wait_for(server.stdout.read(), GUARD_S)).decode()
    assert await server.wait() == 0
    lines = [line for line in output.splitlines() if "request-refused" not in line]
    assert len(lines) == 2, output
    assert "accept-failed" in lines[0]
    assert "EMFILE" in lines[0]

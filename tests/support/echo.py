"""An echo server on the real gateway: the smallest handler there is, for conformance, abuse and benchmark runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tellback_server.gateway import Gateway
from tellback_server.http import FrontDoor
from tellback_server.websocket import PeerInfo, TransportLimits, WebSocketConnection

ECHO_LIMITS = TransportLimits(hello_bytes_max=8 * 1024 * 1024)


class EchoHandler:
    """Sends back what it gets and remembers how the connection ended."""

    def __init__(self, peer: PeerInfo) -> None:
        self.peer = peer
        self.closings: list[tuple[int, str]] = []

    def opened(self, connection: WebSocketConnection) -> None:
        """Nothing to say first."""

    def text_received(self, connection: WebSocketConnection, data: bytes) -> None:
        """Echo a text."""
        connection.send_text(data)

    def binary_received(self, connection: WebSocketConnection, data: bytes) -> None:
        """Echo binary data; the product itself sends none, so the frame is put together here."""
        connection.send_frame(binary_frame(data))

    def read_ended(self, connection: WebSocketConnection) -> None:
        pass

    def paused(self, connection: WebSocketConnection) -> None:
        """What is not read by the peer is not to pile up here."""
        connection.pause_reading()

    def writable(self, connection: WebSocketConnection) -> None:
        """The peer reads again."""
        connection.resume_reading()

    def closed(self, connection: WebSocketConnection, code: int, reason: str) -> None:
        """Remember."""
        self.closings.append((code, reason))


def binary_frame(payload: bytes) -> bytes:
    """A server's binary frame (RFC 6455 section 5.2)."""
    length = len(payload)
    if length < 126:
        return bytes((0x82, length)) + payload
    if length < 65536:
        return b"\x82\x7e" + length.to_bytes(2, "big") + payload
    return b"\x82\x7f" + length.to_bytes(8, "big") + payload


@asynccontextmanager
async def echo_gateway(
    *,
    front_door: FrontDoor | None = None,
    limits: TransportLimits = ECHO_LIMITS,
    fast_path: bool = True,
    connections_max: int = 1024,
    connections_per_address_max: int = 1024,
    host: str = "127.0.0.1",
) -> AsyncIterator[Gateway]:
    """A running echo gateway on a free port; its connections are cut at the end."""
    gateway = Gateway(
        handler_factory=EchoHandler,
        host=host,
        front_door=front_door,
        limits=limits,
        fast_path=fast_path,
        connections_max=connections_max,
        connections_per_address_max=connections_per_address_max,
    )
    await gateway.start()
    try:
        yield gateway
    finally:
        gateway.stop_accepting()
        await gateway.close_all(1001, "", 0.2)

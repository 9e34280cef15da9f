"""A WebSocketHandler that writes down what it is told, and a connection on a fake transport to go with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from tellback_server.http import FrontDoor
from tellback_server.websocket import ConnectionSettings, PeerInfo, TransportLimits, WebSocketConnection
from tests.support.fake_transport import FakeTransport
from tests.support.manual_time import ManualTime
from tests.support.websocket_frames import handshake

Event = tuple[str, bytes] | tuple[str, int, str] | tuple[str]


class RecordingHandler:
    """`events` in order: ("opened",), ("text", data), ("binary", data), ("paused",), ("writable",), ("closed", code,
    reason). `on_text` is called after a text was written down."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.on_text: Callable[[WebSocketConnection, bytes], None] = lambda connection, data: None
        self.peer: PeerInfo | None = None

    def opened(self, connection: WebSocketConnection) -> None:
        """Write it down."""
        self.events.append(("opened",))

    def text_received(self, connection: WebSocketConnection, data: bytes) -> None:
        """Write it down."""
        self.events.append(("text", data))
        self.on_text(connection, data)

    def binary_received(self, connection: WebSocketConnection, data: bytes) -> None:
        """Write it down."""
        self.events.append(("binary", data))

    def read_ended(self, connection: WebSocketConnection) -> None:
        pass

    def paused(self, connection: WebSocketConnection) -> None:
        """Write it down."""
        self.events.append(("paused",))

    def writable(self, connection: WebSocketConnection) -> None:
        """Write it down."""
        self.events.append(("writable",))

    def closed(self, connection: WebSocketConnection, code: int, reason: str) -> None:
        """Write it down."""
        self.events.append(("closed", code, reason))

    @property
    def texts(self) -> list[bytes]:
        """The texts alone."""
        return [event[1] for event in self.events if event[0] == "text"]  # type: ignore[misc]


class Wire:
    """A connection, its handler and its transport. The test is the peer: `feed` is what it sends."""

    def __init__(
        self,
        *,
        fast_path: bool = True,
        limits: TransportLimits | None = None,
        front_door: FrontDoor | None = None,
        drains: bool = True,
        upgrade: bool = True,
    ) -> None:
        """With `upgrade` the handshake is done and its answer forgotten."""
        self.handler = RecordingHandler()
        self.lost: list[WebSocketConnection] = []
        settings = ConnectionSettings(
            handler_factory=self._handler_for,
            lost=self.lost.append,
            front_door=front_door or FrontDoor(),
            limits=limits or TransportLimits(hello_bytes_max=64 * 1024),
            fast_path=fast_path,
        )
        loop = asyncio.get_running_loop()
        self.clock = ManualTime(loop)
        """Its timers strike when the test says that time passed."""
        self.connection = WebSocketConnection(cast(asyncio.AbstractEventLoop, self.clock), settings)
        self.transport = FakeTransport(loop, self.connection, drains=drains)
        self.connection.connection_made(self.transport)
        if upgrade:
            self.feed(handshake())
            assert self.transport.sent.startswith(b"HTTP/1.1 101 "), self.transport.sent
            self.transport.written.clear()
            self.transport.drain()
            assert self.handler.events == [("opened",)]
            self.handler.events.clear()

    def _handler_for(self, peer: PeerInfo) -> RecordingHandler:
        self.handler.peer = peer
        return self.handler

    def feed(self, data: bytes) -> None:
        """The peer's bytes arrive in one read; a connection that is gone reads nothing."""
        if not self.transport.closing:
            self.connection.data_received(data)

    def feed_eof(self) -> None:
        """The peer ends its half."""
        if not self.transport.closing and not self.connection.eof_received():
            self.transport.close()

    async def settle(self) -> None:
        """Let everything happen that was put off to the next turns of the loop."""
        for _ in range(3):
            await asyncio.sleep(0)

    async def end(self) -> None:
        """The network goes away, so that no timer outlives the test."""
        self.transport.lose()
        await self.settle()

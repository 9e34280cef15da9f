"""A tab that reads only when it is told to, on a socket with a small receive buffer. Frames are bytes until read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any

from tests.support.server import joined, new_session
from tests.support.waiting import GUARD_S
from tests.support.websocket_frames import CLOSE, PING, TEXT, client_frame, handshake

RECEIVE_BUFFER_BYTES = 64 << 10


class SlowTab:
    """See the module."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.session = new_session()
        self.close_code: int | None = None
        self.pings = 0
        """How often the server asked whether it is there; it never answers."""

    @classmethod
    async def join(cls, url: str, token: str | None = None) -> SlowTab:
        """Connect, say hello, and read until welcome."""
        host, port = url.removeprefix("ws://").split("/")[0].rsplit(":", 1)
        plain = socket.socket(socket.AF_INET)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, (host, int(port)))
        reader, writer = await asyncio.open_connection(sock=plain, limit=16 << 10)
        tab = cls(reader, writer)
        writer.write(handshake(headers={"Host": f"{host}:{port}"}))
        await reader.readuntil(b"\r\n\r\n")
        tab.send({"type": "hello", "protocol": 1, "session": tab.session, "token": token})
        assert (await tab.read())["type"] == "welcome"
        joined.append(tab)
        return tab

    def send(self, frame: dict[str, Any]) -> None:
        """Send one frame; nothing is read."""
        self.writer.write(client_frame(TEXT, json.dumps(frame).encode()))

    async def read(self, timeout_s: float = GUARD_S) -> dict[str, Any]:
        """The next frame. Raises EOFError when the server closed; then `close_code` is set if it said why."""
        async with asyncio.timeout(timeout_s):
            while True:
                first, length = await self._exactly(2)
                if length == 126:
                    length = int.from_bytes(await self._exactly(2), "big")
                elif length == 127:
                    length = int.from_bytes(await self._exactly(8), "big")
                payload = await self._exactly(length)
                if first & 0x0F == TEXT:
                    frame: dict[str, Any] = json.loads(payload)
                    return frame
                if first & 0x0F == CLOSE:
                    self.close_code = int.from_bytes(payload[:2], "big")
                    raise EOFError
                assert first & 0x0F == PING
                self.pings += 1

    async def read_until(self, type: str, timeout_s: float = GUARD_S) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """What came before the first frame of this type, and it."""
        before: list[dict[str, Any]] = []
        while True:
            frame = await self.read(timeout_s)
            if frame["type"] == type:
                return before, frame
            before.append(frame)

    async def _exactly(self, size_bytes: int) -> bytes:
        try:
            return await self.reader.readexactly(size_bytes)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise EOFError from error

    async def close(self) -> None:
        """Cut the connection."""
        self.writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

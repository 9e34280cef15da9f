"""A WebSocket client for tests that speaks JSON text frames and knows nothing of our packages.

Written from DESIGN section 5 alone, so that a mistake in the shared protocol code cannot hide itself.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from types import TracebackType
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin, Subprotocol

from tests.support.waiting import GUARD_S

CLOSE_TIMEOUT_S = 5.0
"""For the other side to answer a close; nothing fails when it does not."""
MESSAGE_BYTES_MAX = 64 * 1024 * 1024


class RawClient:
    """One connection. Frames come out of `receive` and `receive_until` in the order in which they arrived."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        # Frames that receive_until passed over; they come first in the next receive.
        self._kept: deque[dict[str, Any]] = deque()

    @classmethod
    async def connect(
        cls,
        url: str,
        origin: str | None = None,
        *,
        subprotocol: str | None = "tellback.v1",
        headers: dict[str, str] | None = None,
        timeout_s: float = GUARD_S,
    ) -> RawClient:
        """Open a connection. Raises websockets' InvalidStatus when the server refuses the upgrade."""
        connection = await connect(
            url,
            origin=None if origin is None else Origin(origin),
            subprotocols=None if subprotocol is None else [Subprotocol(subprotocol)],
            additional_headers=headers,
            compression=None,
            max_size=MESSAGE_BYTES_MAX,
            open_timeout=timeout_s,
            close_timeout=CLOSE_TIMEOUT_S,
            ping_interval=None,
            proxy=None,
        )
        return cls(connection)

    @property
    def close_code(self) -> int | None:
        """The code the server closed with; None while the connection is open."""
        return self.connection.close_code

    @property
    def close_reason(self) -> str | None:
        """The reason the server closed with; None while the connection is open."""
        return self.connection.close_reason

    async def send(self, frame: object) -> None:
        """Send any JSON value as one text frame."""
        await self.send_raw(json.dumps(frame, ensure_ascii=False, separators=(",", ":")).encode())

    async def send_raw(self, data: bytes) -> None:
        """Send bytes as one text frame, whatever they hold."""
        await self.connection.send(data, text=True)

    async def send_binary(self, data: bytes) -> None:
        """Send one binary frame."""
        await self.connection.send(data)

    async def receive(self, timeout_s: float = GUARD_S) -> dict[str, Any]:
        """Return the next frame.

        Raises:
            TimeoutError: None came in time.
            websockets.exceptions.ConnectionClosed: The server closed; see `close_code`.
        """
        if self._kept:
            return self._kept.popleft()
        return await self._next(timeout_s)

    async def receive_until(
        self,
        *,
        type: str | None = None,
        id: int | str | None = None,
        timeout_s: float = GUARD_S,
        **fields: Any,
    ) -> dict[str, Any]:
        """Return the first frame with this type, id and fields, and keep the others for later in their order.

        Raises:
            TimeoutError: None came in time; the message lists what came instead.
            websockets.exceptions.ConnectionClosed: The server closed first.
        """
        wanted = dict(fields)
        if type is not None:
            wanted["type"] = type
        if id is not None:
            wanted["id"] = id
        for index, frame in enumerate(self._kept):
            if _matches(frame, wanted):
                del self._kept[index]
                return frame
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        while True:
            try:
                frame = await self._next(max(0.0, deadline_s - loop.time()))
            except TimeoutError:
                came = [(frame.get("type"), frame.get("id")) for frame in self._kept]
                raise TimeoutError(
                    f"no frame with {wanted} within {timeout_s} s; (type, id) that came: {came}"
                ) from None
            if _matches(frame, wanted):
                return frame
            self._kept.append(frame)

    async def expect_silence(self, for_s: float = 0.1) -> None:
        """Fail when any frame is kept or arrives within `for_s`."""
        try:
            frame = await self.receive(for_s)
        except TimeoutError:
            return
        raise AssertionError(f"expected silence, got {frame}")

    async def wait_closed(self, timeout_s: float = GUARD_S) -> int:
        """Read and keep frames until the server closes; return the close code."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        while True:
            try:
                self._kept.append(await self._next(max(0.0, deadline_s - loop.time())))
            except ConnectionClosed:
                await asyncio.wait_for(self.connection.wait_closed(), timeout_s)
                assert self.connection.close_code is not None
                return self.connection.close_code

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close with the closing handshake. Idempotent."""
        await self.connection.close(code, reason)

    def abort(self) -> None:
        """Cut the connection as a crashed tab would."""
        self.connection.transport.abort()

    async def __aenter__(self) -> RawClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _next(self, timeout_s: float) -> dict[str, Any]:
        async with asyncio.timeout(timeout_s):
            message = await self.connection.recv(decode=False)
        frame = json.loads(message)
        assert isinstance(frame, dict), f"the server sent JSON that is no object: {message!r:.200}"
        return frame


def _matches(frame: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(name in frame and frame[name] == value for name, value in wanted.items())

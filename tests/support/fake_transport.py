"""A transport without a socket: it keeps what was written and lets a test be the network.

It behaves as asyncio's socket transports do where WebSocketConnection depends on it: writes after the end of the stream
are an error, pause_reading and resume_reading are idempotent, crossing the high-water mark calls pause_writing once,
draining below a quarter of it calls resume_writing once, abort and close call connection_lost soon and once.
"""

from __future__ import annotations

import asyncio


class FakeTransport(asyncio.Transport):
    """One side of a connection. `drains` False: the peer does not read, and what is written piles up."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol, *, drains: bool = True) -> None:
        super().__init__({"peername": ("192.0.2.1", 50000)})
        self._loop = loop
        self._protocol = protocol
        self._drains = drains
        self._high_bytes = 64 * 1024
        self._buffered_bytes = 0
        self._writing_paused = False
        self.written: list[bytes] = []
        """One item for each call of write."""
        self.eof_written = False
        self.reading = True
        self.closing = False
        self.lost = False

    @property
    def sent(self) -> bytes:
        """All bytes that were written."""
        return b"".join(self.written)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes from the connection."""
        assert not self.eof_written, "write after write_eof"
        assert not self.closing, "write after close"
        assert len(data) > 0, "an empty write is a wasted system call"
        self.written.append(bytes(data))
        if not self._drains:
            self._buffered_bytes += len(data)
            if self._buffered_bytes > self._high_bytes and not self._writing_paused:
                self._writing_paused = True
                self._protocol.pause_writing()

    def drain(self) -> None:
        """The peer reads everything."""
        self._buffered_bytes = 0
        if self._writing_paused:
            self._writing_paused = False
            self._protocol.resume_writing()

    def can_write_eof(self) -> bool:
        """TCP can."""
        return True

    def write_eof(self) -> None:
        """The connection ends its half."""
        self.eof_written = True

    def get_write_buffer_size(self) -> int:
        """What the peer has not read."""
        return self._buffered_bytes

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the high-water mark."""
        self._high_bytes = 64 * 1024 if high is None else high

    def pause_reading(self) -> None:
        """Note it; the test must not feed data while `reading` is False."""
        self.reading = False

    def resume_reading(self) -> None:
        """Note it."""
        self.reading = True

    def is_closing(self) -> bool:
        """After close, abort or loss."""
        return self.closing

    def close(self) -> None:
        """Everything written is taken as sent."""
        self.abort()

    def abort(self) -> None:
        """The connection is gone."""
        if not self.closing:
            self.closing = True
            self._loop.call_soon(self.lose)

    def lose(self, exc: Exception | None = None) -> None:
        """The network is gone."""
        if not self.lost:
            self.closing = self.lost = True
            self._protocol.connection_lost(exc)

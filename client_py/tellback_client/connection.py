"""The socket under a link: connect, carry bytes both ways, connect again. It decides nothing that the link can decide.

Rules of this module:
- Reading never waits for anything but the socket (R44).
- Writes are synced to the outbox file before they are sent, in groups, in a thread.
- Close codes 4500-4999, and an HTTP refusal of the upgrade by 401 or 403, end the link; everything else is tried again
  after a while that is drawn at random (heartbeat.Backoff).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Literal

from anyio import create_task_group, move_on_after, to_thread
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Subprotocol

from tellback_protocol.frames import SUBPROTOCOL

from .errors import (
    ForbiddenError,
    OutboxError,
    ProtocolViolation,
    TellbackError,
    UnauthenticatedError,
    closed,
)
from .heartbeat import Backoff
from .link import Link
from .outbox import Journal

CONNECT_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 1.0
FRAME_BYTES_MAX = 64 << 20
"""Of one frame from the server; a user's old chat may hold a message larger than what is accepted today."""

Token = str | Callable[[], Awaitable[str]] | None
"""A token, or a function that fetches a fresh one before each connection."""
ConnectionStatus = Literal["connecting", "connected", "offline", "closed"]


class Connection:
    """Keeps one link connected until it is stopped."""

    def __init__(
        self, url: str, link: Link, token: Token, journal: Journal | None, tell: Callable[[], None],
        proxy: str | Literal[True] | None = True, frame_bytes_max: int = FRAME_BYTES_MAX,
    ) -> None:
        self.url = url
        self.status: ConnectionStatus = "connecting"
        self._link = link
        self._token = token
        self._journal = journal
        self._tell = tell
        """Called after every change of the link; it does not wait."""
        self._proxy = proxy
        self._frame_bytes_max = frame_bytes_max
        self._backoff = Backoff(random.random)
        self._to_send = asyncio.Event()
        self._to_journal = asyncio.Event()
        self._retry_now = asyncio.Event()
        self._socket: ClientConnection | None = None
        """Set while there is a connection."""
        self._stopping = False

    def wake(self) -> None:
        """The link has something to send or to record."""
        self._to_journal.set()
        self._to_send.set()

    def reconnect(self) -> None:
        """Do not wait for the end of the backoff: the network is back."""
        self._retry_now.set()

    async def stop(self) -> None:
        """Close the connection in good order; `run` ends then."""
        self._stopping = True
        self._retry_now.set()
        if self._socket is not None:
            await self._socket.close()

    async def run(self) -> None:
        """Connect again and again. Ends when the link is closed for ever."""
        async with create_task_group() as tasks:
            if self._journal is not None:
                tasks.start_soon(self._record, self._journal)
            while self._link.error is None and not self._stopping:
                wait_s = await self._once()
                if self._link.error is None and not self._stopping:
                    self.status = "offline"
                    self._tell()
                    self._retry_now.clear()
                    with move_on_after(wait_s):
                        await self._retry_now.wait()
                    self.status = "connecting"
                    self._tell()
            self.status = "closed"
            self._tell()
            tasks.cancel_scope.cancel()

    async def _once(self) -> float:
        """One connection, from its attempt to its end. Returns the seconds to wait before the next."""
        try:
            if callable(self._token):
                self._link.token = await self._token()
            async with connect(
                self.url, subprotocols=[Subprotocol(SUBPROTOCOL)], compression=None, ping_interval=None,
                max_size=self._frame_bytes_max, open_timeout=CONNECT_TIMEOUT_S, close_timeout=CLOSE_TIMEOUT_S,
                proxy=self._proxy,
            ) as socket:
                await self._serve(socket)
        except InvalidStatus as error:
            self._refused(error.response.status_code)
        except (InvalidHandshake, OSError, TimeoutError):
            pass
        except InvalidURI as error:
            self._link.fail(ProtocolViolation(str(error)))
        goaway = self._link.goaway
        useful = self._link.useful
        self._link.disconnected()
        if useful:
            self._backoff.worked()
        return self._backoff.next_s() + (goaway.after_ms / 1000 if goaway is not None else 0.0)

    async def _serve(self, socket: ClientConnection) -> None:
        self._link.connected(_now_s())
        self._to_send.set()
        async with create_task_group() as tasks:
            tasks.start_soon(self._send, socket)
            self._socket = socket
            try:
                await self._receive(socket)
            finally:
                self._socket = None
                tasks.cancel_scope.cancel()

    async def _receive(self, socket: ClientConnection) -> None:
        try:
            while True:
                data = await socket.recv(decode=False)
                self._link.received(data, _now_s())
                if self._link.state == "ready":
                    self.status = "connected"
                self._to_send.set()
                self._to_journal.set()
                self._tell()
                if self._link.goaway is not None:
                    return
        except ProtocolViolation:
            socket.transport.abort()
        except ConnectionClosed as error:
            if error.rcvd is not None:
                self._closed(error.rcvd.code, error.rcvd.reason)

    def _closed(self, code: int, reason: str) -> None:
        """The server closed the connection."""
        refusal = self._link.refusal
        error: TellbackError | None = closed(code, refusal.message if refusal is not None else reason)
        if isinstance(error, UnauthenticatedError) and callable(self._token):
            # A fresh one is fetched before the next attempt.
            return
        if error is not None:
            self._link.fail(error)

    def _refused(self, status: int) -> None:
        """The upgrade was refused over HTTP."""
        if status == 401 and not callable(self._token):
            self._link.fail(UnauthenticatedError("unauthenticated", "the server answered the upgrade with 401"))
        elif status == 403:
            self._link.fail(ForbiddenError("forbidden", "the server answered the upgrade with 403"))
        elif status in (404, 426):
            self._link.fail(ProtocolViolation(f"there is no tellback server at {self.url}: HTTP {status}"))

    async def _send(self, socket: ClientConnection) -> None:
        while True:
            self._to_send.clear()
            now_s = _now_s()
            if self._link.is_dead(now_s):
                socket.transport.abort()
                return
            if self._journal is None:
                self._link.journal()
            if self._link.needs_token and callable(self._token):
                self._link.authenticate(await self._token())
            try:
                for frame in self._link.collect(now_s):
                    await socket.send(frame, text=True)
            except ConnectionClosed:
                # What was collected is still in its lane and goes out again (R45).
                return
            # Nobody is told of a write that was refused here.
            self._tell()
            deadline_s = self._link.deadline_s
            with move_on_after(None if deadline_s is None else max(0.0, deadline_s - _now_s())):
                await self._to_send.wait()

    async def _record(self, journal: Journal) -> None:
        """Records to the disk, in groups."""
        while True:
            await self._to_journal.wait()
            self._to_journal.clear()
            records = self._link.journal()
            if not records:
                continue
            try:
                await to_thread.run_sync(journal.write, records)
            except OSError as error:
                # Nothing more may be sent that would not outlive the process.
                self._link.fail(OutboxError(str(journal.path), str(error)))
                self._tell()
                self._retry_now.set()
                return
            self._link.journaled(records)
            self._to_send.set()


def _now_s() -> float:
    return asyncio.get_running_loop().time()

"""The listening sockets and the set of connections. It decides nothing about what frames mean.

Rules this module keeps:

- The number of open connections stays under a cap that leaves file descriptors for the log and the files
  (RLIMIT_NOFILE minus FILES_RESERVED). A connection over a cap is answered 503; when even those answers pile up, nobody
  is accepted until a connection ends, and the kernel's backlog holds the callers.
- Connections are accepted by an own loop and not by the event loop's server, because asyncio's goes on accepting after
  EMFILE and writes thousands of log lines a second (CPython issue 151615; RELIABILITY fact 8). Here a failing accept
  pauses accepting for a while and is logged once a minute.
- `connection_lost` is the only thing that removes a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import socket
from collections import Counter
from typing import Final

import structlog

from tellback_server.http import FrontDoor, refusal
from tellback_server.websocket import ConnectionSettings, HandlerFactory, TransportLimits, WebSocketConnection

log = structlog.get_logger()

FILES_RESERVED: Final = 128
"""Descriptors kept for log segments, chat files, stores and the event loop itself."""

REFUSALS_MAX: Final = 32
"""Connections over the cap that may be open at once while they are told 503."""

BACKLOG: Final = 1024
ACCEPTS_PER_WAKE_UP_MAX: Final = 64
ACCEPT_PAUSE_S: Final = 0.5
"""How long nothing is accepted after the system had no descriptor or memory for a connection."""

ACCEPT_LOG_INTERVAL_S: Final = 60.0

_FULL = refusal(503, "The server is full; try again later.", ("Retry-After", "5"))
_TOO_MANY_FROM_ADDRESS = refusal(503, "There are too many connections from this address.", ("Retry-After", "5"))

# accept(2): these concern one connection only, which is gone.
_PEER_GONE: Final = frozenset({errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.EHOSTDOWN, errno.EHOSTUNREACH})


class Gateway:
    """Accepts connections and keeps them until they are lost."""

    def __init__(
        self,
        *,
        handler_factory: HandlerFactory,
        host: str = "127.0.0.1",
        port: int = 0,
        front_door: FrontDoor | None = None,
        limits: TransportLimits | None = None,
        connections_max: int = 8192,
        connections_per_address_max: int = 4096,
        fast_path: bool = True,
    ) -> None:
        """`port` 0 picks a free one. `connections_max` is lowered to what RLIMIT_NOFILE allows."""
        self._settings = ConnectionSettings(
            handler_factory=handler_factory,
            lost=self._connection_lost,
            front_door=front_door or FrontDoor(),
            limits=limits or TransportLimits(),
            fast_path=fast_path,
        )
        self._host = host
        self._port = port
        self._connections_wanted_max = connections_max
        self._connections_per_address_max = connections_per_address_max
        self.connections_max = connections_max
        """The cap in force; final after `start`."""
        self._listeners: list[socket.socket] = []
        # Every transport that is not lost yet, with those that are being refused.
        self._connections: set[WebSocketConnection] = set()
        # Accepted sockets whose transport is still being made.
        self._connecting: set[asyncio.Task[None]] = set()
        self._per_address: Counter[str] = Counter()
        self._listening = False  # Whether the event loop watches the listeners now.
        self._accept_timer: asyncio.TimerHandle | None = None
        self._accept_logged_at_s: float | None = None
        # Set while no connection is open; close_all waits for it.
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def connections(self) -> frozenset[WebSocketConnection]:
        """The connections that are not lost yet, in any state. O(connections)."""
        return frozenset(self._connections)

    @property
    def connection_count(self) -> int:
        """How many connections are not lost yet, in any state."""
        return len(self._connections)

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens: (address, port) for each socket."""
        return [listener.getsockname()[:2] for listener in self._listeners]

    async def bind(self) -> None:
        """Take the addresses, and answer nobody yet: a client is told that there is no server until `start`.

        Raises:
            OSError: No address of `host` can be bound.
        """
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(self._host or None, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        port = self._port
        failure: OSError | None = None
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                listener = _bound(family, kind, protocol, (address[0], port, *address[2:]))
            except OSError as exc:
                # A name such as localhost may have an IPv6 address on a machine without IPv6.
                if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    self.stop_accepting()
                    raise
                failure = exc
                continue
            self._listeners.append(listener)
            port = listener.getsockname()[1]  # All addresses of a name get the port that was picked for the first.
        if not self._listeners:
            raise failure or OSError(errno.EADDRNOTAVAIL, f"no address for {self._host!r}")

    async def start(self) -> None:
        """Begin to accept; binds first where `bind` was not called.

        Raises:
            OSError: No address of `host` can be bound.
        """
        descriptors_max, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if descriptors_max != resource.RLIM_INFINITY:
            self.connections_max = max(1, min(self._connections_wanted_max, descriptors_max - FILES_RESERVED))
        if not self._listeners:
            await self.bind()
        try:
            for listener in self._listeners:
                listener.listen(BACKLOG)
        except OSError:
            # Somebody else bound the same address at the same time and was quicker to listen.
            self.stop_accepting()
            raise
        self._watch_listeners()

    def stop_accepting(self) -> None:
        """Close the listening sockets. Open connections stay."""
        self._ignore_listeners()
        if self._accept_timer is not None:
            self._accept_timer.cancel()
            self._accept_timer = None
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    async def close_all(self, code: int, reason: str, timeout_s: float) -> None:
        """Close every connection with `code` and wait until all are lost; after `timeout_s` cut those that remain."""
        if self._connecting:
            await asyncio.wait(self._connecting)  # One turn of the loop each; they wait for nobody.
        for connection in self.connections:
            connection.close(code, reason)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        for connection in self.connections:
            connection.abort()
        await self._empty.wait()

    # Accepting.

    def _watch_listeners(self) -> None:
        if not self._listening and self._listeners:
            self._listening = True
            loop = asyncio.get_running_loop()
            for listener in self._listeners:
                loop.add_reader(listener.fileno(), self._accept, listener)

    def _ignore_listeners(self) -> None:
        if self._listening:
            self._listening = False
            loop = asyncio.get_running_loop()
            for listener in self._listeners:
                loop.remove_reader(listener.fileno())

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_PER_WAKE_UP_MAX):
            if self._open_count() >= self.connections_max + REFUSALS_MAX:
                self._ignore_listeners()  # Until a connection is lost.
                return
            try:
                accepted, address = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                if exc.errno not in _PEER_GONE:
                    self._accept_failed(exc)
                    return
                continue
            accepted.setblocking(False)
            # Answers are one write each; nothing is won by waiting for more (Nagle).
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._adopt(accepted, str(address[0]))

    def _accept_failed(self, exc: OSError) -> None:
        """EMFILE, ENFILE, ENOBUFS, ENOMEM: the caller stays in the backlog, so trying again at once would spin."""
        self._ignore_listeners()
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        if self._accept_logged_at_s is None or now_s - self._accept_logged_at_s >= ACCEPT_LOG_INTERVAL_S:
            self._accept_logged_at_s = now_s
            log.error("accept-failed", error=errno.errorcode.get(exc.errno or 0, "?"), connections=self._open_count())
        self._accept_timer = loop.call_later(ACCEPT_PAUSE_S, self._accept_again)

    def _accept_again(self) -> None:
        self._accept_timer = None
        self._watch_listeners()

    def _open_count(self) -> int:
        return self._per_address.total()

    def _adopt(self, accepted: socket.socket, address: str) -> None:
        full = None
        if self._open_count() >= self.connections_max:
            full = _FULL
        elif self._per_address[address] >= self._connections_per_address_max:
            full = _TOO_MANY_FROM_ADDRESS
        loop = asyncio.get_running_loop()
        connection = WebSocketConnection(loop, self._settings, refusal=full)
        connection.peer_address = address
        self._per_address[address] += 1
        self._connections.add(connection)
        self._empty.clear()
        task = loop.create_task(self._connect(connection, accepted))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, connection: WebSocketConnection, accepted: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, accepted)
        except OSError:
            # The peer was gone before there was a transport, so connection_lost will not be called.
            accepted.close()
            self._connection_lost(connection)

    def _connection_lost(self, connection: WebSocketConnection) -> None:
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        address = connection.peer_address
        self._per_address[address] -= 1
        if self._per_address[address] <= 0:
            del self._per_address[address]
        if not self._connections:
            self._empty.set()
        if self._accept_timer is None:
            self._watch_listeners()


def _bound(family: int, kind: int, protocol: int, address: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, kind, protocol)
    try:
        # A restarted server may bind while connections of the old one are in TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener

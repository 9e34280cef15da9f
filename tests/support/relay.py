"""A wire to the server that can be cut at the one moment that matters: when the server answers."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from urllib.parse import urlsplit


class Relay:
    """Passes bytes on both ways. After `lose_next_answer` what the server says next is lost, with its connection."""

    def __init__(self, url: str) -> None:
        self._server = urlsplit(url)
        self._loses = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        host, port = self._listener.sockets[0].getsockname()
        return f"ws://{host}:{port}{self._server.path}"

    def lose_next_answer(self) -> None:
        self._loses = True

    async def __aenter__(self) -> Relay:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection(self._server.hostname, self._server.port)
        for source, target, answers in ((reader, ours, False), (theirs, writer, True)):
            task = asyncio.create_task(self._pass_on(source, target, answers))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, answers: bool) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(1 << 16):
                if answers and self._loses:
                    self._loses = False
                    break
                target.write(data)
                await target.drain()
        target.close()

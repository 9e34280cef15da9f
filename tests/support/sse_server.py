"""A model server for tests: OpenAI-compatible streaming over a real socket, which also misbehaves as it is told.

Raw asyncio streams and nothing of our packages, so that every byte and every pause is the script's. A script is an
async function that gets the Exchange; `scripts` are used one after the other, the last one for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any

from tests.support.waiting import GUARD_S

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n"
)
DONE = b"data: [DONE]\n\n"


def piece(
    text: str | None = None, *, reasoning: str | None = None, finish: str | None = None, ascii: bool = False,
    **more: Any,
) -> bytes:
    """One event with a chat completion chunk."""
    delta: dict[str, Any] = {}
    if text is not None:
        delta["content"] = text
    if reasoning is not None:
        delta["reasoning_content"] = reasoning
    chunk = {
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "scripted",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more,
    }
    return b"data: " + json.dumps(chunk, ensure_ascii=ascii).encode() + b"\n\n"


class Exchange:
    """One request and the bytes that answer it."""

    def __init__(
        self, method: str, path: str, headers: dict[str, str], body: bytes,
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
    ) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body
        self._reader = reader
        self._writer = writer
        self.closed = asyncio.Event()
        """The client went away before the script was over."""

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    async def send(self, data: bytes) -> None:
        """Bytes as they are."""
        self._writer.write(data)
        await self._writer.drain()

    async def head(self, status: int = 200, body: bytes = b"", kind: str = "application/json", **headers: str) -> None:
        """A whole answer that does not stream."""
        lines = [f"HTTP/1.1 {status} Scripted", f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    async def start(self) -> None:
        """The head of a stream."""
        await self.send(HEAD)

    async def chunk(self, data: bytes) -> None:
        """One HTTP chunk, which arrives alone."""
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))
        # Far enough apart that the client reads them one by one.
        await asyncio.sleep(0.001)

    async def end(self) -> None:
        """The orderly end of a stream; the connection stays."""
        await self.send(b"0\r\n\r\n")

    def cut(self) -> None:
        """Drop the connection without an end."""
        self._writer.transport.abort()

    async def stream(self, *events: bytes) -> None:
        """A whole stream, one chunk for each event."""
        await self.start()
        for event in events:
            await self.chunk(event)
        await self.end()

    async def hang(self) -> None:
        """Say nothing until the client goes."""
        await self.gone()

    async def gone(self) -> None:
        """Wait until the client closes its side."""
        await self._reader.read()
        self.closed.set()


Script = Callable[[Exchange], Awaitable[None]]


def says(*events: bytes) -> Script:
    """A script that streams these events and ends."""

    async def script(exchange: Exchange) -> None:
        await exchange.stream(*events)

    return script


def reply(*texts: str) -> Script:
    """A well-behaved model that says `texts`, a token each."""
    return says(piece(""), *(piece(text) for text in texts), piece(finish="stop"), DONE)


def refuses(status: int, body: object = None, **headers: str) -> Script:
    """A script that answers with an error."""

    async def script(exchange: Exchange) -> None:
        await exchange.head(status, b"" if body is None else json.dumps(body).encode(), **headers)

    return script


async def silent(exchange: Exchange) -> None:
    """Takes the request and never answers."""
    await exchange.hang()


class SseServer:
    """The server. `async with SseServer(script, ...) as server: server.url`."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.exchanges: list[Exchange] = []
        """Every request, in order."""
        self.connections = 0
        self._asked = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.port = 0

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def __aenter__(self) -> SseServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def exchange(self, number: int = 0, timeout_s: float = GUARD_S) -> Exchange:
        """The request with this number, waited for."""
        async with asyncio.timeout(timeout_s):
            async with self._asked:
                await self._asked.wait_for(lambda: len(self.exchanges) > number)
        return self.exchanges[number]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            async for exchange in self._requests(reader, writer):
                async with self._asked:
                    self.exchanges.append(exchange)
                    self._asked.notify_all()
                script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
                await script(exchange)
        except (ConnectionError, asyncio.IncompleteReadError):
            # The client went away in the middle of what was being sent.
            if self.exchanges:
                self.exchanges[-1].closed.set()
        except asyncio.CancelledError:
            pass
        finally:
            self._tasks.discard(task)
            with contextlib.suppress(ConnectionError):
                writer.close()

    async def _requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> AsyncIterator[Exchange]:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            headers = {
                name.strip().lower(): value.strip()
                for name, colon, value in (line.partition(":") for line in lines)
                if colon
            }
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            method, path, _ = first.split(" ", 2)
            yield Exchange(method, path, headers, body, reader, writer)

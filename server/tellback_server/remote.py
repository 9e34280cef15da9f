"""Remote: a small client for the commands: one connection, one question at a time, no memory.

    async with served(url, token, data) as remote:
        page = await remote.ask(ChatList())

Rules this module keeps:

- With `data` it is the same conversation with a private server on loopback, which has the folder for as long as the
  command runs; so a command has one way, and the folder one writer.
- A folder that is not there, or holds nothing of a data folder, is refused: nothing is made in it.
- It never sends a write again: when the connection ends before the answer, the person is told that it is not known.

The client package is not used: server and client never import each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Final, TypeVar

from msgspec import UNSET
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Subprotocol

from tellback_protocol.codec import decode_server, encode
from tellback_protocol.frames import PROTOCOL, SUBPROTOCOL, ClientFrame, Error, Hello, Opened, SnapshotPart, Welcome
from tellback_protocol.generation_requests import GenerationCancel
from tellback_protocol.requests import LifeWrite, Open
from tellback_server.clock import Clock
from tellback_server.config import load_settings
from tellback_server.config_problems import variable_of
from tellback_server.fs import Fs
from tellback_server.logging_setup import configure_logging, escaped
from tellback_server.store.files import SERVER_FOLDER
from tellback_server.store_binding import read_binding

__all__ = ["NoDataFolder", "Remote", "RemoteRefused", "RemoteUnreachable", "served"]

Answer = TypeVar("Answer")
ANSWER_TIMEOUT_S: Final = 120.0


class RemoteRefused(Exception):
    """The server will not do that."""

    def __init__(self, code: str, sentence: str, to: str | None = None) -> None:
        """`to` is the name of what was renamed."""
        super().__init__(code, sentence)
        self.code = code
        self.sentence = sentence
        self.to = to

    def __str__(self) -> str:
        to = "" if self.to is None else f" {escaped(self.to)}"
        return f"{self.code}: {escaped(self.sentence)}{to}"


class RemoteUnreachable(Exception):
    """There is no server, or it went away before it answered."""


class NoDataFolder(Exception):
    """The path is no folder with chats; it says why."""


class Remote:
    """A connection that said hello."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._id = 0

    async def hello(self, token: str | None) -> None:
        """The first frame. Raises: RemoteRefused, RemoteUnreachable."""
        await self._send(Hello(PROTOCOL, Clock().uuid4(), token, "tellback command"))
        while not isinstance(frame := await self._receive(), Welcome):
            if isinstance(frame, Error):
                raise RemoteRefused(frame.code, frame.message)

    async def ask(self, request: ClientFrame, answer: type[Answer]) -> Answer:
        """The one answer to a request. Raises: RemoteRefused, RemoteUnreachable."""
        self._id += 1
        request.id = self._id  # type: ignore[union-attr]  # Hello has none and is not asked.
        await self._send(request)
        while True:
            frame = await self._receive(is_write=isinstance(request, LifeWrite | GenerationCancel))
            if isinstance(frame, Error) and frame.id == self._id:
                raise RemoteRefused(frame.code, frame.message, frame.to if isinstance(frame.to, str) else None)
            if isinstance(frame, answer) and getattr(frame, "id", None) == self._id:
                return frame

    async def open(self, chat: str, tail: int | None = None, *, header: bool = False) -> Opened:
        """A chat with its messages, the parts joined. Raises as `ask`."""
        request = Open(chat=chat, since=None, tail=UNSET if tail is None else tail, header=header)
        opened = await self.ask(request, Opened)
        if isinstance(opened.parts, int):
            opened.messages = []
            part = 0
            while part < opened.parts:
                frame = await self._receive()
                if isinstance(frame, SnapshotPart):
                    opened.messages.extend(frame.messages)
                    part = frame.part
        return opened

    async def _send(self, frame: ClientFrame) -> None:
        with contextlib.suppress(ConnectionClosed):
            await self._socket.send(encode(frame), text=True)

    async def _receive(self, *, is_write: bool = False) -> object:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                data = await self._socket.recv(decode=False)
        except (ConnectionClosed, TimeoutError):
            unknown = " Whether it was done is not known; look before you ask again." if is_write else ""
            raise RemoteUnreachable(f"The connection ended before the answer.{unknown}") from None
        return decode_server(data)


@contextlib.asynccontextmanager
async def served(
    url: str, token: str | None, data: str | None, *, store: str | None = None
) -> AsyncIterator[Remote]:
    """A connection to the server at `url`, or to a private one on the folder `data` and its store.

    Raises: RemoteRefused, RemoteUnreachable; with `data` NoDataFolder and what a start of the server raises.
    """
    async with contextlib.AsyncExitStack() as stack:
        if data is not None:
            url = await stack.enter_async_context(_private_server(data, store))
        try:
            socket = await stack.enter_async_context(
                connect(url, subprotocols=[Subprotocol(SUBPROTOCOL)], max_size=None, compression=None, proxy=None)
            )
        except InvalidURI as error:
            raise RemoteRefused("url", f"{error.uri}: {error.msg}") from None
        except InvalidStatus as error:
            body = (error.response.body or b"").decode("utf-8", "replace").strip()
            raise RemoteRefused(str(error.response.status_code), body) from None
        except (OSError, InvalidHandshake, TimeoutError) as error:
            raise RemoteUnreachable(f"Cannot connect to {escaped(url)}: {escaped(str(error))}") from None
        remote = Remote(socket)
        await remote.hello(token)
        yield remote


@contextlib.asynccontextmanager
async def _private_server(data: str, store: str | None) -> AsyncIterator[str]:
    _check_data_folder(data)
    flags = {"data": data, "host": "127.0.0.1", "port": "0"}
    if store is None and variable_of("store") not in os.environ:
        # A folder whose chats are in a store says how it is called.
        binding = read_binding(Fs(), data)
        store = None if binding is None else binding.store
    if store is not None:
        flags["store"] = store
    from tellback_server.app import App  # Here, so that a question to a running server starts without a whole one.

    configure_logging("error", "console")
    app = App(load_settings(flags))
    await app.start()
    running = asyncio.create_task(app.run_until_stopped())
    try:
        yield app.urls[0]
    finally:
        app.request_stop("the command is done")
        await running


def _check_data_folder(data: str) -> None:
    """Raises: NoDataFolder; OSError when it cannot be looked into."""
    if not os.path.isdir(data):
        raise NoDataFolder(f"{data} is no folder" if os.path.lexists(data) else f"{data} does not exist")
    folders = [data, *(entry.path for entry in os.scandir(data) if entry.name[0] != "." and entry.is_dir())]
    if not any(
        os.path.isdir(os.path.join(folder, name)) for folder in folders for name in ("chats", "group chats")
    ) and not os.path.isdir(os.path.join(data, SERVER_FOLDER)):
        raise NoDataFolder(f"{data} holds no chats/, nor does a folder of a user in it")

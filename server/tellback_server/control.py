"""Control: what only somebody with a right to the data folder may ask of a running server, over a socket in it.

    <data>/.tellback/control        a Unix socket, mode 0600; a line of JSON each way

    -> {"ask":"stand-still"}        <- {"place":{...}}       nothing touches a file from here on
    -> {"ask":"go-on"}              <- {"held":true}         false: it had ended by itself

Rules of this module:
- The right to the folder is the right to ask; nothing of it can be reached over the network.
- Who goes away, whatever the reason, lets the server go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator

import msgspec
import structlog

from tellback_server.fs import Fs
from tellback_server.standstill import HOLD_S, Place, Standstill

__all__ = ["CONTROL", "Control", "NoServer", "ServerWentOn", "standing_still"]

log = structlog.get_logger()

CONTROL = "control"
LINE_BYTES_MAX = 64 << 10


class NoServer(Exception):
    """Nobody serves this folder."""


class ServerWentOn(Exception):
    """The server did not wait until the end."""


class _Ask(msgspec.Struct):
    ask: str


class _Held(msgspec.Struct):
    place: Place


class _Ended(msgspec.Struct):
    held: bool


_ask = msgspec.json.Decoder(_Ask).decode


class Control:
    """The server's side. Loop thread."""

    def __init__(self, fs: Fs, server_root: str, standstill: Standstill) -> None:
        self._fs = fs
        self._folder = server_root
        self._standstill = standstill
        self._server: asyncio.Server | None = None
        self._peers: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. A folder that cannot hold a socket (some network shares) is served without one."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._fs.bind_private(listener, self._folder, CONTROL)
            self._server = await asyncio.start_unix_server(self._accepted, sock=listener, limit=LINE_BYTES_MAX)
        except OSError as error:
            listener.close()
            log.warning("no-control-socket", error=str(error))

    async def stop(self) -> None:
        """End, and let go of who is still there."""
        if self._server is None:
            return
        self._server.close()
        for peer in list(self._peers):
            peer.cancel()
        await asyncio.gather(*self._peers, return_exceptions=True)
        with contextlib.suppress(OSError):
            self._fs.unlink(os.path.join(self._folder, CONTROL))

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "a peer has a task"
        self._peers.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.LimitOverrunError, msgspec.MsgspecError):
                await self._serve(reader, writer)
        finally:
            self._peers.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if _ask(await reader.readline()).ask != "stand-still":
            return
        async with self._standstill.held() as place:
            log.info("standing-still", position=place.position)
            writer.write(msgspec.json.encode(_Held(place)) + b"\n")
            await writer.drain()
            try:
                async with asyncio.timeout(HOLD_S / 2):
                    await reader.readline()
            except TimeoutError:
                log.warning("stood-still-too-long", limit_s=HOLD_S / 2)
                writer.write(msgspec.json.encode(_Ended(False)) + b"\n")
                return
        writer.write(msgspec.json.encode(_Ended(True)) + b"\n")
        with contextlib.suppress(ConnectionError):
            await writer.drain()


@contextlib.asynccontextmanager
async def standing_still(fs: Fs, server_root: str) -> AsyncIterator[Place]:
    """The other side: the server of a folder stands still meanwhile. Raises NoServer; at the end ServerWentOn."""
    try:
        with fs.short_path(server_root) as short:
            reader, writer = await asyncio.open_unix_connection(f"{short}/{CONTROL}", limit=LINE_BYTES_MAX)
    except OSError as error:
        raise NoServer(str(error)) from error
    try:
        writer.write(b'{"ask":"stand-still"}\n')
        answer = await reader.readline()
        if not answer:
            raise ServerWentOn("The server ended before it stood still.")
        yield msgspec.json.decode(answer, type=_Held).place
        writer.write(b'{"ask":"go-on"}\n')
        answer = await reader.readline()
        if not answer or not msgspec.json.decode(answer, type=_Ended).held:
            raise ServerWentOn("The server went on before the copy was done; run it again, it goes on from here.")
    finally:
        writer.close()

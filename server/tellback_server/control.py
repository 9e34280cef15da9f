"""Control: what only the system user of a running server, or root, may ask of it; a line of JSON each way.

    -> {"ask":"stand-still"}        <- {"place":{...}}       nothing touches a file from here on
    -> {"ask":"go-on"}              <- {"held":true}         false: it had ended by itself

Rules of this module:
- An abstract Unix socket of Linux, named by device and inode of the folder: nothing of it stands in the folder, where
  programs that copy it would stumble, and nothing is left by a kill. The kernel tells who is at the other end.
- Who goes away, whatever the reason, lets the server go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator

import msgspec
import structlog

from tellback_server.fs import Fs
from tellback_server.standstill import HOLD_S, Place, Standstill

__all__ = ["Control", "NoServer", "ServerWentOn", "standing_still"]

log = structlog.get_logger()

LINE_BYTES_MAX = 64 << 10
_CREDENTIALS = struct.Struct("3i")
"""struct ucred: process, user, group."""


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


def _address(fs: Fs, server_root: str) -> str:
    """Raises OSError where there are no such sockets, or no such folder."""
    found = fs.stat(server_root)
    if found is None or sys.platform != "linux":
        raise FileNotFoundError(errno.ENOENT, "there is no control socket", server_root)
    return f"\0tellback-control-{found.device}-{found.inode}"


class Control:
    """The server's side. Loop thread."""

    def __init__(self, fs: Fs, server_root: str, standstill: Standstill) -> None:
        self._fs = fs
        self._folder = server_root
        self._standstill = standstill
        self._server: asyncio.Server | None = None
        self._peers: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Where that cannot be, the server serves without."""
        try:
            address = _address(self._fs, self._folder)
            self._server = await asyncio.start_unix_server(self._accepted, address, limit=LINE_BYTES_MAX)
        except OSError as error:
            log.warning("no-control-socket", error=str(error))

    async def stop(self) -> None:
        """End, and let go of who is still there."""
        if self._server is None:
            return
        self._server.close()
        for peer in list(self._peers):
            peer.cancel()
        await asyncio.gather(*self._peers, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "a peer has a task"
        self._peers.add(task)
        try:
            if not _is_ours(writer.get_extra_info("socket")):
                log.warning("control-refused")
                return
            with contextlib.suppress(ConnectionError, asyncio.LimitOverrunError, msgspec.MsgspecError):
                await self._serve(reader, writer)
        except TimeoutError:
            log.warning("not-standing-still", meaning="A call of a disk or store did not end in time.")
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


def _is_ours(peer: socket.socket) -> bool:
    """Whether root or the user of this process is at the other end."""
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(credentials)[1] in (0, os.geteuid())


@contextlib.asynccontextmanager
async def standing_still(fs: Fs, server_root: str) -> AsyncIterator[Place]:
    """The other side: the server of a folder stands still meanwhile. Raises NoServer; at the end ServerWentOn."""
    try:
        reader, writer = await asyncio.open_unix_connection(_address(fs, server_root), limit=LINE_BYTES_MAX)
    except OSError as error:
        raise NoServer(str(error)) from error
    try:
        writer.write(b'{"ask":"stand-still"}\n')
        answer = await reader.readline()
        if not answer:
            raise ServerWentOn("The server ended, or its disk or store did not answer, before it stood still.")
        yield msgspec.json.decode(answer, type=_Held).place
        writer.write(b'{"ask":"go-on"}\n')
        answer = await reader.readline()
        if not answer or not msgspec.json.decode(answer, type=_Ended).held:
            raise ServerWentOn("The server went on before the copy was done; run it again, it goes on from here.")
    finally:
        writer.close()

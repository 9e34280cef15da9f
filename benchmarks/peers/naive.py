"""The naive server: the same promise as tellback's, written the way one writes it first.

``websockets.asyncio.serve`` on uvloop, orjson, one task per message, one ``dumps`` and one ``send`` per subscriber.
The commit is as good as ours: a thread writes and fdatasyncs everything that waits, and nothing is acknowledged or
broadcast before. The wire has the same shape: ack to the writer, ``integrity`` to the others. It has no op ids, no
limits, no snapshots, no files.
"""

import asyncio
import os
import queue
import sys
import threading
import uuid
from typing import Any

import orjson
import uvloop
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed


class Log:
    """One file, one thread: a batch is everything that waits, one write and one fdatasync for all of it."""

    def __init__(self, path: str, loop: asyncio.AbstractEventLoop) -> None:
        self._fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self._loop = loop
        self._waiting: queue.SimpleQueue[tuple[bytes, asyncio.Future[None]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def append(self, record: bytes) -> "asyncio.Future[None]":
        done = self._loop.create_future()
        self._waiting.put((record, done))
        return done

    def _run(self) -> None:
        while True:
            batch = [self._waiting.get()]
            while not self._waiting.empty():
                batch.append(self._waiting.get())
            os.write(self._fd, b"".join(record for record, _ in batch))
            os.fdatasync(self._fd)
            self._loop.call_soon_threadsafe(self._release, [done for _, done in batch])

    @staticmethod
    def _release(batch: "list[asyncio.Future[None]]") -> None:
        for done in batch:
            if not done.done():
                done.set_result(None)


class Chat:
    def __init__(self) -> None:
        self.seq = 0
        self.integrity = str(uuid.uuid4())
        self.messages: list[dict[str, Any]] = []
        self.tabs: set[ServerConnection] = set()

    def version(self) -> dict[str, Any]:
        return {"epoch": 1, "seq": self.seq, "integrity": self.integrity}


class Server:
    def __init__(self, log: Log) -> None:
        self._log = log
        self._chats: dict[str, Chat] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def handle(self, connection: ServerConnection) -> None:
        session = ""
        try:
            async for text in connection:
                frame = orjson.loads(text)
                match frame["type"]:
                    case "hello":
                        session = frame["session"]
                        await self._send(connection, {"type": "welcome", "protocol": 1, "server": "naive"})
                    case "open":
                        await self._open(connection, frame)
                    case "append":
                        task = asyncio.create_task(self._append(connection, session, frame))
                        self._tasks.add(task)
                        task.add_done_callback(self._tasks.discard)
        except ConnectionClosed:
            pass
        finally:
            for chat in self._chats.values():
                chat.tabs.discard(connection)

    async def _open(self, connection: ServerConnection, frame: dict[str, Any]) -> None:
        chat = self._chats.setdefault(frame["chat"], Chat())
        chat.tabs.add(connection)
        answer = {
            "type": "opened",
            "id": frame["id"],
            "chat": frame["chat"],
            "mode": "snapshot",
            "version": chat.version(),
        }
        await self._send(connection, answer | {"next_op": 1, "count": len(chat.messages), "messages": chat.messages})

    async def _append(self, connection: ServerConnection, session: str, frame: dict[str, Any]) -> None:
        chat = self._chats[frame["chat"]]
        previous = chat.integrity
        chat.seq += 1
        chat.integrity = str(uuid.uuid4())
        for message in frame["messages"]:
            message["id"] = str(uuid.uuid4())
        chat.messages.extend(frame["messages"])
        told = {
            "type": "integrity",
            "chat": frame["chat"],
            "version": chat.version(),
            "previous": previous,
            "by": {"session": session, "op": frame["op"]},
            "ops": [{"op": "append", "messages": frame["messages"]}],
        }
        await self._log.append(orjson.dumps(told) + b"\n")
        ack = {"type": "ack", "id": frame["id"], "chat": frame["chat"], "op": frame["op"], "version": told["version"]}
        await self._send(connection, ack | {"durable": "fsync", "messages": [m["id"] for m in frame["messages"]]})
        for tab in list(chat.tabs):
            if tab is not connection:
                await self._send(tab, told)

    @staticmethod
    async def _send(connection: ServerConnection, frame: dict[str, Any]) -> None:
        try:
            await connection.send(orjson.dumps(frame), text=True)
        except ConnectionClosed:
            return


async def main() -> None:
    server = Server(Log(os.path.join(sys.argv[1], "log"), asyncio.get_running_loop()))
    async with serve(server.handle, "127.0.0.1", 0, compression=None, max_size=None) as listening:
        port = next(iter(listening.sockets)).getsockname()[1]
        print(f"ws://127.0.0.1:{port}/ws", flush=True)
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    uvloop.run(main())

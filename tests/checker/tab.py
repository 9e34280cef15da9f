"""A tab that notes everything: several ops in flight, resent on every new connection with the same numbers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from tests.checker.follower import Follower
from tests.checker.notebook import Frame, Notebook, is_outcome
from tests.checker.workload import Workload
from tests.support.oracle import LOST
from tests.support.raw_client import RawClient
from tests.support.server import new_session

OPEN, READS, PROBES = 0, 10**8, 2 * 10**8
"""Request ids; that of a write is its op number."""
RETRY_S = 0.01
SILENCE_S = 15.0
"""Without an answer for so long the server is taken for dead."""


class Forgotten(Exception):
    """The server knows nothing of an op that it answered: going on would be waiting for ever."""


class Tab:
    """See the module. `url` says where the server is now."""

    def __init__(
        self, name: str, chat: str, notebook: Notebook, url: Callable[[], str], seed: int, *, window: int = 4,
        slow: bool = False,
    ) -> None:
        self.name = name
        self.chat = chat
        self.session = new_session()
        self.follower = Follower(lambda _problem: None)
        self._notebook = notebook
        self._url = url
        self._random = random.Random(f"{seed} {name}")
        self._workload = Workload(seed * 1000 + len(name) + sum(map(ord, name)), name, chat)
        self._window = window
        self._last_op = 0
        self._pending: dict[int, tuple[Frame, list[Frame]]] = {}
        self._answered: list[Frame] = []
        """Ops of which one is now and then used again for another body."""
        self._raw: RawClient | None = None
        self._reads = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Connect again and again until `stop`, then until every op has its answer and the copy is the server's."""
        while True:
            try:
                self._raw = await RawClient.connect(self._url(), timeout_s=SILENCE_S)
                await self._connected(self._raw, stop)
                return
            except LOST:
                await asyncio.sleep(RETRY_S)
            finally:
                self.cut()

    def cut(self) -> None:
        """The wire breaks."""
        if self._raw is not None:
            self._raw.abort()
            self._raw = None
        self.follower.disconnected()

    async def _connected(self, raw: RawClient, stop: asyncio.Event) -> None:
        await raw.send({"type": "hello", "protocol": 1, "session": self.session, "token": None})
        await raw.receive_until(type="welcome", timeout_s=SILENCE_S)
        self._notebook.note(self.name, "connected", session=self.session)
        await self._open(raw)
        for op, (frame, before) in list(self._pending.items()):
            await self._send_op(raw, op, frame, before)
        while self._pending or not stop.is_set():
            if not self.follower.is_open:
                await self._open(raw)
            while len(self._pending) < self._window and not stop.is_set() and self.follower.is_whole:
                await self._invoke(raw)
            if self._random.random() < 0.03:
                await self._read(raw)
            await self._hear(raw)
        await self._last_read(raw)

    async def _open(self, raw: RawClient) -> None:
        while not self.follower.is_open or not self.follower.is_whole:
            copy = self.follower.copy
            fresh = copy is None or not self.follower.is_whole or self._random.random() < 0.15
            since = None if fresh or copy is None else copy.head
            await self._send(raw, {"type": "open", "id": OPEN, "chat": self.chat, "since": since})
            await self._opened(raw)
        await self._read(raw)

    async def _opened(self, raw: RawClient) -> None:
        """Until the chat is there, or is not that chat any more."""
        is_told = False
        while not (is_told and self.follower.is_whole):
            frame = await self._hear(raw)
            if frame["type"] == "opened":
                is_told = True
                if frame["next_op"] < min(self._pending, default=self._last_op + 1):
                    raise Forgotten(f"op {frame['next_op']} of {self.session} had its outcome")
            if is_told and not self.follower.is_open:
                return

    async def _invoke(self, raw: RawClient) -> None:
        assert self.follower.copy is not None
        if self._answered and self._random.random() < 0.02:
            reused = self._random.choice(self._answered)
            other = {**reused, "id": PROBES + self._reads}
            other["messages" if "messages" in other else "patch"] = []
            self._reads += 1
            self._notebook.note(self.name, "sent", frame=other, probe=True)
            await raw.send(other)
        frame, before = self._workload.next(self.follower.copy, self._last_op)
        self._last_op += 1
        frame = {**frame, "op": self._last_op, "id": self._last_op}
        self._pending[self._last_op] = (frame, before)
        await self._send_op(raw, self._last_op, frame, before)

    async def _send_op(self, raw: RawClient, op: int, frame: Frame, before: list[Frame]) -> None:
        for early in before:
            await self._send(raw, early)
        await self._send(raw, frame)

    async def _send(self, raw: RawClient, frame: Frame) -> None:
        self._notebook.note(self.name, "sent", frame=frame)
        await raw.send(frame)

    async def _read(self, raw: RawClient) -> None:
        self._reads += 1
        await self._send(raw, {"type": "state-get", "id": READS + self._reads, "owner": {"chat": self.chat}})

    async def _last_read(self, raw: RawClient) -> None:
        """Behind this answer nothing of before is missing."""
        await self._read(raw)
        wanted = READS + self._reads
        while (await self._hear(raw)).get("id") != wanted:
            pass

    async def _hear(self, raw: RawClient) -> Frame:
        frame = await raw.receive(SILENCE_S)
        self._notebook.note(self.name, "received", frame=frame)
        request: Frame | None = None
        op: Any = frame.get("op")
        if frame["type"] == "goaway":
            raise OSError("the server goes away")
        if frame["type"] == "error" and frame.get("id") == OPEN:
            raise OSError(frame["code"])
        if isinstance(op, int) and frame.get("id") == op and op in self._pending:
            if is_outcome(frame):
                request, _before = self._pending.pop(op)
                self._notebook.answers += 1
                if frame["type"] == "ack" and request["type"] in ("append", "patch"):
                    self._answered = [*self._answered[-5:], request]
            elif frame["type"] == "error":
                # Not an outcome: the same op comes again, over a new connection.
                if frame.get("retry") == "never" and frame["code"] != "deleted":
                    self._pending.pop(op)
                raise OSError(frame["code"])
        self.follower.received(frame, request)
        return frame

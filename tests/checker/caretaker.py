"""The caretaker: does with the chat as a whole what its user does: to the trash and back, backups, restores, copies.

It notes what it sends and receives as a tab does, sends again what has no answer, with the same numbers, and does one
thing after the other. The tabs write on meanwhile.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from tests.checker.notebook import Frame, Notebook
from tests.support.oracle import LOST
from tests.support.raw_client import RawClient
from tests.support.server import new_session

NAME = "caretaker"
RETRY_S = 0.02
ANSWER_S = 30.0


class Caretaker:
    """See the module. `url` says where the server is now; `integrity` is any version that the chat had."""

    def __init__(
        self, chat: str, integrity: str, notebook: Notebook, url: Callable[[], str], chance: random.Random
    ) -> None:
        self.chat = chat
        self._integrity = integrity
        self._notebook = notebook
        self._url = url
        self._chance = chance
        self._session = new_session()
        self._op = 0
        self._requests = 0
        self._names = 0
        self._backups: list[str] = []
        self._raw: RawClient | None = None

    async def bin(self) -> None:
        """To the trash, and back: out of it, or from a backup, under its name or another one."""
        await self._write("chat-delete", base=self._integrity, force=True)
        await asyncio.sleep(self._chance.uniform(0, 0.1))
        named = {"to": self._name()} if self._chance.random() < 0.3 else {}
        if self._backups and self._chance.random() < 0.3:
            await self._write("backup-restore", backup=self._chance.choice(self._backups), **named)
        else:
            await self._write("chat-restore", **named)

    async def backup(self) -> None:
        """One more backup."""
        answer = await self._ask({"type": "backup-create", "chat": self.chat})
        assert answer["type"] == "backup-created", answer
        self._backups.append(answer["backup"]["backup"])

    async def copy(self) -> None:
        """A backup beside the chat, which stays as it is."""
        await self.backup()
        await self._write("backup-restore", base="*", backup=self._backups[-1], to=self._name())

    async def restore(self) -> None:
        """A backup in the chat's place."""
        if self._chance.random() < 0.5 or not self._backups:
            await self.backup()
            await asyncio.sleep(self._chance.uniform(0, 0.3))
        await self._write("backup-restore", base="*", backup=self._chance.choice(self._backups))

    async def close(self) -> None:
        if self._raw is not None:
            self._raw.abort()
            self._raw = None

    def _name(self) -> str:
        self._names += 1
        return f"Kept {self._names}"

    async def _write(self, type: str, **fields: object) -> None:
        self._op += 1
        answer = await self._ask({"type": type, "chat": self.chat, "op": self._op, **fields})
        assert answer["type"] == "ack", answer

    async def _ask(self, frame: Frame) -> Frame:
        """The one answer, however often the server goes away meanwhile."""
        self._requests += 1
        frame = {**frame, "id": self._requests}
        while True:
            try:
                raw = await self._connected()
                self._notebook.note(NAME, "sent", frame=frame)
                await raw.send(frame)
                answer = await raw.receive_until(id=self._requests, timeout_s=ANSWER_S)
            except LOST:
                await self.close()
            else:
                self._notebook.note(NAME, "received", frame=answer)
                if answer["type"] != "error" or answer["retry"] not in ("now", "backoff"):
                    return answer
            await asyncio.sleep(RETRY_S)

    async def _connected(self) -> RawClient:
        if self._raw is None:
            raw = await RawClient.connect(self._url(), timeout_s=ANSWER_S)
            await raw.send({"type": "hello", "protocol": 1, "session": self._session, "token": None})
            await raw.receive_until(type="welcome", timeout_s=ANSWER_S)
            self._notebook.note(NAME, "connected", session=self._session)
            self._raw = raw
        return self._raw

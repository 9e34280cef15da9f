"""Real servers for tests: one inside the test's loop, and one as a process that can be killed.

Both run the same App on real files and a real socket; the process is for everything that ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

from tellback_server.app import App
from tellback_server.config import Settings
from tellback_server.fs import Fs
from tests.support import warm
from tests.support.patience import patient, patient_flags
from tests.support.raw_client import RawClient
from tests.support.shared import shared_folder
from tests.support.waiting import GUARD_S


def sillytavern_copy(target: Path) -> Path:
    """A fresh copy of the folder that a real SillyTavern server wrote; returns the data folder."""
    data = target / "data"
    shutil.copytree(shared_folder() / "data" / "sillytavern", data)
    (data / "README.md").unlink()
    return data


def tree(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Every file below `folder` except the server's own: bytes, mtime and inode."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".tellback" not in path.parts
    }


@contextlib.asynccontextmanager
async def running(data: Path, *, fs: Fs | None = None, **settings: Any) -> AsyncIterator[App]:
    """A server in this loop, on a port of its own."""
    values: dict[str, Any] = {"data": str(data), "port": 0, "checkpoint_interval_s": 0.05, **settings}
    app = App(Settings(**patient(values)), fs=fs)
    await app.start()
    served = asyncio.create_task(app.run_until_stopped())
    try:
        yield app
    finally:
        await leave_all()
        app.request_stop("the test is over")
        await served


class Process:
    """`tellback serve` as a process on `data`; the same port after every restart."""

    def __init__(self, data: Path, *flags: str, environment: dict[str, str] | None = None) -> None:
        self.data = data
        self.flags = patient_flags(flags)
        self.environment = environment or {}
        self.port = 0
        self.url = ""
        self.errors = data.parent / f"server-{uuid.uuid4().hex[:8]}.log"
        self._process: warm.WarmProcess | asyncio.subprocess.Process | None = None

    async def start(self, *, under: tuple[str, ...] = ()) -> Process:
        """Start it and wait for the address; `under` is a command to run it under, such as strace."""
        arguments = ("serve", "--data", str(self.data), "--port", str(self.port), *self.flags)
        with self.errors.open("ab") as errors:
            # What the interpreter itself reads has to be there when it starts.
            if under or any(name.startswith("PYTHON") for name in self.environment):
                self._process = await asyncio.create_subprocess_exec(
                    *under, sys.executable, "-m", "tellback_server", *arguments,
                    stdout=asyncio.subprocess.PIPE, stderr=errors, env={**os.environ, **self.environment},
                )
            else:
                self._process = warm.command(*arguments, stderr=errors, environment=self.environment)
        async with asyncio.timeout(GUARD_S):
            if isinstance(self._process, warm.WarmProcess):
                line = (await self._process.line()).strip()
            else:
                assert self._process.stdout is not None
                line = (await self._process.stdout.readline()).decode().strip()
        assert line.startswith("ws://"), f"no address but {line!r}: {self.errors.read_text()[-2000:]}"
        self.url = line
        self.port = int(line.removeprefix("ws://").split("/")[0].rsplit(":", 1)[1])
        return self

    async def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()

    async def stop(self, timeout_s: float = GUARD_S) -> int:
        """SIGTERM; returns the exit code."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        return await self.ended(timeout_s)

    async def ended(self, timeout_s: float = GUARD_S) -> int:
        """Wait for the end; returns the exit code."""
        assert self._process is not None
        async with asyncio.timeout(timeout_s):
            return await self._process.wait()

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._process is not None
        return self._process.pid

    async def __aenter__(self) -> Process:
        return await self.start()

    async def __aexit__(self, *exception: object) -> None:
        await leave_all()
        if self._process is not None and self._process.returncode is None:
            await self.kill()


def new_session() -> str:
    """A session id as a tab would make one."""
    return uuid.uuid4().hex


class Leaver(Protocol):
    """Somebody who can leave."""

    async def close(self) -> None: ...


joined: list[Leaver] = []
"""Every tab that joined, so that a test may simply end."""


async def leave_all() -> None:
    """Close every tab that is still connected."""
    while joined:
        tab = joined.pop()
        if isinstance(tab, TabClient):
            # A closing handshake would wait for a tab that left frames unread.
            tab.raw.abort()
        else:
            await tab.close()


class TabClient:
    """A raw client that said hello, with its op numbers counted. It knows only DESIGN section 5."""

    def __init__(self, raw: RawClient, session: str) -> None:
        self.raw = raw
        self.session = session
        self.ops: dict[str, int] = {}
        self.requests = 0
        self.heard: list[dict[str, Any]] = []

    @classmethod
    async def join(cls, url: str, session: str | None = None, token: str | None = None) -> TabClient:
        """Connect and say hello."""
        raw = await RawClient.connect(url)
        tab = cls(raw, session or new_session())
        await raw.send({"type": "hello", "protocol": 1, "session": tab.session, "token": token})
        welcome = await raw.receive_until(type="welcome")
        assert welcome["protocol"] == 1
        joined.append(tab)
        return tab

    async def ask(self, type: str, *, timeout_s: float = GUARD_S, **fields: Any) -> dict[str, Any]:
        """Send a request and return its one answer; what comes before it is kept."""
        self.requests += 1
        await self.raw.send({"type": type, "id": self.requests, **fields})
        return await self.raw.receive_until(id=self.requests, timeout_s=timeout_s)

    async def open(self, chat: str, *, create: bool = False, since: Any = None, **fields: Any) -> dict[str, Any]:
        """Open a chat and collect the parts of its snapshot into `messages`."""
        opened = await self.ask("open", chat=chat, create=create, since=since, **fields)
        if opened["type"] == "opened":
            self.ops[chat] = opened["next_op"] - 1
            if "parts" in opened:
                opened["messages"] = []
                for _ in range(opened["parts"]):
                    part = await self.raw.receive_until(type="snapshot-part", chat=chat)
                    opened["messages"].extend(part["messages"])
        return opened

    async def write(self, type: str, chat: str, **fields: Any) -> dict[str, Any]:
        """Send a write with the next op number; an outcome uses it up."""
        op = self.ops.get(chat, 0) + 1
        answer = await self.ask(type, chat=chat, op=op, **fields)
        if answer["type"] in ("ack", "conflict") or answer.get("retry") == "never":
            self.ops[chat] = op
        return answer

    async def write_state(self, type: str, chat: str, **fields: Any) -> dict[str, Any]:
        """As `write`, for state frames."""
        op = self.ops.get(chat, 0) + 1
        answer = await self.ask(type, owner={"chat": chat}, op=op, **fields)
        if answer["type"] in ("ack", "conflict") or answer.get("retry") == "never":
            self.ops[chat] = op
        return answer

    async def append(self, chat: str, *texts: str, base: Any = "*", **fields: Any) -> dict[str, Any]:
        """Append plain messages."""
        messages = [{"name": "User", "is_user": True, "mes": text} for text in texts]
        return await self.write("append", chat, base=base, messages=messages, **fields)

    async def close(self) -> None:
        """Leave."""
        await self.raw.close()


def texts(messages: list[dict[str, Any]]) -> list[str]:
    """What the messages say."""
    return [message["mes"] for message in messages]

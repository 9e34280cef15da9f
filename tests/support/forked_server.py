"""One server at a time as a process on settings, which starts, is killed and starts again a hundred times (see `warm`).

It is the real server with real signals and a real kill -9.
"""

from __future__ import annotations

import asyncio
import os
import signal
import uuid
from pathlib import Path

from tests.support import warm
from tests.support.patience import patient
from tests.support.server import leave_all

START_TIMEOUT_S = 60
"""The first start imports the server, at the lowest priority of a busy machine too."""


class ForkedServer:
    """One server at a time on `data`; the same port after every start.

    The setting `prepare` names modules of tests, whose `prepare` is called in the server's process before it starts.
    """

    def __init__(self, data: Path, **settings: object) -> None:
        self.settings = patient({"data": str(data), "port": 0, **settings})
        self.errors = data.parent / f"server-{uuid.uuid4().hex[:8]}.log"
        self.url = ""
        self.starts = 0
        self._process: warm.WarmProcess | None = None

    async def __aenter__(self) -> ForkedServer:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await leave_all()
        await self.kill()

    async def start(self) -> None:
        """Start it and wait for its address."""
        with self.errors.open("ab") as errors:
            self._process = warm.server(self.settings, errors)
        async with asyncio.timeout(START_TIMEOUT_S):
            line = (await self._process.line()).strip() or f"ended {await self._process.wait()}"
        assert line.startswith("ws://"), f"no address but {line!r}: {self.errors.read_text()[-3000:]}"
        self.url = line
        self.settings["port"] = int(self.url.removeprefix("ws://").split("/")[0].rsplit(":", 1)[1])
        self.starts += 1

    async def start_on(self, data: Path, failpoints: str = "") -> None:
        """kill -9, and a start on this folder, at any port."""
        await self.kill()
        self.settings = {**self.settings, "data": str(data), "port": 0, "failpoints": failpoints}
        await self.start()

    async def start_dying(self, failpoints: str) -> None:
        """A start that is killed on its way, when it comes there."""
        self.settings = {**self.settings, "failpoints": failpoints}
        try:
            await self.start()
        except AssertionError as error:
            assert "ended -9" in str(error), error
            self.forget()

    async def ended(self) -> int:
        """Wait until it ended by itself; the exit code."""
        assert self._process is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            code = await self._process.wait()
        self._process = None
        return code

    async def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        return await self._end(signal.SIGTERM)

    def signal(self, number: signal.Signals) -> None:
        """Any other signal."""
        assert self._process is not None
        os.kill(self._process.pid, number)

    @property
    def is_running(self) -> bool:
        """Whether the server of the last start has not ended by itself."""
        return self._process is not None and self._process.poll() is None

    def forget(self) -> None:
        """It ended before it was up."""
        self._process = None

    async def _end(self, number: signal.Signals) -> int:
        if self._process is None:
            return 0
        self._process.send_signal(number)
        return await self.ended()

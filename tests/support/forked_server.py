"""`tellback serve` as a process that starts in a few milliseconds: a process that imported the server once forks it.

It is the real command with real signals and a real kill -9; only the imports are not repeated. For tests that start a
server a hundred times.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import signal
import sys
import traceback
import uuid
from pathlib import Path

from tests.support.patience import patient
from tests.support.server import leave_all
from tests.support.shared import CHECKOUT

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
        self._breeder: asyncio.subprocess.Process | None = None
        self._pid = 0

    async def __aenter__(self) -> ForkedServer:
        with self.errors.open("ab") as errors:
            self._breeder = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.support.forked_server", cwd=CHECKOUT,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=errors,
            )
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await leave_all()
        if self._pid:
            await self.kill()
        assert self._breeder is not None
        assert self._breeder.stdin is not None
        self._breeder.stdin.close()
        await self._breeder.wait()

    async def start(self) -> None:
        """Start it and wait for its address."""
        assert self._breeder is not None
        assert self._breeder.stdin is not None
        self._breeder.stdin.write(json.dumps(self.settings).encode() + b"\n")
        self._pid = int(await self._line("pid "))
        self.url = "ws://" + await self._line("ws://")
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
        code = int(await self._line("ended "))
        self._pid = 0
        return code

    async def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        return await self._end(signal.SIGTERM)

    def signal(self, number: signal.Signals) -> None:
        """Any other signal."""
        os.kill(self._pid, number)

    @property
    def is_running(self) -> bool:
        """Whether the server of the last start has not ended by itself."""
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            return False
        return self._pid != 0

    def forget(self) -> None:
        """It ended before it was up."""
        self._pid = 0

    async def _end(self, number: signal.Signals) -> int:
        if not self._pid:
            return 0
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, number)
        code = int(await self._line("ended "))
        self._pid = 0
        return code

    async def _line(self, start: str) -> str:
        assert self._breeder is not None
        assert self._breeder.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            line = (await self._breeder.stdout.readline()).decode().strip()
        assert line.startswith(start), f"wanted {start!r}, got {line!r}: {self.errors.read_text()[-3000:]}"
        return line.removeprefix(start)


def _set_failpoints(setting: str) -> None:
    """As the environment variable would have done before the imports."""
    from tellback_server.failpoint import Failpoints, failpoint

    for module in [module for name, module in sys.modules.items() if name.startswith("tellback_server")]:
        if setting and getattr(module, "failpoint", None) is failpoint:
            module.failpoint = Failpoints(setting).hit  # type: ignore[attr-defined]  # Checked just above.


def _breed() -> None:
    """One server for each line of settings; its end is told before the next begins."""
    import tellback_server.app  # noqa: F401  The whole server, so that no child has to import it.
    from tellback_server.commands.serve import run_server
    from tellback_server.config import Settings

    for line in sys.stdin:
        # The child says its address only after the parent said its pid.
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(tell)
            os.read(told, 1)
            os.close(told)
            os.close(0)
            code = 1
            try:
                settings = json.loads(line)
                _set_failpoints(settings.pop("failpoints", ""))
                for module, arguments in settings.pop("prepare", {}).items():
                    importlib.import_module(module).prepare(arguments)
                code = run_server(Settings(**settings))
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                sys.stdout.flush()
                os._exit(code)
        os.close(told)
        os.write(1, f"pid {pid}\n".encode())
        os.close(tell)
        _, status = os.waitpid(pid, 0)
        os.write(1, f"ended {os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    _breed()

"""subprocess.Popen and the client package's server for tests, forked instead of started (see `warm`)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, cast

from tellback_client import ServerProcess
from tests.support import warm


class WarmPopen:
    """What is used of subprocess.Popen, with text in its pipes."""

    def __init__(self, *arguments: object, stderr: IO[bytes] | None = None, **environment: str) -> None:
        """`stderr` None is a pipe."""
        self.stderr: IO[str] | None = None
        with contextlib.ExitStack() as mine:
            if stderr is None:
                read, write = os.pipe()
                self.stderr = os.fdopen(read)
                stderr = mine.enter_context(os.fdopen(write, "wb"))
            self._process = warm.command(*arguments, stderr=stderr, environment=environment)
        assert self._process.stdout is not None
        # From here on it is closed by who reads it.
        self.stdout = os.fdopen(self._process.stdout)
        self._process.stdout = None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    def poll(self) -> int | None:
        return self._process.poll()

    def wait(self, timeout: float | None = None) -> int:
        code = self._process.poll(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("tellback", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Everything that it still writes."""
        streams = [stream for stream in (self.stdout, self.stderr) if stream is not None and not stream.closed]
        with ThreadPoolExecutor(2) as readers:
            told = [*readers.map(lambda stream: stream.read(), streams), "", ""]
        for stream in streams:
            stream.close()
        self.wait(timeout)
        return told[0], told[1]


class WarmServer(ServerProcess):
    """See the module."""

    def _spawn(self, arguments: Sequence[str], log: IO[bytes]) -> subprocess.Popen[str]:
        return cast("subprocess.Popen[str]", WarmPopen(*arguments, stderr=log))

"""A real server in a process of its own, for tests of programs that use this package.

    with ServerProcess() as server:
        with BlockingClient(server.url) as client: ...

Rules of this module:
- It is the real server on a real port and a real disk; nothing is imported from it.
- `kill` is SIGKILL: what a test sees afterwards is what a power-cut program would see.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0

_FIRST_LINE = re.compile(r"(wss?)://(.+):(\d+)/ws")


class ServerProcess:
    """`tellback serve` on a free port of this machine, over `data`."""

    def __init__(
        self, data: str | os.PathLike[str] | None = None, *, port: int = 0, arguments: Sequence[str] = ()
    ) -> None:
        """`data` None makes a folder that goes with the server; `arguments` are added to `serve`."""
        self._temporary = tempfile.TemporaryDirectory(prefix="tellback-") if data is None else None
        self.data = Path(self._temporary.name if self._temporary is not None else os.fspath(data or ""))
        """The data folder."""
        self.port = port
        """0 until the first start; the same one after every restart."""
        self.arguments = list(arguments)
        self.log_path = self.data.parent / f"{self.data.name}.server.log"
        """What the server says on its standard error."""
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """For `connect`; it stays the same through restarts."""
        return f"ws://127.0.0.1:{self.port}/ws"

    @property
    def pid(self) -> int | None:
        """The process, or None while there is none."""
        return self._process.pid if self._process is not None else None

    def start(self) -> ServerProcess:
        """Start, and return when the server takes connections. Raises: RuntimeError with what it said."""
        if self._process is not None:
            raise RuntimeError("the server runs already")
        arguments = ["serve", "--data", str(self.data), "--port", str(self.port), *self.arguments]
        with self.log_path.open("ab") as log:
            self._process = self._spawn(arguments, log)
        line = self._first_line()
        match = _FIRST_LINE.fullmatch(line.strip())
        if match is None:
            self.kill()
            raise RuntimeError(f"the server did not start: {line!r}\n{self.said()[-2000:]}")
        self.port = int(match.group(3))
        return self

    def _spawn(self, arguments: Sequence[str], log: IO[bytes]) -> subprocess.Popen[str]:
        return subprocess.Popen(  # noqa: S603 - our own interpreter and our own module.
            [sys.executable, "-m", "tellback_server", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        )

    def _first_line(self) -> str:
        assert self._process is not None, "called by start"
        assert self._process.stdout is not None, "it is a pipe"
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(START_TIMEOUT_S):
                return f"nothing within {START_TIMEOUT_S:g} s"
        return self._process.stdout.readline()

    def kill(self) -> None:
        """SIGKILL: no farewell, no flush."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, and wait for the orderly end. A server that is not there is no error."""
        self._end(signal.SIGTERM)

    def restart(self) -> ServerProcess:
        """Start again over the same data on the same port; a server that still runs is stopped first."""
        self.stop()
        self._wait_for_port()
        return self.start()

    def said(self) -> str:
        """Everything the server wrote to its standard error."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def _wait_for_port(self) -> None:
        """Connections that the kernel still closes must not make the next start fail."""
        until_s = time.monotonic() + 5
        while self.port and time.monotonic() < until_s:
            with contextlib.closing(socket.socket()) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", self.port))
                except OSError:
                    time.sleep(0.05)
                    continue
                return

    def __enter__(self) -> ServerProcess:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop, and remove the folder if it was made here."""
        self.stop()
        if self._temporary is not None:
            self._temporary.cleanup()
            self.log_path.unlink(missing_ok=True)

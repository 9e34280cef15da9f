"""Standstill: for a moment nothing of this process touches a file, while the log goes on; for a backup of everything.

    async with standstill.held() as place:      every thread that touches files waits; place tells where the log is

Rules of this module (BEHAVIOUR Z13):
- What stands on the disk then, with the log up to `place`, is what a kill at that moment would leave; so a copy of it
  is recovered like that, and holds everything acknowledged before.
- Nobody who writes waits: a commit needs the log alone. Who opens a chat that is not in memory waits until it is over.
- It ends by itself after HOLD_S, whatever the one who asked for it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor
from typing import Final

import msgspec

from tellback_server.log import Log

__all__ = ["HOLD_S", "Place", "Standstill"]

HOLD_S: Final = 60.0


class Place(msgspec.Struct, frozen=True):
    """Where the log was."""

    position: int
    """Everything up to here is durable and in the copy."""
    term: int
    segment: int
    """The segment that was written, and where its last whole batch ended."""
    offset: int


class Standstill:
    """See the module. Loop thread."""

    def __init__(self, log: Log, executors: Sequence[tuple[Executor, int]]) -> None:
        """`executors` are all whose threads touch files or a store, each with the number of its threads; those that may
        be waited for longest come first.
        """
        self._log = log
        self._executors = executors
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[Place]:
        """One at a time. What was begun is done first. Raises TimeoutError when that takes too long."""
        async with self._lock:
            go_on = threading.Event()
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout(HOLD_S / 2):
                    for executor, count in self._executors:
                        # As many as there are threads: when each has one, nothing else runs in them.
                        arrived = [loop.create_future() for _thread in range(count)]
                        for here in arrived:
                            executor.submit(_stand, loop, here, go_on)
                        await asyncio.gather(*arrived)
                    await self._log.flush()
                segment, offset = self._log.written
                yield Place(self._log.durable, self._log.term, segment, offset)
            finally:
                go_on.set()


def _stand(loop: asyncio.AbstractEventLoop, here: asyncio.Future[None], go_on: threading.Event) -> None:
    def arrive() -> None:
        if not here.done():
            here.set_result(None)

    if not go_on.is_set():
        loop.call_soon_threadsafe(arrive)
        go_on.wait(HOLD_S)

"""Workload and oracle for the crash tests of the log: what is appended, what was promised, what must be there.

Rules this module keeps:

- The oracle knows three things: what was appended, in which order, and up to which position it was told durable at
  which moment of the trace.
- A recovered log is right when it is a prefix of what was appended and not shorter than what was promised.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any

from tellback_server.clock import Clock
from tellback_server.fs import Fs
from tellback_server.log import Log, LogPoisoned, Position, Record
from tellback_server.log.writer import SEAL_AFTER_S

DIRECTORY = "/data/.tellback/log"
DATA: dict[str, bytes | None] = {"/data": None}
SEGMENT_BYTES = 2048


class Quiet:
    """A logger that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        """Keeps it."""
        self.events.append((event, fields))

    def warning(self, event: str, **fields: Any) -> None:
        """Keeps it."""
        self.events.append((event, fields))

    def names(self) -> list[str]:
        """The events, without their fields."""
        return [event for event, _fields in self.events]


def seeded_clock(seed: int = 1) -> Clock:
    """A real clock whose random bits repeat."""
    clock = Clock()
    clock.reseed(seed)
    return clock


def open_log(fs: Fs, log_class: type[Log] = Log, **options: Any) -> Log:
    """The real recovery, with small segments and a quiet logger."""
    options.setdefault("segment_bytes", SEGMENT_BYTES)
    options.setdefault("logger", Quiet())
    return log_class.open(fs, options.pop("directory", DIRECTORY), options.pop("clock", seeded_clock()), **options)


def recovered(fs: Fs) -> list[Record]:
    """Everything a start finds, in order of position. Positions have no hole."""
    log = open_log(fs)
    try:
        first = log.first_retained
        found = list(log.scan())
        assert [position for position, _record in found] == list(range(first, first + len(found)))
        return [record for _position, record in found]
    finally:
        log.close()


def some_record(number: int, chance: random.Random) -> Record:
    """A record of 0 to 600 bytes, different from every other."""
    body = (f"{number}:" + "é" * chance.choice((0, 3, 40, 150, 290))).encode()
    return Record(number % 5, f"default-user/{number % 3}", number, body)


class Workload:
    """Appends records through real logs, one after the other, over one file system."""

    def __init__(self, fs: Fs, mark: Callable[[str, int], None], log_class: type[Log] = Log, **options: Any) -> None:
        self._fs = fs
        self._mark = mark
        self._log_class = log_class
        self._options = options
        self._chance = random.Random(7)
        self.appended: list[Record] = []
        self.told = 0
        """The highest position told durable so far."""

    async def run(
        self, batches: list[int], *, idle: bool = False, before_last: Callable[[], None] | None = None
    ) -> None:
        """One life of the log: each batch is that many records and then a flush; at the end the log is closed.

        `idle` waits for the seal first. `before_last` is called before the last batch; when it breaks the disk, the
        life ends poisoned, the way a killed process ends: no seal, and a batch that nobody knows the fate of.
        """
        log = open_log(self._fs, self._log_class, **self._options)
        # What a start has shown to anybody must stay (fact 1).
        self._mark("durable", log.durable)
        assert self.told <= log.durable <= len(self.appended)
        # Of what was never told, a start may find nothing: then it never was, and the numbers are used again.
        del self.appended[log.durable :]
        poisoned: list[BaseException] = []
        log.start(asyncio.get_running_loop(), self._told, poisoned.append)
        for at, count in enumerate(batches):
            if before_last is not None and at == len(batches) - 1:
                before_last()
            for _ in range(count):
                record = some_record(len(self.appended) + 1, self._chance)
                self.appended.append(record)
                position = log.append(record.kind, record.owner, record.seq, record.body)
                assert position == len(self.appended)
            try:
                await log.flush()
            except LogPoisoned:
                break
        if idle:
            await asyncio.sleep(4 * SEAL_AFTER_S)
            assert log.stats.seals == 1
        if before_last is not None:
            assert len(poisoned) == 1
            with contextlib.suppress(LogPoisoned):
                log.close()
        else:
            log.close()
            assert not poisoned

    def _told(self, position: Position) -> None:
        self.told = position
        self._mark("durable", position)

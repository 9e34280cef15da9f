"""What a start on a crash state has to show, and how one is judged.

    judge = Judge(Taken.of(day, seed))
    await judge.first(done, disk)                raises Violation
    await judge.second(done, disk, ...)          the start itself is cut, too

Rules of this module:
- A start needs nobody. It shows one world, whole: not older than what was told, not newer than what was asked for.
- Every so often the server goes on: everything is folded, it stops, and a second start shows the same world, from the
  files of which no temporary is left.
- A start that is cut is judged as the disk it began with; one that was through has to be kept to.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tellback_server.fs import TEMPORARY_SUFFIX
from tests.campaign.workload import SESSION, Day, InodeRecordingFs, World, is_same, world_of
from tests.support.crash_states import NumberedDisk, StrictDisk, crash_states
from tests.support.headless import Wire, headless
from tests.support.recording_fs import Call, Mark
from tests.support.sim_fs import SimFs

START_TIMEOUT_S = 300
"""Only so that a hang ends: at the lowest priority of a busy machine a start waits for its turn for half a minute."""


class Violation(Exception):
    """A promise that a crash state broke."""


@dataclass
class Taken:
    """What is left of a day: enough to compute and judge its crash states anywhere."""

    seed: int
    trace: list[Call]
    base: dict[int, bytes]
    base_names: dict[str, int]
    worlds: list[World]
    steps: list[str]

    @classmethod
    def of(cls, day: Day, seed: int) -> Taken:
        """Of a day that is over."""
        recording = day.recording
        return cls(seed, recording.trace, recording.base, recording.base_names, day.worlds, day.steps)


class Judge:
    """See the module. `told[done]` is the first world that may be shown; the next one is the last."""

    def __init__(self, taken: Taken) -> None:
        self.worlds = taken.worlds
        self.steps = taken.steps
        self.told = [-1]
        for call in taken.trace:
            self.told.append(call.value if isinstance(call, Mark) else self.told[-1])

    def fs_of(self, disk: NumberedDisk) -> SimFs:
        """The disk as a file system."""
        return SimFs(disk, disk.files)

    async def first(self, done: int, disk: NumberedDisk, *, thorough: bool = False) -> int:
        """Starts on the disk; the number of the world that is shown."""
        fs = self.fs_of(disk)
        least = max(self.told[done], 0)
        shown = await self._shown(fs, thorough=thorough)
        at = self._which(shown, least)
        if thorough:
            again = await self._shown(fs, thorough=False)
            self._same(again, at, "a second start shows another world")
            left = [path for path in fs.files() if path.endswith(TEMPORARY_SUFFIX)]
            if left:
                raise Violation(f"left over: {left}")
        return at

    async def second(self, done: int, disk: NumberedDisk, count: int, seed: int, disk_class: type[StrictDisk]) -> int:
        """Cuts the start on this disk `count` times, and starts on what that leaves. Returns how often it did."""
        recording = InodeRecordingFs(self.fs_of(disk), disk)
        shown = await self._shown(recording, thorough=True)
        least = max(self.told[done], 0)
        believed = self._which(shown, least)
        ended = len(recording.trace)
        chance = random.Random(seed)
        states = list(crash_states(recording, seed=seed, disk_class=disk_class))
        for cut, inner in chance.sample(states, min(count, len(states))):
            at = self._which(await self._shown(self.fs_of(inner), thorough=False), least)
            if cut == ended and not _are_same(self.worlds[at], self.worlds[believed]):
                raise Violation(f"a start showed {self._name(believed)}, the next one {self._name(at)}")
        return min(count, len(states))

    async def _shown(self, fs: Any, *, thorough: bool) -> World:
        try:
            async with asyncio.timeout(START_TIMEOUT_S), headless(fs, log_retain_bytes=0) as app:
                tab = await Wire.join(app, SESSION)
                shown = await world_of(tab)
                if thorough:
                    await app.settle()
                    await app.fold()
                return shown
        except (AssertionError, OSError, TimeoutError, KeyError, RuntimeError, ValueError) as error:
            raise Violation(f"the start fails: {error!r}") from error

    def _which(self, shown: World, least: int) -> int:
        for at in range(least, min(least + 2, len(self.worlds))):
            if is_same(shown, self.worlds[at]):
                return at
        raise Violation(f"neither {self._name(least)} nor the next: {self._difference(shown, least)}")

    def _same(self, shown: World, at: int, sentence: str) -> None:
        if not is_same(shown, self.worlds[at]):
            raise Violation(f"{sentence}: {self._difference(shown, at)}")

    def _name(self, at: int) -> str:
        return f"world {at} ({self.steps[at]})"

    def _difference(self, shown: World, at: int) -> str:
        wanted = self.worlds[at]
        return "; ".join(
            f"{name}: shown {str(shown[name])[:1500]}, wanted {str(wanted[name])[:1500]}"
            for name in wanted if shown[name] != wanted[name]
        )


def _are_same(one: World, other: World) -> bool:
    return is_same(one, other) or is_same(other, one)


def states_of(taken: Taken, disk_class: type[StrictDisk]) -> Iterator[tuple[int, int, NumberedDisk]]:
    """(number, calls that had happened, disk) of each crash state."""
    for number, (done, disk) in enumerate(crash_states(taken, seed=taken.seed, disk_class=disk_class)):
        yield number, done, disk

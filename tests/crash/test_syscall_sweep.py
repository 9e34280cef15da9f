"""The Nth call that could fail does, for every N of a whole day on the whole server (RELIABILITY L2: SQLite's method).

EIO, ENOSPC, EDQUOT and EROFS, once or until the disk is well again; a write that fails has put down a part. EINTR is
retried by the interpreter, and a kill before or after each call is one of the crash states and failpoint kills.

Whatever fails: no ack without durability, a poisoned log ends the server, everything else is refused or done later, a
start needs nobody, and the day ends as a day without a fault. A seeded part; TELLBACK_SWEEP is how many, or `all`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tellback_server import lifecycle
from tellback_server.log import LogError, writer
from tests.campaign.__main__ import hushed
from tests.campaign.workload import BASE, LIVES, NAMES, SESSION, Day, World, is_same, world_of
from tests.support.headless import Headless, Wire, headless
from tests.support.sim_fs import SimFs

CASES = os.environ.get("TELLBACK_SWEEP", "24")
NUMBERS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS)
TRIES_MAX = 12
PATIENCE_S = 0.5
WITHOUT = {"_start", "_text", "_end"}
"""Their text travels in time; test_generation_faults has their disks."""


class SweepFs(SimFs):
    """Counts what may fail, and lets the nth fail."""

    def __init__(self, at: int, number: int, *, for_ever: bool) -> None:
        self.count = 0
        self.failed = 0
        self._at = at
        self._number = number
        self._for_ever = for_ever
        super().__init__(BASE)

    def planned(self, method: str) -> int:
        self.count += 1
        if self._at and (self.count >= self._at if self._for_ever else self.count == self._at):
            self.failed += 1
            return self._number
        return 0

    def heal(self) -> None:
        self._at = 0

    def link(self, source: str, target: str) -> None:
        self.strike("link", source)
        super().link(source, target)

    def exchange(self, first: str, second: str) -> bool:
        self.strike("exchange", first)
        return super().exchange(first, second)

    def _mkdir(self, path: str) -> None:
        self.strike("mkdir", path)
        super()._mkdir(path)


class Insistent:
    """A tab that asks until it is answered, and starts the server again when it was poisoned."""

    def __init__(self, day: Day, fs: SweepFs) -> None:
        self.day = day
        self.fs = fs
        self.ops: dict[str, int] = {}
        self.starts = 0
        self.app: Headless | None = None
        self._tab: Wire

    async def start(self) -> None:
        """A start that the disk refuses is tried again when the disk is well."""
        self.starts += 1
        self.app = Headless(self.fs, log_retain_bytes=0)
        try:
            await self.app.start()
        except (OSError, LogError):
            self.fs.heal()
            self.fs.locks.clear()
            self.app = Headless(self.fs, log_retain_bytes=0)
            await self.app.start()
        self.day.app = self.app
        self._tab = await Wire.join(self.app, SESSION)

    async def end(self) -> None:
        """As a kill."""
        assert self.app is not None
        await self.app.abandon()
        self.fs.locks.clear()

    async def ask(self, type: str, **fields: Any) -> dict[str, Any]:
        told = self.day.worlds[-1] if self.day.worlds else None
        for turn in range(TRIES_MAX):
            assert self.app is not None
            # Who waits for files that cannot be moved waits until the disk is well.
            well = asyncio.get_running_loop().call_later(PATIENCE_S, self.fs.heal)
            try:
                answer = await self._tab.ask(type, **fields)
            except AssertionError:
                assert self.app._poison is not None, "a request without an answer"
                answer = {"type": "error", "retry": "backoff"}
            finally:
                well.cancel()
            if self.app._poison is not None:
                # Nobody is answered any more: the process ends, and another one starts.
                await self.end()
                self.fs.heal()
                await self.start()
                if "op" in fields and told is not None:
                    shown = await world_of(self._tab)
                    again = await self._tab.ask(type, **fields)
                    assert again["type"] == "ack", again
                    if is_same(shown, told):
                        assert not again.get("duplicate"), "what was not applied is done now"
                    else:
                        assert again.get("duplicate"), "applied wholly, or not at all"
                        assert is_same(await world_of(self._tab), shown), "nothing is done twice"
                    return again
                continue
            if answer["type"] != "error" or answer["retry"] not in ("backoff", "now"):
                is_read_error = answer.get("code") in ("unreadable", "internal")
                if not is_read_error:
                    return answer
            if turn >= 2:
                self.fs.heal()
                await asyncio.sleep(0.02)
        raise AssertionError(f"never answered: {answer}")


async def a_day(fs: SweepFs) -> tuple[World, int]:
    """The day on that disk. Its last world, and how many starts it took."""
    day = Day(None, None, 0)  # type: ignore[arg-type]
    day.tab = tab = Insistent(day, fs)  # type: ignore[assignment]

    async def shown() -> None:
        day.worlds.append(await world_of(tab))  # type: ignore[arg-type]
        for name, found in day.worlds[-1].items():
            if name in NAMES and "next_op" in found:
                tab.ops[name] = found["next_op"]
                day.ids[name] = [message["id"] for message in found["messages"]]

    for life in LIVES:
        await tab.start()
        await shown()
        for step in life:
            if step.__name__ not in WITHOUT:
                await step(day)
                await shown()
        await tab.end()
    fs.heal()
    await tab.start()
    last = await world_of(tab)  # type: ignore[arg-type]
    assert is_same(last, day.worlds[-1]), "a last start shows the last world"
    await tab.end()
    return last, tab.starts


def plain(world: World) -> dict[str, Any]:
    """A world without what every run draws anew."""
    return {
        name: [message["mes"] for message in found["messages"]] if isinstance(found, dict) and "messages" in found
        else found.get("code", sorted(found)) if isinstance(found, dict) else str(found)
        for name, found in world.items() if name not in ("trash", "backups")
    }


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with hushed():
        yield


@pytest.mark.timeout(7200)
async def test_whichever_call_fails_the_day_ends_as_if_none_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """[L5] [O1] [J3]"""
    monkeypatch.setattr(lifecycle, "RETRY_S", 0.01)
    monkeypatch.setattr(writer, "_SPARE_RETRY_S", 0.01)
    healthy = SweepFs(0, 0, for_ever=False)
    whole, starts = await a_day(healthy)
    assert starts == len(LIVES) + 1
    assert healthy.count > 400
    cases = [
        (at, number, for_ever) for at in range(1, healthy.count + 1) for number in NUMBERS for for_ever in (False, True)
    ]
    poisoned = failed = 0
    chosen = cases if CASES == "all" else random.Random(20).sample(cases, int(CASES))
    for at, number, for_ever in chosen:
        fs = SweepFs(at, number, for_ever=for_ever)
        try:
            last, starts = await a_day(fs)
            assert plain(last) == plain(whole)
        except BaseException as error:
            kind = "for ever" if for_ever else "once"
            error.add_note(f"call {at} of {healthy.count}: {errno.errorcode[number]}, {kind}")
            raise
        failed += bool(fs.failed)
        poisoned += starts > len(LIVES) + 1
    print(f"{len(chosen)} of {len(cases)} cases, {failed} failed a call, {poisoned} ended the server")
    assert failed
    assert poisoned


async def test_a_folder_that_cannot_be_read_is_an_answer_and_not_silence() -> None:
    """[L5]: who asks for an id that nobody knows by heart; found by the sweep."""
    fs = SimFs(BASE)
    async with headless(fs) as app:
        tab = await Wire.join(app)
        await tab.ask("open", chat="character:Alice/Talk", since=None, create=True)
        await app.fold()
        fs.fail("close", errno.EIO)
        unknown = "id:11111111-2222-4333-8444-555555555555"
        answer = await tab.ask("open", chat=unknown, since=None)
        assert (answer["code"], answer["type"]) == ("unreadable", "error")
        assert (await tab.ask("open", chat=unknown, since=None))["code"] == "not-found"

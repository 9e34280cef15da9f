"""A run: a real server, tabs, chaos, and at the end evidence and a verdict. The same plan makes the same requests and
the same faults; only their timing is the machine's.

A run that fails leaves one folder: the plan with its seed, the notes, the evidence, the server's log and the data.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import signal
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tellback_server.store.base import StoreUnavailable
from tests.checker import power
from tests.checker.caretaker import Caretaker
from tests.checker.evidence import (
    Evidence,
    load,
    read_beside,
    read_disk,
    read_elsewhere,
    read_server,
    read_store,
    read_turns,
    save,
)
from tests.checker.invariants import Violation, verify
from tests.checker.linearizability import second_opinion
from tests.checker.notebook import Notebook, read
from tests.checker.outsider import Outsider
from tests.checker.tab import Forgotten, Tab
from tests.support.database_servers import ServerProcess
from tests.support.forked_server import ForkedServer
from tests.support.oracle import LOST
from tests.support.server import TabClient
from tests.support.stored import caught_up
from tests.support.waiting import until

CHAT = "character:Alice/Checked"
ROUND_S = 3.0
"""A round that gets no answers ends all the same."""
LOG_SEGMENT_BYTES = 64 << 10

CHAOS = {"kill": 5, "power": 4, "pause": 2, "wires": 3, "stop": 1}
"""What happens at the end of a round, and how often."""


class Plan(msgspec.Struct):
    """Everything that a run depends on."""

    seed: int
    rounds: int = 8
    tabs: int = 4
    window: int = 4
    answers: int = 40
    """Of a round."""
    chaos: dict[str, int] = msgspec.field(default_factory=lambda: dict(CHAOS))
    planted: str | None = None
    """A bug of `planted`."""
    store: str | None = None
    """The URL of a store, `{folder}` being the run's own folder."""
    backup: str | None = None
    """The URL of a second one, which follows the first."""
    settings: dict[str, Any] = {}
    end_s: float = 40.0
    """By then every op has its answer."""
    fail_syncs: bool = False
    """Now and then an fdatasync of the log fails; the server ends itself and is started again."""


class Run:
    """One run in a folder of its own."""

    def __init__(self, plan: Plan, folder: Path, databases: Sequence[ServerProcess] = ()) -> None:
        self.plan = plan
        self.databases = databases
        self.folder = folder
        self.data = folder / "data"
        self.journal = folder / "journal"
        self.chance = random.Random(plan.seed)
        self.problems: list[tuple[str, str]] = []
        self.rounds = 0
        self.urls: list[str] = []
        """Where tabs may go while there are two servers."""
        self.caretaker: Caretaker
        self.outsider: Outsider
        self.stores = {
            name: url.format(folder=folder) for name, url in (("store", plan.store), ("backup", plan.backup)) if url
        }
        store: dict[str, Any] = dict(self.stores)
        if plan.backup is not None:
            store |= {"store": "multi", "primary": self.stores["store"], "flush_interval_s": 0.1}
        self.server = ForkedServer(self.data, **{
            "checkpoint_interval_s": 0.05, "log_segment_bytes": LOG_SEGMENT_BYTES, **store, **plan.settings,
        })

    async def run(self) -> list[Violation]:
        """Do it all; every broken promise."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data.mkdir()
        (self.folder / "store").mkdir()
        (self.folder / "plan.json").write_bytes(msgspec.json.encode(self.plan))
        notebook = Notebook(self.folder / "notes.jsonl")
        evidence = Evidence({})
        self._prepare()
        try:
            async with self.server:
                with contextlib.suppress(_Over):
                    await self._hold(notebook, evidence)
        finally:
            notebook.close()
            evidence.problems = self.problems
            save(evidence, self.folder / "evidence.json")
        return judged(self.folder)

    def _prepare(self) -> None:
        self.server.settings["prepare"] = self._prepared(self.journal)

    def _prepared(self, journal: Path) -> dict[str, Any]:
        prepare: dict[str, Any] = {}
        if self.plan.planted is not None:
            prepare["tests.checker.planted"] = self.plan.planted
        fail_at = self.chance.randrange(8, 60) if self.plan.fail_syncs else 0
        prepare["tests.checker.power"] = {
            "journal": str(journal), "data": str(self.data), "fail_sync_at": fail_at,
        }
        return prepare

    async def _start(self) -> None:
        self._prepare()
        try:
            await self.server.start()
        except (AssertionError, TimeoutError) as error:
            self.server.forget()
            reason = str(error).strip().splitlines()[-1]
            self.problems.append(("durable", f"after {self.rounds} rounds the server does not start: {reason}"))
            raise _Over from None

    async def _hold(self, notebook: Notebook, evidence: Evidence) -> None:
        first = await TabClient.join(self.server.url)
        opened = await first.open(CHAT, create=True)
        await first.append(CHAT, "one", "two", "three")
        evidence.first = await first.open(CHAT)
        await first.close()
        assert opened["type"] == "opened", opened
        chat = f"id:{opened['chat_id']}"
        self.outsider = Outsider(self.data, opened["chat_id"], notebook, self.chance)
        integrity = evidence.first["version"]["integrity"]
        self.caretaker = Caretaker(chat, integrity, notebook, self._url, self.chance)
        stop = asyncio.Event()
        tabs = [
            Tab(f"t{number}", chat, notebook, self._url, self.plan.seed, window=self.plan.window)
            for number in range(self.plan.tabs)
        ]
        tasks = [asyncio.create_task(tab.run(stop)) for tab in tabs]
        try:
            while self.rounds < self.plan.rounds and not any(task.done() for task in tasks):
                await self._round(notebook, tabs, tasks)
                self.rounds += 1
            stop.set()
            await self._ended(notebook, tasks)
        finally:
            await self.caretaker.close()
            for task in tasks:
                task.cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            for failure in found:
                if isinstance(failure, Forgotten):
                    self.problems.append(("exactly-once", str(failure)))
                elif isinstance(failure, Exception):
                    self.problems.append(("broadcast-stream", f"a tab gave up: {failure!r}"))
        await self._evidence(notebook, chat, evidence)

    async def _round(self, notebook: Notebook, tabs: list[Tab], tasks: list[asyncio.Task[None]]) -> None:
        wanted = notebook.answers + self.chance.randrange(self.plan.answers // 2, self.plan.answers * 3 // 2)
        loop = asyncio.get_running_loop()
        until_s = loop.time() + ROUND_S
        # No timeout around it: a server that is being started again is waited for.
        while notebook.answers < wanted and loop.time() < until_s and not any(task.done() for task in tasks):
            await asyncio.sleep(0.002)
            await self._revive(notebook)
        [kind] = self.chance.choices(list(self.plan.chaos), list(self.plan.chaos.values()))
        notebook.note("", "chaos", kind=kind)
        match kind:
            case "kill":
                await self.server.kill()
                await self._start()
            case "power":
                await self.server.kill()
                notebook.note("", "chaos", kind=power.cut(self.journal, self.data, self.chance))
                await self._start()
            case "rot" | "rot-length":
                await self.server.kill()
                flip = power.rot if kind == "rot" else power.rot_length
                notebook.note("", "chaos", kind=flip(self.data, self.chance))
                await self._start()
            case "rival":
                await self._rival(notebook, tabs)
            case "stop":
                await self.server.stop()
                await self._start()
            case "bin" | "backup" | "copy" | "restore":
                await self._cared(notebook, getattr(self.caretaker, kind)())
            case "database":
                database = self.chance.choice(self.databases)
                await asyncio.to_thread(database.kill)
                await asyncio.sleep(self.chance.uniform(0, 0.5))
                await asyncio.to_thread(database.start)
            case "edit":
                self.outsider.edit()
            case "edit-down":
                await self.server.kill()
                self.outsider.edit()
                await self._start()
            case "pause":
                self.server.signal(signal.SIGSTOP)
                await asyncio.sleep(self.chance.uniform(0.05, 0.2))
                self.server.signal(signal.SIGCONT)
            case "wires":
                for tab in self.chance.sample(tabs, max(1, len(tabs) // 2)):
                    tab.cut()

    async def _cared(self, notebook: Notebook, doing: Coroutine[Any, Any, None]) -> None:
        """What the caretaker does; every other time the server is killed in the middle of it."""
        task = asyncio.create_task(doing)
        try:
            if self.chance.random() < 0.5:
                await asyncio.wait([task], timeout=self.chance.uniform(0, 0.05))
                await self.server.kill()
                await self._start()
            async with asyncio.timeout(self.plan.end_s):
                while not task.done():
                    await self._revive(notebook)
                    await asyncio.wait([task], timeout=0.02)
                await task
        except TimeoutError:
            self.problems.append(("exactly-once", "the caretaker gets no outcome, however often it asks"))
            raise _Over from None
        except AssertionError as error:
            self.problems.append(("exactly-once", f"the caretaker was refused: {error}"))
        finally:
            task.cancel()

    async def _rival(self, notebook: Notebook, tabs: list[Tab]) -> None:
        """A second server on the same folder. It refuses to start; where it does not, tabs come to it, too."""
        settings = {name: value for name, value in self.server.settings.items() if name != "data"}
        settings["prepare"] = self._prepared(self.folder / "rival-journal")
        rival = ForkedServer(self.data, **{**settings, "port": 0})
        rival.errors = self.folder / "rival.log"
        with contextlib.suppress(AssertionError, TimeoutError):
            async with rival:
                self.urls = [self.server.url, rival.url]
                for tab in tabs[::2]:
                    tab.cut()
                wanted = notebook.answers + self.plan.answers
                with contextlib.suppress(TimeoutError):
                    await until(lambda: notebook.answers >= wanted, ROUND_S)
        self.urls = []
        await self.server.kill()
        await self._start()

    def _url(self) -> str:
        return self.chance.choice(self.urls) if self.urls else self.server.url

    async def _revive(self, notebook: Notebook) -> None:
        """A server that found its disk failing has ended itself; as after a real EIO, what was not synced is gone."""
        if not self.plan.fail_syncs or self.server.is_running:
            return
        code = await self.server.ended()
        notebook.note("", "chaos", kind=f"ended with {code}")
        power.cut(self.journal, self.data, random.Random(0))
        await self._start()

    async def _ended(self, notebook: Notebook, tasks: list[asyncio.Task[None]]) -> None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self.plan.end_s
        while not all(task.done() for task in tasks) and loop.time() < until_s:
            await self._revive(notebook)
            await asyncio.wait(tasks, timeout=0.02)
        if not all(task.done() for task in tasks):
            self.problems.append(("exactly-once", "some ops get no outcome, however often they are resent"))

    async def _evidence(self, notebook: Notebook, chat: str, evidence: Evidence) -> None:
        chat_id = chat.removeprefix("id:")
        try:
            self.plan.fail_syncs = False
            await self.server.kill()
            await self._start()
            await read_server(self.server.url, chat, evidence)
            await read_beside(self.server.url, chat, notebook.made, evidence)
            for url in self.stores.values():
                reader = await TabClient.join(self.server.url)
                # A folder is in use by the server; what it holds is read again when that has ended.
                with contextlib.suppress(TimeoutError, AssertionError, StoreUnavailable):
                    await caught_up(url, reader, chat, timeout_s=10)
                await reader.close()
            code = await self.server.stop()
            if code != 0:
                self.problems.append(("durable", f"the server ended with {code}"))
            for name, url in self.stores.items():
                evidence.stores[name] = await read_store(url, chat_id)
            evidence.turns = read_turns(self.data, chat_id)
            if not self.stores:
                evidence.disk = read_disk(self.data, chat_id)
                evidence.elsewhere = read_elsewhere(self.data)
        except (*LOST, AssertionError, KeyError, ValueError) as error:
            self.problems.append(("durable", f"what is there cannot be read: {error!r}"))


class _Over(Exception):
    """The run cannot go on; why is noted."""


def judged(folder: Path) -> list[Violation]:
    """The verdict over a run that was held, from its folder alone."""
    with (folder / "notes.jsonl").open() as lines:
        notes = read(lines)
    evidence = load(folder / "evidence.json")
    found = verify(notes, evidence)
    if evidence.final:
        found += [Violation("linearizable", text) for text in second_opinion(notes, evidence)]
    return found


async def hold(
    plan: Plan, folder: Path, keep: Path | None = None, databases: Sequence[ServerProcess] = ()
) -> list[Violation]:
    """One run below `folder`; a failed one is kept as `keep/<seed>`. `databases` may be killed."""
    run = Run(plan, folder / f"run-{plan.seed}-{plan.planted or 'sound'}", databases)
    found = await run.run()
    if found and keep is not None:
        _keep(run, keep / run.folder.name, found)
    return found


def _keep(run: Run, artefact: Path, found: list[Violation]) -> None:
    shutil.rmtree(artefact, ignore_errors=True)
    artefact.mkdir(parents=True)
    for name in ("plan.json", "notes.jsonl", "evidence.json"):
        if (run.folder / name).exists():
            shutil.copy(run.folder / name, artefact / name)
    shutil.copy(run.server.errors, artefact / "server.log")
    shutil.copytree(run.data, artefact / "data", ignore=lambda folder, names: [
        name for name in names if not (Path(folder) / name).is_file() and not (Path(folder) / name).is_dir()
    ])
    (artefact / "violations.json").write_text(json.dumps([violation._asdict() for violation in found], indent=1))

"""kill -9 at every named failpoint: what was told stays, what was asked is done wholly or not at all (F1, F2).

Three layers, so that a new failpoint without a kill fails here:
- The reference day runs in this process and notes every hit. What a kill leaves at that moment is the disk with
  everything written so far; the whole server starts on it and has to show a world that was told or asked for.
- The same day runs over a socket against a real process, which is killed at a failpoint, starts again and goes on; at
  the end everything is as on a day without a kill. A seeded sample, TELLBACK_FAILPOINT_KILLS=all for every name.
- What no day reaches is killed by the tests that own it; they have to name it.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from tellback_server.backup_folder import BackupFolder
from tellback_server.commands.importing import import_chats
from tellback_server.failpoint import failpoint as nothing
from tellback_server.fs import Fs
from tellback_server.store.files import DEFAULT_USER
from tellback_server.thinning import DAY_MS, Policy
from tests.campaign.__main__ import hushed
from tests.campaign.states import Judge, Taken
from tests.campaign.workload import BASE, LIVES, NAMES, SESSION, Day, World, is_same, record, world_of
from tests.server.test_backup_folder import CHAT_ID, LINES, NOW_MS, put, source, standing, store
from tests.support.crash_states import NumberedDisk, StrictDisk, changed
from tests.support.forked_server import ForkedServer
from tests.support.log_workload import Workload, open_log
from tests.support.oracle import LOST
from tests.support.server import TabClient, sillytavern_copy, tree
from tests.support.shared import CHECKOUT
from tests.support.warm import set_failpoints

ALL = os.environ.get("TELLBACK_FAILPOINT_KILLS") == "all"
ALWAYS = ("fs.fsync", "fs.fsync_directory")
"""Killed at in every run against a real process: the day in this process has another file system."""
SAMPLE = 1
HITS = 2
"""How often a name is killed at in this process; at every hit with ALL."""
POINTS_MIN = 40
NOT_KILLED: dict[str, str] = {}
"""Names without a kill, and why."""


def names_in_code() -> set[str]:
    """Every name that the server's code gives to `failpoint`."""
    names = set()
    for path in (CHECKOUT / "server").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "failpoint":
                [argument] = node.args
                assert isinstance(argument, ast.Constant), f"{path}: the name of a failpoint is a literal"
                names.add(argument.value)
    return names


def killed_elsewhere() -> str:
    """The text of all other tests."""
    own = Path(__file__)
    return "\n".join(path.read_text() for path in (CHECKOUT / "tests").rglob("*.py") if path != own)


@pytest.fixture
def hits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, int]]]:
    """(name, calls that had happened) of every failpoint that is reached."""
    reached: list[tuple[str, int]] = []
    hooked.trace = []

    def hit(name: str) -> None:
        reached.append((name, len(hooked.trace)))

    for module in [module for name, module in sys.modules.items() if name.startswith("tellback_server")]:
        if getattr(module, "failpoint", None) is nothing:
            monkeypatch.setattr(module, "failpoint", hit)
    with hushed():
        yield reached


class hooked:  # noqa: N801  A place, not a class.
    """Where the running day writes its calls."""

    trace: list[Any]




def everything(model: StrictDisk) -> NumberedDisk:
    """The disk as the killed process saw it."""
    data = {file: changed(model.files.get(file, b""), changes) for file, changes in model.pending.items()}
    return model.disk(dict(model.pending_names), data)


async def test_every_failpoint_has_a_kill_and_every_kill_is_survived(
    hits: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """[J3]: each hit of each failpoint of a day with three lives."""
    from tests.campaign import workload

    class Noted(Day):
        def __init__(self, recording: Any, inner: Any, seed: int) -> None:
            super().__init__(recording, inner, seed)
            hooked.trace = recording.trace

    monkeypatch.setattr(workload, "Day", Noted)
    day = await record(5)
    taken = Taken.of(day, 5)
    judge = Judge(taken)
    reached = list(hits)
    moments: dict[int, set[str]] = {}
    count: Counter[str] = Counter()
    for name, done in reached:
        count[name] += 1
        if ALL or count[name] <= HITS or done in moments:
            moments.setdefault(done, set()).add(name)
    model = StrictDisk(taken)
    starts = 0
    for done, call in enumerate([None, *taken.trace]):
        if call is not None:
            model.apply(call)
        if done in moments:
            try:
                await judge.first(done, everything(model))
            except Exception as error:
                error.add_note(f"killed at {sorted(moments[done])}, call {done}")
                raise
            starts += 1
    here = {name for name, _done in reached}
    other = killed_elsewhere()
    here.update(ALWAYS, IMPORT_POINTS, RECOVERY_POINTS, ("backup.after_unlink_manifests", "backup.after_unlink_file"))
    missing = {
        name for name in names_in_code() - here - NOT_KILLED.keys()
        if f"{name}=" not in other and f'"{name}' not in other and f"{name}@" not in other
    }
    assert not sorted(missing), "a failpoint that no test kills at; add an operation that reaches it, or a test"
    assert not (NOT_KILLED.keys() - names_in_code()), "these do not exist any more"
    print(f"{len(here)} names, {len(reached)} hits, {starts} starts")
    assert len(here) >= POINTS_MIN


# -- a real process


class Survivor:
    """A tab that comes back to a server that was killed, and asks again with the same numbers."""

    def __init__(self, server: ForkedServer, day: Day) -> None:
        self.server = server
        self.day = day
        self.ops: dict[str, int] = {}
        self.tab: TabClient
        self.kills = 0
        self._text: dict[str, Any] | None = None

    async def join(self) -> None:
        self.tab = await TabClient.join(self.server.url, SESSION)

    def send(self, frame: dict[str, Any]) -> None:
        self._text = frame
        asyncio.get_running_loop().create_task(self._send(frame))

    async def _send(self, frame: dict[str, Any]) -> None:
        with contextlib.suppress(*LOST):
            await self.tab.raw.send(frame)

    async def ask(self, type: str, **fields: Any) -> dict[str, Any]:
        try:
            answer = await self.tab.ask(type, **fields)
            if answer.get("code") != "generation-gap":
                return answer
        except LOST:
            await self._back(type, fields)
        answer = await self.tab.ask(type, **fields)
        if answer.get("code") == "generation-gap":
            assert self._text is not None
            await self.tab.raw.send(self._text)
            answer = await self.tab.ask(type, **fields)
        return answer

    async def _back(self, type: str, fields: dict[str, Any]) -> None:
        """The server was killed: after a start it shows the last world, or the one that this request leads to."""
        self.kills += 1
        assert self.kills == 1, "killed once"
        assert await self.server.ended() == -9
        self.server.settings.pop("failpoints", None)
        await self.server.start()
        await self.join()
        shown = await world_of(self.tab)  # type: ignore[arg-type]
        told = self.day.worlds[-1] if self.day.worlds else None
        is_before = told is None or is_same(shown, told)
        if self._text is not None:
            await self.tab.raw.send(self._text)
        if "op" in fields:
            answer = await self.tab.ask(type, **fields)
            assert answer["type"] == "ack", answer
            assert is_before != answer.get("duplicate", False), "applied wholly, or not at all"
            if not is_before:
                assert is_same(await world_of(self.tab), shown), "nothing is done twice"  # type: ignore[arg-type]


class Elsewhere:
    """What the day asks of a server that is another process: it folds by itself."""

    async def settle(self) -> None:
        """It does."""

    async def fold(self) -> None:
        await asyncio.sleep(0.12)

    async def collect(self) -> None:
        """It does, in time."""


async def a_day(server: ForkedServer, data: Path, point: str) -> tuple[World, int]:
    """The day on a real process that is killed at a failpoint. The last world, and how often it was killed."""
    for path, content in BASE.items():
        target = data / path.removeprefix("/data/")
        if content is None:
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.write_bytes(content)
    server.settings = {**server.settings, "data": str(data), "checkpoint_interval_s": 0.02, "log_segment_bytes": 16384}
    if point:
        server.settings["failpoints"] = f"{point}=kill@{2 if point.startswith(('log.recovery', 'fs.')) else 1}"
    day = Day(None, None, 0)  # type: ignore[arg-type]
    day.tab = survivor = Survivor(server, day)  # type: ignore[assignment]
    day.app = Elsewhere()  # type: ignore[assignment]

    async def start() -> None:
        try:
            await server.start()
        except AssertionError as error:
            assert "ended -9" in str(error), error
            server.forget()
            survivor.kills += 1
            server.settings.pop("failpoints", None)
            await server.start()
        await survivor.join()

    async def shown() -> None:
        day.worlds.append(await world_of(survivor))  # type: ignore[arg-type]
        for name in NAMES:
            opened = day.worlds[-1][name]
            if "next_op" in opened:
                survivor.ops[name] = opened["next_op"]
                day.ids[name] = [message["id"] for message in opened["messages"]]

    for life in LIVES:
        await start()
        await shown()
        for step in life:
            await step(day)
            await shown()
        await server.kill()
    return day.worlds[-1], survivor.kills


def plain(world: World) -> dict[str, Any]:
    """A world without what every run draws anew."""
    return {
        name: [message["mes"] for message in shown["messages"]] if isinstance(shown, dict) and "messages" in shown
        else shown.get("code", sorted(shown)) if isinstance(shown, dict) else str(shown)
        for name, shown in world.items() if name not in ("trash", "backups")
    }


@pytest.mark.timeout(1200)
async def test_a_day_goes_on_after_a_real_kill_at_a_failpoint(tmp_path: Path) -> None:
    """[J3] [O1]"""
    chance = random.Random(11)
    reached = [
        name for name in sorted(names_in_code())
        if name.split(".")[0] in ("log", "fs", "checkpoint", "operation", "trash", "generation", "backup")
    ]
    points = reached if ALL else [*ALWAYS, *chance.sample(reached, SAMPLE)]
    async with ForkedServer(tmp_path / "unused") as server:
        await server.kill()
        whole, _kills = await a_day(server, tmp_path / "whole", "")
        killed = []
        for point in points:
            try:
                last, kills = await a_day(server, tmp_path / point, point)
            except BaseException as error:
                error.add_note(f"killed at {point}")
                raise
            assert plain(last) == plain(whole), point
            if kills:
                killed.append(point)
    print(f"{len(killed)} of {len(points)} killed: {killed}")
    if ALL:
        assert len(killed) >= POINTS_MIN
    assert killed


# -- commands and backups, which no day reaches


def killed(point: str, work: Callable[[], object]) -> bool:
    """Runs `work` in a child that is killed at the point; False when it was never reached."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  The child's, until it ends.
            set_failpoints(f"{point}=kill")
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    ended = os.waitstatus_to_exitcode(status)
    assert ended in (-9, 0), ended
    return ended == -9


@pytest.mark.parametrize("point", ["backup.after_unlink_manifests", "backup.after_unlink_file"])
def test_a_kill_while_backups_are_thinned_leaves_whole_ones_z4(tmp_path: Path, point: str) -> None:
    """A manifest that is there has all its files; the next thinning ends as it would have."""
    nothing_kept = Policy(all_s=0, hourly_s=0, daily_s=0)
    put(tmp_path)
    folder = BackupFolder(store(tmp_path))
    for seq in range(1, 4):
        put(tmp_path, lines=LINES + b"\n" * seq)
        folder.take(source(store(tmp_path), seq), "demand", NOW_MS + seq)
    later_ms = NOW_MS + 400 * DAY_MS

    assert killed(point, lambda: folder.thin(DEFAULT_USER, CHAT_ID, later_ms, nothing_kept))

    for _again in range(2):
        for entry in folder.entries(DEFAULT_USER, CHAT_ID):
            assert all(one.file in standing(tmp_path) for one in entry.files.values())
        assert any(data == LINES + b"\n" * 3 for data in standing(tmp_path).values()), "the newest stays"
        folder.thin(DEFAULT_USER, CHAT_ID, later_ms, nothing_kept)


RECOVERY_POINTS = ("log.recovery.after_repair", "log.recovery.after_save_aside")


@pytest.mark.parametrize("point", RECOVERY_POINTS)
async def test_a_kill_while_damage_is_mended_leaves_it_to_the_next_start_g4(tmp_path: Path, point: str) -> None:
    """A flipped bit, and a torn batch at the end."""
    directory = tmp_path / ".tellback/log"
    workload = Workload(Fs(), lambda _what, _value: None, directory=str(directory))
    await workload.run([1, 2, 3])
    [segment] = sorted(directory.glob("*.log"))
    data = bytearray(segment.read_bytes())
    if point.endswith("repair"):
        data[600] ^= 4
    else:
        end = len(data.rstrip(b"\0")) + 8
        data[end : end + 90] = b"torn" * 22 + b"!!"
    segment.write_bytes(data)

    assert killed(point, lambda: open_log(Fs(), directory=str(directory)))

    log = open_log(Fs(), directory=str(directory))
    assert [record for _position, record in log.scan()] == workload.appended
    log.close()


IMPORT_POINTS = ["import.after_file", "import.after_journal", "import.after_kept", "import.after_state",
                 "import.after_states"]


def imported(origin: Path, data: Path) -> None:
    """`tellback import sillytavern`."""
    with contextlib.suppress(typer.Exit):
        import_chats("sillytavern", str(origin), data=str(data), user="default-user", from_user=None, character=None,
                     me=None, speaker=None, on_conflict="beside", again=False, dry_run=False, show_all=False,
                     as_json=False)


@pytest.mark.parametrize("point", IMPORT_POINTS)
def test_an_import_that_was_killed_goes_on_to_the_same_folder(tmp_path: Path, point: str) -> None:
    origin = sillytavern_copy(tmp_path)
    [chat] = origin.rglob("Pip - 2024-11-01@12h00m00s.jsonl")
    chat.with_suffix(".luker-state.memory.json").write_text('{"tea":1}')
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    assert not killed("nowhere", lambda: imported(origin, tmp_path / "whole"))

    was_killed = killed(point, lambda: imported(origin, tmp_path / "killed"))

    assert not killed("nowhere", lambda: imported(origin, tmp_path / "killed"))
    chats = [
        {name: found[0] for name, found in tree(data).items() if name.endswith(".jsonl")}
        for data in (tmp_path / "killed", tmp_path / "whole")
    ]
    assert chats[0] == chats[1]
    assert was_killed or point == "import.after_kept", "the point was never reached"

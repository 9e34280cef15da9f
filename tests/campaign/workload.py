"""The reference workload of the crash states: one user's day on a whole server, and what is shown after each step.

Appends, patches, a batch, states, floors, swipes, metadata, a generation, renames of a chat and of a character, a
branch, a deletion and a restore, an emptied trash, a backup and its restore in the chat's place, a file that another
program wrote, checkpoints, segment rolls, retention, three lives.

Rules of this module:
- A world is everything a tab is shown of every name the workload ever uses. After step k the server showed world k; a
  start on any disk that a cut may leave shows one of the worlds from the last one told to the last one asked for.
- A generation that runs is shown with as much of its text as reached the log: that may be shorter than in the world.
- A backup that was told is there. One that nobody was told of yet may be there as well.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from tests.support.crash_states import Disk
from tests.support.headless import Headless, Wire, headless
from tests.support.recording_fs import Made, RecordingFs, Unlinked
from tests.support.sim_fs import SimFs

TALK = "character:Alice/Talk"
OLD = "group:Old"
NEW = "group:New"
BACK = "group:Back again"
BRANCH = "character:Alice/Talk - Branch #1"
MOVED = "character:Alicia/Talk"
NAMES = [TALK, OLD, NEW, BACK, BRANCH, MOVED, "character:Alicia/Talk - Branch #1"]
OWNERS = ["Alice", "Alicia"]
NAMESPACES = ["memory", "score", "score__floor_log"]
SESSION = "a-session-of-the-campaign"
USER = "/data/default-user"
GENERATION = "generation-of-the-campaign"

BASE: Disk = {
    "/data": None, USER: None, f"{USER}/chats": None, f"{USER}/chats/Alice": None, f"{USER}/group chats": None,
    f"{USER}/groups": None, f"{USER}/characters": None,
    f"{USER}/characters/Alice.png": b"a card",
    f"{USER}/group chats/Old.jsonl":
        b'{"chat_metadata":{"note":1}}\n{"mes":"from elsewhere","name":"Bob"}\n{"mes":"second","name":"Eve"}\n',
    f"{USER}/group chats/Old.luker-state.memory.json": b'{"kept":true}',
    f"{USER}/groups/7.json": b'{"id":"7","name":"Old friends","chats":["Old"],"chat_id":"Old","members":["Alice.png"]}',
}

NOISE_SHARE = 0.3
World = dict[str, Any]
Step = Callable[["Day"], Awaitable[None]]


class InodeRecordingFs(RecordingFs):
    """Files and folders are numbered as the simulated disk numbers them, and removed folders are written down."""

    def __init__(self, inner: SimFs, base: Disk) -> None:
        super().__init__(inner, base)
        for path, data in base.items():
            if data is None:
                self.base_names[path] = -self._number(path)

    def _number(self, path: str) -> int:
        number = self._numbers.get(path)
        if number is None:
            stat = self._inner.stat(path)
            assert stat is not None, f"{path} is not there"
            number = self._numbers[path] = stat.inode
        return number

    def _mkdir(self, path: str) -> None:
        with self.lock:
            self._inner._mkdir(path)
            self.trace.append(Made(path, -self._number(path)))

    def remove_directory(self, path: str) -> None:
        with self.lock:
            self._inner.remove_directory(path)
            self._numbers.pop(path, None)
            self.trace.append(Unlinked(path))


async def world_of(tab: Wire) -> World:
    """Everything that a tab is shown."""
    world: World = {}
    for name in NAMES:
        opened = await tab.ask("open", chat=name, since=None)
        if opened["type"] != "opened":
            world[name] = {key: opened.get(key) for key in ("code", "to")}
            continue
        assert "parts" not in opened, "the workload stays small"
        shown = {key: opened[key] for key in ("chat_id", "version", "head", "metadata", "messages", "next_op")}
        assert not opened.get("read_only"), opened
        shown["generations"] = {
            running["id"]: {"text": running.get("text", ""), "target": running["target"]}
            for running in opened["generations"]
        }
        states = await tab.ask("state-get", owner={"chat": name}, namespaces=NAMESPACES)
        world[name] = {**shown, "states": states["states"]}
    for owner in OWNERS:
        states = await tab.ask("state-get", owner={"character": owner}, namespaces=NAMESPACES)
        world[f"character {owner}"] = states.get("states") or states["code"]
    trash = await tab.ask("trash-list")
    world["trash"] = sorted((entry["name"], entry["reason"], entry["files"]) for entry in trash["entries"])
    world["backups"] = []
    for chat in (await tab.ask("backup-list"))["chats"]:
        kept = (await tab.ask("backup-list", chat=f"id:{chat['chat_id']}"))["backups"]
        world["backups"] += sorted(
            [chat["chat_id"], entry["version"]["integrity"], entry["count"], *entry["namespaces"]]
            for entry in kept if "version" in entry
        )
    return world


def is_same(shown: World, wanted: World) -> bool:
    """Whether a start shows that world."""
    for name in wanted:
        mine, theirs = shown[name], wanted[name]
        if mine == theirs or (name == "backups" and all(backup in mine for backup in theirs)):
            continue
        if not (isinstance(mine, dict) and isinstance(theirs, dict)):
            return False
        if "generations" not in theirs or "generations" not in mine:
            return False
        if {**mine, "generations": 0} != {**theirs, "generations": 0}:
            return False
        if mine["generations"].keys() != theirs["generations"].keys():
            return False
        for generation, running in theirs["generations"].items():
            if not running["text"].startswith(mine["generations"][generation]["text"]):
                return False
    return True


class Day:
    """The workload while it runs. `worlds[k]` is what was shown after step k; the trace tells when."""

    def __init__(self, recording: RecordingFs, inner: SimFs, seed: int) -> None:
        self.chance = random.Random(seed)
        self.recording = recording
        self.inner = inner
        self.worlds: list[World] = []
        self.steps: list[str] = []
        self.app: Headless
        self.tab: Wire
        self.ids: dict[str, list[str]] = {}
        self.backup = ""

    async def shown(self, step: str) -> None:
        """The step is done: what is shown now must stay."""
        self.worlds.append(await world_of(self.tab))
        for name in NAMES:
            opened = await self.tab.ask("open", chat=name, since=None)
            if opened["type"] == "opened":
                self.tab.ops[name] = opened["next_op"]
                self.ids[name] = [message["id"] for message in opened["messages"]]
        self.steps.append(step)
        self.recording.mark("told", len(self.worlds) - 1)

    async def write(self, type: str, name: str, **fields: Any) -> dict[str, Any]:
        """A write that succeeds."""
        answer = await self.tab.ask(type, chat=name, op=self.tab.ops[name], **fields)
        assert answer["type"] == "ack", answer
        return answer

    async def head(self, name: str) -> str:
        """The chat's version."""
        opened = await self.tab.ask("open", chat=name, since=None)
        integrity: str = opened["version"]["integrity"]
        return integrity


async def _create(day: Day) -> None:
    await day.tab.ask("open", chat=TALK, since=None, create=True)


async def _append(day: Day) -> None:
    await day.write("append", TALK, base="*", messages=[{"name": "User", "is_user": True, "mes": "one"},
                                                        {"name": "Alice", "mes": "two"}])


async def _fold(day: Day) -> None:
    await day.app.fold()


async def _patch(day: Day) -> None:
    patch = [{"op": "test", "path": "/mes", "value": "one"}, {"op": "replace", "path": "/mes", "value": "uno, " * 9}]
    await day.write("patch", TALK, base="*", message=day.ids[TALK][0], patch=patch)


async def _state(day: Day) -> None:
    owner = {"chat": TALK}
    answer = await day.tab.ask("state-update", owner=owner, op=day.tab.ops[TALK], namespace="memory", base=None,
                               set={"seen": ["one"]})
    assert answer["type"] == "ack", answer


async def _floor(day: Day) -> None:
    await day.write("floor-update", TALK, namespace="score", base=None,
                    patch=[{"op": "add", "path": "/points", "value": 1}])


async def _swipe(day: Day) -> None:
    await day.write("swipe", TALK, base=await day.head(TALK), message=day.ids[TALK][-1], action="add",
                    content={"mes": "deux"})


async def _old(day: Day) -> None:
    await day.write("append", OLD, base="*", messages=[{"name": "User", "mes": "third"}])


async def _metadata(day: Day) -> None:
    await day.write("metadata-update", OLD, base="*", merge={"note": 2, "scenario": "a room"})


async def _rename(day: Day) -> None:
    await day.write("chat-rename", OLD, base="*", to="New")


async def _batch(day: Day) -> None:
    await day.write("batch", NEW, base="*", requests=[
        {"type": "append", "messages": [{"mes": "in a batch"}]},
        {"type": "state-update", "namespace": "memory", "merge": {"turns": 4}},
    ])


async def _delete(day: Day) -> None:
    await day.write("chat-delete", NEW, base=await day.head(NEW))


async def _restore(day: Day) -> None:
    was = next(world[NEW] for world in reversed(day.worlds) if "chat_id" in world[NEW])
    # The deletion took a number.
    op = was["next_op"] + 1
    answer = await day.tab.ask("chat-restore", chat=f"id:{was['chat_id']}", op=op, to="Back again")
    assert answer["type"] == "ack", answer


async def _branch(day: Day) -> None:
    await day.write("chat-branch", TALK, base="*", message=day.ids[TALK][1], to="Talk - Branch #1")


async def _backup(day: Day) -> None:
    answer = await day.tab.ask("backup-create", chat=TALK)
    assert answer["type"] == "backup-created", answer
    day.backup = answer["backup"]["backup"]


async def _back_to_it(day: Day) -> None:
    await day.write("backup-restore", TALK, base="*", backup=day.backup)


async def _big(day: Day) -> None:
    """More than half a segment: the log rolls at the next one."""
    await day.write("append", TALK, base="*", messages=[{"mes": "x" * 9_000}])


async def _remove(day: Day) -> None:
    await day.write("delete", TALK, base=await day.head(TALK), messages=[day.ids[TALK][-1]])


async def _start(day: Day) -> None:
    await day.write("generation-start", TALK, base="*", generation=GENERATION, target={"kind": "message"},
                    messages=[{"name": "User", "is_user": True, "mes": "And then?"}],
                    reply={"name": "Alice", "is_user": False}, lease_s=300)


async def _text(day: Day) -> None:
    day.tab.send({"type": "generation-delta", "chat": TALK, "generation": GENERATION, "offset": 0,
                  "text": "Once upon a time"})
    await asyncio.sleep(0.3)


async def _end(day: Day) -> None:
    await day.write("generation-end", TALK, generation=GENERATION, length=16)


async def _owner_state(day: Day) -> None:
    answer = await day.tab.ask("state-update", owner={"character": "Alice"}, op=1, namespace="memory", base=None,
                               set={"fond of": "tea"})
    assert answer["type"] == "ack", answer


async def _owner_rename(day: Day) -> None:
    answer = await day.tab.ask("owner-rename", owner={"character": "Alice"}, op=2, to="Alicia", base="*")
    assert answer["type"] == "ack", answer


async def _forget(day: Day) -> None:
    answer = await day.tab.ask("trash-empty", before_ms=9_000_000_000_000)
    assert answer["type"] == "trash-emptied", answer


async def _delete_again(day: Day) -> None:
    await day.write("chat-delete", BACK, base=await day.head(BACK))


async def _collect(day: Day) -> None:
    await day.app.collect()


async def _last(day: Day) -> None:
    await day.write("append", MOVED, base="*", messages=[{"mes": "the last"}])


LIVES: list[list[Step]] = [
    [_create, _append, _fold, _patch, _state, _floor, _fold, _swipe, _old, _metadata, _rename, _batch, _delete],
    [_restore, _branch, _big, _backup, _big, _remove, _fold, _start, _text],
    [_end, _owner_state, _fold, _back_to_it, _owner_rename, _delete_again, _forget, _collect, _last],
]


async def _noise(day: Day) -> None:
    """Something between two steps that the seed draws: no two seeds have their checkpoints and segments alike."""
    chats = [name for name in NAMES if name in day.tab.ops and "chat_id" in day.worlds[-1][name]]
    what = day.chance.choice(("fold", "append", "append", "metadata"))
    if what == "fold" or not chats:
        await day.app.fold()
        return
    chat = day.chance.choice(chats)
    text = "é" * day.chance.choice((3, 100, 600, 2400))
    if what == "append":
        await day.write("append", chat, base="*", messages=[{"mes": text}])
    else:
        await day.write("metadata-update", chat, base="*", merge={"drawn": text[:500]})


async def record(
    seed: int = 0, *, fs_class: type[InodeRecordingFs] = InodeRecordingFs, app_class: type[Headless] = Headless
) -> Day:
    """Run it. A life ends as a kill ends it. Seed 0 is the bare workload, all others have something between."""
    inner = SimFs(BASE)
    day = Day(fs_class(inner, BASE), inner, seed)
    for life in LIVES:
        async with headless(day.recording, app_class=app_class, log_retain_bytes=0) as day.app:
            await day.app.settle()
            day.tab = await Wire.join(day.app, SESSION)
            await day.shown("start")
            for step in life:
                await step(day)
                await day.shown(step.__name__.strip("_"))
                if seed and step is not _start and day.chance.random() < NOISE_SHARE:
                    await _noise(day)
                    await day.shown("noise")
    return day

"""State files whose owner another program deleted go to the trash; nobody else's do (BEHAVIOUR Q7)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tellback_protocol.ids import CharacterChat, CharacterOwner, GroupChat, Place, PresetOwner
from tellback_server.clock import Clock
from tellback_server.fs import Fs
from tellback_server.log import Position, Record
from tellback_server.orphans import ORPHANED_S, Orphans, find_orphans
from tellback_server.outside_renames import OutsideRenames
from tellback_server.store.files import DEFAULT_USER, FileStore
from tellback_server.store.place import file_of, state_of
from tellback_server.trash import Trash
from tests.support.chat_desk import SilentLogger
from tests.support.server import TabClient, running

OWNED = {
    "chats/Pip/talk.jsonl": ["chats/Pip/talk.luker-state.memory.json", "chats/Pip/talk.luker-state.chat_sync.json"],
    "group chats/all.jsonl": ["group chats/all.luker-state.a.b.json"],
    "characters/Pip.png": ["characters/Pip.state.memory.json"],
    "characters/odd.png name.png": ["characters/odd.png name.state.memory.json"],
    "OpenAI Settings/Default.json": ["OpenAI Settings/Default.luker-state.memory.json"],
}
OTHERS = [
    "chats/Pip/notes.json", "chats/Pip/talk.luker-state.json", "characters/Pip.state.json", "characters/x.state.A.json",
    "OpenAI Settings/Other.json", "worlds/x.luker-state.memory.json", "chats/x.luker-state.memory.json",
    "chats/Pip/.luker-state.memory.json",
]


class NoLog:
    """A log that was trimmed."""

    def records(self, _owner: str, _after_seq: int = 0) -> Iterator[tuple[Position, Record]]:
        return iter(())

    def seq_within(self, _owner: str, after_seq: int, _until_seq: int, _bytes_max: int) -> int:
        return after_seq


class TestClock(Clock):
    __test__ = False

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def monotonic_s(self) -> float:
        return self.seconds


def data(root: Path) -> tuple[Path, FileStore]:
    user = root / DEFAULT_USER
    for path in [*OWNED, *OTHERS, *(side for sides in OWNED.values() for side in sides)]:
        (user / path).parent.mkdir(parents=True, exist_ok=True)
        (user / path).write_text(path)
    return user, FileStore(Fs(), str(root), (DEFAULT_USER,), logger=SilentLogger())


def test_owners_that_stand_have_no_orphans(tmp_path: Path) -> None:
    """[Q7]"""
    _user, files = data(tmp_path)
    assert find_orphans(files, DEFAULT_USER) == {}


@pytest.mark.parametrize("owner", OWNED)
def test_what_an_owner_left_is_found_and_nothing_else(tmp_path: Path, owner: str) -> None:
    """[Q7]"""
    user, files = data(tmp_path)
    (user / owner).unlink()

    found = find_orphans(files, DEFAULT_USER)

    assert [sorted(paths) for paths in found.values()] == [sorted(OWNED[owner])]
    [place] = found
    assert "/".join((*file_of(place)[0], file_of(place)[1])) == owner


async def test_it_takes_two_looks_and_nobody_live(tmp_path: Path) -> None:
    """[Q7] [F11] Whole, under the owner's name; what came back meanwhile stays."""
    user, files = data(tmp_path)
    for owner in OWNED:
        (user / owner).unlink()
    clock = TestClock()
    live = {"group:all"}
    with ThreadPoolExecutor(1) as executor:
        renames = OutsideRenames(files, NoLog(), clock)
        orphans = Orphans(files, renames, clock, executor, lambda _user, name: name in live)
        trash = Trash(files)

        await orphans.step()
        clock.seconds += ORPHANED_S / 2
        await orphans.step()
        assert trash.entries(DEFAULT_USER) == []
        (user / "characters/Pip.png").write_text("renamed back")
        clock.seconds += ORPHANED_S
        await orphans.step()

        entries = {entry.name: entry for entry in trash.entries(DEFAULT_USER)}
        assert set(entries) == {"character:Pip/talk", "character:odd.png name", "preset:OpenAI Settings/Default"}
        assert {entry.reason for entry in entries.values()} == {"orphaned"}
        assert sorted(entries["character:Pip/talk"].files) == sorted(OWNED["chats/Pip/talk.jsonl"])
        assert not (user / OWNED["chats/Pip/talk.jsonl"][0]).exists()
        assert (user / OWNED["group chats/all.jsonl"][0]).exists()
        assert (user / OWNED["characters/Pip.png"][0]).exists()

        live.clear()
        for _ in range(2):
            clock.seconds += ORPHANED_S
            await orphans.step()
        assert {entry.name for entry in trash.entries(DEFAULT_USER)} == {*entries, "group:all"}
    for path in OTHERS:
        assert (user / path).read_text() == path


@pytest.mark.parametrize(
    ("folders", "name", "owned"),
    [
        (("characters",), "A.state.b.json", (CharacterOwner("A"), "b")),
        (("characters",), "A.state.b.c.json", (CharacterOwner("A"), "b.c")),
        (("characters",), "A.state.x.state.b.json", (CharacterOwner("A.state.x"), "b")),
        (("characters",), "A.luker-state.b.json", None),
        (("chats", "P"), "A.luker-state.b.json", (CharacterChat("P", "A"), "b")),
        (("chats", "P"), "A.state.b.json", None),
        (("group chats",), "A.luker-state.x__floor_log.json", (GroupChat("A"), "x__floor_log")),
        (("sysprompt",), "A.luker-state.b.json", (PresetOwner("sysprompt", "A"), "b")),
        (("chats", "P"), "A.luker-state.B.json", None),
        (("chats", "P"), "A.luker-state..json", None),
        (("chats", "P"), ".luker-state.b.json", None),
        (("chats", "P"), "A.luker-state.b.json.bak", None),
    ],
)
def test_a_state_file_tells_its_owner(folders: tuple[str, ...], name: str, owned: tuple[Place, str] | None) -> None:
    assert state_of(folders, name) == owned


async def test_a_new_chat_does_not_inherit_the_states_of_a_deleted_one(tmp_path: Path) -> None:
    """[Q7] They are in the trash before the chat is there."""
    user = tmp_path / DEFAULT_USER
    (user / "chats/Pip").mkdir(parents=True)
    for stem in ("talk.luker-state.memory", "talk.luker-state.chat_sync", "talk more.luker-state.memory"):
        (user / f"chats/Pip/{stem}.json").write_text("{}")
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        opened = await tab.open("character:Pip/talk", create=True)
        assert opened["created"] is True
        got = await tab.ask("state-get", owner={"chat": "character:Pip/talk"})
        assert got["states"] == {}
        made = await tab.write_state("state-update", "character:Pip/talk", namespace="memory", base=None, set=[1])
        assert made["type"] == "ack"
    assert (user / "chats/Pip/talk.luker-state.memory.json").read_text() == "[1]"
    files = FileStore(Fs(), str(tmp_path), (DEFAULT_USER,), logger=SilentLogger())
    [entry] = Trash(files).entries(DEFAULT_USER)
    assert (entry.name, entry.reason, len(entry.files)) == ("character:Pip/talk", "orphaned", 2)
    assert (user / "chats/Pip/talk more.luker-state.memory.json").exists()

"""Another program renames a chat's file: the states that it left behind follow, nobody else's do (BEHAVIOUR Q8)."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tellback_protocol.ids import CharacterChat, GroupChat
from tellback_server import outside_renames
from tellback_server.fs import Fs
from tellback_server.orphans import ORPHANED_S, Orphans
from tellback_server.outside_renames import OutsideRenames
from tellback_server.store.files import DEFAULT_USER, FileStore
from tellback_server.trash import Trash
from tests.server.test_orphans import NoLog, TestClock
from tests.support.chat_desk import SilentLogger
from tests.support.server import TabClient, running

OLD, NEW = CharacterChat("Pip", "talk"), CharacterChat("Pip", "walk")


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    """Two chats that tellback wrote, with states, and one that it did not."""
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        for name, said in ((str(OLD), "one"), ("character:Pip/other", "two"), ("group:all", "three")):
            await tab.open(name, create=True)
            await tab.append(name, said)
            for namespace in ("memory", "world"):
                await tab.write_state("state-update", name, namespace=namespace, base=None, set=[said])
    pip = tmp_path / DEFAULT_USER / "chats/Pip"
    (pip / "foreign.jsonl").write_text('{"user_name":"u","character_name":"Pip"}\n' + '{"mes":"x"}\n' * 40)
    return pip


def store(folder: Path) -> FileStore:
    return FileStore(Fs(), str(folder.parents[2]), (DEFAULT_USER,), logger=SilentLogger())


def renames(folder: Path) -> OutsideRenames:
    return OutsideRenames(store(folder), NoLog(), TestClock())


def states(folder: Path, stem: str) -> dict[str, object]:
    mark = f"{stem}.luker-state."
    return {
        path.name.removeprefix(mark): json.loads(path.read_bytes())
        for path in folder.iterdir() if path.name.startswith(mark) and "chat_sync" not in path.name
    }


BOTH = {"memory.json": ["one"], "world.json": ["one"]}


def test_what_was_appended_meanwhile_is_behind_the_bytes_that_are_known(folder: Path) -> None:
    """[Q8]"""
    data = (folder / "talk.jsonl").read_bytes()
    (folder / "talk.jsonl").unlink()
    (folder / "walk.jsonl").write_bytes(data + b'{"mes":"more"}\n')

    assert renames(folder).home_of(DEFAULT_USER, OLD) == NEW
    renames(folder).follow(DEFAULT_USER, NEW)

    assert (states(folder, "talk"), states(folder, "walk")) == ({}, BOTH)
    assert not (folder / "talk.luker-state.chat_sync.json").exists()
    assert states(folder, "other") == {"memory.json": ["two"], "world.json": ["two"]}


def test_a_chat_of_a_group(folder: Path) -> None:
    """[Q8]"""
    groups = folder.parents[1] / "group chats"
    (groups / "all.jsonl").rename(groups / "some.jsonl")
    assert renames(folder).home_of(DEFAULT_USER, GroupChat("all")) == GroupChat("some")
    renames(folder).follow(DEFAULT_USER, GroupChat("some"))
    assert states(groups, "some") == {"memory.json": ["three"], "world.json": ["three"]}


@pytest.mark.parametrize("why", ["original", "other bytes", "shorter", "two", "taken", "own", "no sync", "too long"])
def test_whatever_is_not_certain_stays(folder: Path, why: str) -> None:
    """[Q8]"""
    old, new = folder / "talk.jsonl", folder / "walk.jsonl"
    place = NEW
    data = old.read_bytes()
    new.write_bytes({"other bytes": data.replace(b"one", b"two"), "shorter": data[:-1]}.get(why, data))
    if why != "original":
        old.unlink()
    if why == "two":
        for path in list(folder.glob("talk.luker-state.*")):
            (folder / path.name.replace("talk", "balk")).write_bytes(path.read_bytes())
    elif why == "taken":
        (folder / "walk.luker-state.world.json").write_text("[]")
    elif why == "own":
        (folder / "walk.luker-state.chat_sync.json").write_text("{}")
    elif why == "no sync":
        (folder / "talk.luker-state.chat_sync.json").unlink()
    elif why == "too long":
        place = CharacterChat("Pip", "w" * 240)
        new.rename(folder / ("w" * 240 + ".jsonl"))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    renames(folder).follow(DEFAULT_USER, place)

    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("point", ["files.after_link", "outside_renames.after_move"])
def test_a_move_that_was_cut_off_is_gone_on_with(
    folder: Path, monkeypatch: pytest.MonkeyPatch, point: str, step: int
) -> None:
    """[Q8] At every step all states are under one name or the other, and the next read brings the rest."""
    (folder / "talk.jsonl").rename(folder / "walk.jsonl")
    seen = 0

    def cut(name: str) -> None:
        nonlocal seen
        seen += name == point
        if seen > step:
            raise KeyboardInterrupt

    from tellback_server.store import files as files_module

    monkeypatch.setattr(files_module, "failpoint", cut)
    monkeypatch.setattr(outside_renames, "failpoint", cut)
    try:
        renames(folder).follow(DEFAULT_USER, NEW)
    except KeyboardInterrupt:
        assert {**states(folder, "talk"), **states(folder, "walk")} == BOTH
    monkeypatch.undo()
    renames(folder).follow(DEFAULT_USER, NEW)
    assert (states(folder, "talk"), states(folder, "walk")) == ({}, BOTH)
    if point == "files.after_link" and step == 2:
        # The last one has both names; the look at the orphans takes the old one away.
        assert renames(folder).home_of(DEFAULT_USER, OLD) == NEW
        assert renames(folder).bring(DEFAULT_USER, OLD, NEW)
    assert not (folder / "talk.luker-state.chat_sync.json").exists()
    assert (folder / "walk.luker-state.chat_sync.json").exists()


@pytest.mark.parametrize("is_live", [False, True])
async def test_a_renamed_chat_that_nobody_opens_gets_them_instead_of_the_trash(folder: Path, is_live: bool) -> None:
    """[Q7] [Q8] One that is open knows nothing of them yet: they stay for the next looks."""
    (folder / "talk.jsonl").rename(folder / "walk.jsonl")
    (folder / "other.jsonl").unlink()
    clock, files = TestClock(), store(folder)
    live = {str(NEW)} if is_live else set()
    with ThreadPoolExecutor(1) as executor:
        orphans = Orphans(files, renames(folder), clock, executor, lambda _user, name: name in live)
        for _ in range(2):
            await orphans.step()
            clock.seconds += ORPHANED_S
        assert [entry.name for entry in Trash(files).entries(DEFAULT_USER)] == ["character:Pip/other"]
        assert states(folder, "talk" if is_live else "walk") == BOTH
        live.clear()
        for _ in range(2):
            await orphans.step()
            clock.seconds += ORPHANED_S
    assert states(folder, "walk") == BOTH


async def test_a_new_chat_of_the_old_name_begins_without_them(folder: Path) -> None:
    """[Q7] [Q8] The renamed one has them, opened later."""
    (folder / "talk.jsonl").rename(folder / "walk.jsonl")
    async with running(folder.parents[2]) as app:
        tab = await TabClient.join(app.urls[0])
        made = await tab.open(str(OLD), create=True)
        assert made["created"] is True
        assert (await tab.ask("state-get", owner={"chat": str(OLD)}))["states"] == {}
        opened = await tab.open(str(NEW))
        assert opened["chat_id"] != made["chat_id"]
        got = await tab.ask("state-get", owner={"chat": str(NEW)})
        assert {name: state["data"] for name, state in got["states"].items()} == {"memory": ["one"], "world": ["one"]}


async def test_an_edit_that_was_taken_over_is_known_of_by_the_log(folder: Path) -> None:
    """[Q8] SillyTavern saved the whole chat, tellback took it over and had nothing to write since."""
    path = folder / "talk.jsonl"
    data = path.read_bytes().replace(b"one", b"one, as SillyTavern saved it")
    path.write_bytes(data)
    async with running(folder.parents[2]) as app:
        tab = await TabClient.join(app.urls[0])
        first = await tab.open(str(OLD))
        assert first["head"]["epoch"] == 2
    path.rename(folder / "walk.jsonl")
    async with running(folder.parents[2]) as app:
        tab = await TabClient.join(app.urls[0])
        opened = await tab.open(str(NEW))
        assert (opened["chat_id"], opened["messages"]) == (first["chat_id"], first["messages"])
        got = await tab.ask("state-get", owner={"chat": str(NEW)})
        assert {name: state["data"] for name, state in got["states"].items()} == {"memory": ["one"], "world": ["one"]}

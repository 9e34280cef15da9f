"""Recovered chats: what of ours could not stand beside another program's edit is a chat of its own (F7, F14)."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import orjson
import pytest

from tellback_protocol.ids import CharacterChat, ChatName, GroupChat
from tellback_server.store import keeping
from tests.support.chat_desk import Desk
from tests.support.injected_fs import InjectedFs, SimulatedCrash

CALLS_MAX = 400
GROUP = {
    "id": "7", "name": "Pier – 桟橋", "members": ["Pip.png"], "chat_id": "talk", "chats": ["other", "talk"],
    "chat_metadata": {"note_prompt": "tide"}, "past_metadata": {"other": {"a": 0.5}}, "fav": False,
}


def group_file(desk: Desk, name: str = "7") -> Path:
    return desk.data / "default-user" / "groups" / f"{name}.json"


def written(group: dict[str, Any]) -> bytes:
    """As SillyTavern writes it."""
    return json.dumps(group, indent=4, ensure_ascii=False).encode()


def chats(desk: Desk, name: str = "7") -> list[str]:
    listed: list[str] = orjson.loads(group_file(desk, name).read_bytes())["chats"]
    return listed


async def in_a_group(data: Path, fs: InjectedFs | None = None) -> Desk:
    """A chat of a group, with a patch that no file holds yet."""
    desk = Desk(data, GroupChat("talk"), fs)
    await desk.create()
    await patched(desk)
    group_file(desk).parent.mkdir()
    group_file(desk).write_bytes(written(GROUP))
    group_file(desk, "8").write_bytes(written({"id": "8", "chats": ["else"], "chat_id": "else"}))
    return desk


async def patched(desk: Desk) -> None:
    await desk.metadata(integrity="of-the-source", note="n")
    (first,) = await desk.append("one")
    await desk.checkpoint()
    await desk.patch(first, mes="ours")


def edit(desk: Desk) -> None:
    """Another program's, of the message that we patched."""
    desk.path.write_bytes(desk.path.read_bytes().replace(b'"one"', b'"theirs"') + b'{"mes":"more"}\n')


def header(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = orjson.loads(path.read_bytes().split(b"\n")[0])
    return value


@pytest.mark.parametrize("live", [True, False])
async def test_a_recovered_chat_of_a_group_is_listed_in_its_group(tmp_path: Path, live: bool) -> None:
    """[F14] Else SillyTavern does not show it. Nothing but `chats` changes, in no other group anything."""
    desk = await in_a_group(tmp_path / "data")
    other = group_file(desk, "8").read_bytes()
    edit(desk)

    loaded = await desk.adopt() if live else await desk.restart()

    assert loaded.adoption is not None
    assert loaded.adoption.recovered == ["group:talk - recovered #1"]
    listed = {**GROUP, "chats": ["other", "talk", "talk - recovered #1"]}
    assert group_file(desk).read_bytes() == written(listed)
    assert group_file(desk, "8").read_bytes() == other
    before = group_file(desk).stat().st_mtime_ns
    await desk.restart()
    assert group_file(desk).stat().st_mtime_ns == before, "what is done is not done again"
    desk.stop()


async def test_a_chat_that_a_group_only_shows_is_its_chat_too(tmp_path: Path) -> None:
    """[F14] SillyTavern's oldest groups have `chat_id` alone; a group without the chat is left alone."""
    desk = await in_a_group(tmp_path / "data")
    group_file(desk).write_bytes(written({"id": "7", "chat_id": "talk"}))
    edit(desk)
    await desk.adopt()
    assert chats(desk) == ["talk - recovered #1"]
    desk.stop()


@pytest.mark.parametrize("live", [True, False])
async def test_a_kill_at_every_step_lists_a_recovered_chat_once(tmp_path: Path, live: bool) -> None:
    """[F9] [F14] Never lost, never twice, and each that stands is listed."""
    for at in range(1, CALLS_MAX):
        fs = InjectedFs()
        desk = await in_a_group(tmp_path / str(at), fs)
        edit(desk)
        fs.arm(at, fs.die)
        try:
            await (desk.adopt() if live else desk.restart())
        except SimulatedCrash:
            assert fs.is_dead
        reached = fs.reached
        desk.stop()
        desk.fs = InjectedFs()
        await desk.open()
        where = f"at call {at}"
        found = sorted(path.stem for path in desk.path.parent.glob("talk - recovered*.jsonl"))
        assert chats(desk) == ["other", "talk", *found], where
        assert found == ["talk - recovered #1"], where
        assert b'"ours"' in desk.path.with_name(f"{found[0]}.jsonl").read_bytes(), where
        desk.stop()
        if not reached:
            return
    raise AssertionError("the adoption has more calls than are tried")


@pytest.mark.parametrize("point", ["recovered.after_chat", "recovered.after_groups"])
async def test_a_kill_between_the_chat_and_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """[F9] [F14] The start after it lists the one that stands."""
    desk = await in_a_group(tmp_path / "data")
    edit(desk)

    def killed(name: str) -> None:
        if name == point:
            raise SimulatedCrash

    with monkeypatch.context() as patch:
        patch.setattr(keeping, "failpoint", killed)
        with pytest.raises(SimulatedCrash):
            await desk.adopt()
    desk.stop()
    await desk.open()
    assert chats(desk) == ["other", "talk", "talk - recovered #1"]
    assert [path.stem for path in desk.path.parent.glob("talk - recovered*.jsonl")] == ["talk - recovered #1"]
    desk.stop()


async def test_a_recovered_chat_that_a_kill_left_unlisted_is_listed_with_the_next(tmp_path: Path) -> None:
    """[F14] Also where the second start recovers another one; one that another group has stays there."""
    desk = await in_a_group(tmp_path / "data")
    for number in (1, 2):
        desk.path.with_name(f"talk - recovered #{number}.jsonl").write_bytes(desk.path.read_bytes())
    group_file(desk, "8").write_bytes(written({"id": "8", "chats": ["talk - recovered #2"], "chat_id": ""}))
    edit(desk)
    loaded = await desk.adopt()
    assert loaded.adoption is not None
    assert loaded.adoption.recovered == ["group:talk - recovered #3"]
    assert chats(desk) == ["other", "talk", "talk - recovered #1", "talk - recovered #3"]
    assert chats(desk, "8") == ["talk - recovered #2"]
    desk.stop()


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"chats":"talk","chat_id":"talk"}'], ids=["torn", "list", "no-list"])
async def test_an_odd_group_file_is_in_nobodys_way(tmp_path: Path, data: bytes) -> None:
    """[F14] What cannot be read stays as it is; the chat is saved all the same."""
    desk = await in_a_group(tmp_path / "data")
    group_file(desk).write_bytes(data)
    edit(desk)
    loaded = await desk.adopt()
    assert loaded.adoption is not None
    assert loaded.adoption.recovered == ["group:talk - recovered #1"]
    if b"chat_id" not in data:
        assert group_file(desk).read_bytes() == data
    desk.stop()


async def test_a_group_file_that_may_not_be_written_holds_no_chat_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[F14] What was saved is told in `recovered`, and in the log line."""
    desk = await in_a_group(tmp_path / "data")
    edit(desk)
    real = desk.fs.exchange

    def refused(one: str, other: str) -> bool:
        if f"{os.sep}groups{os.sep}" in one:
            raise OSError(errno.EACCES, "not allowed", one)
        return real(one, other)

    monkeypatch.setattr(desk.fs, "exchange", refused)
    loaded = await desk.adopt()
    assert loaded.adoption is not None
    assert loaded.adoption.recovered == ["group:talk - recovered #1"]
    assert group_file(desk).read_bytes() == written(GROUP)
    desk.stop()


@pytest.mark.parametrize("place", [CharacterChat("Pip", "talk"), GroupChat("talk")], ids=["character", "group"])
async def test_a_recovered_chat_has_an_integrity_of_its_own(tmp_path: Path, place: ChatName) -> None:
    """[F7] With that of its source, SillyTavern would save a tab of the source over it; what else is known is kept."""
    desk = Desk(tmp_path / "data", place)
    await desk.create()
    await patched(desk)
    edit(desk)
    await desk.adopt()
    path = desk.path.with_name("talk - recovered #1.jsonl")
    metadata = header(path)["chat_metadata"]
    assert metadata["note"] == "n"
    assert len(metadata["integrity"]) == 36
    assert metadata["integrity"] != "of-the-source"
    assert header(desk.path)["chat_metadata"]["integrity"] == "of-the-source"
    desk.stop()


async def test_a_chat_without_an_integrity_is_recovered_without_one(tmp_path: Path) -> None:
    """[F7] SillyTavern makes it with its first save."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    (first,) = await desk.append("one")
    await desk.checkpoint()
    await desk.patch(first, mes="ours")
    edit(desk)
    await desk.adopt()
    assert "integrity" not in header(desk.path.with_name("talk - recovered #1.jsonl"))["chat_metadata"]
    desk.stop()


async def test_the_integrity_is_the_same_when_a_start_does_it_again(tmp_path: Path) -> None:
    """[F7] [F9] Also where the other program gave the source a new one meanwhile."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    await patched(desk)
    desk.path.write_bytes(
        desk.path.read_bytes().replace(b'"one"', b'"theirs"').replace(b"of-the-source", b"of-the-other")
    )
    path = desk.path.with_name("talk - recovered #1.jsonl")
    # Its record was not durable.
    desk.read()
    first = path.read_bytes()
    loaded = await desk.adopt()
    assert loaded.adoption is not None
    assert loaded.adoption.recovered == ["character:Pip/talk - recovered #1"]
    assert path.read_bytes() == first
    assert [one.name for one in path.parent.glob("*recovered*.jsonl")] == [path.name]
    desk.stop()


async def test_a_start_takes_no_older_recovered_chat_for_what_was_deleted(tmp_path: Path) -> None:
    """[F7] Our version without the message is what was acknowledged; a chat that still has it is another one."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    first, _second = await desk.append("one", "two")
    await desk.checkpoint()
    older = desk.path.with_name("talk - recovered #1.jsonl")
    older.write_bytes(desk.path.read_bytes())
    await desk.delete(first)
    edit(desk)
    loaded = await desk.restart()
    assert loaded.adoption is not None
    assert loaded.adoption.recovered == ["character:Pip/talk - recovered #2"]
    assert b'"two"' in older.with_name("talk - recovered #2.jsonl").read_bytes()
    assert first.encode() not in older.with_name("talk - recovered #2.jsonl").read_bytes()
    desk.stop()

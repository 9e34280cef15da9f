"""Group chats without a header line: their metadata stand in the group's file (STORAGE F12)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.real_data import copy_real_data, tree
from tests.support.server import Process, TabClient, running, texts
from tests.support.waiting import until

OLD, NEW = "group:2024-10-12@19h00m00s", "group:2025-09-02@20h15m00s"
NOTE = {"note_prompt": "The tide is late.", "note_interval": 1}


def folder(root: Path, *, shown: str = "new", **group: Any) -> Path:
    """A group with two old chats, `old` with an author's note."""
    user = root / "data" / "default-user"
    (user / "group chats").mkdir(parents=True)
    (user / "groups").mkdir()
    (user / "chats").mkdir()
    for name in ("old", "new"):
        lines = [{"name": "Pip", "is_user": False, "mes": f"{name} {number}"} for number in range(2)]
        (user / "group chats" / f"{name}.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    value = {
        "id": "7", "name": "Pier", "members": [], "chat_id": shown, "chats": ["old", "new"],
        "chat_metadata": {"tainted": True}, "past_metadata": {"old": NOTE}, **group,
    }
    (user / "groups" / "7.json").write_text(json.dumps(value, indent=4))
    return user


def group(user: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((user / "groups" / "7.json").read_text())
    return value


def edit_group(user: Path, **fields: Any) -> None:
    (user / "groups" / "7.json").write_text(json.dumps({**group(user), **fields}, indent=4))


async def test_the_real_old_group_chat_has_its_authors_note_and_nothing_is_written(tmp_path: Path) -> None:
    """[F1] [F12]"""
    data = copy_real_data(tmp_path)
    before = tree(data / "default-user")
    for _start in range(2):
        async with running(data) as app:
            tab = await TabClient.join(app.urls[0])
            opened = await tab.open(OLD)
            assert opened["metadata"]["note_prompt"] == "The tide is late."
            assert opened["count"] == 48
            again = await tab.open(OLD, since=opened["head"])
            assert again["mode"] == "current"
            # This one has a header of its own.
            assert (await tab.open(NEW))["metadata"]["note_prompt"] == "Three voices, one pier."
        assert tree(data / "default-user") == before


async def test_the_shown_chat_has_the_groups_own_metadata(tmp_path: Path) -> None:
    """[F12]: a nonsensical value is none; a chat of no group has none."""
    user = folder(tmp_path)
    (user / "group chats" / "lonely.jsonl").write_text('{"name":"Pip","mes":"x"}')
    (user / "groups" / "9.json").write_text(json.dumps({"chats": ["odd"], "past_metadata": {"odd": [1]}}))
    (user / "group chats" / "odd.jsonl").write_text('{"name":"Pip","mes":"x"}')
    async with running(tmp_path / "data") as app:
        tab = await TabClient.join(app.urls[0])
        for name, metadata in (("old", NOTE), ("new", {"tainted": True}), ("lonely", {}), ("odd", {})):
            assert (await tab.open(f"group:{name}"))["metadata"] == metadata


async def test_the_first_change_of_metadata_makes_the_header_with_all_of_them(tmp_path: Path) -> None:
    """[F2] [F12]: until then an append leaves the file without one; afterwards the group's file no longer counts."""
    user = folder(tmp_path)
    file = user / "group chats" / "old.jsonl"
    before = file.read_text()
    async with running(tmp_path / "data") as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open("group:old")
        await tab.append("group:old", "one")
        await until(lambda: file.read_text().startswith(before + "\n"))
        assert (await tab.open("group:old"))["metadata"] == NOTE
        ack = await tab.write("metadata-update", "group:old", base="*", merge={"mood": "calm"})
        assert ack["type"] == "ack", ack
        await until(lambda: "mood" in file.read_text())
        header = json.loads(file.read_text().split("\n")[0])
        assert header["chat_metadata"] == {**NOTE, "mood": "calm"}
        assert before in file.read_text()
    edit_group(user, past_metadata={"old": {"note_prompt": "Somebody else's."}})
    async with running(tmp_path / "data") as app:
        opened = await (await TabClient.join(app.urls[0])).open("group:old")
        assert opened["metadata"] == {**NOTE, "mood": "calm"}
        assert opened["version"]["epoch"] == 1


@pytest.mark.parametrize("interval", ["0.02", "60"])
async def test_a_kill_loses_neither_the_note_nor_what_was_made_from_it(tmp_path: Path, interval: str) -> None:
    """[F12] [S4]: with the files written and with everything still in the log; the position stays good."""
    folder(tmp_path)
    async with Process(tmp_path / "data", "--checkpoint-interval", interval) as server:
        tab = await TabClient.join(server.url)
        await tab.open("group:old")
        await tab.append("group:old", "one")
        await tab.write("metadata-update", "group:old", base="*", merge={"mood": "calm"})
        last = await tab.append("group:old", "two")
        await server.kill()
        await server.start()
        tab = await TabClient.join(server.url)
        assert (await tab.open("group:old", since=last["version"]))["mode"] == "current"
        opened = await tab.open("group:old")
        assert opened["metadata"] == {**NOTE, "mood": "calm"}
        assert texts(opened["messages"]) == ["old 0", "old 1", "one", "two"]


@pytest.mark.parametrize("written", [False, True])
async def test_another_programs_edit_of_the_group_is_an_outside_edit_of_the_chat(
    tmp_path: Path, written: bool
) -> None:
    """[F7] [F12]: another version, another epoch once something of ours stands on it; told to who comes back."""
    user = folder(tmp_path)
    async with running(tmp_path / "data") as app:
        tab = await TabClient.join(app.urls[0])
        opened = await tab.open("group:old")
        if written:
            await tab.append("group:old", "mine")
        head = (await tab.open("group:old"))["head"]
        assert opened["metadata"] == NOTE
    edit_group(user, past_metadata={"old": {**NOTE, "note_prompt": "The tide is early."}})
    for start in range(2):
        async with running(tmp_path / "data") as app:
            tab = await TabClient.join(app.urls[0])
            again = await tab.open("group:old", since=head)
            assert again["mode"] == ("snapshot" if start == 0 else "current")
            opened = await tab.open("group:old")
            assert opened["metadata"]["note_prompt"] == "The tide is early."
            assert opened["version"]["epoch"] == (2 if written else 1)
            assert texts(opened["messages"]) == ["old 0", "old 1", *(["mine"] if written else [])]
            head = opened["head"]
    names = sorted(path.name for path in (user / "group chats").glob("*.jsonl"))
    assert names == ["new.jsonl", "old.jsonl"]


@pytest.mark.parametrize("ours", [{"mood": "calm"}, {"note_prompt": "ours"}], ids=["beside theirs", "on theirs"])
async def test_acknowledged_metadata_survive_an_edit_of_the_group_while_nobody_served(
    tmp_path: Path, ours: dict[str, str]
) -> None:
    """[F7] [F12]: what changes other paths is on top of the group's; what changes the same one is a chat of its own."""
    user = folder(tmp_path)
    theirs = {"note_prompt": "The tide is early."}
    async with Process(tmp_path / "data", "--checkpoint-interval", "60") as server:
        tab = await TabClient.join(server.url)
        await tab.open("group:old")
        await tab.write("metadata-update", "group:old", base="*", merge=ours)
        await server.kill()
        edit_group(user, past_metadata={"old": theirs})
        await server.start()
        tab = await TabClient.join(server.url)
        opened = await tab.open("group:old")
        if "mood" in ours:
            assert opened["metadata"] == {**theirs, **ours}
            assert (await tab.open("group:old - recovered #1"))["code"] == "not-found"
        else:
            assert opened["metadata"] == theirs
            recovered = await tab.open("group:old - recovered #1")
            assert recovered["metadata"] == {"note_prompt": "ours"}


async def test_a_group_file_that_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    """[F12]: what was known stays; an unreadable file is no file without a note."""
    user = folder(tmp_path)
    async with running(tmp_path / "data") as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open("group:old")
        head = (await tab.append("group:old", "mine"))["version"]
    (user / "groups" / "7.json").write_text('{"id": "7", "chats": ["o')
    async with running(tmp_path / "data") as app:
        tab = await TabClient.join(app.urls[0])
        assert (await tab.open("group:old", since=head))["mode"] == "current"
        assert (await tab.open("group:old"))["metadata"] == NOTE


async def test_a_rename_a_branch_and_a_deletion_take_the_note_along(tmp_path: Path) -> None:
    """[J4] [J6] [J7] [F12]"""
    user = folder(tmp_path, shown="old", chat_metadata=NOTE, past_metadata={"new": {"tainted": True}})
    async with running(tmp_path / "data") as app:
        tab = await TabClient.join(app.urls[0])
        opened = await tab.open("group:old")
        ack = await tab.write("chat-rename", "group:old", base="*", to="older")
        assert ack["type"] == "ack", ack
    async with running(tmp_path / "data") as app:
        tab = await TabClient.join(app.urls[0])
        opened = await tab.open("group:older", since=ack["version"])
        assert (opened["mode"], opened["version"]["epoch"]) == ("current", 1)
        opened = await tab.open("group:older")
        assert opened["metadata"] == NOTE
        branch = await tab.write("chat-branch", "group:older", base="*", message=opened["messages"][0]["id"])
        made = await tab.open(branch["branch"]["chat"])
        assert made["metadata"] == {**NOTE, "main_chat": "older"}
        gone = await tab.write("chat-delete", "group:older", base=branch["version"]["integrity"])
        assert gone["type"] == "ack", gone
        assert (await tab.open("group:new"))["metadata"] == {"tainted": True}
        chat = f"id:{opened['chat_id']}"
        tab.ops[chat] = tab.ops["group:older"]
        restored = await tab.write("chat-restore", chat)
        assert restored["type"] == "ack", restored
        assert (await tab.open("group:older"))["metadata"] == NOTE
    assert group(user)["past_metadata"]["older"] == NOTE


async def test_what_the_group_keeps_follows_a_chat_that_comes_back_under_another_name(tmp_path: Path) -> None:
    """[J6] [F12]: `past_metadata` stand under the chat's name; the chat that a group shows alone is shown again."""
    user = folder(tmp_path, chats=["old"], shown="old", chat_metadata={}, past_metadata={"old": NOTE})
    async with running(tmp_path / "data") as app:
        tab = await TabClient.join(app.urls[0])
        opened = await tab.open("group:old")
        chat = f"id:{opened['chat_id']}"
        gone = await tab.ask("chat-delete", chat=chat, op=1, base=opened["version"]["integrity"])
        assert gone["type"] == "ack", gone
        back = await tab.ask("chat-restore", chat=chat, op=2, to="back")
        assert back["type"] == "ack", back
    found = group(user)
    assert (found["chats"], found["chat_id"]) == (["back"], "back")
    assert found["past_metadata"] == {"back": NOTE}


@pytest.mark.parametrize("chosen", [None, "third"])
async def test_the_chat_that_a_group_showed_is_shown_again_when_it_comes_back(
    tmp_path: Path, chosen: str | None
) -> None:
    """[J6] [F12]: also after a restart, with the metadata of each, but not when another one was chosen meanwhile."""
    user = folder(tmp_path, chats=["third", "old", "new"], shown="old", chat_metadata=NOTE,
                  past_metadata={"new": {"tainted": True}})
    async with running(tmp_path / "data") as app:
        tab = await TabClient.join(app.urls[0])
        opened = await tab.open("group:old")
        chat = f"id:{opened['chat_id']}"
        gone = await tab.ask("chat-delete", chat=chat, op=1, base=opened["version"]["integrity"])
        assert gone["type"] == "ack", gone
    assert group(user)["chat_id"] == "new"
    assert group(user)["chat_metadata"] == {"tainted": True}
    if chosen is not None:
        edit_group(user, chat_id=chosen)
    async with running(tmp_path / "data") as app:
        tab = await TabClient.join(app.urls[0], tab.session)
        back = await tab.ask("chat-restore", chat=chat, op=2)
        assert back["type"] == "ack", back
    found = group(user)
    assert found["chats"] == ["third", "new", "old"]
    assert found["chat_id"] == (chosen or "old")
    if chosen is None:
        assert found["chat_metadata"] == NOTE
        assert found["past_metadata"]["new"] == {"tainted": True}


async def test_showing_another_chat_of_the_group_leaves_each_its_own_metadata(tmp_path: Path) -> None:
    """[I10] [F12]: in SillyTavern `chat_metadata` belong to the shown chat, so they change places."""
    user = folder(tmp_path)
    async with running(tmp_path / "data") as app:
        tab = await TabClient.join(app.urls[0])
        await tab.ask("active-chat", group="7", chat="group:old")
        await until(lambda: group(user)["chat_id"] == "old")
        assert group(user)["chat_metadata"] == NOTE
        assert group(user)["past_metadata"] == {"old": NOTE, "new": {"tainted": True}}
        for name, metadata in (("old", NOTE), ("new", {"tainted": True})):
            assert (await tab.open(f"group:{name}"))["metadata"] == metadata
    os.utime(user / "groups" / "7.json")

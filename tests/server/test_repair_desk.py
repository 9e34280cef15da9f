"""A chat repaired beside a running server: told, done, kept, and every tab of it opens again (X14)."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from tellback_server.repairs.repairer import Repairer
from tellback_server.store.files import DEFAULT_USER
from tests.support.damage import codes, repaired
from tests.support.server import TabClient, running, texts, tree
from tests.support.waiting import GUARD_S, until

CHAT = "character:Pip/talk"


def files(data: Path) -> dict[str, bytes]:
    return {name: content for name, content in tree(data).items() if "/chats/" in f"/{name}" or "repairs" in name}


async def test_a_damaged_chat_is_told_repaired_and_goes_on(tmp_path: Path) -> None:
    """[X14] [X7]"""
    data = tmp_path / "data"
    async with running(data, checkpoint_interval_s=600) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        for text in ("one", "two", "three"):
            await tab.append(CHAT, text)
        await tab.write_state("state-update", CHAT, namespace="memory", base=None, set={"boat": "blue"})
    path = data / DEFAULT_USER / "chats" / "Pip" / "talk.jsonl"
    state = path.with_name("talk.luker-state.memory.json")
    whole, document = path.read_bytes(), state.read_bytes()
    lines = whole.split(b"\n")
    broken = b"\n".join([lines[0], lines[1], b"{torn", *lines[3:]])
    path.write_bytes(broken)
    state.write_bytes(b"{broken")
    async with running(data) as app:
        tab, other = await TabClient.join(app.urls[0]), await TabClient.join(app.urls[0])
        opened = await other.open(CHAT)
        assert (opened["read_only"], texts(opened["messages"])) == (True, ["one", "three"])
        before = files(data)
        told = await tab.ask("chat-repair", chat=f"id:{opened['chat_id']}")
        assert {(one["code"], one["path"]) for one in told["findings"]} == {
            ("line-not-json", "chats/Pip/talk.jsonl"), ("state-not-json", "chats/Pip/talk.luker-state.memory.json"),
        }
        assert {one["path"] for one in told["repairs"]} == {one["path"] for one in told["findings"]}
        assert ("done" in told, told["left"], files(data)) == (False, [], before)

        done = await tab.ask("chat-repair", chat=CHAT, apply=True)
        assert (done["done"], done["repairs"]) == (True, told["repairs"])
        assert (await other.raw.receive_until(type="reset"))["reason"] == "outside-edit"
        (kept,) = done["kept"]
        folder = data / DEFAULT_USER / kept / "files" / "chats" / "Pip"
        assert (folder / path.name).read_bytes() == broken
        assert (path.read_bytes(), state.read_bytes()) == (whole, document)
        again = await other.open(CHAT)
        assert ("read_only" in again, texts(again["messages"])) == (False, ["one", "two", "three"])
        states: dict[str, Any] = (await other.ask("state-get", owner={"chat": CHAT}, namespaces=["memory"]))["states"]
        assert states["memory"]["data"] == {"boat": "blue"}
        assert (await other.append(CHAT, "four"))["type"] == "ack"
        nothing = await tab.ask("chat-repair", chat=CHAT, apply=True)
        assert (nothing["findings"], nothing["repairs"], "kept" in nothing) == ([], [], False)
        assert (await tab.ask("chat-repair", chat="character:Pip/nobody"))["code"] == "not-found"
    assert codes(data) == set()


async def test_a_chat_of_another_time_than_the_log_is_taken_as_it_is_when_its_user_says_so(tmp_path: Path) -> None:
    """[X13] [X14]"""
    data = tmp_path / "data"
    async with running(data, checkpoint_interval_s=600) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        await tab.append(CHAT, "one")
    older = {path: path.read_bytes() for path in (data / ".tellback").rglob("*") if path.is_file()}
    async with running(data, checkpoint_interval_s=600) as app:
        tab = await TabClient.join(app.urls[0])
        opened = await tab.open(CHAT)
        await tab.append(CHAT, "two")
    for path in (data / ".tellback").rglob("*"):
        if path.is_file() and path not in older:
            path.unlink()
    for path, content in older.items():
        path.write_bytes(content)
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        found = await tab.open(CHAT)
        assert (found["read_only"], found["damage"][0]["line"], texts(found["messages"])) == (True, 0, ["one", "two"])
        assert (await tab.append(CHAT, "three"))["code"] == "read-only"
        assert (await tab.ask("chat-repair", chat=CHAT, apply=True))["done"]
        again = await tab.open(CHAT)
        assert ("read_only" in again, texts(again["messages"])) == (False, ["one", "two"])
        assert again["version"]["epoch"] == opened["version"]["epoch"] + 1
        assert (await tab.append(CHAT, "three"))["type"] == "ack"
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        assert texts((await tab.open(CHAT))["messages"]) == ["one", "two", "three"]
    assert codes(data) == set()


async def test_who_asked_may_leave_and_the_repair_goes_to_its_end_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[X14] Nobody writes to the chat's files meanwhile."""
    data = tmp_path / "data"
    async with running(data, checkpoint_interval_s=600) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        await tab.append(CHAT, "one", "two")
    path = data / DEFAULT_USER / "chats" / "Pip" / "talk.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole.rstrip(b"\n") + b"\n{torn\n")
    begun, go_on = threading.Event(), threading.Event()
    carry_out = Repairer.carry_out

    def held(self: Repairer, *rest: Any) -> Any:
        begun.set()
        assert go_on.wait(GUARD_S)
        return carry_out(self, *rest)

    monkeypatch.setattr(Repairer, "carry_out", held)
    async with running(data) as app:
        tab, other = await TabClient.join(app.urls[0]), await TabClient.join(app.urls[0])
        assert (await other.open(CHAT))["read_only"]
        await tab.raw.send({"type": "chat-repair", "id": 9, "chat": CHAT, "apply": True})
        assert await asyncio.to_thread(begun.wait, GUARD_S)
        [actor] = app._hub.actors
        await tab.close()
        await until(lambda: len(app._reception.tabs) == 1)
        assert (actor.state, actor.folding) == ("busy", True)
        go_on.set()
        assert (await other.raw.receive_until(type="reset"))["reason"] == "outside-edit"
        again = await other.open(CHAT)
        assert ("read_only" in again, texts(again["messages"])) == (False, ["one", "two"])


def copied_by_hand(data: Path, to: str, *, named: bool) -> Path:
    """The chat and its chat_sync, copied to another character; `named`: by a program that writes its new name."""
    path = data / DEFAULT_USER / "chats" / "Pip" / "talk.jsonl"
    copy = data / DEFAULT_USER / "chats" / to / "talk.jsonl"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    sync = json.loads(path.with_name("talk.luker-state.chat_sync.json").read_bytes())
    if named:
        del sync["tellback"]["crc32"]
        sync["tellback"]["name"] = f"character:{to}/talk"
    copy.with_name("talk.luker-state.chat_sync.json").write_text(json.dumps(sync))
    return copy


async def test_a_copy_of_another_characters_chat_is_nobodys_but_its_own(tmp_path: Path) -> None:
    """[X14] What it says that it is stands elsewhere: nothing is put into it that the log tells of that one."""
    data = tmp_path / "data"
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        for text in ("one", "two", "three"):
            await tab.append(CHAT, text)
    copy = copied_by_hand(data, "Tom", named=False)
    lines = copy.read_bytes().split(b"\n")
    copy.write_bytes(b"\n".join([lines[0], lines[1], b"{torn", *lines[3:]]))
    other = tmp_path / "other"
    shutil.copytree(data, other)
    [offline] = [one for one in repaired(other).choices if one.path.endswith("Tom/talk.jsonl")]
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        told = await tab.ask("chat-repair", chat="character:Tom/talk")
        [planned] = told["repairs"]
        assert (planned["actions"], planned["quarantined"]) == (offline.actions, 1)
        assert (await tab.ask("chat-repair", chat="character:Tom/talk", apply=True))["done"]
        opened = await tab.open("character:Tom/talk")
        assert ("read_only" in opened, texts(opened["messages"])) == (False, ["one", "three"])
        assert opened["chat_id"] != (await tab.open(CHAT))["chat_id"]
    assert copy.read_bytes() == (other / copy.relative_to(data)).read_bytes()


async def test_a_copy_that_says_that_it_is_another_characters_chat_is_told_and_parted(tmp_path: Path) -> None:
    """[X13] [X14] The one that the log names is the chat; the other one's chat_sync is taken away."""
    data = tmp_path / "data"
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        await tab.append(CHAT, "one")
    copied_by_hand(data, "Tom", named=True)
    assert "chat-id-duplicate" in codes(data)
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        first, second = await tab.open(CHAT), await tab.open("character:Tom/talk")
        assert first["chat_id"] != second["chat_id"]
        assert (await tab.ask("chat-repair", chat=CHAT))["findings"] == []
        told = await tab.ask("chat-repair", chat="character:Tom/talk", apply=True)
        assert [one["code"] for one in told["findings"]] == ["chat-id-duplicate"]
        assert told["done"]
        assert (await tab.append("character:Tom/talk", "two"))["type"] == "ack"
    assert codes(data) == set()

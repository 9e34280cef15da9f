"""The life of characters and presets: their state, chats and groups go along, and tabs follow."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from tests.support.server import TabClient, running, texts

PRESET = {"preset": "OpenAI Settings/Default"}
ALICE = {"character": "Alice"}
CHAT = "character:Alice/First meeting"


def prepare(data: Path) -> Path:
    root = data / "default-user"
    for folder in ("characters", "OpenAI Settings", "groups", "chats/Alice"):
        (root / folder).mkdir(parents=True)
    (root / "characters/Alice.png").write_bytes(b"a card")
    (root / "OpenAI Settings/Default.json").write_text("{}")
    (root / "chats/Alice/Quiet.jsonl").write_text('{"chat_metadata":{}}\n{"mes":"nobody has it open"}')
    group = {"id": "7", "members": ["Bob.png", "Alice.png"], "disabled_members": ["Alice.png"], "chats": []}
    (root / "groups/7.json").write_text(json.dumps(group))
    return root


async def state_of(tab: TabClient, owner: dict[str, str]) -> dict[str, Any]:
    return await tab.ask("state-get", owner=owner, namespaces=["memory"])


async def test_a_preset_is_renamed_deleted_and_restored_with_its_state(tmp_path: Path) -> None:
    """[J1] [J4] [J6]"""
    root = prepare(tmp_path)
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        other = await TabClient.join(app.urls[0])
        set_ = await tab.ask("state-update", owner=PRESET, op=1, namespace="memory", base=None, set={"a": 1})
        assert set_["type"] == "ack"
        await other.ask("open", owner=PRESET, since=None)
        ack = await tab.ask("owner-rename", owner=PRESET, op=2, to="Better", base="*")
        assert ack["type"] == "ack", ack
        assert ack["ops"] == [{"op": "renamed", "to": "preset:OpenAI Settings/Better"}]
        told = await other.raw.receive_until(type="integrity")
        assert (told["owner"], told["ops"]) == (PRESET, ack["ops"])
        better = {"preset": "OpenAI Settings/Better"}
        assert (await state_of(tab, better))["states"]["memory"]["data"] == {"a": 1}
        assert (await state_of(tab, PRESET))["code"] == "renamed"
        again = await tab.ask("owner-rename", owner=PRESET, op=2, to="Better", base="*")
        assert again["duplicate"] is True
        gone = await tab.ask("owner-delete", owner=better, op=3, base="*")
        assert gone["type"] == "ack", gone
        assert not list((root / "OpenAI Settings").iterdir())
        assert (await state_of(tab, better))["code"] == "deleted"
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0], tab.session)
        assert (await state_of(tab, better))["code"] == "deleted"
        back = await tab.ask("owner-restore", owner=better, op=4)
        assert back["type"] == "ack", back
        found = await state_of(tab, better)
        assert found["states"]["memory"] == {"version": set_["version"], "data": {"a": 1}}
        assert (await tab.ask("owner-restore", owner=better, op=4))["duplicate"] is True
    names = sorted(path.name for path in (root / "OpenAI Settings").iterdir())
    assert names == ["Better.json", "Better.luker-state.chat_sync.json", "Better.luker-state.memory.json"]


async def test_a_characters_chats_and_groups_go_along_j4(tmp_path: Path) -> None:
    """[J4] [J5] [J10]: those that are open and those that are not."""
    root = prepare(tmp_path)
    async with running(tmp_path) as app:
        one = await TabClient.join(app.urls[0])
        other = await TabClient.join(app.urls[0])
        opened = await one.open(CHAT, create=True)
        await one.append(CHAT, "one")
        await other.open(CHAT)
        await one.ask("state-update", owner=ALICE, op=1, namespace="memory", base=None, set={"a": 1})
        ack, _ = await asyncio.gather(
            one.ask("owner-rename", owner=ALICE, op=2, to="Alicia", base="*"),
            other.append(CHAT, "two"),
        )
        assert ack["type"] == "ack", ack
        to = "character:Alicia/First meeting"
        told = await other.raw.receive_until(type="integrity", chat=CHAT, ops=[{"op": "renamed", "to": to}])
        assert "by" not in told
        assert (root / "characters/Alicia.png").read_bytes() == b"a card"
        assert (root / "characters/Alicia.state.memory.json").exists()
        assert not (root / "chats/Alice").exists()
        group = json.loads((root / "groups/7.json").read_text())
        assert group["members"] == ["Bob.png", "Alicia.png"]
        assert group["disabled_members"] == ["Alicia.png"]
        again = await one.open(to)
        assert again["chat_id"] == opened["chat_id"]
        assert sorted(texts(again["messages"])) == ["one", "two"]
        assert (await one.append(to, "three"))["type"] == "ack"
        quiet = await one.open("character:Alicia/Quiet")
        assert texts(quiet["messages"]) == ["nobody has it open"]
        assert (await one.open(f"id:{quiet['chat_id']}"))["chat_id"] == quiet["chat_id"]
        for name in (CHAT, "character:Alice/Quiet"):
            old = await one.ask("open", chat=name, since=None)
            assert (old["code"], old["to"]) == ("renamed", name.replace("Alice", "Alicia"))
        assert (await state_of(one, {"character": "Alicia"}))["states"]["memory"]["data"] == {"a": 1}
        # What is in the trash comes back to where its character is now.
        base = quiet["version"]["integrity"]
        gone = await one.write("chat-delete", "character:Alicia/Quiet", base=base)
        back_again = {"owner": {"character": "Alicia"}, "op": 3, "to": "Alice", "base": "*"}
        assert (await one.ask("owner-rename", **back_again))["type"] == "ack"
        restored = await one.ask("chat-restore", chat=f"id:{quiet['chat_id']}", op=gone["op"] + 1)
        assert restored["ops"] == [{"op": "renamed", "to": "character:Alice/Quiet"}]
        assert (await one.ask("owner-rename", owner=ALICE, op=4, to="Alicia", base="*"))["type"] == "ack"
        nobody = await one.ask("owner-rename", owner={"character": "Bob"}, op=1, to="X", base="*")
        assert nobody["code"] == "not-found"
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        by_id = await tab.open(f"id:{opened['chat_id']}")
        assert sorted(texts(by_id["messages"])) == ["one", "three", "two"]
        assert (await tab.ask("open", chat=CHAT, since=None))["code"] == "renamed"


async def test_a_character_goes_to_the_trash_with_or_without_its_chats_j6(tmp_path: Path) -> None:
    """[J6] [J11]"""
    root = prepare(tmp_path)
    async with running(tmp_path) as app:
        one = await TabClient.join(app.urls[0])
        opened = await one.open(CHAT, create=True)
        await one.append(CHAT, "one")
        gone = await one.ask("owner-delete", owner=ALICE, op=1, base="*")
        assert gone["type"] == "ack", gone
        assert not (root / "characters/Alice.png").exists()
        assert texts((await one.open(CHAT))["messages"]) == ["one"]
        assert (await one.ask("owner-restore", owner=ALICE, op=2))["type"] == "ack"
        other = await TabClient.join(app.urls[0])
        await other.open(CHAT)
        gone = await one.ask("owner-delete", owner=ALICE, op=3, base="*", chats=True)
        assert gone["type"] == "ack", gone
        await other.raw.receive_until(type="integrity", chat=CHAT, ops=[{"op": "deleted"}])
        assert not (root / "chats/Alice").exists()
        assert (await one.ask("open", chat=CHAT, since=None))["code"] == "deleted"
    async with running(tmp_path) as app:
        one = await TabClient.join(app.urls[0], one.session)
        assert (await one.ask("open", chat=CHAT, since=None, create=True))["code"] == "deleted"
        assert (await one.ask("owner-restore", owner=ALICE, op=4))["type"] == "ack"
        back = await one.open(CHAT)
        assert (texts(back["messages"]), back["chat_id"]) == (["one"], opened["chat_id"])
        assert texts((await one.open("character:Alice/Quiet"))["messages"]) == ["nobody has it open"]
        assert (await one.append(CHAT, "two"))["type"] == "ack"

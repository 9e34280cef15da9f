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
        gone = await one.ask("owner-delete", owner=ALICE, op=3, base="*", chats=True, force=True)
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


async def test_a_chat_that_has_no_file_yet_is_in_the_way_of_a_character(tmp_path: Path) -> None:
    """[J1] [J10]: two chats never become one file."""
    prepare(tmp_path)
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        other = await TabClient.join(app.urls[0])
        await tab.ask("state-get", owner=ALICE, namespaces=["memory"])
        made = await other.ask("chat-create", chat="character:Zed/Quiet", op=1, messages=[{"mes": "Zed's own."}])
        assert made["type"] == "ack", made
        for op, to in enumerate(("Zed", "zed"), 1):
            refused = await tab.ask("owner-rename", owner=ALICE, op=op, base="*", to=to)
            assert refused["code"] == "exists", refused
        opened = await other.open("character:Zed/Quiet")
        assert (opened["chat_id"], texts(opened["messages"])) == (made["chat_id"], ["Zed's own."])
        assert texts((await other.open("character:Alice/Quiet"))["messages"]) == ["nobody has it open"]


async def test_a_character_does_not_come_back_over_new_chats(tmp_path: Path) -> None:
    """[J1] [J11]: whether the new chat of a name has a file already or not; others are in nobody's way."""
    prepare(tmp_path)
    async with running(tmp_path, checkpoint_interval_s=0.05) as app:
        tab = await TabClient.join(app.urls[0])
        other = await TabClient.join(app.urls[0])
        gone = await tab.ask("owner-delete", owner=ALICE, op=1, base="*", chats=True, force=True)
        assert gone["type"] == "ack", gone
        await other.ask("chat-create", chat="character:Alice/Loud", op=1)
        made = await other.ask("chat-create", chat="character:Alice/Quiet", op=1, messages=[{"mes": "new"}])
        assert made["type"] == "ack", made
        for op in (2, 3):
            refused = await tab.ask("owner-restore", owner=ALICE, op=op)
            assert refused["code"] == "exists", refused
            assert "character:Alice/Quiet" in refused["message"]
            await asyncio.sleep(0.5)
        moved = await other.ask("chat-rename", chat="character:Alice/Quiet", op=2, base="*", to="Quiet too")
        assert moved["type"] == "ack", moved
        back = await tab.ask("owner-restore", owner=ALICE, op=4)
        assert back["type"] == "ack", back
        assert texts((await other.open("character:Alice/Quiet too"))["messages"]) == ["new"]
        assert texts((await other.open("id:" + made["chat_id"]))["messages"]) == ["new"]
        assert texts((await tab.open("character:Alice/Quiet"))["messages"]) == ["nobody has it open"]


async def test_life_writes_that_meet_wait_for_one_another(tmp_path: Path) -> None:
    """[J1] [J10]: a chat is renamed, another made, a third opened, while their character is: all are answered."""
    prepare(tmp_path)
    async with running(tmp_path) as app:
        tabs = [await TabClient.join(app.urls[0]) for _ in range(5)]
        opened = await tabs[0].open(CHAT, create=True)
        chat, names = "id:" + opened["chat_id"], ("Alice", "Alicia")
        for number in range(6):
            old, new = names[number % 2], names[1 - number % 2]
            assert (await tabs[0].append(chat, f"in round {number}"))["type"] == "ack"
            await tabs[4].open(chat)
            moved, renamed, made, quiet = await asyncio.gather(
                tabs[1].ask("owner-rename", owner={"character": old}, op=number + 1, base="*", to=new),
                tabs[2].ask("chat-rename", chat=chat, op=number + 1, base="*", to=f"Meeting {number}"),
                tabs[3].ask("chat-create", chat=f"character:{old}/Made {number}", op=1),
                tabs[4].ask("open", chat=f"character:{old}/Quiet", since=None),
            )
            assert renamed["type"] == "ack", renamed
            assert made["type"] == "ack", made
            assert quiet["type"] == "opened" or quiet["code"] == "renamed", quiet
            # A chat that was made in the old folder after the character had left it is in the way of its return.
            assert moved["type"] == "ack" or moved["code"] == "exists", moved
            if moved["type"] != "ack":
                break
        said = [f"in round {number}" for number in range(number + 1)]
        assert texts((await tabs[4].open(chat))["messages"]) == said


async def test_what_a_refused_life_write_points_at(tmp_path: Path) -> None:
    """[J2] [J11] [B5]: the member that is wrong; a deletion with chats does not go with whatever is there."""
    prepare(tmp_path)
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])

        async def refused(kind: str, **fields: object) -> tuple[object, object]:
            answer = await tab.ask(kind, **fields)
            assert answer["type"] == "error", answer
            return answer["code"], answer.get("pointer")

        assert await refused("owner-restore", owner=ALICE, op=1) == ("not-found", "/owner")
        nobody = {"character": "Nobody"}
        assert await refused("owner-restore", owner=nobody, op=1) == ("not-found", "/owner")
        assert await refused("owner-delete", owner=PRESET, op=1, base="*", chats=True) == ("bad-frame", "/chats")
        assert await refused("owner-delete", owner=ALICE, op=2, base="*", chats=True) == ("base-illegal", "/base")
        group = await refused("chat-create", chat="group:New", op=1, group="no such")
        assert group == ("not-found", "/group")
        opened = await tab.ask("open", owner=ALICE, since=None)
        seen = opened["head"]["integrity"]
        assert (await tab.ask("owner-delete", owner=ALICE, op=3, base=seen, chats=True))["type"] == "ack"


async def test_chats_that_went_with_their_character_are_answered_for(tmp_path: Path) -> None:
    """[J5] [J11]: by id and by name, after a restart too: `deleted`, what restores them, outcomes of their ops."""
    prepare(tmp_path)
    sessions: list[str] = []
    said: dict[str, Any] = {}
    chat = ""
    for start in range(3):
        async with running(tmp_path) as app:
            one = await TabClient.join(app.urls[0], *sessions[:1])
            other = await TabClient.join(app.urls[0], *sessions[1:])
            sessions = [one.session, other.session]
            say = {"op": 1, "base": "*", "messages": [{"mes": "Hello."}]}
            if start == 0:
                chat = "id:" + (await other.open(CHAT, create=True))["chat_id"]
                said = await other.ask("append", chat=chat, **say)
                assert said["type"] == "ack", said
                gone = await one.ask("owner-delete", owner=ALICE, op=1, base="*", chats=True, force=True)
                assert gone["type"] == "ack", gone
            character = "id:" + (await one.ask("state-get", owner=ALICE, namespaces=[]))["chat_id"]
            for address in (chat, CHAT):
                again = await other.ask("append", chat=address, **say)
                assert (again["type"], again.get("duplicate")) == ("ack", True), again
                assert again["version"] == said["version"]
                for answer in (
                    await other.ask("append", chat=address, op=2, base="*", messages=[{"mes": "More."}]),
                    await other.ask("open", chat=address, since=None),
                    await other.ask("chat-restore", chat=chat, op=2),
                ):
                    assert (answer["code"], answer["chat_id"]) == ("deleted", chat[3:]), answer
                    assert "character:Alice" in answer["message"]
                    assert "owner-restore" in answer["message"]
            listed = await one.ask("chat-list", deleted=True, character="Alice")
            assert listed["total"] == 2
            assert {
                (one["chat"], one.get("chat_id"), one["deleted_with"]) for one in listed["chats"]
            } == {(CHAT, chat[3:], "character:Alice"), ("character:Alice/Quiet", None, "character:Alice")}
            page = await one.ask("chat-list", deleted=True, limit=1)
            rest = await one.ask("chat-list", deleted=True, limit=1, cursor=page["cursor"])
            assert {page["chats"][0]["chat"], rest["chats"][0]["chat"]} == {CHAT, "character:Alice/Quiet"}
            for wrong in ("chat-restore", "open"):
                more = {"op": 1} if wrong == "chat-restore" else {"since": None}
                assert (await one.ask(wrong, chat=character, **more))["code"] == "not-found"
    async with running(tmp_path) as app:
        one, other = [await TabClient.join(app.urls[0], session) for session in sessions]
        back = await one.ask("owner-restore", owner=ALICE, op=2)
        assert back["type"] == "ack", back
        assert (await other.ask("append", chat=chat, **say))["duplicate"] is True
        assert texts((await other.open(chat))["messages"]) == ["Hello."]
        assert (await other.append(chat, "More."))["type"] == "ack"
        assert (await one.ask("chat-list", deleted=True))["total"] == 0

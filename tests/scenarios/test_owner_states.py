"""State of characters and presets over the wire: who may be named, what is answered, who hears of it (BEHAVIOUR Q)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import TabClient, new_session, running, sillytavern_copy, tree

ALICE = {"character": "Mirelle Ashgrove"}
PRESET = {"preset": "OpenAI Settings/Rain & Tea (short)"}
CHAT = "character:Alice/First meeting"
REAL_CHAT = "character:Pip/Pip - 2024-09-30@09h00m00s"
OWNERS = [pytest.param(ALICE, id="character"), pytest.param(PRESET, id="preset")]
ODD = [
    "odd.png name", "佐藤ひなこ", "Ünïcödé", "a" * 128, "two  blanks", "semi;colon", "quote'd", "100%", "#1", "a,b",
    "[brackets]", "{braces}", "(round)", "tilde~", "at@home", "dollar$", "caret^", "a&b", "plus+equals=", "dot.dot..x",
]
"""Legal, and each a trap for somebody's escaping."""


def side_of(owner: dict[str, str], namespace: str) -> str:
    if "character" in owner:
        return f"default-user/characters/{owner['character']}.state.{namespace}.json"
    return f"default-user/{owner['preset']}.luker-state.{namespace}.json"


async def open_owner(tab: TabClient, owner: dict[str, str], since: Any = None, **fields: Any) -> dict[str, Any]:
    return await tab.ask("open", owner=owner, since=since, **fields)


class Writer:
    """One tab's ops on one owner."""

    def __init__(self, tab: TabClient, owner: dict[str, str], op: int = 0) -> None:
        self.tab = tab
        self.owner = owner
        self.op = op

    async def write(self, type: str, **fields: Any) -> dict[str, Any]:
        self.op += 1
        return await self.tab.ask(type, owner=self.owner, op=self.op, **fields)

    async def update(self, namespace: str, base: Any, **fields: Any) -> dict[str, Any]:
        return await self.write("state-update", namespace=namespace, base=base, **fields)


@pytest.mark.parametrize("owner", OWNERS)
async def test_state_is_made_read_changed_and_taken_away(tmp_path: Path, owner: dict[str, str]) -> None:
    """[Q1] [Q3] [Q5] The same writes as a chat's state, answered with the owner."""
    data = sillytavern_copy(tmp_path)
    before = tree(data)
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        opened = await open_owner(tab, owner)
        assert opened["mode"] == "snapshot"
        assert (opened["owner"], opened["states"], opened["next_op"]) == (owner, {}, 1)
        assert "chat" not in opened
        assert "messages" not in opened
        assert "version" not in opened
        assert opened["head"]["seq"] == 0
        empty = await tab.ask("state-get", owner=owner, namespaces=["memory"])
        assert (empty["owner"], empty["states"]) == (owner, {"memory": None})
        writer = Writer(tab, owner)

        made = await writer.update("memory", None, set={"n": 1})
        assert (made["type"], made["owner"], made["namespace"], made["version"]["seq"]) == ("ack", owner, "memory", 1)
        other = await writer.update("game.v2", None, set=[1, 2])
        patched = await writer.update(
            "memory", made["version"]["integrity"], patch=[{"op": "replace", "path": "/n", "value": 2}]
        )
        assert patched["version"]["seq"] == 3

        got = await tab.ask("state-get", owner=owner)
        assert got["states"] == {
            "memory": {"version": patched["version"], "data": {"n": 2}},
            "game.v2": {"version": other["version"], "data": [1, 2]},
        }
        gone = await writer.write("state-delete", namespace="game.v2", base=other["version"]["integrity"])
        assert gone["type"] == "ack"
        assert (await tab.ask("state-get", owner=owner, namespaces=["game.v2", "memory"]))["states"]["game.v2"] is None
        owner_id = opened["owner_id"]
    after = tree(data)
    assert json.loads(after[side_of(owner, "memory")][0]) == {"n": 2}
    assert side_of(owner, "game.v2") not in after
    sync = json.loads(after[side_of(owner, "chat_sync")][0])
    assert sync["tellback"]["chat_id"] == owner_id
    assert sync["integrity"] == gone["version"]["integrity"]
    assert {path: after[path][0] for path in before if path in after} == {path: before[path][0] for path in before}

    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        again = await open_owner(tab, owner)
        assert (again["owner_id"], again["states"]) == (owner_id, {"memory": patched["version"]})
        assert again["head"] == gone["version"]


async def test_only_reading_writes_nothing(tmp_path: Path) -> None:
    """[Q3] [F1] Created with the first write, and not before."""
    data = sillytavern_copy(tmp_path)
    before = tree(data / "default-user")
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        for owner in (ALICE, PRESET):
            await open_owner(tab, owner)
            await tab.ask("state-get", owner=owner)
            await tab.ask("close", owner=owner)
    assert tree(data / "default-user") == before


async def test_a_stale_write_gets_what_it_missed_of_the_owner(tmp_path: Path) -> None:
    """[Q2] [B8] The missed commits name the owner, as the broadcast does."""
    data = sillytavern_copy(tmp_path)
    async with running(data) as app:
        one, two = [await TabClient.join(app.urls[0]) for _ in range(2)]
        for tab in (one, two):
            await open_owner(tab, ALICE)
        mine, theirs = Writer(one, ALICE), Writer(two, ALICE)
        first = await mine.update("memory", None, set={"n": 1})
        told = await two.raw.receive_until(type="integrity")
        assert (told["owner"], told["version"]) == (ALICE, first["version"])
        assert "chat" not in told
        assert told["ops"][0]["data"] == {"n": 1}
        second = await theirs.update("memory", first["version"]["integrity"], set={"n": 2})

        stale = await mine.update("memory", first["version"]["integrity"], set={"n": 9})

        assert (stale["type"], stale["owner"], stale["version"]) == ("conflict", ALICE, second["version"])
        assert [(frame["type"], frame["owner"]) for frame in stale["missed"]] == [("integrity", ALICE)]
        rebased = await mine.update("other", None, set=1)
        assert rebased["type"] == "ack", "another namespace is another document"
        required = await mine.write("state-update", namespace="memory", set=1)
        assert (required["code"], required["owner"]) == ("base-required", ALICE)


async def test_what_was_missed_is_replayed_and_an_op_is_answered_again(tmp_path: Path) -> None:
    """[Q1] [R1] [O2] Resume and resend as for chats, across a restart."""
    data = sillytavern_copy(tmp_path)
    session = new_session()
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0], session)
        opened = await open_owner(tab, ALICE)
        writer = Writer(tab, ALICE)
        acks = [await writer.update("memory", "*", merge={str(n): n}) for n in range(3)]
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0], session)
        again = await open_owner(tab, ALICE, since=opened["head"])
        assert (again["mode"], again["next_op"]) == ("replay", 4)
        assert "states" not in again
        missed = [await tab.raw.receive_until(type="integrity") for _ in acks]
        assert [frame["version"] for frame in missed] == [ack["version"] for ack in acks]
        assert all(frame["owner"] == ALICE for frame in missed)
        resent = await tab.ask(
            "state-update", owner=ALICE, op=3, namespace="memory", base="*", merge={"2": 2}
        )
        assert resent["duplicate"] is True
        assert resent["version"] == acks[2]["version"]
        current = await open_owner(tab, ALICE, since=acks[2]["version"])
        assert current["mode"] == "current"
        gap = await tab.ask("state-update", owner=ALICE, op=9, namespace="memory", base="*", merge={})
        assert (gap["code"], gap["expected"], gap["owner"]) == ("op-gap", 4, ALICE)


async def test_a_malformed_write_to_an_owner_uses_up_its_number(tmp_path: Path) -> None:
    """[O4] [Q1]"""
    data = sillytavern_copy(tmp_path)
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        await open_owner(tab, PRESET)
        bad = await tab.ask("state-update", owner=PRESET, op=1, namespace=7, base=None, set=1)
        assert (bad["code"], bad["owner"], bad["op"]) == ("bad-frame", PRESET, 1)
        assert (await open_owner(tab, PRESET))["next_op"] == 2
        good = await tab.ask("state-update", owner=PRESET, op=2, namespace="x", base=None, set=1)
        assert good["type"] == "ack"


@pytest.mark.parametrize(
    ("owner", "code"),
    [
        ({"character": "Nobody"}, "not-found"),
        ({"preset": "OpenAI Settings/Nothing"}, "not-found"),
        ({"preset": "chats/Mirelle Ashgrove"}, "not-found"),
        ({"preset": "groups/1795229131318"}, "not-found"),
        ({"preset": "backups/x"}, "not-found"),
        ({"character": "../../etc/passwd"}, "name-illegal"),
        ({"character": "Mirelle Ashgrove/x"}, "name-illegal"),
        ({"character": ".."}, "name-illegal"),
        ({"character": ""}, "name-illegal"),
        ({"character": "a\u0000b"}, "name-illegal"),
        ({"preset": "Default"}, "name-illegal"),
        ({"preset": "../characters/x"}, "name-illegal"),
        ({"preset": "OpenAI Settings/../x"}, "name-illegal"),
        ({"preset": "OpenAI Settings/"}, "name-illegal"),
        ({"preset": "OpenAI Settings/x.luker-state.memory"}, "name-illegal"),
        ({}, "bad-frame"),
        ({"character": "Pip", "preset": "OpenAI Settings/x"}, "bad-frame"),
        ({"chat": CHAT, "character": "Pip"}, "bad-frame"),
    ],
)
async def test_who_is_not_there_or_cannot_be_named(tmp_path: Path, owner: dict[str, str], code: str) -> None:
    """[Q4] Nothing is made, nothing outside the user's folder is touched."""
    data = sillytavern_copy(tmp_path)
    before = tree(data / "default-user")
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        for type_, fields in (
            ("open", {"since": None}), ("state-get", {}), ("close", {}),
            ("state-update", {"op": 1, "namespace": "x", "base": None, "set": 1}),
            ("state-delete", {"op": 1, "namespace": "x", "base": None}),
        ):
            answer = await tab.ask(type_, owner=owner, **fields)
            assert (answer["type"], answer["code"]) == ("error", code), answer
            assert answer["owner"] == owner
    assert tree(data / "default-user") == before


async def test_exactly_one_of_chat_and_owner(tmp_path: Path) -> None:
    """[Q1]"""
    async with running(sillytavern_copy(tmp_path)) as app:
        tab = await TabClient.join(app.urls[0])
        for type_ in ("open", "close"):
            for fields in ({}, {"chat": CHAT, "owner": ALICE}, {"owner": {"chat": CHAT}}):
                answer = await tab.ask(type_, since=None, **fields)
                assert answer["code"] == "bad-frame"
        for fields in ({"create": True}, {"tail": 3}):
            answer = await open_owner(tab, ALICE, **fields)
            assert answer["code"] == "bad-frame"
        # An owner's text is no chat's, also when the owner is known on this connection.
        await open_owner(tab, ALICE)
        for chat in ("character:Mirelle Ashgrove", "preset:OpenAI Settings/Rain & Tea (short)"):
            answer = await tab.ask("append", chat=chat, op=1, base="*", messages=[{}])
            assert answer["code"] == "name-illegal"
        opened = await open_owner(tab, ALICE)
        answer = await tab.ask("open", chat=f"id:{opened['owner_id']}", since=None)
        assert answer["code"] == "not-found", "an owner's id is no chat's"


@pytest.mark.parametrize("name", ODD)
async def test_an_odd_but_legal_name_works(tmp_path: Path, name: str) -> None:
    """[Q4] Twenty of them, for a character and for a preset."""
    data = tmp_path / "data"
    (data / "default-user/characters").mkdir(parents=True)
    (data / "default-user/TextGen Settings").mkdir()
    (data / "default-user/chats").mkdir()
    (data / f"default-user/characters/{name}.png").write_bytes(b"a card")
    (data / f"default-user/TextGen Settings/{name}.json").write_text("{}")
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        for owner in ({"character": name}, {"preset": f"TextGen Settings/{name}"}):
            await open_owner(tab, owner)
            made = await Writer(tab, owner).update("memory", None, set={"name": name})
            assert made["type"] == "ack"
    for owner in ({"character": name}, {"preset": f"TextGen Settings/{name}"}):
        assert json.loads((data / side_of(owner, "memory")).read_text()) == {"name": name}


@pytest.mark.parametrize("owner", OWNERS)
async def test_what_other_programs_wrote_is_served_as_it_is(tmp_path: Path, owner: dict[str, str]) -> None:
    """[Q5] [Q6] Any root, any layout; odd and reserved namespaces list; a corrupt file is an error and stays."""
    data = sillytavern_copy(tmp_path)
    files = {
        "memory": b'{\n    "pretty": true\n}', "a..b": b"[1]", "x__floor_log": b'{"version":1}', "null": b"null",
        "broken": b'{"torn": tr', "Upper": b"{}", "a.state.b": b"{}", "a.luker-state.b": b"{}",
    }
    for namespace, content in files.items():
        (data / side_of(owner, namespace)).write_bytes(content)
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        opened = await open_owner(tab, owner)
        assert sorted(opened["states"]) == ["a..b", "broken", "memory", "null", "x__floor_log"]
        got = await tab.ask("state-get", owner=owner, namespaces=["memory", "a..b", "x__floor_log"])
        assert got["states"]["memory"] == {"version": opened["states"]["memory"], "data": {"pretty": True}}
        corrupt = await tab.ask("state-get", owner=owner, namespaces=["broken"])
        assert (corrupt["code"], corrupt["owner"]) == ("state-corrupt", owner)
        among = await tab.ask("state-get", owner=owner, namespaces=["memory", "broken"])
        assert (among["code"], among["pointer"]) == ("state-corrupt", "/namespaces/1")
        every = await tab.ask("state-get", owner=owner)
        assert every["states"]["broken"] == {"version": opened["states"]["broken"], "error": "state-corrupt"}
        assert {name: value["data"] for name, value in every["states"].items() if name != "broken"} == {
            "memory": {"pretty": True}, "a..b": [1], "x__floor_log": {"version": 1}, "null": None}
        writer = Writer(tab, owner)
        for base in (None, opened["states"]["broken"]["integrity"]):
            refused = await tab.ask(
                "state-update", owner=owner, op=1, namespace="broken", base=base, set={}
            )
            assert refused["code"] == "state-corrupt"
        for namespace in ("x__floor_log", "chat_sync", "tellback_x", "x__orphans"):
            assert (await writer.update(namespace, None, set={}))["code"] == "namespace-reserved"
        for namespace in ("Upper", "a/b", "", "a.state.b", "a" * 97, "../x"):
            assert (await writer.update(namespace, None, set={}))["code"] == "namespace-illegal"
        changed = await writer.update("memory", opened["states"]["memory"]["integrity"], merge={"n": 1})
        assert changed["type"] == "ack"
    assert json.loads((data / side_of(owner, "memory")).read_bytes()) == {"pretty": True, "n": 1}
    for namespace in files.keys() - {"memory"}:
        assert (data / side_of(owner, namespace)).read_bytes() == files[namespace]


async def test_a_large_state_travels_as_its_version(tmp_path: Path) -> None:
    """[E5] [Q2]"""
    async with running(sillytavern_copy(tmp_path)) as app:
        one, two = [await TabClient.join(app.urls[0]) for _ in range(2)]
        for tab in (one, two):
            await open_owner(tab, PRESET)
        large = {"text": "x" * (70 << 10)}
        await Writer(one, PRESET).update("memory", None, set=large)
        told = await two.raw.receive_until(type="integrity")
        assert not {"data", "patch", "deleted"} & told["ops"][0].keys()
        got = await two.ask("state-get", owner=PRESET, namespaces=["memory"])
        assert got["states"]["memory"] == {"version": told["version"], "data": large}


async def test_links_are_not_followed(tmp_path: Path) -> None:
    """[Q4] [F10] Not as a card, not as a folder, not as a sidecar."""
    data = sillytavern_copy(tmp_path)
    user = data / "default-user"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.json").write_text("{}")
    (user / "characters/Linked.png").symlink_to(user / "characters/Pip.png")
    (user / "instruct").symlink_to(outside)
    (user / "characters/Pip.state.memory.json").symlink_to(outside / "x.json")
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        for owner in ({"character": "Linked"}, {"preset": "instruct/x"}, {"character": "Pip"}):
            assert (await open_owner(tab, owner))["code"] == "unsafe-file"
    assert sorted(os.listdir(outside)) == ["x.json"]


async def test_a_name_too_long_for_a_state_file_is_refused_before_anything_is_stored(tmp_path: Path) -> None:
    """[Q4] A card of 240 bytes exists and can be read; what no file could hold is not acknowledged."""
    data = sillytavern_copy(tmp_path)
    name = "n" * 240
    (data / f"default-user/characters/{name}.png").write_bytes(b"a card")
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        await open_owner(tab, {"character": name})
        writer = Writer(tab, {"character": name})
        assert (await writer.update("memory", None, set=1))["code"] == "namespace-illegal"
        made = await writer.update("m", None, set=1)
        assert made["type"] == "ack"
    assert (data / f"default-user/characters/{name}.state.m.json").read_text() == "1"
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        assert (await open_owner(tab, {"character": name}))["states"] == {"m": made["version"]}


@pytest.mark.parametrize("owner", [*OWNERS, pytest.param({"chat": REAL_CHAT}, id="chat")])
async def test_a_state_that_another_program_made_meanwhile_is_read(tmp_path: Path, owner: dict[str, str]) -> None:
    """[Q6] [K3] It never looks like no state, also when the owner is open all the time."""
    data = sillytavern_copy(tmp_path)
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        opening = {"chat": owner["chat"]} if "chat" in owner else {"owner": owner}
        await tab.ask("open", since=None, **opening)
        got = await tab.ask("state-get", owner=owner, namespaces=["late"])
        assert got["states"] == {"late": None}
        path = data / (
            "default-user/chats/Pip/Pip - 2024-09-30@09h00m00s.luker-state.late.json" if "chat" in owner
            else side_of(owner, "late")
        )
        path.write_text('{"by": "another"}')
        got = await tab.ask("state-get", owner=owner, namespaces=["late"])
        assert got["states"]["late"]["data"] == {"by": "another"}
        assert (await tab.raw.receive_until(type="reset"))["reason"] == "outside-edit"
        if "chat" not in owner:
            path.with_name(path.name.replace("late", "later")).write_text("[]")
            again = await open_owner(tab, owner)
            assert sorted(again["states"]) == ["late", "later"]
            got = await tab.ask("state-get", owner=owner)
            assert sorted(got["states"]) == ["late", "later"]


async def test_a_card_that_is_deleted_while_it_is_open(tmp_path: Path) -> None:
    """[Q4] [K3] The tabs are told, the next one learns that it is gone, and nothing is written beside it."""
    data = sillytavern_copy(tmp_path)
    card = data / "default-user/characters/Pip.png"
    pip = {"character": "Pip"}
    async with running(data) as app:
        tab, other = [await TabClient.join(app.urls[0]) for _ in range(2)]
        await open_owner(tab, pip)
        await Writer(tab, pip).update("memory", None, set={"n": 1})
        content = card.read_bytes()
        card.unlink()
        gone = await open_owner(other, pip)
        assert (gone["code"], gone["owner"]) == ("not-found", pip)
        assert (await tab.raw.receive_until(type="reset"))["owner"] == pip
        card.write_bytes(content)
        back = await open_owner(other, pip)
        assert back["type"] == "opened"
        assert list(back["states"]) == ["memory"], "the log still has it"

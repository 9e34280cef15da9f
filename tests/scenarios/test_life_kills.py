"""kill -9 at every step of a rename, a deletion, a restore, a branch and a creation: after the restart the chat is
wholly as before or wholly as after, and what was acknowledged is done.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.support.forked_server import ForkedServer
from tests.support.server import TabClient, texts
from tests.support.waiting import until

GROUP = "group:Friends - 2024"
TO = "group:Old friends"
BRANCH = "group:Friends - Branch #1"
STEPS = [
    "operation.begin", "operation.after_log", "operation.after_group", "operation.after_names", "operation.end",
    "operation.after_done", *(f"log.{moment}@{n}" for moment in ("before_write", "after_write", "before_tell")
                              for n in (1, 2, 3)),
]
MOVING = [
    *(f"operation.after_link@{n}" for n in (1, 2, 3, 4)), "operation.after_links",
    *(f"operation.after_unlink@{n}" for n in (1, 2, 3, 4)), "operation.after_moves",
]
STEPS_WITHOUT_NAMES = [step for step in STEPS if step != "operation.after_names"]
KILLS = {
    "rename": [*STEPS, *MOVING, "operation.after_written", "operation.after_unlinked"],
    "delete": [*STEPS, "trash.after_manifest", *(f"trash.after_rename@{n}" for n in (1, 2, 3, 4, 5)),
               "trash.after_move@2", "operation.after_trash"],
    "restore": [*STEPS, *(f"files.after_link@{n}" for n in (1, 2, 3, 4, 5)), "trash.after_give_back@2",
                "operation.after_trash", "operation.after_written"],
    "branch": [*STEPS_WITHOUT_NAMES, *MOVING, "operation.after_link@5"],
    "create": STEPS_WITHOUT_NAMES,
}


def standing(data: Path) -> dict[str, list[str]]:
    """The names in the folders of group chats and of the trash."""
    root = data / "default-user"
    found = {"chats": sorted(path.name for path in (root / "group chats").iterdir())}
    found["trash"] = sorted(path.name for path in (root / "trash").rglob("*") if path.is_file()) if (
        root / "trash").exists() else []
    return found


def of(chat: str) -> list[str]:
    """The files of a chat with two states and one that nobody knows."""
    namespaces = ("chat_sync", "Odd", "memory", "mood")
    return sorted([f"{chat}.jsonl", *(f"{chat}.luker-state.{namespace}.json" for namespace in namespaces)])


async def prepared(server: ForkedServer, data: Path) -> tuple[TabClient, str, list[str]]:
    """A group chat with states, everything but the last message in its files."""
    root = data / "default-user"
    (root / "groups").mkdir(parents=True)
    group = {"id": "7", "name": "Friends", "chat_id": "Friends - 2024", "chats": ["Friends - 2024"], "members": ["x"]}
    (root / "groups/7.json").write_text(json.dumps(group, indent=4))
    tab = await TabClient.join(server.url)
    chat_id = (await tab.open(GROUP, create=True))["chat_id"]
    await tab.append(GROUP, "one")
    await tab.append(GROUP, "two")
    for namespace in ("memory", "mood"):
        await tab.write_state("state-update", GROUP, namespace=namespace, base=None, set={"in": namespace})
    await until((root / "group chats/Friends - 2024.luker-state.mood.json").exists)
    (root / "group chats/Friends - 2024.luker-state.Odd.json").write_text("[1]")
    await tab.append(GROUP, "three")
    opened = await tab.open(GROUP)
    return tab, chat_id, [message["id"] for message in opened["messages"]]


def request_of(kind: str, chat_id: str, ids: list[str], head: str, op: int) -> dict[str, Any]:
    address = f"id:{chat_id}"
    match kind:
        case "rename":
            return {"type": "chat-rename", "chat": address, "op": op, "to": "Old friends", "base": "*"}
        case "delete":
            return {"type": "chat-delete", "chat": address, "op": op, "base": head}
        case "restore":
            return {"type": "chat-restore", "chat": address, "op": op, "to": "Old friends"}
        case "branch":
            return {"type": "chat-branch", "chat": address, "op": op, "base": "*", "message": ids[1],
                    "to": "Friends - Branch #1"}
    return {"type": "chat-create", "chat": TO, "op": 1, "messages": [{"mes": "new"}], "group": "7"}


async def check(kind: str, data: Path, tab: TabClient, chat_id: str, *, is_done: bool) -> None:
    """Everything is as the operation leaves it, or as it was before."""
    await until(lambda: not any("tellback-tmp" in name for name in standing(data)["chats"]))
    where = standing(data)
    group = json.loads((data / "default-user/groups/7.json").read_text())
    before, after = "Friends - 2024", "Old friends"
    assert group["members"] == ["x"]
    live = before
    match kind, is_done:
        case "rename", True:
            live = after
        case "delete", True:
            live = ""
        case "restore", True:
            live = after
        case "restore", False:
            live = ""
    chats = [name for name in where["chats"] if name.startswith(live)] if live else []
    if kind == "branch" and is_done:
        made = "Friends - Branch #1"
        assert [name for name in where["chats"] if name.startswith(made)] == of(made)
        assert group["chats"] == [before, made]
        opened = await tab.open(BRANCH)
        assert texts(opened["messages"]) == ["one", "two"]
        assert (opened["metadata"]["main_chat"], opened["version"]["seq"]) == (before, 1)
        source = await tab.open(GROUP)
        assert source["messages"][1]["extra"]["branches"] == [made]
    elif kind == "create" and is_done:
        assert group["chats"] == [before, after]
        assert texts((await tab.open(TO))["messages"]) == ["new"]
    elif live:
        assert group["chats"] == [live]
        assert where["trash"] == []
        assert where["chats"] == of(live)
    else:
        assert group["chats"] == []
        assert where["chats"] == []
        assert where["trash"] == sorted([*of(before), "manifest.json"])
    for name in (before, after):
        answer = await tab.ask("open", chat=f"group:{name}", since=None)
        if name == live:
            assert answer["chat_id"] == chat_id, answer
            assert chats >= of(live)[:1]
            assert texts(answer["messages"]) == ["one", "two", "three"]
            states = await tab.ask("state-get", owner={"chat": f"group:{name}"}, namespaces=["memory", "mood"])
            assert [states["states"][ns]["data"] for ns in ("memory", "mood")] == [{"in": "memory"}, {"in": "mood"}]
        elif kind == "create" and name == after:
            assert answer["type"] == ("opened" if is_done else "error")
        else:
            assert answer["type"] == "error", (kind, name, answer)
    if not live:
        assert (await tab.ask("open", chat=f"id:{chat_id}", since=None))["code"] == "deleted"


CHAT_EACH = int(os.environ.get("TELLBACK_CHAT_KILLS_EACH", "3"))
"""Every how many of these kills is done; all of them were, with 1."""


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", KILLS)
async def test_a_kill_leaves_all_of_it_or_nothing_j3(tmp_path: Path, kind: str) -> None:
    """[J3]: at each step, and for steps that the recovery takes too, killed there once more."""
    async with ForkedServer(tmp_path / "unused", checkpoint_interval_s=0.05) as server:
        kills = [
            (step, again) for step in KILLS[kind] for again in (False, True)
            # The recovery only appends what says that it is done.
            if not (again and step.startswith(("log.", "operation.after_log", "operation.after_done")))
        ]
        for step, again in kills[::CHAT_EACH]:
            try:
                await one_kill(server, tmp_path / f"{step}-{again}", kind, step, again=again)
            except Exception as error:
                error.add_note(f"killed at {step}{' and again in the recovery' if again else ''}")
                raise


async def one_kill(server: ForkedServer, data: Path, kind: str, step: str, *, again: bool) -> None:
    await server.start_on(data)
    tab, chat_id, ids = await prepared(server, data)
    head = (await tab.open(GROUP))["version"]["integrity"]
    if kind == "restore":
        assert (await tab.write("chat-delete", GROUP, base=head))["type"] == "ack"
    request = request_of(kind, chat_id, ids, head, tab.ops[GROUP] + 1)
    session = tab.session
    await tab.close()
    await server.stop()
    name, _, nth = step.partition("@")
    failpoints = f"{name}=kill@{nth or 1}"
    acked = False
    try:
        await server.start_on(data, failpoints)
        tab = await TabClient.join(server.url, session)
        answer = await tab.ask(**request)
        acked = answer["type"] == "ack"
        assert acked, answer
    except (ConnectionClosed, OSError):
        await server.ended()
        if again:
            await server.start_dying(f"{name}=kill")
    else:
        assert step.startswith("log."), "the step was never taken"
    await server.start_on(data)
    tab = await TabClient.join(server.url, session)
    where = standing(data)
    match kind:
        case "delete":
            is_done = bool(where["trash"])
        case "create":
            is_done = "Old friends" in (data / "default-user/groups/7.json").read_text()
        case _:
            is_done = any(name.startswith(("Old friends", "Friends - Branch")) for name in where["chats"])
    assert is_done or not acked
    await check(kind, data, tab, chat_id, is_done=is_done)
    outcome = await tab.ask(**request)
    assert outcome["type"] == "ack", outcome
    assert outcome.get("duplicate", False) == is_done
    await check(kind, data, tab, chat_id, is_done=True)
    await tab.close()


OWNER_STEPS = [
    "operation.begin", "operation.after_log", *(f"operation.after_link@{n}" for n in (1, 2)), "operation.after_links",
    *(f"operation.after_unlink@{n}" for n in (1, 2)), "operation.after_folder", "operation.after_written",
    "operation.after_unlinked", "operation.after_group", "operation.after_names", "operation.end",
    "operation.after_done",
]


@pytest.mark.timeout(120)
async def test_a_kill_in_a_characters_rename_leaves_all_of_it_or_nothing_j10(tmp_path: Path) -> None:
    """[J3] [J10]: card, state, chats and groups have one name, and the chats are whole under it."""
    async with ForkedServer(tmp_path / "unused", checkpoint_interval_s=0.05) as server:
        for step in OWNER_STEPS:
            try:
                await one_kill_of_a_character(server, tmp_path / step, step)
            except Exception as error:
                error.add_note(f"killed at {step}")
                raise


async def one_kill_of_a_character(server: ForkedServer, data: Path, step: str) -> None:
    root = data / "default-user"
    for folder in ("characters", "groups", "chats/Alice"):
        (root / folder).mkdir(parents=True)
    (root / "characters/Alice.png").write_bytes(b"a card")
    (root / "groups/7.json").write_text(json.dumps({"id": "7", "members": ["Alice.png"], "chats": []}))
    name, _, nth = step.partition("@")
    await server.start_on(data, f"{name}=kill@{nth or 1}")
    tab = await TabClient.join(server.url)
    chat_id = (await tab.open("character:Alice/Talk", create=True))["chat_id"]
    await tab.append("character:Alice/Talk", "one")
    owner = {"character": "Alice"}
    state = {"type": "state-update", "owner": owner, "op": 1, "namespace": "memory", "base": None, "set": {"a": 1}}
    assert (await tab.ask(**state))["type"] == "ack"
    rename = {"type": "owner-rename", "owner": owner, "op": 2, "to": "Alicia", "base": "*"}
    with pytest.raises(ConnectionClosed):
        await tab.ask(**rename)
    await server.ended()
    await server.start_on(data)
    tab = await TabClient.join(server.url, tab.session)
    cards = [path.name for path in (root / "characters").iterdir() if path.suffix == ".png"]
    assert len(cards) == 1
    is_done = cards == ["Alicia.png"]
    outcome = await tab.ask(**rename)
    assert (outcome["type"], outcome.get("duplicate", False)) == ("ack", is_done), outcome
    assert sorted(path.name for path in (root / "chats").iterdir()) == ["Alicia"]
    assert json.loads((root / "groups/7.json").read_text())["members"] == ["Alicia.png"]
    assert not [path for path in (root / "characters").iterdir() if path.name.startswith("Alice")]
    opened = await tab.open("character:Alicia/Talk")
    assert (texts(opened["messages"]), opened["chat_id"]) == (["one"], chat_id)
    assert (await tab.open(f"id:{chat_id}"))["chat_id"] == chat_id
    assert (await tab.ask("open", chat="character:Alice/Talk", since=None))["code"] == "renamed"
    states = await tab.ask("state-get", owner={"character": "Alicia"}, namespaces=["memory"])
    assert states["states"]["memory"]["data"] == {"a": 1}
    await tab.close()


OWNER_KILLS = {
    "delete": ["operation.begin", "operation.after_log", "trash.after_manifest",
               *(f"trash.after_rename@{n}" for n in (1, 3, 5, 7)), "trash.after_move@2", "operation.after_trash",
               "operation.after_names", "operation.end", "operation.after_done", "log.after_write@2"],
    "restore": ["operation.begin", "operation.after_log", *(f"files.after_link@{n}" for n in (1, 3, 5, 7)),
                "trash.after_give_back@2", "operation.after_trash", "operation.after_written", "operation.after_names",
                "operation.end", "operation.after_done", "log.after_write@2"],
}
CHARACTER = {"character": "Alice"}
EACH = int(os.environ.get("TELLBACK_OWNER_KILLS_EACH", "7"))
"""Every how many of these kills is done; all of them were, with 1."""


@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", OWNER_KILLS)
async def test_a_kill_while_a_character_goes_or_comes_back_leaves_all_of_it_or_nothing_j11(
    tmp_path: Path, kind: str
) -> None:
    """[J3] [J11]: card, state, chats with their state; at each step, and once more in the recovery."""
    async with ForkedServer(tmp_path / "unused", checkpoint_interval_s=0.05) as server:
        kills = [
            (step, again) for step in OWNER_KILLS[kind] for again in (False, True)
            # The recovery only appends what says that it is done.
            if not (again and step.startswith(("log.", "operation.after_log", "operation.after_done")))
        ]
        for step, again in kills[::EACH]:
            try:
                await one_kill_of_an_owner(server, tmp_path / f"{step}-{again}", kind, step, again=again)
            except Exception as error:
                error.add_note(f"killed at {step}{' and again in the recovery' if again else ''}")
                raise


def of_alice(data: Path) -> tuple[list[str], list[str]]:
    """What stands in its places, and what in the trash, without what is the server's own."""
    root = data / "default-user"
    stand = [path for folder in ("characters", "chats") for path in (root / folder).rglob("*") if path.is_file()]
    gone = [path for path in (root / "trash").rglob("*") if path.is_file()]
    found = [sorted(path.name for path in paths if "tellback-tmp" not in path.name) for paths in (stand, gone)]
    return found[0], found[1]


WHOLE = sorted([
    "Alice.png", "Alice.state.chat_sync.json", "Alice.state.memory.json", "Alice.state.Odd.json", "Old.jsonl",
    "Talk.jsonl", "Talk.luker-state.chat_sync.json", "Talk.luker-state.mood.json",
])


async def one_kill_of_an_owner(server: ForkedServer, data: Path, kind: str, step: str, *, again: bool) -> None:
    root = data / "default-user"
    for folder in ("characters", "chats/Alice"):
        (root / folder).mkdir(parents=True)
    (root / "characters/Alice.png").write_bytes(b"a card")
    (root / "characters/Alice.state.Odd.json").write_text("[1]")
    (root / "chats/Alice/Old.jsonl").write_text('{"mes":"old"}')
    await server.start_on(data)
    tab = await TabClient.join(server.url)
    talk = "character:Alice/Talk"
    chat_id = (await tab.open(talk, create=True))["chat_id"]
    await tab.append(talk, "one")
    made = await tab.write_state("state-update", talk, namespace="mood", base=None, set={"b": 2})
    assert made["type"] == "ack"
    state = {"type": "state-update", "owner": CHARACTER, "op": 1, "namespace": "memory", "base": None, "set": {"a": 1}}
    head = (await tab.ask(**state))["version"]["integrity"]
    delete = {"type": "owner-delete", "owner": CHARACTER, "op": 2, "base": head, "chats": True}
    request: dict[str, Any] = delete
    if kind == "restore":
        assert (await tab.ask(**delete))["type"] == "ack"
        request = {"type": "owner-restore", "owner": CHARACTER, "op": 3}
    await tab.close()
    await server.stop()
    name, _, nth = step.partition("@")
    await server.start_on(data, f"{name}=kill@{nth or 1}")
    tab = await TabClient.join(server.url, tab.session)
    with pytest.raises((ConnectionClosed, OSError)):
        raise AssertionError(f"the step was never taken: {await tab.ask(**request)}")
    await server.ended()
    if again:
        server.settings = {**server.settings, "failpoints": f"{name}=kill"}
        with pytest.raises(AssertionError, match="ended -9"):
            await server.start()
        server.forget()
    await server.start_on(data)
    tab = await TabClient.join(server.url, tab.session)
    stand, gone = of_alice(data)
    assert (stand, gone) in ((WHOLE, []), ([], sorted([*WHOLE, "manifest.json"]))), (stand, gone)
    is_done = bool(gone) == (kind == "delete")
    outcome = await tab.ask(**request)
    assert (outcome["type"], outcome.get("duplicate", False)) == ("ack", is_done), outcome
    if kind == "delete":
        assert of_alice(data) == ([], sorted([*WHOLE, "manifest.json"]))
        for chat in (talk, f"id:{chat_id}"):
            assert (await tab.ask("open", chat=chat, since=None))["code"] == "deleted"
        assert (await tab.ask("open", owner=CHARACTER, since=None))["type"] == "error"
        back = await tab.ask("owner-restore", owner=CHARACTER, op=3)
        assert back["type"] == "ack", back
    assert of_alice(data) == (WHOLE, [])
    opened = await tab.open(talk)
    assert (texts(opened["messages"]), opened["chat_id"]) == (["one"], chat_id)
    assert texts((await tab.open("character:Alice/Old"))["messages"]) == ["old"]
    for owner, namespace, data_of in (
        (CHARACTER, "memory", {"a": 1}), ({"chat": talk}, "mood", {"b": 2}),
    ):
        states = await tab.ask("state-get", owner=owner, namespaces=[namespace])
        assert states["states"][namespace]["data"] == data_of
    assert (await tab.append(talk, "two"))["type"] == "ack"
    await tab.close()

"""Life writes of owners in a store: all or nothing through a kill at every step, and everything comes back."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.support.forked_server import ForkedServer
from tests.support.server import TabClient, running, texts
from tests.support.stored import caught_up, sqlite_url, states_of, stored
from tests.support.waiting import until

ALICE = "character:Alice"
CHAT = f"{ALICE}/First meeting"
TO = f"{ALICE}/Second meeting"
STEPS = ["operation.begin", "operation.after_log", "operation.end", "operation.after_done", "log.after_write@1"]
KILLS = {
    "rename": [*STEPS, "operation.after_names", "vault.before_save", "vault.after_save"],
    "delete": [*STEPS, "operation.after_names", "trash.after_move", "trash.after_manifest", "operation.after_trash",
               "operation.after_unlink"],
    "restore": [*STEPS, "operation.after_names", "operation.after_written", "operation.after_unlinked"],
    "branch": [*STEPS, "operation.after_written"],
    "backup": [*STEPS, "operation.after_written"],
}
COMMON = {
    "rename": STEPS, "delete": ["operation.begin"], "restore": ["operation.end"], "branch": ["operation.after_log"],
    "backup": ["operation.after_log"],
}
"""Of the steps that all have, those that the ordinary run takes; with TELLBACK_STORE_KILLS set it takes all."""
IS_WHOLE = "TELLBACK_STORE_KILLS" in os.environ
KILLED = [
    (kind, step) for kind, steps in KILLS.items() for step in steps
    if IS_WHOLE or step not in STEPS or step in COMMON[kind]
]


async def begun(tab: TabClient) -> tuple[str, dict[str, Any]]:
    """A chat with messages and states; its id, and how it was opened last."""
    chat_id = (await tab.open(CHAT, create=True))["chat_id"]
    await tab.append(CHAT, "one", "two", "three")
    await tab.write_state("state-update", CHAT, namespace="memory", base=None, set={"in": "memory"})
    return chat_id, await tab.open(CHAT)


def request_of(kind: str, chat_id: str, opened: dict[str, Any], op: int) -> dict[str, Any]:
    address = f"id:{chat_id}"
    match kind:
        case "rename":
            return {"type": "chat-rename", "chat": address, "op": op, "to": "Second meeting", "base": "*"}
        case "delete":
            return {"type": "chat-delete", "chat": address, "op": op, "base": opened["version"]["integrity"]}
        case "restore":
            return {"type": "chat-restore", "chat": address, "op": op, "to": "Second meeting"}
        case "backup":
            return {"type": "backup-restore", "chat": address, "op": op, "backup": "last", "base": "*"}
    return {"type": "chat-branch", "chat": address, "op": op, "base": "*", "message": opened["messages"][1]["id"],
            "to": "Branch"}


@pytest.mark.parametrize(("kind", "step"), KILLED, ids=[f"{kind}-{step}" for kind, step in KILLED])
async def test_a_kill_leaves_all_of_it_or_nothing(kind: str, step: str, tmp_path: Path) -> None:
    """[SV5] [J3]: the op is answered in the end, exactly once, and store and trash hold one truth."""
    url = sqlite_url(tmp_path / "store")
    settings = {"store": url, "checkpoint_interval_s": 0.05, "checkpoint_debounce_s": 0.01}
    async with ForkedServer(tmp_path / "data", **settings) as server:
        tab = await TabClient.join(server.url)
        chat_id, opened = await begun(tab)
        if kind == "restore":
            answer = await tab.write("chat-delete", CHAT, base=opened["version"]["integrity"])
            assert answer["type"] == "ack", answer
        else:
            if kind == "backup":
                assert (await tab.ask("backup-create", chat=CHAT))["is_new"]
                await tab.append(CHAT, "four")
            await caught_up(url, tab, CHAT)
        op = tab.ops[CHAT] + 1
        await server.stop()
        name, _at, count = step.partition("@")
        server.settings["failpoints"] = f"{name}=kill@{count or 1}"
        await server.start()
        server.settings["failpoints"] = ""
        tab = await TabClient.join(server.url, tab.session)
        frame = request_of(kind, chat_id, opened, op)
        with pytest.raises((ConnectionClosed, TimeoutError, OSError)):
            await ask_until_dead(tab, frame)
        await server.kill()
        await server.start()
        tab = await TabClient.join(server.url, tab.session)
        answer = await tab.ask(**frame)
        assert answer["type"] == "ack", answer
        await checked(kind, url, tab, chat_id, tmp_path / "data")
        assert await server.stop() == 0
        # And once more from what stands there now.
        await server.start()
        tab = await TabClient.join(server.url, tab.session)
        await checked(kind, url, tab, chat_id, tmp_path / "data")
        assert (await tab.ask(**frame)).get("duplicate") is True
    assert "Traceback" not in server.errors.read_text()


async def ask_until_dead(tab: TabClient, frame: dict[str, Any]) -> None:
    """The answer may leave before the store is asked."""
    answer = await tab.ask(**frame, timeout_s=3)
    assert answer["type"] == "ack", answer
    while True:
        await tab.ask("ping", timeout_s=3)
        await asyncio.sleep(0.05)


async def checked(kind: str, url: str, tab: TabClient, chat_id: str, data: Path) -> None:
    """Done, once, everywhere."""
    staged = data / ".tellback/staged/default-user"
    assert not staged.exists() or not list(staged.iterdir())
    listed = {chat["chat"] for chat in (await tab.ask("chat-list"))["chats"]}
    gone = [chat["chat"] for chat in (await tab.ask("chat-list", deleted=True))["chats"]]
    match kind:
        case "rename" | "restore":
            assert (listed, gone) == ({TO}, [])
            opened = await tab.open(TO)
            assert (opened["chat_id"], texts(opened["messages"])) == (chat_id, ["one", "two", "three"])
            found = await caught_up(url, tab, TO)
            assert (found.name, states_of(found)) == (TO, {"memory": {"in": "memory"}})
            former = await tab.ask("open", chat=CHAT, since=None)
            assert former["code"] == "renamed"
        case "delete":
            assert (listed, gone) == (set(), [CHAT])
            assert stored(url, chat_id) is None
            assert (await tab.ask("open", chat=CHAT, since=None))["code"] == "deleted"
        case "backup":
            assert (listed, gone) == ({CHAT}, [])
            opened = await tab.open(CHAT)
            assert (texts(opened["messages"]), opened["head"]["epoch"]) == (["one", "two", "three"], 2)
            found = await caught_up(url, tab, CHAT)
            assert states_of(found) == {"memory": {"in": "memory"}}
        case "branch":
            branch = f"{ALICE}/Branch"
            assert (listed, gone) == ({CHAT, branch}, [])
            opened = await tab.open(branch)
            assert (texts(opened["messages"]), opened["version"]["seq"]) == (["one", "two"], 1)
            assert opened["metadata"]["main_chat"] == "First meeting"
            found = await caught_up(url, tab, branch)
            assert states_of(found) == {"memory": {"in": "memory"}}
            source = await tab.open(CHAT)
            assert source["messages"][1]["extra"]["branches"] == ["Branch"]


@pytest.mark.parametrize("store", ["memory:", "sqlite"])
async def test_a_character_takes_its_chats_along(store: str, tmp_path: Path) -> None:
    """[SV6]: to another name, to the trash and back, those that nobody has open too, through a restart each time."""
    url = store if store != "sqlite" else sqlite_url(tmp_path / "store")
    settings: dict[str, Any] = {"store": url, "idle_s": 0.05}
    bob = "character:Bob"
    async with running(tmp_path / "data", **settings) as app:
        tab = await TabClient.join(app.urls[0])
        for chat in ("live", "asleep"):
            await tab.open(f"{ALICE}/{chat}", create=True)
            await tab.append(f"{ALICE}/{chat}", chat)
        owner = {"character": "Alice"}
        opened = await tab.ask("open", owner=owner, since=None)
        assert opened["type"] == "opened", opened
        state = {"type": "state-update", "owner": owner, "op": 1, "namespace": "mood", "base": None, "set": {"x": 1}}
        assert (await tab.ask(**state))["type"] == "ack"
        await tab.ask("close", chat=f"{ALICE}/asleep")
        await until(lambda: len(app._hub.actors) == 2)
        answer = await tab.ask("owner-rename", owner=owner, op=2, to="Bob", base="*")
        assert answer["type"] == "ack", answer
        assert texts((await tab.open(f"{bob}/asleep"))["messages"]) == ["asleep"]
    async with running(tmp_path / "data", **settings) as app:
        tab = await TabClient.join(app.urls[0], tab.session)
        assert {chat["chat"] for chat in (await tab.ask("chat-list"))["chats"]} == {f"{bob}/live", f"{bob}/asleep"}
        assert (await tab.ask("open", chat=f"{ALICE}/live", since=None))["code"] == "renamed"
        assert texts((await tab.open(f"{bob}/live"))["messages"]) == ["live"]
        owner = {"character": "Bob"}
        states = (await tab.ask("state-get", owner=owner))["states"]
        assert states["mood"]["data"] == {"x": 1}
        head = (await tab.ask("open", owner=owner, since=None))["head"]["integrity"]
        answer = await tab.ask("owner-delete", owner=owner, op=3, base=head, chats=True)
        assert answer["type"] == "ack", answer
        assert (await tab.ask("chat-list"))["chats"] == []
        assert {chat["chat"] for chat in (await tab.ask("chat-list", deleted=True))["chats"]} == {
            f"{bob}/live", f"{bob}/asleep",
        }
    async with running(tmp_path / "data", **settings) as app:
        tab = await TabClient.join(app.urls[0], tab.session)
        assert (await tab.ask("open", chat=f"{bob}/live", since=None))["code"] == "deleted"
        answer = await tab.ask("owner-restore", owner={"character": "Bob"}, op=4)
        assert answer["type"] == "ack", answer
        for chat in ("live", "asleep"):
            assert texts((await tab.open(f"{bob}/{chat}"))["messages"]) == [chat]
        assert (await tab.append(f"{bob}/live", "more"))["type"] == "ack"
    async with running(tmp_path / "data", **settings) as app:
        tab = await TabClient.join(app.urls[0], tab.session)
        assert texts((await tab.open(f"{bob}/live"))["messages"]) == ["live", "more"]
        states = (await tab.ask("state-get", owner={"character": "Bob"}))["states"]
        assert states["mood"]["data"] == {"x": 1}
        assert not list((tmp_path / "data/default-user/trash").iterdir())

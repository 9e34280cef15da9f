"""The life of chats over raw frames: made, renamed, deleted, restored, branched, with tabs that look on."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from tests.support.server import TabClient, new_session, running, texts
from tests.support.waiting import until

CHAT = "character:Alice/First meeting"
TO = "character:Alice/Second thoughts"


def folder(data: Path) -> Path:
    return data / "default-user/chats/Alice"


def names(data: Path) -> list[str]:
    """What stands in the character's folder, without chat_sync."""
    here = folder(data)
    return sorted(path.name for path in here.iterdir() if "chat_sync" not in path.name) if here.exists() else []


async def begun(app_url: str, *said: str) -> tuple[TabClient, dict[str, Any]]:
    tab = await TabClient.join(app_url)
    opened = await tab.open(CHAT, create=True)
    for text in said:
        assert (await tab.append(CHAT, text))["type"] == "ack"
    return tab, opened


# -- create ----------------------------------------------------------------------------------------------------------


async def test_a_chat_is_made_with_what_it_begins_with_j1(tmp_path: Path) -> None:
    """[J1] [J2]: the ack tells its id and the ids of its messages; a second one is refused and leaves no trace."""
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        said = [{"mes": "Hello."}, {"mes": "You?"}]
        create = {"chat": CHAT, "op": 1, "metadata": {"note_prompt": "short"}, "messages": said}
        ack = await tab.ask("chat-create", **create)
        assert ack["type"] == "ack", ack
        assert ack["version"]["seq"] == 1
        assert len(ack["messages"]) == 2
        again = await tab.ask("chat-create", **create)
        assert again["duplicate"] is True
        assert again["chat_id"] == ack["chat_id"]
        opened = await tab.open(CHAT)
        assert opened["chat_id"] == ack["chat_id"]
        assert opened["metadata"] == {"note_prompt": "short"}
        assert texts(opened["messages"]) == ["Hello.", "You?"]
        assert opened["next_op"] == 2
        other = await TabClient.join(app.urls[0])
        refused = await other.ask("chat-create", chat=CHAT, op=1)
        assert refused["code"] == "exists"
        assert (await other.open(CHAT))["next_op"] == 1
        twin = await other.ask("chat-create", chat="character:alice/First meeting", op=1)
        assert twin["code"] == "exists"
        illegal = await other.ask("chat-create", chat="character:Alice/What?", op=1)
        assert illegal["code"] == "name-illegal"
    assert json.loads((folder(tmp_path) / "First meeting.jsonl").read_text().split("\n")[1])["mes"] == "Hello."
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0], tab.session)
        assert (await tab.ask("chat-create", **create))["duplicate"] is True


async def test_of_two_tabs_that_make_the_same_chat_one_gets_it(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        tabs = [await TabClient.join(app.urls[0]) for _ in range(4)]
        answers = await asyncio.gather(*(tab.ask("chat-create", chat=CHAT, op=1) for tab in tabs))
        assert sorted(answer["type"] for answer in answers) == ["ack", "error", "error", "error"]
        assert {answer.get("code") for answer in answers} == {None, "exists"}


# -- rename ----------------------------------------------------------------------------------------------------------


async def test_a_rename_takes_everything_along_and_tabs_follow_j4(tmp_path: Path) -> None:
    """[J4] [J5]: sidecars of every namespace move, the others are told, the old name tells where it went."""
    async with running(tmp_path) as app:
        one, opened = await begun(app.urls[0], "one")
        other = await TabClient.join(app.urls[0])
        await other.open(CHAT)
        await one.write_state("state-update", CHAT, namespace="memory", base=None, set={"a": 1})
        await until(lambda: len(names(tmp_path)) == 2)
        (folder(tmp_path) / "First meeting.luker-state.Strange One.json").write_text("{}")
        await other.raw.receive_until(type="integrity")
        ack = await one.write("chat-rename", CHAT, to="Second thoughts", base="*")
        assert ack["type"] == "ack", ack
        assert ack["ops"] == [{"op": "renamed", "to": TO}]
        assert names(tmp_path) == [
            "Second thoughts.jsonl", "Second thoughts.luker-state.Strange One.json",
            "Second thoughts.luker-state.memory.json",
        ]
        told = await other.raw.receive_until(type="integrity", chat=CHAT, ops=[{"op": "renamed", "to": TO}])
        assert told["version"] == ack["version"]
        old = await one.ask("open", chat=CHAT, since=None)
        assert (old["code"], old["to"], old["chat_id"]) == ("renamed", TO, opened["chat_id"])
        assert (await one.ask("open", chat=CHAT, since=None, create=True))["code"] == "renamed"
        after = await one.open(TO)
        assert after["chat_id"] == opened["chat_id"]
        assert after["next_op"] == ack["op"] + 1
        assert (await one.append(TO, "two", base=after["version"]["integrity"]))["type"] == "ack"
        # Who had it open hears on, under the name that it used.
        assert (await other.raw.receive_until(type="integrity", chat=CHAT))["ops"][0]["op"] == "append"
        assert (await other.ask("close", chat=CHAT))["type"] == "closed"
        by_id = await other.open(f"id:{opened['chat_id']}")
        assert texts(by_id["messages"]) == ["one", "two"]
        again = await one.ask("chat-rename", chat=CHAT, op=ack["op"], to="Second thoughts", base="*")
        assert again["duplicate"] is True
    async with running(tmp_path) as app:
        late = await TabClient.join(app.urls[0], one.session)
        again = await late.ask("chat-rename", chat=CHAT, op=ack["op"], to="Second thoughts", base="*")
        assert (again["type"], again["duplicate"], again["version"]) == ("ack", True, ack["version"])
        assert (await late.ask("open", chat=CHAT, since=None))["code"] == "renamed"
        assert texts((await late.open(TO))["messages"]) == ["one", "two"]
        since = {"epoch": 1, "seq": ack["version"]["seq"], "integrity": ack["version"]["integrity"]}
        assert (await late.ask("open", chat=f"id:{opened['chat_id']}", since=since))["mode"] == "replay"


async def test_what_a_rename_is_refused_for_is_an_outcome(tmp_path: Path) -> None:
    """[J1] [J9]: taken names, twins, illegal names, its own name; nothing moves."""
    async with running(tmp_path) as app:
        tab, opened = await begun(app.urls[0], "one")
        await tab.ask("chat-create", chat="character:Alice/Taken", op=1)
        for to, code in (
            ("Taken", "exists"), ("taken", "exists"), ("What?", "name-illegal"), ("First meeting", "exists"),
            ("", "name-illegal"), ("a.jsonl", "name-illegal"),
        ):
            answer = await tab.write("chat-rename", CHAT, to=to, base="*")
            assert answer["code"] == code, (to, answer)
        assert (await tab.write("chat-rename", CHAT, to="Third"))["code"] == "base-required"
        await tab.append(CHAT, "two")
        # What others wrote does not matter to a name, but another name does.
        ack = await tab.write("chat-rename", CHAT, to="Third", base=opened["version"]["integrity"])
        assert ack["type"] == "ack", ack
        third = "character:Alice/Third"
        tab.ops[third] = tab.ops[CHAT]
        stale = await tab.write("chat-rename", third, to="Fourth", base=opened["version"]["integrity"])
        assert stale["type"] == "conflict"
        assert stale["missed"][-1]["ops"] == [{"op": "renamed", "to": third}]
        back = await tab.write("chat-rename", third, to="first meeting", base=ack["version"]["integrity"])
        assert back["type"] == "ack"


async def test_an_old_name_that_is_used_again_is_another_chat_j5(tmp_path: Path) -> None:
    """[J5]: with a chat_id of its own, also when the first one was derived from the name."""
    home = folder(tmp_path)
    home.mkdir(parents=True)
    (home / "First meeting.jsonl").write_text('{"chat_metadata":{}}\n{"mes":"ours"}')
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        opened = await tab.open(CHAT)
        assert (await tab.write("chat-rename", CHAT, to="Second thoughts", base="*"))["type"] == "ack"
        (home / "First meeting.jsonl").write_text('{"chat_metadata":{}}\n{"mes":"theirs"}')
        theirs = await tab.open(CHAT)
        assert texts(theirs["messages"]) == ["theirs"]
        assert theirs["chat_id"] != opened["chat_id"]
        assert texts((await tab.open(TO))["messages"]) == ["ours"]
        assert (await tab.append(CHAT, "more"))["type"] == "ack"
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        assert (await tab.open(CHAT))["chat_id"] == theirs["chat_id"]
        assert texts((await tab.open(f"id:{opened['chat_id']}"))["messages"]) == ["ours"]
    assert (home / "Second thoughts.jsonl").read_text() == '{"chat_metadata":{}}\n{"mes":"ours"}'


# -- delete and restore ----------------------------------------------------------------------------------------------


async def test_a_deleted_chat_is_in_the_trash_and_comes_back_j6(tmp_path: Path) -> None:
    """[J6]: its tabs are told and hear no more; its ops keep their answers; restored, its stream goes on."""
    async with running(tmp_path) as app:
        one, opened = await begun(app.urls[0], "one")
        other = await TabClient.join(app.urls[0])
        await other.open(CHAT)
        state = await one.write_state("state-update", CHAT, namespace="memory", base=None, set={"a": 1})
        await other.raw.receive_until(type="integrity", chat=CHAT, version=state["version"])
        version = (await one.open(CHAT))["version"]
        stale = await one.write("chat-delete", CHAT, base=opened["version"]["integrity"])
        assert stale["type"] == "conflict"
        assert (await one.write("chat-delete", CHAT, base="*"))["code"] == "base-illegal"
        ack = await one.write("chat-delete", CHAT, base=version["integrity"])
        assert ack["type"] == "ack", ack
        await other.raw.receive_until(type="integrity", chat=CHAT, ops=[{"op": "deleted"}])
        assert names(tmp_path) == []
        (entry,) = (tmp_path / "default-user/trash").iterdir()
        assert entry.name.endswith(opened["chat_id"])
        address = f"id:{opened['chat_id']}"
        for name in (CHAT, address):
            for request in ({"type": "open", "since": None, "create": name == CHAT}, {"type": "history"}):
                gone = await one.ask(chat=name, **request)
                assert (gone["code"], gone["chat_id"]) == ("deleted", opened["chat_id"]), gone
        assert (await one.ask("append", chat=address, op=ack["op"] + 1, base="*", messages=[{"mes": "x"}]))[
            "code"] == "deleted"
        delete = {"op": ack["op"], "base": version["integrity"]}
        for name in (CHAT, address):
            assert (await one.ask("chat-delete", chat=name, **delete))["duplicate"] is True
        await other.raw.expect_silence()
    async with running(tmp_path) as app:
        one = await TabClient.join(app.urls[0], one.session)
        for name in (CHAT, address):
            assert (await one.ask("chat-delete", chat=name, **delete))["duplicate"] is True
            assert (await one.ask("open", chat=name, since=None))["code"] == "deleted"
        restore = {"chat": address, "op": ack["op"] + 1}
        back = await one.ask("chat-restore", **restore)
        assert back["type"] == "ack", back
        assert back["ops"] == [{"op": "renamed", "to": CHAT}]
        assert (await one.ask("chat-restore", **restore))["duplicate"] is True
        again = await one.open(CHAT)
        assert (again["chat_id"], again["next_op"]) == (opened["chat_id"], ack["op"] + 2)
        assert again["version"] == version
        assert again["head"] == back["version"]
        assert texts(again["messages"]) == ["one"]
        states = await one.ask("state-get", owner={"chat": CHAT})
        assert states["states"]["memory"] == {"version": state["version"], "data": {"a": 1}}
        assert (await one.append(CHAT, "two"))["type"] == "ack"
        assert not list((tmp_path / "default-user/trash").iterdir())
        missed = await one.ask("open", chat=CHAT, since=state["version"])
        assert missed["mode"] == "replay"


async def test_what_was_deleted_comes_back_under_another_name_when_its_own_is_taken(tmp_path: Path) -> None:
    """[J6]: and a restore that is refused is an outcome like any other."""
    async with running(tmp_path) as app:
        tab, opened = await begun(app.urls[0], "old")
        head = (await tab.open(CHAT))["version"]["integrity"]
        ack = await tab.write("chat-delete", CHAT, base=head)
        made = await TabClient.join(app.urls[0])
        assert (await made.ask("chat-create", chat=CHAT, op=1, messages=[{"mes": "new"}]))["type"] == "ack"
        address = f"id:{opened['chat_id']}"
        op = ack["op"]
        assert (await tab.ask("chat-restore", chat=address, op=op + 1))["code"] == "exists"
        assert (await tab.ask("chat-restore", chat=address, op=op + 2, to="What?"))["code"] == "name-illegal"
        back = await tab.ask("chat-restore", chat=address, op=op + 3, to="Second thoughts")
        assert back["ops"] == [{"op": "renamed", "to": TO}]
        assert texts((await tab.open(TO))["messages"]) == ["old"]
        assert texts((await tab.open(CHAT))["messages"]) == ["new"]
        assert (await tab.ask("chat-restore", chat=address, op=op + 4))["code"] == "exists"


async def test_a_chat_nobody_has_is_told_from_one_in_the_trash(tmp_path: Path) -> None:
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        for type_ in ("chat-rename", "chat-delete", "chat-restore", "chat-branch"):
            for name in (CHAT, "id:0b0e1f2a-3c4d-4e5f-8a9b-0c1d2e3f4a5b"):
                answer = await tab.ask(type_, chat=name, op=1, to="x", base="*", message="m")
                assert answer["code"] == "not-found", (type_, name, answer)


# -- branch ----------------------------------------------------------------------------------------------------------


async def test_a_branch_holds_everything_up_to_its_message_j7(tmp_path: Path) -> None:
    """[J7] [J8]: same ids, same lines, all namespaces, and links on both sides; numbers are counted on."""
    async with running(tmp_path) as app:
        one, opened = await begun(app.urls[0], "one", "two", "three")
        other = await TabClient.join(app.urls[0])
        before = await other.open(CHAT)
        await one.write_state("state-update", CHAT, namespace="memory", base=None, set={"a": 1})
        ids = [message["id"] for message in before["messages"]]
        branch = {"message": ids[1], "base": before["version"]["integrity"]}
        ack = await one.write("chat-branch", CHAT, **branch)
        assert ack["type"] == "ack", ack
        made = ack["branch"]
        assert made["chat"] == "character:Alice/First meeting - Branch #1"
        assert made["version"]["epoch"] == made["version"]["seq"] == 1
        assert ack["ops"][0]["message"] == ids[1]
        again = await one.ask("chat-branch", chat=CHAT, op=ack["op"], **branch)
        assert (again["duplicate"], again["branch"]) == (True, made)
        new = await one.open(made["chat"])
        assert (new["chat_id"], new["version"], new["next_op"]) == (made["chat_id"], made["version"], 1)
        assert new["metadata"]["main_chat"] == "First meeting"
        assert [message["id"] for message in new["messages"]] == ids[:2]
        assert new["messages"] == before["messages"][:2]
        states = await one.ask("state-get", owner={"chat": made["chat"]})
        assert states["states"]["memory"]["data"] == {"a": 1}
        source = await other.open(CHAT)
        assert source["messages"][1]["extra"] == {"branches": ["First meeting - Branch #1"]}
        base = source["version"]["integrity"]
        second = await one.write("chat-branch", CHAT, message=ids[1], base=base)
        assert second["branch"]["chat"].endswith("Branch #2")
        check = await one.write("chat-branch", CHAT, message=ids[2], base="*", kind="checkpoint")
        assert check["branch"]["chat"].endswith("First meeting - Checkpoint #1")
        of_branch = await one.write("chat-branch", made["chat"], message=ids[0], base="*")
        assert of_branch["branch"]["chat"].endswith("First meeting - Branch #3")
        unknown = await one.write("chat-branch", CHAT, message="nobody", base="*")
        assert unknown["code"] == "message-unknown"
        taken = await one.write("chat-branch", CHAT, message=ids[0], base="*", to="First meeting")
        assert taken["code"] == "exists"
        assert (await one.append(made["chat"], "on its own"))["type"] == "ack"
        last = await other.open(CHAT)
        assert last["messages"][2]["extra"]["bookmark_link"] == "First meeting - Checkpoint #1"
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        opened = await tab.open(f"id:{made['chat_id']}")
        assert texts(opened["messages"]) == ["one", "two", "on its own"]


async def test_a_deleted_chat_that_is_linked_is_never_an_empty_one_j8(tmp_path: Path) -> None:
    """[J8]: the deletion tells who links to it, and its name is kept for it."""
    async with running(tmp_path) as app:
        one, _ = await begun(app.urls[0], "one", "two")
        ids = [message["id"] for message in (await one.open(CHAT))["messages"]]
        made = (await one.write("chat-branch", CHAT, message=ids[0], base="*", kind="checkpoint"))["branch"]
        gone = await one.write("chat-delete", made["chat"], base=made["version"]["integrity"])
        assert gone["type"] == "ack", gone
        assert gone["linked_from"] == [CHAT]
        for request in (
            {"type": "open", "since": None}, {"type": "open", "since": None, "create": True},
            {"type": "chat-create", "op": 1},
        ):
            session = await TabClient.join(app.urls[0], new_session())
            answer = await session.ask(chat=made["chat"], **request)
            assert answer["code"] == "deleted", answer
        renamed = await one.write("chat-rename", CHAT, to=made["chat"].split("/")[1], base="*")
        assert renamed["code"] == "exists"
        assert (await one.write("chat-branch", CHAT, message=ids[0], base="*", kind="checkpoint"))["branch"][
            "chat"].endswith("Checkpoint #2")
        parent = await one.open(CHAT)
        gone = await one.write("chat-delete", CHAT, base=parent["version"]["integrity"])
        assert gone["linked_from"] == ["character:Alice/First meeting - Checkpoint #2"]


async def test_a_swipe_that_a_branch_shows_is_chosen_in_the_new_chat_only(tmp_path: Path) -> None:
    """[J7]"""
    home = folder(tmp_path)
    home.mkdir(parents=True)
    line = '{"mes":"b","swipes":["a","b"],"swipe_id":1,"swipe_info":[{"extra":{}},{"extra":{}}],"extra":{}}'
    (home / "First meeting.jsonl").write_text('{"chat_metadata":{}}\n' + line)
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        (message,) = (await tab.open(CHAT))["messages"]
        ack = await tab.write("chat-branch", CHAT, message=message["id"], base="*", swipe=0)
        (copied,) = (await tab.open(ack["branch"]["chat"]))["messages"]
        assert (copied["mes"], copied["swipe_id"], copied["id"]) == ("a", 0, message["id"])
        (kept,) = (await tab.open(CHAT))["messages"]
        assert (kept["mes"], kept["swipe_id"]) == ("b", 1)
        assert (await tab.write("chat-branch", CHAT, message=message["id"], base="*", swipe=7))["type"] == "error"


async def test_a_branch_has_the_floor_state_of_its_messages_j7(tmp_path: Path) -> None:
    """[J7]: the log is cut to the branch point, and the state is what the cut log makes."""
    async with running(tmp_path) as app:
        tab, _ = await begun(app.urls[0])
        for number in range(3):
            await tab.append(CHAT, f"floor {number}")
            ack = await tab.write(
                "floor-update", CHAT, namespace="score", base="*" if number else None,
                patch=[{"op": "add", "path": f"/f{number}", "value": number}],
            )
            if ack["type"] != "ack":
                state = (await tab.ask("state-get", owner={"chat": CHAT}, namespaces=["score"]))["states"]["score"]
                ack = await tab.write(
                    "floor-update", CHAT, namespace="score", base=state["version"]["integrity"],
                    patch=[{"op": "add", "path": f"/f{number}", "value": number}],
                )
            assert ack["type"] == "ack", ack
        ids = [message["id"] for message in (await tab.open(CHAT))["messages"]]
        made = (await tab.write("chat-branch", CHAT, message=ids[1], base="*"))["branch"]
        states = (await tab.ask("state-get", owner={"chat": made["chat"]}))["states"]
        assert states["score"]["data"] == {"f0": 0, "f1": 1}
        assert len(states["score__floor_log"]["data"]["commits"]) == 2
        whole = (await tab.ask("state-get", owner={"chat": CHAT}, namespaces=["score"]))["states"]["score"]
        assert whole["data"] == {"f0": 0, "f1": 1, "f2": 2}

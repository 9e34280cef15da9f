"""Links between chats by name: they follow renames and restores, also through kills, and never lead to an empty chat or
to another one.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.support.forked_server import ForkedServer
from tests.support.oracle import links_told
from tests.support.server import TabClient, new_session, running, texts
from tests.support.waiting import GUARD_S, until

A = "character:Alice/"
TALK = A + "Talk"


def file(data: Path, name: str) -> Path:
    return data / f"default-user/chats/Alice/{name}.jsonl"


async def family(tab: TabClient) -> dict[str, str]:
    """A chat, a checkpoint and a branch of it, and a branch of the branch that copied the link to the checkpoint: ids
    by name."""
    ids = {"Talk": (await tab.open(TALK, create=True))["chat_id"]}
    said = [(await tab.append(TALK, text))["messages"][0] for text in ("one", "two", "three")]
    for chat, at, kind, name in (
        (TALK, 0, "checkpoint", "CP"), (TALK, 1, "branch", "Branch"), (A + "Branch", 1, "branch", "Twig"),
    ):
        made = await tab.write("chat-branch", chat, message=said[at], base="*", kind=kind, to=name)
        assert made["type"] == "ack", made
        ids[name] = made["branch"]["chat_id"]
    return ids


async def links(tab: TabClient, chat: str) -> tuple[Any, list[Any]]:
    """`main_chat`, and what the messages link to."""
    opened = await tab.ask("open", chat=chat, since=None)
    assert opened["type"] == "opened", opened
    told: list[Any] = []
    for message in opened["messages"]:
        extra = message.get("extra", {})
        told += [extra[key] for key in ("bookmark_link", "branches") if key in extra]
    return opened["metadata"].get("main_chat"), told


async def test_links_follow_a_rename_in_the_whole_family_j12(tmp_path: Path) -> None:
    """[J12]: also those that a branch copied, in tabs that look on and in the files; other lines keep their bytes."""
    async with running(tmp_path) as app:
        tab, other = [await TabClient.join(app.urls[0]) for _ in range(2)]
        ids = await family(tab)
        await until(lambda: all(file(tmp_path, name).exists() for name in ids))
        for name, link in (("Talk", b'"Branch"'), ("Talk", b'"CP"'), ("Branch", b'"Twig"')):
            await until(lambda name=name, link=link: link in file(tmp_path, name).read_bytes())  # type: ignore[misc]
        before = {name: file(tmp_path, name).read_bytes().split(b"\n") for name in ids}
        for name in ("Branch", "Twig"):
            await other.open(A + name)
        assert (await tab.write("chat-rename", A + "CP", to="Point", base="*"))["type"] == "ack"
        assert (await tab.write("chat-rename", TALK, to="Täl\"k", base="*"))["code"] == "name-illegal"
        assert (await tab.write("chat-rename", TALK, to="Tälk", base="*"))["type"] == "ack"
        for _ in range(3):
            commit = await other.raw.receive_until(type="integrity")
            assert "by" not in commit
            assert {op["op"] for op in commit["ops"]} <= {"metadata", "patch"}
        await links_told(tmp_path)
        assert await links(tab, A + "Tälk") == (None, ["Point", ["Branch"]])
        assert await links(tab, A + "Point") == ("Tälk", [])
        assert await links(tab, A + "Branch") == ("Tälk", ["Point", ["Twig"]])
        assert await links(tab, A + "Twig") == ("Branch", ["Point"])
    for name, now in (("Talk", "Tälk"), ("CP", "Point"), ("Branch", "Branch"), ("Twig", "Twig")):
        lines = file(tmp_path, now).read_bytes().split(b"\n")
        assert len(lines) == len(before[name])
        for old, new in zip(before[name], lines, strict=True):
            assert old == new or b"Talk" in old or b"CP" in old


async def test_a_name_is_free_when_the_links_have_followed(tmp_path: Path) -> None:
    """[J12] [J5]: then it is another chat's; and the chat may have its own name back at once."""
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        talk = f"id:{(await family(tab))['Talk']}"
        tab.ops[talk] = tab.ops[TALK]
        assert (await tab.write("chat-rename", talk, to="Else", base="*"))["type"] == "ack"
        assert (await tab.write("chat-rename", talk, to="Talk", base="*"))["type"] == "ack"
        assert (await tab.write("chat-rename", talk, to="talk", base="*"))["type"] == "ack"
        await links_told(tmp_path)
        assert (await links(tab, A + "Branch"))[0] == "talk"
        assert (await tab.write("chat-rename", talk, to="Else", base="*"))["type"] == "ack"
        await links_told(tmp_path)
        await until(lambda: b'"Else"' in file(tmp_path, "Branch").read_bytes())
        await until(lambda: b'"Else"' in file(tmp_path, "CP").read_bytes())
        new = await TabClient.join(app.urls[0], new_session())
        assert (await new.ask("chat-create", chat=TALK, op=1))["type"] == "ack"
        assert (await links(tab, A + "Branch"))[0] == "Else"


async def test_links_of_swipes_follow_and_nothing_else_of_a_message_does(tmp_path: Path) -> None:
    """[J12] A name in a text is a text."""
    folder = file(tmp_path, "x").parent
    folder.mkdir(parents=True)
    (folder / "Child.jsonl").write_text('{"chat_metadata":{"main_chat":"Talk"}}\n{"id":"a","mes":"x"}')
    message = {
        "id": "a", "mes": '"Child"', "name": "Child", "swipes": ['"Child"', "b"], "swipe_id": 0,
        "extra": {"bookmark_link": "Child", "branches": ["Child", "x", 5, "Child"], "Child": "Child"},
        "swipe_info": [{"extra": {"bookmark_link": "Child", "branches": ["Child", "x", 5, "Child"], "Child": "Child"}},
                       {"extra": {"bookmark_link": "Child", "note": "Child"}}],
    }
    other = {"id": "b", "mes": "y", "extra": "Child"}
    (folder / "Talk.jsonl").write_text("\n".join(
        json.dumps(line) for line in ({"chat_metadata": {"Child": "Child"}}, message, other)))
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        assert (await tab.write("chat-rename", A + "Child", to="New", base="*"))["type"] == "ack"
        await links_told(tmp_path)
        opened = await tab.open(TALK)
    new = {"bookmark_link": "New", "branches": ["New", "x", 5, "New"], "Child": "Child"}
    assert opened["metadata"] == {"Child": "Child"}
    assert opened["messages"] == [
        {**message, "extra": new, "swipe_info": [{"extra": new}, {"extra": {"bookmark_link": "New", "note": "Child"}}]},
        other,
    ]


async def test_a_checkpoint_that_links_to_itself_follows_itself(tmp_path: Path) -> None:
    """[J12]: as SillyTavern writes them, the checkpoint holds the message with the link; for a rename and a restore."""
    folder = file(tmp_path, "x").parent
    folder.mkdir(parents=True)
    message = '{"id":"a","mes":"x","extra":{"bookmark_link":"CP"}}'
    (folder / "Talk.jsonl").write_text('{"chat_metadata":{}}\n' + message)
    (folder / "CP.jsonl").write_text('{"chat_metadata":{"main_chat":"Talk"}}\n' + message)
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        point = f"id:{(await tab.open(A + 'CP'))['chat_id']}"
        assert (await tab.write("chat-rename", point, to="Point", base="*"))["type"] == "ack"
        await links_told(tmp_path)
        assert await links(tab, point) == ("Talk", ["Point"])
        head = (await tab.open(point))["version"]["integrity"]
        gone = await tab.write("chat-delete", point, base=head)
        assert gone["linked_from"] == [TALK]
        assert (await tab.write("chat-restore", point, to="Back"))["type"] == "ack"
        await links_told(tmp_path)
        assert await links(tab, A + "Back") == ("Talk", ["Back"])
        assert await links(tab, TALK) == (None, ["Back"])


async def test_links_follow_a_chat_that_comes_back_under_another_name(tmp_path: Path) -> None:
    """[J12] [J8]"""
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        ids = await family(tab)
        head = (await tab.open(A + "CP"))["version"]["integrity"]
        gone = await tab.write("chat-delete", A + "CP", base=head)
        assert gone["linked_from"] == [A + name for name in ("Branch", "Talk", "Twig")] or sorted(
            gone["linked_from"]) == [A + name for name in ("Branch", "Talk", "Twig")]
        assert await links(tab, A + "Twig") == ("Branch", ["CP"])
        back = await tab.ask("chat-restore", chat=f"id:{ids['CP']}", op=tab.ops[A + "CP"] + 1, to="Back")
        assert back["type"] == "ack", back
        await links_told(tmp_path)
        for name, main_chat, found in (
            ("Talk", None, ["Back", ["Branch"]]), ("Branch", "Talk", ["Back", ["Twig"]]), ("Twig", "Branch", ["Back"]),
            ("Back", "Talk", []),
        ):
            assert await links(tab, A + name) == (main_chat, found)


async def test_a_link_that_cannot_follow_keeps_its_name_for_the_chat(tmp_path: Path) -> None:
    """[J12] [J8]: a damaged chat is not written; the name that it knows is nobody else's, in whatever case."""
    folder = file(tmp_path, "x").parent
    folder.mkdir(parents=True)
    damaged = b'{"chat_metadata":{"main_chat":"Talk"}}\n{"id":"a","mes":"x"}\n{"torn'
    (folder / "Child.jsonl").write_bytes(damaged)
    (folder / "Talk.jsonl").write_text('{"chat_metadata":{}}\n{"id":"a","mes":"x","extra":{"branches":["Child"]}}')
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        talk = f"id:{(await tab.open(TALK))['chat_id']}"
        assert (await tab.write("chat-rename", talk, to="New", base="*"))["type"] == "ack"
        await links_told(tmp_path)
        await names_are_kept(app.urls[0], "exists", "Talk", "talk", "TALK")
        assert (await tab.ask("open", chat=TALK, since=None, create=True))["to"] == A + "New"
        assert (await links(tab, A + "Child"))[0] == "Talk"
        assert (await tab.write("chat-rename", talk, to="Talk", base="*"))["type"] == "ack"
    assert (folder / "Child.jsonl").read_bytes() == damaged


async def names_are_kept(url: str, code: str, *names: str) -> None:
    """No request of another session makes a chat of one of these names."""
    tab = await TabClient.join(url, new_session())
    await tab.open(A + "Stranger", create=True)
    said = await tab.append(A + "Stranger", "x")
    assert said["type"] == "ack"
    for name in names:
        refused = await tab.ask("chat-create", chat=A + name, op=1)
        assert (refused["type"], refused["code"]) == ("error", code), (name, refused)
        opened = await tab.ask("open", chat=A + name, since=None, create=True)
        assert (opened["type"], opened["code"] in (code, "renamed", "deleted")) == ("error", True), opened
        renamed = await tab.write("chat-rename", A + "Stranger", to=name, base="*")
        assert renamed["code"] == "exists", renamed
        branch = await tab.write(
            "chat-branch", A + "Stranger", to=name, base="*", message=said["messages"][0])
        assert branch["code"] == "exists", branch


async def test_the_case_twin_of_a_linked_chat_in_the_trash_is_not_given_away(tmp_path: Path) -> None:
    """[J8]: to some file system it is the same name, and the link would lead to another chat."""
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        ids = await family(tab)
        head = (await tab.open(A + "CP"))["version"]["integrity"]
        assert (await tab.write("chat-delete", A + "CP", base=head))["type"] == "ack"
        await names_are_kept(app.urls[0], "deleted", "CP", "cp", "Cp")
        back = await tab.ask("chat-restore", chat=f"id:{ids['CP']}", op=tab.ops[A + "CP"] + 1, to="cp")
        assert back["type"] == "ack", back
        await links_told(tmp_path)
        assert (await links(tab, A + "Twig"))[1] == ["cp"]


async def test_many_renames_of_a_family_at_once_leave_every_link_right(tmp_path: Path) -> None:
    """[J12] From three tabs, with writes between them: nobody waits for ever, and nothing leads astray."""
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        ids = await family(tab)
        luck = random.Random(5)

        async def renames(number: int) -> None:
            own = await TabClient.join(app.urls[0], new_session())
            for chat in ids.values():
                await own.open(f"id:{chat}")
            for turn in range(8):
                chat = luck.choice(list(ids.values()))
                answer = await own.write("chat-rename", f"id:{chat}", to=f"Name {number} {turn}", base="*")
                assert answer["type"] == "ack", answer
                assert (await own.append(f"id:{luck.choice(list(ids.values()))}", "more", base="*"))["type"] == "ack"

        async with asyncio.timeout(GUARD_S):
            await asyncio.gather(*(renames(number) for number in range(3)))
        await links_told(tmp_path)
        names = {}
        for name, chat_id in ids.items():
            listed = await tab.ask("chat-list", character="Alice")
            found = [chat["chat"] for chat in listed["chats"] if chat.get("chat_id") == chat_id]
            assert len(found) == 1
            names[name] = found[0].removeprefix(A)
        for name, main_chat, found in (
            ("Talk", None, ["CP", ["Branch"]]), ("CP", "Talk", []), ("Branch", "Talk", ["CP", ["Twig"]]),
            ("Twig", "Branch", ["CP"]),
        ):
            now = [names[one] if isinstance(one, str) else [names[each] for each in one] for one in found]
            assert await links(tab, f"id:{ids[name]}") == (main_chat and names[main_chat], now)


KILLS = [
    *(f"links.after_commit@{n}" for n in (1, 2, 3)), "links.after_flush", "links.end", "operation.after_log",
    "operation.after_names", "operation.after_done", *(f"log.after_write@{n}" for n in (1, 2, 3)),
]


@pytest.mark.timeout(120)
async def test_a_kill_while_links_follow_leaves_none_behind_j12(tmp_path: Path) -> None:
    """[J12] [J3]: the next start tells the rest; each is told once."""
    async with ForkedServer(tmp_path / "unused", checkpoint_interval_s=0.05) as server:
        for step, kind in itertools.product(KILLS, ("rename", "restore")):
            data = tmp_path / f"{kind}-{step}"
            try:
                await one_kill(server, data, kind, step)
            except Exception as error:
                error.add_note(f"killed at {step} of a {kind}")
                raise


async def one_kill(server: ForkedServer, data: Path, kind: str, step: str) -> None:
    await server.start_on(data)
    tab = await TabClient.join(server.url)
    ids = await family(tab)
    if kind == "restore":
        head = (await tab.open(A + "CP"))["version"]["integrity"]
        assert (await tab.write("chat-delete", A + "CP", base=head))["type"] == "ack"
    request = {"type": f"chat-{kind}", "chat": f"id:{ids['CP']}", "op": tab.ops.get(A + "CP", 0) + 1, "to": "Point"}
    if kind == "rename":
        request["base"] = "*"
    await tab.close()
    await server.stop()
    name, _, nth = step.partition("@")
    await server.start_on(data, f"{name}=kill@{nth or 1}")
    tab = await TabClient.join(server.url, tab.session)
    try:
        assert (await tab.ask(**request))["type"] == "ack"
        await tab.raw.receive_until(type="never")
    except (ConnectionClosed, OSError):
        await server.ended()
    await server.start_on(data)
    tab = await TabClient.join(server.url, tab.session)
    assert (await tab.ask(**request))["type"] == "ack"
    await links_told(data)
    for chat, main_chat, found in (
        ("Talk", None, ["Point", ["Branch"]]), ("Branch", "Talk", ["Point", ["Twig"]]), ("Twig", "Branch", ["Point"]),
        ("Point", "Talk", []),
    ):
        assert await links(tab, A + chat) == (main_chat, found)
    assert texts((await tab.open(TALK))["messages"]) == ["one", "two", "three"]
    await tab.close()

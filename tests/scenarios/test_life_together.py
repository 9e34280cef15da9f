"""Life writes in the middle of everything else: appends, states and checkpoints from several tabs, another program's
edits, and the folder that a real SillyTavern wrote.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from tests.support.oracle import links_told, whole_history
from tests.support.server import TabClient, running, sillytavern_copy, texts
from tests.support.waiting import until

CHAT = "character:Alice/First meeting"


async def test_renames_and_branches_among_appends_states_and_checkpoints_lose_nothing_j4(tmp_path: Path) -> None:
    """[J4] [J7]: every acknowledged message is there once, in the order of each tab, under the last name."""
    async with running(tmp_path, checkpoint_interval_s=0.01) as app:
        first = await TabClient.join(app.urls[0])
        address = f"id:{(await first.open(CHAT, create=True))['chat_id']}"
        acked: dict[int, list[str]] = {}

        async def write(number: int) -> None:
            tab = await TabClient.join(app.urls[0])
            await tab.open(address)
            acked[number] = []
            for count in range(60):
                text = f"{number}-{count}"
                assert (await tab.append(address, text))["type"] == "ack"
                acked[number].append(text)
                if count % 7 == 0:
                    ack = await tab.write_state(
                        "state-update", address, namespace=f"of{number}", base="*", merge={"count": count}
                    )
                    assert ack["type"] == "ack", ack

        async def live() -> list[dict[str, Any]]:
            tab = await TabClient.join(app.urls[0])
            await tab.open(address)
            made = []
            for count in range(12):
                ack = await tab.write("chat-rename", address, to=f"Name {count}", base="*")
                assert ack["type"] == "ack", ack
                last = (await tab.open(address, tail=1))["messages"][-1]["id"]
                branch = await tab.write("chat-branch", address, message=last, base="*")
                assert branch["type"] == "ack", branch
                made.append(branch["branch"])
            return made

        *_, made = await asyncio.gather(*(write(number) for number in range(3)), live())
        tab = await TabClient.join(app.urls[0])
        said = texts((await tab.open("character:Alice/Name 11"))["messages"])
        assert len(said) == len(set(said)) == 180
        for number, own in acked.items():
            assert [text for text in said if text.startswith(f"{number}-")] == own
        for branch in made:
            begun = texts((await tab.open(branch["chat"]))["messages"])
            assert said[: len(begun)] == begun
        states = (await tab.ask("state-get", owner={"chat": address}))["states"]
        assert {name: state["data"] for name, state in states.items()} == {f"of{n}": {"count": 56} for n in range(3)}
    home = tmp_path / "default-user/chats/Alice"
    assert not [path.name for path in home.iterdir() if "tellback-tmp" in path.name]
    assert not (home / "Name 3.jsonl").exists()
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        assert texts((await tab.open(address))["messages"]) == said


async def test_a_deletion_among_appends_takes_what_was_acknowledged_with_it_j6(tmp_path: Path) -> None:
    """[J6]: what was acknowledged before it is in the trash, what came later was refused."""
    async with running(tmp_path, checkpoint_interval_s=0.01) as app:
        first = await TabClient.join(app.urls[0])
        opened = await first.open(CHAT, create=True)
        address = f"id:{opened['chat_id']}"
        acked: list[str] = []

        async def write(number: int) -> None:
            tab = await TabClient.join(app.urls[0])
            await tab.open(address)
            for count in range(200):
                answer = await tab.append(address, f"{number}-{count}")
                if answer["type"] == "error":
                    assert answer["code"] == "deleted", answer
                    return
                acked.append(f"{number}-{count}")

        async def delete() -> dict[str, Any]:
            await asyncio.sleep(0.05)
            base = opened["version"]["integrity"]
            return await first.write("chat-delete", CHAT, base=base, force=True)

        *_, gone = await asyncio.gather(*(write(number) for number in range(3)), delete())
        assert gone["type"] == "ack", gone
        back = await first.ask("chat-restore", chat=address, op=gone["op"] + 1)
        assert back["type"] == "ack", back
        assert sorted(texts((await first.open(CHAT))["messages"])) == sorted(acked)


async def test_another_programs_edit_of_the_moment_before_comes_along(tmp_path: Path) -> None:
    """[J3]: it is adopted first, and then the rename is carried out."""
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        await tab.append(CHAT, "one")
        path = tmp_path / "default-user/chats/Alice/First meeting.jsonl"
        await until(lambda: path.exists() and b"one" in path.read_bytes())
        path.write_bytes(path.read_bytes() + b'\n{"mes":"theirs"}')
        ack = await tab.write("chat-rename", CHAT, to="Second", base="*")
        assert ack["type"] == "ack", ack
        assert texts((await tab.open("character:Alice/Second"))["messages"]) == ["one", "theirs"]


async def test_every_chat_of_a_real_folder_goes_through_its_life_with_its_lines_untouched(tmp_path: Path) -> None:
    """[J4] [J6] [J7] [F2]"""
    data = sillytavern_copy(tmp_path)
    root = next(path for path in (data, data / "default-user") if (path / "chats").exists())
    chats = sorted([*root.glob("chats/*/*.jsonl"), *root.glob("group chats/*.jsonl")])
    assert len(chats) > 10
    lived = 0
    rng = random.Random(7)
    async with running(data) as app:
        tab = await TabClient.join(app.urls[0])
        for number, path in enumerate(chats):
            stem = path.name.removesuffix(".jsonl")
            name = f"group:{stem}" if path.parent.name == "group chats" else f"character:{path.parent.name}/{stem}"
            # Links of this one may follow a chat that was renamed before.
            await links_told(data)
            await until(lambda: app._keeper.lag_s() == 0)
            before = path.read_bytes()
            opened = await tab.open(name)
            if opened["type"] != "opened":
                continue
            to = name[: len(name) - len(stem)] + f"Lived {number}"
            ack = await tab.write("chat-rename", name, to=f"Lived {number}", base="*")
            assert ack["type"] == "ack", (name, ack)
            moved = path.with_name(f"Lived {number}.jsonl")
            assert moved.read_bytes() == before
            assert not path.exists()
            tab.ops[to] = tab.ops[name]
            if opened["messages"] and not opened.get("read_only"):
                at = rng.randrange(len(opened["messages"]))
                branch = await tab.write("chat-branch", to, message=opened["messages"][at]["id"], base="*")
                assert branch["type"] == "ack", (name, branch)
                made = await tab.open(branch["branch"]["chat"])
                assert made["messages"] == opened["messages"][: at + 1]
                copied = path.with_name(branch["branch"]["chat"].split("/")[-1].removeprefix("group:") + ".jsonl")
                lines = [line for line in copied.read_bytes().split(b"\n")[1:] if line.strip()]
                assert set(lines) <= set(before.split(b"\n")), name
                lived += 1
            base = (await tab.open(to))["version"]["integrity"]
            gone = await tab.write("chat-delete", to, base=base)
            assert gone["type"] == "ack", (name, gone)
            assert not moved.exists()
            back = await tab.ask(
                "chat-restore", chat=f"id:{opened['chat_id']}", op=gone["op"] + 1, to=f"Lived again {number}"
            )
            assert back["type"] == "ack", (name, back)
            again = await tab.open(back["ops"][0]["to"])
            assert [message["mes"] for message in again["messages"] if "mes" in message] == [
                message["mes"] for message in opened["messages"] if "mes" in message
            ]
            if opened.get("read_only"):
                assert path.with_name(f"Lived again {number}.jsonl").read_bytes() == before
    assert lived > 5


async def test_a_write_that_meets_a_restore_is_answered(tmp_path: Path) -> None:
    """[J6]: whoever writes while the chat comes back hears `deleted` or an ack, and keeps the connection."""
    async with running(tmp_path) as app:
        one = await TabClient.join(app.urls[0])
        opened = await one.open("character:Alice/Talk", create=True)
        chat = "id:" + opened["chat_id"]
        writers = [await TabClient.join(app.urls[0]) for _ in range(2)]
        is_over = False
        heard: set[str] = set()

        async def write(tab: TabClient) -> None:
            op = 1
            while not is_over:
                answer = await tab.ask("append", chat=chat, op=op, base="*", messages=[{"mes": "still here"}])
                heard.add("ack" if answer["type"] == "ack" else answer["code"])
                op = answer.get("expected", op + 1)

        writing = asyncio.gather(*(write(tab) for tab in writers))
        for number in range(6):
            await asyncio.sleep(0.02)
            gone = await one.ask(
                "chat-delete", chat=chat, op=2 * number + 1, base=opened["version"]["integrity"], force=True
            )
            assert gone["type"] == "ack", gone
            back = await one.ask("chat-restore", chat=chat, op=2 * number + 2)
            assert back["type"] == "ack", back
        await asyncio.sleep(0.05)
        is_over = True
        await writing
        assert "ack" in heard
        assert heard <= {"ack", "deleted", "op-gap"}, heard


@pytest.mark.parametrize("kind", ["chat-rename", "chat-branch", "chat-delete"])
async def test_a_life_write_that_meets_an_outside_edit_is_answered(tmp_path: Path, kind: str) -> None:
    """[J3]: also while commits wait for their checkpoint; it is carried out on what was adopted."""
    async with running(tmp_path, checkpoint_interval_s=0.3) as app:
        tab = await TabClient.join(app.urls[0])
        opened = await tab.open("character:Alice/Talk", create=True)
        chat, path = "id:" + opened["chat_id"], tmp_path / "default-user/chats/Alice/Talk.jsonl"
        said = await tab.append(chat, "one")
        await until(path.exists)
        assert (await tab.append(chat, "two"))["type"] == "ack"
        with path.open("a") as file:
            file.write('\n{"name":"Other","is_user":false,"mes":"from outside"}')
        more: dict[str, Any] = {
            "chat-rename": {"base": "*", "to": "Talks"},
            "chat-branch": {"base": "*", "to": "Twig", "message": said["messages"][0]},
            "chat-delete": {"base": said["version"]["integrity"], "force": True},
        }[kind]
        answer = await tab.ask(kind, chat=chat, op=3, **more)
        assert answer["type"] in ("ack", "conflict"), answer
        again = await tab.ask(kind, chat=chat, op=3, **more)
        assert again["type"] == answer["type"]
        assert again["duplicate"] is True
        # Nothing is left standing still.
        other = await TabClient.join(app.urls[0])
        made = await other.ask("chat-create", chat="character:Alice/More", op=1)
        assert made["type"] == "ack", made


async def test_an_outside_edit_among_forced_writes_and_life_writes_leaves_one_history(tmp_path: Path) -> None:
    """[L1] [V1] [J3]: whoever made the chat stand still before the edit lets nobody go who does so behind it."""
    async with running(tmp_path, checkpoint_interval_s=600) as app:
        tab = await TabClient.join(app.urls[0])
        opened = await tab.open("character:Alice/Talk", create=True)
        chat, path = "id:" + opened["chat_id"], tmp_path / "default-user/chats/Alice/Talk.jsonl"
        said = await tab.append(chat, "one")
        await app._keeper._fold(next(iter(app._hub.actors)), "operation")
        op, asked = 1, 0
        for turn in range(4):
            # Something waits for the files, and another program changes them.
            await tab.ask("append", chat=chat, op=op + 1, base="*", messages=[{"mes": f"waits {turn}"}])
            with path.open("a") as file:
                file.write(f'\n{{"name":"Other","is_user":false,"mes":"from outside {turn}"}}')
            stale = {"base": opened["head"]["integrity"] if not turn else said["version"]["integrity"], "force": True}
            burst: list[tuple[str, dict[str, Any]]] = [
                ("metadata-update", {**stale, "set": {"turn": turn, "by": "one"}}),
                ("metadata-update", {**stale, "set": {"turn": turn, "by": "two"}}),
                ("chat-branch", {"base": "*", "message": said["messages"][0]}),
                *[("append", {"base": "*", "messages": [{"mes": f"behind it {turn} {n}"}]}) for n in range(12)],
                ("metadata-update", {**stale, "set": {"turn": turn, "by": "three"}}),
                ("chat-branch", {"base": "*", "message": said["messages"][0]}),
                *[("append", {"base": "*", "messages": [{"mes": f"at last {turn} {n}"}]}) for n in range(12)],
            ]
            op += 1
            for number, (kind, fields) in enumerate(burst, 1):
                asked += 1
                await tab.raw.send({"type": kind, "id": 1000 + asked, "chat": chat, "op": op + number, **fields})
            first = asked - len(burst) + 1
            answers = [await tab.raw.receive_until(id=1000 + number) for number in range(first, asked + 1)]
            assert [answer["type"] for answer in answers] == ["ack"] * len(burst), answers
            op += len(burst)
        made, *history = await whole_history(tab, chat)
        assert [commit["version"]["seq"] for commit in history] == list(range(2, op + 2)), "one after the other"
        assert [commit["by"]["op"] for commit in history] == list(range(1, op + 1)), made
        found = texts((await tab.open(chat))["messages"])
        assert len(found) == len(set(found)) == 1 + 4 * (1 + 1 + 24)

"""One chat's life: loading, ready, busy, ended; who waits meanwhile and what they get."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tellback_server.actor import MAILBOX_MAX
from tests.support.held_fs import HeldFs
from tests.support.server import TabClient, running, sillytavern_copy, texts
from tests.support.waiting import GUARD_S, until

CHAT = "character:Pip/Pip - 2024-11-01@12h00m00s"
NEW = "character:Alice/First meeting"


async def test_L3_what_arrives_while_a_chat_is_read_waits_in_order_and_past_the_bound_is_overloaded(
    tmp_path: Path,
) -> None:
    """[O5]: an overloaded op used up no number; the mailbox is bounded, and nobody else is concerned."""
    fs = HeldFs()
    async with running(sillytavern_copy(tmp_path), fs=fs, in_flight_max=200) as app:
        other = await TabClient.join(app.urls[0])
        await other.open(NEW, create=True)
        tabs = [await TabClient.join(app.urls[0]) for _ in range(2)]
        fs.hold_reads()
        for tab in tabs:
            for op in range(1, 200):
                await tab.raw.send({"type": "append", "id": op, "chat": CHAT, "op": op, "base": "*",
                                    "messages": [{"mes": f"{op}"}]})
            assert (await tab.ask("ping"))["type"] == "pong"
        assert await asyncio.to_thread(fs.waits.wait, GUARD_S)
        assert (await other.append(NEW, "unharmed"))["type"] == "ack"
        refused = [await tabs[1].raw.receive_until(type="error")]
        assert (refused[0]["code"], refused[0]["retry"]) == ("overloaded", "backoff")
        assert refused[0]["after_ms"] > 0
        fs.let_go()
        acked = 0
        for tab in tabs:
            answers = [await tab.raw.receive() for _ in range(199 - (len(refused) if tab is tabs[1] else 0))]
            ops = [answer["op"] for answer in answers if answer["type"] == "ack"]
            assert ops == list(range(1, len(ops) + 1)), "in order, and no hole"
            codes = {answer["code"] for answer in answers if answer["type"] == "error"}
            assert codes <= {"overloaded", "op-gap"}
            acked += len(ops)
        assert acked == MAILBOX_MAX
        assert (await tabs[0].open(CHAT))["next_op"] + (await tabs[1].open(CHAT))["next_op"] == acked + 2


async def test_a_client_that_left_while_its_chat_was_read_is_not_answered_and_blocks_nobody(tmp_path: Path) -> None:
    """R20: what it had asked is carried out, once."""
    fs = HeldFs()
    async with running(sillytavern_copy(tmp_path), fs=fs) as app:
        gone = await TabClient.join(app.urls[0])
        stays = await TabClient.join(app.urls[0])
        fs.hold_reads()
        await gone.raw.send({"type": "open", "chat": CHAT, "since": None})
        await gone.raw.send({"type": "append", "chat": CHAT, "op": 1, "base": "*", "messages": [{"mes": "last words"}]})
        assert (await gone.ask("ping"))["type"] == "pong"
        gone.raw.abort()
        await stays.raw.send({"type": "open", "id": 9, "chat": CHAT, "since": None})
        await until(lambda: len(app._reception.tabs) == 1)
        fs.let_go()
        opened = await stays.raw.receive_until(id=9)
        assert texts(opened["messages"]).count("last words") == 1
        [actor] = app._hub.actors
        assert len(actor.audience.subscriptions) == 1


async def test_a_close_behind_an_open_that_waits_for_the_disk_ends_it(tmp_path: Path) -> None:
    """[R9] After `closed` nothing of the chat is told, also when both were asked before the open was answered."""
    async with running(tmp_path) as app:
        mine, other = await TabClient.join(app.urls[0]), await TabClient.join(app.urls[0])
        await other.open(NEW, create=True)
        append = {"type": "append", "id": 6, "chat": NEW, "op": 1, "base": "*", "messages": [{"mes": "one"}]}
        for frame in (append, {"type": "open", "id": 7, "chat": NEW, "since": None},
                      {"type": "close", "id": 8, "chat": NEW}):
            await mine.raw.send(frame)
        answers = [(await mine.raw.receive())["type"] for _ in range(3)]
        assert answers == ["ack", "opened", "closed"]
        await other.append(NEW, "two")
        await mine.raw.send({"type": "ping", "id": 9})
        assert (await mine.raw.receive())["type"] == "pong"
        [actor] = app._hub.actors
        assert len(actor.audience.subscriptions) == 1


async def test_two_tabs_that_create_one_chat_at_once_get_the_same_one(tmp_path: Path) -> None:
    """[V1]: one is told that it made it."""
    async with running(tmp_path) as app:
        tabs = [await TabClient.join(app.urls[0]) for _ in range(5)]
        opened = await asyncio.gather(*(tab.open(NEW, create=True) for tab in tabs))
        assert len({frame["chat_id"] for frame in opened}) == 1
        assert [frame.get("created", False) for frame in opened].count(True) == 1
        acks = await asyncio.gather(*(tab.append(NEW, f"{number}") for number, tab in enumerate(tabs)))
        assert sorted(ack["version"]["seq"] for ack in acks) == [2, 3, 4, 5, 6]


async def test_L4_K4_an_idle_chat_ends_and_whoever_held_on_to_it_gets_its_successor(tmp_path: Path) -> None:
    """[K4]: a race between the end and a write that arrives has no loser."""
    async with running(tmp_path, idle_s=0.01, checkpoint_interval_s=0.01) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(NEW, create=True)
        await tab.ask("close", chat=NEW)
        ended = count = 0
        while count < 60 or (ended <= 3 and count < 2000):
            before = app._hub.actors
            await asyncio.sleep(0.002 * (count % 20))
            assert (await tab.append(NEW, f"{count}"))["type"] == "ack"
            ended += app._hub.actors != before
            count += 1
        assert ended > 3, "it did end now and then"
        await until(lambda: app._hub.actors == [])
        assert texts((await tab.open(NEW))["messages"]) == [f"{number}" for number in range(count)]


async def test_requests_during_an_adoption_wait_and_see_the_new_history(tmp_path: Path) -> None:
    """[K3] [V4]: the actor stands still while another program's file is read."""
    fs = HeldFs()
    data = sillytavern_copy(tmp_path)
    path = data / "default-user/chats/Pip/Pip - 2024-11-01@12h00m00s.jsonl"
    async with running(data, fs=fs, checkpoint_interval_s=600) as app:
        tab = await TabClient.join(app.urls[0])
        opened = await tab.open(CHAT)
        await tab.append(CHAT, "ours")
        path.write_bytes(path.read_bytes() + b'\n{"mes":"outside"}')
        fs.hold_reads()
        other = await TabClient.join(app.urls[0])
        await other.raw.send({"type": "open", "id": 1, "chat": CHAT, "since": None})
        assert await asyncio.to_thread(fs.waits.wait, GUARD_S)
        await tab.raw.send({"type": "append", "id": 2, "chat": CHAT, "op": 2, "base": opened["head"]["integrity"],
                            "messages": [{"mes": "made against the old one"}]})
        await tab.raw.send({"type": "append", "id": 3, "chat": CHAT, "op": 3, "base": "*",
                            "messages": [{"mes": "whatever is there"}]})
        assert (await tab.ask("ping"))["type"] == "pong"
        fs.let_go()
        assert (await tab.raw.receive_until(type="reset"))["version"]["epoch"] == 2
        answers: list[dict[str, Any]] = [await tab.raw.receive_until(id=number) for number in (2, 3)]
        assert [answer["type"] for answer in answers] == ["conflict", "ack"]
        assert answers[1]["version"]["epoch"] == 2
        seen = await other.raw.receive_until(id=1)
        assert seen["head"]["epoch"] == 2
        assert texts(seen["messages"])[opened["count"] :][:2] == ["outside", "ours"]
        if "whatever is there" not in texts(seen["messages"]):
            assert (await other.raw.receive_until(type="integrity"))["version"] == answers[1]["version"]

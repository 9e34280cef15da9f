"""Tabs that do not keep up: told so once, bounded in memory, and in nobody's way."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.forked_server import ForkedServer
from tests.support.oracle import Replica
from tests.support.server import TabClient, running, sillytavern_copy
from tests.support.slow_tab import SlowTab
from tests.support.waiting import until

CHAT = "character:Alice/First meeting"
OTHER = "group:Friends"
BIG = "character:佐藤ひなこ/佐藤ひなこ - 2024-07-01@10h00m00s"
"""5.6 MB that a real SillyTavern wrote."""
TEXT = "x" * 50_000


async def test_R24_a_tab_that_stops_reading_gets_behind_and_nobody_else_notices(tmp_path: Path) -> None:
    """[D4]: past 1 MiB its queue is freed and one frame says from where to where; opening again fills the gap."""
    async with running(tmp_path) as app:
        writer = await TabClient.join(app.urls[0])
        opened = await writer.open(CHAT, create=True)
        await writer.open(OTHER, create=True)
        slow = await SlowTab.join(app.urls[0])
        for chat in (CHAT, OTHER):
            slow.send({"type": "open", "id": 1, "chat": chat, "since": None})
            assert (await slow.read())["type"] == "opened"
        [tab] = [tab for tab in app._reception.tabs if tab.session_id == slow.session]
        watcher = await TabClient.join(app.urls[0])
        await watcher.open(CHAT)
        watched, most = 0, 0
        for number in range(300):
            ack = await writer.append(CHAT, f"{number} {TEXT}")
            assert ack["type"] == "ack"
            most = max(most, tab.outbox.waiting_bytes)
            while watched <= number:
                frame = await watcher.raw.receive_until(type="integrity")
                watched += 1
            assert frame["version"] == ack["version"]
        head = ack["version"]
        assert app.counters.behind == 1
        assert most < (1 << 20) + 2 * len(TEXT)
        assert tab.outbox.waiting_bytes < 1000, "its queue was freed"
        # A small chat on the same connection was not touched.
        told = await writer.append(OTHER, "hello")

        replica = Replica()
        replica.take(opened)
        came, behind = await slow.read_until("behind")
        for frame in came:
            assert replica.follow(frame)
        assert behind["chat"] == CHAT
        assert behind["from"] == replica.head, "nothing was dropped before it, nothing came twice"
        assert replica.head["seq"] < behind["to"]["seq"] <= head["seq"]
        frame = await slow.read()
        assert (frame["type"], frame["chat"], frame["version"]) == ("integrity", OTHER, told["version"])
        slow.send({"type": "open", "id": 2, "chat": CHAT, "since": behind["from"]})
        again = await slow.read()
        assert again["head"] == head
        if again["mode"] == "snapshot":
            assert again["reset"] == "trimmed"
            parts: list[Any] = []
            for _ in range(again["parts"]):
                parts += (await slow.read())["messages"]
            replica.take({**again, "messages": parts})
        while replica.head != head:
            assert replica.follow(await slow.read())
        fresh = await watcher.open(CHAT)
        assert list(replica.messages.values()) == fresh["messages"]
        await writer.append(CHAT, "live again")
        assert (await slow.read())["type"] == "integrity"


async def test_R24_a_replay_after_behind_when_the_history_reaches(tmp_path: Path) -> None:
    """[D4] [R1]: `since` = `from` is answered with the missing commits."""
    async with running(tmp_path) as app:
        writer = await TabClient.join(app.urls[0])
        await writer.open(CHAT, create=True)
        slow = await SlowTab.join(app.urls[0])
        slow.send({"type": "open", "id": 1, "chat": CHAT, "since": None})
        assert (await slow.read())["type"] == "opened"
        [tab] = [tab for tab in app._reception.tabs if tab.session_id == slow.session]
        for number in range(400):
            await writer.append(CHAT, f"{number} {TEXT}")
            if app.counters.behind:
                break
        assert app.counters.behind == 1
        assert not tab.chats
        _, behind = await slow.read_until("behind")
        ack = await writer.append(CHAT, "the last")
        slow.send({"type": "open", "id": 2, "chat": CHAT, "since": {**behind["to"]}})
        again = await slow.read()
        assert again["mode"] == "replay"
        replica = Replica(head=behind["to"])
        while replica.head != ack["version"]:
            assert replica.follow(await slow.read())


async def test_R24_a_big_snapshot_starves_neither_heartbeats_nor_the_acks_of_others(tmp_path: Path) -> None:
    """[C7] [R5]: while a slow tab loads 5.6 MB, `pong` overtakes the parts and another chat's acks come steadily."""
    data = sillytavern_copy(tmp_path)
    async with ForkedServer(data) as server:
        writer = await TabClient.join(server.url)
        await writer.open(OTHER, create=True)
        await writer.append(OTHER, "warm")
        gaps: list[float] = []
        stop = asyncio.Event()

        async def write() -> None:
            while not stop.is_set():
                began_s = time.monotonic()
                assert (await writer.append(OTHER, "steady"))["type"] == "ack"
                gaps.append(time.monotonic() - began_s)
                await asyncio.sleep(0.001)

        slow = [await SlowTab.join(server.url) for _ in range(3)]
        writing = asyncio.create_task(write())
        overtaken = []
        for tab in slow:
            tab.send({"type": "open", "id": 1, "chat": BIG, "since": None})
            tab.send({"type": "open", "id": 2, "chat": OTHER, "since": None})
        for tab in slow:
            opened = await tab.read(10)
            while opened.get("id") != 1:
                # The other chat is live: nothing says that it waits for one that is being read.
                opened = await tab.read(10)
            assert opened["type"] == "opened"
            parts = 0
            pinged = False
            pong_after = None
            while parts < opened["parts"]:
                frame = await tab.read()
                if frame["type"] == "snapshot-part":
                    parts += 1
                    assert (frame["part"], frame["of"]) == (parts, opened["parts"])
                    if not pinged:
                        tab.send({"type": "ping", "id": 7})
                        pinged = True
                elif frame["type"] == "pong":
                    pong_after = parts
                await asyncio.sleep(0.002)
            assert pong_after is not None, "the heartbeat waited behind the data"
            overtaken.append(opened["parts"] - pong_after)
        stop.set()
        await writing
        assert min(overtaken) > 5, overtaken
        assert len(gaps) > 50
        assert max(gaps) < sum(gaps) / 3, "none of them waited for the loading"


async def test_parts_are_overtaken_by_commits_and_both_together_are_the_chat(tmp_path: Path) -> None:
    """[R5]: all parts show the version in `opened`; what comes between applies after the last one."""
    data = sillytavern_copy(tmp_path)
    async with running(data) as app:
        writer = await TabClient.join(app.urls[0])
        opened = await writer.open(BIG)
        slow = await SlowTab.join(app.urls[0])
        slow.send({"type": "open", "id": 1, "chat": BIG, "since": None})
        first = await slow.read()
        assert first["parts"] > 50
        target = opened["messages"][-1]["id"]
        for number in range(10):
            await writer.append(BIG, f"meanwhile {number}")
            patch = [{"op": "add", "path": "/extra_note", "value": number}]
            ack = await writer.write(
                "patch", BIG, base={"op": writer.ops[BIG]}, message=target, patch=patch
            )
            assert ack["type"] == "ack"
        parts: list[Any] = []
        commits: list[dict[str, Any]] = []
        last_part_at = 0
        while len(commits) < 20 or last_part_at < first["parts"]:
            frame = await slow.read()
            if frame["type"] == "snapshot-part":
                last_part_at = frame["part"]
                parts += frame["messages"]
                # What is already known of later commits is not in the parts.
                assert all("extra_note" not in message for message in frame["messages"])
            else:
                assert frame["type"] == "integrity"
                commits.append(frame)
                at_part = last_part_at
        assert len(commits) == 20
        assert at_part < first["parts"], "commits overtook the last parts"
        replica = Replica()
        replica.take({**first, "messages": parts})
        for commit in commits:
            assert replica.follow(commit)
        fresh = await writer.open(BIG)
        assert list(replica.messages.values()) == fresh["messages"]


async def test_what_waits_keeps_the_order_of_commits_within_one_chat(tmp_path: Path) -> None:
    """[D2]: acks, conflicts and broadcasts that wait for a slow reader come in the order of the stream."""
    async with running(tmp_path) as app:
        writer = await TabClient.join(app.urls[0])
        opened = await writer.open(CHAT, create=True)
        stale = opened["head"]["integrity"]
        await writer.open(OTHER, create=True)
        slow = await SlowTab.join(app.urls[0])
        for chat in (OTHER, CHAT):
            slow.send({"type": "open", "id": 1, "chat": chat, "since": None})
            assert (await slow.read())["type"] == "opened"
        [tab] = [tab for tab in app._reception.tabs if tab.session_id == slow.session]
        # Fill its socket with another chat until something waits here.
        while not tab.outbox.is_waiting:
            await writer.append(OTHER, TEXT)
        for op in range(1, 11):
            slow.send({"type": "append", "id": 100 + op, "chat": CHAT, "op": 2 * op - 1, "base": "*",
                       "messages": [{"mes": f"slow {op}"}]})
            slow.send({"type": "metadata-update", "id": 200 + op, "chat": CHAT, "op": 2 * op, "base": stale,
                       "set": {}})
            await until(lambda op=op: app._hub.actors and sum(a.stream.head.seq for a in app._hub.actors
                                                              if a.name == CHAT) >= 2 * op)
            await writer.append(CHAT, f"writer {op}")
        assert tab.outbox.is_waiting
        seqs: list[int] = []
        conflicts = 0
        own = {"ack": 0, "integrity": 0}
        while own["integrity"] < 10 or own["ack"] < 10 or conflicts < 10:
            frame = await slow.read()
            if frame.get("chat") != CHAT:
                continue
            if frame["type"] == "conflict":
                conflicts += 1
                assert frame["version"]["seq"] <= seqs[-1], "a conflict shows nothing that did not come before it"
            else:
                own[frame["type"]] += 1
                seqs.append(frame["version"]["seq"])
        assert seqs == sorted(seqs)
        assert len(set(seqs)) == 20


async def test_a_tab_that_asks_and_never_reads_is_closed_with_4008(tmp_path: Path) -> None:
    """[D5]: what is never dropped has a reserve; past it the connection ends, and only that one."""
    async with running(tmp_path) as app:
        writer = await TabClient.join(app.urls[0])
        await writer.open(CHAT, create=True)
        await writer.write_state("state-update", CHAT, namespace="big", base=None, set={"data": "y" * 1_000_000})
        slow = await SlowTab.join(app.urls[0])
        for number in range(60):
            slow.send({"type": "state-get", "id": number, "owner": {"chat": CHAT}, "namespaces": ["big"]})
        await until(lambda: all(tab.session_id != slow.session for tab in app._reception.tabs))
        assert (await writer.append(CHAT, "unharmed"))["type"] == "ack"
        with pytest.raises(EOFError):
            await slow.read_until("nothing of the kind")


async def test_closing_a_chat_frees_what_waits_of_it(tmp_path: Path) -> None:
    """[D4] [D5]: its commits and parts are not wanted any more, its answers are."""
    data = sillytavern_copy(tmp_path)
    async with running(data) as app:
        slow = await SlowTab.join(app.urls[0])
        slow.send({"type": "open", "id": 1, "chat": BIG, "since": None})
        opened = await slow.read()
        slow.send({"type": "close", "id": 2, "chat": BIG})
        parts, closed = await slow.read_until("closed")
        assert closed["id"] == 2
        assert len(parts) < opened["parts"]
        slow.send({"type": "ping", "id": 3})
        assert await slow.read() == {"type": "pong", "id": 3}


async def test_what_may_wait_for_a_slow_tab_is_a_setting(tmp_path: Path) -> None:
    """[D4]: `outbox_bytes_max`, here so small that the tab is told long before the default."""
    async with running(tmp_path, outbox_bytes_max=64 << 10) as app:
        writer = await TabClient.join(app.urls[0])
        await writer.open(CHAT, create=True)
        slow = await SlowTab.join(app.urls[0])
        slow.send({"type": "open", "id": 1, "chat": CHAT, "since": None})
        assert (await slow.read())["type"] == "opened"
        [tab] = [tab for tab in app._reception.tabs if tab.session_id == slow.session]
        most = 0
        while not app.counters.behind:
            await writer.append(CHAT, TEXT)
            most = max(most, tab.outbox.waiting_bytes)
        assert most <= 64 << 10

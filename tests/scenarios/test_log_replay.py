"""Coming back after longer than the server remembers in memory: the log tells what was missed."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path
from typing import Any

import pytest

from tellback_protocol import stream
from tellback_server import keeper
from tests.support.forked_server import ForkedServer
from tests.support.oracle import Replica
from tests.support.server import TabClient, running
from tests.support.slow_tab import SlowTab
from tests.support.waiting import until

CHAT = "character:Alice/First meeting"
OTHER = "group:Friends"
FILE = "default-user/chats/Alice/First meeting.jsonl"
LARGE = "z" * 200_000
"""A message that makes the snapshot larger than any replay here."""


@pytest.fixture
def short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream remembers eight commits; all else is in the log."""
    monkeypatch.setattr(stream, "HISTORY_COMMITS_MAX", 8)


async def begin(tab: TabClient, *texts_: str) -> dict[str, Any]:
    """A chat with something in it; its version."""
    await tab.open(CHAT, create=True)
    version: dict[str, Any] = (await tab.append(CHAT, *texts_))["version"]
    return version


async def follow(tab: TabClient, replica: Replica, opened: dict[str, Any]) -> int:
    """Take the replay that `opened` announces; how many commits came. Fails on a gap or a repetition."""
    assert opened["mode"] in ("replay", "current"), opened
    count = 0
    while replica.head != opened["head"]:
        assert replica.follow(await tab.raw.receive_until(type="integrity"))
        count += 1
    return count


async def test_R07_what_memory_forgot_is_replayed_from_the_log(tmp_path: Path, short_memory: None) -> None:
    """[R7] [R6]: from every position there ever was, each commit once; also after a restart, and a second one."""
    replicas: list[Replica] = []
    for start in range(3):
        async with running(tmp_path) as app:
            tab = await TabClient.join(app.urls[0])
            if not start:
                await begin(tab, LARGE)
            replica = Replica()
            replica.take(await tab.open(CHAT))
            replicas.append(replica)
            for number in range(20):
                ack = await tab.append(CHAT, f"{start}.{number}")
                assert ack["type"] == "ack"
            await tab.write_state("state-update", CHAT, namespace="memory", base="*", merge={f"start{start}": 1})
            whole = await tab.open(CHAT)
            replica = Replica()
            replica.take(whole)
            replicas.append(replica)
            late = await TabClient.join(app.urls[0])
            for replica in replicas:
                behind = Replica()
                behind.take({"messages": list(replica.messages.values()), "metadata": {}, "head": replica.head})
                assert behind.head is not None
                expected = whole["head"]["seq"] - behind.head["seq"]
                assert await follow(late, behind, await late.open(CHAT, since=behind.head)) == expected
                assert list(behind.messages.values()) == whole["messages"]
            await late.raw.expect_silence(0.02)


async def test_R07_after_a_kill_and_over_a_megabyte(tmp_path: Path) -> None:
    """[R7] [R2]: the bounds of a real server; a snapshot of 8 MB is not sent for 2 MB that were missed."""
    async with ForkedServer(tmp_path / "data", checkpoint_interval_s=0.05) as server:
        tab = await TabClient.join(server.url)
        for _ in range(3):
            since = await begin(tab, *("y" * 1_000_000 for _ in range(3)))
        replica = Replica()
        replica.take(await tab.open(CHAT))
        for number in range(20):
            await tab.append(CHAT, f"{number}" + "x" * 100_000)
        for kill in (False, True):
            if kill:
                await server.kill()
                await server.start()
            late = await TabClient.join(server.url)
            behind = Replica()
            behind.take({"messages": list(replica.messages.values()), "metadata": {}, "head": since})
            assert await follow(late, behind, await late.open(CHAT, since=since)) == 20
            assert list(behind.messages.values()) == (await late.open(CHAT))["messages"]


async def test_R07_nothing_is_missed_doubled_or_overtaken_while_others_write(
    tmp_path: Path, short_memory: None
) -> None:
    """[R7] [D2] [D3]: the log is read while the stream moves on, and further than it remembers."""
    async with running(tmp_path) as app:
        writers = [await TabClient.join(app.urls[0]) for _ in range(2)]
        since = await begin(writers[0], LARGE)
        await writers[1].open(CHAT)
        for number in range(200):
            await writers[0].append(CHAT, f"before {number}")
        stop = asyncio.Event()

        async def write(tab: TabClient, name: str) -> None:
            for number in itertools.count():
                if stop.is_set():
                    return
                assert (await tab.append(CHAT, f"{name} {number}"))["type"] == "ack"

        writing = [asyncio.create_task(write(tab, f"w{index}")) for index, tab in enumerate(writers)]
        try:
            for _ in range(15):
                tab = await TabClient.join(app.urls[0])
                await tab.raw.send({"type": "open", "id": 1, "chat": CHAT, "since": since})
                opened = await tab.raw.receive()
                assert (opened["type"], opened["mode"]) == ("opened", "replay")
                replica = Replica(head=since)
                while replica.head is None or replica.head["seq"] < opened["head"]["seq"] + 20:
                    assert replica.follow(await tab.raw.receive()), "nothing twice"
                tab.raw.abort()
        finally:
            stop.set()
            await asyncio.gather(*writing)


async def test_R07_what_the_tab_asks_behind_its_open_is_answered_behind_it(tmp_path: Path, short_memory: None) -> None:
    """[R7] [D2] [L1]: pipelined requests keep their place while the log is read; nobody else's wait."""
    async with running(tmp_path) as app:
        writer = await TabClient.join(app.urls[0])
        since = await begin(writer, LARGE)
        for number in range(200):
            await writer.append(CHAT, f"{number}")
        tab = await TabClient.join(app.urls[0])
        for number in (1, 2):
            await tab.raw.send({"type": "open", "id": number, "chat": CHAT, "since": since})
            for op in (2 * number - 1, 2 * number):
                await tab.raw.send({"type": "append", "id": 10 + op, "chat": CHAT, "op": op, "base": "*",
                                    "messages": [{"mes": f"mine {op}"}]})
        await tab.raw.send({"type": "close", "id": 20, "chat": CHAT})
        frames = []
        while not frames or frames[-1]["type"] != "closed":
            frames.append(await tab.raw.receive())
        told: list[Any] = [frame.get("id") or frame["version"]["seq"] for frame in frames]
        first = since["seq"] + 1
        replay = list(range(first, first + 200))
        assert told == [1, *replay, 11, 12, 2, *replay, first + 200, first + 201, 13, 14, 20]
        await tab.raw.expect_silence(0.02)


async def test_R07_a_log_that_was_trimmed_says_so(
    tmp_path: Path, short_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[R3] [R7]: what retention removed is `trimmed`, what it kept is replayed."""
    monkeypatch.setattr(keeper, "COLLECT_S", 0.05)
    settings = {"log_segment_bytes": 16 << 10, "log_retain_bytes": 120_000, "idle_s": 0.05}
    async with running(tmp_path, **settings) as app:
        tab = await TabClient.join(app.urls[0])
        first = await begin(tab, LARGE)
        recent = first
        for number in range(150):
            ack = await tab.append(CHAT, f"{number}" + "x" * 1000)
            if number == 120:
                recent = ack["version"]
        # Segments go one by one, and the first ones alone do not hold what `first` was.
        await until(lambda: app._log.first_retained > 20)
        await check_trimmed(tab, first, recent)
    async with running(tmp_path, **settings) as app:
        await check_trimmed(await TabClient.join(app.urls[0]), first, recent)


async def check_trimmed(tab: TabClient, first: dict[str, Any], recent: dict[str, Any]) -> None:
    trimmed = await tab.open(CHAT, since=first)
    assert (trimmed["mode"], trimmed["reset"]) == ("snapshot", "trimmed")
    assert len(trimmed["messages"]) == 151
    assert await follow(tab, Replica(head=recent), await tab.open(CHAT, since=recent)) == 29


async def test_R07_an_epoch_before_and_another_integrity_are_never_continued(
    tmp_path: Path, short_memory: None
) -> None:
    """[R1] [R3] [R7]: the log still holds those commits, but they do not lead here."""
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        first = await begin(tab, LARGE)
        second = (await tab.append(CHAT, "second"))["version"]
        path = tmp_path / FILE
        # A checkpoint that is under way finds the edit itself, a moment later than an open would.
        [actor] = app._hub.actors
        await until(lambda: path.exists() and b"second" in path.read_bytes() and not actor.folding)
        path.write_bytes(path.read_bytes().rstrip(b"\n") + b'\n{"name":"U","mes":"outside"}\n')
        adopted = (await (await TabClient.join(app.urls[0])).open(CHAT))["head"]
        await tab.open(CHAT)
        seventh = {}
        for number in range(20):
            ack = await tab.append(CHAT, f"{number}")
            if number == 6:
                seventh = ack["version"]
        for since, reset in [
            (first, "epoch"),
            (second, "epoch"),
            ({**second, "epoch": 2}, "epoch"),
            ({**seventh, "integrity": first["integrity"]}, "epoch"),
            ({**first, "epoch": 2}, "trimmed"),
            ({**adopted, "epoch": 3}, "ahead"),
        ]:
            opened = await tab.open(CHAT, since=since)
            assert (opened["mode"], opened.get("reset")) == ("snapshot", reset), since
        assert await follow(tab, Replica(head=adopted), await tab.open(CHAT, since=adopted)) == 20
        assert await follow(tab, Replica(head=seventh), await tab.open(CHAT, since=seventh)) == 13


async def test_R07_a_replay_over_its_bound_is_a_snapshot_without_a_reason(tmp_path: Path, short_memory: None) -> None:
    """[R2] [R7]: the position is known, so nothing was lost; the snapshot is only shorter."""
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        since = await begin(tab, "x")
        whole = await tab.open(CHAT)
        message, base = whole["messages"][0]["id"], whole["head"]["integrity"]
        for number in range(100):
            patch = [{"op": "replace", "path": "/mes", "value": f"{number}" * 1000}]
            base = (await tab.write("patch", CHAT, base=base, message=message, patch=patch))["version"]["integrity"]
        opened = await tab.open(CHAT, since=since)
        assert (opened["mode"], opened.get("reset"), len(opened["messages"])) == ("snapshot", None, 1)


async def test_R08_a_long_replay_is_sent_as_the_tab_reads_and_nothing_overtakes_it(tmp_path: Path) -> None:
    """[R8] [D2] [D4]: 3 MB to a tab that reads slowly: no `behind`, its acks and others' commits stay behind it."""
    async with running(tmp_path) as app:
        writer = await TabClient.join(app.urls[0])
        await writer.open(CHAT, create=True)
        await writer.append(CHAT, "y" * 3_900_000)
        since = (await writer.append(CHAT, "since"))["version"]
        for number in range(30):
            await writer.append(CHAT, f"{number}" + "x" * 100_000)
        slow = await SlowTab.join(app.urls[0])
        slow.send({"type": "open", "id": 1, "chat": CHAT, "since": since})
        slow.send({"type": "append", "id": 2, "chat": CHAT, "op": 1, "base": "*", "messages": [{"mes": "mine"}]})
        await until(lambda: app.counters.commits >= 34)
        for number in range(5):
            await writer.append(CHAT, f"live {number}")
        opened = await slow.read()
        assert (opened["type"], opened["mode"]) == ("opened", "replay")
        replica = Replica(head=since)
        before, ack = await slow.read_until("ack")
        assert [frame["type"] for frame in before] == ["integrity"] * 30
        assert all(replica.follow(frame) for frame in before)
        assert replica.head is not None
        assert ack["version"]["seq"] == replica.head["seq"] + 1
        replica.head = ack["version"]
        for _ in range(5):
            assert replica.follow(await slow.read())
        # And it is over: what comes now takes the ordinary way.
        await writer.append(CHAT, "later")
        assert replica.follow(await slow.read())


async def test_R08_a_tab_that_never_reads_its_long_replay_is_demoted_and_can_come_back(tmp_path: Path) -> None:
    """[R8] [D4]: what waits behind a replay is bounded; `behind` names the last commit that was sent."""
    async with running(tmp_path) as app:
        writer = await TabClient.join(app.urls[0])
        await writer.open(CHAT, create=True)
        for _ in range(4):
            await writer.append(CHAT, "y" * 3_900_000)
        since = (await writer.append(CHAT, "since"))["version"]
        for number in range(120):
            await writer.append(CHAT, f"{number}" + "x" * 100_000)
        slow = await SlowTab.join(app.urls[0])
        slow.send({"type": "open", "id": 1, "chat": CHAT, "since": since})
        slow.send({"type": "append", "id": 2, "chat": CHAT, "op": 1, "base": "*", "messages": [{"mes": "mine"}]})
        for number in range(40):
            await writer.append(CHAT, f"live {number}" + "x" * 100_000)
        assert app.counters.behind == 1
        replica = Replica(head=since)
        acks = 0
        while True:
            frame = await slow.read()
            if frame["type"] == "behind":
                behind = frame
            elif frame["type"] == "ack":
                acks += 1
                break
            elif frame["type"] == "integrity":
                assert replica.follow(frame)
        assert behind["from"] == replica.head
        assert acks == 1, "an answer is never dropped"
        tab = await TabClient.join(app.urls[0])
        replica = Replica(head=behind["from"])
        opened = await tab.open(CHAT, since=behind["from"])
        assert await follow(tab, replica, opened) == opened["head"]["seq"] - behind["from"]["seq"]


async def test_R08_a_second_open_takes_the_place_of_the_first(tmp_path: Path) -> None:
    """[R8]: parts of a snapshot and a replay that were not sent yet are not sent between those of the next one."""
    async with running(tmp_path) as app:
        writer = await TabClient.join(app.urls[0])
        since = await begin(writer, *("y" * 100_000 for _ in range(35)))
        for number in range(30):
            await writer.append(CHAT, f"{number}" + "x" * 100_000)
        slow = await SlowTab.join(app.urls[0])
        for number, position in enumerate((None, since, None, since)):
            slow.send({"type": "open", "id": number, "chat": CHAT, "since": position})
        frames: list[dict[str, Any]] = []
        replica = Replica(head=since)
        while replica.head != (frames or [{"head": None}])[-1].get("head"):
            frame = await slow.read()
            if frame["type"] == "opened":
                replica = Replica(head=since)
                frames = [frame]
            elif frame["type"] == "integrity" and len(frames) == 1 and frames[0]["id"] == 3:
                assert replica.follow(frame)
                if replica.head == frames[0]["head"]:
                    break
            else:
                assert frames[0]["id"] != 3, "nothing of the opens before"


async def test_R07_reading_the_log_stops_nobody(tmp_path: Path, short_memory: None) -> None:
    """[R7]: while eight tabs have 3,000 commits read for them, acks of the same chat and of another go on."""
    async with running(tmp_path) as app:
        writer = await TabClient.join(app.urls[0])
        await begin(writer, *(LARGE for _ in range(10)))
        await writer.open(OTHER, create=True)
        since = (await writer.append(CHAT, "since"))["version"]
        op = writer.ops[CHAT]
        for number in range(3000):
            await writer.raw.send({"type": "append", "id": 1000 + number, "chat": CHAT, "op": op + 1 + number,
                                   "base": "*", "messages": [{"mes": f"{number}"}]})
            if number % 50 == 49:
                await writer.raw.receive_until(id=1000 + number)
        writer.ops[CHAT] = op + 3000
        late = [await TabClient.join(app.urls[0]) for _ in range(8)]
        began_s = time.monotonic()
        for tab in late:
            await tab.raw.send({"type": "open", "id": 1, "chat": CHAT, "since": since})
        waits_s = []
        for chat in (CHAT, OTHER) * 10:
            sent_s = time.monotonic()
            assert (await writer.append(chat, "meanwhile"))["type"] == "ack"
            waits_s.append(time.monotonic() - sent_s)
        assert await asyncio.gather(*(tab.raw.receive_until(id=1) for tab in late))
        all_s = time.monotonic() - began_s
        assert sorted(waits_s)[len(waits_s) // 2] < 0.25 * all_s, (waits_s, all_s)
        print(f"\nacks meanwhile: median {sorted(waits_s)[10] * 1000:.1f} ms, worst {max(waits_s) * 1000:.1f} ms; "
              f"eight replays of 3,000 commits: {all_s * 1000:.0f} ms")

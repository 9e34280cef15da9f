"""The past of a chat from the log's records."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tellback_protocol.errors import Refused
from tellback_server.history import PAGE_BYTES_MAX, as_it_was, chat_at, page
from tellback_server.records import owner_key
from tellback_server.store.files import DEFAULT_USER
from tests.support.chat_desk import PLACE, Desk
from tests.support.server import TabClient, running
from tests.support.slow_tab import SlowTab
from tests.support.waiting import until

NAME = str(PLACE)


def key(desk: Desk) -> str:
    return owner_key(DEFAULT_USER, desk.stream.chat_id)


def at(desk: Desk, seq: int) -> list[Any]:
    """The chat as it was, as values."""
    stream = desk.stream
    past = chat_at(desk.log, key(desk), stream.chat.copy(), stream.head, seq)
    head, parts = as_it_was(NAME, 1, past)
    frame = json.loads(head)
    assert parts is None
    assert frame["version"]["seq"] == seq
    return [frame["metadata"], frame["messages"]]


async def test_the_chat_as_it_was_after_every_commit(tmp_path: Path) -> None:
    """[H2]: appends, patches, deletions from the middle and metadata are taken back one by one."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    seen = {}

    def see() -> None:
        seen[desk.stream.head.seq] = [
            json.loads(desk.stream.chat.metadata), [json.loads(raw) for raw in desk.stream.chat.served_all()]
        ]

    see()
    ids = await desk.append("one", "two", "three")
    see()
    await desk.patch(ids[1], mes="patched", more={"deep": [1]})
    see()
    await desk.metadata(note="x")
    see()
    await desk.delete(ids[0], ids[1])
    see()
    await desk.append("four")
    see()
    await desk.state("memory", {"a": 1})
    see()
    await desk.metadata(note=None)
    see()
    assert len(seen) == 8
    for seq, expected in seen.items():
        assert at(desk, seq) == expected, seq
    # The same from the log of a server that was restarted.
    await desk.checkpoint()
    await desk.restart()
    for seq, expected in seen.items():
        assert at(desk, seq) == expected, seq
    desk.stop()


async def test_what_the_log_does_not_lead_back_to_is_version_unknown(tmp_path: Path) -> None:
    """[H3]: the future, and what was before another program's edit; never a guess."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    await desk.append("one")
    await desk.checkpoint()
    with pytest.raises(Refused) as refused:
        at(desk, desk.stream.head.seq + 1)
    assert refused.value.code == "version-unknown"
    desk.path.write_bytes(desk.path.read_bytes().rstrip(b"\n") + b'\n{"mes":"outside"}\n')
    before = desk.stream.head.seq
    await desk.adopt()
    await desk.append("two")
    with pytest.raises(Refused) as refused:
        at(desk, before - 1)
    assert refused.value.code == "version-unknown"
    assert [message["mes"] for message in at(desk, desk.stream.head.seq - 1)[1]] == ["one", "outside"]
    desk.stop()


async def test_pages_are_bounded_in_commits_and_bytes_and_always_move_on(tmp_path: Path) -> None:
    """[H1]: every commit once, in order, whatever the limit; a commit of over 1 MiB is a page of its own."""
    desk = Desk(tmp_path / "data")
    await desk.create()
    for number in range(10):
        await desk.append(f"{number}" + "x" * (PAGE_BYTES_MAX // 3 if number % 2 else 10))
    for limit in (1, 3, 1000):
        after, seqs, pages = 0, [], 0
        while True:
            frame = json.loads(page(desk.log, key(desk), NAME, 7, after, limit))
            assert (frame["type"], frame["id"], frame["chat"]) == ("history", 7, NAME)
            assert 1 <= len(frame["commits"]) <= limit
            assert all(commit["chat"] == NAME for commit in frame["commits"])
            seqs += [commit["version"]["seq"] for commit in frame["commits"]]
            pages += 1
            after = seqs[-1]
            if not frame.get("more"):
                break
        assert seqs == list(range(seqs[0], seqs[0] + 10))
        assert pages == {1: 10, 3: 4, 1000: 3}[limit]
    empty = json.loads(page(desk.log, key(desk), NAME, None, after, 10))
    assert (empty["commits"], empty.get("more", False)) == ([], False)
    desk.stop()


async def test_a_long_chat_as_it_was_comes_in_parts(tmp_path: Path) -> None:
    """[H4] [H2]: whole messages, about 64 KiB a frame; pings and other answers come between, nothing is buffered."""
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(NAME, create=True)
        texts = [f"{number} " + "y" * 1000 for number in range(1000)]
        ack = await tab.append(NAME, *texts)
        await tab.write("delete", NAME, base="*", force=True, messages=ack["messages"][::2])
        frame = await tab.ask("history", chat=NAME, at=ack["version"]["seq"])
        assert (frame["version"], frame["count"]) == (ack["version"], 1000)
        assert "messages" not in frame
        await tab.raw.send({"type": "ping", "id": 77})
        messages: list[Any] = []
        for number in range(1, frame["parts"] + 1):
            raw = await tab.raw.connection.recv(decode=False)
            if json.loads(raw)["type"] == "pong":
                raw = await tab.raw.connection.recv(decode=False)
            part = json.loads(raw)
            assert (part["type"], part["id"], part["part"], part["of"]) == (
                "history-part", frame["id"], number, frame["parts"])
            assert len(raw) < 80_000
            messages += part["messages"]
        assert [message["mes"] for message in messages] == texts
        assert [message["id"] for message in messages] == ack["messages"]
        assert not any(tab.session.in_flight for tab in app._reception.tabs)


async def test_a_tab_that_asks_for_the_past_and_never_reads_keeps_a_bounded_number_of_copies(tmp_path: Path) -> None:
    """[H4] [C5]: parts that wait count as in flight, so the server stops reading that tab, and nobody else."""
    async with running(tmp_path, in_flight_max=4) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(NAME, create=True)
        for _ in range(5):
            seq = (await tab.append(NAME, *("y" * 10_000 for _ in range(300))))["version"]["seq"]
        slow = await SlowTab.join(app.urls[0])
        for number in range(100):
            slow.send({"type": "history", "id": number, "chat": NAME, "at": seq - 1})
        await until(lambda: any(tab.session.in_flight == 4 for tab in app._reception.tabs))
        [session] = [tab.session for tab in app._reception.tabs if tab.session.in_flight]
        await asyncio.sleep(0.1)
        assert session.in_flight == 4
        assert (await tab.append(NAME, "goes on"))["type"] == "ack"

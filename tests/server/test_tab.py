"""One connection: what it has open, what it asked, and what is left when it is gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tellback_server.tab import TARGETS_MAX
from tests.support.held_fs import HeldFs
from tests.support.server import TabClient, running
from tests.support.waiting import until
from tests.support.websocket_frames import client_frame

CHAT = "character:Alice/First meeting"


async def test_past_64_unanswered_writes_the_server_reads_no_more_and_goes_on_when_it_may(tmp_path: Path) -> None:
    """[C5]: in frames and in bytes; the chat itself is not stopped."""
    fs = HeldFs()
    async with running(tmp_path, fs=fs, in_flight_max=8) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        other = await TabClient.join(app.urls[0])
        await other.open("group:Friends", create=True)
        [served] = [found for found in app._reception.tabs if found.session_id == tab.session]
        fs.hold_syncs()
        for op in range(1, 31):
            await tab.raw.send({"type": "append", "id": op, "chat": CHAT, "op": op, "base": "*",
                                "messages": [{"mes": f"{op}"}]})
        await until(lambda: served.session.in_flight == 8)
        await tab.raw.send({"type": "ping", "id": 99})
        assert (await other.ask("ping"))["type"] == "pong"
        await tab.raw.expect_silence(0.05)
        assert served.session.in_flight == 8
        fs.let_go()
        for op in range(1, 31):
            assert (await tab.raw.receive_until(id=op))["op"] == op
        assert (await tab.raw.receive_until(id=99))["type"] == "pong"
        assert (served.session.in_flight, served.session.in_flight_bytes) == (0, 0)


async def test_a_connection_has_no_more_chats_open_than_it_was_told(tmp_path: Path) -> None:
    """[C11] What is refused is not made either; what is open stays so, and can be opened again."""
    async with running(tmp_path, open_chats_max=2) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        await tab.open("group:Friends", create=True)
        third = {"type": "open", "id": 7, "chat": "group:Third", "since": None, "create": True}
        await tab.raw.send(third)
        refused = await tab.raw.receive_until(id=7)
        assert (refused["code"], refused["pointer"]) == ("too-large", "/chat")
        assert len(app._hub.actors) == 2
        assert (await tab.open(CHAT))["mode"] == "snapshot"
        assert (await tab.append(CHAT, "still open"))["type"] == "ack"
        await tab.ask("close", chat=CHAT)
        assert (await tab.open("group:Third", create=True))["created"]
        await tab.raw.send({"type": "open", "id": 8, "chat": CHAT, "since": None})
        assert (await tab.raw.receive_until(id=8))["code"] == "too-large"


async def test_every_way_of_an_answer_gives_its_place_in_flight_back(tmp_path: Path) -> None:
    """[C5]: else a connection would stand still after 64 mistakes."""
    async with running(tmp_path, in_flight_max=4) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        [served] = app._reception.tabs
        requests: list[dict[str, Any]] = [
            {"type": "open", "chat": "group:nobody", "since": None},
            {"type": "open", "chat": "id:11111111-2222-4333-8444-555555555555", "since": None},
            {"type": "open", "chat": "group:CON", "since": None, "create": True},
            {"type": "open", "chat": CHAT, "since": None},
            {"type": "append", "chat": CHAT, "messages": [{}]},
            {"type": "append", "chat": CHAT, "op": 99, "base": "*", "messages": [{}]},
            {"type": "history", "chat": CHAT},
            {"type": "history", "chat": CHAT, "at": 99},
            {"type": "state-get", "owner": {"chat": CHAT}},
            {"type": "state-get", "owner": {"chat": "group:nobody"}},
            {"type": "state-get", "owner": {"character": "Alice"}},
            {"type": "close", "chat": "group:nobody"},
        ]
        for _ in range(5):
            for request in requests:
                await tab.ask(**request)
                assert served.session.in_flight == 0, request
        await tab.ask("close", chat=CHAT)
        assert (served.session.in_flight, served.session.in_flight_bytes) == (0, 0)
        assert served.chats == set()


async def test_more_names_than_a_connection_remembers(tmp_path: Path) -> None:
    """Targets are a cache; what is open stays open."""
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        await tab.open(CHAT, create=True)
        for number in range(TARGETS_MAX + 50):
            await tab.raw.send({"type": "state-get", "id": number + 10, "owner": {"chat": f"group:{number}"}})
        assert (await tab.raw.receive_until(id=TARGETS_MAX + 59))["code"] == "not-found"
        other = await TabClient.join(app.urls[0])
        await other.append(CHAT, "still told")
        assert (await tab.raw.receive_until(type="integrity"))["by"]["session"] == other.session


async def test_a_closed_connection_leaves_nothing_in_any_chat(tmp_path: Path) -> None:
    """[D3]"""
    async with running(tmp_path) as app:
        tab = await TabClient.join(app.urls[0])
        chats = [f"group:{number}" for number in range(20)]
        for chat in chats:
            await tab.open(chat, create=True)
        assert sum(len(actor.audience.subscriptions) for actor in app._hub.actors) == 20
        tab.raw.abort()
        await until(lambda: sum(len(actor.audience.subscriptions) for actor in app._hub.actors) == 0)
        assert not app._reception.tabs


async def test_L1_the_appends_of_one_read_keep_their_order_with_what_stands_between_them(tmp_path: Path) -> None:
    """Plain ones are carried out together: never past another request, another chat, or one that is not plain."""
    async with running(tmp_path) as app:
        watcher = await TabClient.join(app.urls[0])
        tab = await TabClient.join(app.urls[0])
        for one in (watcher, tab):
            await one.open(CHAT, create=True)
            await one.open("group:Friends", create=True)
        [served] = [found for found in app._reception.tabs if found.session_id == tab.session]
        requests: list[dict[str, Any]] = [
            {"op": 1, "messages": [{"mes": "1"}]},
            {"op": 2, "messages": [{"mes": "2"}]},
            {"op": 3, "messages": [{"mes": "3", "id": "mine"}]},
            {"op": 4, "messages": [{"mes": "4"}]},
            {"type": "metadata-update", "op": 5, "base": {"op": 4}, "set": {"mood": "good"}},
            {"op": 6, "messages": [{"mes": "6"}]},
            {"op": 1, "messages": [{"mes": "hi"}], "chat": "group:Friends"},
            {"op": 7, "messages": []},
            {"op": 8, "messages": [{"mes": "8"}]},
            {"op": 8, "messages": [{"mes": "8"}]},
        ]
        served.connection.data_received(b"".join(
            client_frame(1, json.dumps({"type": "append", "chat": CHAT, "base": "*", "id": number} | request).encode())
            for number, request in enumerate(requests, 100)
        ))
        answers = [await tab.raw.receive_until(id=number) for number in range(100, 110)]
        told = [await watcher.raw.receive_until(type="integrity", chat=CHAT) for _ in range(7)]

    assert [answer["op"] for answer in answers] == [1, 2, 3, 4, 5, 6, 1, 7, 8, 8]
    assert [answer["type"] for answer in answers] == ["ack"] * 7 + ["error", "ack", "ack"]
    assert answers[9]["version"] == answers[8]["version"]
    assert answers[9]["duplicate"] is True
    assert [frame["by"]["op"] for frame in told] == [1, 2, 3, 4, 5, 6, 8]
    assert [frame["version"]["seq"] for frame in told] == list(range(2, 9))
    assert [frame["previous"] for frame in told[1:]] == [frame["version"]["integrity"] for frame in told[:-1]]
